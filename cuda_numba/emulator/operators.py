"""Result types of operators and built-in functions, as Numba CUDA has them.

Numba's core typing (`numba.core.typing`) decides, so numba-cuda need not be installed. Where the
CUDA target differs from the CPU, the tables here hold the difference: float16, which the CPU target
cannot compute with, and the functions of `math`.
"""

import functools
import operator
from typing import NamedTuple

from numba.core import types, typing
from numba.core.errors import NumbaError
from numba.core.typing.arraydecl import get_array_index_type

BINARY = {
    "Add": operator.add,
    "Sub": operator.sub,
    "Mult": operator.mul,
    "Div": operator.truediv,
    "FloorDiv": operator.floordiv,
    "Mod": operator.mod,
    "Pow": operator.pow,
    "LShift": operator.lshift,
    "RShift": operator.rshift,
    "BitAnd": operator.and_,
    "BitOr": operator.or_,
    "BitXor": operator.xor,
    "MatMult": operator.matmul,
}
COMPARE = {
    "Lt": operator.lt,
    "LtE": operator.le,
    "Gt": operator.gt,
    "GtE": operator.ge,
    "Eq": operator.eq,
    "NotEq": operator.ne,
}
UNARY = {
    "USub": operator.neg,
    "UAdd": operator.pos,
    "Invert": operator.invert,
    "Not": operator.not_,
}


class Rule(NamedTuple):
    """How an operation is done: the types its operands are cast to, and the result's type."""

    result: types.Type
    operands: tuple[types.Type, ...]


@functools.cache
def context() -> typing.BaseContext:
    """Numba's typing context, loaded once (about 50 ms)."""
    c = typing.Context()
    c.refresh()
    return c


def is_number(t: types.Type | None) -> bool:
    """An integer, a real float or a boolean."""
    return isinstance(t, types.Integer | types.Float | types.Boolean)


def is_integer(t: types.Type | None) -> bool:
    return isinstance(t, types.Integer | types.Boolean)


@functools.cache
def unify(a: types.Type, b: types.Type) -> types.Type | None:
    """The type of a variable that holds either, or None if there is none."""
    try:
        return context().unify_types(a, b)
    except (NumbaError, TypeError, AssertionError):
        return None


# What float16 and another operand are both cast to, for + - * / and comparisons.
_HALF = {
    types.boolean: types.float16,
    types.int8: types.float16,
    types.float16: types.float16,
    types.int16: types.float32,
    types.uint8: types.float32,
    types.float32: types.float32,
}
_HALF_AS_IS = ("Add", "Sub", "Mult", "Div", *COMPARE)


def _half_rule(op: str, a: types.Type, b: types.Type) -> Rule | None:
    """Operations on float16 and another type (numba_cuda/numba/cuda: fp16, typing/builtins)."""
    if op not in (*_HALF_AS_IS, "FloorDiv", "Mod", "Pow"):
        return None
    if op == "Pow" and a == types.float16 and isinstance(b, types.Integer | types.Boolean):
        small = b in (types.boolean, types.int8, types.int16, types.int32)
        power = types.int32 if small else types.int64 if b.signed else types.uint64
        return Rule(types.float32, (types.float32, power))
    common = _HALF.get(b if a == types.float16 else a, types.float64)
    if op not in _HALF_AS_IS and common == types.float16:
        common = types.float32
    result = types.boolean if op in COMPARE else common
    return Rule(result, (common, common))


@functools.cache
def binary(op: str, a: types.Type, b: types.Type) -> Rule | None:
    """The rule of `a op b`; op is the name of a class of `ast`, "Add", "Lt", …"""
    if types.float16 in (a, b):
        return _half_rule(op, a, b)
    return resolve(BINARY.get(op) or COMPARE[op], (a, b))


@functools.cache
def unary(op: str, a: types.Type) -> Rule | None:
    if a == types.float16 and op != "Invert":
        return Rule(types.boolean if op == "Not" else a, (a,))
    return resolve(UNARY[op], (a,))


