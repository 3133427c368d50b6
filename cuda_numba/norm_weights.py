"""The gradients of weight and bias: sums over all rows, in a fixed order, without atomics.

    dw[c] = Σ rows dy[r, c] · x̂[r, c],   db[c] = Σ rows dy[r, c]

Two steps. First every block adds up some rows: the fast rungs do that on their way, and write their
sums by `partial_writer`; `partial_sums` does it for the others. Then `column_sums`, a launch of its
own, adds the blocks' sums:

    partial   part 0   ████████████████ …      (parts, n) float32, for dw and for db
              part 1   ████████████████ …
              …        ↓↓↓↓ one warp: 32 columns, every 32nd part, 128 bytes to a request

Bytes: 4 · parts · n per gradient, written and read. bf16 16384 × 4096 on an H100 has 261 parts, so
8.6 MB for dw and db each way, where x, dy and dx are 403 MB; both ways mostly through L2, since
the parts are the last that is written. What the second launch costs is less its bytes than its
latency, hence LOADS of them at a time.

The same input, on a GPU with the same number of multiprocessors, gives the same bits.
"""

import functools

import torch

from . import ptx
from .dtypes import dtype_name
from .jit import jit
from .namespace import cuda, float32, int32, int64, uint32
from .norm_access import WARP, RowPlan, Variant, access

SUM_WARPS = 32  # of a block of `column_sums`: warp v takes the parts v, v + 32, …
PARTIAL_WARPS = 8  # of a block of `partial_sums`: warp v takes the rows v, v + 8, … of its block
LOADS = 8  # of a thread of `column_sums` that are on their way together: 256 parts at a time
NAIVE_THREADS = 128


# ---- the sums of a block


@functools.cache
def partial_writer(plan: RowPlan):
    """Device function: a block's sums per column → partial[start : start + n].

    Where each warp has rows of its own, they add their sums one after the other, in shared memory
    with a word per lane and element: no bank conflicts.
    """
    WIDTH, ACCESSES, _, ROWS, EXACT = plan
    STEP, ELEMENTS = plan.step, plan.elements

    @jit(device=True)
    def write_sums(sums, fold, partial, start, first, n):
        lane = uint32(cuda.threadIdx.x) & uint32(31)
        warp = uint32(cuda.threadIdx.x) >> uint32(5)
        if ROWS > 1:
            turn = uint32(0)
            while turn < ROWS:
                cuda.syncthreads()
                if warp == turn:
                    for k in range(ELEMENTS):
                        if turn > 0:
                            sums[k] += fold[uint32(k * WARP + lane)]
                        fold[uint32(k * WARP + lane)] = sums[k]
                turn = uint32(turn + 1)
        if ROWS == 1 or warp == ROWS - 1:
            for k in range(ACCESSES):
                if EXACT or int32(first + k * STEP) < n:
                    if WIDTH == 1:
                        partial[start + first + k * STEP] = sums[k]
                    else:
                        for j in range(0, WIDTH, 4):
                            at = start + first + k * STEP + j
                            ptx.store_vector(partial, at, sums, k * WIDTH + j)

    return write_sums


# ---- the sums of all blocks


@functools.cache
def column_sums_kernel(dtype: str):
    """out[c] = Σ over parts of partial[part, c]: dw by the blocks (·, 0), db by (·, 1)."""
    TILE = WARP * SUM_WARPS

    @jit(pointers=True, launch_bounds=(WARP * SUM_WARPS, 2))
    def norm_column_sums(partial: "float32", dw: dtype, db: dtype, parts: "int32", n: "int32"):
        tile = cuda.shared.array(TILE, float32)
        values = cuda.local.array(LOADS, float32)
        lane = uint32(cuda.threadIdx.x) & uint32(31)
        warp = uint32(cuda.threadIdx.x) >> uint32(5)
        column = int32(cuda.blockIdx.x * WARP + lane)
        first = int64(cuda.blockIdx.y) * parts  # the part with which dw's or db's sums begin
        total = float32(0)
        if column < n:
            part = int32(warp)
            while part < parts:
                for k in range(LOADS):
                    inside = int32(part + k * SUM_WARPS) < parts
                    at = (first + part + k * SUM_WARPS) * n + column
                    values[k] = partial[at] if inside else float32(0)
                for k in range(LOADS):
                    total += values[k]
                part = int32(part + LOADS * SUM_WARPS)
        tile[uint32(warp * uint32(WARP) + lane)] = total
        cuda.syncthreads()
        if warp == 0 and column < n:
            total = float32(0)
            for k in range(SUM_WARPS):
                total += tile[uint32(k * WARP + lane)]
            if cuda.blockIdx.y == 0:
                ptx.store(dw, column, total)
            else:
                ptx.store(db, column, total)

    return norm_column_sums


