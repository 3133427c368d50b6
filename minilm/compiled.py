"""How the tokenizer's kernels are compiled: once, for one signature each, and kept on disk.

Numba keeps machine code beside the source (`__pycache__`) or in the user's cache folder, under a
hash of the source file that holds the kernel. So a kernel may only call functions of its own file:
of a change elsewhere the cache would know nothing.

Kernels allocate nothing, hence `_nrt=False`: the reference counts that Numba keeps for every array
at every call of a helper would take three quarters of the time of the inner loops.

Importing this module imports numba; nothing here is imported before a large input comes.
"""

from collections.abc import Callable

import numba
from numba import types


def array(dtype: types.Type, readonly: bool = False) -> types.Array:
    """The type of a contiguous one-dimensional array."""
    return types.Array(dtype, 1, "C", readonly=readonly)


BYTES = array(types.uint8, readonly=True)
U8, U16, U64 = array(types.uint8), array(types.uint16), array(types.uint64)
I32, I64 = array(types.int32), array(types.int64)

OPTIONS = {"nogil": True, "_nrt": False}
helper = numba.njit(forceinline=True, **OPTIONS)  # becomes a part of the kernels of its file


def kernel(*arguments: types.Type) -> Callable:
    """Decorator: compile now for these argument types, or take the code from disk.

    The compiled function leaves Python's lock alone. Where no cache folder can be written it is
    compiled again in each process.
    """

    def decorate(function: Callable) -> Callable:
        try:
            compiled = numba.njit(cache=True, **OPTIONS)(function)
        except RuntimeError:  # numba found no folder to write to
            compiled = numba.njit(**OPTIONS)(function)
        try:
            compiled.compile(tuple(arguments))
        except OSError:  # compiled, but the disk is full
            pass
        compiled.disable_compile()
        return compiled

    return decorate
