"""Calls of the `cuda` namespace that Numba refuses to compile, though Python could run them.

The rules are those of numba-cuda's own declarations (numba_cuda/numba/cuda: cudadecl, intrinsics,
cudaimpl). A sentence says what was given and what is allowed; None where the call is right.
"""

import ast
from typing import Any

from numba.core import types

INTEGERS = ("int32", "int64", "uint32", "uint64")
NUMBERS = (*INTEGERS, "float32", "float64")
ELEMENTS = {
    **dict.fromkeys(("add", "sub", "max", "min", "nanmax", "nanmin"), NUMBERS),
    **dict.fromkeys(("and_", "or_", "xor", "exch", "cas", "compare_and_swap"), INTEGERS),
    **dict.fromkeys(("inc", "dec"), ("uint32", "uint64")),
}
OPERANDS = {"cas": ("ary", "idx", "old", "val"), "compare_and_swap": ("ary", "old", "val")}
POINTER_BYTES = 8  # what the alignment of an array must be a multiple of


def refused(node: ast.Call, path: str, found: Any) -> str | None:
    """What is wrong with the call `cuda.path(…)`; found: the types, as `infer` gives them."""
    if path in ("shared.array", "local.array"):
        return of_array(node, path, found)
    if path.startswith("atomic."):
        return of_atomic(node, path.removeprefix("atomic."), found)
    if path in ("grid", "gridsize"):
        given = [found.value(a).literal for a in node.args]
        if given not in ([1], [2], [3]):
            return f"got `{shown(node.args)}`, allowed are 1, 2 and 3, written out or named"
    return None


def shown(nodes: list[ast.expr]) -> str:
    return ", ".join(map(ast.unparse, nodes))


# ---- arrays -------------------------------------------------------------------------------------


def of_array(node: ast.Call, path: str, found: Any) -> str | None:
    given = dict(zip(("shape", "dtype", "alignment"), node.args, strict=False))
    given |= {k.arg: k.value for k in node.keywords}
    missing = [name for name in ("shape", "dtype") if name not in given]
    if missing:
        return f"{missing[0]} is missing"
    return (
        of_shape(given["shape"], path, found)
        or of_dtype(given["dtype"], found)
        or of_alignment(given.get("alignment"), found)
    )


def of_shape(node: ast.expr, path: str, found: Any) -> str | None:
    value = found.value(node)
    items = value.items if isinstance(value.type, types.BaseTuple) else None
    sizes = [item.literal for item in ((value,) if items is None else items)]
    if isinstance(node, ast.List) or None in sizes:
        return (
            f"shape `{ast.unparse(node)}` is not known as the kernel is compiled; allowed are "
            f"integers, names of integers outside the kernel, and tuples of these: compute it "
            f"outside the kernel and give it a name"
        )
    if min(sizes, default=1) < 1 and not (sizes == [0] and path == "shared.array"):
        dynamic = ", or 0 for the launch's dynamic memory" if path == "shared.array" else ""
        return f"shape `{ast.unparse(node)}` holds {min(sizes)}, allowed are sizes from 1{dynamic}"
    return None


def of_dtype(node: ast.expr, found: Any) -> str | None:
    dtype = found.source.value(node)
    if any(dtype is builtin for builtin in (int, float, complex, bool)):
        name = "int64" if dtype is int else "float64"
        return f"dtype is {ast.unparse(node)}; give a type of Numba or NumPy, for example {name}"
    return None


def of_alignment(node: ast.expr | None, found: Any) -> str | None:
    if node is None or found.of(node) == types.none:
        return None
    n = found.value(node).literal
    if n is None:
        return f"alignment `{ast.unparse(node)}` is not known as the kernel is compiled"
    if n <= 0 or n & (n - 1) or n % POINTER_BYTES:
        return f"alignment is {n}, allowed are powers of two from {POINTER_BYTES}"
    return None


# ---- atomic operations --------------------------------------------------------------------------


def of_atomic(node: ast.Call, name: str, found: Any) -> str | None:
    if name not in ELEMENTS:
        return None
    operands = OPERANDS.get(name, ("ary", "idx", "val"))
    if node.keywords or len(node.args) != len(operands):
        return f"takes {len(operands)} arguments without names ({', '.join(operands)})"
    array, text = found.of(node.args[0]), ast.unparse(node.args[0])
    if isinstance(array, types.CPointer):
        return f"`{text}` is a pointer, expected an array; pointers have the ptx.atomic_… functions"
    if array is None:
        return None
    if not isinstance(array, types.Array):
        return f"`{text}` is {array}, expected an array"
    if str(array.dtype) not in ELEMENTS[name]:
        return f"`{text}` holds {array.dtype}, allowed are {', '.join(ELEMENTS[name])}"
    if name == "compare_and_swap":
        return None if array.ndim == 1 else f"`{text}` has {array.ndim} dimensions, expected 1"
    index = found.of(node.args[1])
    if index is not None and not is_element(index, array.ndim):
        return (
            f"`{ast.unparse(node.args[1])}` ({index}) is no index of one element of "
            f"`{text}`, which has {array.ndim} dimension{'s' * (array.ndim > 1)}"
        )
    return None


def is_element(index: types.Type, ndim: int) -> bool:
    if ndim == 1:
        return isinstance(index, types.Number | types.Boolean)
    if not isinstance(index, types.BaseTuple):
        return False
    return len(index) == ndim and all(isinstance(i, types.Integer) for i in index)


__all__ = ["ELEMENTS", "refused"]
