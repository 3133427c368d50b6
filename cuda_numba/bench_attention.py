"""What `bench` measures of attention: causal, forward and backward, beside cuDNN and FA2.

FLOPs as they are counted everywhere: 4 · B · H · T² · D forward, 2.5 times that backward, and half
of it because the mask is causal. A kernel that computes masked scores has to make up for them.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from .bench_cases import Case, inputs, module, over, randn, relative_error

# (B, H, T, D)
SHAPES = (
    *((16, 12, 1024, 64), (8, 16, 2048, 64), (4, 16, 4096, 64), (1, 16, 16384, 64)),
    *((16, 16, 1024, 128), (8, 16, 2048, 128), (4, 16, 4096, 128), (1, 16, 16384, 128)),
)
PEERS = {
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
    "FlashAttention-2": SDPBackend.FLASH_ATTENTION,
}
GOALS = {64: 0.95, 128: 1.0}  # of cuDNN, by D
BACKWARD_GOAL = 1.15
CHECKED = 1024  # positions, of one head: the reference has all scores in float64


def peer(backend: SDPBackend) -> Callable[..., torch.Tensor]:
    def forward(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    return forward


def peer_backward(backend: SDPBackend, sets: list[tuple]) -> Callable[[int], object]:
    """The backward pass alone: the graphs of the forward passes are kept."""
    graphs = []
    for do, *qkv in sets:
        leaves = [x.detach().requires_grad_() for x in qkv[:3]]
        graphs.append((peer(backend)(*leaves), leaves, do))

    def backward(i: int) -> object:
        o, leaves, do = graphs[i]
        return torch.autograd.grad(o, leaves, do, retain_graph=True)

    return backward


def head_of(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """The last positions of one head, where keys far and near are seen."""
    return [x[:1, :1, -CHECKED:] for x in tensors]


def forward_case(m: Any, sets: list[tuple], B: int, H: int, T: int, D: int) -> Case:
    def error() -> float:
        q, k, v = sets[0]
        (last,) = head_of(q)
        right, _ = m.attention_reference(last.double(), *(x[:1, :1].double() for x in (k, v)))
        return relative_error(m.RUNGS["hopper"](q, k, v)[0][:1, :1, -CHECKED:], right)

    slow = ("naive", "online") if (T, D) == (1024, 64) else ()
    return Case(
        "attention", "forward", {"B": B, "H": H, "T": T, "D": D}, "bfloat16",
        4 * 2 * B * H * T * D, over(sets, m.RUNGS["hopper"]), error, len(sets),
        {name: over(sets, peer(backend)) for name, backend in PEERS.items()},
        {name: over(sets, m.RUNGS[name]) for name in (*slow, "warp")},
        beats={"cuDNN": GOALS[D]}, flops=2 * B * H * T * T * D,
    )  # fmt: skip


def backward_case(m: Any, sets: list[tuple], B: int, H: int, T: int, D: int) -> Case:
    """sets: do, q, k, v, o, lse."""
    options: dict[str, Any] = {"causal": True, "window": None, "scale": D**-0.5}
    hopper, warp = (module(m.BACKWARD[rung]).backward for rung in ("hopper", "warp"))

    def error() -> float:
        do, q, k, v = (x[:1, :1, :CHECKED] for x in sets[0][:4])
        o, lse = m.RUNGS["hopper"](q, k, v)
        right = m.attention_backward_reference(*(x.double() for x in (do, q, k, v)))
        got = hopper(do, q, k, v, o, lse, **options)
        return max(map(relative_error, got, right))

    return Case(
        "attention", "backward", {"B": B, "H": H, "T": T, "D": D}, "bfloat16",
        8 * 2 * B * H * T * D, over(sets, lambda *x: hopper(*x, **options)), error, len(sets),
        {name: peer_backward(backend, sets) for name, backend in PEERS.items()},
        {"warp": over(sets, lambda *x: warp(*x, **options))},
        beats={"cuDNN": BACKWARD_GOAL}, flops=5 * B * H * T * T * D,
    )  # fmt: skip


def attention_cases() -> Iterator[Case]:
    m = module("attention")
    for shape in SHAPES:
        B, H, T, D = shape
        sets = inputs(8 * B * H * T * D, lambda s=shape: tuple(randn(*s) for _ in range(3)))
        yield forward_case(m, sets, *shape)
        sets = [(randn(*shape), *qkv, *m.RUNGS["hopper"](*qkv)) for qkv in sets]
        yield backward_case(m, sets, *shape)


CASES = {"attention": attention_cases}