@functools.cache
def resolve(function, arguments: tuple) -> Rule | None:
    """What Numba's core typing says of a call; None if it cannot be called with these."""
    try:
        signature = context().resolve_function_type(function, arguments, {})
    except (NumbaError, AssertionError, TypeError, AttributeError, NotImplementedError):
        return None
    if signature is None:
        return None
    return Rule(types.unliteral(signature.return_type), tuple(signature.args))


@functools.cache
def getitem(container: types.Type, index: types.Type) -> types.Type | None:
    """The type of `container[index]` for arrays: an element, or a view."""
    try:
        found = get_array_index_type(container, index)
    except (NumbaError, AssertionError, TypeError, AttributeError, NotImplementedError):
        return None
    return None if found is None else types.unliteral(found.result)


@functools.cache
def getattr_type(base: types.Type, name: str) -> types.Type | None:
    try:
        return context().resolve_getattr(base, name)
    except (NumbaError, AssertionError, TypeError, AttributeError, NotImplementedError):
        return None


# ---- math, on the CUDA target -----------------------------------------------------------------

_I8, _I16, _I32, _I64 = types.int8, types.int16, types.int32, types.int64
_U8, _U64 = types.uint8, types.uint64
_F16, _F32, _F64 = types.float16, types.float32, types.float64
_ONE = [(_I64,), (_U64,), (_F32,), (_F64,)]
_TWO = [(_F32, _F32), (_F64, _F64)]
_SMALL = (types.boolean, _I8, _I16, _U8, _F16, _F32)  # what becomes float32 where it may

PREDICATES = ("isinf", "isnan", "isfinite")
UNARY_MATH = frozenset(
    "acos acosh asin asinh atan atanh cosh degrees erf erfc expm1 gamma lgamma log1p radians sinh "
    "tanh tan sin cos ceil floor sqrt log log2 log10 exp fabs trunc exp2".split()
)
HALF_MATH = frozenset("sin cos ceil floor sqrt log log2 log10 exp fabs trunc exp2".split())
BINARY_MATH = frozenset("atan2 hypot copysign fmod nextafter remainder pow".split())


@functools.cache
def math_rule(name: str, arguments: tuple) -> Rule | None:
    """The rule of `math.name(…)` in a CUDA kernel.

    Results are floats, also those of floor, ceil and trunc, which give integers on the CPU. An
    integer becomes float64, but float32 beside a float32 if it has at most 16 bits.
    """
    if not arguments or not all(map(is_number, arguments)):
        return None
    if len(arguments) == 1:
        return _unary_math(name, arguments[0])
    return _binary_math(name, *arguments) if len(arguments) == 2 else None


def _unary_math(name: str, a: types.Type) -> Rule | None:
    to = a if isinstance(a, types.Float) else _F64
    if to == _F16 and name not in HALF_MATH:
        to = _F64 if name == "modf" else _F32
    if name in PREDICATES:
        return Rule(types.boolean, (a,))
    if name in UNARY_MATH:
        return Rule(to, (to,))
    if name in ("frexp", "modf"):
        if name == "frexp" and a in _SMALL:
            to = _F32
        return Rule(types.Tuple((to, _I32 if name == "frexp" else to)), (to,))
    return None


def _binary_math(name: str, a: types.Type, b: types.Type) -> Rule | None:
    if name == "ldexp":
        to = _F32 if a in _SMALL else _F64
        return Rule(to, (to, _I32))
    if name == "pow" and (b in (_I8, _I16, _I32) or (a, b) == (_F32, types.uint16)):
        to = _F32 if a in _SMALL else _F64
        return Rule(to, (to, _I32))
    if name not in BINARY_MATH:
        return None
    integers = not (isinstance(a, types.Float) or isinstance(b, types.Float))
    narrow = a in _SMALL and b in _SMALL and not (integers and name in ("atan2", "hypot"))
    to = _F32 if narrow else _F64
    return Rule(to, (to, to))
