"""LayerNorm and RMSNorm, backward, with the next rows on their way in shared memory.

`cp.async` (sm_80) copies from global to shared memory past the registers, which dw and db need.
Every thread copies, waits for and reads its own 16 bytes only: no barrier is needed for them, and
the place of what it has read last is free for a row to come.

    row i−1      row i        row i+1      row i+2      row i+3
    dx           sums         on its way   on its way   on its way      `stages` rows of a team

The formulas and the other steps are those of `norm_backward`. Rows start at multiples of 16 bytes.

A row costs a multiprocessor more than waiting for memory. Every element passes L1 and shared memory
twice on its way in (x, dy), four times out (both, before and after the sums) and once as dx; w, if
it is loaded for each half, makes that nine times where it need be seven. So a thread keeps the
weights of its columns in registers over all rows of its block. Measured, two blocks that keep them
are faster than three that do not, and most of that is due to the weights: two blocks that load them
gain little on three.

bf16 16384 × 4096 on an H100: 403 MB, 134 µs at the 3.0 TB/s of a copy, plus 8 bytes per column and
block of partial sums, 9 MB for 261 blocks, most of which stay in L2. A thread has 16 columns: 32
registers of sums, 8 of weights and 48 others are 88, and 2 blocks of 256 threads fit. With 4 stages
of 16 KB, 96 KB are on their way in a multiprocessor, where a copy needs about 24. RMSNorm, with 72
registers, has 3 blocks.

float32 rows of 16,384 have one stage only, for two are 256 KB and a multiprocessor has 227: their
next row is fetched only when this one is done.
"""

import functools
from typing import NamedTuple

from . import ptx
from .dtypes import itemsize
from .jit import jit
from .namespace import cuda, float32, int32, int64, uint32, uint64
from .norm_access import WARP, RowPlan, Variant, access, blocks_that_fit, row_plan
from .norm_backward import add_access, input_gradient, team_sums
from .norm_weights import partial_writer

VECTOR = 16  # bytes of a copy
# The most rows per team in shared memory, one of them in use; weights that are not kept need L1,
# which is what the stages leave of it.
STAGES = {True: 4, False: 3}
KEEPING = 512  # threads of a multiprocessor, of 128 registers, that do where weights are kept
OTHER_SHARED = 5120  # bytes of a block's shared memory besides the stages, 1 KB of it the system's


def staged_plan(n: int, width: int, wdtype: str) -> RowPlan | None:
    """As `norm_backward.register_plan`, but for 16 columns per thread also in the widest rows.

    Guards on every access also for float32 weights, which take more words.
    """
    if n <= 1024:
        return row_plan(n, width, 32)
    plan = row_plan(n, width, 16)
    if plan and (plan.warps > 16 or wdtype == "float32"):
        return plan._replace(exact=False)
    return plan


def staged_bytes(plan: RowPlan, variant: Variant, stages: int) -> int:
    """Dynamic shared memory of a block."""
    return stages * plan.threads * plan.accesses * VECTOR * (2 + variant.residual)


class Staging(NamedTuple):
    """What a block has on its multiprocessor: compile-time constants of a kernel."""

    stages: int  # rows of every team in shared memory; 0: none fits
    blocks: int  # on a multiprocessor, for which there are registers
    kept: bool  # the weights of a thread's columns stay in registers


def staging(plan: RowPlan, wdtype: str, variant: Variant, shared: int) -> Staging:
    """How rows of a plan are staged on a multiprocessor with `shared` bytes.

    As many blocks as the registers allow. Weights are kept if that leaves KEEPING threads, or as
    many as without.
    """
    registers = (92 if plan.warps == 1 else 48) + plan.elements * (1 + variant.bias)
    words = plan.accesses * access(wdtype, plan.width).words
    most = max(1, blocks_that_fit(plan.threads, registers))
    loaded = _staging(plan, variant, shared, most, False)
    if most := blocks_that_fit(plan.threads, registers + words):
        kept = _staging(plan, variant, shared, most, True)
        if kept.blocks * plan.threads >= min(KEEPING, loaded.blocks * plan.threads):
            return kept
    return loaded


