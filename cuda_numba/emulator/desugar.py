"""The little that is made simpler in a syntax tree before anything looks at it."""

import ast
import copy
import inspect
from typing import Any

from .errors import UnsupportedSyntax
from .source import Source, is_device_function, python_function


def desugar(tree: ast.FunctionDef, source: Source) -> ast.FunctionDef:
    """`x += v` as `x = x + v`, with an index evaluated once where it could do something; calls of
    device functions with every argument in its place."""
    return ast.fix_missing_locations(Desugar(source).visit(tree))


class Desugar(ast.NodeTransformer):
    def __init__(self, source: Source) -> None:
        self.counter = 0
        self.source = source

    def visit_Call(self, node: ast.Call) -> ast.Call:
        self.generic_visit(node)
        value = self.source.value(node.func)
        if not is_device_function(value):
            return node
        function = python_function(value)
        given = {k.arg: k.value for k in node.keywords}
        try:
            bound = inspect.signature(function).bind(*node.args, **given)
        except TypeError as error:
            raise UnsupportedSyntax(
                f"{self.source.name}, line {node.lineno}: {function.__name__}: {error}"
            ) from None
        bound.apply_defaults()
        node.args = [
            a if isinstance(a, ast.AST) else ast.copy_location(ast.Constant(a), node)
            for a in bound.args
        ]
        node.keywords = []
        return node

    def visit_AugAssign(self, node: ast.AugAssign) -> Any:
        self.generic_visit(node)
        before: list[ast.stmt] = []
        target = node.target
        if isinstance(target, ast.Subscript):
            base = self.once(target.value, before)
            index = self.once(target.slice, before)
            target = ast.Subscript(base, index, ast.Store())
        read = copy.deepcopy(target)
        read.ctx = ast.Load()
        value = ast.BinOp(read, node.op, node.value)
        statements = [*before, ast.Assign([target], value)]
        for statement in statements:
            for part in ast.walk(statement):
                if not hasattr(part, "lineno"):
                    ast.copy_location(part, node)
        return statements

    def once(self, node: ast.expr, before: list[ast.stmt]) -> ast.expr:
        """A node that may be written twice: itself if it holds no call, else a new variable."""
        if not any(isinstance(part, ast.Call) for part in ast.walk(node)):
            return node
        self.counter += 1
        kept = f"index_{self.counter}_"
        before.append(ast.copy_location(ast.Assign([ast.Name(kept, ast.Store())], node), node))
        return ast.copy_location(ast.Name(kept, ast.Load()), node)
