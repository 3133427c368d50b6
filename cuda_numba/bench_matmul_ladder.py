"""What `bench` measures of the products below Hopper: float32 on the plain cores, and mma.sync."""

from collections.abc import Iterator

import torch

from .bench_cases import Case, inputs, module, name_of, over, randn, relative_error

SIZES = (4096, 8192)
RUNG_SIZE = 2048  # of the slow rungs: the slowest takes 60 times as long as the fastest
CHECKED_ROWS = 256
FLOAT32_SHARE = 0.90  # of cuBLAS in IEEE float32
WARP_TFLOPS = 500  # mma.sync itself reaches 636 on an H100, cuBLAS with wgmma 750


def ieee(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """torch's product in float32 itself, not in TF32."""
    matmul = torch.backends.cuda.matmul
    before, matmul.fp32_precision = matmul.fp32_precision, "ieee"
    try:
        return torch.mm(a, b)
    finally:
        matmul.fp32_precision = before


def float32_cases() -> Iterator[Case]:
    m = module("matmul_simt")
    for n in (RUNG_SIZE, *SIZES):
        nbytes = 3 * n * n * 4
        sets = inputs(nbytes, lambda n=n: tuple(randn(n, n, dtype=torch.float32) for _ in range(2)))
        yield Case(
            "matmul", "forward", {"M": n, "N": n, "K": n}, "float32", nbytes,
            over(sets, m.RUNGS["register tile"]),
            lambda sets=sets: _error(m.RUNGS["register tile"], *sets[0]),
            len(sets), {"torch": over(sets, ieee)},
            {r: over(sets, m.RUNGS[r]) for r in list(m.RUNGS)[:-1]} if n == RUNG_SIZE else {},
            beats={"torch": FLOAT32_SHARE} if n in SIZES else {}, flops=2 * n**3,
        )  # fmt: skip


def warp_cases() -> Iterator[Case]:
    """x @ w.T, as in a linear layer."""
    m = module("matmul_warp")
    for n in SIZES:
        nbytes = 3 * n * n * 2
        sets = inputs(nbytes, lambda n=n: (randn(n, n), randn(n, n).mT))
        yield Case(
            "matmul", "forward (mma.sync)", {"M": n, "N": n, "K": n}, name_of(torch.bfloat16),
            nbytes, over(sets, m.matmul_warp), lambda sets=sets: _error(m.matmul_warp, *sets[0]),
            len(sets), {"torch": over(sets, torch.mm)}, goal_value=WARP_TFLOPS, flops=2 * n**3,
        )  # fmt: skip


def _error(product, a, b):
    rows = slice(-CHECKED_ROWS, None)  # of the whole product: by the kernel that is measured
    return relative_error(product(a, b)[rows], a[rows].double() @ b.double())


def cases() -> Iterator[Case]:
    yield from float32_cases()
    yield from warp_cases()


CASES = {"matmul": cases}
