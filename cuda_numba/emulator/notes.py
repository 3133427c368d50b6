"""What a report says of arithmetic: operations counted, float64 nobody wrote, 64-bit products."""

import ast
from typing import Any

import numpy as np
from numba.core import types

from . import operators
from .call_types import origin
from .calls import call_rule
from .casts import to_type
from .operators import is_integer, is_number
from .source import cuda_path
from .value import PROMOTED, Value

UNTYPED = ast.BinOp | ast.UnaryOp | ast.Subscript | ast.Call | ast.Name  # what can be a number
LONG = (types.int64, types.uint64)


def operations(kind: Any, n: int) -> dict[str, int]:
    if isinstance(kind, types.Float):
        return {str(kind): n}
    return {"int": n} if is_integer(kind) else {}


class Notes:
    """The part of `Types` that the report is made of."""

    source: Any
    promoted: set[ast.AST]
    long: set[ast.AST]
    untyped: list[tuple[int, str]]

    def value(self, node: ast.AST) -> Value: ...

    def of(self, node: ast.AST) -> Any: ...

    def computed(self, node: ast.AST) -> Any: ...

    def flops(self, node: ast.AST) -> dict[str, int]:
        """The operations of one node alone, by type ("int" for integers).

        Sums, products, quotients, shifts, bit operations, negations, minima and functions of math
        are one each, a fused multiply-add is two. Casts, comparisons and constants count nothing.
        """
        found = self.value(node)
        if found.is_constant:
            return {}
        if isinstance(node, ast.BinOp):
            return operations(found.type, 1)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Invert):
            return operations(found.type, 1)
        return self.call_flops(node, found) if isinstance(node, ast.Call) else {}

    def call_flops(self, node: ast.Call, found: Value) -> dict[str, int]:
        function = self.source.value(node.func)
        path = cuda_path(function)
        if path is not None:
            return operations(found.type, {"fma": 2, "cbrt": 1}.get(path, 0))
        if function in (min, max):
            return operations(found.type, max(len(node.args) - 1, 1))
        if function in (abs, round, pow) or isinstance(function, np.ufunc):
            return operations(found.type, 1)
        if getattr(function, "__module__", None) == "math":
            rule = call_rule(function, tuple(self.value(a).type for a in node.args))
            return operations(rule.operands[0], 1) if rule is not None else {}
        return {}

    def take_notes(self, tree: ast.FunctionDef) -> None:
        loops = [n for n in ast.walk(tree) if isinstance(n, ast.For | ast.While)]
        inside = {part for loop in loops for s in loop.body for part in ast.walk(s)}
        seen = set()
        for node in ast.walk(tree):
            if not hasattr(node, "_value"):
                continue  # never reached
            if self.is_promotion(node):
                self.promoted.add(node)
            if node in inside and isinstance(node, ast.BinOp) and self.is_long(node):
                self.long.add(node)
            if isinstance(node, UNTYPED) and self.is_untyped(node):
                what = (node.lineno, ast.unparse(node))
                if what not in seen:
                    seen.add(what)
                    self.untyped.append(what)

    def is_untyped(self, node: ast.AST) -> bool:
        """Whether the type is lost here, not in a part or in an assignment before."""
        if self.of(node) is not None:
            return False
        if isinstance(node, ast.Name):
            definitions = self.value(node).definitions
            return bool(definitions) and all(d.type is not None for d in definitions)
        parts = [c for c in ast.iter_child_nodes(node) if isinstance(c, ast.expr)]
        if isinstance(node, ast.Call):
            parts = node.args
        return all(self.of(part) is not None for part in parts)

    def is_promotion(self, node: ast.AST) -> bool:
        """Whether a node computes in float64 because of its operands' types alone."""
        if self.value(node).is_constant:
            return False
        if self.of(node) == types.float64 and is_integer(self.computed(node)):
            return True
        if isinstance(node, ast.BinOp):
            values = [self.value(node.left), self.value(node.right)]
            if None in (values[0].type, values[1].type):
                return False
            rule = operators.binary(type(node.op).__name__, *(v.type for v in values))
            return rule is not None and origin(rule, values) == PROMOTED
        if isinstance(node, ast.Compare):
            parts = [node.left, *node.comparators]
            return any(
                self.is_promoted_comparison(type(op).__name__, self.value(a), self.value(b))
                for op, a, b in zip(node.ops, parts, parts[1:], strict=False)
            )
        if isinstance(node, ast.Call) and cuda_path(self.source.value(node.func)) is None:
            function = self.source.value(node.func)
            computes = getattr(function, "__module__", None) == "math" or function in (min, max)
            return computes and self.value(node).origin == PROMOTED
        return False

    def is_promoted_comparison(self, op: str, a: Value, b: Value) -> bool:
        """A constant that the other type holds exactly costs nothing: the compiler narrows."""
        if op not in operators.COMPARE or not (is_number(a.type) and is_number(b.type)):
            return False
        rule = operators.binary(op, a.type, b.type)
        if rule is None or origin(rule, (a, b)) != PROMOTED:
            return False
        for one, other in ((a, b), (b, a)):
            if one.is_constant and other.type != types.float64:
                with np.errstate(all="ignore"):
                    narrow = to_type(other.type)(one.constant)
                    return float(narrow) != float(one.constant)
        return True

    def is_long(self, node: ast.BinOp) -> bool:
        """A 64-bit product of two variables, or a 64-bit division by anything but a power of 2."""
        left, right = self.value(node.left), self.value(node.right)
        if self.value(node).type not in LONG or not (left.type in LONG or right.type in LONG):
            return False
        if left.is_constant and right.is_constant:
            return False
        if isinstance(node.op, ast.Mult):
            return not (left.is_constant or right.is_constant)
        if not isinstance(node.op, ast.FloorDiv | ast.Mod):
            return False
        n = right.constant
        return not (right.is_constant and n > 0 and n & (n - 1) == 0)
