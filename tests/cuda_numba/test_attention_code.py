"""Attention kernels as machine code, and what the emulator counts of them."""

import pytest
import torch
from compiled import assert_gates, needs_compiler
from targets import HOPPER, targets

from cuda_numba import attention_naive as naive
from cuda_numba import attention_rows as rows
from cuda_numba.attention_hopper import FEW, LONG, PLANS, forward_kernel
from cuda_numba.attention_tiles import reach
from cuda_numba.dtypes import itemsize
from cuda_numba.inspect import count

SIGNATURE = ("uint64",) * 4 + ("float32[:]", "int32[:]") + ("uint32",) * 7 + ("float32",)

EVERY = [*PLANS.values(), *FEW.values(), *LONG.values()]


def number(n):
    return ("uint32",) * n + ("float32",)


@needs_compiler
class TestHopper:
    def code(self, dtype, width):
        return forward_kernel(dtype, PLANS[width]).code(HOPPER, SIGNATURE)

    @pytest.mark.parametrize("plan", EVERY, ids=str)
    def test_gates(self, plan):
        """No spill, no advice: the assembler has not made one product wait for another."""
        kernel = forward_kernel("bfloat16", plan)
        assert_gates(kernel, HOPPER, SIGNATURE, ("HGMMA", "UTMALDG", "UTMASTG", "USETMAXREG"))

    def test_float16(self):
        kernel = forward_kernel("float16", PLANS[64])
        assert_gates(kernel, HOPPER, SIGNATURE, ("HGMMA.64x128x16.F32", "UTMALDG.4D"))

    @pytest.mark.parametrize("width", [64, 128])
    def test_the_loop(self, width):
        """Softmax between the two waits of the loop: of S, and of P V.

        The products of the loop are the second of three groups (the first Q Kᵀ alone, then both,
        then P V alone); one wait follows each but the second, which two follow.
        """
        sass = self.code("bfloat16", width).sass
        waits = [k for k, line in enumerate(sass.splitlines()) if "WARPGROUP.DEPBAR" in line]
        assert len(waits) == 4
        lines = sass.splitlines()
        between = "\n".join(lines[waits[1] : waits[2]])
        keys = PLANS[width].keys
        assert count(between, "MUFU.EX2") == keys // 2 + 2  # the exponentials, two factors
        assert count(between, "F2FP") == 0  # P is packed when P V before it is done
        assert count(between, "FMNMX") >= keys // 2
        assert "FSETP" not in between or count(between, "FSETP") <= 6  # maxima are no selects

    def test_products(self):
        """A head of 128: eight k steps of Q Kᵀ twice (first tile, loop), of P V twice."""
        assert count(self.code("bfloat16", 128).sass, "HGMMA") == 32
        assert count(self.code("bfloat16", 64).sass, "HGMMA") == 2 * 4 + 2 * 8

    def test_shared_memory(self):
        for plan in EVERY:
            assert plan.shared <= 232448
            assert sum(plan.registers) + plan.registers[1] * (plan.consumers - 1) <= 512


@needs_compiler
class TestSlowRungs:
    @pytest.mark.parametrize(("cc", "dtype"), targets(), ids=str)
    def test_rows(self, cc, dtype):
        array = f"{dtype}[:]"
        forward = (array,) * 4 + ("float32[:]",) + number(6)
        assert_gates(rows.forward_kernel(dtype, 128), cc, forward, ("MUFU.EX2",))
        queries = (array,) * 5 + ("float32[:]",) * 2 + (array,) + number(5)
        assert_gates(rows.query_gradient_kernel(dtype, 128), cc, queries)
        keys = (array,) * 4 + ("float32[:]",) * 2 + (array,) * 2 + number(5)
        assert_gates(rows.key_gradient_kernel(dtype, 128), cc, keys)

    @pytest.mark.parametrize(("cc", "dtype"), targets(everywhere=True), ids=str)
    def test_naive(self, cc, dtype):
        array = f"{dtype}[:]"
        scores = (array, array, "float32[:]") + number(5)
        assert_gates(naive.scores_kernel(dtype, 64), cc, scores)
        assert_gates(naive.attention_softmax, cc, ("float32[:]",) * 2 + ("uint32",))
        output = ("float32[:]", array, array) + ("uint32",) * 4
        assert_gates(naive.output_kernel(dtype, 64), cc, output)


@needs_compiler
def test_largest_head():
    array = ("float32[:]",)
    assert_gates(rows.forward_kernel("float32", 256), HOPPER, array * 5 + number(6))
    assert_gates(rows.query_gradient_kernel("float32", 256), HOPPER, array * 8 + number(5))
    assert_gates(rows.key_gradient_kernel("float32", 256), HOPPER, array * 8 + number(5))


class TestTraffic:
    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_online(self, dtype):
        """Every pair that is seen reads a row of K and one of V, in whole lines."""
        T, D = 12, 64
        q, k, v = (torch.randn(1, 1, T, D).to(getattr(torch, dtype)) for _ in range(3))
        o, lse = torch.empty(1, T, 1, D, dtype=q.dtype), torch.empty(1, 1, T)
        args = (q, k, v, o, lse, 1, 1, T, T, *reach(True, None), 0.2)
        report = rows.forward_kernel(dtype, D).report((T // 4, 1), 128, *args)
        row, pairs = D * itemsize(dtype), T * (T + 1) // 2
        assert report.of("global", "load").moved == (T + 2 * pairs) * row
        assert report.of("global", "store").requested == T * (row + 4)

    def test_naive(self):
        """The scores are written once, read three times and written again by the softmax."""
        rows_, T = 3, 64
        s, lse = torch.randn(rows_, T), torch.empty(rows_)
        report = naive.attention_softmax.report(rows_, 32, s, lse, T)
        assert report.of("global", "load").moved == 3 * s.nbytes
        assert report.of("global", "store").requested == s.nbytes + 4 * rows_
