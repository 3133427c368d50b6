"""GELU and SwiGLU kernels as the emulator counts them and as machine code."""

import itertools

import pytest
import torch
from compiled import WIDE_LOAD, WIDE_STORE, assert_gates, needs_compiler
from targets import targets

from cuda_numba.activation import ITEMS
from cuda_numba.activation_kernels import (
    THREADS,
    gelu_backward_kernel,
    gelu_kernel,
    swiglu_backward_kernel,
    swiglu_kernel,
)
from cuda_numba.dtypes import itemsize, vector_width
from cuda_numba.inspect import instructions

FORMATS = ["float32", "float16", "bfloat16"]
# name → kernel (dtype, width, items), tensors read, tensors written, accesses a thread
KERNELS = {
    "gelu": (lambda *a: gelu_kernel("gelu", *a), 1, 1, ITEMS["gelu"]),
    "gelu_backward": (lambda *a: gelu_backward_kernel("gelu", *a), 2, 1, ITEMS["gelu_backward"]),
    "gelu_tanh": (lambda *a: gelu_kernel("gelu_tanh", *a), 1, 1, ITEMS["gelu"]),
    "gelu_tanh_backward": (
        lambda *a: gelu_backward_kernel("gelu_tanh", *a), 2, 1, ITEMS["gelu_backward"]
    ),
    "swiglu": (lambda *a: swiglu_kernel(*a, False), 2, 1, ITEMS["swiglu"]),
    "swiglu_backward": (
        lambda *a: swiglu_backward_kernel(*a, False), 3, 2, ITEMS["swiglu_backward"]
    ),
}  # fmt: skip
# The same of rows that lie apart; their traffic is counted in test_activation.
APART = {
    "swiglu": (lambda *a: swiglu_kernel(*a, True), *KERNELS["swiglu"][1:]),
    "swiglu_backward": (
        lambda *a: swiglu_backward_kernel(*a, True), *KERNELS["swiglu_backward"][1:]
    ),
}  # fmt: skip
# Instructions per element, of bf16 and of float32: what the docstring of `activation` says.
COUNTS = {
    "gelu": (15, 17),
    "gelu_tanh": (12, 12),
    "swiglu": (12, 11),
    "gelu_backward": (22, 23),
    "gelu_tanh_backward": (20, 18),
    "swiglu_backward": (21, 19),
}


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("dtype", FORMATS)
def test_traffic(name, dtype):
    """Every tensor is read once or written once, in whole sectors, 16 bytes an access."""
    make, reads, writes, items = KERNELS[name]
    width = vector_width(dtype)
    tensors = [torch.randn(1024).to(getattr(torch, dtype)) for _ in range(reads + writes)]
    blocks = -(-1024 // (THREADS * items * width))
    rows = (0,) * (1 + reads + writes if "swiglu" in name else 0)
    sizes = (1024, 1024 // width, *rows)
    report = make(dtype, width, items).report(blocks, THREADS, *tensors, *sizes)
    assert report.findings == []
    loads, stores = report.of("global", "load"), report.of("global", "store")
    size = 1024 * itemsize(dtype)
    assert (loads.moved, stores.moved) == (reads * size, writes * size)
    assert report.efficiency == 1 and loads.accesses == loads.moved / 16
    assert report.promotions == 0


def signature(name, dtype):
    _, reads, writes, _ = KERNELS[name]
    tensors = reads + writes
    return (f"{dtype}[:]",) * tensors + (None,) * (3 + tensors if "swiglu" in name else 2)


@needs_compiler
@pytest.mark.parametrize("name", KERNELS)
class TestMachineCode:
    @pytest.mark.parametrize(("cc", "dtype"), targets(), ids=str)
    def test_gates(self, name, cc, dtype):
        make, *_, items = KERNELS[name]
        kernel = make(dtype, vector_width(dtype), items)
        assert_gates(kernel, cc, signature(name, dtype), (WIDE_LOAD, WIDE_STORE, "MUFU.EX2"))

    def test_unaligned(self, name):
        make, *_, items = KERNELS[name]
        assert_gates(make("float16", 1, items), (9, 0), signature(name, "float16"))

    @pytest.mark.parametrize("which", [0, 1])
    def test_arithmetic_fits_the_time_of_a_copy(self, name, which):
        """What a second access of a thread adds to the code, so that its frame does not count."""
        dtype = ("bfloat16", "float32")[which]
        make, width = KERNELS[name][0], vector_width(dtype)
        one, two = (
            instructions(make(dtype, width, items).sass((9, 0), signature(name, dtype)))
            for items in (1, 2)
        )
        per_element = (sum(two.values()) - two["NOP"] - sum(one.values()) + one["NOP"]) / width
        assert COUNTS[name][which] - 2 < per_element <= COUNTS[name][which]

    def test_a_nan_is_not_lost(self, name):
        """x is bounded by an instruction that keeps NaN, not by one that drops it."""
        make, *_, items = KERNELS[name]
        sass = make("bfloat16", 8, items).sass((9, 0), signature(name, "bfloat16"))
        assert instructions(sass)["FMNMX.NAN"] >= 8 * items


@needs_compiler
def test_blocks_that_share_a_multiprocessor():
    """What the docstring of `activation` says; a thread gets registers by eights."""
    for form, items in itertools.product(("gelu", "gelu_tanh"), (1, 2)):
        kernel = gelu_backward_kernel(form, "bfloat16", 8, items)
        registers = kernel.resources((9, 0), signature("gelu_backward", "bfloat16")).registers
        given = -(-registers // 8) * 8
        assert (given, 65536 // (THREADS * given)) == {1: (48, 5), 2: (72, 3)}[items]


@needs_compiler
@pytest.mark.parametrize("name", APART)
@pytest.mark.parametrize(("cc", "dtype"), targets(everywhere=True), ids=str)
def test_rows_apart(name, cc, dtype):
    """The same accesses, and at most 5 more instructions an element to find the row."""
    make, *_, items = APART[name]
    width = vector_width(dtype)
    assert_gates(make(dtype, width, items), cc, signature(name, dtype), (WIDE_LOAD, WIDE_STORE))
    if cc == (9, 0) and dtype == "bfloat16":
        sass = [m(dtype, width, items).sass(cc, signature(name, dtype))
                for m in (make, KERNELS[name][0])]  # fmt: skip
        apart, together = (sum(instructions(text).values()) for text in sass)
        assert apart <= together + 5 * items * width


@needs_compiler
def test_loads_are_on_their_way_before_the_first_is_used():
    items = ITEMS["gelu"]
    sass = gelu_kernel("gelu", "bfloat16", 8, items).sass((9, 0), signature("gelu", "bfloat16"))
    assert sass[: sass.index("FFMA")].count("LDG.E.128") == items
