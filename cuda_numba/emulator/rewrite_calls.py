"""Calls, rewritten: of the `cuda` namespace, instructions, device functions, arithmetic."""

import ast
from typing import Any

from . import arithmetic, refusals
from .operations import call, name
from .source import MISSING, cuda_path, is_device_function, is_instruction
from .twins import TWINS
from .value import argument


class CallRewriter:
    """The rewriting of calls."""

    program: Any
    source: Any
    types: Any
    traced: bool

    def ex_Call(self, node: ast.Call) -> ast.expr:
        value = self.source.value(node.func)
        args = [self.expression(a) for a in node.args]
        keywords = [ast.keyword(k.arg, self.expression(k.value)) for k in node.keywords]
        path = cuda_path(value)
        if path is not None:
            return self.twin(node, path, args, keywords)
        if value is MISSING:
            return self.method(node, args, keywords)
        if is_instruction(value):
            return ast.Call(name(self.program.bind_instruction(value, self.origin(node))), args, [])
        if is_device_function(value):
            kinds = [argument(self.types.value(a)) for a in node.args]
            function = self.program.unit(value, kinds)
            if not self.traced:
                return ast.Call(name(function), args, [])
            place = self.program.bind_call(self.origin(node))
            return call("_e_call", ast.Constant(place), name(function), *args)
        new = arithmetic.emit(self.keep(ast.Call(node.func, args, keywords), node), self.types)
        if new is None:
            raise self.fail(node, f"`{ast.unparse(node.func)}` cannot be called in a kernel")
        return new

    def twin(self, node: ast.Call, path: str, args: list, keywords: list) -> ast.expr:
        refused = refusals.refused(node, path, self.types)
        if refused is not None:
            raise self.fail(node, f"cuda.{path}: {refused}")
        if path not in TWINS or path in arithmetic.COMPUTING:
            new = arithmetic.emit(self.keep(ast.Call(node.func, args, keywords), node), self.types)
            if new is None:
                raise self.fail(node, f"cuda.{path}: the emulator does not know this name")
            return new
        if path in ("shared.array", "local.array") and not self.types.is_dtype_call(node):
            args = self.array_arguments(node, args, keywords)
            keywords = []
        return ast.Call(
            name(self.program.bind_twin(TWINS[path], self.origin(node))), args, keywords
        )

    def array_arguments(self, node: ast.Call, args: list, keywords: list) -> list:
        """shape, dtype and alignment of an array, in this order."""
        given = dict(zip(("shape", "dtype", "alignment"), args, strict=False))
        given |= {k.arg: k.value for k in keywords}
        return [given.get(key, ast.Constant(None)) for key in ("shape", "dtype", "alignment")]

    def method(self, node: ast.Call, args: list, keywords: list) -> ast.expr:
        """A call on a value of the kernel: `grid.sync()`."""
        if isinstance(node.func, ast.Attribute):
            base = self.expression(node.func.value)
            if node.func.attr == "sync":
                self.program.switches = self.program.cooperative = True
            return ast.Call(ast.Attribute(base, node.func.attr, ast.Load()), args, keywords)
        raise self.fail(node, f"`{ast.unparse(node.func)}` cannot be called in a kernel")
