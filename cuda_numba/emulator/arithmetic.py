"""The rewriter's door to arithmetic: an expression as Numba computes it, in plain Python.

    emit(node, found)          an expression whose parts are rewritten, rewritten itself; None for a
                               call of something that is no arithmetic
    cast(node, value, type)    a number as an element of a type
    store_cast(node, value, type)  a number on its way into an array
    literal(number)            a number from outside the kernel
    namespace()                what the names in all these stand for (they start with `_e_`)

`found` is what `infer` gave. The rules are those of `operations`.
"""

import ast
from typing import Any

import numpy as np
from numba.core import types

from . import casts, dynamic, mathematics, operations, operators
from .calls import call_rule, cast_target
from .operations import call, cast, literal, name, store_cast
from .operators import is_integer, is_number
from .source import cuda_path
from .value import Value

COMPUTED = ast.BinOp | ast.UnaryOp | ast.Call  # what may be computed in another type than it has
COMPUTING = ("popc", "clz", "brev", "ffs", "fma", "cbrt")  # of the `cuda` namespace
__all__ = ["COMPUTING", "call", "cast", "emit", "literal", "name", "namespace", "store_cast"]


def namespace() -> dict[str, Any]:
    """What the names in rewritten expressions stand for."""
    return {**casts.NAMES, **mathematics.NAMES, **dynamic.NAMES, **operations.constants()}


def emit(node: ast.expr, found: Any) -> ast.expr | None:
    new = EMITTERS[type(node)](node, found)
    value, computed = found.value(node), found.computed(node)
    if computed == value.type or new is None or not isinstance(node, COMPUTED):
        return new
    return cast(new, Value(computed), value.type)


def emit_constant(node: ast.Constant, found: Any) -> ast.expr:
    return literal(node.value) if isinstance(node.value, float) else node


def emit_name(node: ast.Name, found: Any) -> ast.expr:
    """A variable; cast where assignments of different types meet."""
    value = found.value(node)
    if is_number(value.type) and found.mixed(node):
        return cast(node, Value(None), value.type)
    return node


def emit_binary(node: ast.BinOp, found: Any) -> ast.expr:
    value = found.value(node)
    if value.is_constant and is_number(value.type):
        return literal(value.constant)
    return operations.binary(
        type(node.op).__name__,
        *(node.left, found.value(node.left), node.right, found.value(node.right)),
    )


def emit_unary(node: ast.UnaryOp, found: Any) -> ast.expr:
    value = found.value(node)
    if value.is_constant and is_number(value.type):
        return literal(value.constant)
    if isinstance(node.op, ast.Not):
        return node
    return operations.unary(type(node.op).__name__, node.operand, found.value(node.operand))


def emit_compare(node: ast.Compare, found: Any) -> ast.expr:
    """a < b < c compares a with b and, if that holds, b with c; b is computed once."""
    parts = [node.left, *node.comparators]
    values = [found.value(part) for part in parts]
    pairs = []
    for i, op in enumerate(node.ops):
        left, right = parts[i], parts[i + 1]
        if i + 1 < len(node.ops) and not operations.simple(right):
            kept = f"_e_between_{i}"
            right = ast.NamedExpr(ast.Name(kept, ast.Store()), right)
            parts[i + 1] = name(kept)
        pairs.append(operations.compare(op, left, values[i], right, values[i + 1]))
    return pairs[0] if len(pairs) == 1 else ast.BoolOp(ast.And(), pairs)


def emit_choice(node: ast.IfExp, found: Any) -> ast.expr:
    """The part that is taken, as the type that both have in common."""
    value = found.value(node)
    taken = found.decided(node.test)
    if taken is not None:
        return node.body if taken else node.orelse
    if not is_number(value.type):
        return node
    body, orelse = found.value(node.body), found.value(node.orelse)
    return ast.IfExp(
        node.test, cast(node.body, body, value.type), cast(node.orelse, orelse, value.type)
    )


def emit_either(node: ast.BoolOp, found: Any) -> ast.expr:
    """`and`, `or`: the value of one of the parts, as the type that all have in common."""
    value = found.value(node)
    kinds = {found.value(part).type for part in node.values}
    if len(kinds) > 1 and is_number(value.type) and not found.tested(node):
        return cast(node, Value(None), value.type)
    return node


# ---- calls --------------------------------------------------------------------------------------


def emit_call(node: ast.Call, found: Any) -> ast.expr | None:
    function = found.source.value(node.func)
    values = [found.value(a) for a in node.args]
    value = found.value(node)
    if value.is_constant and is_number(value.type):
        return literal(value.constant)
    path = cuda_path(function)
    if path is not None:
        return emit_cuda(path, node.args, values, value)
    if not callable(function) and not isinstance(function, types.Type):
        return None
    target = cast_target(function)
    if function in (int, float) or target is not None:
        return emit_cast(function, target, node, values, value)
    if function in BUILTINS:
        return BUILTINS[function](function.__name__, node.args, values, value)
    if getattr(function, "__module__", None) == "math":
        return emit_math(function, node.args, values)
    return emit_numpy(function, node, values)


def emit_cast(function: Any, target: Any, node: ast.Call, values: list, value: Value) -> ast.expr:
    if not node.args:
        return literal(casts.to_type(target or {int: types.int64}.get(function, types.float64))(0))
    if target is None:  # int(x), float(x)
        fallback = types.int64 if function is int else types.float64
        target = value.type if is_number(value.type) else fallback
    return cast(node.args[0], values[0], target)


