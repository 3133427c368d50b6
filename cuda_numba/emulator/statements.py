"""Types of statements: what is known of the variables, followed from place to place."""

import ast
from collections import Counter
from collections.abc import Callable
from typing import Any

from numba.core import types

from . import intervals, operators
from .expressions import Expressions
from .flow import Definition, Environment, join_environments, narrow, widen_environment
from .value import NOTHING, Value, of_type


class Statements(Expressions):
    """Follows the statements of a function.

    back: what goes back to the head of each loop; loops: for the loops around a statement, the
    environments of their breaks and continues; returns: the values of the return statements;
    assigned: how often each variable is; changed: whether this pass has found anything new.
    """

    env: Environment | None
    loops: list[tuple[list, list]]
    back: dict[ast.AST, Environment | None]
    assigned: Counter
    changed: bool
    widening: bool
    returns: dict[ast.Return, Value]

    def statements(self, body: list[ast.stmt]) -> None:
        for node in body:
            if self.env is None:
                return
            node._reached = True
            method = getattr(self, f"do_{type(node).__name__}", None)
            if method is not None:
                method(node)

    def do_Assign(self, node: ast.Assign) -> None:
        self.assign_all(node.targets, node.value)

    def do_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.assign_all([node.target], node.value)

    def assign_all(self, targets: list[ast.expr], node: ast.expr) -> None:
        missing = self.missing
        value = self.visit(node)
        for target in targets:
            if value.type is None and self.missing > missing and isinstance(target, ast.Name):
                # It depends on what a later pass will know; until then it is not there.
                self.env.pop(target.id, None)
            else:
                self.assign(target, value)

    def do_Expr(self, node: ast.Expr) -> None:
        self.visit(node.value)

    def do_Assert(self, node: ast.Assert) -> None:
        self.test(node.test)

    def do_Return(self, node: ast.Return) -> None:
        self.returns[node] = self.visit(node.value) if node.value else Value(types.none)
        self.env = None

    def do_Raise(self, node: ast.Raise) -> None:
        self.env = None

    def do_Break(self, node: ast.Break) -> None:
        self.loops[-1][0].append(self.env)
        self.env = None

    def do_Continue(self, node: ast.Continue) -> None:
        self.loops[-1][1].append(self.env)
        self.env = None

    def assign(self, target: ast.expr, value: Value, castable: bool = True) -> None:
        if isinstance(target, ast.Name):
            definition = getattr(target, "_definition", None) or Definition(castable)
            target._definition = definition
            self.changed |= definition.see(value.type)
            if definition.type != value.type:
                value = Value(definition.type, origin=value.origin)
            value = value.replace(definitions=frozenset([definition]))
            self.env[target.id] = target._value = value
        elif isinstance(target, ast.Tuple | ast.List):
            items = value.items
            if items is None and isinstance(value.type, types.BaseTuple):
                items = tuple(map(of_type, value.type))
            if items is None or len(items) != len(target.elts):
                items = (NOTHING,) * len(target.elts)
            for part, item in zip(target.elts, items, strict=True):
                self.assign(part, item, castable=False)
        elif isinstance(target, ast.Subscript):
            self.visit(target)

    # ---- branches and loops -------------------------------------------------------------------

    def test(self, node: ast.expr) -> bool | None:
        """Visit a condition; True or False if it is the same each time."""
        self.visit(node)
        only_tested(node)
        return self.decided(node)

    def decided(self, node: ast.expr) -> bool | None:
        """Whether a condition is known before the kernel runs, where Numba sees that too."""
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            found = self.decided(node.operand)
            return None if found is None else not found
        if isinstance(node, ast.BoolOp):
            parts = [self.decided(part) for part in node.values]
            stop = isinstance(node.op, ast.Or)
            if stop in parts:
                return stop
            return None if None in parts else not stop
        if isinstance(node, ast.Compare) and len(node.ops) == 1:
            return self.decided_comparison(node)
        return bool(self.value(node).constant) if self.is_fixed(node) else None

    def decided_comparison(self, node: ast.Compare) -> bool | None:
        left, right = node.left, node.comparators[0]
        a, b = self.value(left), self.value(right)
        identity = isinstance(node.ops[0], ast.Is | ast.IsNot)
        if identity and types.none in (a.type, b.type) and None not in (a.type, b.type):
            return (a.type == b.type) == isinstance(node.ops[0], ast.Is)
        function = operators.COMPARE.get(type(node.ops[0]).__name__)
        if function is None or not (self.is_fixed(left) and self.is_fixed(right)):
            return None
        return bool(function(a.constant, b.constant))

    def is_fixed(self, node: ast.expr) -> bool:
        """A constant, or a variable that is assigned once, with a constant."""
        if not self.value(node).is_constant:
            return False
        if isinstance(node, ast.UnaryOp):
            return isinstance(node.operand, ast.Constant)
        if isinstance(node, ast.Name):
            return self.assigned[node.id] <= 1
        return isinstance(node, ast.Constant | ast.Attribute)

    def refine(self, test: ast.expr, env: Environment, truth: bool) -> Environment:
        """The environment where a condition is known to be true, or false: narrower bounds."""
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            return self.refine(test.operand, env, not truth)
        if isinstance(test, ast.BoolOp):
            if isinstance(test.op, ast.And) == truth:
                for part in test.values:
                    env = self.refine(part, env, truth)
        elif isinstance(test, ast.Compare) and (truth or len(test.ops) == 1):
            parts = [test.left, *test.comparators]
            for op, left, right in zip(test.ops, parts, parts[1:], strict=False):
                narrow(env, left, type(op).__name__, right, self.value, truth)
        return env

    def do_If(self, node: ast.If) -> None:
        taken = self.test(node.test)
        before, after = self.env, []
        for body, truth in ((node.body, True), (node.orelse, False)):
            if taken is (not truth):
                continue
            self.env = self.refine(node.test, dict(before), truth)
            self.statements(body)
            after.append(self.env)
        self.env = join_environments(after)

    def do_While(self, node: ast.While) -> None:
        def enter() -> bool | None:
            return self.test(node.test)

        self.loop(node, enter, lambda env, truth: self.refine(node.test, env, truth))

    def do_For(self, node: ast.For) -> None:
        self.visit(node.iter)

        def enter() -> None:
            self.visit(node.iter)

        def start(env: Environment, truth: bool) -> Environment:
            if truth:
                self.env = env
                self.assign(node.target, self.iterated(node.iter), castable=False)
            return env

        self.loop(node, enter, start)

    def loop(self, node: Any, enter: Callable, start: Callable) -> None:
        """One turn of a loop. What goes back to its head is met there on the next pass.

        `enter` runs at the head, `start` gives the environment of the body, or behind the loop.
        """
        entry, known = self.env, self.back.get(node)
        self.env = join_environments([entry, known])
        taken = enter()
        at_head, self.env = self.env, None
        self.loops.append(([], []))
        if taken is not False:
            self.env = start(dict(at_head), True)
            self.statements(node.body)
        breaks, continues = self.loops.pop()
        back = join_environments([self.env, *continues])
        if back != known:
            if known is not None and back is not None and self.widening:
                back = widen_environment(known, join_environments([known, back]))
            self.changed |= back != known
            self.back[node] = back
        if isinstance(node, ast.While):  # compiled with its test at the end, too: it ends there
            at_head = join_environments([entry, back])
        out = [] if taken is True else [start(dict(at_head), False)]
        self.env = join_environments([*out, *breaks])
        if node.orelse and self.env is not None:
            self.statements(node.orelse)

    def iterated(self, node: ast.expr) -> Value:
        """The variable of a loop over an expression."""
        value = self.value(node)
        if isinstance(value.type, types.RangeType):
            return self.counted(node, value.type.dtype)
        if isinstance(value.type, types.BaseTuple):
            return self.part(value, Value(types.intp))
        if isinstance(value.type, types.Array):
            return of_type(operators.getitem(value.type, types.intp))
        if isinstance(value.type, types.IteratorType | types.IterableType):
            iterator = value.type.iterator_type
            return of_type(iterator.yield_type)
        return NOTHING

    def counted(self, node: ast.expr, kind: types.Type) -> Value:
        """The variable of a range: between its ends, if they are known."""
        if not isinstance(node, ast.Call):
            return Value(kind)
        parts = [self.value(a).bounds for a in node.args]
        if any(p is None for p in parts) or not parts:
            return Value(kind)
        start, stop = ((0, 0), parts[0]) if len(parts) == 1 else parts[:2]
        step = parts[2] if len(parts) == 3 else (1, 1)
        if step[0] > 0:
            found = start[0], max(stop[1] - 1, start[0])
        elif step[1] < 0:
            found = min(stop[0] + 1, start[1]), start[1]
        else:
            found = intervals.hull(start, stop)
        return Value(kind, intervals.clip(found, intervals.of_type(kind)))


def only_tested(node: ast.expr) -> None:
    """Mark what only the truth of matters: a condition, and the parts that it is made of."""
    node._tested = True
    if isinstance(node, ast.BoolOp):
        for part in node.values:
            only_tested(part)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        only_tested(node.operand)
