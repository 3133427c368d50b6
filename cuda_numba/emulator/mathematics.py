"""What runs for the operators and functions that Python does otherwise than Numba.

Results are rounded from float64 once, so float32 functions are within half a unit in the last
place, on every machine the same. Where Python raises (a logarithm of zero, an overflow), NumPy
says what IEEE 754 gives.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba.core import types

from .casts import ONE, SCALAR, wrap

# ---- integers -----------------------------------------------------------------------------------


def shift_left(value: int, count: int) -> int:
    """A count past the width, or a negative one, shifts everything out, as PTX's shl does."""
    return value << count if 0 <= count < 64 else 0


def shift_right(value: int, count: int) -> int:
    return value >> (count if 0 <= count < 64 else 64)


def floordiv(a: int, b: int) -> int:
    """Rounds down; a division by zero gives 0, and so does the one quotient that does not fit."""
    if not b or (b == -1 and a == types.int64.minval):
        return 0
    return a // b


def modulo(a: int, b: int) -> int:
    return a % b if b else 0


def integer_divmod(a: int, b: int) -> tuple[int, int]:
    return floordiv(a, b), modulo(a, b)


def power(a: int, n: int, kind: types.Integer) -> int:
    """aⁿ in the arithmetic of the type; a reciprocal is cut to an integer."""
    if n < 0:
        if a == 0:
            return kind.minval if kind.signed else 1 << 63
        return (1 if n % 2 == 0 else a) if a in (1, -1) else 0
    modulus = 1 << kind.bitwidth
    return wrap(pow(a, n, modulus), kind)


def power_int64(a: int, n: int) -> int:
    return power(a, n, types.int64)


def power_uint64(a: int, n: int) -> int:
    return power(a, n, types.uint64)


def bits_of(width: int) -> dict[str, Callable[[int], int]]:
    """Bit counting in integers of a width, which may be negative."""
    mask = (1 << width) - 1
    return {
        "popc": lambda value: (value & mask).bit_count(),
        "clz": lambda value: width - (value & mask).bit_length(),
        "brev": lambda value: int(format(value & mask, f"0{width}b")[::-1], 2),
        "ffs": lambda value: (value & -value & mask).bit_length(),
    }


# ---- floats -------------------------------------------------------------------------------------


def float_power(a: Any, n: int) -> Any:
    """A float to an integer power: repeated products in its own type, as Numba generates them."""
    result, exponent = type(a)(1), abs(n)
    if exponent > 0x10000:  # too many products: the function pow of float64
        return type(a)(np.float64(a) ** np.float64(n))
    while exponent:
        if exponent & 1:
            result = result * a
        exponent >>= 1
        a = a * a
    return type(a)(1) / result if n < 0 else result


def float_floordiv(a: Any, b: Any) -> Any:
    return float_divmod(a, b)[0]


def float_modulo(a: Any, b: Any) -> Any:
    return float_divmod(a, b)[1]


def float_divmod(a: Any, b: Any) -> tuple[Any, Any]:
    """Quotient rounded down and remainder, by the steps of CPython's float division."""
    kind = type(a)
    if b == 0:
        return a / b, np.fmod(a, b)
    remainder = np.fmod(a, b)
    quotient = (a - remainder) / b
    if remainder != 0:
        if (b < 0) != (remainder < 0):
            quotient, remainder = quotient - kind(1), remainder + b
    else:
        remainder = kind(-0.0) if b < 0 else kind(0.0)
    if quotient != 0 and quotient == quotient:
        whole = np.floor(quotient)
        return (whole + kind(1) if quotient - whole > kind(0.5) else whole), remainder
    return quotient * quotient * a / b, remainder


def float_max(a: Any, b: Any) -> Any:
    """fmax: a NaN gives way to a number."""
    return b if b > a or a != a else a


def float_min(a: Any, b: Any) -> Any:
    return b if b < a or a != a else a


def first_max(a: Any, b: Any) -> Any:
    """The second only if it is greater: what Numba does where types differ."""
    return b if b > a else a


def first_min(a: Any, b: Any) -> Any:
    return b if b < a else a


def round_whole(x: Any) -> int:
    """To the nearest integer, halves to even, held at the ends of int64 (`__nv_llrint`)."""
    x = float(x)
    if -(2.0**63) < x < 2.0**63:
        return round(x)
    return types.int64.maxval if x > 0 else types.int64.minval


def round_digits(x: Any, digits: int) -> Any:
    """To so many decimal digits, by the steps of Numba's CUDA target: over int64, in float64."""
    if not math.isfinite(x):
        return x
    kind, first = type(x), np.float64(10)
    if digits >= 0:
        big = digits > 22  # 10**22 is the last power of ten that is exact
        first = float_power(first, digits - 22 if big else digits)
        second = np.float64(1e22 if big else 1.0)
        scaled = np.float64(x) * first * second
        return kind(round_whole(scaled) / second / first) if np.isfinite(scaled) else x
    first = float_power(first, -digits)
    return kind(round_whole(np.float64(x) / first) * first)


