"""What `bench` measures of products: every one of a GPT-2-124M training step, and two squares.

A step of 16 sequences of 1024 tokens has 16,384 rows; the head's logits are made 8,192 rows at a
time. C is 768, FF 3072, V 50304.

    forward  y = x wᵀ        (rows × K) (N × K)ᵀ
    dgrad    dx = dy w       (rows × N) (N × K)
    wgrad    dw = dyᵀ x      (rows × N)ᵀ (rows × K)

The peer is torch.mm, which is cuBLAS, on the same tensors in the same layouts. A weight's gradient
is float32 here, as an optimizer wants it, where cuBLAS writes bfloat16: it has half the bytes to
write. A row's rate is 2 M N K FLOPs over the median time.
"""

from collections.abc import Iterator

import torch

from .bench_cases import CHECKED_ROWS, Case, inputs, module, over, randn, relative_error

# name → rows, N (outputs), K (inputs) of a linear layer
LAYERS = {
    "qkv": (16384, 2304, 768),
    "proj": (16384, 768, 768),
    "fc": (16384, 3072, 768),
    "fc2": (16384, 768, 3072),
    "head": (8192, 50304, 768),
}
SQUARES = (4096, 8192)
GOALS = {"step": 1.0, "square": 1.05}  # share of cuBLAS


def operands(pass_: str, rows: int, N: int, K: int) -> tuple[torch.Tensor, torch.Tensor]:
    """a and b of one product, as views of what a linear layer has in memory."""
    if pass_ == "forward":
        return randn(rows, K), randn(N, K).t()
    if pass_ == "dgrad":
        return randn(rows, N), randn(N, K)
    return randn(rows, N).t(), randn(rows, K)


def _case(name: str, pass_: str, sizes: tuple[int, int, int], goal: float, rungs) -> Case:
    product = module("matmul_hopper").product
    out_dtype = torch.float32 if pass_ == "wgrad" else torch.bfloat16
    rows, N, K = sizes
    nbytes = 2 * (rows * N + rows * K + N * K)
    sets = []
    for a, b in inputs(nbytes, lambda: operands(pass_, rows, N, K)):
        shape = a.shape[0], b.shape[1]
        sets.append((a, b, torch.empty(shape, dtype=out_dtype, device="cuda"),
                     torch.empty(shape, dtype=torch.bfloat16, device="cuda")))  # fmt: skip
    a, b, out, _ = sets[0]
    (M, depth), columns = a.shape, b.shape[1]

    def error() -> float:
        out.fill_(float("nan"))
        product(a, b, out)
        return relative_error(out[:CHECKED_ROWS], a[:CHECKED_ROWS].double() @ b.double())

    return Case(
        "matmul", pass_, {"layer": name, "M": M, "N": columns, "K": depth}, "bfloat16", nbytes,
        over(sets, lambda a, b, out, _: product(a, b, out)), error, len(sets),
        {"torch": over(sets, lambda a, b, _, out: torch.mm(a, b, out=out))},
        {rung: over(sets, lambda a, b, out, _, fn=fn: fn(a, b, out)) for rung, fn in rungs.items()},
        beats={"torch": goal}, flops=2 * M * columns * depth,
    )  # fmt: skip


def _rungs() -> dict:
    """The rungs below, and the Hopper kernels that are not chosen for a square."""
    m, choose = module("matmul_hopper"), module("hopper_choice")
    tile = module("hopper_tile").Tile
    turns = choose.Choice(tile(128, 6, 2, turns=True), 16)
    return {
        **module("matmul_warp").RUNGS,
        "hopper, groups in turns": lambda a, b, out: m.product(a, b, out, chosen=turns),
    }


def matmul_cases() -> Iterator[Case]:
    for name, sizes in LAYERS.items():
        for pass_ in ("forward", "dgrad", "wgrad"):
            yield _case(name, pass_, sizes, GOALS["step"], {})
    for n in SQUARES:
        rungs = _rungs() if n == SQUARES[0] else {}
        yield _case("square", "forward", (n, n, n), GOALS["square"], rungs)


CASES = {"matmul": matmul_cases}
