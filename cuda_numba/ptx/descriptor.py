"""Descriptors: the 128 bytes (`CUtensorMap`) that TMA reads of a tensor map, made by the driver.

Sources: CUDA driver API, `cuTensorMapEncodeTiled`, `cuPointerGetAttribute`; cuda.h for the numbers.
"""

import ctypes
import functools
import threading
from contextlib import contextmanager
from ctypes import byref, c_int, c_size_t, c_uint, c_uint32, c_uint64, c_void_p

from .. import driver

SWIZZLES = (0, 32, 64, 128)
PROMOTIONS = (0, 64, 128, 256)
# CUtensorMapDataType of cuda.h.
U8, U16, U32, S32, U64, S64, F16, F32, F64, BF16 = range(10)
DRIVER_TYPES = {
    "uint8": U8,
    "int8": U8,
    "float8_e4m3fn": U8,
    "float8_e5m2": U8,
    "uint16": U16,
    "int16": U16,
    "float16": F16,
    "bfloat16": BF16,
    "uint32": U32,
    "int32": S32,
    "float32": F32,
    "uint64": U64,
    "int64": U64,  # reductions add no S64, and a sum has the same bits
    "float64": F64,
}
MAP_BYTES = 128
CHUNK = 512 * MAP_BYTES  # one allocation
DEVICE_ORDINAL = 9  # CUpointer_attribute
RELAXED = 2  # CUstreamCaptureMode
_LOCK = threading.Lock()
_SLOTS: dict[int, list[int]] = {}  # device → addresses of free places


def device_of(address: int) -> int:
    """The index of the GPU that an address belongs to, for arrays that do not say."""
    index = c_int()
    with driver.context(0):
        ordinal = c_int(DEVICE_ORDINAL)
        driver.call("cuPointerGetAttribute", byref(index), ordinal, c_uint64(address))
    return index.value


@contextmanager
def _outside_captures():
    """Let this thread allocate and copy although a stream is capturing a graph.

    None of it becomes a part of the graph: the descriptor is there before the kernel that reads it
    is replayed. Source: CUDA driver API, `cuThreadExchangeStreamCaptureMode`.
    """
    mode = c_int(RELAXED)
    driver.call("cuThreadExchangeStreamCaptureMode", byref(mode))
    try:
        yield
    finally:
        driver.call("cuThreadExchangeStreamCaptureMode", byref(mode))


@functools.cache
def descriptor(device: int, *key) -> int:
    """The address of a descriptor on that GPU, written once and never again; key: as in `encode`.

    Raises ValueError for a GPU that has none, DriverError for what its driver refuses.
    """
    if (cc := driver.compute_capability(device)) < (9, 0):
        raise ValueError(
            f"tensor: cuda:{device} has compute capability {cc[0]}.{cc[1]}, maps need 9.0"
        )
    with driver.context(device), _outside_captures():
        encoded = encode(*key)
        with _LOCK:
            free = _SLOTS.setdefault(device, [])
            if not free:
                chunk = c_uint64()
                driver.call("cuMemAlloc_v2", byref(chunk), c_size_t(CHUNK))
                free.extend(range(chunk.value, chunk.value + CHUNK, MAP_BYTES))
            place = free.pop(0)
        driver.call("cuMemcpyHtoD_v2", c_uint64(place), encoded, c_size_t(MAP_BYTES))
        # So short a copy is returned from before it has arrived, and a kernel in a stream that does
        # not wait for the default one could read what was there before.
        driver.call("cuStreamSynchronize", c_void_p(0))
    return place


def encode(start, shape, strides, dtype, box, swizzle, l2_promotion) -> bytes:
    """The 128 bytes as the driver makes them; dimensions in the order of `tensor.shape`.

    start: the address of the first element; strides in bytes; the rest as in `tensor_map`.
    """
    rank = len(shape)
    storage = ctypes.create_string_buffer(2 * MAP_BYTES)  # the driver wants a multiple of 64
    place = -(-ctypes.addressof(storage) // MAP_BYTES) * MAP_BYTES
    # It also wants strides where one dimension has none to give: then the bytes of the only row.
    row = -(-shape[-1] * strides[-1] // 16) * 16
    steps = [*reversed(strides[:-1])] or [row]
    driver.call(
        "cuTensorMapEncodeTiled",
        c_void_p(place),
        c_int(DRIVER_TYPES[dtype]),
        c_uint(rank),
        c_void_p(start),
        (c_uint64 * rank)(*reversed(shape)),
        (c_uint64 * len(steps))(*steps),
        (c_uint32 * rank)(*reversed(box)),
        (c_uint32 * rank)(*[1] * rank),  # every element, not each second one
        c_int(0),  # not interleaved
        c_int(SWIZZLES.index(swizzle)),
        c_int(PROMOTIONS.index(l2_promotion)),
        c_int(0),  # zeros outside
    )
    return ctypes.string_at(place, MAP_BYTES)
