"""The Numba type, and the bounds, of every expression of a kernel, without compiling it.

    found = infer(tree, source, argument_types, resolve_call)
    found.of(node)        the Numba type of an expression, or None where it is not known
    found.value(node)     the same with bounds, constant and origin (`Value`)
    found.result          the type that the function returns
    found.promoted, found.long   nodes that compute in float64 though nobody asked for it, and
                          64-bit products and divisions in loops
    found.untyped         (line, text) of expressions that could not be typed

The statements are followed in order, each with what is known of the variables there; where paths
meet a variable's types are unified, as Numba does at the joins of its single-assignment form: after
`x = 0` and `x = x + 0.5` the first x is an int64 and the second a float64. A branch on constants is
followed only where it goes, as Numba prunes it. Passes over the whole function are repeated until
nothing changes, and no type that a pass has given is taken back. So it is in Numba, with an effect
that is worth knowing: where `i = uint32(0)` becomes an int64 in a loop by `i = i + 1`, the first
pass types `i >> 2` as uint64, a later one as int64, and it ends as float64, which holds both.

Operators are looked up in Numba's own tables (`operators`), which need no numba.cuda. What cannot
be found is None, never a guess: it is computed by the types that values have when they meet.
"""

import ast
from collections import Counter
from collections.abc import Callable
from typing import Any

from numba.core import types

from . import intervals, operations, operators
from .flow import Definition, Environment, family
from .intervals import Bounds
from .notes import Notes
from .operators import is_integer
from .source import Source
from .statements import Statements
from .value import NOTHING, Value, of_type

PASSES = 40  # far more than any kernel needs: types and bounds settle after three to eight


def infer(
    tree: ast.FunctionDef,
    source: Source,
    arguments: list[Any],
    resolve_call: Callable,
    bounds: dict[str, Bounds] | None = None,
) -> "Types":
    """The types of a function's expressions, for these argument types.

    The tree is annotated in place: one tree for each list of types. resolve_call(function, argument
    types) gives the type that a device function returns. bounds: what is known of integer
    arguments, by name.
    """
    found = Types(source, resolve_call)
    found.run(tree, arguments, bounds or {})
    return found


class Types(Statements, Notes):
    """What is known of one function."""

    def __init__(self, source: Source, resolve_call: Callable):
        self.source, self.resolve_call = source, resolve_call
        self.env: Environment | None = {}
        self.loops: list[tuple[list, list]] = []
        self.back: dict[ast.AST, Environment | None] = {}
        self.assigned: Counter = Counter()
        self.changed = self.widening = False
        self.missing = 0
        self.returns: dict[ast.Return, Value] = {}
        self.result: Any = types.none
        self.promoted: set[ast.AST] = set()
        self.long: set[ast.AST] = set()
        self.untyped: list[tuple[int, str]] = []

    # ---- what the rewriter asks ---------------------------------------------------------------

    def value(self, node: ast.AST) -> Value:
        return getattr(node, "_value", NOTHING)

    def of(self, node: ast.AST) -> Any:
        return self.value(node).type

    def computed(self, node: ast.AST) -> Any:
        """The type that an expression is computed in, before it is cast to its own."""
        return getattr(node, "_computed", self.of(node))

    def give(self, node: ast.AST, kind: Any) -> None:
        """Say what the type of a new node is."""
        node._value = of_type(kind)

    def keep(self, new: ast.AST, old: ast.AST) -> None:
        """A new node stands for an old one."""
        new._value, new._computed = self.value(old), self.computed(old)
        new._tested = self.tested(old)

    def reached(self, statement: ast.stmt) -> bool:
        """Whether a statement can run: it does not stand behind a constant condition."""
        return getattr(statement, "_reached", False)

    def access(self, node: ast.Subscript) -> str | None:
        """What a subscript reads: "element", "view", "tuple", or None where it is not known."""
        base = self.of(node.value)
        if isinstance(base, types.BaseTuple):
            return "tuple"
        if isinstance(base, types.CPointer):
            return "element"
        if not isinstance(base, types.Array):
            return None
        index = self.of(node.slice)
        found = operators.getitem(base, index) if index is not None else None
        if found is None:
            return None
        return "view" if isinstance(found, types.Array) else "element"

    def element_type(self, node: ast.Subscript) -> Any:
        return self.of(node.value).dtype if self.access(node) == "element" else None

    def is_integer_element(self, node: ast.Subscript) -> bool:
        return is_integer(self.element_type(node))

    def is_dtype_call(self, node: ast.Call) -> bool:
        return False

    def variable_cast(self, target: ast.Name, value: ast.expr, new: ast.expr) -> ast.expr:
        """The value that is assigned: cast here if every use of it sees another type."""
        definition = getattr(target, "_definition", None)
        if definition is None:
            return new
        return operations.cast(new, self.value(value), definition.cast or definition.type)

    def returned(self, node: ast.Return, new: ast.expr) -> ast.expr:
        """The value of a return statement in the type that the function returns."""
        return operations.cast(new, self.value(node.value), self.result)

    def mixed(self, node: ast.Name) -> bool:
        """Whether a variable may hold a number of another class than that of its type here."""
        value = self.value(node)
        return any(d.family != family(value.type) for d in value.definitions)

    def tested(self, node: ast.expr) -> bool:
        """Whether only the truth of an expression matters."""
        return getattr(node, "_tested", False)

    # ---- the walk -----------------------------------------------------------------------------

    def run(self, tree: ast.FunctionDef, arguments: list[Any], bounds: dict[str, Bounds]) -> None:
        start: Environment = {}
        for parameter, kind in zip(self.source.parameters, arguments, strict=False):
            value = of_type(kind)
            kind = value.type
            if parameter in bounds and isinstance(kind, types.Integer):
                value = Value(kind, intervals.clip(bounds[parameter], intervals.of_type(kind)))
            definition = Definition(castable=False)
            definition.see(kind)
            start[parameter] = value.replace(definitions=frozenset([definition]))
        self.assigned.update(self.source.parameters)
        self.assigned.update(
            n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
        )
        for turn in range(PASSES):
            self.widening = turn >= 2
            self.changed = False
            self.walk(tree, start)
            if not self.changed:
                break
        # Bounds that kept growing went to the ends of their types. What follows takes back what
        # the loops' own conditions rule out; each pass starts from bounds that hold.
        self.widening = False
        for _ in range(2):
            self.walk(tree, start)
        kinds = [value.type for value in self.returns.values()]
        if kinds:
            self.result = kinds[0]
            for kind in kinds[1:]:
                known = self.result is not None and kind is not None
                self.result = operators.unify(self.result, kind) if known else None
        self.settle(tree)
        self.take_notes(tree)

    def walk(self, tree: ast.FunctionDef, start: Environment) -> None:
        self.env = dict(start)
        self.statements(tree.body)

    def settle(self, tree: ast.FunctionDef) -> None:
        """Decide which assignments cast: those whose every use sees one other type."""
        definitions = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
                value = self.value(node)
                for definition in value.definitions:
                    definition.uses.add(value.type)
                    definitions.add(definition)
        for definition in definitions:
            definition.settle()
