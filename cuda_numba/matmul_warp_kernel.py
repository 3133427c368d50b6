"""The product on tensor cores before Hopper: `mma.sync` fed by a ring of `cp.async` stages.

A block of eight warps makes a tile of out; each warp makes 64 × 64 of it in 128 registers a lane:

    block: 128 × 256         warp 0 │ warp 1 │ warp 2 │ warp 3        64 rows
                             ───────┼────────┼────────┼───────
                             warp 4 │ warp 5 │ warp 6 │ warp 7        64 rows

    FLOPs 2 · M · N · K. Bytes from L2 or memory: 2 (128 + 256) · 64 for each 2 · 128 · 256 · 64 of
    them, 85 FLOPs a byte; from shared memory a warp reads 4 KB for 32 mma (131,072 FLOPs).

Along K the tiles are 64 deep, four steps of 16. Of the STAGES tiles in shared memory one is being
multiplied and the others are on their way: their copies begin in three portions, between steps, so
that they do not stand in the way of the fragments all at once. Each step multiplies and brings the
fragments of the next one (`matmul_warp_registers.walk`), also over the edge of two tiles:

    copy A, step 0 │ copy half of B, step 1 │ copy the rest, step 2 │ wait, barrier, step 3

The barrier stands before the last step, whose fragments are in registers by then. It says two
things: the next tile has come for every thread, and no warp reads this one any more, so that the
copies after it may write here. There is one for each tile.

(CUTLASS's multistage mainloop for sm_80; Nvidia, "CUTLASS: efficient GEMM", section "Warp-level".)
"""

import functools
from typing import NamedTuple

from . import matmul_warp_registers as registers
from . import ptx
from .jit import jit
from .matmul_order import corner
from .matmul_warp_epilogue import Epilogue, writer
from .matmul_warp_tiles import Operand, fragments, lanes, mover
from .namespace import cuda, float32, uint32, uint64

ALIGNMENT = 128  # of tiles in shared memory: see matmul_warp_tiles


