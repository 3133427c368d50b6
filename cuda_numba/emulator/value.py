"""What is known of an expression before the kernel runs: type, bounds, perhaps the value."""

from typing import Any

import numpy as np
from numba.core import types
from numba.core.typing.typeof import typeof

from . import intervals
from .intervals import EXTENT, Bounds
from .operators import is_integer, unify


class _Unknown:
    """The value of an expression that is no constant."""

    def __repr__(self) -> str:
        return "UNKNOWN"


UNKNOWN = _Unknown()

# Where a float64 comes from: a cast or a float64 array that somebody wrote; a literal or a number
# that was handed over, which carries no intent; or an operation on smaller types, the promotion
# that the report points at.
WRITTEN, PLAIN, PROMOTED = "written", "plain", "promoted"


class Value:
    """What is known of an expression.

    Attributes: type, a Numba type or None where it is not known; bounds, (lowest, highest) of an
    integer or boolean; constant, its value if it has always the same; definitions, the assignments
    that a variable's value may come from; items, the Values of a tuple's parts; origin, where a
    float64 comes from; literal, the integer where Numba knows it too and types it as a literal:
    written out, or the name of an int outside the kernel, but nothing that is computed of those.
    """

    __slots__ = ("bounds", "constant", "definitions", "items", "literal", "origin", "type")

    def __init__(
        self,
        type: types.Type | None,
        bounds: Bounds | None = None,
        constant: Any = UNKNOWN,
        definitions: frozenset = frozenset(),
        items: "tuple[Value, ...] | None" = None,
        origin: str = PLAIN,
        literal: int | None = None,
    ):
        self.type = type
        self.bounds = intervals.of_type(type) if bounds is None else bounds
        self.constant, self.definitions = constant, definitions
        self.items, self.origin, self.literal = items, origin, literal

    def __eq__(self, other: object) -> bool:
        return self is other or (
            isinstance(other, Value)
            and (self.type is other.type or self.type == other.type)
            and self.bounds == other.bounds
            and same(self.constant, other.constant)
            and self.definitions == other.definitions
            and self.items == other.items
            and self.origin == other.origin
            and self.literal == other.literal
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Value({self.type}, {self.bounds}, {self.constant})"

    @property
    def is_constant(self) -> bool:
        return self.constant is not UNKNOWN

    def replace(self, **changes: Any) -> "Value":
        fields = {name: getattr(self, name) for name in Value.__slots__}
        return Value(**{**fields, **changes})


NOTHING = Value(None)
INDEX = Value(types.intp, (0, EXTENT))
SIZE = Value(types.intp, (0, 1 << 40))  # an emulated array has at most so many elements in all


def same(a: Any, b: Any) -> bool:
    """Whether two constants are one: equal, of one class, with one sign."""
    return a is b or (type(a) is type(b) and repr(a) == repr(b))


def join(a: Value, b: Value) -> Value:
    """What is known of a variable that may be either: the type unified as Numba does."""
    if a is b:
        return a
    if a.type is None or b.type is None:
        return Value(None, definitions=a.definitions | b.definitions)
    kind = a.type if a.type is b.type else unify(a.type, b.type)
    items = None
    if a.items and b.items and len(a.items) == len(b.items):
        items = tuple(map(join, a.items, b.items))
    constant = UNKNOWN
    if a.type is b.type and a.is_constant and b.is_constant and same(a.constant, b.constant):
        constant = a.constant
    return Value(
        kind,
        intervals.hull(a.bounds, b.bounds) if is_integer(kind) else None,
        constant,
        a.definitions | b.definitions,
        items,
        max(a.origin, b.origin),  # by the alphabet: written over promoted over plain
        a.literal if a.literal == b.literal else None,
    )


def widen(old: Value, new: Value) -> Value:
    """A bound that grew once more in a loop goes to the end of its type."""
    if old.bounds is None or new.bounds is None or not is_integer(new.type):
        return new
    limits = intervals.of_type(new.type)
    low = limits[0] if new.bounds[0] < old.bounds[0] else new.bounds[0]
    high = limits[1] if new.bounds[1] > old.bounds[1] else new.bounds[1]
    return new.replace(bounds=(low, high))


def of_constant(constant: Any) -> Value:
    """A number of the source, or of the module or closure around the kernel, as Numba types it."""
    if isinstance(constant, bool | np.bool_):
        return Value(types.boolean, (int(constant),) * 2, bool(constant))
    if isinstance(constant, np.integer):
        number = int(constant)
        return Value(typeof(constant), (number, number), number)
    if isinstance(constant, int):
        kind = types.int64 if -(1 << 63) <= constant < 1 << 63 else types.uint64
        literal = constant if type(constant) is int else None  # the members of an IntEnum are none
        return Value(kind, (constant, constant), constant, literal=literal)
    if isinstance(constant, float) and not isinstance(constant, np.floating):
        return Value(types.float64, constant=np.float64(constant))
    if isinstance(constant, np.floating):
        return Value(typeof(constant), constant=constant, origin=WRITTEN)
    if isinstance(constant, tuple):
        items = tuple(map(of_constant, constant))
        if any(i.type is None for i in items):
            return NOTHING
        return Value(types.Tuple([i.type for i in items]), items=items)
    if isinstance(constant, np.ndarray):
        return of_array(typeof(constant))
    if constant is None:
        return Value(types.none, constant=None)
    if constant is Ellipsis:
        return Value(types.ellipsis)
    return NOTHING


def of_array(kind: types.Type) -> Value:
    return Value(kind, origin=WRITTEN)


def of_type(kind: types.Type | None) -> Value:
    """A value of which only the type is known."""
    if isinstance(kind, types.BaseTuple):
        return Value(kind, items=tuple(map(of_type, kind)))
    if isinstance(kind, types.IntegerLiteral):
        n = kind.literal_value
        return Value(types.unliteral(kind), (n, n), literal=n)
    return Value(kind)


def argument(value: Value) -> types.Type | None:
    """The type that a device function is called with: a literal stays one."""
    return value.type if value.literal is None else types.literal(value.literal)