def emit_extreme(function: str, nodes: list, values: list[Value], value: Value) -> ast.expr:
    if len(nodes) > 1 and all(is_number(v.type) for v in values):
        return operations.smallest_or_largest(function, nodes, values)
    return call(f"_e_{function}", *nodes)


def emit_abs(_name: str, nodes: list, values: list[Value], value: Value) -> ast.expr:
    a = values[0]
    node = call("_e_abs", operations.as_integer(nodes[0], a) if is_number(a.type) else nodes[0])
    if isinstance(value.type, types.Integer) and a.bounds[0] == value.type.minval:
        return operations.wrapped(node, value.type)
    return node


def emit_round(_name: str, nodes: list, values: list[Value], value: Value) -> ast.expr:
    rule = call_rule(round, tuple(v.type for v in values)) if is_number(value.type) else None
    if rule is None:
        return call("_e_any_round", *nodes)
    first = cast(nodes[0], values[0], rule.operands[0])
    if len(nodes) == 1:
        return call("_e_round_whole", first)
    return call("_e_round_digits", first, operations.as_integer(nodes[1], values[1]))


def emit_divmod(_name: str, nodes: list, values: list[Value], value: Value) -> ast.expr:
    rule = call_rule(divmod, tuple(v.type for v in values)) if value.type is not None else None
    if rule is None:
        return call("_e_any_divmod", *nodes)
    kind = rule.result.dtype
    cast_nodes = [cast(n, v, kind) for n, v in zip(nodes, values, strict=True)]
    if isinstance(kind, types.Float):
        return call("_e_float_divmod", *cast_nodes)
    return call("_e_integer_divmod", *cast_nodes)


def emit_pow(_name: str, nodes: list, values: list[Value], value: Value) -> ast.expr | None:
    if len(nodes) != 2:
        return None
    return operations.binary("Pow", nodes[0], values[0], nodes[1], values[1])


def emit_range(_name: str, nodes: list, values: list[Value], value: Value) -> ast.expr:
    whole = [operations.as_integer(n, v) for n, v in zip(nodes, values, strict=True)]
    return call("_e_range", *whole)


def emit_plain(function: str, nodes: list, values: list[Value], value: Value) -> ast.expr:
    return call(f"_e_{function}", *nodes)


BUILTINS = {
    min: emit_extreme,
    max: emit_extreme,
    abs: emit_abs,
    round: emit_round,
    divmod: emit_divmod,
    pow: emit_pow,
    range: emit_range,
    len: emit_plain,
    enumerate: emit_plain,
    zip: emit_plain,
}


def emit_math(function: Any, nodes: list, values: list[Value]) -> ast.expr | None:
    """A function of `math` in the type that Numba's CUDA target computes it in."""
    rule = call_rule(function, tuple(v.type for v in values))
    key = function.__name__
    if rule is None:
        return call(f"_e_any_{key}", *nodes) if f"_e_any_{key}" in dynamic.NAMES else None
    nodes = [cast(n, v, k) for n, v, k in zip(nodes, values, rule.operands, strict=True)]
    kind = rule.operands[0]
    if key in operators.PREDICATES or key == "gcd":
        return call(f"_e_math_{key}", *nodes)
    if key == "pow" and isinstance(rule.operands[1], types.Integer):
        return call("_e_float_power", *nodes)
    own = f"_e_math_{key}_{kind}"
    return call(own if own in mathematics.NAMES else f"_e_math_{key}", *nodes)


def emit_numpy(function: Any, node: ast.Call, values: list[Value]) -> ast.expr | None:
    """A ufunc of NumPy on numbers."""
    if not isinstance(function, np.ufunc):
        return None
    rule = call_rule(function, tuple(v.type for v in values))
    nodes = node.args
    if rule is not None:
        nodes = [cast(n, v, k) for n, v, k in zip(nodes, values, rule.operands, strict=True)]
    new = call(f"_e_numpy_{function.__name__}", *nodes)
    if rule is not None and is_integer(rule.result):
        return call("_e_bool" if isinstance(rule.result, types.Boolean) else "_e_int", new)
    return new


def emit_cuda(path: str, nodes: list, values: list[Value], value: Value) -> ast.expr | None:
    """Functions of the `cuda` namespace that only compute."""
    kinds = [v.type for v in values]
    if not nodes or not all(map(is_number, kinds)):
        return None
    if path in ("popc", "clz", "brev", "ffs") and is_integer(kinds[0]):
        width = getattr(kinds[0], "bitwidth", 32)
        if path == "brev":
            width = value.type.bitwidth
        return call(f"_e_{path}_{width}", operations.as_integer(nodes[0], values[0]))
    if path == "fma" and len(nodes) == 3:
        return call(f"_e_fma_{value.type}", *(cast(n, v, value.type)
                    for n, v in zip(nodes, values, strict=True)))  # fmt: skip
    if path == "cbrt":
        return call("_e_cbrt", cast(nodes[0], values[0], value.type))
    return None


EMITTERS: dict[type, Any] = {
    ast.Constant: emit_constant,
    ast.Name: emit_name,
    ast.BinOp: emit_binary,
    ast.UnaryOp: emit_unary,
    ast.Compare: emit_compare,
    ast.BoolOp: emit_either,
    ast.IfExp: emit_choice,
    ast.Call: emit_call,
}
