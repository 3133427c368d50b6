"""Expressions as Numba computes them, in plain Python that costs close to nothing.

Integers are Python ints inside the range of their Numba type, floats are NumPy scalars of their own
width. Every function here takes the syntax trees of operands that are rewritten already and what is
known of them (`Value`), and gives a syntax tree.

- Unsigned results wrap, unless their bounds say that they fit.
- Signed sums and differences stay as they are: Numba leaves signed overflow undefined. Signed
  products and left shifts wrap where they may leave 64 bits, so that numbers cannot grow for ever.
- An integer that meets a float is cast to the float's type before, int / int is float64.
- x / 0 is an infinity or NaN, x // 0 and x % 0 of integers are 0, as in a kernel.
- A shift by the width or more gives 0, or −1 for a negative number to the right, as in PTX.
- Where a type is not known, `dynamic` decides by the types that the values have when they meet.
"""

import ast
from typing import Any

import numpy as np
from numba.core import types

from . import casts, intervals, operators
from .casts import EXACT
from .operators import is_integer, is_number
from .value import Value, of_type

RING = ("Add", "Sub", "Mult", "BitAnd", "BitOr", "BitXor", "LShift")
F64 = types.float64


def name(identifier: str) -> ast.Name:
    return ast.Name(identifier, ast.Load())


def call(function: str, *args: ast.expr) -> ast.Call:
    return ast.Call(name(function), list(args), [])


def operation(left: ast.expr, op: str, right: ast.expr) -> ast.expr:
    return ast.BinOp(left, getattr(ast, op)(), right)


def simple(node: ast.expr) -> bool:
    """Whether a node can be written twice: it costs little and does nothing else."""
    return isinstance(node, ast.Name | ast.Constant)


def calls_nothing(node: ast.expr) -> bool:
    return not any(isinstance(part, ast.Call | ast.Subscript) for part in ast.walk(node))


# ---- constants ----------------------------------------------------------------------------------

_constants: dict[str, Any] = {}


def literal(value: Any) -> ast.expr | None:
    """A number from outside the kernel as an expression, or None if it is no number."""
    if isinstance(value, bool | np.bool_):
        return ast.Constant(bool(value))
    if isinstance(value, int | np.integer):
        return ast.Constant(int(value))
    if isinstance(value, float | np.floating):
        return float_constant(value if isinstance(value, np.floating) else np.float64(value))
    return None


def float_constant(value: np.floating) -> ast.expr:
    """A float constant: one NumPy scalar for the whole process, not made anew each time."""
    sign = "m" if np.signbit(value) else "p"
    digits = float(abs(value)).hex().translate({ord("."): "_", ord("+"): "p", ord("-"): "m"})
    key = f"_e_k{value.dtype.itemsize}{sign}{digits}"
    _constants[key] = value
    return name(key)


def constants() -> dict[str, Any]:
    """The float constants so far, by name."""
    return _constants


# ---- casts --------------------------------------------------------------------------------------


def wrapped(node: ast.expr, kind: types.Integer) -> ast.expr:
    """The low bits of an integer, read as `kind`."""
    mask = (1 << kind.bitwidth) - 1
    if not kind.signed:
        return operation(node, "BitAnd", ast.Constant(mask))
    half = ast.Constant(1 << (kind.bitwidth - 1))
    return operation(
        operation(operation(node, "Add", half), "BitAnd", ast.Constant(mask)), "Sub", half
    )


def cast(node: ast.expr, value: Value, want: Any) -> ast.expr:
    """`node`, of which `value` is known, as a number of type `want`."""
    have = value.type
    if have == want or not is_number(want):
        return node
    if not is_number(have):
        return call("_e_bool" if isinstance(want, types.Boolean) else f"_e_{want}", node)
    if value.is_constant:
        return literal(casts.to_type(want)(value.constant))
    if isinstance(want, types.Boolean):
        return call("_e_bool", node)
    if isinstance(want, types.Integer):
        if isinstance(have, types.Float):
            return call(f"_e_{want}_of_float", node)
        node = as_integer(node, value)
        return node if intervals.inside(value.bounds, want) else wrapped(node, want)
    if isinstance(have, types.Float):
        if have.bitwidth < want.bitwidth and want != F64:
            return operation(name(f"_e_one_{want}"), "Mult", node)
        if want == F64:
            return call("_e_scalar_float64", node)
        return operation(name(f"_e_one_{want}"), "Mult", call("_e_float", node))
    if want == F64 or within(value, EXACT):
        return operation(name(f"_e_one_{want}"), "Mult", node)
    return call(f"_e_{want}_of_integer", node)