class Tile(NamedTuple):
    """What a block makes, and how."""

    m: int  # of the block's tile
    n: int
    k: int
    warp_m: int  # of a warp's
    warp_n: int
    stages: int  # tiles of A and B in shared memory
    blocks: int = 1  # at least so many on a multiprocessor

    @property
    def threads(self) -> int:
        return 32 * (self.m // self.warp_m) * (self.n // self.warp_n)


def shared_bytes(tile: Tile, end: Epilogue) -> int:
    """Shared memory of a block: the ring, which later holds the sums on their way out."""
    ring = tile.stages * 2 * (tile.m + tile.n) * tile.k
    return max(ring, tile.threads // 32 * end.nbytes) + ALIGNMENT


@functools.cache
def warp_kernel(dtype: str, tile: Tile, a_form: Operand, b_form: Operand, end: Epilogue):
    """The kernel for operands and a result of one form. Grid: tiles, 1, batches."""
    THREADS, STAGES, DEPTH = tile.threads, tile.stages, tile.k
    WARP_M, WARP_N, WARPS_N = tile.warp_m, tile.warp_n, tile.n // tile.warp_n
    TILE_M, TILE_N, EXACT_M, EXACT_N = tile.m, tile.n, a_form.exact, b_form.exact
    SIZE_A, STAGE = a_form.nbytes, a_form.nbytes + b_form.nbytes
    RING, KEPT = STAGES * STAGE, end.nbytes
    OUT, BIAS = end.out, end.bias or end.out
    begin_a, place_a, advance_a, copy_a = mover(a_form, THREADS)[:4]
    begin_b, place_b, advance_b, copy_b = mover(b_form, THREADS)[:4]
    (copy_a,), (copy_b, copy_b0, copy_b1) = copy_a[:1], copy_b
    shape = registers.Shape(WARP_M // 16, WARP_N // 8, dtype, True)
    lanes_a, (a0, a1, a2, a3) = lanes(a_form), fragments(a_form)
    lanes_b, (b0, b1, b2, b3) = lanes(b_form), fragments(b_form)
    first = registers.first(shape, a0, b0)
    walk_0, walk_1 = registers.walk(shape, True, a1, b1), registers.walk(shape, False, a2, b2)
    walk_2, walk_3 = registers.walk(shape, True, a3, b3), registers.walk(shape, False, a0, b0)
    corner_of, write = corner(TILE_M, TILE_N), writer(end, shape)

    @jit(pointers=True, launch_bounds=(THREADS, tile.blocks))
    def matmul_warp(a: dtype, b: dtype, out: OUT, bias: BIAS, M: "uint32", N: "uint32",
                    K: "uint32", pitch_a: "uint32", pitch_b: "uint32", pitch_out: "uint32",
                    batch_a: "uint64", batch_b: "uint64", batch_out: "uint64",
                    beta: "float32"):  # fmt: skip
        thread = uint32(cuda.threadIdx.x)
        lane, warp = thread & uint32(31), thread >> uint32(5)
        z = uint64(cuda.blockIdx.z)
        top, side = corner_of(uint32(cuda.blockIdx.x), M, N)
        row = min(top, uint32(M - uint32(TILE_M))) if EXACT_M else top
        column = min(side, uint32(N - uint32(TILE_N))) if EXACT_N else side
        start = ptx.shared_address(cuda.shared.array(0, uint32))
        ring = uint32((start + uint32(ALIGNMENT - 1)) // uint32(ALIGNMENT)) * uint32(ALIGNMENT)
        at = ptx.global_address(a) + uint64(2) * z * batch_a
        from_a = begin_a(at, pitch_a, row, M, K, thread)
        at = ptx.global_address(b) + uint64(2) * z * batch_b
        from_b = begin_b(at, pitch_b, column, N, K, thread)
        to_a = uint32(ring + place_a(thread))
        to_b = uint32(ring + uint32(SIZE_A) + place_b(thread))
        tiles = uint32((K + uint32(DEPTH - 1)) // uint32(DEPTH))
        coming = tiles  # of which the copies have not begun
        for s in range(STAGES - 1):
            if coming > uint32(0):
                copy_a(to_a + uint32(s * STAGE), from_a)
                copy_b(to_b + uint32(s * STAGE), from_b)
                from_a, from_b = advance_a(from_a), advance_b(from_b)
                coming -= uint32(1)
            ptx.cp_async_commit()
        # Where the lane's fragments lie in the slot of the first tile.
        own_m = uint32(warp // uint32(WARPS_N)) * uint32(WARP_M)
        own_n = uint32(warp % uint32(WARPS_N)) * uint32(WARP_N)
        first_a = uint32(ring + lanes_a(lane, own_m))
        first_b = uint32(ring + uint32(SIZE_A) + lanes_b(lane, own_n))
        slot, free = uint32(0), uint32(RING - STAGE)
        ptx.cp_async_wait(STAGES - 2)
        cuda.syncthreads()
        state = first(first_a, first_b)
        while tiles > uint32(0):
            tiles -= uint32(1)
            at_a, at_b = uint32(first_a + slot), uint32(first_b + slot)
            if coming > uint32(0):
                copy_a(to_a + free, from_a)
            state = walk_0(state, at_a, at_b)
            if coming > uint32(0):
                copy_b0(to_b + free, from_b)
            state = walk_1(state, at_a, at_b)
            if coming > uint32(0):
                copy_b1(to_b + free, from_b)
                from_a, from_b = advance_a(from_a), advance_b(from_b)
                coming -= uint32(1)
            ptx.cp_async_commit()
            state = walk_2(state, at_a, at_b)
            ptx.cp_async_wait(STAGES - 2)
            cuda.syncthreads()
            free = uint32(free + uint32(STAGE)) if free < uint32(RING - STAGE) else uint32(0)
            if tiles > uint32(0):  # after the last one there is nothing to read ahead
                slot = uint32(slot + uint32(STAGE)) if slot < uint32(RING - STAGE) else uint32(0)
            state = walk_3(state, first_a + slot, first_b + slot)
        cuda.syncthreads()
        warp = registers.thread_again() >> uint32(5)
        write(
            state, ring + warp * uint32(KEPT), out, z * batch_out, pitch_out, top, side,
            row + uint32(warp // uint32(WARPS_N)) * uint32(WARP_M),
            column + uint32(warp % uint32(WARPS_N)) * uint32(WARP_N), M, N, bias, beta,
        )  # fmt: skip

    return matmul_warp
