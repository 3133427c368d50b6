"""The second pass of the embedding's sort: every group's tokens by id. One launch.

Block g collects the runs of group g that `embedding_split` left, tile by tile, and sorts them by
id; what it writes is a `Plan` (see `embedding_plan`):

    token          3     7    12     0     5     9     1     2  …          (groups = 4)
    of id          0     0     0     4     8     8     1     1  …
    spans[0] = (0, 3)   spans[4] = (3, 1)   spans[8] = (4, 2)   spans[1] = (6, 2)  …

Where group g begins needs no launch of its own: the sum of the beginnings of its runs is the number
of tokens in lower groups. A group with a very frequent id has many more tokens than the others and
the launch lasts as long as it takes: so every lane has AHEAD entries on their way.

The blocks behind those write zeros to accesses `first` to `end` − 1 of dw; they wait for nothing.

Bytes: entries twice 8 · N, table, order 8 · N, spans 8 · V, all within L2; and the zeros.
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
    place_of,
)
from .jit import jit
from .namespace import cuda, int32, int64, uint32

WARP_SHIFT = WARPS.bit_length() - 1
MAX_TILES = 256  # of a power of two; more tokens make the tiles longer
WINDOW = THREADS  # ids of a group that are counted at a time: 32 KB of counters
FAR = 2**31 - 1  # behind every place
AHEAD = 4  # entries that a lane has on their way
MIN_BLOCKS = 2  # in a multiprocessor from sm_90 on; before, 64 registers are a few too little


@jit(device=True)
def entry_at(begins, shifts, i):
    """Where entry i of a group stands: i plus the shift of the last run that begins by i."""
    run = int32(0)
    step = int32(MAX_TILES // 2)
    while step > 0:
        if begins[run + step] <= i:
            run = int32(run + step)
        step = int32(step >> 1)
    return int32(shifts[run] + i)


@functools.cache
def order_kernel(dtype: str, width: int, groups: int, overlap: bool = False):
    """A Plan from entries and table. tile: tokens of one; per_group: rows of spans that a group
    has."""
    SHIFT = groups.bit_length() - 1
    COUNTERS = WARPS * WINDOW
    clear = clearer(width)
    start_next, await_previous = chain(overlap)

    @jit(pointers=True, launch_bounds=(THREADS, MIN_BLOCKS if overlap else 1))
    def order_by_id(
        entries: "int32", table: "int32", order: "int32", spans: "int32", found: "int32", dw: dtype,
        tiles: "int32", tile: "int32", per_group: "uint32", first: "int64", end: "int64",
    ):  # fmt: skip
        start_next()
        thread = int32(cuda.threadIdx.x)
        group = int32(cuda.blockIdx.x)
        if group >= groups:
            clear(dw, first + int64(group - groups) * (THREADS * CLEARED) + thread, end)
            return
        tally = cuda.shared.array(COUNTERS, int32)
        begins = cuda.shared.array(MAX_TILES, int32)
        shifts = cuda.shared.array(MAX_TILES, int32)
        scratch = cuda.shared.array(WARPS, int32)
        keys = cuda.local.array(AHEAD, uint32)
        found_tokens = cuda.local.array(AHEAD, uint32)
        limits = cuda.shared.array(2, int32)  # the group's first place; how many tokens it has
        warp = int32(thread >> 5)
        lane = int32(thread & 31)
        mine = int32(warp * WINDOW)  # where the warp's counters begin
        if thread == 0:
            limits[0] = 0
        await_previous()

        lower = int32(0)
        length = int32(0)
        if thread < tiles:
            line = int64(thread) * (groups + 1) + group
            lower = table[line]
            length = int32(table[line + 1] - lower)
        begin = int32(before(length, scratch))
        if thread < MAX_TILES:
            begins[thread] = begin if thread < tiles else int32(FAR)
            shifts[thread] = int32(thread * tile + lower - begin)
        if lower > 0:
            cuda.atomic.add(limits, 0, lower)
        if thread == THREADS - 1:
            limits[1] = int32(begin + length)
        cuda.syncthreads()
        place = limits[0]
        count = limits[1]
        share = int32(((count + THREADS - 1) >> (5 + WARP_SHIFT)) << 5)  # of a warp
        share_begin = int32(warp * share)
        share_end = int32(min(share_begin + share, count))

        low = uint32(0)
        while low < per_group:
            for k in range(WARPS):
                tally[k * THREADS + thread] = 0
            cuda.syncthreads()
            i = int32(share_begin + lane)
            while i < share_end:
                for u in range(AHEAD):
                    keys[u] = uint32(NONE)
                    if i + 32 * u < share_end:
                        at = int64(entry_at(begins, shifts, int32(i + 32 * u)))
                        keys[u] = uint32(entries[2 * at + 1])
                for u in range(AHEAD):
                    row = uint32((keys[u] >> uint32(SHIFT)) - low)
                    if keys[u] != uint32(NONE) and row < uint32(WINDOW):
                        cuda.atomic.add(tally, mine + int32(row), 1)
                i = int32(i + 32 * AHEAD)
            cuda.syncthreads()

            many = int32(0)
            for w in range(WARPS):
                many = int32(many + tally[w * WINDOW + thread])
            start = int32(place + before(many, scratch))
            row = uint32(low + uint32(thread))
            if row < per_group:
                line = int64(group) * per_group + row
                ptx.store_64(spans, line * 2, uint32(start), uint32(many))
            after = start
            for w in range(WARPS):
                some = tally[w * WINDOW + thread]
                tally[w * WINDOW + thread] = after
                after = int32(after + some)
            if thread == THREADS - 1:
                limits[0] = after  # where the next window begins
            cuda.syncthreads()
            place = limits[0]

            i = share_begin
            while i < share_end:
                for u in range(AHEAD):
                    keys[u] = uint32(NONE)
                    if i + 32 * u + lane < share_end:
                        at = int64(entry_at(begins, shifts, int32(i + 32 * u + lane)))
                        found_tokens[u], keys[u] = ptx.load_64(entries, at * 2)
                for u in range(AHEAD):
                    if i + 32 * u < share_end:  # the same in all lanes
                        row = uint32((keys[u] >> uint32(SHIFT)) - low)
                        inside = keys[u] != uint32(NONE) and row < uint32(WINDOW)
                        to = int32(place_of(tally, mine + int32(row), inside))
                        if inside:
                            key = uint32(uint32(row + low) << uint32(SHIFT)) | uint32(group)
                            ptx.store_64(order, int64(to) * 2, found_tokens[u], key)
                i = int32(i + 32 * AHEAD)
            cuda.syncthreads()
            low = uint32(low + uint32(WINDOW))
        if group == groups - 1 and thread == 0:
            found[0] = limits[0]

    return order_by_id
