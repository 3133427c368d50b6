"""Arithmetic that Python's operators do not reach: fast functions, bit tricks, byte products.

The approximate functions run on the special function unit, 16 lanes a clock on an SM of compute
capability 8 or 9 where the float32 adders do 128; they flush subnormal numbers to zero. Their
meaning in Python is the right result rounded once; the hardware's may differ by `ulp` units of the
last place. Source: PTX ISA, sections "ex2", "lg2", "rcp", "rsqrt", "sqrt", "div", "tanh", "fma",
"lop3", "prmt", "dp4a".
"""

import math

import numpy as np

from .instruction import Instruction, instruction

TINY = float(np.finfo(np.float32).tiny)  # the smallest normal float32, 2**-126
OVERFLOW = 2.0**128 - 2.0**103  # rounds to infinity: half a unit past the largest float32


def narrow(x):
    """A float64 to float32, without NumPy's warning where it overflows."""
    return np.float32(math.copysign(math.inf, x) if abs(x) >= OVERFLOW else x)


def flush(x):
    """The same, with subnormal results made a zero of the same sign."""
    x = narrow(float(x))
    return np.float32(math.copysign(0.0, x)) if abs(x) < TINY else x


def _approximate(name, ulp, special=None):
    """A unary `name.approx.ftz.f32`; the decorated function works on Python floats."""

    def define(function):
        def meaning(x):
            x = float(flush(x))
            return flush(math.nan if math.isnan(x) else function(x))

        meaning.__doc__ = function.__doc__
        return instruction(
            f"{name}.approx.ftz.f32 $0, $1;", "f32(f32)", pure=True, flops=1, ulp=ulp, name=name
        )(meaning)

    return define


@_approximate("ex2", ulp=2)
def ex2(x):
    """2 to the power x. `exp(x)` is `ex2(x * log2(e))`: fold the factor into a scale."""
    return math.inf if x > 1e4 else 2.0**x


@_approximate("lg2", ulp=2)
def lg2(x):
    """Logarithm to base 2; near 1 the error is 2**-22 absolute, not 2 units of the last place."""
    return -math.inf if x == 0 else math.nan if x < 0 else x if x == math.inf else math.log2(x)


@_approximate("rcp", ulp=1)
def rcp(x):
    """1 / x."""
    return math.copysign(math.inf, x) if x == 0 else 1.0 / x


@_approximate("rsqrt", ulp=2)
def rsqrt(x):
    """1 / sqrt(x)."""
    return math.copysign(math.inf, x) if x == 0 else math.nan if x < 0 else 1.0 / math.sqrt(x)


@_approximate("sqrt", ulp=2)
def sqrt(x):
    """The square root."""
    return math.nan if x < 0 else math.sqrt(x)


@instruction("tanh.approx.f32 $0, $1;", "f32(f32)", pure=True, flops=1, ulp=2**13)
def tanh(x):
    """Hyperbolic tangent, to about 11 bits (relative error 2**-11)."""
    return np.float32(math.tanh(x))


@instruction("div.approx.ftz.f32 $0, $1, $2;", "f32(f32, f32)", pure=True, flops=1, ulp=2)
def div(a, b):
    """a / b for |b| in [2**-126, 2**126]; beyond, the result is 0, or NaN for an infinite a."""
    a, b = float(flush(a)), float(flush(b))
    if math.isnan(a) or math.isnan(b):
        return flush(math.nan)
    if b == 0:
        infinite = math.copysign(math.inf, a) * math.copysign(1.0, b)
        return flush(math.nan if a == 0 else infinite)
    if 2.0**126 < abs(b) < math.inf:
        return flush(math.nan if math.isinf(a) else math.copysign(0.0, a) * math.copysign(1.0, b))
    return flush(math.nan if math.isinf(a) and math.isinf(b) else a / b)


def fused(a, b, c):
    """a * b + c of float32 numbers, exact but for a sticky last bit: rounding it once more, to
    float32 or narrower, gives the correctly rounded result (Boldo and Melquiond 2008, "Emulation of
    FMA and correctly rounded sums: proved algorithms using rounding to odd")."""
    product, c = float(a) * float(b), float(c)  # 48 bits: the product is exact
    total = product + c
    if not math.isfinite(total):
        return total
    part = total - product
    lost = (product - (total - part)) + (c - part)  # Knuth's two-sum: total + lost is exact
    if lost and not np.float64(total).view(np.int64) & 1:
        total = math.nextafter(total, math.copysign(math.inf, lost))
    return total


@instruction("fma.rn.f32 $0, $1, $2, $3;", "f32(f32, f32, f32)", pure=True, flops=2)
def fma(a, b, c):
    """a * b + c, rounded once."""
    return narrow(fused(a, b, c))


@instruction("lop3.b32 $0, $1, $2, $3, $4;", "u32(u32, u32, u32, literal)", pure=True)
def lop3(a, b, c, table):
    """Any bitwise function of three words: bit `4a + 2b + c` of the constant `table` is its value.

    The table of a formula is the formula itself on 0xF0, 0xCC and 0xAA: `(a & b) | c` is
    `(0xF0 & 0xCC) | 0xAA`.
    """
    result = 0
    for k in range(8):
        if table >> k & 1:
            result |= (a if k & 4 else ~a) & (b if k & 2 else ~b) & (c if k & 1 else ~c)
    return result & 0xFFFFFFFF


@instruction("prmt.b32 $0, $1, $2, $3;", "u32(u32, u32, u32)", pure=True)
def prmt(a, b, selector):
    """Pick four of the eight bytes of b:a: nibble k of the selector names byte k of the result.

    With bit 3 of a nibble set, the byte's sign bit fills all eight bits.
    """
    pool = b << 32 | a
    result = 0
    for k in range(4):
        nibble = selector >> 4 * k & 0xF
        byte = pool >> 8 * (nibble & 7) & 0xFF
        if nibble & 8:
            byte = 0xFF if byte & 0x80 else 0
        result |= byte << 8 * k
    return result


def _bytes_of(word, signed):
    parts = word.to_bytes(4, "little")
    return [p - 256 if signed and p > 127 else p for p in parts]


@instruction("dp4a.s32.s32 $0, $1, $2, $3;", "s32(u32, u32, s32)", pure=True)
def dp4a(a, b, c):
    """c plus the four products of the signed bytes of a and b; wraps at 32 bits."""
    products = zip(_bytes_of(a, True), _bytes_of(b, True), strict=True)
    total = c + sum(x * y for x, y in products)
    return (total + 2**31) % 2**32 - 2**31


@instruction("dp4a.u32.u32 $0, $1, $2, $3;", "u32(u32, u32, u32)", pure=True)
def dp4a_unsigned(a, b, c):
    """c plus the four products of the unsigned bytes of a and b; wraps at 32 bits."""
    products = zip(_bytes_of(a, False), _bytes_of(b, False), strict=True)
    return (c + sum(x * y for x, y in products)) & 0xFFFFFFFF


__all__ = [name for name, value in globals().items() if isinstance(value, Instruction)]
