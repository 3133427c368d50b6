"""Decode attention in one launch: equal shares of the cache, joined by whoever comes last.

The grid is as large as what the GPU runs at a time. A block takes its share of the line of work
(`decode_work`), row by row; within a row its warps take every `warps`-th step of 16 positions,
without meeting (`decode_read`), and join their softmax states at the end (`decode_merge`):

    a row of the line       |step 0|step 1| …                                        |
    shares                  |  block 4, its end |      block 5       | block 6, …
    steps of block 5                            |w0|w1|w2|w3|w0|w1|w2|
    query rows              8 or 16 for a warp: the heads of a group times Tq queries

A block that has seen a whole row writes o. Else it leaves (m, l, O) in float32 in the workspace and
counts itself at the row's counter; the last to come joins all parts in the order of the blocks, and
sets the counter back to 0 (`decode_combine`). Nobody waits for anybody: blocks may run in any order
and number. More query rows than a warp has: other warps of the block take them and read the same
steps, from L1 or L2; more than a block has: other blocks (grid.y).

    bytes   K and V once; q for every warp that has part of a row; the workspace, at most two
            states of D + 2 float32 a query row for a block, written and read once
    FLOPs   8 · 16 · D · 4 for a step and 8 query rows; the tensor cores compute all 8, used or not

Beside the reading of 67 MB, 21.5 µs at its best, a call on an H100 takes 3.1 µs to be launched, 0.7
to find the shares, 0.6 to 1.3 to join the warps and about 2 to join the blocks, and the last block
is some 3 µs behind the median (clocks of the blocks, eight warps each): 30.6 µs in all.
"""

import functools
from typing import NamedTuple

from . import ptx
from .decode_combine import arrival, combiner, settler, slot_of
from .decode_merge import Room, deposit
from .decode_read import reader
from .decode_tile import columns_of, tile
from .decode_work import count_places, end_of, seek, start_of
from .jit import jit
from .namespace import cuda, float32, int32, uint32, uint64
from .warp import LOWEST

MARGIN = 256  # eight steps at D 128 and four warps: measured, 2 to 16


