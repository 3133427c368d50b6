"""What `bench` measures of attention on `mma.sync`, beside FlashAttention-2 and cuDNN."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from .attention import attention_backward_reference, attention_reference
from .bench_cases import Case, inputs, module, over, randn, relative_error

# (B, H, T, D)
SHAPES = (
    *((16, 12, 1024, 64), (8, 16, 2048, 64), (4, 16, 4096, 64)),
    *((8, 16, 2048, 128), (4, 16, 4096, 128), (1, 16, 16384, 128)),
)
PEERS = {
    "FlashAttention-2": SDPBackend.FLASH_ATTENTION,
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
}
CHECKED_TOKENS = 1024  # of one head: the reference has all scores in float64


def peer_forward(backend: SDPBackend) -> Callable[..., torch.Tensor]:
    def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    return run


def peer_backward(backend: SDPBackend, sets: list[tuple]) -> Callable[[int], object]:
    """Only the backward pass: the graphs of the forward passes are kept."""
    graphs = []
    for do, *qkv in sets:
        leaves = [x.detach().requires_grad_() for x in qkv[:3]]
        graphs.append((peer_forward(backend)(*leaves), leaves, do))

    def run(i: int) -> object:
        o, leaves, do = graphs[i]
        return torch.autograd.grad(o, leaves, do, retain_graph=True)

    return run


def head_of(*tensors: torch.Tensor) -> list[torch.Tensor]:
    return [x[:1, :1, :CHECKED_TOKENS].contiguous() for x in tensors]


def attention_cases() -> Iterator[Case]:
    m = module("attention_warp")
    for B, H, T, D in SHAPES:
        shape = {"B": B, "H": H, "T": T, "D": D}
        flops = 4 * B * H * T * T * D // 2
        options: dict[str, Any] = {"causal": True, "window": None, "scale": D**-0.5}

        def forward(q, k, v, options=options):
            return m.forward(q, k, v, **options)

        def backward(do, q, k, v, o, lse, options=options):
            return m.backward(do, q, k, v, o, lse, **options)

        def forward_error(q, k, v, forward=forward):
            q, k, v = head_of(q, k, v)
            return relative_error(
                forward(q, k, v)[0], attention_reference(q.double(), k.double(), v.double())[0]
            )

        def backward_error(do, q, k, v, *_, forward=forward, backward=backward):
            do, q, k, v = head_of(do, q, k, v)
            got = backward(do, q, k, v, *forward(q, k, v))
            right = attention_backward_reference(*(x.double() for x in (do, q, k, v)))
            return max(map(relative_error, got, right))

        nbytes = 4 * 2 * B * H * T * D
        sets = inputs(nbytes, lambda s=(B, H, T, D): tuple(randn(*s) for _ in range(3)))
        yield Case(
            "attention", "forward (mma.sync)", shape, "bfloat16", nbytes,
            over(sets, forward), lambda sets=sets, f=forward_error: f(*sets[0]), len(sets),
            {name: over(sets, peer_forward(backend)) for name, backend in PEERS.items()},
            beats={"FlashAttention-2": 1.0}, flops=flops,
        )  # fmt: skip

        sets = [(randn(B, H, T, D), *qkv, *forward(*qkv)) for qkv in sets[:4]]
        yield Case(
            "attention", "backward (mma.sync)", shape, "bfloat16", 2 * nbytes,
            over(sets, backward), lambda sets=sets, f=backward_error: f(*sets[0]), len(sets),
            {name: peer_backward(backend, sets) for name, backend in PEERS.items()},
            beats={"FlashAttention-2": 0.9}, flops=flops * 5 // 2,
        )  # fmt: skip


CASES = {"attention": attention_cases}
