"""Cross-entropy, forward and backward apart: the loss and the log-sum-exp, then the gradient.

One block has one row. Forward, every thread keeps a running maximum and sum over its 16-byte pieces
(Milakov & Gimelshein 2018, algorithm 3) and the row is read once; the block that ends last adds the
losses up. Backward, dx = (exp(x − lse) − [j = target]) · dy / count, each element for itself, with
dy and count read from memory: nothing waits for the GPU.

Bytes: forward 1, backward 2 times rows · columns · itemsize.
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
    is_last,
    kept_count,
    natural_log,
    row_maximum_and_sum,
    span_of,
)
from .dtypes import vector_width
from .jit import jit
from .namespace import cuda, float32, int32, int64, uint32, uint64
from .softmax_rows import exp_of, shift_of
from .warp import LOWEST

AHEAD = 2  # pieces that a thread of the backward pass has on their way
SCALE_THREADS = 256
SCALE_ROUNDS = 16  # accesses of a thread: few blocks, for most often they only read that dy is 1


@functools.cache
def forward_kernel(dtype: str, threads: int):
    """losses[row] and lse[row], loss = Σ losses / count and count; a block per row."""
    WIDTH = vector_width(dtype)
    span, stream = span_of(dtype), row_maximum_and_sum(dtype)

    @jit(pointers=True, launch_bounds=(threads, 1))
    def cross_entropy_forward(
        x: dtype, targets: "int64", losses: "float32", lse: "float32", loss: "float32",
        count: "float32", arrived: "int32", rows: "uint32", columns: "uint32", ignore: "int64",
    ):  # fmt: skip
        scratch = cuda.shared.array(SCRATCH, float32)
        values = cuda.local.array(HELD, float32)
        thread = uint32(cuda.threadIdx.x)
        row = uint32(cuda.blockIdx.x)
        start = uint64(row) * uint64(columns)
        target = int64(targets[row])
        head, vectors = span(x, start, columns)
        at = edge_of(thread, head, vectors * uint32(WIDTH), columns)
        edge = float32(LOWEST)
        if at < columns:
            edge = ptx.load(x, start + uint64(at))
        peak, total = stream(x, start + uint64(head), vectors, values)
        peak, total = add_edge(edge, peak, total)
        peak, total = block_maximum_and_sum(peak, total, scratch, 0)
        shift = shift_of(peak)
        if thread == 0:
            log_sum = natural_log(total)
            lse[row] = shift + log_sum
            value = float32(0)
            if target != ignore:
                value = float32(NAN)
                if target >= 0 and target < int64(columns):
                    value = (shift - ptx.load(x, start + uint64(target))) + log_sum
            losses[row] = value
        if is_last(arrived, scratch):
            kept = kept_count(targets, rows, ignore, scratch, 32)
            if thread == 0:
                count[0] = kept
            finish(losses, loss, kept, arrived, rows, scratch)

    return cross_entropy_forward


@functools.cache
def backward_kernel(dtype: str, threads: int):
    """dx of the mean from lse; out may be x itself."""
    WIDTH = vector_width(dtype)
    ROOM = AHEAD * WIDTH
    span = span_of(dtype)

    @jit(pointers=True, launch_bounds=(threads, 1))
    def cross_entropy_backward(
        x: dtype, out: dtype, targets: "int64", lse: "float32", dy: "float32", count: "float32",
        columns: "uint32", ignore: "int64",
    ):  # fmt: skip
        values = cuda.local.array(ROOM, float32)
        thread = uint32(cuda.threadIdx.x)
        row = uint32(cuda.blockIdx.x)
        start = uint64(row) * uint64(columns)
        target = int64(targets[row])
        kept = target != ignore
        inside = target >= 0 and target < int64(columns)
        place = uint32(target) if kept and inside else columns
        rate = dy[0] / max(count[0], float32(1))
        if kept and not inside:
            rate = float32(NAN)
        shift = lse[row]
        head, vectors = span(x, start, columns)
        at = edge_of(thread, head, vectors * uint32(WIDTH), columns)
        if at < columns:
            value = float32(0)
            if kept:
                value = exp_of(ptx.load(x, start + uint64(at)) - shift)
                if at == place:
                    value -= float32(1)
                value *= rate
            ptx.store(out, start + uint64(at), value)
        i = thread
        while i < vectors:
            for k in range(AHEAD):
                if i + uint32(k * threads) < vectors:
                    first = uint32(head + uint32(i + uint32(k * threads)) * uint32(WIDTH))
                    ptx.load_vector(x, start + uint64(first), values, k * WIDTH)
            for k in range(AHEAD):
                if i + uint32(k * threads) < vectors:
                    first = uint32(head + uint32(i + uint32(k * threads)) * uint32(WIDTH))
                    for j in range(WIDTH):
                        value = exp_of(values[k * WIDTH + j] - shift)
                        if first + uint32(j) == place:
                            value -= float32(1)
                        values[k * WIDTH + j] = value * rate if kept else float32(0)
                    ptx.store_vector(out, start + uint64(first), values, k * WIDTH)
            i = uint32(i + uint32(AHEAD * threads))

    return cross_entropy_backward


@jit(pointers=True, launch_bounds=(1024, 1))
def count_targets(targets: "int64", count: "float32", rows: "uint32", ignore: "int64"):
    """count[0] = how many targets are not `ignore`; one block."""
    scratch = cuda.shared.array(32, float32)
    kept = kept_count(targets, rows, ignore, scratch, 0)
    if cuda.threadIdx.x == 0:
        count[0] = kept


@functools.cache
def scale_kernel(dtype: str, width: int):
    """x *= dy[0]; nothing is read or written where dy[0] is 1. accesses = n // width."""

    @jit(pointers=True, launch_bounds=(SCALE_THREADS, 1))
    def scale_gradient(x: dtype, dy: "float32", n: "int64", accesses: "int64"):
        values = cuda.local.array(width, float32)
        factor = dy[0]
        if factor == float32(1):
            return
        first = int64(cuda.blockIdx.x) * (SCALE_THREADS * SCALE_ROUNDS) + cuda.threadIdx.x
        for k in range(SCALE_ROUNDS):
            i = first + k * SCALE_THREADS
            if i < accesses:
                if width > 1:
                    ptx.load_vector(x, i * width, values, 0)
                    for j in range(width):
                        values[j] *= factor
                    ptx.store_vector(x, i * width, values, 0)
                else:
                    ptx.store(x, i, ptx.load(x, i) * factor)
        rest = accesses * width + first  # the last n % width elements
        if rest < n:
            ptx.store(x, rest, ptx.load(x, rest) * factor)

    return scale_gradient
