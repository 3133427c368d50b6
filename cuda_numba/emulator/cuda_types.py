"""The types that the functions of the `cuda` namespace and of `ptx` give.

The tables follow numba-cuda's own declarations (numba_cuda/numba/cuda: cudadecl, intrinsics), but
nothing here needs it.
"""

from typing import Any

import numpy as np
from numba.core import types
from numba.core.errors import NumbaError
from numba.np.numpy_support import from_dtype

from .intervals import EXTENT
from .operators import is_number
from .value import NOTHING, WRITTEN, Value, of_array, of_type

DIM3 = types.Opaque("Dim3")
GRID_GROUP = types.Opaque("GridGroup")
DIMENSIONS = {
    "threadIdx": (0, 1023),
    "blockIdx": (0, EXTENT),
    "blockDim": (1, 1024),
    "gridDim": (1, EXTENT),
}
LANES = (0, 31)

_RESULTS = {
    "syncthreads_count": (types.int32, (0, 1024)),
    "syncthreads_and": (types.int32, (0, 1)),
    "syncthreads_or": (types.int32, (0, 1)),
    "all_sync": (types.boolean, (0, 1)),
    "any_sync": (types.boolean, (0, 1)),
    "eq_sync": (types.boolean, (0, 1)),
    "ballot_sync": (types.int32, None),
    "match_any_sync": (types.int32, None),
    "activemask": (types.uint32, None),
    "lanemask_lt": (types.uint32, None),
    "ffs": (types.uint32, (0, 64)),
    "cg.this_grid": (GRID_GROUP, None),
}
_LOADS = ("ldca", "ldcg", "ldcs", "ldlu", "ldcv")
_SHUFFLES = ("shfl_sync", "shfl_up_sync", "shfl_down_sync", "shfl_xor_sync")
_HALF_TESTS = ("heq", "hne", "hge", "hgt", "hle", "hlt")


def as_type(dtype: Any) -> types.Type | None:
    """The Numba type of a number that a dtype names: a Numba or NumPy type, a name, a DType."""
    if isinstance(dtype, types.DType | types.NumberClass):
        dtype = dtype.dtype if isinstance(dtype, types.DType) else dtype.instance_type
    if isinstance(dtype, types.Type):
        return dtype if isinstance(dtype, types.Number | types.Boolean) else None
    try:
        return from_dtype(np.dtype(dtype))
    except (TypeError, ValueError, NumbaError):
        return None


def attribute(path: str) -> Value:
    """`cuda.path` itself, where it is a value: threadIdx.x, laneid, warpsize."""
    base, _, axis = path.rpartition(".")
    if base in DIMENSIONS and axis in ("x", "y", "z"):
        return Value(types.int32, DIMENSIONS[base])
    if path in DIMENSIONS:
        part = Value(types.int32, DIMENSIONS[path])
        return Value(DIM3, items=(part, part, part))
    if path == "laneid":
        return Value(types.int32, LANES)
    if path == "warpsize":
        return Value(types.int32, (32, 32))
    return NOTHING


def call(path: str, arguments: list[Value], keywords: dict[str, Value], dtype: Any) -> Value:
    """The result of `cuda.path(…)`; dtype: what the argument of that name is known to be."""
    if path in _RESULTS:
        return Value(*_RESULTS[path])
    first = arguments[0] if arguments else NOTHING
    if path in ("grid", "gridsize"):
        return _grid(first)
    if path in ("shared.array", "local.array"):
        return _array(arguments[0] if arguments else keywords.get("shape", NOTHING), dtype)
    if path == "const.array_like":
        return first
    if path.startswith("atomic.") or path in _LOADS:
        return element(first.type)
    if path in _SHUFFLES and len(arguments) > 1:
        return of_type(arguments[1].type)
    if path == "match_all_sync":
        return of_type(types.Tuple((types.int32, types.boolean)))
    if path.startswith("fp16."):
        return Value(types.boolean if path[5:] in _HALF_TESTS else types.float16)
    kinds = [a.type for a in arguments]
    if kinds and all(map(is_number, kinds)):
        return _numbers(path, kinds)
    return Value(types.none) if path not in _NUMBERS else NOTHING


def _grid(ndim: Value) -> Value:
    if ndim.constant == 1:
        return Value(types.int64, (0, EXTENT))
    if ndim.constant in (2, 3):
        part = Value(types.int64, (0, EXTENT))
        n = ndim.constant
        return Value(types.UniTuple(types.int64, n), items=(part,) * n)
    return NOTHING


def _array(shape: Value, dtype: Any) -> Value:
    kind = as_type(dtype)
    if kind is None or shape.type is None:
        return NOTHING
    ndim = len(shape.type) if isinstance(shape.type, types.BaseTuple) else 1
    return of_array(types.Array(kind, ndim, "C"))


_NUMBERS = ("popc", "clz", "brev", "fma", "cbrt", "selp")


def _numbers(path: str, kinds: list) -> Value:
    first = kinds[0]
    if path in ("popc", "clz"):
        return Value(first, (0, first.bitwidth)) if isinstance(first, types.Integer) else NOTHING
    if path == "brev":
        return Value(types.uint64 if first == types.uint64 else types.uint32)
    if path == "selp" and len(kinds) == 3:
        return Value(kinds[1])
    if path in ("fma", "cbrt"):
        narrow = all(k in (types.float16, types.float32) for k in kinds)
        return Value(types.float32 if narrow else types.float64)
    return Value(types.none)


def element(container: types.Type | None) -> Value:
    """An element of an array or pointer."""
    if isinstance(container, types.Array | types.CPointer):
        return Value(container.dtype, origin=WRITTEN)
    return NOTHING


def instruction(ins: Any, arguments: list[Value]) -> Value:
    """The result of a PTX instruction."""
    if ins.result[0] != "element":
        return of_type(ins.result_type([]))
    kinds = [a.type for a in arguments if isinstance(a.type, types.Array | types.CPointer)]
    return Value(ins.result_type(kinds), origin=WRITTEN) if kinds else NOTHING
