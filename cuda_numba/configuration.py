"""The configuration of a launch: grid and block, attributes such as a cluster, and the stream.

What is checked here is checked once: the results are kept for the next launch of the same kind.
"""

import ctypes
import functools
import struct
from typing import Any

MAX_THREADS = 1024  # per block, on every GPU so far
MAX_GRID = (2**31 - 1, 65535, 65535)
# CUlaunchAttributeID
COOPERATIVE, CLUSTER, PROGRAMMATIC_SERIALIZATION = 2, 4, 6
ATTRIBUTE_BYTES = 72  # id, 4 bytes of padding, 64 bytes of value


def check_shape(grid, block) -> tuple[int, int, int, int, int, int]:
    """Grid and block, each an integer or up to three, as six integers.

    Raises TypeError or ValueError for what no GPU can run.
    """
    grid, block = _three("grid", grid), _three("block", block)
    for axis, (extent, most) in enumerate(zip(grid, MAX_GRID, strict=True)):
        if extent > most:
            raise ValueError(f"grid: axis {'xyz'[axis]} has {extent} blocks, at most {most}")
    if block[0] * block[1] * block[2] > MAX_THREADS or block[2] > 64:
        raise ValueError(
            f"block: {block} threads; at most {MAX_THREADS} in all, 64 along the last axis"
        )
    return (*grid, *block)


launch_shape = functools.lru_cache(maxsize=4096)(check_shape)


def _three(name, extent):
    extent = tuple(extent) if isinstance(extent, tuple | list) else (extent,)
    if not 1 <= len(extent) <= 3 or not all(hasattr(n, "__index__") for n in extent):
        raise TypeError(f"{name}: got {extent}, it must be an integer or up to three")
    whole = tuple(n.__index__() for n in extent)
    if min(whole) < 1:
        raise ValueError(f"{name}: got {whole}, every extent must be at least 1")
    return whole + (1,) * (3 - len(whole))


@functools.cache  # for ever: launchers hold the address
def launch_attributes(cluster, cooperative: bool, pdl: bool) -> tuple[Any, int, int]:
    """(buffer, its address, number of attributes): CUlaunchAttribute records (cuda.h)."""
    records = []
    if cluster is not None:
        records.append((CLUSTER, _three("cluster", cluster)))
    if cooperative:
        records.append((COOPERATIVE, (1,)))
    if pdl:
        records.append((PROGRAMMATIC_SERIALIZATION, (1,)))
    data = b"".join(
        (struct.pack("<I4x", kind) + struct.pack(f"<{len(value)}I", *value)).ljust(
            ATTRIBUTE_BYTES, b"\0"
        )
        for kind, value in records
    )
    buffer = ctypes.create_string_buffer(data, max(1, len(data)))
    return buffer, ctypes.addressof(buffer), len(records)


def raw_stream(stream: Any) -> int:
    """The address of a stream of PyTorch, Numba or cuda.core; 0 for None or 0.

    Raises TypeError for anything else.
    """
    if stream is None:
        return 0
    if hasattr(stream, "cuda_stream"):  # PyTorch; its default stream is 0, here the legacy stream
        return stream.cuda_stream or 1
    if hasattr(stream, "__cuda_stream__"):
        return int(stream.__cuda_stream__()[1])
    if hasattr(stream, "__index__"):
        return stream.__index__()
    raise TypeError(f"stream: got {type(stream).__name__}, it must be a stream, its address, or 0")
