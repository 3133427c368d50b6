"""Expressions, rewritten: names, operators, and elements of arrays."""

import ast
from enum import EnumType
from types import ModuleType
from typing import Any

from numba.core import types

from . import arithmetic
from .operations import call, name
from .source import MISSING, CudaName, cuda_path

DIMS = {"threadIdx", "blockIdx", "blockDim", "gridDim"}


class ExpressionRewriter:
    """Methods `ex_…`, one for each kind of expression; each gives an expression."""

    program: Any
    source: Any
    types: Any
    traced: bool
    direct: bool

    def expression(self, node: ast.expr) -> ast.expr:
        method = getattr(self, f"ex_{type(node).__name__}", None)
        if method is None:
            raise self.fail(node, f"`{ast.unparse(node)}` cannot be used in a kernel")
        return self.keep(method(node), node)

    def ex_Name(self, node: ast.Name) -> ast.expr:
        if node.id.startswith("_e_"):
            raise self.fail(node, f"{node.id}: names that start with _e_ are the emulator's")
        if node.id in self.source.locals:
            return arithmetic.emit(node, self.types)
        value = self.source.value(node)
        if value is MISSING:
            raise self.fail(node, f"name {node.id!r} is not defined")
        return self.global_value(node, value)

    def global_value(self, node: ast.expr, value: Any) -> ast.expr:
        """A constant from outside the kernel: numbers as Numba types them, arrays as they are."""
        literal = arithmetic.literal(value)
        if literal is not None:
            return literal
        if isinstance(value, dict | list | set):
            kind = type(value).__name__
            raise self.fail(
                node, f"`{ast.unparse(node)}` is a {kind}; a tuple or array can be used"
            )
        return name(self.program.bind_value(value))

    def ex_Constant(self, node: ast.Constant) -> ast.expr:
        return arithmetic.emit(node, self.types)

    def ex_Tuple(self, node: ast.Tuple) -> ast.expr:
        return ast.Tuple([self.expression(e) for e in node.elts], ast.Load())

    ex_List = ex_Tuple

    def ex_BinOp(self, node: ast.BinOp) -> ast.expr:
        new = ast.BinOp(self.expression(node.left), node.op, self.expression(node.right))
        return arithmetic.emit(self.keep(new, node), self.types)

    def ex_UnaryOp(self, node: ast.UnaryOp) -> ast.expr:
        new = ast.UnaryOp(node.op, self.expression(node.operand))
        return arithmetic.emit(self.keep(new, node), self.types)

    def ex_Compare(self, node: ast.Compare) -> ast.expr:
        new = ast.Compare(
            self.expression(node.left), node.ops, [self.expression(c) for c in node.comparators]
        )
        return arithmetic.emit(self.keep(new, node), self.types)

    def ex_BoolOp(self, node: ast.BoolOp) -> ast.expr:
        new = ast.BoolOp(node.op, [self.expression(v) for v in node.values])
        return arithmetic.emit(self.keep(new, node), self.types)

    def ex_IfExp(self, node: ast.IfExp) -> ast.expr:
        new = ast.IfExp(
            self.branch(node, node.test), self.expression(node.body), self.expression(node.orelse)
        )
        return arithmetic.emit(self.keep(new, node), self.types)

    def ex_Attribute(self, node: ast.Attribute) -> ast.expr:
        value = self.source.value(node)
        if isinstance(value, CudaName):
            return self.cuda_attribute(node, str(value))
        if value is not MISSING:
            owner = self.source.value(node.value)
            if not isinstance(owner, ModuleType | tuple | EnumType):
                what = f"`{ast.unparse(node.value)}` is neither a module nor a named tuple"
                raise self.fail(node, f"{what}: give `{ast.unparse(node)}` a name of its own")
            return self.global_value(node, value)
        base = cuda_path(self.source.value(node.value))
        if base in DIMS:
            return self.cuda_attribute(node, f"{base}.{node.attr}")
        return ast.Attribute(self.expression(node.value), node.attr, ast.Load())

    def cuda_attribute(self, node: ast.expr, path: str) -> ast.expr:
        base, _, axis = path.rpartition(".")
        text = {
            "threadIdx": f"_e_m.t.{axis}",
            "blockIdx": f"_e_m.t.block.{axis}",
            "blockDim": f"_e_block_{axis}",
            "gridDim": f"_e_grid_{axis}",
        }.get(base)
        if path == "warpsize":
            text = "32"
        elif path == "laneid":
            text = "_e_m.t.lane"
        elif path in DIMS:
            text = f"_e_{path}"
        if text is None:
            raise self.fail(node, f"cuda.{path}: the emulator does not know this name")
        return ast.parse(text, mode="eval").body

    # ---- memory -------------------------------------------------------------------------------

    def ex_Subscript(self, node: ast.Subscript) -> ast.expr:
        base, index = self.expression(node.value), self.index(node.slice)
        kind = self.types.access(node)  # "element", "view", "tuple" or None where not inferred
        if kind == "tuple":
            return ast.Subscript(base, index, ast.Load())
        if self.direct:
            base = ast.Attribute(base, "a", ast.Load())  # of a View
        elif self.traced:
            return self.traced_load(node, base, index, kind)
        if kind == "view":
            return ast.Subscript(base, index, ast.Load())
        if kind != "element":
            return call("_e_item", base, index)
        if self.types.is_integer_element(node):
            items = index.elts if isinstance(index, ast.Tuple) else [index]
            return ast.Call(ast.Attribute(base, "item", ast.Load()), items, [])
        return ast.Subscript(base, index, ast.Load())

    def traced_load(self, node: ast.Subscript, base: ast.expr, index: ast.expr, kind: Any):
        place = ast.Constant(self.program.bind_place(self.origin(node), "load"))
        items = self.quick_index(node) if kind == "element" else 0
        if items == 2:
            return call("_e_get2", place, base, *index.elts)
        return call("_e_get1" if items == 1 else "_e_load", place, base, index)

    def traced_store(self, target, value, base, index, new, dtype) -> ast.expr:
        place = ast.Constant(self.program.bind_place(self.origin(target), "store"))
        if dtype is not None:
            new = arithmetic.store_cast(new, self.types.value(value), dtype)
            items = self.quick_index(target)
            if items == 2:
                return call("_e_set2", place, base, *index.elts, new)
            if items == 1:
                return call("_e_set1", place, base, index, new)
        return call("_e_store", place, base, index, new)

    def quick_index(self, node: ast.Subscript) -> int:
        """1 or 2 for an index of so many integers, else 0."""
        items = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        if all(isinstance(self.types.of(i), types.Integer) for i in items) and len(items) <= 2:
            return len(items)
        return 0

    def index(self, node: ast.expr) -> ast.expr:
        if isinstance(node, ast.Slice):
            parts = [None if p is None else self.expression(p)
                     for p in (node.lower, node.upper, node.step)]  # fmt: skip
            return ast.copy_location(ast.Slice(*parts), node)
        if isinstance(node, ast.Tuple):
            return ast.copy_location(
                ast.Tuple([self.index(e) for e in node.elts], ast.Load()), node
            )
        return self.expression(node)

    def store(self, target: ast.Subscript, value: ast.expr, new: ast.expr) -> ast.stmt:
        base, index = self.expression(target.value), self.index(target.slice)
        dtype = self.types.element_type(target)
        if self.traced:
            return ast.Expr(self.traced_store(target, value, base, index, new, dtype))
        if dtype is None:
            return ast.Expr(call("_e_assign", base, index, new))
        cast = arithmetic.store_cast(new, self.types.value(value), dtype)
        return ast.Assign([ast.Subscript(base, index, ast.Store())], cast)
