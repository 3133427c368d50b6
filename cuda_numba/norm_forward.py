"""LayerNorm and RMSNorm, forward, with the row in registers: read once, written once.

A grid of as many blocks as the GPU holds walks over the rows. Per row, a team of warps

    1  issues the loads of its next row
    2  takes, warp by warp, the mean m of its elements and S = Σ (x − m)²
    3  leaves the pair in shared memory; one barrier
    4  joins the pairs, every thread for itself
    5  normalises its part of the row and stores it

Step 2 is the two-pass formula with the row in registers for both passes; step 4 joins the warps by
the formula of Chan, Golub & LeVeque (1983, "Algorithms for computing the sample variance", eq.
2.1): with means mᵢ of nᵢ elements, Σ (x − m)² = Σᵢ (Sᵢ + nᵢ (mᵢ − m)²). Neither cancels where the
mean is large against the spread, as E[x²] − E[x]² does. The two halves of the shared memory take
turns, so a warp that is a row ahead never overwrites what a slow one still reads, and one barrier
per row is enough. A row that one warp holds needs none.

Weight and bias are loaded once per block and stay in registers over all its rows.
bf16 16384 × 4096 on an H100: 268 MB, 89 µs at the 3.0 TB/s of a copy; about 540 instructions a row
and warp, or 24 µs of issue slots. 96 registers, 5 blocks of 128 threads on a multiprocessor, 40 KB
of next rows on their way in each: a copy's 3.0 TB/s at 1 µs of latency needs 12.
"""

import functools
from typing import NamedTuple

from . import ptx
from .jit import jit
from .namespace import cuda, float32, int32, int64, uint32
from .norm_access import WARP, RowPlan, Variant, access, blocks_that_fit, row_loader, row_plan
from .warp import warp_sum

ENOUGH = 384  # threads of a multiprocessor, each with 64 bytes of its next row on their way: 24 KB


class Held(NamedTuple):
    """What a thread keeps in registers, and how many blocks then fit on a multiprocessor."""

    weights: bool  # weight and bias, for all rows; else they are loaded for every row, from L1
    ahead: bool  # the next row is on its way while this one is reduced
    blocks: int


def forward_plan(n: int, width: int) -> RowPlan | None:
    """A thread has four accesses of 16 bytes, or 16 of one element; None: the row is too wide."""
    return row_plan(n, width, 4 * width if width > 1 else 16)


def forward_held(dtype: str, wdtype: str, plan: RowPlan, variant: Variant) -> Held:
    """The first choice whose registers leave room for ENOUGH threads.

    `base`: the row as float32, addresses and counters, as ptxas reports them; the other rows and
    the weights as words.
    """
    words = plan.accesses * access(dtype, plan.width).words
    extra = words * variant.residual
    weights = plan.accesses * access(wdtype, plan.width).words * (1 + variant.bias)
    base = plan.elements + (36 if plan.exact else 48) + extra
    for kept, registers in ((True, base + words + extra + weights), (False, base + words + extra)):
        blocks = blocks_that_fit(plan.threads, registers)
        if blocks * plan.threads >= ENOUGH:
            return Held(kept, True, blocks)
    return Held(False, False, 1)