def _staging(plan: RowPlan, variant: Variant, shared: int, most: int, kept: bool) -> Staging:
    """At most `most` blocks: as many as have a row in use and one on its way, or one."""
    stage = staged_bytes(plan, variant, 1)
    fitting = [(shared // blocks - OTHER_SHARED) // stage for blocks in range(1, most + 1)]
    blocks = max(1, sum(stages >= 2 for stages in fitting))
    return Staging(min(STAGES[kept], fitting[blocks - 1]), blocks, kept)


@functools.cache
def staged_kernel(dtype: str, wdtype: str, plan: RowPlan, variant: Variant, place: Staging):
    """As `norm_backward.register_kernel`, with rows of each tensor in shared memory.

    A thread's 16 bytes of access k, tensor j and stage s are at ((s · tensors + j) · accesses + k)
    · threads + thread: consecutive in a warp, free of bank conflicts.
    """
    CENTRED, BIAS, RESIDUAL = variant
    stages, blocks, KEPT = place
    if KEPT and blocks * plan.threads > KEEPING:  # guards, as in `register_plan`: else ptxas spills
        plan = plan._replace(exact=False)
    WIDTH, ACCESSES, WARPS, ROWS, EXACT = plan
    STEP, ELEMENTS = plan.step, plan.elements
    TENSORS = 3 if RESIDUAL else 2
    ITEM = itemsize(dtype)
    TENSOR = ACCESSES * plan.threads * VECTOR  # bytes of a tensor's rows in a stage
    STAGE = TENSORS * TENSOR
    RING = stages * STAGE
    HOP = plan.threads * VECTOR
    io, weight_io = access(dtype, WIDTH), access(wdtype, WIDTH)
    WORDS, WEIGHT_WORDS = io.words, weight_io.words
    WEIGHTS = ACCESSES * WEIGHT_WORDS if KEPT else WEIGHT_WORDS
    NEXT = WEIGHT_WORDS if KEPT else 0  # from one access to the next; one's words serve them all
    BIAS_ELEMENTS = ELEMENTS if BIAS else 1
    SCRATCH = 4 * WARPS
    FOLD = WARP * ELEMENTS if ROWS > 1 else 1
    WAIT = stages - 1
    unpack, pack, store = io.unpack, io.pack, io.store
    load_weight, unpack_weight = weight_io.load, weight_io.unpack
    add, gradient = add_access(WIDTH, variant), input_gradient(WIDTH)
    sums_of_team, write_sums = team_sums(WARPS, CENTRED), partial_writer(plan)

    @jit(device=True)
    def fetch_row(x, dy, dtotal, row, rows, first, n, place):
        """Start the copies of a row into the stage at `place`: one group, be it empty."""
        if row < rows:
            begin = uint64((int64(row) * n + first) * ITEM)
            for k in range(ACCESSES):
                if EXACT or int32(first + k * STEP) < n:
                    at = begin + uint64(k * STEP * ITEM)
                    to = uint32(place + k * HOP)
                    ptx.cp_async_16(to, ptx.global_address(x) + at)
                    ptx.cp_async_16(uint32(to + TENSOR), ptx.global_address(dy) + at)
                    if RESIDUAL:
                        ptx.cp_async_16(uint32(to + 2 * TENSOR), ptx.global_address(dtotal) + at)
        ptx.cp_async_commit()

    @jit(device=True)
    def read_stage(place, words):
        a, b, c, d = ptx.load_shared_128_at(uint32(place))
        words[0] = a
        words[1] = b
        words[2] = c
        words[3] = d

    @jit(pointers=True, launch_bounds=(plan.threads, blocks))
    def norm_backward_staged(
        dy: dtype, x: dtype, w: wdtype, mean: "float32", rstd: "float32", dtotal: dtype,
        dx: dtype, partial: "float32", rows: "int32", n: "int32", share: "float32",
    ):  # fmt: skip
        ring = cuda.shared.array(0, uint32, 16)
        scratch = cuda.shared.array(SCRATCH, float32)
        fold = cuda.shared.array(FOLD, float32)
        weight = cuda.local.array(WEIGHTS, uint32)
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
        hop = int32(cuda.gridDim.x * ROWS)  # rows from one to the next of this team
        place = uint32(ptx.shared_address(ring) + uint32(thread * VECTOR))  # of this row's words
        end = uint32(place + RING)
        for s in range(stages):
            fetch_row(
                x, dy, dtotal, int32(row + s * hop), rows, first, n, uint32(place + s * STAGE)
            )
        if KEPT:
            for k in range(ACCESSES):
                if EXACT or int32(first + k * STEP) < n:
                    load_weight(w, first + k * STEP, weight, k * WEIGHT_WORDS)
        coming_middle = float32(0)
        coming_scale = float32(0)
        if row < rows:
            if CENTRED:
                coming_middle = mean[row]
            coming_scale = rstd[row]
        side = uint32(0)
        while row < rows:
            start = int64(row) * n + first
            middle = coming_middle
            scale = coming_scale
            if int32(row + hop) < rows:
                if CENTRED:
                    coming_middle = mean[row + hop]
                coming_scale = rstd[row + hop]
            ptx.cp_async_wait(WAIT)
            sum_g = float32(0)
            sum_gx = float32(0)
            for k in range(ACCESSES):
                if EXACT or int32(first + k * STEP) < n:
                    read_stage(place + k * HOP, piece)
                    unpack(piece, 0, a)
                    read_stage(place + k * HOP + TENSOR, piece)
                    unpack(piece, 0, g)
                    if not KEPT:
                        load_weight(w, first + k * STEP, weight, 0)
                    unpack_weight(weight, k * NEXT, u)
                    part_g, part_gx = add(a, g, u, middle, scale, dw, db, k * WIDTH)
                    sum_g += part_g
                    sum_gx += part_gx
            sum_g, sum_gx = sums_of_team(sum_g, sum_gx, scratch, side)
            side = uint32(2 * WARPS - side)

            slope = scale * scale * (sum_gx * share)
            offset = scale * (sum_g * share) - middle * slope
            for k in range(ACCESSES):
                if EXACT or int32(first + k * STEP) < n:
                    read_stage(place + k * HOP, piece)
                    unpack(piece, 0, a)
                    read_stage(place + k * HOP + TENSOR, piece)
                    unpack(piece, 0, g)
                    if not KEPT:
                        load_weight(w, first + k * STEP, weight, 0)
                    unpack_weight(weight, k * NEXT, u)
                    gradient(a, g, u, scale, slope, offset)
                    if RESIDUAL:
                        read_stage(place + k * HOP + 2 * TENSOR, piece)
                        unpack(piece, 0, u)
                        for j in range(WIDTH):
                            g[j] += u[j]
                    pack(g, piece, 0)
                    store(dx, start + k * STEP, piece, 0)
            # This thread alone has read these bytes, and has them: their place is free.
            fetch_row(x, dy, dtotal, int32(row + stages * hop), rows, first, n, place)
            place = uint32(place + STAGE)
            if place == end:
                place = uint32(place - RING)
            row = int32(row + hop)

        block = int64(cuda.blockIdx.x)
        write_sums(dw, fold, partial, block * n, first, n)
        if BIAS:
            write_sums(db, fold, partial, (cuda.gridDim.x + block) * n, first, n)

    return norm_backward_staged