# ---- functions of math --------------------------------------------------------------------------

NUMPY = {
    "acos": "arccos", "acosh": "arccosh", "asin": "arcsin", "asinh": "arcsinh", "atan": "arctan",
    "atanh": "arctanh", "atan2": "arctan2", "pow": "power",
}  # fmt: skip
IN_NUMPY = ("floor", "ceil", "trunc", "fabs", "copysign", "nextafter")  # NumPy's, in the own type
BY_PYTHON = (
    "acos acosh asin asinh atan atanh cosh degrees erf erfc expm1 gamma lgamma log1p radians sinh "
    "tanh tan sin cos sqrt log log2 log10 exp exp2 atan2 hypot fmod remainder pow"
).split()
_LIMITS = {  # where Python raises and NumPy has no such function
    "gamma": lambda x: math.nan if x < 0 else math.copysign(math.inf, x),
    "lgamma": lambda x: math.inf,
    "remainder": lambda x, y: math.nan,
}


def rounded(name: str, kind: types.Float) -> Callable[..., Any]:
    """A function of `math`, its result rounded to the type."""
    function, one = getattr(math, name), ONE[kind]
    special = _LIMITS.get(name) or getattr(np, NUMPY.get(name, name), None)

    def run(*args: Any) -> Any:
        try:
            return one * function(*args)
        except (ValueError, OverflowError):
            return SCALAR[kind](special(*args))

    def run_one(x: Any) -> Any:
        try:
            return one * function(x)
        except (ValueError, OverflowError):
            return SCALAR[kind](special(x))

    two = name in ("atan2", "hypot", "fmod", "remainder", "pow")
    return run if two else run_one


def frexp(x: Any) -> tuple[Any, int]:
    mantissa, exponent = np.frexp(x)
    return mantissa, int(exponent)


def ldexp(x: Any, n: int) -> Any:
    return np.ldexp(x, max(min(n, 5000), -5000))


def modf(x: Any) -> tuple[Any, Any]:
    fraction, whole = np.modf(x)
    return fraction, whole


def fma_float32(a: Any, b: Any, c: Any) -> Any:
    """a · b + c with one rounding. The product of two float32 is exact in float64; its sum with c
    is rounded to odd there, so that the rounding to float32 is the only one."""
    product, c = float(a) * float(b), float(c)
    total = product + c
    if math.isfinite(total):
        part = total - product
        lost = (product - (total - part)) + (c - part)
        if lost and not _odd(total):
            total = math.nextafter(total, math.inf if lost > 0 else -math.inf)
    return ONE[types.float32] * total


def _odd(x: float) -> bool:
    return bool(np.float64(x).view(np.int64) & 1)


def fma_float64(a: Any, b: Any, c: Any) -> Any:
    from fractions import Fraction

    if not all(map(math.isfinite, (a, b, c))):
        return a * b + c
    exact = Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c))
    if not exact:
        return a * b + c  # the sign of zero
    try:
        return np.float64(exact.numerator / exact.denominator)
    except OverflowError:
        return np.float64(math.copysign(math.inf, exact))


def _maths() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for kind in ONE:
        found |= {f"_e_math_{name}_{kind}": rounded(name, kind) for name in BY_PYTHON}
    found |= {f"_e_math_{name}": getattr(np, name) for name in IN_NUMPY}
    for width in (8, 16, 32, 64):
        found |= {f"_e_{name}_{width}": f for name, f in bits_of(width).items()}
    return found


NAMES: dict[str, Any] = {
    f"_e_{f.__name__}": f
    for f in (
        *(shift_left, shift_right, floordiv, modulo, power_int64, power_uint64, float_power),
        *(float_floordiv, float_modulo, float_divmod, float_max, float_min, first_max, first_min),
        *(round_whole, round_digits, fma_float32, fma_float64),
    )
} | {
    "_e_math_frexp": frexp,
    "_e_math_ldexp": ldexp,
    "_e_math_modf": modf,
    "_e_math_isnan": lambda x: x != x,
    "_e_math_isinf": lambda x: x in (math.inf, -math.inf),
    "_e_math_isfinite": lambda x: -math.inf < x < math.inf,
    "_e_math_gcd": math.gcd,
    "_e_cbrt": np.cbrt,
    "_e_integer_divmod": integer_divmod,
    **{f"_e_numpy_{n}": f for n, f in vars(np).items() if isinstance(f, np.ufunc)},
    **{f"_e_{f.__name__}": f for f in (min, max, abs, len, range, enumerate, zip)},
    **_maths(),
}
