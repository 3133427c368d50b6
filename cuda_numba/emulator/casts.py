"""Casts between number types, as functions that run.

Numba leaves a float that does not fit the integer it is cast to undefined. Here it is held at the
ends of the integer's range, as `cvt.rzi` does; NaN gives 0, or the highest bit alone where the
float or the integer has 64 bits (PTX ISA, section "cvt"). For 8 bits the 16-bit result is cut.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numba.core import types

ONE = {
    types.float16: np.float16(1),
    types.float32: np.float32(1),
    types.float64: np.float64(1),
}
SCALAR = {types.float16: np.float16, types.float32: np.float32, types.float64: np.float64}
INTEGERS = tuple(sorted(types.integer_domain, key=str))
EXACT = 1 << 53  # integers up to here are exact in float64


def wrap(value: int, kind: types.Integer) -> int:
    """The low bits of an integer, read as `kind`."""
    value &= (1 << kind.bitwidth) - 1
    return value - (1 << kind.bitwidth) if value > kind.maxval else value


def integer_from_float(kind: types.Integer) -> Callable[[Any], int]:
    """Truncation toward zero, held at the ends of the range."""
    wide = kind if kind.bitwidth > 8 else types.int16
    low, high = wide.minval, wide.maxval
    top = wrap(1 << (wide.bitwidth - 1), wide)

    def run(value: Any) -> int:
        if low < value < high:
            whole = int(value)
        elif value != value:
            narrow = wide.bitwidth < 64 and isinstance(value, np.float32 | np.float16)
            whole = 0 if narrow else top
        else:
            whole = low if value <= low else high
        return whole if wide is kind else wrap(whole, kind)

    return run


def integer_from_any(kind: types.Integer) -> Callable[[Any], int]:
    from_float = integer_from_float(kind)

    def run(value: Any) -> int:
        if isinstance(value, float | np.floating):
            return from_float(value)
        return wrap(int(value), kind)

    return run


def float_from_integer(kind: types.Float) -> Callable[[int], Any]:
    """One rounding, also of integers that float64 cannot hold."""
    scalar = SCALAR[kind]

    def run(value: int) -> Any:
        if -EXACT <= value <= EXACT:
            return scalar(value)
        return scalar(np.int64(value) if value < 1 << 63 else np.uint64(value))

    return run


def float_from_any(kind: types.Float) -> Callable[[Any], Any]:
    scalar, from_integer = SCALAR[kind], float_from_integer(kind)

    def run(value: Any) -> Any:
        return from_integer(value) if isinstance(value, int) else scalar(value)

    return run


def to_type(kind: types.Type) -> Callable[[Any], Any]:
    """The cast of any number to a type, by the type that the number has when it is cast."""
    if isinstance(kind, types.Boolean):
        return bool
    return float_from_any(kind) if isinstance(kind, types.Float) else integer_from_any(kind)


def runtime_type(value: Any) -> types.Type | None:
    """The Numba type of a number that runs through an emulated kernel: a Python int is int64."""
    if isinstance(value, bool | np.bool_):
        return types.boolean
    if isinstance(value, int):
        return types.int64 if value < 1 << 63 else types.uint64
    if isinstance(value, np.generic):
        return getattr(types, value.dtype.name, None)
    return types.float64 if isinstance(value, float) else None


NAMES: dict[str, Any] = {
    **{f"_e_one_{kind}": one for kind, one in ONE.items()},
    **{f"_e_{kind}": to_type(kind) for kind in (*INTEGERS, *ONE)},
    **{f"_e_{kind}_of_float": integer_from_float(kind) for kind in INTEGERS},
    **{f"_e_{kind}_of_integer": float_from_integer(kind) for kind in ONE},
    **{f"_e_scalar_{kind}": scalar for kind, scalar in SCALAR.items()},
    "_e_bool": bool,
    "_e_float": float,
}
