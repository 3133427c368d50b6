"""The float32 product at the rate of the multiply-adds: tiles in shared memory and in registers.

    block: 128 × 128, four warps of 64 × 64, 16 × 8 sums a lane

    per lane and k:   16 + 8 numbers from shared memory, six reads, for 128 multiply-adds
    per block and k:  128 + 128 numbers from L2 or memory, for 16,384

Nine of ten instructions are multiply-adds; with one sum a thread two of three would be loads. FLOPs
2 · M · N · K; bytes from L2 or memory 2 · 4 · M · N · K / 128.

A tile of A in shared memory has a line of 128 numbers for each k, one of B as well, whichever way
the matrix lies in memory. Where K runs along its rows, a thread turns the four numbers that it
loaded by storing them to four lines. While a tile is multiplied the next one is on its way into
registers (`fetch`). Before the last line it goes to the other half of shared memory (`keep`), and
after one barrier the first line of the next tile is loaded under the last multiply-adds.

(The scheme is that of Volkov and Demmel 2008, "Benchmarking GPUs to tune dense linear algebra",
with the two halves of shared memory of CUTLASS's SIMT mainloop. `cp.async` instead of registers was
slower: where K runs along the rows it can only copy four bytes at a time.)
"""

import functools
from typing import NamedTuple

from . import matmul_simt_registers as registers
from . import ptx
from .jit import jit
from .matmul_order import corner
from .matmul_simt_registers import Grid, key_step
from .namespace import cuda, float32, int32, uint32, uint64

PIECE = 4  # numbers in one load of 16 bytes


class Operand(NamedTuple):
    """One of the two matrices, as the blocks of a kernel see it: compile-time constants."""

    k_major: bool  # K runs along the rows in memory
    extent: int  # rows of A or columns of B in a tile
    depth: int  # of k
    exact: bool  # no tile reaches over the edges of the matrix: no guards
    wide: bool  # every row begins at a multiple of 16 bytes, else number by number


