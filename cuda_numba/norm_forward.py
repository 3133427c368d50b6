"""LayerNorm and RMSNorm, forward, with the row in registers: read once, written once.

A team of warps takes one row, and then is done: the GPU gives its place to the next block, so that
a multiprocessor which is late gets fewer rows. Per row

    1  all loads of the row are issued: 16 bytes, up to four times per thread
    2  mean = Σ x / n over the team         shuffles, shared memory, a barrier
    3  Σ (x − mean)² over the team          the same
    4  every thread normalises its part of the row and stores it, `.cs`

Step 3 is the two-pass formula, with both passes over registers: it does not cancel where the mean
is large against the spread, as E[x²] − E[x]² does. RMSNorm leaves out step 2. A row that one warp
holds needs no barrier.

A block that waits at a barrier asks for nothing, but others do: at 64 registers a thread, eight
rows of 4096 are in a multiprocessor, 64 KB, and a copy's 3.0 TB/s at 1 µs of latency needs 24 KB on
their way. Weight and bias are read for every row, from L1 as a rule. No access has a cache hint: x
past L1 and y as the first to leave L2 were no faster (decisions, "a cache full of others' lines").

bf16 16384 × 4096 on an H100: 268 MB, 89 µs at a copy's speed.
"""

import functools

from . import ptx
from .jit import jit
from .namespace import cuda, float32, int32, int64, uint32
from .norm_access import RowPlan, Variant, access, row_plan
from .warp import block_sum, warp_sum

RESIDENT = 1024  # threads of a multiprocessor, at 64 registers each


def forward_plan(n: int, width: int) -> RowPlan | None:
    """A thread has four accesses of 16 bytes, or 16 of one element; None: the row is too wide."""
    return row_plan(n, width, 4 * width if width > 1 else 16)


@functools.cache
def team_sum(warps: int):
    """Device function: the sum over the team, in every thread; at most one barrier.

    start: 0 and 32 by turns, as in `block_sum`.
    """

    @jit(device=True)
    def sum_of_team(value, scratch, start):
        if warps == 1:
            return warp_sum(value)
        return block_sum(value, scratch, start)

    return sum_of_team


@functools.cache
def forward_kernel(
    dtype: str, wdtype: str, plan: RowPlan, variant: Variant, resident: int = RESIDENT
):
    """y = (x − mean) · rstd · w + b, mean and rstd; with a residual also total = x + residual.

    One team per row: a grid of ⌈rows / plan.rows⌉ blocks. resident: threads of a multiprocessor
    for which there must be registers.
    """
    CENTRED, BIAS, RESIDUAL = variant
    WIDTH, ACCESSES, WARPS, ROWS, EXACT = plan
    STEP = plan.step
    io, weight_io = access(dtype, WIDTH), access(wdtype, WIDTH)
    WORDS, WEIGHT_WORDS = io.words, weight_io.words
    HELD = ACCESSES * WORDS
    HELD_EXTRA = HELD if RESIDUAL else 1
    load, unpack, pack, store = io.load, io.unpack, io.pack, io.store
    load_weight, unpack_weight = weight_io.load, weight_io.unpack
    sum_of_team = team_sum(WARPS)

    @jit(pointers=True, launch_bounds=(plan.threads, max(1, resident // plan.threads)))
    def norm_forward(
        x: dtype, residual: dtype, w: wdtype, b: wdtype, y: dtype, total: dtype,
        mean: "float32", rstd: "float32", rows: "int32", n: "int32", share: "float32",
        eps: "float32",
    ):  # fmt: skip
        scratch = cuda.shared.array(64, float32)
        words = cuda.local.array(HELD, uint32)
        extra = cuda.local.array(HELD_EXTRA, uint32)
        weight = cuda.local.array(WEIGHT_WORDS, uint32)
        piece = cuda.local.array(WORDS, uint32)
        v = cuda.local.array(WIDTH, float32)
        u = cuda.local.array(WIDTH, float32)
        thread = int32(cuda.threadIdx.x)
        first = int32(thread * WIDTH)
        row = int32(cuda.blockIdx.x)
        if WARPS == 1:
            first = int32((thread & 31) * WIDTH)
            row = int32(row * ROWS + (thread >> 5))
            if row >= rows:  # a whole warp leaves, and there is no barrier ahead
                return
        start = int64(row) * n + first
        for k in range(ACCESSES):
            if EXACT or int32(first + k * STEP) < n:
                load(x, start + k * STEP, words, k * WORDS)
                if RESIDUAL:
                    load(residual, start + k * STEP, extra, k * WORDS)
        if RESIDUAL:  # rounded to the format: statistics and output are those of what is stored
            for k in range(ACCESSES):
                if EXACT or int32(first + k * STEP) < n:
                    unpack(words, k * WORDS, v)
                    unpack(extra, k * WORDS, u)
                    for j in range(WIDTH):
                        v[j] += u[j]
                    pack(v, words, k * WORDS)
                    store(total, start + k * STEP, words, k * WORDS)

        middle = float32(0)
        if CENTRED:
            for k in range(ACCESSES):
                if EXACT or int32(first + k * STEP) < n:
                    unpack(words, k * WORDS, v)
                    for j in range(WIDTH):
                        middle += v[j]
            middle = sum_of_team(middle, scratch, 0) * share
        squares = float32(0)
        for k in range(ACCESSES):
            if EXACT or int32(first + k * STEP) < n:
                unpack(words, k * WORDS, v)
                for j in range(WIDTH):
                    squares += (v[j] - middle) * (v[j] - middle)
        scale = ptx.rsqrt(sum_of_team(squares, scratch, 32) * share + eps)

        for k in range(ACCESSES):
            if EXACT or int32(first + k * STEP) < n:
                unpack(words, k * WORDS, v)
                load_weight(w, first + k * STEP, weight, 0)
                unpack_weight(weight, 0, u)
                for j in range(WIDTH):
                    v[j] = (v[j] - middle) * scale * u[j]
                if BIAS:
                    load_weight(b, first + k * STEP, weight, 0)
                    unpack_weight(weight, 0, u)
                    for j in range(WIDTH):
                        v[j] += u[j]
                pack(v, piece, 0)
                store(y, start + k * STEP, piece, 0)
        if first == 0:
            if CENTRED:
                mean[row] = middle
            rstd[row] = scale

    return norm_forward
