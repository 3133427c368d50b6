"""Twins that only compute, for operands whose types are not known before the kernel runs."""

from typing import Any

import numpy as np

from .twin import twin


def _bits(value: Any) -> int:
    return 64 if not -(1 << 31) <= value < 1 << 32 else 32


@twin("popc")
def popc(m, value):
    return (int(value) & ((1 << _bits(value)) - 1)).bit_count()


@twin("clz")
def clz(m, value):
    bits = _bits(value)
    return bits - (int(value) & ((1 << bits) - 1)).bit_length()


@twin("brev")
def brev(m, value):
    bits = _bits(value)
    return int(format(int(value) & ((1 << bits) - 1), f"0{bits}b")[::-1], 2)


@twin("ffs")
def ffs(m, value):
    """1 + the place of the lowest bit that is set; 0 if none is."""
    value = int(value)
    return (value & -value).bit_length()


@twin("selp")
def selp(m, condition, a, b):
    return a if condition else b


@twin("fma")
def fma(m, a, b, c):
    """a · b + c with one rounding: float32 products are exact in float64."""
    if all(isinstance(v, np.float32) for v in (a, b, c)):
        return np.float32(np.float64(a) * np.float64(b) + np.float64(c))
    return np.float64(np.longdouble(a) * np.longdouble(b) + np.longdouble(c))


@twin("cbrt")
def cbrt(m, a):
    return np.cbrt(a)