def as_integer(node: ast.expr, value: Value) -> ast.expr:
    """A boolean as 0 or 1."""
    if not isinstance(value.type, types.Boolean):
        return node
    return ast.IfExp(node, ast.Constant(1), ast.Constant(0))


def within(value: Value, limit: int) -> bool:
    return value.bounds is not None and -limit <= value.bounds[0] and value.bounds[1] <= limit


def store_cast(node: ast.expr, value: Value, want: Any) -> ast.expr:
    """A value on its way into an array of element type `want`."""
    if isinstance(want, types.Float):
        exact = is_integer(value.type) and (want == F64 or within(value, EXACT))
        if exact or isinstance(value.type, types.Float):
            return node  # NumPy rounds once as it stores
    return cast(node, value, want)


# ---- operators ----------------------------------------------------------------------------------


def binary(op: str, left: ast.expr, a: Value, right: ast.expr, b: Value) -> ast.expr:
    """`left op right`; op is the name of a class of `ast`."""
    known = a.type is not None and b.type is not None
    rule = operators.binary(op, a.type, b.type) if known else None
    if rule is None:
        return call(f"_e_any_{op}", left, right)
    if not is_number(rule.result) or isinstance(rule.result, types.Boolean):
        return operation(left, op, right)
    if isinstance(rule.result, types.Integer):
        return integer_binary(op, left, a, right, b, rule)
    if is_integer(rule.operands[0]):  # int / int
        return operation(cast(left, a, F64), op, cast(right, b, F64))
    return float_binary(op, left, a, right, b, rule)


def integer_binary(op, left, a: Value, right, b: Value, rule) -> ast.expr:
    kind = rule.result
    if op in RING or op == "RShift":
        return ring(op, as_integer(left, a), a, as_integer(right, b), b, kind)
    left, right = cast(left, a, kind), cast(right, b, kind)
    if op == "Pow":
        if b.is_constant and 0 <= b.constant <= 64:
            return wrapped(operation(left, op, right), kind)
        return call(f"_e_power_{kind}", left, right)
    return integer_division(op, left, a, right, b, kind)


def ring(op, left, a: Value, right, b: Value, kind) -> ast.expr:
    """Operations whose low bits depend on the operands' low bits only, and shifts."""
    if op in ("LShift", "RShift"):
        if not intervals.inside(a.bounds, kind):
            left, a = wrapped(left, kind), of_type(kind)
        if not (0 <= b.bounds[0] and b.bounds[1] <= 63):
            node = call("_e_shift_left" if op == "LShift" else "_e_shift_right", left, right)
            return wrapped(node, kind) if op == "LShift" else node
    node = operation(left, op, right)
    found = intervals.binary(op, a.bounds, b.bounds)
    if found is not None and intervals.inside(found, kind):
        return node
    fits = intervals.inside(a.bounds, kind) and intervals.inside(b.bounds, kind)
    if kind.signed and fits and op in ("Add", "Sub", "BitAnd", "BitOr", "BitXor"):
        return node
    return wrapped(node, kind)


def integer_division(op, left, a: Value, right, b: Value, kind) -> ast.expr:
    """// and %, where the divisor may be zero and the quotient may not fit."""
    a, b = (v if intervals.inside(v.bounds, kind) else of_type(kind) for v in (a, b))
    low, high = b.bounds
    overflow = kind.signed and a.bounds[0] == kind.minval and low <= -1 <= high and op != "Mod"
    if not overflow and (low > 0 or high < 0):
        return operation(left, op, right)
    if not overflow and simple(right) and calls_nothing(left):
        return ast.IfExp(right, operation(left, op, right), ast.Constant(0))
    return call("_e_floordiv" if op == "FloorDiv" else "_e_modulo", left, right)


def float_binary(op, left, a: Value, right, b: Value, rule) -> ast.expr:
    kind, second = rule.operands
    if op == "Pow" and isinstance(second, types.Integer):
        left = cast(left, a, kind)
        if b.constant == 2 and simple(left):
            return operation(left, "Mult", left)
        return call("_e_float_power", left, cast(right, b, second))
    left, right = float_operands(left, a, right, b, kind)
    if op in ("FloorDiv", "Mod"):
        return call("_e_float_floordiv" if op == "FloorDiv" else "_e_float_modulo",
                    cast(left, a, kind), cast(right, b, kind))  # fmt: skip
    return operation(left, op, right)


