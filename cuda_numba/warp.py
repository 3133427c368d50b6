"""Sums and maxima over a warp and over a block: what every kernel with a row in it needs.

A shuffle lets each lane of a warp read a register of another one. With "xor" the lanes pair up, 16
apart, then 8, 4, 2, 1; after five steps every lane holds the result, and all the same bits, since
a + b and b + a are equal:

    step 0    0 ↔ 16   1 ↔ 17   …   15 ↔ 31
    step 1    0 ↔ 8    1 ↔ 9    …   23 ↔ 31
    step 4    0 ↔ 1    2 ↔ 3    …   30 ↔ 31

A block puts one number per warp into shared memory, meets at a barrier, and every warp reduces
those numbers once more. (PTX ISA, "shfl.sync".)
"""

from .jit import jit
from .namespace import cuda, float32, uint32

LANES = 0xFFFFFFFF  # the mask of a shuffle in which the whole warp takes part
LOWEST = float("-inf")


@jit(device=True)
def larger(a, b):
    """The larger of two numbers, NaN if one of them is. A select, not a branch."""
    return cuda.selp((a > b) | (a != a), a, b)


@jit(device=True)
def warp_sum(value):
    """The sum of `value` over the 32 lanes of a warp, in every lane: five shuffles."""
    for step in range(5):
        value += cuda.shfl_xor_sync(LANES, value, 16 >> step)
    return value


@jit(device=True)
def warp_max(value):
    """The largest `value` of the 32 lanes of a warp, in every lane, NaN if there is one."""
    for step in range(5):
        value = larger(value, cuda.shfl_xor_sync(LANES, value, 16 >> step))
    return value


@jit(device=True)
def block_sum(value, scratch, start):
    """The sum of `value` (float32) over a block, in every thread: one barrier.

    scratch[start : start + 32] is shared float32 memory. blockDim.x is a multiple of 32, the block
    has one dimension, and all its threads call. Slow warps may still read the scratch when fast
    ones return: the next call takes another part of it (0 and 32 by turns), or a barrier stands
    between.
    """
    lane = uint32(cuda.threadIdx.x) & uint32(31)
    warp = uint32(cuda.threadIdx.x) >> uint32(5)
    value = warp_sum(value)
    if lane == 0:
        scratch[uint32(start) + warp] = value
    cuda.syncthreads()
    value = float32(0)
    if lane < uint32(cuda.blockDim.x) >> uint32(5):
        value = scratch[uint32(start) + lane]
    return warp_sum(value)


@jit(device=True)
def block_max(value, scratch, start):
    """The largest `value` (float32) of a block, in every thread, as `block_sum`."""
    lane = uint32(cuda.threadIdx.x) & uint32(31)
    warp = uint32(cuda.threadIdx.x) >> uint32(5)
    value = warp_max(value)
    if lane == 0:
        scratch[uint32(start) + warp] = value
    cuda.syncthreads()
    value = float32(LOWEST)
    if lane < uint32(cuda.blockDim.x) >> uint32(5):
        value = scratch[uint32(start) + lane]
    return warp_max(value)
