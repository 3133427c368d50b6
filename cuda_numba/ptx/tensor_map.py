"""Tensor maps: what TMA has to know of a tensor, made on the host, read by the copy engine.

A map is 128 bytes in global memory (`CUtensorMap`). Kernels take its address as a uint64. Sources:
CUDA driver API, `cuTensorMapEncodeTiled`; PTX ISA, section "Tensors".
"""

from typing import Any

import numpy as np

from ..dtypes import dtype_name, itemsize
from ..emulator import tensor_map as emulated
from .descriptor import DRIVER_TYPES, PROMOTIONS, SWIZZLES, descriptor, device_of

LARGEST_BOX = 256  # elements along each dimension
LARGEST_SIZE = 1 << 32  # elements along a dimension of the tensor
SHARED_BYTES = 227 * 1024  # most shared memory of a block, on Hopper


class TensorMap(int):
    """A tensor as TMA sees it. It is an integer, the address that kernels take as a uint64.

    Attributes: tensor, which it keeps alive, and element, the name of its dtype; box, in elements,
    and nbytes of one box, as an mbarrier counts them; swizzle; is_cuda; device, the index of the
    GPU, −1 for a map of host memory.
    """

    def __new__(cls, address, tensor, box, swizzle, device=-1, described=None):
        made = super().__new__(cls, address)
        made.tensor, made.box, made.swizzle = tensor, box, swizzle
        made.element, made.device, made.is_cuda = dtype_name(tensor), device, device >= 0
        made.nbytes = int(np.prod(box)) * itemsize(made.element)
        made.described = described  # what the emulator knows of it
        return made

    def get_device(self):
        """The index of the GPU, as tensors have it."""
        return self.device

    def __repr__(self):
        return (
            f"<TensorMap of {self.element} {tuple(self.tensor.shape)}, box {self.box}, swizzle "
            f"{self.swizzle}, at 0x{int(self):x}>"
        )


def tensor_map(tensor: Any, box: tuple, swizzle: int = 0, l2_promotion: int = 128) -> TensorMap:
    """A map of a tensor of 1 to 5 dimensions, for copies of `box` elements at a time.

    tensor: a torch tensor or NumPy array in host memory (for the emulator), or a tensor or device
        array on a GPU. Its last dimension is contiguous, its start and its other strides are
        multiples of 16 bytes.
    box: elements along each dimension, in the order of `tensor.shape`, at most 256 each; the
        innermost ones make a multiple of 16 bytes, and all of them fit into shared memory. The
        coordinates of copies come in the opposite order, the innermost first; the innermost one
        times the bytes of an element must be a multiple of 16 as well.
    swizzle: 0, or 32, 64 or 128, the bytes of a row of the box: how 16-byte pieces are exchanged in
        shared memory so that reading columns meets no bank twice. wgmma understands all of them.
    l2_promotion: 0, 64, 128 or 256, the bytes that L2 fetches around a miss.

    On a GPU, of compute capability 9.0 or newer, the map is encoded once for each address, shape
    and box, which is no part of a graph that is being captured, and its 128 bytes are kept until
    the process ends: a map that took another's place would be read wrongly from the cache of
    descriptors.

    Raises ValueError or TypeError where the tensor or the box cannot be copied, DriverError where
    the driver will not encode the map.
    """
    shape, strides, dtype, on_gpu = _described(tensor)
    box = tuple(int(n) for n in box)
    _check(shape, strides, dtype, box, swizzle, l2_promotion)
    if on_gpu:
        start = _gpu_address(tensor)
        _check_start(start)
        device = tensor.get_device() if hasattr(tensor, "get_device") else device_of(start)
        key = (start, shape, strides, dtype, box, swizzle, l2_promotion)
        return TensorMap(descriptor(device, *key), tensor, box, swizzle, device)
    array, storage = _host_array(tensor)
    _check_start(array.__array_interface__["data"][0] - storage[0])
    described = emulated.Described(array, storage, box, swizzle, dtype)
    return TensorMap(described.address, tensor, box, swizzle, described=described)