def float_operands(left, a: Value, right, b: Value, kind) -> tuple[ast.expr, ast.expr]:
    """Both operands ready for an operation in float type `kind`.

    NumPy casts the other operand itself where one is of the type: a narrower float, or a Python
    int as long as one rounding is the same as two.
    """
    if kind not in (a.type, b.type):
        if is_integer(a.type):
            left, a = cast(left, a, kind), of_type(kind)
        else:
            right, b = cast(right, b, kind), of_type(kind)
        if kind not in (a.type, b.type):
            left, a = cast(left, a, kind), of_type(kind)
    return float_operand(left, a, kind), float_operand(right, b, kind)


def float_operand(node: ast.expr, value: Value, kind: types.Float) -> ast.expr:
    if is_integer(value.type) and not (kind == F64 or within(value, EXACT)):
        return cast(node, value, kind)
    return node


def unary(op: str, node: ast.expr, value: Value) -> ast.expr:
    """`op node`; op is "USub", "UAdd" or "Invert"."""
    rule = operators.unary(op, value.type) if value.type is not None else None
    plain = ast.UnaryOp(getattr(ast, op)(), node)
    if rule is None:
        return call(f"_e_any_{op}", node)
    if isinstance(rule.result, types.Float):
        return plain
    if isinstance(value.type, types.Boolean):
        if op == "Invert":
            return ast.UnaryOp(ast.Not(), node)
        node = as_integer(node, value)
        return node if op == "UAdd" else ast.UnaryOp(ast.USub(), node)
    kind = value.type
    if op == "UAdd":
        return node
    if op == "Invert":
        return plain if kind.signed else operation(node, "BitXor", ast.Constant(kind.maxval))
    # Numba negates in the operand's own type and widens then.
    low, high = value.bounds
    return plain if intervals.inside((-high, -low), kind) else wrapped(plain, kind)


# ---- comparisons --------------------------------------------------------------------------------


def compare(op: ast.cmpop, left: ast.expr, a: Value, right: ast.expr, b: Value) -> ast.expr:
    kind = type(op).__name__
    if kind not in operators.COMPARE:  # is, in
        return ast.Compare(left, [op], [right])
    if not (is_number(a.type) and is_number(b.type)):
        if a.type is None or b.type is None:
            return call(f"_e_any_{kind}", left, right)
        return ast.Compare(left, [op], [right])
    rule = operators.binary(kind, a.type, b.type)
    if rule is not None and isinstance(rule.operands[0], types.Float):
        to = rule.operands[0]
        if not (is_integer(a.type) and is_integer(b.type)):
            left, right = float_operands(left, a, right, b, to)
        elif not (within(a, EXACT) and within(b, EXACT)):
            left, right = cast(left, a, to), cast(right, b, to)
    return ast.Compare(left, [op], [right])


# ---- the smallest and the largest ----------------------------------------------------------------


def smallest_or_largest(function: str, nodes: list[ast.expr], values: list[Value]) -> ast.expr:
    """min or max of numbers, two at a time, each pair in its unified type."""
    node, value = nodes[0], values[0]
    for other, b in zip(nodes[1:], values[1:], strict=True):
        kind = operators.unify(value.type, b.type)
        real = {value.type, b.type} <= {types.float32, F64}
        node, other = cast(node, value, kind), cast(other, b, kind)
        node = pick(function, node, other, real)
        value = of_type(kind)
    return node


def pick(function: str, left: ast.expr, right: ast.expr, real: bool) -> ast.expr:
    """real: float32 and float64 go to fmin and fmax, which let a NaN give way."""
    if not (simple(left) and simple(right)):
        return call(f"_e_{'float' if real else 'first'}_{function}", left, right)
    op = ast.Gt() if function == "max" else ast.Lt()
    kept: ast.expr = left
    if real and not isinstance(left, ast.Constant):
        kept = ast.IfExp(ast.Compare(left, [ast.Eq()], [left]), left, right)
    return ast.IfExp(ast.Compare(right, [op], [left]), right, kept)
