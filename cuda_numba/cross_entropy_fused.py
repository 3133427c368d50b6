"""Cross-entropy and its gradient in one launch, the gradient in place of the logits.

A fixed number of blocks goes over the rows. The row that a block works on is in shared memory, and
a thread only ever uses the 16-byte pieces that it copied there itself: no barrier but the one of
the reduction. A piece whose gradient is written makes room at once for the same piece of the
block's next row, so that reading the next row goes on while this one is written:

    row r        read, maximum and sum      exp, write to memory
    row r + G    ────────────────────────── copies on their way ──  maximum and sum   exp, write …

50,304 bfloat16 columns are 100,608 bytes. 1024 threads take such a row, with up to 64 registers
each: one block to a multiprocessor of an H100, and faster than two blocks of 512 whose phases mix.
Rows that do not fit, and GPUs without cp.async (before sm_80), read every row twice; the second
read finds in L2 what fits there.

Bytes: 2 · rows · columns · itemsize (3 where rows are streamed). Two exponentials and about 13
instructions for each element: a third of the time that the memory takes.

Every block counts all targets first, while its first row is on its way: the gradient needs the
number. 132 blocks read 8.7 MB from L2 for 8192 rows. `counted` kernels are given the count instead:
for short rows, of which more blocks work at a time, and for a part of the rows of a batch, whose
loss is then this part's share of the batch's.
"""

import functools

from . import ptx
from .cross_entropy_row import (
    HELD,
    NAN,
    SCRATCH,
    add_edge,
    block_maximum_and_sum,
    edge_of,
    finish,
    include,
    is_last,
    kept_count,
    natural_log,
    row_maximum_and_sum,
    span_of,
)
from .dtypes import itemsize, vector_width
from .jit import jit
from .namespace import cuda, float16, float32, int32, int64, uint16, uint32, uint64
from .softmax_rows import exp_of, shift_of
from .warp import LOWEST

ELEMENT = {"float32": float32, "float16": float16, "bfloat16": uint16}


@functools.cache
def stage_of(dtype: str, staged: bool):
    """Device functions: copy a piece to shared memory, wait for all copies, maximum and sum over
    the pieces of the row, and one piece of it; without staging they read the row in memory."""
    SIZE, WIDTH = itemsize(dtype), vector_width(dtype)
    BYTES = SIZE * WIDTH
    add = include(WIDTH)
    stream = row_maximum_and_sum(dtype)

    @jit(device=True)
    def copy(x, first, held, i):
        source = ptx.global_address(x) + (first + uint64(i) * uint64(WIDTH)) * uint64(SIZE)
        ptx.cp_async_16(ptx.shared_address(held) + i * uint32(BYTES), source)

    @jit(device=True)
    def wait():
        ptx.cp_async_wait_all()

    @jit(device=True)
    def reduce(x, first, held, vectors, values):
        peak = float32(LOWEST)
        total = float32(0)
        i = uint32(cuda.threadIdx.x)
        while i < vectors:
            ptx.load_shared_vector(held, i * uint32(WIDTH), values, 0)
            peak, total = add(values, peak, total)
            i = uint32(i + uint32(cuda.blockDim.x))
        return peak, total

    @jit(device=True)
    def piece(x, first, held, i, values):
        ptx.load_shared_vector(held, i * uint32(WIDTH), values, 0)

    @jit(device=True)
    def no_copy(x, first, held, i):
        pass

    @jit(device=True)
    def no_wait():
        pass

    @jit(device=True)
    def reduce_in_memory(x, first, held, vectors, values):
        return stream(x, first, vectors, values)

    @jit(device=True)
    def piece_in_memory(x, first, held, i, values):
        ptx.load_vector(x, first + uint64(i) * uint64(WIDTH), values, 0)

    if staged:
        return copy, wait, reduce, piece
    return no_copy, no_wait, reduce_in_memory, piece_in_memory


