"""Reductions and vector addition as the emulator counts them and as machine code."""

import pytest
import torch
from compiled import WIDE_LOAD, WIDE_STORE, assert_gates, needs_compiler
from targets import BETWEEN, targets, thorough

from cuda_numba.dtypes import vector_width
from cuda_numba.reduction import reduce_kernel, row_sum_kernel
from cuda_numba.reduction_tree import THREADS, TREES
from cuda_numba.vector_add import add_elements, add_grid_stride, add_kernel

FORMATS = ["float32", "float16", "bfloat16"]


def report_of(kernel, blocks, threads, *args):
    report = kernel.report(blocks, threads, *args)
    assert report.findings == []
    return report


@pytest.fixture(scope="module")
def trees():
    """Each slow rung's report on two blocks' worth of ones."""
    n = 2 * THREADS
    found = {}
    for name, kernel in TREES.items():
        out = torch.zeros(2)
        found[name] = report_of(kernel, 2, THREADS, torch.ones(n), out)
        assert out.sum() == n
    return found


class TestWhatTheRungsAreAbout:
    def test_atomics_meet_at_one_address(self, trees):
        assert trees["atomic"].of("global", "atomic").collisions == 32

    def test_every_tree_reads_the_input_once(self, trees):
        for report in trees.values():
            assert report.of("global", "load").moved == 2 * THREADS * 4

    def test_divergence(self, trees):
        """The first tree splits every warp at every step; in the next ones whole warps retire."""
        assert trees["divergent"].divergence > 2 * trees["conflicts"].divergence
        assert trees["sequential"].divergence == trees["conflicts"].divergence

    def test_shuffles_need_little_shared_memory(self, trees):
        shared = {name: report.by_space["shared"].requests for name, report in trees.items()}
        assert 2 * shared["shuffle"] < shared["sequential"] < shared["divergent"]

    def test_bank_conflicts(self, trees):
        assert trees["conflicts"].conflicts > 0
        assert trees["divergent"].conflicts == trees["sequential"].conflicts == 0
        assert trees["shuffle"].conflicts == 0

    def test_barriers(self, trees):
        """Per block: one after loading and one per halving, or a single one."""
        assert trees["sequential"].barriers == 2 * (1 + 8)
        assert trees["shuffle"].barriers == 2


@pytest.mark.parametrize("dtype", FORMATS)
class TestTraffic:
    def test_sum(self, dtype):
        x = torch.ones(9600).to(getattr(torch, dtype))
        width = vector_width(dtype)
        args = (x, torch.empty(2), x.numel(), x.numel() // width)
        report = report_of(reduce_kernel(dtype, width, "sum"), 2, THREADS, *args)
        assert report.of("global", "load").moved == x.nbytes
        assert report.of("global", "load").accesses == x.nbytes / 16
        assert args[1].sum() == 9600

    def test_rows(self, dtype):
        x = torch.ones(3, 768).to(getattr(torch, dtype))
        out = torch.empty(3)
        report = report_of(
            row_sum_kernel(dtype, vector_width(dtype), True), 1, THREADS, x, out, 3, 768
        )
        assert report.of("global", "load").moved == x.nbytes and report.barriers == 0
        report = report_of(
            row_sum_kernel(dtype, vector_width(dtype), False), 3, THREADS, x, out, 3, 768
        )
        assert report.of("global", "load").moved == x.nbytes and report.barriers == 3

    def test_add(self, dtype):
        a = torch.ones(4096).to(getattr(torch, dtype))
        width = vector_width(dtype)
        blocks = 4096 // (2 * 256 * width)
        args = (a, a.clone(), torch.empty_like(a), 4096, 4096 // width)
        report = report_of(add_kernel(dtype, width), blocks, 256, *args)
        assert report.of("global", "load").moved == 2 * a.nbytes
        assert report.of("global", "store").moved == a.nbytes
        assert report.of("global", "store").accesses == a.nbytes / 16


@pytest.mark.parametrize("kernel", [add_elements, add_grid_stride], ids=str)
def test_add_by_element(kernel):
    """The same bytes as the vectorised kernel, with one access for each element."""
    a = torch.ones(512)
    report = report_of(kernel, 2, 256, a, a.clone(), torch.empty_like(a))
    assert report.of("global", "load").moved == 2 * a.nbytes
    assert report.of("global", "store").accesses == 512


@needs_compiler
class TestMachineCode:
    @pytest.mark.parametrize(
        ("cc", "dtype"),
        [((7, 5), "float32"), *targets(everywhere=True, formats=("float32", "bfloat16"))]
        + [thorough(cc, "float32") for cc in BETWEEN],  # as in `targets`
        ids=str,
    )
    def test_fast_kernels(self, cc, dtype):
        width = vector_width(dtype)
        x, out = f"{dtype}[:]", "float32[:]"
        for operation in ("sum", "max"):
            kernel = reduce_kernel(dtype, width, operation)
            assert_gates(kernel, cc, (x, out, "int64", "int64"), [WIDE_LOAD])
        kernel = row_sum_kernel(dtype, width, False)
        assert_gates(kernel, cc, (x, out, "int64", "int64"), [WIDE_LOAD])
        kernel = add_kernel(dtype, width)
        assert_gates(kernel, cc, (x, x, x, "int64", "int64"), [WIDE_LOAD, WIDE_STORE])

    def test_unaligned(self):
        for kernel in (reduce_kernel("float16", 1, "sum"), row_sum_kernel("float16", 1, True)):
            assert_gates(kernel, (9, 0), ("float16[:]", "float32[:]", "int64", "int64"))
        signature = ("float16[:]",) * 3 + ("int64", "int64")
        assert_gates(add_kernel("float16", 1), (9, 0), signature)

    @pytest.mark.parametrize("name", TREES)
    def test_trees(self, name):
        assert_gates(TREES[name], (9, 0), ("bfloat16[:]", "float32[:]"))

    def test_first_kernel(self):
        assert_gates(add_elements, (7, 5), ("float32[:]",) * 3)

    def test_grid_stride(self):
        """`range` with a step that is known only at run time divides, once per thread."""
        assert_gates(add_grid_stride, (9, 0), ("float32[:]",) * 3, allow_division64=True)
