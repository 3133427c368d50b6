"""LayerNorm and RMSNorm kernels as the emulator counts them, and as machine code."""

import functools

import pytest
import torch
from compiled import WIDE_LOAD, WIDE_STORE, assert_gates, needs_compiler
from norm_cases import check_backward, check_forward, inputs
from targets import targets
from tolerance import poisoned

from cuda_numba import norm
from cuda_numba.dtypes import itemsize, vector_width
from cuda_numba.jit import launches
from cuda_numba.layer_norm import BACKWARD_RUNGS, RUNGS
from cuda_numba.norm_access import Variant, row_plan
from cuda_numba.norm_backward import register_blocks, register_kernel, register_plan
from cuda_numba.norm_forward import RESIDENT, forward_kernel, forward_plan
from cuda_numba.norm_passes import (
    THREADS,
    block_backward_kernel,
    block_forward_kernel,
    naive_backward_kernel,
    naive_forward_kernel,
)
from cuda_numba.norm_staged import staged_bytes, staged_kernel, staged_plan, staging
from cuda_numba.norm_weights import column_sums_kernel, naive_weights_kernel, partial_sums_kernel

FORMATS = ["float32", "float16", "bfloat16"]
LAYER, RMS = Variant(True, True, False), Variant(False, False, False)
LAYER_RESIDUAL, RMS_RESIDUAL = Variant(True, True, True), Variant(False, False, True)
VARIANTS = [LAYER, RMS, LAYER_RESIDUAL, RMS_RESIDUAL]
SHARED = 227 * 1024  # bytes of an H100's multiprocessor
SCALARS = ("rows", "n", "chunk", "parts", "share", "eps")


def signature(kernel):
    """Arrays of the formats that the annotations name."""
    return tuple(None if p.name in SCALARS else f"{p.allowed[0]}[:]" for p in kernel.parameters)


def tensors(count, rows, n, dtype):
    return [torch.randn(rows, n).to(getattr(torch, dtype)) for _ in range(count)]


