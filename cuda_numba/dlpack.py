"""A tensor as DLPack describes it: how a launch sees address, device, format and shape in one call.

Asked through Python, a tensor takes four calls for that, each several times as long as the C
function that PyTorch offers to other libraries: DLPack's exchange API, a public and versioned table
of functions (dlpack.h, since DLPack 1.3). The function fills a DLTensor, which borrows what it
points to:

    offset  0  the address                      24  address of the shape, int64 each
            8  the device: kind and index       32  address of the strides, in elements
           16  the number of dimensions         40  bytes to add to the address
           20  the format of an element
"""

import ctypes
import functools

VERSION = 1  # the major version, which says how the table is laid out
BYTES = 48  # sizeof(DLTensor)
ADDRESS, DEVICE, NDIM, FORMAT, SHAPE, STRIDES, OFFSET = 0, 8, 16, 20, 24, 32, 40


class _Exchange(ctypes.Structure):
    """DLPackExchangeAPI."""

    _fields_ = [
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("older", ctypes.c_void_p),
        ("allocate", ctypes.c_void_p),
        ("from_object", ctypes.c_void_p),
        ("to_object", ctypes.c_void_p),
        ("describe", ctypes.c_void_p),
        ("current_stream", ctypes.c_void_p),
    ]


@functools.cache
def describe_address() -> int:
    """The C function int(PyObject *tensor, DLTensor *out): 0, or −1 with a Python error set.

    Raises RuntimeError for a PyTorch that has none that this file understands.
    """
    import torch

    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    capsule = torch.Tensor.__dlpack_c_exchange_api__
    exchange = _Exchange.from_address(pointer(capsule, b"dlpack_exchange_api"))
    if exchange.major != VERSION or not exchange.describe:
        raise RuntimeError(
            f"torch {torch.__version__}: its DLPack is version {exchange.major}."
            f"{exchange.minor}, a launch needs version {VERSION} with descriptions of tensors"
        )
    return exchange.describe


@functools.cache
def format_word(dtype) -> int:
    """A torch dtype as the 32-bit word of a DLTensor: code, bits, lanes."""
    import torch

    describe = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_void_p)
    record = (ctypes.c_uint64 * (BYTES // 8))()
    start = ctypes.addressof(record)
    describe(describe_address())(torch.tensor([], dtype=dtype, device="cpu"), start)
    return ctypes.c_uint32.from_address(start + FORMAT).value


def device_word(index: int) -> int:
    """A CUDA device, or the CPU for −1, as the 64-bit word of a DLTensor: kind, then index."""
    from torch.utils.dlpack import DLDeviceType

    if index < 0:
        return int(DLDeviceType.kDLCPU)
    return int(DLDeviceType.kDLCUDA) | index << 32
