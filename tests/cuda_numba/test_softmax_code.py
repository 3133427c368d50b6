"""Softmax kernels as the emulator counts them and as machine code."""

import pytest
import torch
from compiled import WIDE_LOAD, WIDE_STORE, assert_gates, needs_compiler
from targets import targets

from cuda_numba.dtypes import itemsize, vector_width
from cuda_numba.softmax import THREADS, softmax_naive, softmax_online
from cuda_numba.softmax_long import LONG_THREADS, long_backward_kernel, long_forward_kernel
from cuda_numba.softmax_rows import BACKWARD, FORWARD, backward_kernel, forward_kernel, team_of

FORMATS = ["float32", "float16", "bfloat16"]


def report_of(kernel, blocks, threads, *args):
    report = kernel.report(blocks, threads, *args)
    assert report.findings == []
    return report


def moved(report, kind):
    return report.of("global", kind).moved


class TestTraffic:
    """Aligned rows: every byte is read once and written once, in whole sectors."""

    @pytest.mark.parametrize("columns", [256, 1152])
    @pytest.mark.parametrize("dtype", FORMATS)
    def test_forward(self, dtype, columns):
        rows = 5
        x = torch.randn(rows, columns).to(getattr(torch, dtype))
        team = team_of(columns, vector_width(dtype), FORWARD)
        blocks = -(-rows // team.rows)
        kernel = forward_kernel(dtype, team)
        report = report_of(kernel, blocks, team.threads, x, torch.empty_like(x), rows, columns)
        size = rows * columns * itemsize(dtype)
        assert moved(report, "load") == moved(report, "store") == size
        assert report.efficiency == 1
        assert report.of("global", "load").accesses == size / 16
        assert report.barriers == (0 if team.warps == 1 else rows)

    @pytest.mark.parametrize("dtype", FORMATS)
    def test_backward(self, dtype):
        rows, columns = 3, 1152
        dy = torch.randn(rows, columns).to(getattr(torch, dtype))
        team = team_of(columns, vector_width(dtype), BACKWARD)
        kernel = backward_kernel(dtype, team)
        args = (dy, torch.rand_like(dy), torch.empty_like(dy), rows, columns)
        report = report_of(kernel, rows, team.threads, *args)
        size = rows * columns * itemsize(dtype)
        assert moved(report, "load") == 2 * size and moved(report, "store") == size
        assert report.efficiency == 1 and report.barriers == rows

    def test_streamed(self):
        columns = 2304
        x = torch.randn(2, columns)
        kernel = long_forward_kernel("float32", 4)
        args = (x, torch.empty_like(x), columns, columns // 4)
        report = report_of(kernel, 2, LONG_THREADS, *args)
        assert moved(report, "load") == 2 * moved(report, "store") == 2 * x.nbytes
        kernel = long_backward_kernel("float32", 4)
        report = report_of(kernel, 2, LONG_THREADS, x, x.clone(), *args[1:])
        assert moved(report, "load") == 4 * moved(report, "store") == 4 * x.nbytes

    @pytest.mark.parametrize(("kernel", "reads"), [(softmax_naive, 3), (softmax_online, 2)])
    def test_slow_rungs(self, kernel, reads):
        x = torch.randn(2, 512)
        report = report_of(kernel, 2, THREADS, x, torch.empty_like(x))
        assert moved(report, "load") == reads * x.nbytes and moved(report, "store") == x.nbytes
        assert report.barriers == 2 * 2

    def test_counted_on_the_first_read_only(self):
        """The control: a kernel that reads a row twice does not pass for one that reads once."""
        x = torch.randn(1, 512)
        report = report_of(softmax_online, 1, THREADS, x, torch.empty_like(x))
        assert moved(report, "load") != x.nbytes


@needs_compiler
class TestMachineCode:
    @pytest.mark.parametrize(("cc", "dtype"), targets(everywhere=True), ids=str)
    @pytest.mark.parametrize("columns", [4096, 50304])
    def test_forward(self, cc, dtype, columns):
        team = team_of(columns, vector_width(dtype), FORWARD)
        signature = (f"{dtype}[:]",) * 2 + ("uint32", "uint32")
        wide = (WIDE_LOAD, WIDE_STORE, "MUFU.EX2")
        assert_gates(forward_kernel(dtype, team), cc, signature, wide)

    @pytest.mark.parametrize(("cc", "dtype"), targets(), ids=str)
    def test_backward(self, cc, dtype):
        """The longest rows: two of them in registers."""
        team = team_of(25600, vector_width(dtype), BACKWARD)
        signature = (f"{dtype}[:]",) * 3 + ("uint32", "uint32")
        assert_gates(backward_kernel(dtype, team), cc, signature, (WIDE_LOAD, WIDE_STORE))

    @pytest.mark.parametrize(("cc", "dtype"), targets(), ids=str)
    def test_streamed(self, cc, dtype):
        width = vector_width(dtype)
        signature = (f"{dtype}[:]",) * 2 + ("uint32", "uint32")
        kernel = long_forward_kernel(dtype, width)
        assert_gates(kernel, cc, signature, (WIDE_LOAD, WIDE_STORE))
        kernel = long_backward_kernel(dtype, width)
        assert_gates(kernel, cc, (f"{dtype}[:]", *signature), (WIDE_LOAD, WIDE_STORE))


@needs_compiler
class TestOtherMachineCode:
    @pytest.mark.parametrize("dtype", FORMATS)
    def test_unaligned_rows(self, dtype):
        """One element an access, the longest rows: 79 and 40 of them stay in registers."""
        signature = (f"{dtype}[:]",) * 2 + ("uint32", "uint32")
        assert_gates(forward_kernel(dtype, team_of(50257, 1, FORWARD)), (9, 0), signature)
        kernel = backward_kernel(dtype, team_of(25599, 1, BACKWARD))
        assert_gates(kernel, (9, 0), (f"{dtype}[:]", *signature))

    @pytest.mark.parametrize("kernel", [softmax_naive, softmax_online], ids=str)
    def test_slow_rungs(self, kernel):
        assert_gates(kernel, (7, 5), ("bfloat16[:, :]",) * 2)
        assert_gates(kernel, (9, 0), ("float32[:, :]",) * 2)

    def test_several_rows_share_a_multiprocessor(self):
        """The shapes that are measured: at least five blocks fit the 65,536 registers."""
        signature = ("bfloat16[:]",) * 2 + ("uint32",) * 2
        for table, make, types in (
            (FORWARD, forward_kernel, signature),
            (BACKWARD, backward_kernel, ("bfloat16[:]", *signature)),
        ):
            team = team_of(4096, 8, table)
            registers = make("bfloat16", team).resources((9, 0), types).registers
            blocks = min(5, 2048 // team.threads)  # 2048 threads are all that it holds
            assert -(-registers // 8) * 8 * team.threads * blocks <= 65536

    def test_loads_are_on_their_way_before_the_first_is_used(self):
        """All 128-bit loads stand before the first maximum."""
        team = team_of(4096, 8, FORWARD)
        sass = forward_kernel("bfloat16", team).sass((9, 0), ("bfloat16[:]",) * 2 + ("uint32",) * 2)
        head = sass[: sass.index("FMNMX")]
        assert head.count("LDG.E") == sass.count("LDG.E") == team.accesses == 4