class TestTraffic:
    """Every element is asked for once and written once, in whole sectors, without a finding."""

    def forward(self, rows, n, dtype, variant):
        plan = forward_plan(n, vector_width(dtype))
        x, residual, y, total, weights = tensors(5, rows, n, dtype)
        mean, rstd = torch.empty(rows), torch.empty(rows)
        kernel = forward_kernel(dtype, dtype, plan, variant)
        args = (x, residual, weights[0], weights[1], y, total, mean, rstd, rows, n, 1 / n, 1e-5)
        return kernel.report(-(-rows // plan.rows), plan.threads, *args), x.nbytes, plan

    @pytest.mark.parametrize("variant", VARIANTS, ids=str)
    @pytest.mark.parametrize("dtype", FORMATS)
    def test_forward(self, dtype, variant):
        rows, n = 5, 256
        report, size, _ = self.forward(rows, n, dtype, variant)
        assert report.findings == []
        weights = (1 + variant.bias) * size  # for every row, from L1
        assert report.reads == (1 + variant.residual) * size + weights
        assert report.writes == (1 + variant.residual) * size + (1 + variant.centred) * 4 * rows
        assert report.of("global", "load").efficiency == 1
        assert report.barriers == 0

    def test_forward_of_several_warps(self):
        """Two barriers per row: one for the mean, one for the squares."""
        rows, n = 3, 1536
        report, size, plan = self.forward(rows, n, "bfloat16", LAYER)
        assert plan.warps == 2 and report.findings == []
        assert report.reads == 3 * size
        assert report.writes == size + 8 * rows
        assert report.barriers == 2 * rows

    def backward(self, rows, n, dtype, variant, staged):
        width = vector_width(dtype)
        dy, x, dtotal, dx, weights = tensors(5, rows, n, dtype)
        mean, rstd, partial = torch.zeros(rows), torch.ones(rows), torch.empty(2, 1, n)
        args = (dy, x, weights[0], mean, rstd, dtotal, dx, partial, rows, n, 1 / n)
        if not staged:
            plan = register_plan(n, width)
            kernel = register_kernel(dtype, dtype, plan, variant)
            return kernel.report(1, plan.threads, *args), x.nbytes, plan, False
        plan = staged_plan(n, width, dtype)
        place = staging(plan, dtype, variant, SHARED)
        kernel = staged_kernel(dtype, dtype, plan, variant, place)
        smem = staged_bytes(plan, variant, place.stages)
        return kernel.report(1, plan.threads, *args, smem=smem), x.nbytes, plan, place.kept

    @pytest.mark.parametrize(
        ("n", "staged", "keeps"),
        [(256, False, False), (256, True, True), (1024, True, False)],
        ids=["registers", "staged, weights kept", "staged"],
    )
    @pytest.mark.parametrize("variant", VARIANTS, ids=str)
    def test_backward(self, variant, n, staged, keeps):
        rows, dtype = 5, "bfloat16"
        report, size, plan, kept = self.backward(rows, n, dtype, variant, staged)
        assert report.findings == [] and kept == keeps
        statistics = rows * 32 * 4 * (1 + variant.centred)  # every lane asks for the same word
        # From L1: once for each team of the block, or for the sums and for dx of every row.
        weights = (plan.rows if kept else 2 * rows) * n * itemsize(dtype)
        assert report.reads == (2 + variant.residual) * size + weights + statistics
        assert report.writes == size + (1 + variant.bias) * 4 * n

    @pytest.mark.parametrize("staged", [False, True], ids=["registers", "staged"])
    def test_backward_of_several_warps(self, staged):
        rows, n = 4, 1536
        report, size, plan, kept = self.backward(rows, n, "bfloat16", LAYER, staged)
        assert plan.warps == 3 and report.findings == [] and kept == staged
        weights = (1 if kept else 2 * rows) * n * itemsize("bfloat16")
        assert report.reads == 2 * size + weights + rows * plan.threads * 8
        assert report.writes == size + 8 * n
        assert report.barriers == rows

    def test_slow_rungs(self):
        """The control: rungs that read a row three times do not pass for one that reads it once."""
        rows, n = 2, 512
        x, y, w = tensors(3, rows, n, "float32")
        stats = torch.empty(2, rows)
        rest = (w[0], w[1], y, y, stats[0], stats[1], rows, n, 1 / n, 1e-5)
        kernel = block_forward_kernel("float32", "float32", 4, LAYER)
        report = kernel.report(rows, THREADS, x, x, *rest)
        assert report.findings == [] and report.reads == 3 * x.nbytes + 2 * rows * n * 4
        kernel = naive_forward_kernel("float32", "float32", LAYER)
        report = kernel.report(1, 32, x, x, *rest)
        assert report.findings == [] and report.reads == 3 * x.nbytes + 2 * rows * n * 4
        assert report.of("global", "load").efficiency < 0.25


def test_blocks_of_the_sizes_that_are_launched():
    """Small tensors through every rung, with nothing scaled down."""
    with poisoned():
        x, w, b = inputs((7, 64), torch.bfloat16)
        for rung in RUNGS:
            check_forward(x, w, b, True, rung)
        for rung in BACKWARD_RUNGS:
            check_backward(x, w, b, True, rung)
        with launches() as log:
            check_forward(x, w, b, True)
            check_backward(x, w, b, True)
    names = [launch.name for launch in log]
    assert names == ["norm_forward", "norm_backward_staged", "norm_column_sums"]


class TestPlans:
    @pytest.mark.parametrize(
        "plan_of", [forward_plan, register_plan, functools.partial(staged_plan, wdtype="float16")]
    )
    @pytest.mark.parametrize("width", [1, 4, 8])
    def test_rows_fit_their_teams(self, plan_of, width):
        for n in (1, 7, 33, 512, 513, 768, 1024, 1025, 1600, 4096, 5120, 8192, 16384, 32768, 50304):
            if n % width:
                continue
            plan = plan_of(n, width)
            if plan is None:
                assert n > 16384, "16,384 columns are kept on the chip"
                continue
            held = plan.team * plan.elements
            assert held - plan.team * plan.width < n <= held, "every access is needed by some row"
            assert plan.threads <= 1024 and (plan.warps == 1 or plan.rows == 1)
            assert not plan.exact or n == held

    @pytest.mark.parametrize("variant", VARIANTS, ids=str)
    @pytest.mark.parametrize("dtype", FORMATS)
    def test_blocks_fit_a_multiprocessor(self, dtype, variant):
        for n in (8, 512, 768, 1024, 4096, 8192, 16384):
            for width in (1, vector_width(dtype)):
                plan = forward_plan(n, width)
                assert plan.threads <= RESIDENT <= 2048
                plan = register_plan(n, width)
                assert 1 <= register_blocks(plan, variant)[1] * plan.threads <= 2048
            plan = staged_plan(n, width, dtype)
            for shared in (SHARED, 163 * 1024, 99 * 1024):
                stages, blocks, kept = staging(plan, dtype, variant, shared)
                if stages:
                    each = staged_bytes(plan, variant, stages) + 5120
                    assert blocks * each <= shared and blocks >= 1
                    assert stages <= (4 if kept else 3) and (blocks == 1 or stages > 1)
                else:
                    assert n * (2 + variant.residual) * itemsize(dtype) > shared - 5120

    def test_no_team_is_too_wide(self):
        assert row_plan(32 * 32 * 8 + 8, 8, 8) is None
        assert row_plan(32 * 32 * 8, 8, 8) == (8, 1, 32, 1, True)


def forward_of(n, dtype, wdtype, width, variant):
    return forward_kernel(dtype, wdtype, forward_plan(n, width), variant)


def registers_of(n, dtype, wdtype, width, variant):
    return register_kernel(dtype, wdtype, register_plan(n, width), variant)


def staged_of(n, dtype, wdtype, width, variant):
    plan = staged_plan(n, width, wdtype)
    place = staging(plan, wdtype, variant, SHARED)
    return staged_kernel(dtype, wdtype, plan, variant, place)


WIDE = (WIDE_LOAD, WIDE_STORE)


@needs_compiler
class TestMachineCode:
    @pytest.mark.parametrize(("cc", "dtype"), targets(), ids=str)
    def test_forward(self, cc, dtype):
        kernel = forward_of(4096, dtype, dtype, vector_width(dtype), LAYER)
        assert_gates(kernel, cc, signature(kernel), (*WIDE, "MUFU.RSQ", "SHFL"))

    @pytest.mark.parametrize(("cc", "dtype"), targets(everywhere=True), ids=str)
    def test_backward(self, cc, dtype):
        make, copies = (staged_of, ("LDGSTS", "LDS.128")) if cc >= (8, 0) else (registers_of, ())
        kernel = make(4096, dtype, dtype, vector_width(dtype), LAYER)
        assert_gates(kernel, cc, signature(kernel), (*WIDE, *copies))

    def test_rms_norm(self):
        for make in (forward_of, staged_of):
            kernel = make(768, "bfloat16", "bfloat16", 8, RMS_RESIDUAL)
            assert_gates(kernel, (9, 0), signature(kernel), WIDE)

    def test_rest(self):
        for kernel in (
            column_sums_kernel("bfloat16"),
            partial_sums_kernel("bfloat16", 8, LAYER),
            block_forward_kernel("bfloat16", "float32", 8, LAYER_RESIDUAL),
            block_backward_kernel("bfloat16", "float32", 8, LAYER_RESIDUAL),
            naive_forward_kernel("bfloat16", "float32", LAYER_RESIDUAL),
            naive_backward_kernel("float16", "float16", RMS_RESIDUAL),
            naive_weights_kernel("bfloat16", "float32", LAYER),
        ):
            assert_gates(kernel, (7, 5), signature(kernel))

    def test_several_rows_share_a_multiprocessor(self):
        """The shapes that are measured: at least 24 KB of rows are on their way in each."""
        kernel = forward_of(4096, "bfloat16", "bfloat16", 8, LAYER)
        registers = kernel.resources((9, 0), signature(kernel)).registers
        assert registers * forward_plan(4096, 8).threads * 8 <= 65536, "eight rows of 8 KB"
        plan = staged_plan(4096, 8, "bfloat16")
        for variant, place in ((LAYER, (4, 2, True)), (RMS, (4, 3, True))):
            assert staging(plan, "bfloat16", variant, SHARED) == place
            stages, blocks, _ = place
            assert blocks * staged_bytes(plan, variant, stages - 1) >= 24 * 1024
            kernel = staged_of(4096, "bfloat16", "bfloat16", 8, variant)
            registers = kernel.resources((9, 0), signature(kernel)).registers
            assert registers * plan.threads * blocks <= 65536

    def test_all_loads_of_a_row_stand_before_its_first_sum(self):
        kernel = forward_of(4096, "bfloat16", "bfloat16", 8, LAYER)
        sass = kernel.sass((9, 0), signature(kernel))
        head = sass[: sass.index("SHFL")]
        assert head.count("LDG.E.128") == 4, "x, and nothing else"
        assert sass.count("LDG.E.128") == 4 + 2 * 4, "behind it weight and bias"

    def test_weights_are_loaded_before_the_rows(self):
        """Two accesses, once each; where they are not kept, for both halves of a row."""
        plan = staged_plan(4096, 8, "bfloat16")
        place = staging(plan, "bfloat16", LAYER, SHARED)
        for kept, loads in ((True, 2), (False, 4)):
            args = ("bfloat16", "bfloat16", plan, LAYER, place._replace(kept=kept))
            kernel = staged_kernel(*args)
            assert kernel.sass((9, 0), signature(kernel)).count("LDG.E.128") == loads

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("dtype", "wdtype"),
        [
            # A width has as many registers for its elements, in float32, whatever the format in
            # memory: by default the one that the course trains in.
            ("bfloat16", "bfloat16"),
            pytest.param("float32", "float32", marks=pytest.mark.thorough),
            pytest.param("bfloat16", "float32", marks=pytest.mark.thorough),
        ],
    )
    def test_no_width_spills(self, dtype, wdtype):
        """The widths at the edges of each plan, with all that a variant can add.

        What decides the registers is how many elements a thread owns, whether accesses are guarded
        and how many threads share a multiprocessor: between two edges nothing else changes.
        """
        width = vector_width(dtype)
        cases = [(forward_of, n, width) for n in (1024, 1032, 4096)]  # a warp; guarded; a block
        cases += [(forward_of, 16384, 1)]  # as many elements, in as many accesses
        cases += [(registers_of, n, width) for n in (1024, 8192, 16384)]  # 32; 16; 32 past 16 warps
        cases += [(registers_of, n, 1) for n in (8191, 16384)]
        cases = [(*case, LAYER_RESIDUAL) for case in cases]
        # A warp with and without its weights; then the fewest registers beside kept weights (2048,
        # 10240), as many as ptxas likes (4096, 8192), and none for them.
        for n in (768, 1024, 1032, 2048, 4096, 8192, 10240, 16384):
            cases += [(staged_of, n, width, LAYER_RESIDUAL)]
        cases += [(staged_of, n, width, RMS_RESIDUAL) for n in (768, 1024, 1536, 12288)]
        for make, n, wide, variant in cases:
            kernel = make(n, dtype, wdtype, wide, variant)
            assert_gates(kernel, (9, 0), signature(kernel))


def test_the_choice_of_rungs():
    """By width, alignment and device, as the table in `norm` says."""
    choose = norm._backward_launch
    args = ("bfloat16", "bfloat16", 8, LAYER)
    assert choose(None, 4096, *args, SHARED, (9, 0))[0] == "staged"
    assert choose(None, 4096, *args, 65536, (7, 5))[0] == "registers"
    assert choose(None, 4096, "bfloat16", "bfloat16", 1, LAYER, SHARED, (9, 0))[0] == "registers"
    assert choose(None, 65536, *args, SHARED, (9, 0))[0] == "vectorised"
    assert choose(None, 65535, "bfloat16", "bfloat16", 1, LAYER, SHARED, (9, 0))[0] == "block"
    with pytest.raises(ValueError, match="^x: rows of 65536 are too wide for rung 'staged'"):
        choose("staged", 65536, *args, SHARED, (9, 0))
    assert norm._forward_launch(None, 4096, *args)[0].name == "norm_forward"
    assert norm._forward_launch(None, 65536, *args)[0].name == "norm_forward_block"
