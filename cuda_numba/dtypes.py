"""Which number formats tensors have, and what a kernel sees of each.

A kernel has no bfloat16 and no 8-bit floats of its own: it sees the bits, as unsigned integers, and
converts them with the instructions of `ptx`. float16 and everything else Numba knows arrives as is.

| tensor        | in a kernel | bytes |
|---------------|-------------|-------|
| float32       | float32     | 4     |
| float16       | float16     | 2     |
| bfloat16      | uint16      | 2     |
| float8_e4m3fn | uint8       | 1     |
| float8_e5m2   | uint8       | 1     |
"""

from typing import Any

import numpy as np

# Tensor formats whose bits travel as unsigned integers: name → name in the kernel.
BITS = {"bfloat16": "uint16", "float8_e4m3fn": "uint8", "float8_e5m2": "uint8"}

IN_KERNEL = {
    name: name
    for name in (
        *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
        *("float16", "float32", "float64", "complex64", "complex128"),
    )
} | BITS

FLOATS = ("float32", "float16", "bfloat16")  # what the public operations take


def dtype_name(x: Any) -> str:
    """The name of the format of a tensor, an array or a dtype: "float32", "bfloat16", …"""
    dtype = getattr(x, "dtype", x)
    if isinstance(dtype, str):
        return dtype
    if isinstance(dtype, np.dtype) or (isinstance(dtype, type) and issubclass(dtype, np.generic)):
        return np.dtype(dtype).name
    return str(dtype).removeprefix("torch.")


def kernel_dtype(name: str) -> str:
    """What a kernel sees of a tensor of format `name`: the name of a NumPy dtype.

    Raises TypeError for a format that kernels cannot take.
    """
    try:
        return IN_KERNEL[name]
    except KeyError:
        allowed = ", ".join(IN_KERNEL)
        raise TypeError(f"dtype: got {name!r}, kernels take {allowed}") from None


def itemsize(name: str) -> int:
    """Bytes of one element of format `name`."""
    return np.dtype(kernel_dtype(name)).itemsize


def vector_width(name: str) -> int:
    """Elements in one 16-byte access: 4 of float32, 8 of float16 and bfloat16."""
    return 16 // itemsize(name)
