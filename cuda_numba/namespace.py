"""The names that a kernel's source uses: `cuda`, the scalar types, and nothing else.

Where numba-cuda is installed these are Numba's own objects, so that a kernel's function can be
compiled by `numba.cuda` as it stands. Elsewhere (macOS has no wheels of numba-cuda) they are
stand-ins: they cannot be called, but the emulator knows them by name.
"""

from numba.core import types
from numba.core.types import (
    boolean,
    float16,
    float32,
    float64,
    int8,
    int16,
    int32,
    int64,
    uint8,
    uint16,
    uint32,
    uint64,
)

try:
    from numba import cuda

    cuda.jit  # noqa: B018  a stub of numba.cuda imports, but holds nothing
    HAS_NUMBA_CUDA = True
except (ImportError, AttributeError):
    from .emulator.standin import cuda

    HAS_NUMBA_CUDA = False

__all__ = [
    "HAS_NUMBA_CUDA",
    "boolean",
    "cuda",
    "float16",
    "float32",
    "float64",
    "int8",
    "int16",
    "int32",
    "int64",
    "types",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
]
