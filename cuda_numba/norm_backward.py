"""LayerNorm and RMSNorm, backward, with the rows in registers: x and dy read once, dx written once.

    g = dy · w,   x̂ = (x − mean) · rstd          (mean = 0 and no mean(g) below for RMSNorm)
    dx = rstd · (g − mean(g) − x̂ · mean(g · x̂))
    dw = Σ rows dy · x̂,   db = Σ rows dy

A grid of as many blocks as the GPU holds walks over the rows. Each thread always owns the same
columns, so it adds its part of dw and db up in registers over all rows of its block; at the end a
block writes its sums to `partial`, and `norm_weights` adds those in a fixed order. No atomics: the
same input gives the same bits.

Two sums over the row have to be known before dx can be written, and then x and dy are needed again.
Here their words stay in the registers that the loads filled. That works with any alignment and on
any GPU; but the sums for dw and db take most of the registers, nothing is left for the next row,
and few warps fit. `norm_staged` has the next rows on their way in shared memory instead.
"""

import functools

from .jit import jit
from .namespace import cuda, float32, int32, int64, uint32
from .norm_access import WARP, RowPlan, Variant, access, blocks_that_fit, row_plan
from .norm_weights import partial_writer
from .warp import warp_sum

# ---- steps that `norm_staged` takes as well


@functools.cache
def add_access(width: int, variant: Variant):
    """Device function: one access's part of Σ g and Σ g·x̂; its dy·x̂ and dy are added to dw, db."""
    CENTRED, BIAS, _ = variant

    @jit(device=True)
    def add(x, dy, w, middle, scale, dw, db, at):
        sum_g = float32(0)
        sum_gx = float32(0)
        for j in range(width):
            normal = (x[j] - middle) * scale
            dw[at + j] += dy[j] * normal
            if BIAS:
                db[at + j] += dy[j]
            if CENTRED:
                sum_g += dy[j] * w[j]
            sum_gx += dy[j] * w[j] * normal
        return sum_g, sum_gx

    return add


@functools.cache
def input_gradient(width: int):
    """Device function: dx of one access, in place of dy, as dy · (rstd · w) − (slope · x + offset).

    Two fused multiply-adds where the formula as it stands takes four operations.
    """

    @jit(device=True)
    def gradient(x, dy, w, scale, slope, offset):
        for j in range(width):
            dy[j] = dy[j] * (scale * w[j]) - (slope * x[j] + offset)

    return gradient


@functools.cache
def team_sums(warps: int, centred: bool):
    """Device function: both sums over the team, in every thread; one barrier if it is a block.

    scratch[side : side + 2 · warps] must not be the part that the call before has used.
    """

    @jit(device=True)
    def sums(sum_g, sum_gx, scratch, side):
        if centred:
            sum_g = warp_sum(sum_g)
        sum_gx = warp_sum(sum_gx)
        if warps > 1:
            thread = uint32(cuda.threadIdx.x)
            place = uint32(side + (thread >> uint32(5)))
            if thread & uint32(31) == 0:
                scratch[place] = sum_g
                scratch[uint32(place + warps)] = sum_gx
            cuda.syncthreads()
            sum_g = float32(0)
            sum_gx = float32(0)
            for i in range(warps):
                if centred:
                    sum_g += scratch[uint32(side + i)]
                sum_gx += scratch[uint32(side + warps + i)]
        return sum_g, sum_gx

    return sums


# ---- rows in registers


def register_plan(n: int, width: int) -> RowPlan | None:
    """A warp takes up to 1,024 columns alone, else a thread has 16; None: the row is too wide.

    More columns per thread mean more registers for dw and db, and fewer warps. Past 16 warps there
    are 64 registers to a thread: there, half as many threads with 32 columns each, and with a guard
    on every access, since ptxas overlaps what no branch separates, and spills.
    """
    if width > 1 and n <= 1024:
        return row_plan(n, width, 32)
    plan = row_plan(n, width, 16)
    if plan and plan.warps > 16:
        return row_plan(n, width, 32)._replace(exact=False)
    return plan


def register_blocks(plan: RowPlan, variant: Variant) -> tuple[bool, int]:
    """Whether a thread can keep its part of both rows, and blocks on a multiprocessor."""
    sums = plan.elements * (1 + variant.bias)
    rows = 2 * plan.elements  # as float32: ptxas keeps what is unpacked
    if blocks := blocks_that_fit(plan.threads, 48 + sums + rows):
        return True, blocks
    return False, max(1, blocks_that_fit(plan.threads, 56 + sums))


@functools.cache
def row_loader(dtype: str, plan: RowPlan):
    """Device function (x, start, first, n, words): the accesses of a thread to the row at start."""
    io = access(dtype, plan.width)
    load, WORDS = io.load, io.words
    ACCESSES, STEP, EXACT = plan.accesses, plan.step, plan.exact

    @jit(device=True)
    def load_row(x, start, first, n, words):
        for k in range(ACCESSES):
            if EXACT or int32(first + k * STEP) < n:
                load(x, start + k * STEP, words, k * WORDS)

    return load_row


