"""The states that several blocks have left of one row of the work line, joined in block order.

Workspace, in float32, for `slots` = 2 · blocks and ROWS rows of queries in a block:

    partial  (slots, ROWS, COLUMNS)   O        states  (slots, ROWS, 2)   m and l

Block i leaves its first row in slot 2 i and, if that is another, its last one in slot 2 i + 1.
"""

import functools

from . import ptx
from .decode_merge import Room, join, shift_of
from .decode_tile import columns_of
from .jit import jit
from .namespace import cuda, float32, uint32, uint64
from .warp import LOWEST

BATCH = 8  # states that a thread has under way at once
BATCH_WORDS = 4 * BATCH


@jit(device=True)
def slot_of(block, share, begin):
    """Where a block leaves what it saw of the row of the work line that starts at `begin`."""
    return uint32(block * uint32(2)) + (uint32(0) if uint32(block * share) >= begin else uint32(1))


@functools.cache
def finisher(dtype: str):
    """finish(o, place, four, total): o[place : place + 4] = four / total, 0 where total is 0."""
    pack = ptx.pack_bf16 if dtype == "bfloat16" else ptx.pack_f16

    @jit(device=True)
    def finish(o, place, four, total):
        factor = float32(0)
        if total != float32(0):
            factor = ptx.rcp(total)
        low = pack(four[0] * factor, four[1] * factor)
        high = pack(four[2] * factor, four[3] * factor)
        ptx.store_64(o, place, low, high)

    return finish