@functools.cache
def mover(form: Operand, threads: int):
    """(begin, place, advance, fetch, keep, passes): as in `matmul_warp_tiles.Mover`, for float32.

    The thread's pieces lie `passes` apart; words: (passes, 4) uint32.
    """
    EXTENT, DEPTH, EXACT, WIDE, K_MAJOR = (*form[1:], form.k_major)
    PIECES = (DEPTH if K_MAJOR else EXTENT) // PIECE  # of a row in memory
    LINES = threads // PIECES  # rows in memory that one pass takes
    PASSES = EXTENT * DEPTH // PIECE // threads
    KEY = key_step(DEPTH)
    if not LINES or PASSES * threads * PIECE != EXTENT * DEPTH or (K_MAJOR and LINES % 32):
        raise ValueError(f"form: {threads} threads cannot share the tile {form} evenly")

    @jit(device=True)
    def begin(x, pitch, corner, size, K, thread):
        line = uint32(thread // uint32(PIECES))
        column = uint32((thread % uint32(PIECES)) * uint32(PIECE))
        rows, columns = size, K
        if K_MAJOR:
            line = uint32(line + corner)
        else:
            column = uint32(column + corner)
            rows, columns = K, size
        at = x + uint64(4) * (uint64(line) * uint64(pitch) + uint64(column))
        left = int32(int32(columns) - int32(column))
        return at, uint32(pitch), int32(int32(rows) - int32(line)), left

    @jit(device=True)
    def place(thread):
        line = uint32(thread // uint32(PIECES))
        piece = uint32(thread % uint32(PIECES))
        if K_MAJOR:
            return uint32((piece * uint32(4 * EXTENT) + (line ^ (piece * uint32(KEY)))) * uint32(4))
        column = (piece * uint32(4)) ^ (uint32(line // uint32(4)) * uint32(KEY))
        return uint32((line * uint32(EXTENT) + column) * uint32(4))

    @jit(device=True)
    def advance(state):
        at, pitch, rows, columns = state
        if K_MAJOR:
            return at + uint64(4 * DEPTH), pitch, rows, int32(columns - int32(DEPTH))
        return at + uint64(4 * DEPTH) * uint64(pitch), pitch, int32(rows - int32(DEPTH)), columns

    @jit(device=True)
    def number(at, k, count):
        return ptx.load_32_at(at + uint64(4 * k)) if int32(k) < count else uint32(0)

    @jit(device=True)
    def piece_of(p, state):
        at = state[0] + uint64(uint32(uint32(4 * LINES) * state[1]) * uint32(p))
        if WIDE and EXACT:
            return ptx.load_128_at(at)
        count = state[3] if int32(p * LINES) < state[2] else int32(0)
        if WIDE and count >= int32(PIECE):
            return ptx.load_128_at(at)
        return (
            number(at, 0, count),
            number(at, 1, count),
            number(at, 2, count),
            number(at, 3, count),
        )

    @jit(device=True)
    def fetch(words, state):
        for p in range(PASSES):
            found = piece_of(p, state)
            for k in range(PIECE):
                words[p, k] = found[k]

    @jit(device=True)
    def keep(words, shared):
        for p in range(PASSES):
            if K_MAJOR:
                for k in range(PIECE):
                    to = shared + uint32(4 * (p * LINES + k * EXTENT))
                    ptx.store_shared_32_at(to, words[p, k])
            else:
                to = (shared ^ uint32(p * LINES // 4 * KEY * 4)) + uint32(4 * p * LINES * EXTENT)
                ptx.store_shared_128_at(to, words[p, 0], words[p, 1], words[p, 2], words[p, 3])

    return begin, place, advance, fetch, keep, PASSES


@functools.cache
def tile_kernel(grid: Grid, a_form: Operand, b_form: Operand, wide: bool):
    """The kernel for operands of one form; wide: of the result's rows. Grid: tiles, 1, batches."""
    THREADS, DEPTH, TILE_M, TILE_N = grid.threads, grid.k, grid.m, grid.n
    WARP_M, WARP_N, WARPS_N, LANES_N = grid.warp_m, grid.warp_n, grid.warps_n, grid.lanes_n
    EXACT_M, EXACT_N = a_form.exact, b_form.exact
    begin_a, place_a, advance_a, fetch_a, keep_a, PASSES_A = mover(a_form, THREADS)
    begin_b, place_b, advance_b, fetch_b, keep_b, PASSES_B = mover(b_form, THREADS)
    first, put = registers.first(grid), registers.put(grid, wide)
    walk, walk_last = registers.walk(grid, tuple(range(1, DEPTH))), registers.walk(grid, (0,))
    SIZE_A, SIZE = 4 * TILE_M * DEPTH, 4 * (TILE_M + TILE_N) * DEPTH
    WORDS = 2 * SIZE // 4
    corner_of = corner(TILE_M, TILE_N)

    @jit(pointers=True, launch_bounds=(THREADS, grid.blocks))
    def matmul_tile(a: "float32", b: "float32", out: "float32", M: "uint32", N: "uint32",
                    K: "uint32", pitch_a: "uint32", pitch_b: "uint32", pitch_out: "uint32",
                    batch_a: "uint64", batch_b: "uint64", batch_out: "uint64"):  # fmt: skip
        words_a = cuda.local.array((PASSES_A, PIECE), uint32)
        words_b = cuda.local.array((PASSES_B, PIECE), uint32)
        base = ptx.shared_address(cuda.shared.array(WORDS, uint32, alignment=128))
        thread = uint32(cuda.threadIdx.x)
        lane, warp = thread & uint32(31), thread >> uint32(5)
        z = uint64(cuda.blockIdx.z)
        top, side = corner_of(uint32(cuda.blockIdx.x), M, N)
        row = min(top, uint32(M - uint32(TILE_M))) if EXACT_M else top
        column = min(side, uint32(N - uint32(TILE_N))) if EXACT_N else side
        from_a = begin_a(
            ptx.global_address(a) + uint64(4) * z * batch_a, pitch_a, row, M, K, thread
        )
        from_b = begin_b(
            ptx.global_address(b) + uint64(4) * z * batch_b, pitch_b, column, N, K, thread
        )
        to_a = uint32(base + place_a(thread))
        to_b = uint32(base + uint32(SIZE_A) + place_b(thread))
        fetch_a(words_a, from_a)
        fetch_b(words_b, from_b)
        keep_a(words_a, to_a)
        keep_b(words_b, to_b)
        cuda.syncthreads()
        # The lane's first sum, counted from the tile's corner.
        own_m = uint32(warp // uint32(WARPS_N)) * uint32(WARP_M)
        own_m += uint32(lane // uint32(LANES_N)) * uint32(4)
        own_n = uint32(warp % uint32(WARPS_N)) * uint32(WARP_N)
        own_n += uint32(lane % uint32(LANES_N)) * uint32(4)
        at_a = uint32(base + own_m * uint32(4))
        at_b = uint32(base + uint32(SIZE_A) + own_n * uint32(4))
        state = first(at_a, at_b)
        slot = uint32(0)
        tiles = uint32((K + uint32(DEPTH - 1)) // uint32(DEPTH))
        while tiles > uint32(0):
            tiles -= uint32(1)
            if tiles > uint32(0):
                from_a, from_b = advance_a(from_a), advance_b(from_b)
                fetch_a(words_a, from_a)
                fetch_b(words_b, from_b)
            state = walk(state, at_a + slot, at_b + slot)
            if tiles > uint32(0):
                slot = uint32(uint32(SIZE) - slot)
                keep_a(words_a, to_a + slot)
                keep_b(words_b, to_b + slot)
                cuda.syncthreads()
            state = walk_last(state, at_a + slot, at_b + slot)
        row += own_m
        column += own_n
        at = z * batch_out + uint64(row) * uint64(pitch_out) + uint64(column)
        put(
            state, ptx.global_address(out) + uint64(4) * at, uint64(4) * uint64(pitch_out),
            int32(top) - int32(row), int32(M) - int32(row), int32(side) - int32(column),
            int32(N) - int32(column),
        )  # fmt: skip

    return matmul_tile
