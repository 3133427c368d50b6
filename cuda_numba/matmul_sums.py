"""Column sums, rows in a fixed order: a bias's gradient, db[j] = Σᵢ dy[i, j].

    dy (rows × N)  →  partial (⌈rows / 512⌉ × N), float32  →  db (N)

A block takes 64 columns of 512 rows: a row of them is 128 bytes of bfloat16, two columns a lane;
warp w adds rows w, w + 8, …, four of them under way, and warp 0 adds the eight warps' sums. The
second kernel does the same with the partial sums, 32 columns and 32 warps a block. Bytes: those of
dy, and rows / 256 · N · 4 for the partial sums. A product whose epilogue makes the partial sums,
one row for each 64 of C, needs the second kernel only.
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


@jit(pointers=True, launch_bounds=(LAST_THREADS, 1))
def sum_rows_kernel(partial: "float32", sums: "float32", rows: "uint32", columns: "uint32"):
    scratch = cuda.shared.array(LAST_THREADS, float32)
    thread = uint32(cuda.threadIdx.x)
    lane, warp = thread & uint32(31), thread >> uint32(5)
    column = uint32(uint32(cuda.blockIdx.x) * uint32(32) + lane)
    total = float32(0)
    if column < columns:
        row = warp
        while row < rows:
            total += partial[uint64(row) * uint64(columns) + uint64(column)]
            row = uint32(row + uint32(LAST_WARPS))
    scratch[thread] = total
    cuda.syncthreads()
    if warp == 0 and column < columns:
        for w in range(1, LAST_WARPS):
            total += scratch[lane + uint32(32 * w)]
        sums[column] = total


def sum_rows(partial: torch.Tensor, sums: torch.Tensor) -> None:
    """sums[j] = Σᵢ partial[i, j], contiguous float32 both."""
    rows, columns = partial.shape
    sum_rows_kernel[-(-columns // 32), LAST_THREADS](partial, sums, rows, columns)


def column_sums(x: torch.Tensor) -> torch.Tensor:
    """The sums of the columns of x (rows, N), float32 (N,); x is contiguous."""
    rows, N = x.shape
    blocks = -(-rows // ROWS)
    partial = torch.empty(blocks, N, dtype=torch.float32, device=x.device)
    sums = torch.empty(N, dtype=torch.float32, device=x.device)
    if N:
        pairs = x.element_size() == 2 and N % 2 == 0 and x.data_ptr() % 4 == 0
        kernel = partial_sums_kernel(dtype_name(x), pairs)
        kernel[(-(-N // COLUMNS), blocks), THREADS](x, partial, rows, N, N)
        sum_rows(partial, sums)
    return sums