@functools.cache
def register_kernel(dtype: str, wdtype: str, plan: RowPlan, variant: Variant):
    """dx of all rows, and each block's sums for dw and db: partial, float32 (1 + bias, blocks, n).

    variant.residual: dtotal is added to dx. A row that does not fit the registers is loaded twice.
    """
    CENTRED, BIAS, RESIDUAL = variant
    KEPT, BLOCKS = register_blocks(plan, variant)
    WIDTH, ACCESSES, WARPS, ROWS, EXACT = plan
    STEP, ELEMENTS = plan.step, plan.elements
    io, weight_io = access(dtype, WIDTH), access(wdtype, WIDTH)
    WORDS, WEIGHT_WORDS = io.words, weight_io.words
    NEXT = WORDS if KEPT else 0  # from one access to the next; one access's words serve them all
    HELD = ACCESSES * WORDS if KEPT else WORDS
    BIAS_ELEMENTS = ELEMENTS if BIAS else 1
    SCRATCH = 4 * WARPS  # two halves, which take turns
    FOLD = WARP * ELEMENTS if ROWS > 1 else 1
    load_row = row_loader(dtype, plan)
    load, unpack, pack, store = io.load, io.unpack, io.pack, io.store
    load_weight, unpack_weight = weight_io.load, weight_io.unpack
    add, gradient = add_access(WIDTH, variant), input_gradient(WIDTH)
    sums_of_team, write_sums = team_sums(WARPS, CENTRED), partial_writer(plan)

    @jit(pointers=True, launch_bounds=(plan.threads, BLOCKS))
    def norm_backward_registers(
        dy: dtype, x: dtype, w: wdtype, mean: "float32", rstd: "float32", dtotal: dtype,
        dx: dtype, partial: "float32", rows: "int32", n: "int32", share: "float32",
    ):  # fmt: skip
        scratch = cuda.shared.array(SCRATCH, float32)
        fold = cuda.shared.array(FOLD, float32)
        xs = cuda.local.array(HELD, uint32)
        gs = cuda.local.array(HELD, uint32)
        weight = cuda.local.array(WEIGHT_WORDS, uint32)
        piece = cuda.local.array(WORDS, uint32)
        dw = cuda.local.array(ELEMENTS, float32)
        db = cuda.local.array(BIAS_ELEMENTS, float32)
        a = cuda.local.array(WIDTH, float32)
        g = cuda.local.array(WIDTH, float32)
        u = cuda.local.array(WIDTH, float32)
        for k in range(ELEMENTS):
            dw[k] = float32(0)
        for k in range(BIAS_ELEMENTS):
            db[k] = float32(0)

        thread = int32(cuda.threadIdx.x)
        first = int32((thread & 31) * WIDTH) if WARPS == 1 else int32(thread * WIDTH)
        row = int32(cuda.blockIdx.x)
        if WARPS == 1:
            row = int32(row * ROWS + (thread >> 5))
        side = uint32(0)
        while row < rows:
            start = int64(row) * n + first
            if KEPT:
                load_row(x, start, first, n, xs)
                load_row(dy, start, first, n, gs)
            middle = mean[row] if CENTRED else float32(0)
            scale = rstd[row]
            sum_g = float32(0)
            sum_gx = float32(0)
            for k in range(ACCESSES):
                if EXACT or int32(first + k * STEP) < n:
                    if not KEPT:
                        load(x, start + k * STEP, xs, 0)
                        load(dy, start + k * STEP, gs, 0)
                    load_weight(w, first + k * STEP, weight, 0)
                    unpack(xs, k * NEXT, a)
                    unpack(gs, k * NEXT, g)
                    unpack_weight(weight, 0, u)
                    part_g, part_gx = add(a, g, u, middle, scale, dw, db, k * WIDTH)
                    sum_g += part_g
                    sum_gx += part_gx
            sum_g, sum_gx = sums_of_team(sum_g, sum_gx, scratch, side)
            side = uint32(2 * WARPS - side)

            slope = scale * scale * (sum_gx * share)
            offset = scale * (sum_g * share) - middle * slope
            for k in range(ACCESSES):
                if EXACT or int32(first + k * STEP) < n:
                    if not KEPT:
                        load(x, start + k * STEP, xs, 0)
                        load(dy, start + k * STEP, gs, 0)
                    load_weight(w, first + k * STEP, weight, 0)
                    unpack(xs, k * NEXT, a)
                    unpack(gs, k * NEXT, g)
                    unpack_weight(weight, 0, u)
                    gradient(a, g, u, scale, slope, offset)
                    if RESIDUAL:
                        load(dtotal, start + k * STEP, piece, 0)
                        unpack(piece, 0, u)
                        for j in range(WIDTH):
                            g[j] += u[j]
                    pack(g, piece, 0)
                    store(dx, start + k * STEP, piece, 0)
            row = int32(row + cuda.gridDim.x * ROWS)

        block = int64(cuda.blockIdx.x)
        write_sums(dw, fold, partial, block * n, first, n)
        if BIAS:
            write_sums(db, fold, partial, (cuda.gridDim.x + block) * n, first, n)

    return norm_backward_registers
