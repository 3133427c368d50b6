"""What the two passes of the embedding's sort share: digits, prefix sums, places, zeros, waiting.

In both, every warp of a block counts the digits of its own stretch of tokens, a sum over the warps
gives each of them its first place for every digit, and in a second pass the lanes with equal digits
find their order by `match_any`. So tokens of one digit stay in the order of their numbers.
"""

import functools

from . import ptx
from .jit import jit
from .namespace import cuda, float32, int32, int64, uint32

LANES = 0xFFFFFFFF
THREADS = 512
WARPS = THREADS // 32
CLEARED = 8  # stores of a clearing thread
NONE = 0xFFFFFFFF  # the id of a token that is left out


@jit(device=True)
def id_of(ids, i, n, rows):
    """ids[i] as uint32, NONE where there is no token i or its id is outside."""
    key = int64(-1)
    if i < n:
        key = int64(ids[i])
    return uint32(key) if 0 <= key and key < rows else uint32(NONE)


@jit(device=True)
def before(value, scratch):
    """The sum of `value` (int32) over the threads before this one; scratch: WARPS of shared int32.

    All threads of the block call it; a barrier stands before the next use of scratch.
    """
    lane = int32(cuda.threadIdx.x & 31)
    warp = int32(cuda.threadIdx.x >> 5)
    total = value
    for step in range(5):
        other = int32(cuda.shfl_up_sync(LANES, total, 1 << step))
        if lane >= 1 << step:
            total = int32(total + other)
    if lane == 31:
        scratch[warp] = total
    cuda.syncthreads()
    total = int32(total - value)
    for w in range(WARPS):
        if w < warp:
            total = int32(total + scratch[w])
    return total


@jit(device=True)
def place_of(tally, counter, inside):
    """The next free place by this lane's counter, one of its warp's, which moves on; lanes with
    the same one get places in the order of the lanes. A lane with `inside` False gets none."""
    below = uint32((uint32(1) << uint32(cuda.threadIdx.x & 31)) - uint32(1))
    label = int32(counter) if inside else int32(-1)
    peers = uint32(cuda.match_any_sync(LANES, label))
    rank = int32(cuda.popc(peers & below))
    place = int32(0)
    if inside:
        place = int32(tally[counter] + rank)
    cuda.syncwarp()
    if inside and rank == 0:
        tally[counter] += int32(cuda.popc(peers))
    cuda.syncwarp()
    return place


@functools.cache
def clearer(width: int):
    """A device function that writes zeros to accesses `i`, i + THREADS … below `end`."""

    @jit(device=True)
    def clear_vector(dw, i, end):
        zero = uint32(0)
        for _ in range(CLEARED):
            if i < end:
                ptx.store_128(dw, i * width, zero, zero, zero, zero)
            i += THREADS

    @jit(device=True)
    def clear_element(dw, i, end):
        for _ in range(CLEARED):
            if i < end:
                ptx.store(dw, i, float32(0))
            i += THREADS

    return clear_vector if width > 1 else clear_element


@functools.cache
def chain(overlap: bool):
    """Device functions for launches that follow each other: let the next one start, and wait for
    the one before to end. Without `overlap` they do nothing: a launch starts when all is done."""

    @jit(device=True)
    def start_next():
        ptx.grid_launch_dependents()

    @jit(device=True)
    def await_previous():
        ptx.grid_wait()

    @jit(device=True)
    def nothing():
        pass

    return (start_next, await_previous) if overlap else (nothing, nothing)
