import math

import numpy as np
import pytest
from ptx_cases import HOPPER, check_compiled, check_emulated, check_gpu, ids
from ptx_cases_arithmetic import CASES, exact_fma

from cuda_numba import ptx

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


def test_fma_rounds_once():
    """Products whose rounding error is all that is left, and sums just beside a tie."""
    a = np.float32(1 + 2.0**-12)
    assert ptx.fma.evaluate(a, a, -np.float32(a * a)) == np.float32(2.0**-24)
    # 1 + 2^-24 is a tie between 1 and 1 + 2^-23; the product's 2^-60 breaks it.
    b, c = np.float32(2.0**-24 * (1 + 2.0**-18)), np.float32(1 + 2.0**-18)
    once = ptx.fma.evaluate(b, c, np.float32(1))
    assert once == np.float32(1 + 2.0**-23)
    twice = np.float32(np.float64(2.0**-24) * (1 + 2.0**-60) + 1)
    assert twice == 1  # the control: float64 loses the last part, and the tie goes to even
    x = [np.array([v], np.float32) for v in (2.0**-24, 1, 1)]
    assert exact_fma(*x)[0] == ptx.fma.evaluate(*(float(v[0]) for v in x)) == 1


def test_subnormal_numbers_are_flushed():
    tiny = np.float32(2.0**-127)
    assert ptx.rcp.evaluate(tiny) == math.inf
    assert ptx.ex2.evaluate(-127) == 0 and ptx.ex2.evaluate(-126) > 0
    assert math.copysign(1, ptx.sqrt.evaluate(-tiny)) == -1


@pytest.mark.parametrize(
    ("formula", "table"),
    [
        (lambda a, b, c: a & b & c, 0x80),
        (lambda a, b, c: a & ~b, 0xF0 & ~0xCC),
        (lambda a, b, c: a | (b ^ c), 0xF0 | (0xCC ^ 0xAA)),
    ],
)
def test_lop3_is_its_table(formula, table):
    words = np.random.default_rng(1).integers(0, 2**32, (20, 3)).tolist()
    for a, b, c in words:
        assert ptx.lop3.evaluate(a, b, c, table) == formula(a, b, c) & 0xFFFFFFFF


def test_dp4a_wraps():
    assert ptx.dp4a.evaluate(0x7F7F7F7F, 0x7F7F7F7F, 2**31 - 1) == 4 * 127 * 127 - 2**31 - 1
    assert ptx.dp4a_unsigned.evaluate(0xFF, 0xFF, 2**32 - 1) == 255 * 255 - 1