@functools.cache
def fused_kernel(dtype: str, threads: int, blocks: int, staged: bool, counted: bool):
    """losses[row], loss, count, and out = (softmax(x) − [j = target]) · scale / count.

    out may be x itself. blocks: that a multiprocessor should hold. staged: columns · itemsize bytes
    of dynamic shared memory hold the row. counted: count[0] is there already. Blocks ≤ rows.
    """
    WIDTH, KIND = vector_width(dtype), ELEMENT[dtype]
    WIDTH_BITS = WIDTH.bit_length() - 1
    span = span_of(dtype)
    copy, wait, reduce, piece = stage_of(dtype, staged)

    @jit(pointers=True, launch_bounds=(threads, blocks))
    def cross_entropy_fused(
        x: dtype, out: dtype, targets: "int64", losses: "float32", loss: "float32",
        count: "float32", arrived: "int32", rows: "uint32", columns: "uint32", ignore: "int64",
        scale: "float32",
    ):  # fmt: skip
        scratch = cuda.shared.array(SCRATCH, float32)
        held = cuda.shared.array(0, KIND, 16)
        values = cuda.local.array(HELD, float32)
        thread = uint32(cuda.threadIdx.x)
        row = uint32(cuda.blockIdx.x)
        start = uint64(row) * uint64(columns)
        head, vectors = span(x, start, columns)
        target = int64(targets[row])
        i = thread
        while i < vectors:
            copy(x, start + uint64(head), held, i)
            i = uint32(i + uint32(threads))
        if counted:
            total_kept = count[0]
        else:
            total_kept = kept_count(targets, rows, ignore, scratch, 32)
        rate = scale / max(total_kept, float32(1))
        side = uint32(64)  # of the scratch; slow warps may still read the one used before

        while row < rows:
            kept = target != ignore
            inside = target >= 0 and target < int64(columns)
            place = uint32(target) if kept and inside else columns
            first = start + uint64(head)
            at = edge_of(thread, head, vectors * uint32(WIDTH), columns)
            edge = float32(LOWEST)
            if at < columns:
                edge = ptx.load(x, start + uint64(at))
            aim = float32(NAN)  # what a target outside the row makes of its loss and gradient
            if place < columns:
                aim = ptx.load(x, start + uint64(place))
            next_row = uint32(row + uint32(cuda.gridDim.x))
            next_start = uint64(next_row) * uint64(columns)
            next_head = head
            next_vectors = uint32(0)
            next_target = target
            if next_row < rows:
                next_head, next_vectors = span(x, next_start, columns)
                next_target = int64(targets[next_row])

            # Maximum and sum. All threads agree on `kept`: the barriers are reached by all or none.
            wait()
            shift = float32(0)
            factor = float32(0)
            inverse = float32(0)
            if kept:
                peak, total = reduce(x, first, held, vectors, values)
                peak, total = add_edge(edge, peak, total)
                peak, total = block_maximum_and_sum(peak, total, scratch, side)
                side ^= uint32(64)
                shift = shift_of(peak)
                inverse = ptx.rcp(total)
                factor = inverse * (rate if inside else float32(NAN))
                if thread == 0:
                    losses[row] = (shift - aim) + natural_log(total)
            elif thread == 0:
                losses[row] = float32(0)

            # The gradient, and copies of the next row into the pieces that are done with.
            i = thread
            while i < vectors:
                if kept:
                    piece(x, first, held, i, values)
                    for j in range(WIDTH):
                        values[j] = exp_of(values[j] - shift) * factor
                else:
                    for j in range(WIDTH):
                        values[j] = float32(0)
                ptx.store_vector(out, first + uint64(i) * uint64(WIDTH), values, 0)
                if i < next_vectors:
                    copy(x, next_start + uint64(next_head), held, i)
                i = uint32(i + uint32(threads))
            while i < next_vectors:
                copy(x, next_start + uint64(next_head), held, i)
                i = uint32(i + uint32(threads))
            if at < columns:
                value = exp_of(edge - shift) * factor if kept else float32(0)
                ptx.store(out, start + uint64(at), value)
            # The target's own element, once more, by the thread that has just written it.
            if place < columns:
                owner = at == place
                if place >= head and place < head + vectors * uint32(WIDTH):
                    of_piece = uint32(place - head) >> uint32(WIDTH_BITS)
                    owner = (of_piece & uint32(threads - 1)) == thread
                if owner:
                    value = (exp_of(aim - shift) * inverse - float32(1)) * rate
                    ptx.store(out, start + uint64(place), value)
            row, start, head = next_row, next_start, next_head
            vectors, target = next_vectors, next_target
        if is_last(arrived, scratch):
            finish(losses, loss, total_kept, arrived, rows, scratch)

    return cross_entropy_fused
