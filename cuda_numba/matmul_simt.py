"""Matrix products without tensor cores, from one sum a thread to the rate of the multiply-adds.

    out (…, M, N) = a (…, M, K) @ b (…, K, N),   out[m, n] = Σₖ a[m, k] · b[k, n]

2 · M · N · K FLOPs and, at least, (M · K + K · N + M · N) · 4 bytes: 4096³ is 137 GFLOP and 201 MB,
2.1 ms at the H100's 67 TFLOP/s and 67 µs at the rate of a copy. Everything is in where the operands
of a multiply-add come from:

    naive          a sum a thread; the lanes of a warp run along M, so that each reads another row
                   of a: 32 sectors a request, of which 4 bytes each are used
    coalesced      the same with lanes along N: b comes in whole sectors, a's number goes to all
    shared tile    32 × 32 sums a block; each number comes from memory once and is used 32 times
    register tile  128 × 128 sums a block, 16 × 8 a thread: from shared memory too each number
                   comes once for 8 or 16 multiply-adds (`matmul_simt_tile`)

The first three take strides of any kind, and bfloat16 and float16 too, which they convert. In
float32 the order of additions is fixed: k goes up, one sum, rounded after each multiply-add.
"""

import functools

import torch

from . import ptx
from .dtypes import FLOATS, dtype_name
from .jit import jit
from .matmul_operands import Product, gpu_of, parts_of, product_of, whole
from .matmul_simt_registers import Grid
from .matmul_simt_tile import Operand, tile_kernel
from .namespace import cuda, float32, uint32, uint64

TILE = 32  # rows and columns of the shared tile, and lanes of a warp
WARPS = 8  # of the rungs with one sum a thread
GRID = Grid(4, 16, 8, 2, 2, 8)
SMALL_GRID = Grid(4, 8, 8, 2, 1, 8)  # 64 × 64, where 128 × 128 leave multiprocessors without work


def matmul_reference(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a.unsqueeze(-1) * b.unsqueeze(-3)).sum(-2)


# ---- one sum a thread


