"""Sums of A's rows, taken from the ring of stages while the tensor cores multiply.

    dW = dyᵀ x,  db[j] = Σᵢ dy[i, j]:  A = dyᵀ, so that db is the sums of A's rows

A stage of the ring holds 64 of K for 128 rows of A. Two warps that would otherwise be idle, of the
loading warpgroup, add up 64 rows of A each: four rows and every second k a lane, 8 bytes a load.

    box of A in memory:   | k 0: m 0 – 63 | k 1: m 0 – 63 | … | k 63: … |   128 bytes each, swizzled
    warp 1 → the box of rows 0 – 63, warp 2 → the box of rows 64 – 127

All tiles of a row of tiles load the same of A, and take turns: the tile in column c adds up every
k step that leaves c when divided by the number of columns. The sums of each k step go to global
memory, a row of partial sums for each 64 of K whoever has made it, so that neither the order of the
tiles nor the cut along K changes a bit. `matmul_sums.sum_rows` adds the rows. Bytes: 4 M K / 64
written and read, where a separate pass reads 2 M K; A itself is read once, by the product.
"""

import functools

from . import ptx
from .hopper_epilogue import exchanged
from .hopper_fragments import halves
from .hopper_load import placer
from .hopper_tile import Kind, Tile
from .jit import jit
from .namespace import cuda, float32, uint32, uint64

WARPS = 2


@functools.cache
def adder(kind: Kind, tile: Tile):
    """The device function add_up(work, base, sums, M, N, part, lane): all of a block's work, rows
    64 part to 64 part + 63 of its tiles."""
    _, unpack = halves(kind.dtype)
    n, STAGES, STAGE, BARRIERS = tile.n, tile.stages, tile.stage, tile.barriers
    list_of, first_row, give_back = placer(tile)

    @jit(device=True)
    def box_sums(box, lane):
        """The sums over k of two rows of a box: 4 (lane mod 16) + 2 (lane div 16) and the next."""
        words, sums = cuda.local.array(8, uint32), cuda.local.array(4, float32)
        odd = uint32(lane >> uint32(4))
        place = uint32((lane & uint32(15)) * uint32(8) ^ odd * uint32(16))
        place = uint32(box + odd * uint32(128) + place)
        for r in range(4):
            sums[r] = float32(0)
        for i in range(8):
            for j in range(4):
                at = uint32((place ^ uint32(32 * j)) + uint32(1024 * i + 256 * j))
                words[2 * j], words[2 * j + 1] = ptx.load_shared_64_at(at)
            for j in range(4):
                for h in range(2):
                    low, high = unpack(words[2 * j + h])
                    sums[2 * h] += low
                    sums[2 * h + 1] += high
        return exchanged(sums[0], sums[2], lane, 16), exchanged(sums[1], sums[3], lane, 16)

    @jit(device=True)
    def add_up(work, base, sums, M, N, part, lane):
        full, empty = uint32(base + uint32(BARRIERS)), uint32(base + uint32(BARRIERS + 64))
        columns = uint32(uint32(N + uint32(n - 1)) // uint32(n))
        pitch = uint32((M + uint32(1)) & uint32(0xFFFFFFFE))
        entry = uint32(work[list_of()])
        last = uint32(work[list_of() + uint32(1)])
        stage, phase = uint32(0), uint32(0)
        while entry < last:
            place, _, span, _ = ptx.load_128(work, uint32(entry * uint32(4)))
            entry = uint32(entry + uint32(1))
            row = uint32((lane & uint32(15)) * uint32(4) + (lane >> uint32(4)) * uint32(2))
            row = uint32(row + first_row(place) + part * uint32(64))
            column = uint32(place >> uint32(16))
            k, end = uint32(span & uint32(0xFFFF)), uint32(span >> uint32(16))
            turn = uint32(k % columns)
            while k < end:
                ptx.mbarrier_wait(uint32(full + uint32(8) * stage), phase)
                if turn == column:
                    box = uint32(base + uint32(STAGE) * stage + uint32(8192) * part)
                    low, high = box_sums(box, lane)
                    if row < M:
                        at = uint64(k) * uint64(pitch) + uint64(row)
                        ptx.store_64(sums, at, ptx.bits(low), ptx.bits(high))
                cuda.syncwarp()  # all lanes have read
                give_back(uint32(empty + uint32(8) * stage), lane)
                turn = uint32(turn + uint32(1))
                if turn == columns:
                    turn = uint32(0)
                stage = uint32(stage + uint32(1))
                if stage == uint32(STAGES):
                    stage, phase = uint32(0), uint32(phase ^ uint32(1))
                k = uint32(k + uint32(1))

    return add_up
