"""TMA loads: boxes, edges, formats and swizzles. What a box holds is worked out with NumPy."""

import numpy as np
import pytest
import torch
from ptx_boxes import BOXES, PLACES, RANKS, SHAPES, THREADS, beside, load_kernel, tensor_of
from ptx_tiles import boxes, devices, findings, on, swizzle

from cuda_numba import jit, ptx
from cuda_numba.namespace import cuda, uint32, uint64
from cuda_numba.ptx.descriptor import DRIVER_TYPES

ranks = pytest.mark.parametrize("rank", RANKS)


def loaded(device, tensor, box, place, span=0, seed=None):
    """The bytes in shared memory after the load of a box of a tensor there."""
    map = ptx.tensor_map(tensor, box, swizzle=span)
    kernel = load_kernel(len(box), map.nbytes)
    y = torch.zeros(map.nbytes // 4, dtype=torch.uint32, device=device)
    at = torch.tensor(place[::-1], dtype=torch.int32, device=device)
    if seed is None:
        kernel[1, THREADS](map, at, y)
    else:
        report = kernel.report(1, THREADS, map, at, y, seed=seed)
        assert findings(report) == []
    return y.cpu().numpy().view(np.uint8)


def check_load(device, x, box, place, span=0, seed=None):
    (tensor,) = on(device, x)
    got = loaded(device, tensor, box, place, span, seed)
    right = boxes(x, box, place)
    right = swizzle(right, span) if span else right.reshape(-1).view(np.uint8)
    np.testing.assert_array_equal(got, right)


@devices
@ranks
@pytest.mark.parametrize("place", ["inside", "over", "before", "outside"])
def test_load(device, rank, place):
    check_load(device, tensor_of(SHAPES[rank], "float32"), BOXES[rank], PLACES[rank][place])


@devices
@ranks
@pytest.mark.parametrize("side", ["before", "after"])
def test_a_box_beside_the_tensor_is_zeros(device, rank, side):
    """Outside in one dimension is outside: not a byte of the neighbouring rows arrives."""
    (tensor,) = on(device, tensor_of(SHAPES[rank], "float32"))
    for place in beside(rank, side):
        assert not loaded(device, tensor, BOXES[rank], place).any(), place


@devices
@pytest.mark.parametrize("dtype", DRIVER_TYPES)
def test_load_of_every_format(device, dtype):
    kind = getattr(torch, dtype)
    columns, size = 144 // kind.itemsize, kind.itemsize
    x = np.random.default_rng(0).integers(0, 256, (9, 144), np.uint8)
    tensor = torch.from_numpy(x.copy()).view(kind).to(device)
    assert tensor.shape == (9, columns)
    got = loaded(device, tensor, (4, 64 // size), (7, 32 // size))
    np.testing.assert_array_equal(got, boxes(x, (4, 64), (7, 32)).reshape(-1))


@devices
@pytest.mark.parametrize("span", [32, 64, 128])
@pytest.mark.parametrize("dtype", ["uint8", "float16", "float32"])
def test_load_swizzled(device, span, dtype):
    box = (24, span // np.dtype(dtype).itemsize)
    check_load(device, tensor_of((40, 144), dtype), box, (30, 16), span)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_load_without_findings(seed):
    """Also where the copy lands early and shared memory begins at another multiple of 16."""
    check_load("cpu", tensor_of((40, 144), "float32"), (24, 32), (3, 8), 128, seed)


@jit
def shifted_load(map: "uint64", y):
    """A box that does not begin where the pattern of its swizzle does."""
    tile = cuda.shared.array(512, uint32, alignment=1024)
    bars = cuda.shared.array(1, uint64)
    i = cuda.threadIdx.x
    bar = ptx.shared_address(bars)
    if i == 0:
        ptx.mbarrier_init(bar, 1)
        ptx.fence_mbarrier_init()
    cuda.syncthreads()
    if i == 0:
        ptx.mbarrier_arrive_expect_tx(bar, 1024)
        ptx.tma_load_2d(ptx.shared_address(tile) + uint32(384), map, 0, 0, bar)
    ptx.mbarrier_wait(bar, 0)
    for k in range(4):
        y[64 * k + i] = tile[96 + 64 * k + i]


@devices
def test_swizzles_go_by_the_address(device):
    """Three lines further on, the pieces are exchanged as lines 3, 4, … are."""
    x = tensor_of((8, 32), "float32")
    source, y = on(device, x, np.zeros(256, np.uint32))
    shifted_load[1, 64](ptx.tensor_map(source, (8, 32), swizzle=128), y)
    lines = np.concatenate([np.zeros((3, 32), np.float32), x])
    right = swizzle(lines, 128)[3 * 128 :]
    np.testing.assert_array_equal(y.cpu().numpy().view(np.uint8), right)