class Shape(NamedTuple):
    """How a block is made up: compile-time constants of `stream_kernel`."""

    D: int
    rows: int  # of queries that a warp has: 8 or 16
    groups: int  # of warps that have different query rows
    warps: int
    paged: bool
    per_sm: int = 2  # blocks on a multiprocessor; their registers are limited for it
    depth: int = 16  # of an mma: 8 before sm_80

    @property
    def room(self) -> Room:
        return Room(self.D, self.warps, self.rows)

    @property
    def block_rows(self) -> int:
        """Query rows of a block."""
        return self.rows * self.groups

    @property
    def readers(self) -> int:
        """Warps that share the steps of one group of query rows."""
        return self.warps // self.groups

    @property
    def margin(self) -> int:
        """Steps that a block reads while it could end a row."""
        return max(1, MARGIN * self.warps // self.D)

    @property
    def threads(self) -> int:
        return 32 * self.warps

    @property
    def shared(self) -> int:
        """Bytes of dynamic shared memory."""
        return self.room.nbytes


@functools.cache
def beginner(rows: int, tiles: int):
    """begin(…): an empty state, and the last position that each of a lane's columns sees."""
    EIGHTS, ACCUMULATORS = rows // 8, 4 * tiles * (rows // 8)

    @jit(device=True)
    def begin(row, end, queries, origin, last, peak, total, acc):
        """row: the warp's first query row. Positions count from the lane's row of K in step 0."""
        lane = uint32(cuda.threadIdx.x) & uint32(31)
        for n in range(EIGHTS):
            for c in range(2):
                mine = uint32(row + uint32(8 * n + c) + (lane & uint32(3)) * uint32(2))
                query = uint32(mine % queries)
                last[2 * n + c] = uint32(end - queries + query - (origin + (lane >> uint32(2))))
                peak[2 * n + c] = float32(LOWEST)
                total[2 * n + c] = float32(0)
        for i in range(ACCUMULATORS):
            acc[i] = float32(0)

    return begin


@functools.cache
def stream_kernel(dtype: str, shape: Shape):
    D, rows, groups, warps, paged, per_sm, depth = shape
    COLUMNS, room, ROWS, THREADS = columns_of(D), shape.room, shape.block_rows, shape.threads
    load_queries, _, _ = tile(dtype, D, rows, depth)
    clear = beginner(rows, COLUMNS // 16)
    read = reader(dtype, D, rows, shape.readers, paged, depth)
    put, settle = deposit(room), settler(dtype, room, groups)
    arrive, combine = arrival(room), combiner(dtype, room, groups)
    QUERY_WORDS, ACCUMULATORS, HELD = COLUMNS * rows // 64, COLUMNS * rows // 32, rows // 4

    @jit(pointers=True, launch_bounds=(THREADS, per_sm))
    def decode_stream(
        q: dtype, k: dtype, v: dtype, lengths: "int32", table: "int32", o: dtype,
        partial: "float32", states: "float32", arrivals: "uint32",
        batch: "uint32", kv_heads: "uint32", query_rows: "uint32", queries: "uint32",
        capacity: "uint32", page_size: "uint32", pages: "uint32",
        least: "uint32", margin: "uint32", window: "uint32", scale: "float32",
        k_page: "uint64", k_head: "uint64", k_row: "uint32",
        v_page: "uint64", v_head: "uint64", v_row: "uint32",
    ):  # fmt: skip
        shared = cuda.shared.array(0, float32)
        qw = cuda.local.array(QUERY_WORDS, uint32)
        acc = cuda.local.array(ACCUMULATORS, float32)
        peak = cuda.local.array(HELD, float32)
        total = cuda.local.array(HELD, float32)
        last = cuda.local.array(HELD, uint32)
        lane = uint32(cuda.threadIdx.x) & uint32(31)
        warp = uint32(cuda.threadIdx.x) >> uint32(5)
        turn, group = warp // uint32(groups), warp % uint32(groups)
        g, t = lane >> uint32(2), lane & uint32(3)
        k_lane = ptx.global_address(k) + uint64(g * (k_row * uint32(2)) + t * uint32(16))
        v_lane = ptx.global_address(v) + uint64(t * (v_row * uint32(4)) + g * uint32(16))
        # Blocks of the grid's second axis have other query rows: each has its own line of work.
        first_row = uint32(uint32(cuda.blockIdx.y) * uint32(ROWS))
        slot0 = uint32(uint32(cuda.blockIdx.y) * uint32(cuda.gridDim.x) * uint32(2))
        have = min(uint32(query_rows - first_row), uint32(ROWS))
        mine = uint32(first_row + group * uint32(rows))  # the warp's first query row

        places, own, through = count_places(
            lengths, batch, kv_heads, capacity, queries, window, margin
        )
        first, before = uint32(0), uint32(0)
        blocks = uint32(cuda.gridDim.x)
        share = max(uint32(uint32(places + blocks - uint32(1)) // blocks), least)
        place = uint32(uint32(cuda.blockIdx.x) * share)
        stop = min(uint32(place + share), places)
        while place < stop:
            first, before, own, through, sequence, begin, length = seek(
                lengths, batch, kv_heads, capacity, queries, window, margin,
                place, first, before, own, through,
            )  # fmt: skip
            head = uint32(uint32(place - begin) // length)
            begin = uint32(begin + head * length)
            step, steps = uint32(place - begin), uint32(length - margin)
            upto = min(steps, uint32(stop - begin))
            place = uint32(begin + length)
            if step >= steps:  # nothing but the margin at the end of a row
                continue
            end = end_of(lengths[sequence], capacity)
            start = start_of(end, queries, window)
            origin = uint32(start & uint32(0xFFFFFFF0))
            line = uint32(sequence * kv_heads + head)
            out = uint64(line) * uint64(query_rows * uint32(D))
            load_queries(qw, ptx.global_address(q) + uint64(2) * out, uint32(mine + g), query_rows)
            clear(mine, end, queries, origin, last, peak, total, acc)
            k_home, v_home = uint64(head) * k_head, uint64(head) * v_head
            if not paged:
                k_home += uint64(sequence) * k_page
                v_home += uint64(sequence) * v_page
            read(
                k_lane + uint64(2) * k_home, v_lane + uint64(2) * v_home,
                table, uint32(sequence * pages), page_size, k_page, v_page, k_row, v_row,
                origin, start, end, uint32(step + turn), upto, qw, last, window, scale,
                peak, total, acc,
            )  # fmt: skip
            put(shared, peak, total, acc, uint32(first_row + have), mine)
            cuda.syncthreads()
            out += uint64(first_row * uint32(D))
            slot = uint32(slot0 + slot_of(uint32(cuda.blockIdx.x), share, begin))
            whole = (step == 0) & (upto == steps)
            settle(shared, o, out, partial, states, slot, have, whole)
            cuda.syncthreads()
            if not whole:
                # The last of the row's blocks to come joins what all of them have left.
                begin_block = uint32(begin // share)
                count = uint32(uint32(begin + steps - uint32(1)) // share) - begin_block
                count = uint32(count + uint32(1))
                counter = uint32(line * uint32(cuda.gridDim.y) + uint32(cuda.blockIdx.y))
                if arrive(shared, arrivals, counter, count):
                    combine(
                        shared, partial, states, o, out, have, begin, share, begin_block, count,
                        slot0,
                    )  # fmt: skip

    return decode_stream
