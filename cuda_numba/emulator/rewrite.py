"""A kernel's function, rewritten into Python that the emulator can run.

The copy has the same statements on the same lines. What changes:

- names of the `cuda` namespace, `ptx` instructions and device functions become calls into the
  emulator;
- arithmetic follows Numba's types, not Python's (`arithmetic`);
- elements are read and written through the types of their arrays; a traced copy records each;
- a traced copy counts the pieces of straight-line code, the branches and the loop iterations.

Injected names start with `_e_`, which a kernel's own names may not.
"""

import ast
import copy
from typing import Any

from .desugar import desugar
from .errors import UnsupportedSyntax
from .infer import infer
from .rewrite_calls import CallRewriter
from .rewrite_expressions import ExpressionRewriter
from .rewrite_statements import StatementRewriter
from .source import Source


class Rewriter(StatementRewriter, ExpressionRewriter, CallRewriter):
    """Rewrites one function for given argument types, into a program's table of bindings."""

    def __init__(self, program: Any, source: Source, argument_types: list[Any], unit: str):
        self.program, self.source, self.unit = program, source, unit
        self.traced = program.traced
        self.tree = desugar(copy.deepcopy(source.tree), source)
        self.types = infer(self.tree, source, argument_types, program.resolve_call)
        self.counter = 0
        self.direct = False  # elements are read without hooks: see batch

    # ---- helpers ------------------------------------------------------------------------------

    def fail(self, node: ast.AST, message: str) -> UnsupportedSyntax:
        return UnsupportedSyntax(f"{self.source.name}, line {node.lineno}: {message}")

    def temporary(self) -> str:
        self.counter += 1
        return f"_e_{self.counter}"

    def origin(self, node: ast.AST) -> tuple:
        """Where a site is: line, column, text, function, file."""
        text = ast.unparse(node) if not isinstance(node, ast.stmt) else ""
        return node.lineno, node.col_offset, text, self.source.name, self.source.filename

    def keep(self, new: ast.expr, old: ast.expr) -> ast.expr:
        """Give a rewritten expression the place and the type of the one that it replaces."""
        self.types.keep(new, old)
        return ast.fix_missing_locations(ast.copy_location(new, old))

    def function(self) -> ast.FunctionDef:
        tree = self.tree
        body = self.block(tree.body)
        new = ast.FunctionDef(self.unit, tree.args, body, [], None)
        new.args.defaults = []
        for a in new.args.args:
            a.annotation = None
        if hasattr(ast, "TypeVar"):  # Python 3.12 has type parameters
            new.type_params = []
        return ast.fix_missing_locations(ast.copy_location(new, tree))
