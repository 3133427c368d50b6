"""Column sums, rows in a fixed order: a bias's gradient, db[j] = Σᵢ dy[i, j].

    dy (rows × N)  →  partial (⌈rows / 64⌉ × N), float32  →  db (N)

A block takes 256 columns of 64 rows: a row of them is 512 bytes of bfloat16, eight columns a lane;
warp w adds rows w, w + 8, …, all eight under way at once, and then each thread one column of the
eight warps' sums. The second kernel adds the partial sums, 32 columns and 32 warps a block. Bytes:
those of dy, and rows / 32 · N · 4 for the partial sums. A product that makes the partial sums on
its way (`hopper_output`, `hopper_row_sums`) needs the second kernel only.

float32, and rows that do not begin at multiples of 16 bytes, are taken two columns a lane, 64
columns of 512 rows a block.
"""

import functools

import torch

from . import ptx
from .dtypes import dtype_name
from .hopper_fragments import halves
from .jit import jit
from .namespace import cuda, float32, uint32, uint64

WARPS = 8
THREADS = 32 * WARPS
LAST_WARPS = 32  # of the second kernel, so that each thread has few loads to wait for
LAST_THREADS = 32 * LAST_WARPS
ROWS, COLUMNS = 512, 64  # of a block
UNDER_WAY = 4  # rows of a warp
WIDE_ROWS, WIDE_COLUMNS = 64, 256  # of a block that reads 16 bytes a lane
LAST_UNDER_WAY = 8


def column_sums_reference(x: torch.Tensor) -> torch.Tensor:
    return x.sum(0)


@functools.cache
def partial_sums_kernel(dtype: str, pairs: bool):
    """partial[block of rows, j]; pairs: 4-byte loads of two 16-bit elements, N even."""
    _, unpack = halves(dtype)
    WIDTH = 2 * THREADS

    @jit(device=True)
    def two(x, at, column, N):
        """Columns `column` and the next of a row that begins at `at`, zeros beyond N."""
        if pairs:
            low, high = float32(0), float32(0)
            if column < N:
                low, high = unpack(ptx.load_32(x, at + uint64(column)))
            return low, high
        low = ptx.load(x, at + uint64(column)) if column < N else float32(0)
        after = uint32(column + uint32(1))
        high = ptx.load(x, at + uint64(after)) if after < N else float32(0)
        return low, high

    @jit(pointers=True, launch_bounds=(THREADS, 1))
    def partial_sums(x: dtype, partial: "float32", rows: "uint32", N: "uint32", pitch: "uint32"):
        scratch = cuda.shared.array(WIDTH, float32)
        thread = uint32(cuda.threadIdx.x)
        lane, warp = thread & uint32(31), thread >> uint32(5)
        column = uint32(uint32(cuda.blockIdx.x) * uint32(COLUMNS) + lane * uint32(2))
        row = uint32(uint32(cuda.blockIdx.y) * uint32(ROWS) + warp)
        last = uint32(min(uint32(row + uint32(ROWS)), rows))
        first, second = float32(0), float32(0)
        while row < last:
            for k in range(UNDER_WAY):
                at = uint32(row + uint32(k * WARPS))
                if at < last:
                    low, high = two(x, uint64(at) * uint64(pitch), column, N)
                    first += low
                    second += high
            row = uint32(row + uint32(UNDER_WAY * WARPS))
        scratch[thread] = first
        scratch[thread + uint32(THREADS)] = second
        cuda.syncthreads()
        if warp == 0:
            for w in range(1, WARPS):
                first += scratch[lane + uint32(32 * w)]
                second += scratch[lane + uint32(32 * w + THREADS)]
            at = uint64(cuda.blockIdx.y) * uint64(N) + uint64(column)
            if column < N:
                partial[at] = first
            if uint32(column + uint32(1)) < N:
                partial[at + uint64(1)] = second

    return partial_sums


