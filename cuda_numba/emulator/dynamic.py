"""Operations by the types that values have when they meet, for what could not be typed before.

A Python int counts as int64, a NumPy scalar as its own type. The operators are those that
`operations` writes for known types, compiled once for each pair.
"""

import ast
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np

from . import casts, mathematics, operations
from .casts import runtime_type, to_type
from .operators import BINARY, COMPARE, UNARY, Rule, is_integer
from .value import Value, of_type

_BINARY = (*BINARY, *COMPARE)


def compiled(expression: ast.expr, *parameters: str) -> Callable:
    """A function of the parameters that gives the expression."""
    names = {**casts.NAMES, **mathematics.NAMES, **operations.constants()}
    arguments = ast.arguments([], [ast.arg(p) for p in parameters], None, [], [], None, [])
    tree = ast.fix_missing_locations(ast.Expression(ast.Lambda(arguments, expression)))
    return eval(compile(tree, "<operation>", "eval"), names)


@cache
def typed(op: str, *kinds: Any) -> Callable:
    """An operator for operands of given Numba types."""
    values = [of_type(kind) for kind in kinds]
    a, b = operations.name("a"), operations.name("b")
    if op in UNARY:
        return compiled(operations.unary(op, a, values[0]), "a")
    if op in COMPARE:
        return compiled(
            operations.compare(getattr(ast, op)(), a, values[0], b, values[1]), "a", "b"
        )
    return compiled(operations.binary(op, a, values[0], b, values[1]), "a", "b")


def run_binary(op: str, a: Any, b: Any) -> Any:
    kinds = runtime_type(a), runtime_type(b)
    if None in kinds:  # tuples, arrays: Python's own meaning
        return (BINARY.get(op) or COMPARE[op])(a, b)
    return typed(op, *kinds)(a, b)


def run_unary(op: str, a: Any) -> Any:
    kind = runtime_type(a)
    return UNARY[op](a) if kind is None else typed(op, kind)(a)


def evaluate(op: str, rule: Rule, *operands: Value) -> Any:
    """The value of an operation on constants; `op` may be "cast"."""
    constants = [value.constant for value in operands]
    with np.errstate(all="ignore"):
        if op == "cast":
            return to_type(rule.result)(*constants)
        found = typed(op, *(value.type for value in operands))(*constants)
    return to_type(rule.result)(found) if is_integer(rule.result) else found


def as_float(x: Any) -> Any:
    """The argument of a function of floats: anything but a NumPy float becomes float64."""
    return x if isinstance(x, np.floating) else np.float64(x)


def by_type(name: str) -> Callable[..., Any]:
    """A function of `math` for arguments whose types are not known before."""
    own = mathematics.NAMES.get(f"_e_math_{name}")

    def run(*args: Any) -> Any:
        args = tuple(map(as_float, args))
        if own is not None:
            return own(*args)
        kind = np.result_type(*args).name
        return mathematics.NAMES[f"_e_math_{name}_{kind}"](*args)

    return run


NAMES: dict[str, Any] = {
    **{f"_e_any_{op}": partial(run_binary, op) for op in _BINARY},
    **{f"_e_any_{op}": partial(run_unary, op) for op in UNARY},
    **{f"_e_any_{n}": by_type(n) for n in (*mathematics.BY_PYTHON, *mathematics.IN_NUMPY)},
    **{f"_e_any_{n}": mathematics.NAMES[f"_e_math_{n}"] for n in ("isnan", "isinf", "isfinite")},
    "_e_any_ldexp": lambda x, n: mathematics.ldexp(as_float(x), int(n)),
    "_e_any_frexp": lambda x: mathematics.frexp(as_float(x)),
    "_e_any_modf": lambda x: mathematics.modf(as_float(x)),
    "_e_any_round": lambda x, *n: (
        mathematics.round_digits(as_float(x), *n) if n else mathematics.round_whole(as_float(x))
    ),
    "_e_any_divmod": lambda a, b: (run_binary("FloorDiv", a, b), run_binary("Mod", a, b)),
}