def _described(tensor):
    """Shape, strides in bytes, dtype name, and whether the tensor is on a GPU."""
    if hasattr(tensor, "data_ptr"):
        size = tensor.element_size()
        strides = tuple(s * size for s in tensor.stride())
        return tuple(tensor.shape), strides, dtype_name(tensor), tensor.is_cuda
    on_gpu = hasattr(tensor, "__cuda_array_interface__")
    if not on_gpu and not isinstance(tensor, np.ndarray):
        raise TypeError(f"tensor: got {type(tensor).__name__}, a map takes a tensor or an array")
    return tuple(tensor.shape), tuple(tensor.strides), dtype_name(tensor), on_gpu


def _check(shape, strides, dtype, box, swizzle, l2_promotion):
    if dtype not in DRIVER_TYPES:
        raise TypeError(f"tensor: dtype is {dtype}, maps take {', '.join(DRIVER_TYPES)}")
    if not 1 <= len(shape) <= 5:
        raise ValueError(f"tensor: it has {len(shape)} dimensions, maps take 1 to 5")
    if not (1 <= min(shape) and max(shape) <= LARGEST_SIZE):
        raise ValueError(
            f"tensor: shape is {shape}, every dimension must be at least 1 and at most "
            f"{LARGEST_SIZE}"
        )
    size = itemsize(dtype)
    if strides[-1] != size:
        raise ValueError(
            f"tensor: its last dimension has a stride of {strides[-1]} bytes, it must be "
            f"contiguous, {size}"
        )
    for stride in strides[:-1]:
        if stride % 16 or not 0 < stride < 1 << 40:
            raise ValueError(
                f"tensor: a stride is {stride} bytes, it must be a multiple of 16 below 2**40"
            )
    if len(box) != len(shape):
        raise ValueError(f"box: it has {len(box)} numbers, the tensor {len(shape)} dimensions")
    for n in box:
        if not 1 <= n <= LARGEST_BOX:
            raise ValueError(f"box: a dimension is {n}, it must be from 1 to {LARGEST_BOX}")
    if swizzle not in SWIZZLES:
        raise ValueError(f"swizzle: got {swizzle!r}, it is one of {SWIZZLES}")
    if l2_promotion not in PROMOTIONS:
        raise ValueError(f"l2_promotion: got {l2_promotion!r}, it is one of {PROMOTIONS}")
    inner = box[-1] * size
    if inner % 16:
        raise ValueError(f"box: its rows are {inner} bytes, they must be a multiple of 16")
    if swizzle and inner != swizzle:
        raise ValueError(f"box: its rows are {inner} bytes, a swizzle of {swizzle} needs {swizzle}")
    if (nbytes := int(np.prod(box)) * size) > SHARED_BYTES:
        raise ValueError(f"box: it is {nbytes} bytes, a block has {SHARED_BYTES} of shared memory")


def _check_start(address):
    if address % 16:
        raise ValueError("tensor: it does not begin at a multiple of 16 bytes, as maps need")


def _host_array(tensor):
    """A NumPy array of the tensor's memory, bits as unsigned integers, and its storage."""
    if isinstance(tensor, np.ndarray):
        from ..emulator.memory import root

        low, high = np.lib.array_utils.byte_bounds(root(tensor))
        return tensor, (low, high - low)
    name = dtype_name(tensor)
    bits = {"bfloat16": "uint16", "float8_e4m3fn": "uint8", "float8_e5m2": "uint8"}.get(name)
    if bits:
        import torch

        tensor = tensor.view(getattr(torch, bits))
    storage = tensor.untyped_storage()
    return tensor.detach().numpy(), (storage.data_ptr(), storage.nbytes())


# ---- on a GPU


def _gpu_address(tensor):
    if hasattr(tensor, "data_ptr"):
        return tensor.data_ptr()
    return tensor.__cuda_array_interface__["data"][0]
