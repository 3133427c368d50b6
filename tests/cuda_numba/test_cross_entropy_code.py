"""Cross-entropy kernels as the emulator counts them and as machine code."""

import pytest
import torch
from compiled import WIDE_LOAD, WIDE_STORE, assert_gates, needs_compiler
from targets import targets

from cuda_numba.cross_entropy_fused import fused_kernel
from cuda_numba.cross_entropy_rungs import THREADS, cross_entropy_naive, cross_entropy_online
from cuda_numba.cross_entropy_stream import (
    backward_kernel,
    count_targets,
    forward_kernel,
    scale_kernel,
)
from cuda_numba.dtypes import vector_width

FORMATS = ["float32", "float16", "bfloat16"]
APART = [((7, 5), "float16"), ((9, 0), "bfloat16"), ((9, 0), "float32")]
IGNORED = -100
ROWS, COLUMNS = 5, 1152


def inputs(dtype, columns=COLUMNS, rows=ROWS):
    x = torch.randn(rows, columns).to(getattr(torch, dtype))
    targets = torch.randint(0, columns, (rows,))
    return x, targets


def floats(*shape):
    return torch.empty(shape)


def report_of(kernel, blocks, threads, *args, **options):
    report = kernel.report(blocks, threads, *args, **options)
    assert report.findings == []
    return report


def moved(report, kind):
    return report.of("global", kind).moved


def fused_report(dtype, staged, counted, x, targets, **options):
    rows, columns = x.shape
    kernel = fused_kernel(dtype, 128, 1, staged, counted)
    count, arrived = torch.full((1,), float(rows)), torch.zeros(1, dtype=torch.int32)
    args = (x, x, targets, floats(rows), floats(1), count, arrived, rows, columns, IGNORED, 1.0)
    smem = columns * x.itemsize if staged else 0
    report = report_of(kernel, 2, 128, *args, smem=smem, **options)
    assert arrived == 0, "the counter is ready for the next launch"
    return report


class TestTraffic:
    """Aligned rows: 16-byte pieces, each read once and written once; the rest is a few numbers."""

    @pytest.mark.parametrize("dtype", FORMATS)
    def test_fused(self, dtype):
        """In place, more rows than blocks; every warp reads the row's target besides."""
        x, targets = inputs(dtype)
        report = fused_report(dtype, True, True, x, targets)
        size = x.nbytes
        small = 32 * (ROWS * 3 + 8)  # sectors of targets, losses, results
        assert size <= moved(report, "store") <= size + small
        assert size <= moved(report, "load") <= size + 4 * 32 * (ROWS * 4 + 8)
        assert report.barriers == ROWS + 2 * 2 + 1  # and in the last block the sum of the losses

    def test_streamed(self):
        """The control: what reads each row twice does not pass for what reads it once."""
        x, targets = inputs("bfloat16")
        report = fused_report("bfloat16", False, True, x, targets)
        assert 2 * x.nbytes <= moved(report, "load")
        assert x.nbytes <= moved(report, "store") < 2 * x.nbytes

    @pytest.mark.parametrize("seed", [1, 2])
    @pytest.mark.parametrize("counted", [True, False])
    def test_any_order(self, seed, counted):
        """Unaligned rows, in place, whichever thread and block goes first."""
        x, targets = inputs("bfloat16", columns=261, rows=5)
        expected = x.clone()
        fused_report("bfloat16", True, counted, expected, targets)
        fused_report("bfloat16", True, counted, x, targets, seed=seed)
        assert torch.equal(x, expected)

    @pytest.mark.parametrize("dtype", FORMATS)
    def test_apart(self, dtype):
        x, targets = inputs(dtype)
        lse, count, arrived = floats(ROWS), floats(1), torch.zeros(1, dtype=torch.int32)
        args = (x, targets, floats(ROWS), lse, floats(1), count, arrived, ROWS, COLUMNS, IGNORED)
        report = report_of(forward_kernel(dtype, 128), ROWS, 128, *args)
        assert x.nbytes <= moved(report, "load") <= x.nbytes + 4 * 32 * (ROWS * 2 + 8)
        assert moved(report, "store") <= 32 * (2 * ROWS + 3)
        args = (x, torch.empty_like(x), targets, lse, torch.ones(1), count, COLUMNS, IGNORED)
        report = report_of(backward_kernel(dtype, 128), ROWS, 128, *args)
        assert moved(report, "store") == x.nbytes
        assert x.nbytes <= moved(report, "load") <= x.nbytes + ROWS * 4 * 4 * 32

    @pytest.mark.parametrize(
        ("kernel", "reads"), [(cross_entropy_naive, 3), (cross_entropy_online, 2)]
    )
    def test_slow_rungs(self, kernel, reads):
        x, targets = inputs("float32", columns=512, rows=2)
        report = report_of(
            kernel, 2, THREADS, x, targets, floats(2), torch.empty_like(x), IGNORED, 0.5
        )
        assert reads * x.nbytes <= moved(report, "load") < (reads + 1) * x.nbytes
        assert report.barriers == 2 * 2

    def test_nothing_moves_for_one(self):
        x = torch.randn(4096)
        report = report_of(scale_kernel("float32", 4), 1, 256, x, torch.ones(1), 4096, 1024)
        assert report.of("global", "store").moved == 0
        report = report_of(scale_kernel("float32", 4), 1, 256, x, torch.zeros(1), 4096, 1024)
        assert report.of("global", "store").moved == x.nbytes

    def test_count(self):
        targets, count = torch.tensor([3, IGNORED] * 700), floats(1)
        report_of(count_targets, 1, 128, targets, count, 1400, IGNORED)
        assert count == 700