@functools.cache
def forward_kernel(dtype: str, wdtype: str, plan: RowPlan, variant: Variant):
    """y = (x − mean) · rstd · w + b, mean and rstd; with a residual also total = x + residual."""
    CENTRED, BIAS, RESIDUAL = variant
    KEPT, AHEAD, BLOCKS = forward_held(dtype, wdtype, plan, variant)
    WIDTH, ACCESSES, WARPS, ROWS, EXACT = plan
    STEP = plan.step
    io, weight_io = access(dtype, WIDTH), access(wdtype, WIDTH)
    WORDS, WEIGHT_WORDS = io.words, weight_io.words
    HELD, HELD_EXTRA = ACCESSES * WORDS, ACCESSES * WORDS if RESIDUAL else 1
    HELD_WEIGHTS = ACCESSES * WEIGHT_WORDS if KEPT else WEIGHT_WORDS
    SCRATCH = 4 * WARPS  # two halves of a mean and a sum of squares per warp
    load_row, load_weights = row_loader(dtype, plan), row_loader(wdtype, plan, True)
    load_weight, unpack_weight = weight_io.load_cached, weight_io.unpack
    unpack, pack, store = io.unpack, io.pack, io.store

    @jit(pointers=True, launch_bounds=(plan.threads, BLOCKS))
    def norm_forward(
        x: dtype, residual: dtype, w: wdtype, b: wdtype, y: dtype, total: dtype,
        mean: "float32", rstd: "float32", rows: "int32", n: "int32", share: "float32",
        eps: "float32",
    ):  # fmt: skip
        scratch = cuda.shared.array(SCRATCH, float32)
        owned = cuda.shared.array(WARPS, float32)  # elements of each warp
        words = cuda.local.array(HELD, uint32)
        coming = cuda.local.array(HELD, uint32)
        extra = cuda.local.array(HELD_EXTRA, uint32)
        coming_extra = cuda.local.array(HELD_EXTRA, uint32)
        weights = cuda.local.array(HELD_WEIGHTS, uint32)
        biases = cuda.local.array(HELD_WEIGHTS, uint32)
        v = cuda.local.array(WIDTH, float32)
        u = cuda.local.array(WIDTH, float32)
        piece = cuda.local.array(WORDS, uint32)

        thread = int32(cuda.threadIdx.x)
        lane = uint32(thread & 31)
        warp = uint32(thread >> 5)
        first = int32((thread & 31) * WIDTH) if WARPS == 1 else int32(thread * WIDTH)
        row = int32(cuda.blockIdx.x)
        if WARPS == 1:
            row = int32(row * ROWS + (thread >> 5))
        count = float32(WARP * ACCESSES * WIDTH)  # elements of this warp
        if not EXACT:
            count = float32(0)
            for k in range(ACCESSES):
                if int32(first + k * STEP) < n:
                    count += float32(WIDTH)
            count = warp_sum(count)
        if WARPS > 1 and lane == 0:
            owned[warp] = count
        per_element = ptx.rcp(count)
        if KEPT:
            load_weights(w, 0, first, n, weights)
            if BIAS:
                load_weights(b, 0, first, n, biases)
        if row < rows:
            load_row(x, int64(row) * n, first, n, words)
            if RESIDUAL:
                load_row(residual, int64(row) * n, first, n, extra)
        side = uint32(0)
        while row < rows:
            start = int64(row) * n + first
            after = int32(row + cuda.gridDim.x * ROWS)
            if AHEAD and after < rows:
                load_row(x, int64(after) * n, first, n, coming)
                if RESIDUAL:
                    load_row(residual, int64(after) * n, first, n, coming_extra)
            if RESIDUAL:  # rounded to the format: statistics and output are those of what is stored
                for k in range(ACCESSES):
                    unpack(words, k * WORDS, v)
                    unpack(extra, k * WORDS, u)
                    for j in range(WIDTH):
                        v[j] += u[j]
                    pack(v, words, k * WORDS)
                    if EXACT or int32(first + k * STEP) < n:
                        store(total, start + k * STEP, words, k * WORDS)

            middle = float32(0)
            if CENTRED:
                for k in range(ACCESSES):
                    unpack(words, k * WORDS, v)
                    for j in range(WIDTH):
                        middle += v[j]
                middle = warp_sum(middle) * per_element
            squares = float32(0)
            for k in range(ACCESSES):
                if EXACT or int32(first + k * STEP) < n:
                    unpack(words, k * WORDS, v)
                    for j in range(WIDTH):
                        squares += (v[j] - middle) * (v[j] - middle)
            squares = warp_sum(squares)
            if WARPS > 1:
                if lane == 0:
                    scratch[uint32(side + warp)] = middle
                    scratch[uint32(side + WARPS + warp)] = squares
                cuda.syncthreads()
                if CENTRED:
                    middle = float32(0)
                    for i in range(WARPS):
                        middle += scratch[uint32(side + i)] * (owned[i] * share)
                squares = float32(0)
                for i in range(WARPS):
                    squares += scratch[uint32(side + WARPS + i)]
                    if CENTRED:
                        apart = scratch[uint32(side + i)] - middle
                        squares += owned[i] * (apart * apart)
                side = uint32(2 * WARPS - side)

            scale = ptx.rsqrt(squares * share + eps)
            for k in range(ACCESSES):
                if EXACT or int32(first + k * STEP) < n:
                    unpack(words, k * WORDS, v)
                    if KEPT:
                        unpack_weight(weights, k * WEIGHT_WORDS, u)
                    else:
                        load_weight(w, first + k * STEP, weights, 0)
                        unpack_weight(weights, 0, u)
                    for j in range(WIDTH):
                        v[j] = (v[j] - middle) * scale * u[j]
                    if BIAS:
                        if KEPT:
                            unpack_weight(biases, k * WEIGHT_WORDS, u)
                        else:
                            load_weight(b, first + k * STEP, biases, 0)
                            unpack_weight(biases, 0, u)
                        for j in range(WIDTH):
                            v[j] += u[j]
                    pack(v, piece, 0)
                    store(y, start + k * STEP, piece, 0)
            if first == 0:
                if CENTRED:
                    mean[row] = middle
                rstd[row] = scale
            row = after
            if row < rows:
                if AHEAD:
                    for k in range(HELD):
                        words[k] = coming[k]
                        if RESIDUAL:
                            extra[k] = coming_extra[k]
                else:
                    load_row(x, int64(row) * n, first, n, words)
                    if RESIDUAL:
                        load_row(residual, int64(row) * n, first, n, extra)

    return norm_forward
