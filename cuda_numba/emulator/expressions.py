"""Types of expressions: one method for each kind of node of the syntax tree."""

import ast
from typing import Any

from numba.core import types

from . import cuda_types, intervals, operators
from .call_types import CallTypes, origin
from .dynamic import evaluate
from .operators import is_integer, is_number
from .source import MISSING, CudaName, cuda_path
from .value import (
    INDEX,
    NOTHING,
    PLAIN,
    PROMOTED,
    SIZE,
    UNKNOWN,
    WRITTEN,
    Value,
    join,
    of_array,
    of_constant,
    of_type,
)


class Expressions(CallTypes):
    """Visits expressions in the environment `env`: variable → Value."""

    source: Any
    resolve_call: Any
    env: dict[str, Value]
    changed: bool
    missing: int  # how often a variable was read that no path has assigned so far

    def visit(self, node: ast.expr | None) -> Value:
        if node is None:
            return NOTHING
        method = getattr(self, f"on_{type(node).__name__}", None)
        if method is not None:
            found = method(node)
        else:
            found = NOTHING
            for child in ast.iter_child_nodes(node):
                if isinstance(child, ast.expr):
                    self.visit(child)
        if not isinstance(node, ast.Name | ast.Constant):
            found = self.remembered(node, found)
        node._value = found
        return found

    def remembered(self, node: ast.expr, found: Value) -> Value:
        """What is found now, unified with the type that was found on earlier passes.

        Numba never takes back a type that it has given to an intermediate result. Where an operand
        was first unsigned and turned out to be signed, the result stays what holds both: float64.
        """
        node._computed = found.type
        before = getattr(node, "_type", None)
        if before == found.type:
            return found
        kind = found.type
        if is_number(before) and is_number(kind):
            kind = operators.unify(before, kind)
        node._type = kind
        self.changed |= kind != before
        if kind == found.type:
            return found
        return Value(kind, origin=PROMOTED if kind == types.float64 else PLAIN)

    def on_Constant(self, node: ast.Constant) -> Value:
        return of_constant(node.value)

    def on_Name(self, node: ast.Name) -> Value:
        known = self.env.get(node.id)
        if known is not None:
            return known
        if node.id in self.source.locals:
            self.missing += 1
            return NOTHING
        return self.outside(self.source.value(node))

    def outside(self, value: Any) -> Value:
        """A value from outside the kernel."""
        if isinstance(value, CudaName):
            return cuda_types.attribute(str(value))
        path = cuda_path(value)
        if path is not None:
            return cuda_types.attribute(path)
        return NOTHING if value is MISSING else of_constant(value)

    def on_Tuple(self, node: ast.Tuple | ast.List) -> Value:
        items = tuple(self.visit(e) for e in node.elts)
        if any(i.type is None for i in items):
            return NOTHING
        return Value(types.Tuple([i.type for i in items]), items=items)

    on_List = on_Tuple

    def on_Slice(self, node: ast.Slice) -> Value:
        for part in (node.lower, node.upper, node.step):
            self.visit(part)
        return Value(types.slice2_type if node.step is None else types.slice3_type)

    # ---- operators ----------------------------------------------------------------------------

    def on_BinOp(self, node: ast.BinOp) -> Value:
        left, right = self.visit(node.left), self.visit(node.right)
        if left.type is None or right.type is None:
            return NOTHING
        op = type(node.op).__name__
        rule = operators.binary(op, left.type, right.type)
        if rule is None:
            return NOTHING
        constant = UNKNOWN
        if left.is_constant and right.is_constant and is_number(rule.result):
            constant = evaluate(op, rule, left, right)
        bounds = None
        if isinstance(rule.result, types.Integer):
            bounds = self.integer_bounds(op, left, right, rule)
        elif isinstance(rule.result, types.Boolean) and is_integer(left.type):
            bounds = (0, 1)
        literal = None
        if constant is not UNKNOWN and is_integer(rule.result):
            bounds = (int(constant), int(constant))
            literal = int(constant) if is_folded(node) else None
        return Value(
            rule.result, bounds, constant, origin=origin(rule, (left, right)), literal=literal
        )

    def integer_bounds(self, op: str, left: Value, right: Value, rule: Any) -> Any:
        limits = intervals.of_type(rule.result)
        found = intervals.binary(op, left.bounds, right.bounds)
        if found is None:
            return limits
        if intervals.inside(found, rule.result):
            return found
        # Numba leaves signed overflow undefined; an unsigned result wraps, all is possible.
        return intervals.clip(found, limits) if rule.result.signed else limits

    def on_UnaryOp(self, node: ast.UnaryOp) -> Value:
        operand = self.visit(node.operand)
        if isinstance(node.op, ast.Not):
            return Value(types.boolean)
        rule = operators.unary(type(node.op).__name__, operand.type) if operand.type else None
        if rule is None:
            return NOTHING
        if operand.is_constant and isinstance(node.op, ast.USub | ast.UAdd):
            constant = operand.constant if isinstance(node.op, ast.UAdd) else -operand.constant
            if is_integer(rule.result):
                constant = int(constant)
                if rule.result.minval <= constant <= rule.result.maxval:
                    literal = constant if is_folded(node) else None
                    return Value(rule.result, (constant, constant), constant, literal=literal)
            else:
                return Value(rule.result, constant=constant, origin=operand.origin)
        bounds = None
        if isinstance(node.op, ast.USub) and operand.bounds and is_integer(rule.result):
            negated = (-operand.bounds[1], -operand.bounds[0])
            bounds = negated if intervals.inside(negated, operand.type) else None
        elif isinstance(node.op, ast.UAdd):
            bounds = operand.bounds
        elif isinstance(node.op, ast.Invert) and isinstance(rule.result, types.Integer):
            a = operand.bounds
            bounds = (~a[1], ~a[0]) if rule.result.signed and a else None
        return Value(rule.result, bounds, origin=origin(rule, (operand,)))

    def on_BoolOp(self, node: ast.BoolOp) -> Value:
        found = self.visit(node.values[0])
        for part in node.values[1:]:
            kept = self.env
            self.env = self.refine(node.values[0], dict(kept), isinstance(node.op, ast.And))
            found = join(found, self.visit(part))
            self.env = kept
        return found.replace(definitions=frozenset())

    def on_Compare(self, node: ast.Compare) -> Value:
        for part in (node.left, *node.comparators):
            self.visit(part)
        return Value(types.boolean)

    def on_IfExp(self, node: ast.IfExp) -> Value:
        taken = self.test(node.test)
        found = []
        for part, truth in ((node.body, True), (node.orelse, False)):
            if taken is (not truth):
                continue
            kept = self.env
            self.env = self.refine(node.test, dict(kept), truth)
            found.append(self.visit(part))
            self.env = kept
        value = found[0] if len(found) == 1 else join(*found)
        return value.replace(definitions=frozenset())

    # ---- parts --------------------------------------------------------------------------------

    def on_Attribute(self, node: ast.Attribute) -> Value:
        value = self.source.value(node)
        if value is not MISSING:
            return self.outside(value).replace(literal=None)
        base = self.visit(node.value)
        if base.type == cuda_types.DIM3 and node.attr in ("x", "y", "z"):
            return base.items["xyz".index(node.attr)]
        if not isinstance(base.type, types.Array):
            return NOTHING
        ndim = base.type.ndim
        if node.attr == "shape":
            return Value(types.UniTuple(types.intp, ndim), items=(INDEX,) * ndim)
        if node.attr == "strides":
            return of_type(types.UniTuple(types.intp, ndim))
        if node.attr == "ndim":
            return of_constant(ndim)
        if node.attr in ("size", "itemsize"):
            return SIZE
        if node.attr == "nbytes":
            return Value(types.intp)
        found = operators.getattr_type(base.type, node.attr)
        return of_array(found) if isinstance(found, types.Array) else Value(found)

    def on_Subscript(self, node: ast.Subscript) -> Value:
        base, index = self.visit(node.value), self.visit(node.slice)
        if isinstance(base.type, types.BaseTuple):
            return self.part(base, index)
        if isinstance(base.type, types.CPointer):
            return cuda_types.element(base.type)
        if not isinstance(base.type, types.Array) or index.type is None:
            return NOTHING
        found = operators.getitem(base.type, index.type)
        if isinstance(found, types.Array):
            return of_array(found)
        return Value(found, origin=WRITTEN)

    def part(self, base: Value, index: Value) -> Value:
        """An element of a tuple; of a mixed one only where the index is a constant."""
        n = len(base.type)
        if index.is_constant and isinstance(index.constant, int) and -n <= index.constant < n:
            return base.items[index.constant] if base.items else of_type(base.type[index.constant])
        if isinstance(base.type, types.UniTuple) and n:
            items = base.items or tuple(map(of_type, base.type))
            found = items[0]
            for item in items[1:]:
                found = join(found, item)
            return found
        return NOTHING


def is_folded(node: ast.expr) -> bool:
    """Whether Python computes an expression as it compiles it: all of it is written out."""
    if isinstance(node, ast.BinOp):
        return is_folded(node.left) and is_folded(node.right)
    if isinstance(node, ast.UnaryOp):
        return is_folded(node.operand)
    return isinstance(node, ast.Constant)
