"""Kernels of the Hopper attention backward pass as machine code, and what they move."""

import pytest
import torch
from compiled import WIDE_LOAD, WIDE_STORE, assert_gates, needs_compiler

from cuda_numba.attention_backward_convert import convert_kernel
from cuda_numba.attention_backward_delta import THREADS, delta_kernel
from cuda_numba.attention_backward_hopper import LAYOUTS, UNORDERED
from cuda_numba.attention_backward_products import backward_kernel

HOPPER = (9, 0)
PRODUCTS = ("HGMMA", "UTMALDG.4D", "UTMASTG.4D", "UBLKCP", "STSM", "MUFU.EX2", "USETMAXREG")


def signature(dtype):
    pointers = ("float32[:]", "float32[:]", "uint32[:]", f"{dtype}[:]")
    return ("uint64",) * 6 + pointers + ("uint32", "uint32", "uint64", *("uint32",) * 12) + (
        "float32", "float32",
    )  # fmt: skip


@needs_compiler
class TestMachineCode:
    """No spill and no advice: a serialised product (C7510 to C7519) reports no spill."""

    @pytest.mark.parametrize("d", LAYOUTS)
    def test_products(self, d):
        assert_gates(
            backward_kernel("bfloat16", LAYOUTS[d]), HOPPER, signature("bfloat16"), PRODUCTS
        )

    @pytest.mark.parametrize("d", [64, 128])
    def test_products_float16(self, d):
        assert_gates(backward_kernel("float16", LAYOUTS[d]), HOPPER, signature("float16"), PRODUCTS)

    @pytest.mark.parametrize("d", [64, 128])
    def test_unordered(self, d):
        kernel = backward_kernel("bfloat16", UNORDERED[d])
        assert_gates(kernel, HOPPER, signature("bfloat16"), PRODUCTS, max_spills=8, max_stack=8)

    @pytest.mark.parametrize("d", [64, 128])
    def test_products_of_a_tile(self, d):
        """Five products in two variants of a tile, and the last part of dQ of a block of keys."""
        layout = LAYOUTS[d]
        sass = backward_kernel("bfloat16", layout).sass(HOPPER, signature("bfloat16"))
        scores, updates, part = d // 16, layout.bq // 16, 128 // 16
        assert sass.count("HGMMA") == 2 * (2 * scores + 2 * updates + part) + part

    @pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
    @pytest.mark.parametrize("d", [40, 64, 128])
    def test_delta(self, d, dtype):
        types = (f"{dtype}[:]",) * 2 + ("float32[:]",) * 2 + ("uint32[:]",)
        types += ("uint32", "uint32", "uint64") * 2 + ("uint32",) * 2
        assert_gates(delta_kernel(dtype, d, 64), HOPPER, types, (WIDE_LOAD,), max_registers=32)

    @pytest.mark.parametrize("d", [64, 128])
    def test_convert(self, d):
        types = ("float32[:]", "bfloat16[:]", "uint32", "uint32", "uint64", *("uint32",) * 3)
        kernel = convert_kernel("bfloat16", UNORDERED[d])
        assert_gates(kernel, HOPPER, (*types, "float32"), (WIDE_LOAD, WIDE_STORE))


@pytest.mark.parametrize("d", [24, 64])
def test_traffic_of_delta(d):
    """O and dO once, lse and the two rows of numbers, a counter a block and the ticket."""
    h, t, bq = 2, 128, 64
    o, do = (torch.randn(1, h, t, d).bfloat16() for _ in range(2))
    stats = torch.empty(h * t * 2)
    counters = torch.empty(1 + h * t // bq, dtype=torch.uint32)
    lanes = 4 if d == 24 else 8
    report = delta_kernel("bfloat16", d, bq).report(
        (t * lanes // THREADS, h, 1), THREADS, o.view(-1), do.view(-1), torch.randn(h, t), stats,
        counters, d, t * d, 0, d, t * d, 0, t, t // bq,
    )  # fmt: skip
    assert report.findings == []
    assert report.of("global", "load").unique == 4 * h * t * d + 4 * h * t
    assert report.of("global", "store").unique == 8 * h * t + 4 * len(counters)
    assert not counters.view(torch.int32).any()
    right = (o.double() * do.double()).sum(-1).view(h, t // bq, bq)
    got = stats.view(h, t // bq, 2, bq)[:, :, 1].double()
    assert (got - right).abs().max() < 1e-4
