"""GELU and SwiGLU kernels as the emulator counts them and as machine code."""

import pytest
import torch
from compiled import ARCHITECTURES, WIDE_LOAD, WIDE_STORE, assert_gates, needs_compiler

from cuda_numba.activation import (
    ITEMS,
    THREADS,
    gelu_backward_kernel,
    gelu_kernel,
    swiglu_backward_kernel,
    swiglu_kernel,
)
from cuda_numba.dtypes import itemsize, vector_width
from cuda_numba.inspect import instructions

FORMATS = ["float32", "float16", "bfloat16"]
# All formats on the H100, one on each of the others.
TARGETS = [(cc, "bfloat16") for cc in ARCHITECTURES] + [((9, 0), "float32"), ((9, 0), "float16")]
# name → kernel (dtype, width, items), tensors read, tensors written, accesses a thread
KERNELS = {
    "gelu": (lambda *a: gelu_kernel("gelu", *a), 1, 1, ITEMS),
    "gelu_backward": (lambda *a: gelu_backward_kernel("gelu", *a), 2, 1, ITEMS),
    "gelu_tanh": (lambda *a: gelu_kernel("gelu_tanh", *a), 1, 1, ITEMS),
    "gelu_tanh_backward": (lambda *a: gelu_backward_kernel("gelu_tanh", *a), 2, 1, ITEMS),
    "swiglu": (swiglu_kernel, 2, 1, ITEMS),
    "swiglu_backward": (swiglu_backward_kernel, 3, 2, 1),
}
# Instructions per element, of bf16 and of float32: what the docstring of `activation` says.
COUNTS = {
    "gelu": (18, 24),
    "gelu_tanh": (17, 19),
    "swiglu": (18, 20),
    "gelu_backward": (26, 32),
    "gelu_tanh_backward": (25, 28),
    "swiglu_backward": (32, 37),
}


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("dtype", FORMATS)
def test_traffic(name, dtype):
    """Every tensor is read once or written once, in whole sectors, 16 bytes an access."""
    make, reads, writes, items = KERNELS[name]
    width = vector_width(dtype)
    tensors = [torch.randn(1024).to(getattr(torch, dtype)) for _ in range(reads + writes)]
    blocks = -(-1024 // (THREADS * items * width))
    report = make(dtype, width, items).report(blocks, THREADS, *tensors, 1024, 1024 // width)
    assert report.findings == []
    loads, stores = report.of("global", "load"), report.of("global", "store")
    size = 1024 * itemsize(dtype)
    assert (loads.moved, stores.moved) == (reads * size, writes * size)
    assert report.efficiency == 1 and loads.accesses == loads.moved / 16
    assert report.promotions == 0


def signature(name, dtype):
    _, reads, writes, _ = KERNELS[name]
    return (f"{dtype}[:]",) * (reads + writes) + ("int64", "int64")


@needs_compiler
@pytest.mark.parametrize("name", KERNELS)
class TestMachineCode:
    @pytest.mark.parametrize(("cc", "dtype"), TARGETS, ids=str)
    def test_gates(self, name, cc, dtype):
        make, *_, items = KERNELS[name]
        kernel = make(dtype, vector_width(dtype), items)
        assert_gates(kernel, cc, signature(name, dtype), (WIDE_LOAD, WIDE_STORE, "MUFU.EX2"))

    def test_unaligned(self, name):
        make, *_, items = KERNELS[name]
        assert_gates(make("float16", 1, items), (9, 0), signature(name, "float16"))

    @pytest.mark.parametrize("which", [0, 1])
    def test_arithmetic_fits_the_time_of_a_copy(self, name, which):
        dtype = ("bfloat16", "float32")[which]
        make, *_, items = KERNELS[name]
        width = vector_width(dtype)
        count = instructions(make(dtype, width, items).sass((9, 0), signature(name, dtype)))
        per_element = (sum(count.values()) - count["NOP"]) / (items * width)
        assert COUNTS[name][which] - 2 < per_element <= COUNTS[name][which]

    def test_a_nan_is_not_lost(self, name):
        """|x| is bounded by an instruction that keeps NaN, not by one that drops it."""
        make, *_, items = KERNELS[name]
        sass = make("bfloat16", 8, items).sass((9, 0), signature(name, "bfloat16"))
        assert instructions(sass)["FMNMX.NAN"] >= 8 * items


@needs_compiler
def test_loads_are_on_their_way_before_the_first_is_used():
    sass = gelu_kernel("gelu", "bfloat16", 8, ITEMS).sass((9, 0), signature("gelu", "bfloat16"))
    assert sass[: sass.index("FFMA")].count("LDG.E.NA.128") == ITEMS
