"""What the cross-entropy kernels share: how a row is divided, its running sum, the mean loss.

A row starts where the one before it ends, so with 50,257 bfloat16 columns most rows start in the
middle of 16 bytes. Its 16-byte pieces are then counted from the first aligned address on, and up to
seven elements before and after them are left for the first threads of the block, one each:

    |h0 h1 h2|  piece 0  |  piece 1  | … |  piece n−1  |t0 t1|       h: head, t: tail
             ↑ multiple of 16 bytes
"""

import functools

from . import ptx
from .dtypes import itemsize, vector_width
from .jit import jit
from .namespace import cuda, float32, int64, uint32, uint64
from .softmax_rows import exp_of, shift_of
from .warp import LOWEST, block_sum, warp_max, warp_sum

LN2 = 0.6931471805599453
NAN = float("nan")
SCRATCH = 129  # shared floats: twice two for each of 32 warps, and whether the block is the last
COUNT_AHEAD = 8  # targets that a thread has on their way


@functools.cache
def span_of(dtype: str):
    """Device function: elements before the first piece of a row, and its number of pieces."""
    SIZE = itemsize(dtype)
    SIZE_BITS, WIDTH_BITS = SIZE.bit_length() - 1, vector_width(dtype).bit_length() - 1

    @jit(device=True)
    def span(x, start, columns):
        address = ptx.global_address(x) + start * uint64(SIZE)
        head = uint32((uint64(16) - (address & uint64(15))) & uint64(15)) >> uint32(SIZE_BITS)
        head = min(head, columns)
        return head, uint32(columns - head) >> uint32(WIDTH_BITS)

    return span


@jit(device=True)
def edge_of(thread, head, inside, columns):
    """The element outside the pieces that the thread answers for, `columns` where there is none.

    inside: elements in the pieces.
    """
    at = thread
    if thread >= head:
        at = uint32(thread + inside)
    return min(at, columns)


@functools.cache
def include(width: int):
    """Device function: a running maximum and sum of exp(x − maximum), with `width` values more."""

    @jit(device=True)
    def add(values, peak, total):
        top = peak
        for j in range(width):
            top = max(top, values[j])
        shift = shift_of(top)
        total *= exp_of(peak - shift)
        for j in range(width):
            total += exp_of(values[j] - shift)
        return top, total

    return add


@jit(device=True)
def add_edge(edge, peak, total):
    """A running maximum and sum with one value more; −∞ adds nothing."""
    top = max(peak, edge)
    shift = shift_of(top)
    return top, total * exp_of(peak - shift) + exp_of(edge - shift)


@jit(device=True)
def block_maximum_and_sum(peak, total, scratch, side):
    """(m, s) of a block from its threads' own: m = max peak, s = Σ total · exp(peak − m).

    In every thread, after one barrier; scratch[side : side + 64] must not be what the call before
    has used. blockDim.x is a multiple of 32.
    """
    lane = uint32(cuda.threadIdx.x) & uint32(31)
    place = uint32(side) + (uint32(cuda.threadIdx.x) >> uint32(5))
    top = warp_max(peak)
    total = warp_sum(total * exp_of(peak - shift_of(top)))
    if lane == 0:
        scratch[place] = top
        scratch[place + uint32(32)] = total
    cuda.syncthreads()
    peak = float32(LOWEST)
    total = float32(0)
    if lane < uint32(cuda.blockDim.x) >> uint32(5):
        peak = scratch[uint32(side) + lane]
        total = scratch[uint32(side) + uint32(32) + lane]
    top = warp_max(peak)
    return top, warp_sum(total * exp_of(peak - shift_of(top)))


@jit(device=True)
def natural_log(x):
    return ptx.lg2(x) * float32(LN2)


@jit(device=True)
def kept_count(targets, rows, ignore, scratch, start):
    """How many targets are not `ignore`, as float32, in every thread; the whole block calls."""
    step = uint32(cuda.blockDim.x)
    count = uint32(0)
    i = uint32(cuda.threadIdx.x)
    while i < rows:
        for k in range(COUNT_AHEAD):
            at = uint32(i + uint32(k) * step)
            if at < rows:
                if int64(targets[at]) != ignore:
                    count = uint32(count + uint32(1))
        i = uint32(i + uint32(COUNT_AHEAD) * step)
    return block_sum(float32(count), scratch, start)


@jit(device=True)
def is_last(arrived, scratch):
    """Whether all other blocks of the grid have come here before; whole blocks call."""
    cuda.syncthreads()
    if cuda.threadIdx.x == 0:
        came = ptx.atomic_add_acq_rel(arrived, 0, 1)
        last = uint32(came) == uint32(cuda.gridDim.x) - uint32(1)
        scratch[128] = float32(1) if last else float32(0)
    cuda.syncthreads()
    return scratch[128] != float32(0)


@jit(device=True)
def finish(losses, loss, kept, arrived, rows, scratch):
    """loss = Σ losses / kept, by the block that comes last, in the order of the rows' numbers.

    Which block that is may change from run to run, the order of the additions does not.
    """
    total = float32(0)
    i = uint32(cuda.threadIdx.x)
    while i < rows:
        total += ptx.from_bits(ptx.load_32_cg(losses, i))
        i = uint32(i + uint32(cuda.blockDim.x))
    total = block_sum(total, scratch, 0)
    if cuda.threadIdx.x == 0:
        loss[0] = total / max(kept, float32(1))
        ptx.atomic_exchange(arrived, 0, 0)  # ready for the next launch


@functools.cache
def row_maximum_and_sum(dtype: str):
    """Device function: a thread's running maximum and sum over its pieces of a row in memory."""
    WIDTH = vector_width(dtype)
    AHEAD = 4 if WIDTH == 4 else 2  # 16-byte loads on their way; 16 values of them
    HELD = AHEAD * WIDTH
    add = include(HELD)

    @jit(device=True)
    def stream(x, first, vectors, values):
        step = uint32(cuda.blockDim.x)
        peak = float32(LOWEST)
        total = float32(0)
        i = uint32(cuda.threadIdx.x)
        while i < vectors:
            for k in range(AHEAD):
                at = uint32(i + uint32(k) * step)
                if at < vectors:
                    ptx.load_vector(x, first + uint64(at) * uint64(WIDTH), values, k * WIDTH)
                else:
                    for j in range(WIDTH):
                        values[k * WIDTH + j] = float32(LOWEST)
            peak, total = add(values, peak, total)
            i = uint32(i + uint32(AHEAD) * step)
        return peak, total

    return stream


HELD = 16  # values that `row_maximum_and_sum` needs room for
