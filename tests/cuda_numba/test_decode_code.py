"""Decode kernels as the emulator counts them and as machine code."""

import itertools
import re

import pytest
import torch
from compiled import WIDE_LOAD, assert_gates, needs_compiler
from decode_cases import NO_PAGE, Problem, make
from targets import thorough

from cuda_numba.decode import (
    decode_naive,
    decode_one_launch,
    decode_split,
    shape_of,
    stream_arguments,
)
from cuda_numba.decode_arguments import look_at
from cuda_numba.decode_split import combine_kernel, naive_kernel, split_kernel
from cuda_numba.decode_stream import Shape, stream_kernel
from cuda_numba.emulator.access_map import touches
from cuda_numba.jit import launches


def stream_report(problem, dtype=torch.bfloat16, **options):
    given, _ = make(problem, dtype)
    call = look_at(*given, window=problem.window)
    shape = shape_of(call, given[0].device)
    grid, arguments = stream_arguments(call, shape, *given)
    kernel = stream_kernel(call.dtype, shape)
    report = kernel.report(grid, shape.threads, *arguments, smem=shape.shared, **options)
    assert report.findings == []
    return report


def reads_of(problem):
    """How often each element of k and v is read, (2, B, H_kv, T, D)."""
    given, _ = make(problem, torch.bfloat16)
    report = stream_report(problem)
    counts = []
    for name, cache in (("k", given[1]), ("v", given[2])):
        count = torch.from_numpy(touches(report.trace, name)[2]).view(cache.shape)
        if problem.page:
            found = torch.zeros(len(problem.lengths), problem.H_kv, problem.room, problem.D)
            for b, i in itertools.product(range(found.shape[0]), range(given[4].shape[1])):
                if given[4][b, i] != NO_PAGE:
                    part = found[b, :, i * problem.page : (i + 1) * problem.page]
                    part += count[given[4][b, i]][:, : part.shape[1]]
            assert found.sum() == count.sum()  # and nothing of the other pages
            count = found
        counts.append(count)
    return torch.stack(counts)


class TestTraffic:
    @pytest.mark.parametrize(
        "problem",
        [
            Problem(8, 1, 2, 64, (300, 77)),  # 16 query rows of one head
            Problem(4, 2, 1, 96, (100, 33), page=48),
            Problem(2, 2, 1, 40, (130, 5), window=30, T_max=150),
            Problem(4, 1, 1, 32, (200,), window=100, page=16),
        ],
        ids=str,
    )
    def test_what_is_seen_is_read_once_and_nothing_else(self, problem):
        counts = reads_of(problem)
        right = torch.zeros_like(counts)
        for b, n in enumerate(problem.lengths):
            right[:, b, :, problem.first(b) : n] = 1
        assert torch.equal(counts, right)

    def test_rows_for_several_warps(self):
        """24 query rows: two warps read the same step, at the same time; it is in L1 or L2 then."""
        assert reads_of(Problem(8, 1, 3, 32, (40,))).unique().tolist() == [2]

    @pytest.mark.parametrize("seed", [0, 1])
    def test_no_races(self, seed):
        """Several blocks for a row, in another order of threads."""
        stream_report(Problem(2, 2, 1, 32, (130, 33, 0)), seed=seed)

    def test_split_and_naive(self):
        given, _ = make(Problem(2, 1, 2, 64, (130, 33)), torch.float16)
        for rung in (decode_naive, decode_split):
            with launches(report=True) as log:
                rung(*given)
            assert [launch.report.findings for launch in log] == [[]] * len(log)

    def test_launches(self):
        given, _ = make(Problem(2, 1, 2, 64, (130, 33)), torch.float16)
        names = []
        for rung in (decode_naive, decode_split, decode_one_launch):
            with launches() as log:
                rung(*given)
            names.append([launch.kernel.name for launch in log])
        assert names == [["decode_naive"], ["decode_split", "decode_combine"], ["decode_stream"]]


def stream_signature(dtype):
    tensors = (f"{dtype}[:]",) * 3 + ("int32[:]",) * 2 + (f"{dtype}[:]",)
    workspace = ("float32[:]", "float32[:]", "uint32[:]")
    strides = ("uint64", "uint64", "uint32") * 2
    return (*tensors, *workspace, *("uint32",) * 10, "float32", *strides)


def row_signature(dtype, *written):
    numbers = ("uint32",) * 7 + ("float32",) + ("uint64", "uint64", "uint32") * 2
    return (*(f"{dtype}[:]",) * 3, "int32[:]", "int32[:]", *written, *numbers)


def stream_shape(D, rows=8, groups=1, warps=4, paged=False, per_sm=2, depth=16):
    return Shape(D, rows, groups, warps, paged, per_sm, depth)


@needs_compiler
class TestMachineCode:
    @pytest.mark.parametrize(
        "shape",
        [
            stream_shape(64, per_sm=3),
            stream_shape(128),
            stream_shape(128, warps=8, paged=True, per_sm=1),
            stream_shape(128, rows=16, paged=True),
        ],
        ids=str,
    )
    def test_one_launch(self, shape):
        expect = ("HMMA.16816.F32.BF16", "MOVM.16.MT88", WIDE_LOAD)
        kernel = stream_kernel("bfloat16", shape)
        assert_gates(kernel, (9, 0), stream_signature("bfloat16"), expect)

    @pytest.mark.parametrize("cc", [(7, 5), (8, 0), thorough((8, 9))], ids=str)
    def test_other_architectures(self, cc):
        """Two instructions of half the depth on sm_75, for float16 alone.

        On Ada, with --thorough, the kernel is the A100's: there is one setting for both.
        """
        depth = 8 if cc < (8, 0) else 16
        kernel = stream_kernel("float16", stream_shape(96, 16, 2, depth=depth))
        expect = ("HMMA.16816.F32" if depth == 16 else "HMMA.1688.F32", WIDE_LOAD)
        assert_gates(kernel, cc, stream_signature("float16"), expect)

    def test_all_loads_of_a_step_are_on_their_way(self):
        """K and V at D 128 are 16 loads of 16 bytes, twice: before the loop and inside."""
        kernel = stream_kernel("bfloat16", stream_shape(128))
        sass = kernel.sass((9, 0), stream_signature("bfloat16"))
        assert len(re.findall(r"LDG\.E\.NA\.\S*128\.CONSTANT", sass)) == 4 + 16

    @pytest.mark.parametrize("cc", [(7, 5), (9, 0)], ids=str)
    def test_rows(self, cc):
        for dtype, D, paged in (("bfloat16", 128, False), ("float16", 40, True))[cc > (8, 0) :]:
            tensors = (f"{dtype}[:]",)
            states = ("float32[:]", "float32[:]")
            assert_gates(naive_kernel(dtype, D, paged), cc, row_signature(dtype, *tensors))
            kernel = split_kernel(dtype, D, paged)
            assert_gates(kernel, cc, row_signature(dtype, *states), (WIDE_LOAD,))
            assert_gates(combine_kernel(dtype, D), cc, (*states, *tensors, "uint32"))
