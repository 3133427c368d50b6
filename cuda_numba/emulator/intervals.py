"""Bounds of integer expressions: what an operation can give, from what its operands can be.

Python integers are as wide as they need to be, Numba's are not. Where the bounds of a result stay
inside its type nothing has to be masked, and most casts of index arithmetic fall away. A bound is
a pair (lowest, highest); None stands for a value that is no integer.
"""

from numba.core import types

Bounds = tuple[int, int]

EXTENT = (1 << 31) - 1  # an emulated array has at most so many elements along an axis
LONG = (-(1 << 63), (1 << 63) - 1)


def of_type(t: types.Type | None) -> Bounds | None:
    """All that a variable of this type can hold."""
    if isinstance(t, types.Integer):
        return t.minval, t.maxval
    return (0, 1) if isinstance(t, types.Boolean) else None


def inside(bounds: Bounds | None, t: types.Type) -> bool:
    limits = of_type(t)
    return bounds is not None and limits[0] <= bounds[0] and bounds[1] <= limits[1]


def hull(a: Bounds | None, b: Bounds | None) -> Bounds | None:
    if a is None or b is None:
        return None
    return min(a[0], b[0]), max(a[1], b[1])


def clip(bounds: Bounds, limits: Bounds) -> Bounds:
    """The part of the bounds inside the limits; the limits where there is none."""
    low, high = max(bounds[0], limits[0]), min(bounds[1], limits[1])
    return (low, high) if low <= high else limits


def _corners(a: Bounds, b: Bounds, f) -> Bounds:
    values = [f(x, y) for x in a for y in b]
    return min(values), max(values)


def _add(a, b):
    return a[0] + b[0], a[1] + b[1]


def _sub(a, b):
    return a[0] - b[1], a[1] - b[0]


def _mul(a, b):
    return _corners(a, b, lambda x, y: x * y)


def _floordiv(a, b):
    if b[0] > 0:
        return _corners(a, b, lambda x, y: x // y)
    if b[0] == 0 and a[0] >= 0:  # a quotient by zero is zero
        return 0, a[1]
    most = max(abs(a[0]), abs(a[1]))
    return -most, most


def _mod(a, b):
    if b[0] >= 0:
        if a[0] >= 0:
            return 0, min(a[1], max(b[1] - 1, 0))
        return 0, max(b[1] - 1, 0)
    return min(b[0] + 1, 0), max(b[1] - 1, 0)


def _and(a, b):
    if a[0] >= 0 and b[0] >= 0:
        return 0, min(a[1], b[1])
    if a[0] >= 0 or b[0] >= 0:
        return 0, a[1] if a[0] >= 0 else b[1]
    return _signed(a, b)


def _signed(a, b):
    """For |, ^ and & of values that may be negative: as many bits as the wider operand."""
    bits = max(v.bit_length() for v in (*a, *b))
    return -(1 << bits), (1 << bits) - 1


def _or(a, b):
    if a[0] >= 0 and b[0] >= 0:
        return 0, (1 << max(a[1].bit_length(), b[1].bit_length())) - 1
    return _signed(a, b)


def _lshift(a, b):
    if b[0] < 0 or b[1] > 63:
        return None
    return _corners(a, b, lambda x, y: x << y)


def _rshift(a, b):
    if b[0] < 0:
        return None
    count = (min(b[0], 64), min(b[1], 64))
    return _corners(a, count, lambda x, y: x >> y)


OPERATIONS = {
    "Add": _add,
    "Sub": _sub,
    "Mult": _mul,
    "FloorDiv": _floordiv,
    "Mod": _mod,
    "BitAnd": _and,
    "BitOr": _or,
    "BitXor": _or,
    "LShift": _lshift,
    "RShift": _rshift,
}


def binary(op: str, a: Bounds | None, b: Bounds | None) -> Bounds | None:
    """Bounds of `a op b` before anything is masked; None where they are not known."""
    if a is None or b is None or op not in OPERATIONS:
        return None
    return OPERATIONS[op](a, b)


def below(bounds: Bounds, limit: int) -> Bounds:
    """The bounds of a value that is known to be at most `limit`."""
    return bounds if limit < bounds[0] else (bounds[0], min(bounds[1], limit))


def above(bounds: Bounds, limit: int) -> Bounds:
    """The bounds of a value that is known to be at least `limit`."""
    return bounds if limit > bounds[1] else (max(bounds[0], limit), bounds[1])