@functools.cache
def wide_sums_kernel(dtype: str):
    """partial[block of rows, j]; rows of x begin at multiples of 16 bytes, N is one of 8."""
    _, unpack = halves(dtype)
    EACH = WIDE_ROWS // WARPS
    SCRATCH, WORDS = WARPS * WIDE_COLUMNS, 4 * EACH

    @jit(pointers=True, launch_bounds=(THREADS, 1))
    def partial_sums(x: dtype, partial: "float32", rows: "uint32", N: "uint32", pitch: "uint32"):
        scratch = cuda.shared.array(SCRATCH, float32)
        words, sums = cuda.local.array(WORDS, uint32), cuda.local.array(8, float32)
        thread = uint32(cuda.threadIdx.x)
        lane, warp = thread & uint32(31), thread >> uint32(5)
        start = uint32(uint32(cuda.blockIdx.x) * uint32(WIDE_COLUMNS))
        column = uint32(start + lane * uint32(8))
        row = uint32(uint32(cuda.blockIdx.y) * uint32(WIDE_ROWS) + warp)
        for k in range(EACH):
            for i in range(4):
                words[4 * k + i] = uint32(0)
            if column < N and uint32(row + uint32(WARPS * k)) < rows:
                at = uint64(uint32(row + uint32(WARPS * k))) * uint64(pitch) + uint64(column)
                found = ptx.load_128(x, at)
                for i in range(4):
                    words[4 * k + i] = found[i]
        for i in range(8):
            sums[i] = float32(0)
        for k in range(EACH):
            for i in range(4):
                low, high = unpack(words[4 * k + i])
                sums[2 * i] += low
                sums[2 * i + 1] += high
        place = uint32(warp * uint32(WIDE_COLUMNS) + lane)
        for i in range(8):  # column 8 lane + i at 32 i + lane: no bank conflicts
            scratch[place + uint32(32 * i)] = sums[i]
        cuda.syncthreads()
        total = scratch[thread]
        for w in range(1, WARPS):
            total += scratch[thread + uint32(WIDE_COLUMNS * w)]
        column = uint32(start + lane * uint32(8) + warp)
        if column < N:
            partial[uint64(cuda.blockIdx.y) * uint64(N) + uint64(column)] = total

    return partial_sums


@jit(pointers=True, launch_bounds=(LAST_THREADS, 1))
def sum_rows_kernel(partial: "float32", sums: "float32", rows: "uint32", columns: "uint32",
                    pitch: "uint32"):  # fmt: skip
    scratch = cuda.shared.array(LAST_THREADS, float32)
    found = cuda.local.array(LAST_UNDER_WAY, float32)
    thread = uint32(cuda.threadIdx.x)
    lane, warp = thread & uint32(31), thread >> uint32(5)
    column = uint32(uint32(cuda.blockIdx.x) * uint32(32) + lane)
    total = float32(0)
    row = warp if column < columns else rows
    while row < rows:
        for k in range(LAST_UNDER_WAY):
            at = uint32(row + uint32(k * LAST_WARPS))
            found[k] = float32(0)
            if at < rows:
                found[k] = partial[uint64(at) * uint64(pitch) + uint64(column)]
        for k in range(LAST_UNDER_WAY):
            total += found[k]
        row = uint32(row + uint32(LAST_UNDER_WAY * LAST_WARPS))
    scratch[thread] = total
    cuda.syncthreads()
    if warp == 0 and column < columns:
        for w in range(1, LAST_WARPS):
            total += scratch[lane + uint32(32 * w)]
        sums[column] = total


def sum_rows(partial: torch.Tensor, sums: torch.Tensor) -> None:
    """sums[j] = Σᵢ partial[i, j] for the columns that sums has, contiguous float32 both."""
    (rows, pitch), columns = partial.shape, sums.numel()
    sum_rows_kernel[-(-columns // 32), LAST_THREADS](partial, sums, rows, columns, pitch)


def column_sums(x: torch.Tensor) -> torch.Tensor:
    """The sums of the columns of x (rows, N), float32 (N,); x is contiguous."""
    rows, N = x.shape
    half = x.element_size() == 2
    wide = half and N % 8 == 0 and x.data_ptr() % 16 == 0
    height, width = (WIDE_ROWS, WIDE_COLUMNS) if wide else (ROWS, COLUMNS)
    blocks = -(-rows // height)
    partial = torch.empty(blocks, N, dtype=torch.float32, device=x.device)
    sums = torch.empty(N, dtype=torch.float32, device=x.device)
    if N:
        pairs = half and N % 2 == 0 and x.data_ptr() % 4 == 0
        name = dtype_name(x)
        kernel = wide_sums_kernel(name) if wide else partial_sums_kernel(name, pairs)
        kernel[(-(-N // width), blocks), THREADS](x, partial, rows, N, N)
        sum_rows(partial, sums)
    return sums