@functools.cache
def settler(dtype: str, room: Room, groups: int):
    """settle(…): the state of a block goes to o where it has seen the whole row, else to a slot."""
    PIECES, COLUMNS, D = room.D // 4, columns_of(room.D), room.D
    THREADS, ROWS = 32 * room.warps, room.rows * groups
    gather, finish = join(room, groups), finisher(dtype)

    @jit(device=True)
    def settle(shared, o, start, partial, states, slot, rows, whole):
        """start: o's element where the block's query rows begin; rows: how many there are."""
        four = cuda.local.array(4, float32)
        item = uint32(cuda.threadIdx.x)
        while item < uint32(rows * uint32(PIECES)):
            row = uint32(item // uint32(PIECES))
            column = uint32((item - row * uint32(PIECES)) * uint32(4))
            peak, total = gather(shared, row, column, four)
            if whole:
                finish(o, start + uint64(uint32(row * uint32(D) + column)), four, total)
            else:
                state = uint64(uint32(slot * uint32(ROWS) + row))
                ptx.store_vector(partial, state * uint64(COLUMNS) + uint64(column), four, 0)
                if column == 0:
                    ptx.store(states, state * uint64(2), peak)
                    ptx.store(states, state * uint64(2) + uint64(1), total)
            item = uint32(item + uint32(THREADS))

    return settle


@functools.cache
def arrival(room: Room):
    """arrive(…): whether this block is the last of `count` to come to a row of the line."""
    FLAG = room.flag

    @jit(device=True)
    def arrive(shared, arrivals, line, count):
        """Behind a block barrier, so that the atomic's release covers what all threads wrote. The
        last one to come leaves the counter at 0, as it found it."""
        if cuda.threadIdx.x == 0:
            come = ptx.atomic_add_acq_rel(arrivals, line, uint32(1))
            last = uint32(come + uint32(1)) == count
            shared[FLAG] = float32(1) if last else float32(0)
            if last:
                ptx.store_relaxed(arrivals, line, uint32(0))
        cuda.syncthreads()
        return shared[FLAG] != float32(0)

    return arrive


@functools.cache
def combiner(dtype: str, room: Room, groups: int):
    D, PIECES, COLUMNS = room.D, room.D // 4, columns_of(room.D)
    THREADS, ROWS = 32 * room.warps, room.rows * groups
    finish = finisher(dtype)

    @jit(device=True)
    def add_states(
        partial, states, row, column, begin, share, first, count, slot0, part, parts, four
    ):  # fmt: skip
        """Join what blocks first + part, first + part + parts, … have left; returns (m, l)."""
        words = cuda.local.array(BATCH_WORDS, float32)
        peaks = cuda.local.array(BATCH, float32)
        totals = cuda.local.array(BATCH, float32)
        peak, total = float32(LOWEST), float32(0)
        for i in range(4):
            four[i] = float32(0)
        c = part
        while c < count:
            top = peak
            for k in range(BATCH):
                mine = uint32(c + parts * uint32(k))
                block = uint32(first + min(mine, uint32(count - uint32(1))))
                state = uint32(uint32(slot0 + slot_of(block, share, begin)) * uint32(ROWS) + row)
                m, sum_ = ptx.load_64_cg(states, uint64(state) * uint64(2))
                peaks[k] = ptx.from_bits(m) if mine < count else float32(LOWEST)
                totals[k] = ptx.from_bits(sum_)
                ptx.load_vector_cg(
                    partial, uint64(state) * uint64(COLUMNS) + uint64(column), words, 4 * k
                )
            for k in range(BATCH):
                top = max(top, peaks[k])
            shift = shift_of(top)
            shrink = ptx.ex2(peak - shift)
            total *= shrink
            for i in range(4):
                four[i] *= shrink
            for k in range(BATCH):
                factor = ptx.ex2(peaks[k] - shift)
                total += totals[k] * factor
                for i in range(4):
                    four[i] += words[4 * k + i] * factor
            peak = top
            c = uint32(c + parts * uint32(BATCH))
        return peak, total

    @jit(device=True)
    def combine(
        shared, partial, states, o, start, rows, begin, share, first, count, slot0
    ):  # fmt: skip
        """start: o's element where the row block begins; rows: of queries that it has; first,
        count: blocks that have a part; slot0: the first slot of this block of query rows.

        Few elements and many threads: `parts` threads for each four elements, each with its own
        blocks to join; their states meet in shared memory.
        """
        four = cuda.local.array(4, float32)
        other = cuda.local.array(4, float32)
        items = uint32(rows * uint32(PIECES))
        parts = uint32(1)
        if items < uint32(THREADS):
            parts = min(uint32(uint32(THREADS) // items), count)
        thread = uint32(cuda.threadIdx.x)
        place = thread
        while place < uint32(items * parts):
            part = uint32(place // items)
            item = uint32(place - part * items)
            row = uint32(item // uint32(PIECES))
            column = uint32((item - row * uint32(PIECES)) * uint32(4))
            peak, total = add_states(
                partial, states, row, column, begin, share, first, count, slot0,
                part, parts, four,
            )  # fmt: skip
            if parts == uint32(1):
                finish(o, start + uint64(uint32(row * uint32(D) + column)), four, total)
            else:
                shared[uint32(4 * THREADS) + place] = peak
                shared[uint32(5 * THREADS) + place] = total
                ptx.store_shared_vector(shared, place * uint32(4), four, 0)
            place = uint32(place + uint32(THREADS))
        cuda.syncthreads()
        if parts > uint32(1) and thread < items:
            row = uint32(thread // uint32(PIECES))
            column = uint32((thread - row * uint32(PIECES)) * uint32(4))
            peak = float32(LOWEST)
            for k in range(parts):
                peak = max(peak, shared[uint32(uint32(4 * THREADS) + thread + uint32(k) * items)])
            shift = shift_of(peak)
            total = float32(0)
            for i in range(4):
                four[i] = float32(0)
            for k in range(parts):
                place = uint32(thread + uint32(k) * items)
                factor = ptx.ex2(shared[uint32(4 * THREADS) + place] - shift)
                total += shared[uint32(5 * THREADS) + place] * factor
                ptx.load_shared_vector(shared, place * uint32(4), other, 0)
                for i in range(4):
                    four[i] += other[i] * factor
            finish(o, start + uint64(uint32(row * uint32(D) + column)), four, total)
        cuda.syncthreads()

    return combine
