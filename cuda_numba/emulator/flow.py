"""What is known of the variables at a place in a kernel, and how it changes where paths meet."""

import ast
from collections.abc import Callable
from typing import Any

from numba.core import types

from . import intervals
from .operators import is_number, unify
from .value import Value, join, widen

Environment = dict[str, Value]

SWAPPED = {"Lt": "Gt", "LtE": "GtE", "Gt": "Lt", "GtE": "LtE", "Eq": "Eq", "NotEq": "NotEq"}
NEGATED = {"Lt": "GtE", "LtE": "Gt", "Gt": "LtE", "GtE": "Lt", "Eq": "NotEq", "NotEq": "Eq"}


class Definition:
    """One assignment to a variable.

    type: of the value that is assigned; uses: the types that its uses see; cast: the type that the
    value is cast to where it is assigned, because all uses see that one; castable: whether it can
    be cast there.
    """

    __slots__ = ("cast", "castable", "type", "uses")

    def __init__(self, castable: bool):
        self.castable, self.type, self.cast = castable, None, None
        self.uses: set[Any] = set()

    def see(self, kind: Any) -> bool:
        """One more type of the value; whether it changes the variable's, which only grows."""
        before = self.type
        if before != kind:
            both = is_number(before) and is_number(kind)
            self.type = unify(before, kind) if both else kind
        return self.type != before

    def settle(self) -> None:
        (one, *more) = self.uses
        if self.castable and not more and one != self.type and is_number(one):
            if is_number(self.type):
                self.cast = one

    @property
    def family(self) -> Any:
        """The class of the number that the variable holds after this assignment."""
        return family(self.cast or self.type)


def family(kind: Any) -> Any:
    """What class of Python number a type's values are: all integers are one."""
    if isinstance(kind, types.Integer):
        return int
    return kind if is_number(kind) else None


def join_environments(environments: list[Environment | None]) -> Environment | None:
    """What is known where paths meet; None for a path that cannot be taken.

    A variable that one path has not assigned counts as the others have it.
    """
    found = None
    for env in environments:
        if env is None or env is found:
            continue
        if found is None:
            found = dict(env)
            continue
        for name, value in env.items():
            known = found.get(name)
            found[name] = value if known is None else join(known, value)
    return found


def widen_environment(old: Environment, new: Environment) -> Environment:
    return {n: widen(old[n], v) if n in old and old[n] is not v else v for n, v in new.items()}


def narrow(
    env: Environment,
    left: ast.expr,
    op: str,
    right: ast.expr,
    value: Callable[[ast.AST], Value],
    truth: bool,
) -> None:
    """Narrow the variables of a comparison that is known to be true, or false."""
    if op not in SWAPPED:
        return
    op = op if truth else NEGATED[op]
    for one, operator, other in ((left, op, right), (right, SWAPPED[op], left)):
        if not isinstance(one, ast.Name) or one.id not in env:
            continue
        known, limit = env[one.id], value(other).bounds
        if known.bounds is None or limit is None or not isinstance(known.type, types.Integer):
            continue
        bounds = known.bounds
        if operator in ("Lt", "LtE", "Eq"):
            bounds = intervals.below(bounds, limit[1] - (operator == "Lt"))
        if operator in ("Gt", "GtE", "Eq"):
            bounds = intervals.above(bounds, limit[0] + (operator == "Gt"))
        if bounds != known.bounds:
            env[one.id] = known.replace(bounds=bounds)