def signature(dtype, *rest):
    return (f"{dtype}[:]", *rest)


FLOAT, SIZE = "float32[:]", "uint32"
FUSED = ("int64[:]", FLOAT, FLOAT, FLOAT, "int32[:]", SIZE, SIZE, "int64", "float32")


@needs_compiler
class TestMachineCode:
    @pytest.mark.parametrize(("cc", "dtype"), targets(everywhere=True), ids=str)
    def test_fused(self, cc, dtype):
        """Two blocks of 512 threads to a multiprocessor; no cp.async on the T4."""
        if cc >= (8, 0):
            kernel = fused_kernel(dtype, 512, 2, True, False)
            expect = ("LDGSTS.E.BYPASS.128", "LDS.128", WIDE_STORE, "MUFU.EX2")
        else:
            kernel, expect = fused_kernel(dtype, 512, 2, False, False), (WIDE_LOAD, WIDE_STORE)
        types = signature(dtype, f"{dtype}[:]", *FUSED)
        assert_gates(kernel, cc, types, expect, max_registers=64)

    @pytest.mark.parametrize(("cc", "dtype"), APART, ids=str)
    def test_apart(self, cc, dtype):
        types = signature(dtype, "int64[:]", *[FLOAT] * 4, "int32[:]", SIZE, SIZE, "int64")
        assert_gates(forward_kernel(dtype, 512), cc, types, (WIDE_LOAD, "MUFU.EX2"))
        types = signature(dtype, f"{dtype}[:]", "int64[:]", *[FLOAT] * 3, SIZE, "int64")
        assert_gates(backward_kernel(dtype, 512), cc, types, (WIDE_LOAD, WIDE_STORE))


@needs_compiler
class TestOtherMachineCode:
    def test_large_rows(self):
        for staged in (True, False):
            kernel = fused_kernel("float32", 1024, 1, staged, False)
            types = signature("float32", "float32[:]", *FUSED)
            assert_gates(kernel, (9, 0), types, (WIDE_STORE,), max_registers=64)

    def test_small_kernels(self):
        assert_gates(count_targets, (9, 0), ("int64[:]", FLOAT, SIZE, "int64"))
        kernel = scale_kernel("bfloat16", vector_width("bfloat16"))
        types = ("bfloat16[:]", FLOAT, "int64", "int64")
        assert_gates(kernel, (9, 0), types, (WIDE_LOAD, WIDE_STORE))
        assert_gates(scale_kernel("float16", 1), (7, 5), ("float16[:]", *types[1:]))

    @pytest.mark.parametrize("kernel", [cross_entropy_naive, cross_entropy_online], ids=str)
    def test_slow_rungs(self, kernel):
        types = ("bfloat16[:, :]", "int64[:]", FLOAT, "bfloat16[:, :]", "int64", "float32")
        assert_gates(kernel, (7, 5), types)
        assert_gates(kernel, (9, 0), ("float32[:, :]", *types[1:3], "float32[:, :]", *types[4:]))
