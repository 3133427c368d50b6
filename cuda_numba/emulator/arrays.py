"""Arrays that a kernel makes for itself: `cuda.shared.array` and `cuda.local.array`."""

from collections.abc import Callable
from typing import Any

import numpy as np

from .memory import POISON, View

ALIGNMENT = 16  # of a static shared array where the kernel asks for none: any vector access works


def numpy_dtype(dtype: Any) -> np.dtype:
    """The NumPy dtype of a Numba type, a NumPy type or a name."""
    name = getattr(dtype, "name", None) or getattr(dtype, "__name__", None) or str(dtype)
    return np.dtype({"boolean": "bool"}.get(name, name))


def numpy_shape(shape: Any) -> tuple[int, ...]:
    return tuple(int(n) for n in shape) if isinstance(shape, tuple | list) else (int(shape),)


def bind_shared_array(m: Any, origin: tuple) -> Callable[..., Any]:
    """`cuda.shared.array` at one place of a kernel: one array for each block, the same for every
    thread that reaches this call. A shape of 0 is the dynamic shared memory of the launch, from its
    first byte. A device function has an array of its own for each list of types, as in Numba."""
    name, key = origin[2], object()  # the variable's name

    def shared_array(shape: Any, dtype: Any, alignment: int | None = None) -> Any:
        found = m.t.block.shared.arrays.get(key)
        return found if found is not None else new(shape, dtype, alignment)

    def new(shape: Any, dtype: Any, alignment: int | None) -> Any:
        arena = m.t.block.shared
        a, address = arena.place(numpy_shape(shape), numpy_dtype(dtype), alignment or ALIGNMENT)
        m.memory.known_shared(a, address)
        found = a
        if m.tracing:
            found = View(a, "shared", address, name, m.log)
            m.add_array(name, "shared", address, a)
        arena.arrays[key] = found
        m.shared_bytes = max(m.shared_bytes, arena.end - arena.start)
        return found

    return shared_array


def local_array(m, shape, dtype, alignment=None):
    """An array of one thread's own, in registers if the compiler can keep it there."""
    shape, dtype = numpy_shape(shape), numpy_dtype(dtype)
    nbytes = int(np.prod(shape)) * dtype.itemsize
    a = np.full(nbytes, POISON, np.uint8).view(dtype).reshape(shape)
    if not m.tracing:
        return a
    m.local_bytes = max(m.local_bytes, nbytes)
    return View(a, "local", 0, m.origin[2], m.log)
