"""Tensor maps: what can be mapped, and what the driver is asked for."""

import numpy as np
import pytest
import torch

from cuda_numba import driver, ptx
from cuda_numba.ptx import descriptor


def test_a_map_is_an_integer_that_knows_its_tensor():
    x = torch.zeros(10, 64, dtype=torch.bfloat16)
    map = ptx.tensor_map(x, (8, 64), swizzle=128)
    assert map.nbytes == 8 * 64 * 2 and map.tensor is x and map.element == "bfloat16"
    assert map % 128 == 0 and not map.is_cuda
    assert "bfloat16 (10, 64), box (8, 64), swizzle 128" in repr(map)


WRONG = [
    (lambda: ptx.tensor_map([1, 2], (2,)), TypeError, "tensor: got list"),
    (lambda: ptx.tensor_map(np.zeros(4, bool), (4,)), TypeError, "tensor: dtype is bool"),
    (lambda: ptx.tensor_map(np.zeros((2,) * 6, np.float32), (2,) * 6), ValueError, "6 dimensions"),
    (lambda: ptx.tensor_map(np.zeros((0, 4), np.float32), (1, 4)), ValueError, "at least 1"),
    (
        lambda: ptx.tensor_map(torch.empty(2**32 + 1, dtype=torch.uint8, device="meta"), (16,)),
        ValueError,
        "at most 4294967296",
    ),
    (
        lambda: ptx.tensor_map(np.zeros((228, 256), np.float32), (228, 256)),
        ValueError,
        "box: it is 233472 bytes, a block has 232448 of shared memory",
    ),
    (lambda: ptx.tensor_map(np.zeros((8, 8), np.float32).T, (8, 8)), ValueError, "last dimension"),
    (
        lambda: ptx.tensor_map(np.zeros((8, 6), np.float32), (8, 4)),
        ValueError,
        "a stride is 24 bytes",
    ),
    (
        lambda: ptx.tensor_map(np.zeros(64, np.float32)[1:], (4,)),
        ValueError,
        "multiple of 16 bytes",
    ),
    (
        lambda: ptx.tensor_map(np.zeros((8, 8), np.float32), (8,)),
        ValueError,
        "box: it has 1 numbers",
    ),
    (
        lambda: ptx.tensor_map(np.zeros(512, np.float32), (257,)),
        ValueError,
        "box: a dimension is 257",
    ),
    (lambda: ptx.tensor_map(np.zeros(8, np.float32), (0,)), ValueError, "box: a dimension is 0"),
    (
        lambda: ptx.tensor_map(np.zeros(8, np.float32), (5,)),
        ValueError,
        "box: its rows are 20 bytes",
    ),
    (
        lambda: ptx.tensor_map(np.zeros(64, np.float32), (64,), 128),
        ValueError,
        "rows are 256 bytes",
    ),
    (lambda: ptx.tensor_map(np.zeros(64, np.float32), (8,), 16), ValueError, "swizzle: got 16"),
    (lambda: ptx.tensor_map(np.zeros(64, np.float32), (8,), 0, 512), ValueError, "l2_promotion"),
]


@pytest.mark.parametrize(("make", "error", "message"), WRONG)
def test_what_cannot_be_mapped(make, error, message):
    with pytest.raises(error, match=message):
        make()


class Driver:
    """Keeps what the driver is asked to encode, and answers with the bytes 0, 1, …"""

    def __init__(self):
        self.asked = None

    def call(self, name, place, dtype, rank, start, shape, strides, box, step, *modes):
        assert name == "cuTensorMapEncodeTiled" and place.value % 64 == 0
        arrays = [list(a) for a in (shape, strides, box, step)]
        self.asked = [dtype.value, rank.value, start.value, *arrays, *(m.value for m in modes)]
        descriptor.ctypes.memmove(place.value, bytes(range(128)), 128)


def encoded(monkeypatch, *key):
    fake = Driver()
    monkeypatch.setattr(driver, "call", fake.call)
    assert descriptor.encode(*key) == bytes(range(128))
    return fake.asked


def test_what_the_driver_is_asked_for(monkeypatch):
    """Innermost dimension first; (type, rank, start, shape, strides, box, steps, modes)."""
    key = (4096, (5, 7, 24), (672, 96, 4), "float32", (3, 4, 16), 64, 128)
    modes = [0, 2, 2, 0]  # not interleaved, 64-byte swizzle, 128 bytes of L2, zeros outside
    right = [7, 3, 4096, [24, 7, 5], [96, 672], [16, 4, 3], [1, 1, 1], *modes]
    assert encoded(monkeypatch, *key) == right


def test_one_dimension_has_a_stride_too(monkeypatch):
    """The driver refuses a map without an array of strides, although it has none to read."""
    key = (4096, (201,), (4,), "int32", (64,), 0, 0)
    assert encoded(monkeypatch, *key) == [3, 1, 4096, [201], [816], [64], [1], 0, 0, 0, 0]


def test_types_and_modes_are_numbered_as_the_driver_has_them():
    cu = pytest.importorskip("cuda.bindings.driver")
    kinds = [
        (cu.CUtensorMapDataType, f"DATA_TYPE_{name}", number)
        for number, name in enumerate(
            "UINT8 UINT16 UINT32 INT32 UINT64 INT64 FLOAT16 FLOAT32 FLOAT64 BFLOAT16".split()
        )
    ]
    for number, nbytes in enumerate(descriptor.SWIZZLES):
        name = f"SWIZZLE_{nbytes}B" if nbytes else "SWIZZLE_NONE"
        kinds.append((cu.CUtensorMapSwizzle, name, number))
    for number, nbytes in enumerate(descriptor.PROMOTIONS):
        name = f"L2_PROMOTION_L2_{nbytes}B" if nbytes else "L2_PROMOTION_NONE"
        kinds.append((cu.CUtensorMapL2promotion, name, number))
    for kind, name, number in kinds:
        assert int(getattr(kind, f"CU_TENSOR_MAP_{name}")) == number, name


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(201,), (10, 64), (3, 5, 16), (2, 3, 4, 16), (2, 2, 2, 2, 16)])
@pytest.mark.parametrize("dtype", descriptor.DRIVER_TYPES)
def test_the_driver_encodes_maps_of_every_rank_and_format(shape, dtype):
    last = -(-shape[-1] // 16) * 16
    x = torch.zeros(*shape[:-1], last, dtype=getattr(torch, dtype), device="cuda")
    map = ptx.tensor_map(x[..., : shape[-1]], (1,) * (len(shape) - 1) + (16,))
    assert map.is_cuda and map.get_device() == x.get_device()


@pytest.mark.gpu
def test_a_map_on_a_gpu_is_encoded_once():
    x = torch.zeros(10, 64, dtype=torch.bfloat16, device="cuda")
    first, again = (ptx.tensor_map(x, (8, 64), swizzle=128) for _ in range(2))
    assert first == again and first.is_cuda and first % 128 == 0
    assert ptx.tensor_map(x, (10, 64), swizzle=128) != first
