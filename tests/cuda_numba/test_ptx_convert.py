import numpy as np
import pytest
import torch
from ptx_cases import (
    HOPPER,
    check_compiled,
    check_emulated,
    check_gpu,
    compile_ptx,
    hard_floats,
    ids,
)
from ptx_cases_convert import CASES, NARROW, narrowed, widened

from cuda_numba import bits, ptx
from cuda_numba.ptx import convert

cases = pytest.mark.parametrize("case", CASES, ids=ids)


@cases
def test_emulated(case):
    check_emulated(case)


@cases
def test_compiled_for_the_oldest_gpu(case):
    check_compiled(case, case.cc, pointers=False)


@cases
def test_compiled_for_hopper(case):
    check_compiled(case, HOPPER, pointers=True)


@pytest.mark.gpu
@cases
def test_gpu(case):
    check_gpu(case)


@pytest.mark.parametrize("name", NARROW)
def test_every_code_widens_as_in_torch(name):
    container = NARROW[name][1]
    codes = np.arange(np.iinfo(container).max + 1, dtype=container)
    values = {
        "bf16": bits.bf16_values,
        "f16": bits.f16_values,
        "e4m3": lambda c: convert.float8_values("e4m3")[c],
        "e5m2": lambda c: convert.float8_values("e5m2")[c],
    }[name](codes)
    np.testing.assert_array_equal(values, widened(codes, name))


@pytest.mark.parametrize("name", NARROW)
def test_every_finite_number_survives_the_round_trip(name):
    container = NARROW[name][1]
    codes = np.arange(np.iinfo(container).max + 1, dtype=container)
    values = widened(codes, name)
    pack = getattr(ptx, f"pack_{name}")
    bits = 8 * container().itemsize
    for code, value in list(zip(codes, values, strict=True))[:: 1 if bits == 8 else 97]:
        if np.isfinite(value):
            assert pack.evaluate(value, np.float32(0)) == code
            assert pack.evaluate(np.float32(0), value) == int(code) << bits


@pytest.mark.parametrize("name", ["e4m3", "e5m2"])
def test_float8_rounds_ties_to_even_and_saturates(name):
    values = widened(np.arange(0x7C if name == "e5m2" else 0x7F, dtype=np.uint8), name)
    between = (values[:-1] + values[1:]) / 2  # exact in float32
    for k, tie in enumerate(between):
        assert convert.float8_bits(tie, name) == k + (k & 1)
        assert convert.float8_bits(np.nextafter(tie, np.float32(0)), name) == k
        assert convert.float8_bits(np.nextafter(tie, np.float32(9e9)), name) == k + 1
    largest = len(values) - 1
    for beyond in (values[-1] * np.float32(1.5), np.float32(3e38), np.inf):
        assert convert.float8_bits(beyond, name) == largest
        assert convert.float8_bits(-beyond, name) == largest | 0x80


def test_array_and_scalar_conversions_agree():
    x = hard_floats(np.random.default_rng(3), 2000)
    np.testing.assert_array_equal(bits.bf16_bits(x), narrowed(x, "bf16"))
    np.testing.assert_array_equal(bits.f16_bits(x), narrowed(x, "f16"))
    for value, code in zip(x[:200], narrowed(x, "bf16")[:200], strict=True):
        assert ptx.f32_to_bf16.evaluate(value) == code


def test_bfloat16_is_not_truncated():
    """The control: cutting the low half off would pass for numbers that need no rounding."""
    x = np.float32(1) + np.float32(2.0**-7 + 2.0**-8)
    assert ptx.f32_to_bf16.evaluate(x) == 0x3F82 != int(x.view(np.uint32)) >> 16
    assert torch.tensor(x).bfloat16().view(torch.int16).item() == 0x3F82


def test_8_bit_floats_need_ada():
    case = next(c for c in CASES if c.name == "pack_e4m3")
    with pytest.raises(Exception, match="needs compute capability 8.9 or newer.*for 8.0"):
        compile_ptx(case, (8, 0))