@functools.cache
def single_kernel(dtype: str, out_dtype: str, along_n: bool):
    """One sum a thread, 32 × 8 a block. along_n: which way the lanes of a warp run."""

    @jit(pointers=True, launch_bounds=TILE * WARPS)
    def matmul_single(a: dtype, b: dtype, out: out_dtype, M: "uint32", N: "uint32", K: "uint32",
                      a_row: "uint64", a_column: "uint64", b_row: "uint64", b_column: "uint64",
                      pitch_out: "uint64", batch_a: "uint64", batch_b: "uint64",
                      batch_out: "uint64"):  # fmt: skip
        z = uint64(cuda.blockIdx.z)
        thread = uint32(cuda.threadIdx.x)
        lane, warp = thread & uint32(TILE - 1), thread // uint32(TILE)
        down, across = (uint32(WARPS), uint32(TILE)) if along_n else (uint32(TILE), uint32(WARPS))
        tiles = uint32((N + across - uint32(1)) // across)
        tile_m = uint32(uint32(cuda.blockIdx.x) // tiles)
        tile_n = uint32(uint32(cuda.blockIdx.x) - tile_m * tiles)
        row = uint32(tile_m * down + (warp if along_n else lane))
        column = uint32(tile_n * across + (lane if along_n else warp))
        if row < M and column < N:
            at_a = z * batch_a + uint64(row) * a_row
            at_b = z * batch_b + uint64(column) * b_column
            total = float32(0)
            k = uint32(0)
            while k < K:
                total += ptx.load(a, at_a) * ptx.load(b, at_b)
                at_a += a_column
                at_b += b_row
                k += uint32(1)
            at = z * batch_out + uint64(row) * pitch_out + uint64(column)
            ptx.store(out, at, total)

    return matmul_single


# ---- a tile in shared memory


@functools.cache
def shared_kernel(dtype: str, out_dtype: str):
    """32 × 32 sums a block, one a thread; both operands by tiles of 32 × 32."""

    @jit(pointers=True, launch_bounds=TILE * TILE)
    def matmul_shared(a: dtype, b: dtype, out: out_dtype, M: "uint32", N: "uint32", K: "uint32",
                      a_row: "uint64", a_column: "uint64", b_row: "uint64", b_column: "uint64",
                      pitch_out: "uint64", batch_a: "uint64", batch_b: "uint64",
                      batch_out: "uint64"):  # fmt: skip
        tile_a = cuda.shared.array((TILE, TILE), float32)
        tile_b = cuda.shared.array((TILE, TILE), float32)
        z = uint64(cuda.blockIdx.z)
        x, y = uint32(cuda.threadIdx.x), uint32(cuda.threadIdx.y)
        tiles = uint32((N + uint32(TILE - 1)) // uint32(TILE))
        tile_m = uint32(uint32(cuda.blockIdx.x) // tiles)
        row = uint32(tile_m * uint32(TILE) + y)
        column = uint32(uint32(uint32(cuda.blockIdx.x) - tile_m * tiles) * uint32(TILE) + x)
        total = float32(0)
        start = uint32(0)
        while start < K:
            value = float32(0)
            if row < M and start + x < K:
                value = ptx.load(
                    a, z * batch_a + uint64(row) * a_row + uint64(start + x) * a_column
                )
            tile_a[y, x] = value
            value = float32(0)
            if column < N and start + y < K:
                value = ptx.load(
                    b, z * batch_b + uint64(start + y) * b_row + uint64(column) * b_column
                )
            tile_b[y, x] = value
            cuda.syncthreads()
            for k in range(TILE):
                total += tile_a[y, k] * tile_b[k, x]
            cuda.syncthreads()
            start += uint32(TILE)
        if row < M and column < N:
            ptx.store(out, z * batch_out + uint64(row) * pitch_out + uint64(column), total)

    return matmul_shared


# ---- launchers


def _by_rung(rung: str, a, b, out=None, out_dtype=None) -> torch.Tensor:
    p = product_of(a, b, out, out_dtype, dtypes=FLOATS, any_strides=True)
    if not p.result.numel():
        return p.result
    if not p.K:
        return p.result.zero_()
    names = dtype_name(p.a.tensor), dtype_name(p.out.tensor)
    if rung == "shared tile":
        kernel, rows, columns, block = shared_kernel(*names), TILE, TILE, (TILE, TILE)
    else:
        along_n = rung == "coalesced"
        kernel, block = single_kernel(*names, along_n), TILE * WARPS
        rows, columns = (WARPS, TILE) if along_n else (TILE, WARPS)
    tiles = -(-p.M // rows) * -(-p.N // columns)
    for part in parts_of(p):
        a, b = part.a.tensor, part.b.tensor
        kernel[(tiles, 1, part.batches), block](
            whole(part.a), whole(part.b), whole(part.out), p.M, p.N, p.K, *a.stride()[1:],
            *b.stride()[1:], p.out.pitch, p.a.batch, p.b.batch, p.out.batch,
        )  # fmt: skip
    return p.result


def _operand(view, first: bool, grid: Grid, size: int, K: int) -> Operand:
    extent = grid.m if first else grid.n
    # As in matmul_warp: the last tile moves back into the matrix where 16 bytes allow it.
    exact = view.wide and size >= extent and K % grid.k == 0
    exact &= size % 4 == 0 or (first and view.k_major)
    return Operand(view.k_major, extent, grid.k, exact, view.wide)


def kernel_of(p: Product, grid: Grid):
    """The register tile's kernel for a product."""
    wide = p.out.wide and p.N % 4 == 0
    a_form, b_form = _operand(p.a, True, grid, p.M, p.K), _operand(p.b, False, grid, p.N, p.K)
    return tile_kernel(grid, a_form, b_form, wide)


def run(p: Product, grid: Grid) -> torch.Tensor:
    """The product by register tiles of one kind."""
    kernel = kernel_of(p, grid)
    blocks = -(-p.M // grid.m) * -(-p.N // grid.n)
    for part in parts_of(p):
        kernel[(blocks, 1, part.batches), grid.threads](
            whole(part.a), whole(part.b), whole(part.out), p.M, p.N, p.K, p.a.pitch, p.b.pitch,
            p.out.pitch, p.a.batch, p.b.batch, p.out.batch,
        )  # fmt: skip
    return p.result


def register_tile(a, b, out=None, out_dtype=None) -> torch.Tensor:
    """a @ b in float32 by 16 × 8 sums a thread; operands K- or MN-major, see `matmul_operands`."""
    p = product_of(a, b, out, out_dtype, dtypes=("float32",))
    if not p.result.numel():
        return p.result
    if not p.K:
        return p.result.zero_()
    tiles = p.batches * -(-p.M // GRID.m) * -(-p.N // GRID.n)
    return run(p, GRID if tiles >= gpu_of(a)[1] else SMALL_GRID)


RUNGS = {
    "naive": functools.partial(_by_rung, "naive"),
    "coalesced": functools.partial(_by_rung, "coalesced"),
    "shared tile": functools.partial(_by_rung, "shared tile"),
    "register tile": register_tile,
}
