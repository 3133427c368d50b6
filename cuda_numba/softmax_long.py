"""Softmax of rows that the registers of a multiprocessor cannot hold: streamed, and read twice.

The first read keeps a running maximum and a running sum per thread (online softmax, Milakov &
Gimelshein 2018), corrected once per round of AHEAD accesses rather than once per element; the
second read writes the result. The backward pass sums dy · y first and reads both again. Bytes:
forward 3, backward 5 times rows · columns · itemsize, of which the second reads find in the 50 MB
L2 of an H100 what 132 multiprocessors read last, up to about 190 KB a row.

    round 0                                              round 1
    |t0|t1| … |t511|t0|t1| … |t511|  …  AHEAD times      |t0|t1| …      16 bytes each
"""

import functools

from . import ptx
from .jit import jit
from .namespace import cuda, float32, uint32, uint64
from .softmax_rows import exp_of, shift_of
from .warp import LOWEST, block_max, block_sum

LONG_THREADS = 512  # two blocks to a multiprocessor: one loads while the other waits at a barrier


def ahead(width: int) -> int:
    """Accesses that a thread has on their way: 64 bytes in four of them, or 16 elements."""
    return 4 if width > 1 else 16


@functools.cache
def load_round(width: int):
    """Device function: the next accesses of a thread, those past the row's end as `absent`."""
    AHEAD = ahead(width)

    @jit(device=True)
    def load(x, start, i, count, values, absent):
        for k in range(AHEAD):
            at = i + uint32(k * LONG_THREADS)
            if at < count:
                if width > 1:
                    ptx.load_vector(x, start + uint64(at * uint32(width)), values, k * width)
                else:
                    values[k] = ptx.load(x, start + uint64(at))
            else:
                for j in range(width):
                    values[k * width + j] = absent

    return load


@functools.cache
def store_round(width: int):
    """Device function: the opposite of `load_round`."""
    AHEAD = ahead(width)

    @jit(device=True)
    def store(y, start, i, count, values):
        for k in range(AHEAD):
            at = i + uint32(k * LONG_THREADS)
            if at < count:
                if width > 1:
                    ptx.store_vector(y, start + uint64(at * uint32(width)), values, k * width)
                else:
                    ptx.store(y, start + uint64(at), values[k])

    return store


@functools.cache
def long_forward_kernel(dtype: str, width: int):
    """y = softmax(x), one block per row; count = columns / width accesses to a row."""
    load, store = load_round(width), store_round(width)
    HELD = ahead(width) * width
    ROUND = ahead(width) * LONG_THREADS

    @jit(pointers=True, launch_bounds=(LONG_THREADS, 2))
    def softmax_long_forward(x: dtype, y: dtype, columns: "uint32", count: "uint32"):
        scratch = cuda.shared.array(64, float32)
        values = cuda.local.array(HELD, float32)
        start = uint64(cuda.blockIdx.x) * uint64(columns)
        peak = float32(LOWEST)
        total = float32(0)
        i = uint32(cuda.threadIdx.x)
        while i < count:
            load(x, start, i, count, values, float32(LOWEST))
            top = peak
            for j in range(HELD):
                top = max(top, values[j])
            shift = shift_of(top)
            total *= exp_of(peak - shift)
            for j in range(HELD):
                total += exp_of(values[j] - shift)
            peak = top
            i = uint32(i + uint32(ROUND))

        top = block_max(peak, scratch, 0)
        total = block_sum(total * exp_of(peak - shift_of(top)), scratch, 32)
        factor = ptx.rcp(total)
        i = uint32(cuda.threadIdx.x)
        while i < count:
            load(x, start, i, count, values, float32(LOWEST))
            for j in range(HELD):
                values[j] = exp_of(values[j] - top) * factor
            store(y, start, i, count, values)
            i = uint32(i + uint32(ROUND))

    return softmax_long_forward


@functools.cache
def long_backward_kernel(dtype: str, width: int):
    """dx = y · (dy − Σ dy · y), one block per row; count = columns / width accesses to a row."""
    load, store = load_round(width), store_round(width)
    HELD = ahead(width) * width
    ROUND = ahead(width) * LONG_THREADS

    @jit(pointers=True, launch_bounds=(LONG_THREADS, 1))
    def softmax_long_backward(dy: dtype, y: dtype, dx: dtype, columns: "uint32", count: "uint32"):
        scratch = cuda.shared.array(32, float32)
        grads = cuda.local.array(HELD, float32)
        values = cuda.local.array(HELD, float32)
        start = uint64(cuda.blockIdx.x) * uint64(columns)
        total = float32(0)
        i = uint32(cuda.threadIdx.x)
        while i < count:
            load(dy, start, i, count, grads, float32(0))
            load(y, start, i, count, values, float32(0))
            for j in range(HELD):
                total += grads[j] * values[j]
            i = uint32(i + uint32(ROUND))

        total = block_sum(total, scratch, 0)
        i = uint32(cuda.threadIdx.x)
        while i < count:
            load(dy, start, i, count, grads, float32(0))
            load(y, start, i, count, values, float32(0))
            for j in range(HELD):
                values[j] *= grads[j] - total
            store(dx, start, i, count, values)
            i = uint32(i + uint32(ROUND))

    return softmax_long_backward
