"""Types of calls: casts, builtins, functions of math and NumPy, the `cuda` namespace, `ptx`."""

import ast
from collections.abc import Callable
from typing import Any

from numba.core import types

from . import cuda_types, intervals, operators
from .calls import call_rule, cast_target
from .dynamic import evaluate
from .operators import is_integer, is_number
from .source import MISSING, cuda_path, is_device_function, is_instruction
from .value import (
    INDEX,
    NOTHING,
    PLAIN,
    PROMOTED,
    UNKNOWN,
    WRITTEN,
    Value,
    argument,
    join,
    of_constant,
    of_type,
)


class CallTypes:
    """Visits calls."""

    source: Any
    resolve_call: Any
    visit: Callable[[ast.expr | None], Value]

    def on_Call(self, node: ast.Call) -> Value:
        arguments = [self.visit(a) for a in node.args]
        keywords = {k.arg: self.visit(k.value) for k in node.keywords}
        function = self.source.value(node.func)
        path = cuda_path(function)
        if path is not None:
            return cuda_types.call(path, arguments, keywords, self.dtype_argument(node))
        if function is MISSING:
            return self.method_call(node)
        if is_instruction(function):
            return cuda_types.instruction(function, arguments)
        if is_device_function(function):
            if any(a.type is None for a in arguments):
                return NOTHING
            return of_type(self.resolve_call(function, list(map(argument, arguments))))
        if any(a.type is None for a in arguments):
            return NOTHING
        return self.function_call(function, arguments)

    def dtype_argument(self, node: ast.Call) -> Any:
        given = node.args[1] if len(node.args) > 1 else None
        for keyword in node.keywords:
            given = keyword.value if keyword.arg == "dtype" else given
        if given is None:
            return None
        if isinstance(given, ast.Constant):
            return given.value
        value = self.source.value(given)
        return given._value.type if value is MISSING else value

    def method_call(self, node: ast.Call) -> Value:
        if not isinstance(node.func, ast.Attribute):
            return NOTHING
        base = self.visit(node.func.value)
        if base.type == cuda_types.GRID_GROUP and node.func.attr == "sync":
            return Value(types.int32)
        return NOTHING

    def function_call(self, function: Any, arguments: list[Value]) -> Value:
        """Casts, builtins, functions of math and NumPy."""
        kinds = tuple(a.type for a in arguments)
        numbers = all(map(is_number, kinds))
        target = cast_target(function)
        if target is not None and len(arguments) == 1 and numbers:
            return cast(arguments[0], target)
        if function in (min, max):
            return smallest_or_largest(function, arguments)
        if function is len and len(arguments) == 1:
            known = isinstance(kinds[0], types.BaseTuple)
            return of_constant(len(kinds[0])).replace(literal=None) if known else INDEX
        rule = call_rule(function, kinds)
        if rule is None:
            return NOTHING
        if function in (int, float) and len(arguments) == 1:
            return cast(arguments[0], rule.result, WRITTEN)
        if function is abs and arguments[0].bounds is not None:
            low, high = arguments[0].bounds
            most = max(abs(low), abs(high))
            if most <= rule.result.maxval:
                return Value(rule.result, (max(low, -high, 0), most))
        if isinstance(rule.result, types.BaseTuple):
            return of_type(rule.result)
        if isinstance(rule.result, types.Number | types.Boolean):
            return Value(rule.result, origin=origin(rule, arguments) if numbers else WRITTEN)
        return Value(rule.result)


def origin(rule: operators.Rule, values: Any) -> str:
    """Where a result comes from, if it is computed in float64."""
    if types.float64 not in (rule.result, *rule.operands):
        return PLAIN
    floats = [v for v in values if v.type == types.float64]
    if any(v.origin == WRITTEN for v in floats):
        return WRITTEN
    small = any(v.type != types.float64 and not v.is_constant for v in values)
    return PROMOTED if small or any(v.origin == PROMOTED for v in floats) else PLAIN


def cast(value: Value, target: types.Type, written: str = WRITTEN) -> Value:
    """A number cast to a type."""
    constant = UNKNOWN
    if value.is_constant:
        constant = evaluate("cast", operators.Rule(target, (value.type,)), value)
    bounds = None
    if is_integer(target):
        if constant is not UNKNOWN:
            bounds = (int(constant), int(constant))
        elif value.bounds is not None and intervals.inside(value.bounds, target):
            bounds = value.bounds
    return Value(target, bounds, constant, origin=written)


def smallest_or_largest(function: Any, arguments: list[Value]) -> Value:
    if len(arguments) == 1 and isinstance(arguments[0].type, types.BaseTuple):
        arguments = list(arguments[0].items or map(of_type, arguments[0].type))
    if not arguments:
        return NOTHING
    found = arguments[0]
    for value in arguments[1:]:
        both = join(found, value)
        if both.type is None or not is_number(both.type):
            return NOTHING
        bounds = None
        if both.bounds is not None and is_integer(found.type) and is_integer(value.type):
            bounds = tuple(function(*pair) for pair in zip(found.bounds, value.bounds, strict=True))
        kinds = (found.type, value.type)
        rule = operators.Rule(both.type, (both.type, both.type))
        mixed = origin(rule, (found, value)) if kinds[0] != kinds[1] else both.origin
        found = Value(both.type, bounds, origin=mixed)
    return found.replace(definitions=frozenset())
