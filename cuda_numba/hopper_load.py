"""The loading thread of the Hopper product: boxes of A and B into the ring, as stages become free.

    wait empty[s] → announce the bytes of a stage on full[s] → TMA: A, B → s + 1

An operand along K comes in one box, 128 rows of A or n of B, 64 of K. One that lies along M or N
comes in boxes of 64 × 64, 8 KB, of which wgmma wants its rows along M or N one after another.

    B along N, n = 192:     |k 0 – 63, n 0 – 63|k 0 – 63, n 64 – 127|k 0 – 63, n 128 – 191|
"""

import functools

from . import ptx
from .hopper_tile import A_BYTES, DEPTH, ROWS, Kind, Tile
from .jit import jit
from .namespace import cuda, uint32


@functools.cache
def placer(tile: Tile):
    """The device functions list_of(), which of the work lists is this block's, first_row(place) of
    its tile, and give_back(empty, lane): a stage, by a warp that has read it."""
    PAIR = tile.pair

    @jit(device=True)
    def list_of():
        return uint32(uint32(cuda.blockIdx.x) >> uint32(1)) if PAIR else uint32(cuda.blockIdx.x)

    @jit(device=True)
    def first_row(place):
        row = uint32(place & uint32(0xFFFF))
        if PAIR:
            row = uint32(row * uint32(2) + ptx.cluster_rank())
        return uint32(row * uint32(ROWS))

    @jit(device=True)
    def give_back(empty, lane):
        if PAIR:  # to both blocks: either may be the next that writes there
            if lane < uint32(2):
                ptx.mbarrier_arrive_cluster(ptx.mapa(empty, lane))
        elif lane == 0:
            ptx.mbarrier_arrive(empty)

    return list_of, first_row, give_back


@functools.cache
def loader(kind: Kind, tile: Tile):
    """The device function load(map_a, map_b, work, base, many_a, many_b): all of a block's work.

    many_a, many_b: 1 where the operand has a matrix for each batch, 0 where they share one.
    """
    n, STAGES = tile.n, tile.stages
    a_along_m, b_along_n = kind.a_along_m, kind.b_along_n
    STAGE, BARRIERS, PAIR = tile.stage, tile.barriers, tile.pair
    load_b = ptx.tma_load_3d_multicast
    HALF_K, HALF_N, BOTH = DEPTH // 2, n // 2, 3  # of a pair: what one loads for both blocks

    @jit(device=True)
    def load_half(at, map_b, column, k, batch, bar):
        """This block's half of B, to both blocks of the pair and to the mbarriers of both."""
        rank = ptx.cluster_rank()
        if b_along_n:
            at = uint32(at + rank * uint32(128 * HALF_K))
            k = uint32(k + rank * uint32(HALF_K))
            for h in range(n // 64):
                load_b(at + uint32(8192 * h), map_b, column + uint32(64 * h), k, batch, bar, BOTH)
        else:
            at = uint32(at + rank * uint32(128 * HALF_N))
            load_b(at, map_b, k, column + rank * uint32(HALF_N), batch, bar, BOTH)

    list_of, first_row, _ = placer(tile)

    @jit(device=True)
    def load(map_a, map_b, work, base, many_a, many_b):
        """One thread: every box of every piece of this block, as stages become free."""
        ptx.fence_tensormap_acquire(map_a)
        ptx.fence_tensormap_acquire(map_b)
        full, empty = uint32(base + uint32(BARRIERS)), uint32(base + uint32(BARRIERS + 64))
        entry = uint32(work[list_of()])
        last = uint32(work[list_of() + uint32(1)])
        stage, phase = uint32(0), uint32(1)
        while entry < last:
            place, batch, span, _ = ptx.load_128(work, uint32(entry * uint32(4)))
            entry = uint32(entry + uint32(1))
            row = first_row(place)
            column = uint32((place >> uint32(16)) * uint32(n))
            k = uint32((span & uint32(0xFFFF)) * uint32(DEPTH))
            end = uint32((span >> uint32(16)) * uint32(DEPTH))
            batch_a, batch_b = uint32(batch * many_a), uint32(batch * many_b)
            while k < end:
                ptx.mbarrier_wait(uint32(empty + uint32(8) * stage), phase)
                bar = uint32(full + uint32(8) * stage)
                at = uint32(base + uint32(STAGE) * stage)
                ptx.mbarrier_arrive_expect_tx(bar, STAGE)
                if a_along_m:
                    for h in range(2):
                        ptx.tma_load_3d(
                            at + uint32(8192 * h), map_a, row + uint32(64 * h), k, batch_a, bar
                        )
                else:
                    ptx.tma_load_3d(at, map_a, k, row, batch_a, bar)
                at = uint32(at + uint32(A_BYTES))
                if PAIR:
                    load_half(at, map_b, column, k, batch_b, bar)
                elif b_along_n:
                    for h in range(n // 64):
                        ptx.tma_load_3d(
                            at + uint32(8192 * h), map_b, column + uint32(64 * h), k, batch_b, bar
                        )
                else:
                    ptx.tma_load_3d(at, map_b, k, column, batch_b, bar)
                stage = uint32(stage + uint32(1))
                if stage == uint32(STAGES):
                    stage, phase = uint32(0), uint32(phase ^ uint32(1))
                k = uint32(k + uint32(DEPTH))

    return load
