"""The rotary kernel as the emulator counts it and as machine code."""

import pytest
import torch
from compiled import WIDE_LOAD, WIDE_STORE, assert_gates, needs_compiler
from targets import BETWEEN, HOPPER, targets, thorough

from cuda_numba.dtypes import itemsize, vector_width
from cuda_numba.inspect import instructions
from cuda_numba.rope import HEADS, THREADS, rope_kernel

FORMATS = ["float32", "float16", "bfloat16"]


def report_of(dtype, heads, along_heads):
    """(1, 4, 8, 64), contiguous, or as the transpose of (1, 8, 4, 64)."""
    H, T, D = 4, 8, 64
    width = vector_width(dtype)
    x = torch.randn(H * T * D).to(getattr(torch, dtype))
    cos, sin = torch.randn(2, T, D // 2)
    threads = D // 2 // width * T * H // heads
    by_head, by_time = (D, H * D) if along_heads else (T * D, D)
    kernel = rope_kernel(dtype, D // 2, width, heads, along_heads, False)
    strides = (0, by_head, by_time) * 2
    groups = H // heads
    return kernel.report(
        -(-threads // THREADS), THREADS,
        x, cos, sin, torch.empty_like(x), threads, T, groups, groups, *strides,
    )  # fmt: skip


@pytest.mark.parametrize("along_heads", [False, True])
@pytest.mark.parametrize("dtype", FORMATS)
def test_traffic(dtype, along_heads):
    """x once, y once, whole sectors; the angles once for every group of heads."""
    size, tables = 4 * 8 * 64 * itemsize(dtype), 2 * 8 * 32 * 4
    for heads in (4, 2, 1):
        report = report_of(dtype, heads, along_heads)
        assert report.findings == []
        assert report.of("global", "store").moved == size
        assert report.reads == size + tables * (4 // heads)
        assert report.promotions == 0


def signature(dtype):
    table = "float32[:]"
    pointers = (f"{dtype}[:]", table, table, f"{dtype}[:]")
    return pointers + ("uint32",) * 4 + ("int64",) * 6


@needs_compiler
class TestMachineCode:
    @pytest.mark.parametrize(
        ("half", "cc", "dtype"),
        [(64, *target) for target in targets(everywhere=True)]
        + [(32, HOPPER, dtype) for dtype in FORMATS]
        + [(32, (7, 5), "bfloat16"), *(thorough(32, cc, "bfloat16") for cc in BETWEEN)],
        ids=str,
    )
    def test_gates(self, half, cc, dtype):
        kernel = rope_kernel(dtype, half, vector_width(dtype), HEADS, False, half == 32)
        assert_gates(kernel, cc, signature(dtype), (WIDE_LOAD, WIDE_STORE))

    @pytest.mark.parametrize("dtype", FORMATS)
    def test_unaligned(self, dtype):
        assert_gates(rope_kernel(dtype, 33, 1, 3, True, False), (9, 0), signature(dtype))

    @pytest.mark.parametrize(("dtype", "at_most"), [("bfloat16", 6), ("float32", 7)])
    def test_instructions_per_element(self, dtype, at_most):
        width = vector_width(dtype)
        kernel = rope_kernel(dtype, 64, width, HEADS, False, False)
        count = instructions(kernel.sass((9, 0), signature(dtype)))
        assert (sum(count.values()) - count["NOP"]) / (2 * HEADS * width) < at_most

    def test_loads_are_on_their_way_before_the_first_is_used(self):
        kernel = rope_kernel("bfloat16", 32, 8, HEADS, False, False)
        sass = kernel.sass((9, 0), signature("bfloat16"))
        assert sass[: sass.index("FMUL")].count("LDG.E.NA.128") == 2 * HEADS

    def test_five_blocks_share_a_multiprocessor(self):
        kernel = rope_kernel("bfloat16", 32, 8, HEADS, False, False)
        registers = kernel.resources((9, 0), signature("bfloat16")).registers
        assert -(-registers // 8) * 8 * THREADS * 5 <= 65536
