"""The first pass of the embedding's sort: tokens by group of ids, tile by tile. One launch.

Block b takes a tile of tokens and writes them, group by group, to the same part of `entries`; its
row of `table` says where in the tile each group begins:

    tile 0 │ group 0 │ group 1 │ … ║ tile 1 │ group 0 │ group 1 │ … ║ …

They also set the counters of `embedding_gather` to zero. The blocks behind them write zeros to
accesses `first` to `end` − 1 of dw.

Bytes: ids twice (the second time from L1 or L2), entries 8 · N; and the zeros.
"""

import functools

from . import ptx
from .embedding_places import (
    CLEARED,
    NONE,
    THREADS,
    WARPS,
    before,
    chain,
    clearer,
    id_of,
    place_of,
)
from .jit import jit
from .namespace import cuda, int32, int64, uint32


@functools.cache
def split_kernel(dtype: str, width: int, groups: int, overlap: bool = False):
    """entries (N, 2): (token, id), in every tile by group; table (tiles, groups + 1): where each
    group begins in the tile, and where the last one ends. A warp takes 32 · rounds tokens."""
    COUNTERS = WARPS * groups
    clear = clearer(width)
    start_next, _ = chain(overlap)

    @jit(pointers=True, launch_bounds=(THREADS, 1))
    def split_by_group(
        ids: ("int64", "int32"), entries: "int32", table: "int32", arrived: "int32", dw: dtype,
        n: "int32", rows: "int64", tiles: "int32", rounds: "int32", counters: "int32",
        first: "int64", end: "int64",
    ):  # fmt: skip
        start_next()
        thread = int32(cuda.threadIdx.x)
        block = int32(cuda.blockIdx.x)
        if block >= tiles:
            clear(dw, first + int64(block - tiles) * (THREADS * CLEARED) + thread, end)
            return
        tally = cuda.shared.array(COUNTERS, int32)
        scratch = cuda.shared.array(WARPS, int32)
        warp = int32(thread >> 5)
        mine = int32(warp * groups)  # where the warp's counters begin
        i = int32(block * THREADS + thread)
        while i < counters:
            arrived[i] = 0
            i = int32(i + tiles * THREADS)
        i = thread
        while i < COUNTERS:
            tally[i] = 0
            i = int32(i + THREADS)
        cuda.syncthreads()

        tile = int64(block) * rounds * THREADS
        start = tile + warp * (rounds * 32) + (thread & 31)
        for r in range(rounds):
            key = id_of(ids, start + r * 32, n, rows)
            if key != uint32(NONE):
                cuda.atomic.add(tally, mine + int32(key & uint32(groups - 1)), 1)
        cuda.syncthreads()

        total = int32(0)
        if thread < groups:
            for w in range(WARPS):
                total = int32(total + tally[w * groups + thread])
        place = int32(before(total, scratch))
        if thread < groups:
            line = int64(block) * (groups + 1) + thread
            table[line] = place
            if thread == groups - 1:
                table[line + 1] = int32(place + total)
            for w in range(WARPS):
                count = tally[w * groups + thread]
                tally[w * groups + thread] = place
                place = int32(place + count)
        cuda.syncthreads()

        for r in range(rounds):
            key = id_of(ids, start + r * 32, n, rows)
            inside = key != uint32(NONE)
            place = place_of(tally, mine + int32(key & uint32(groups - 1)), inside)
            if inside:
                ptx.store_64(entries, (tile + place) * 2, uint32(start + r * 32), key)

    return split_by_group
