"""Result types of casts, builtins and functions of math and NumPy."""

from typing import Any

import numpy as np
from numba.core import types

from . import cuda_types, operators


def cast_target(function: Any) -> types.Type | None:
    """The type that calling `function` casts a number to: float32(x), np.int32(x), bool(x)."""
    if isinstance(function, types.Type) or (
        isinstance(function, type) and issubclass(function, np.number | np.bool_)
    ):
        return cuda_types.as_type(function)
    return types.boolean if function is bool else None


def call_rule(function: Any, kinds: tuple) -> operators.Rule | None:
    """The rule of a call of a builtin, or of a function of math or NumPy."""
    name = getattr(function, "__name__", "")
    if function is float and kinds and kinds[0] in (types.float16, types.boolean):
        return operators.Rule(kinds[0] if kinds[0] == types.float16 else types.float64, kinds)
    if function is pow and len(kinds) == 2:
        return operators.binary("Pow", *kinds)
    if function is abs and kinds and kinds[0] == types.float16:
        return operators.Rule(kinds[0], kinds)
    if getattr(function, "__module__", None) == "math":
        return operators.math_rule(name, kinds)
    return operators.resolve(function, kinds) if callable(function) else None
