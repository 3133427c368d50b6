"""Bulk copies of the wrong rank, size, map or number of bytes."""

import numpy as np
import pytest

from cuda_numba import jit, ptx
from cuda_numba.emulator import Deadlock
from cuda_numba.emulator.errors import InvalidUse, Misaligned, OutOfBounds
from cuda_numba.namespace import cuda, uint8, uint32, uint64


@jit
def too_many_bytes(map: "uint64", y):
    tile, bars = cuda.shared.array(64, uint32, alignment=128), cuda.shared.array(1, uint64)
    bar = ptx.shared_address(bars)
    ptx.mbarrier_init(bar, 1)
    ptx.fence_mbarrier_init()
    ptx.mbarrier_arrive_expect_tx(bar, 260)
    ptx.tma_load_1d(ptx.shared_address(tile), map, 0, bar)
    ptx.mbarrier_wait(bar, 0)
    y[0] = tile[0]


@jit
def wrong_rank(map: "uint64", y):
    tile, bars = cuda.shared.array(64, uint32, alignment=128), cuda.shared.array(1, uint64)
    bar = ptx.shared_address(bars)
    ptx.mbarrier_init(bar, 1)
    ptx.fence_mbarrier_init()
    ptx.tma_load_2d(ptx.shared_address(tile), map, 0, 0, bar)


@jit
def no_map(map: "uint64", y):
    ptx.prefetch_tensormap(map + uint64(128 * 12345))


@jit
def too_big(map: "uint64", y):
    tile, bars = cuda.shared.array(32, uint32, alignment=128), cuda.shared.array(1, uint64)
    bar = ptx.shared_address(bars)
    ptx.mbarrier_init(bar, 1)
    ptx.fence_mbarrier_init()
    ptx.tma_load_1d(ptx.shared_address(tile), map, 0, bar)


@jit
def odd_bytes(map: "uint64", y):
    tile = cuda.shared.array(32, uint8, alignment=16)
    ptx.bulk_store(ptx.global_address(y), ptx.shared_address(tile), 24)


@pytest.mark.parametrize(
    ("kernel", "error", "message"),
    [
        (too_many_bytes, Deadlock, "misses 4 bytes of bulk copies"),
        (wrong_rank, InvalidUse, "tma_load_2d: the tensor map has 1 dimensions, not 2"),
        (no_map, InvalidUse, "is not the address of a tensor map"),
        (too_big, OutOfBounds, "256 bytes at shared address .* outside every array"),
        (odd_bytes, Misaligned, "the number of bytes is 0x18, it must be a multiple of 16"),
    ],
)
def test_wrong_uses_are_errors(kernel, error, message):
    x, y = np.arange(64, dtype=np.uint32), np.zeros(64, np.uint32)
    with pytest.raises(error, match=message):
        kernel[1, 1](ptx.tensor_map(x, (64,)), y)
    assert not y.any(), "something was copied"