def column_sums(partial: torch.Tensor, *out: torch.Tensor) -> None:
    """out[i][c] = Σ over parts of partial[i, part, c]; partial is (len(out), parts, n) float32."""
    _, parts, n = partial.shape
    grid = (-(-n // WARP), len(out))
    kernel = column_sums_kernel(dtype_name(out[0]))
    kernel[grid, WARP * SUM_WARPS](partial, out[0], out[-1], parts, n)


# ---- for the rungs that leave them out: two more reads


@functools.cache
def partial_sums_kernel(dtype: str, width: int, variant: Variant):
    """Block (i, j): sums of 32 · width columns over the rows j · chunk … (j + 1) · chunk − 1."""
    CENTRED, BIAS, _ = variant
    io = access(dtype, width)
    WORDS = io.words
    load, unpack = io.load, io.unpack
    SUMS = WARP * width * PARTIAL_WARPS
    COLUMNS = WARP * width

    @jit(pointers=True, launch_bounds=(WARP * PARTIAL_WARPS, 1))
    def norm_partial_sums(
        dy: dtype, x: dtype, mean: "float32", rstd: "float32", partial: "float32",
        rows: "int32", n: "int32", chunk: "int32",
    ):  # fmt: skip
        tile = cuda.shared.array(SUMS, float32)
        words = cuda.local.array(WORDS, uint32)
        a = cuda.local.array(width, float32)
        g = cuda.local.array(width, float32)
        dw = cuda.local.array(width, float32)
        db = cuda.local.array(width, float32)
        for j in range(width):
            dw[j] = float32(0)
            db[j] = float32(0)
        lane = uint32(cuda.threadIdx.x) & uint32(31)
        warp = uint32(cuda.threadIdx.x) >> uint32(5)
        column = int32(cuda.blockIdx.x * COLUMNS + lane * uint32(width))
        row = int32(cuda.blockIdx.y * chunk + warp)
        last = min(int32((cuda.blockIdx.y + 1) * chunk), rows)
        while row < last and column < n:
            load(x, int64(row) * n + column, words, 0)
            unpack(words, 0, a)
            load(dy, int64(row) * n + column, words, 0)
            unpack(words, 0, g)
            middle = mean[row] if CENTRED else float32(0)
            scale = rstd[row]
            for j in range(width):
                dw[j] += g[j] * ((a[j] - middle) * scale)
                db[j] += g[j]
            row = int32(row + PARTIAL_WARPS)

        for which in range(2 if BIAS else 1):
            cuda.syncthreads()
            for j in range(width):
                value = dw[j] if which == 0 else db[j]
                tile[uint32((warp * uint32(width) + uint32(j)) * uint32(WARP) + lane)] = value
            cuda.syncthreads()
            if warp == 0 and column < n:
                to = (int64(which) * cuda.gridDim.y + cuda.blockIdx.y) * n + column
                for j in range(width):
                    total = float32(0)
                    for k in range(PARTIAL_WARPS):
                        total += tile[uint32((k * width + j) * WARP + lane)]
                    partial[to + j] = total

    return norm_partial_sums


@functools.cache
def naive_weights_kernel(dtype: str, wdtype: str, variant: Variant):
    """One thread per column, which goes over all rows: right, and as slow as one thread is."""
    CENTRED, BIAS, _ = variant

    @jit(pointers=True)
    def norm_weights_naive(
        dy: dtype, x: dtype, mean: "float32", rstd: "float32", dw: wdtype, db: wdtype,
        rows: "int32", n: "int32",
    ):  # fmt: skip
        column = int64(cuda.grid(1))
        if column >= n:
            return
        sum_w = float32(0)
        sum_b = float32(0)
        for row in range(rows):
            middle = mean[row] if CENTRED else float32(0)
            g = ptx.load(dy, row * n + column)
            sum_w += g * ((ptx.load(x, row * n + column) - middle) * rstd[row])
            sum_b += g
        ptx.store(dw, column, sum_w)
        if BIAS:
            ptx.store(db, column, sum_b)

    return norm_weights_naive


def weight_gradients(
    rung: str, dy: torch.Tensor, x: torch.Tensor, mean: torch.Tensor, rstd: torch.Tensor,
    dw: torch.Tensor, db: torch.Tensor | None, variant: Variant, width: int, multiprocessors: int,
) -> None:  # fmt: skip
    """Fill dw and db for the rungs whose kernel does not."""
    n = x.shape[-1]
    rows = x.numel() // n
    if rung == "naive":
        kernel = naive_weights_kernel(dtype_name(x), dtype_name(dw), variant)
        grid = -(-n // NAIVE_THREADS)
        kernel[grid, NAIVE_THREADS](dy, x, mean, rstd, dw, dw if db is None else db, rows, n)
        return
    groups = -(-n // (WARP * width))
    chunks = max(1, min(rows // PARTIAL_WARPS, 4 * multiprocessors // groups))
    chunk = -(-rows // chunks)
    chunks = -(-rows // chunk)
    partial = torch.empty((1 + variant.bias, chunks, n), dtype=torch.float32, device=x.device)
    kernel = partial_sums_kernel(dtype_name(x), width, variant)
    kernel[(groups, chunks), WARP * PARTIAL_WARPS](dy, x, mean, rstd, partial, rows, n, chunk)
    column_sums(partial, dw, *([] if db is None else [db]))
