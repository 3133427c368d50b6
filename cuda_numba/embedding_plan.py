"""Sorting the tokens of an embedding's gradient by id: two launches, stable, no atomics on order.

A radix sort with two digits: id % groups, then id // groups. Neighbouring ids are in different
groups, because in many vocabularies the frequent ones stand together.

    split   block b takes a tile of tokens and writes them, group by group, to the same part of
            `entries`; its row of `table` says where in the tile each group begins

            tile 0 │ group 0 │ group 1 │ … ║ tile 1 │ group 0 │ group 1 │ … ║ …

    order   block g collects the runs of group g, tile by tile, and sorts them by id:

            token          3     7    12     0     5     9     1     2  …      (groups = 4)
            of id          0     0     0     4     8     8     1     1  …
            spans[0] = (0, 3)   spans[4] = (3, 1)   spans[8] = (4, 2)   spans[1] = (6, 2)  …

Both do the same in a block: every warp counts the digits of its own stretch of tokens, a sum over
the warps gives each of them its place for every digit, and in a second pass the lanes with equal
digits find their order by `match_any`. So tokens of one id stay in the order of their numbers.
Where group g begins needs no third launch: the sum of the beginnings of its runs is the number of
tokens in lower groups.

Bytes: ids twice, entries 8 · N once out and twice in: 3.7 MB for N = 65,536, all within the L2
cache. What takes time is waiting: about 12 round trips to that cache. Meanwhile other blocks set
the last rows of dw to zero, CLEAR_BYTES in each launch. The rest of the empty rows is written by
`embedding_gradient`, which then knows them; of these here the ones with tokens are written twice.
"""

import functools
from typing import NamedTuple

import torch

from . import ptx
from .dtypes import dtype_name
from .jit import jit
from .namespace import cuda, float32, int32, int64, uint32

LANES = 0xFFFFFFFF
THREADS = 512
WARPS = THREADS // 32
WARP_SHIFT = WARPS.bit_length() - 1
MAX_TILES = 256  # of a power of two; more tokens make the tiles longer
GROUPS = 128  # at most: about one block per multiprocessor; fewer where there are few tokens
WINDOW = THREADS  # ids of a group that are counted at a time: 32 KB of counters
CLEAR_BYTES = 12 << 20  # that an H100 writes while a launch sorts
CLEARED = 8  # stores of a clearing thread
NONE = 0xFFFFFFFF  # the id of a token that is left out
FAR = 2**31 - 1  # behind every place


class Plan(NamedTuple):
    """The tokens in the order of their ids."""

    tokens: torch.Tensor  # (N,) int32
    spans: torch.Tensor  # (groups · per_group, 2) int32: an id's first place in tokens, how many
    pieces: torch.Tensor  # (…, 4) int32: id, first place, how many, the id's first row in here
    found: torch.Tensor  # (1,) int32: rows of pieces in use
    arrived: torch.Tensor  # (…, stretches) int32: 0 at every id's first row in pieces
    groups: int  # a power of two; id v has row (v % groups) · per_group + v // groups of spans
    kept: int  # rows of dw from here on are zero already


# ---- device functions


@jit(device=True)
def id_of(ids, i, n, rows):
    """ids[i] as uint32, NONE where there is no token i or its id is outside."""
    key = int64(-1)
    if i < n:
        key = int64(ids[i])
    return uint32(key) if 0 <= key and key < rows else uint32(NONE)


@jit(device=True)
def before(value, scratch):
    """The sum of `value` (int32) over the threads before this one; scratch: WARPS of shared int32.

    All threads of the block call it; a barrier stands before the next use of scratch.
    """
    lane = int32(cuda.threadIdx.x & 31)
    warp = int32(cuda.threadIdx.x >> 5)
    total = value
    for step in range(5):
        other = int32(cuda.shfl_up_sync(LANES, total, 1 << step))
        if lane >= 1 << step:
            total = int32(total + other)
    if lane == 31:
        scratch[warp] = total
    cuda.syncthreads()
    total = int32(total - value)
    for w in range(WARPS):
        if w < warp:
            total = int32(total + scratch[w])
    return total


@jit(device=True)
def place_of(tally, counter, inside):
    """The next free place by this lane's counter, one of its warp's, which moves on; lanes with
    the same one get places in the order of the lanes. A lane with `inside` False gets none."""
    below = uint32((uint32(1) << uint32(cuda.threadIdx.x & 31)) - uint32(1))
    label = int32(counter) if inside else int32(-1)
    peers = uint32(cuda.match_any_sync(LANES, label))
    rank = int32(cuda.popc(peers & below))
    place = int32(0)
    if inside:
        place = int32(tally[counter] + rank)
    cuda.syncwarp()
    if inside and rank == 0:
        tally[counter] += int32(cuda.popc(peers))
    cuda.syncwarp()
    return place


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
def clearer(width: int):
    """A device function that writes zeros to accesses `i`, i + THREADS … below `end`."""

    @jit(device=True)
    def clear_vector(dw, i, end):
        zero = uint32(0)
        for _ in range(CLEARED):
            if i < end:
                ptx.store_128(dw, i * width, zero, zero, zero, zero)
            i += THREADS

    @jit(device=True)
    def clear_element(dw, i, end):
        for _ in range(CLEARED):
            if i < end:
                ptx.store(dw, i, float32(0))
            i += THREADS

    return clear_vector if width > 1 else clear_element


# ---- kernels: behind the blocks that sort, others clear accesses `first` to `end` − 1 of dw


@functools.cache
def split_kernel(dtype: str, width: int, groups: int):
    """entries (N, 2): (token, id), in every tile by group; table (tiles, groups + 1): where each
    group begins in the tile, and where the last one ends. A warp takes 32 · rounds tokens."""
    COUNTERS = WARPS * groups
    clear = clearer(width)

    @jit(pointers=True, launch_bounds=(THREADS, 1))
    def split_by_group(
        ids: ("int64", "int32"), entries: "int32", table: "int32", found: "int32", dw: dtype,
        n: "int32", rows: "int64", tiles: "int32", rounds: "int32", first: "int64", end: "int64",
    ):  # fmt: skip
        thread = int32(cuda.threadIdx.x)
        block = int32(cuda.blockIdx.x)
        if block >= tiles:
            clear(dw, first + int64(block - tiles) * (THREADS * CLEARED) + thread, end)
            return
        tally = cuda.shared.array(COUNTERS, int32)
        scratch = cuda.shared.array(WARPS, int32)
        warp = int32(thread >> 5)
        mine = int32(warp * groups)  # where the warp's counters begin
        if block == 0 and thread == 0:
            found[0] = 0
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


@functools.cache
def order_kernel(dtype: str, width: int, groups: int, piece: int, stretches: int):
    """A Plan from entries and table. piece: a power of two; ids with more tokens get into pieces.

    tile: tokens of one; per_group: rows of spans that a group has."""
    SHIFT = groups.bit_length() - 1
    PIECE_SHIFT = piece.bit_length() - 1
    COUNTERS = WARPS * WINDOW
    clear = clearer(width)

    @jit(pointers=True, launch_bounds=(THREADS, 1))
    def order_by_id(
        entries: "int32", table: "int32", tokens: "int32", spans: "int32", pieces: "int32",
        found: "int32", arrived: "int32", dw: dtype, tiles: "int32", tile: "int32",
        per_group: "uint32", first: "int64", end: "int64",
    ):  # fmt: skip
        thread = int32(cuda.threadIdx.x)
        group = int32(cuda.blockIdx.x)
        if group >= groups:
            clear(dw, first + int64(group - groups) * (THREADS * CLEARED) + thread, end)
            return
        tally = cuda.shared.array(COUNTERS, int32)
        begins = cuda.shared.array(MAX_TILES, int32)
        shifts = cuda.shared.array(MAX_TILES, int32)
        scratch = cuda.shared.array(WARPS, int32)
        limits = cuda.shared.array(2, int32)  # the group's first place; how many tokens it has
        warp = int32(thread >> 5)
        lane = int32(thread & 31)
        mine = int32(warp * WINDOW)  # where the warp's counters begin
        if thread == 0:
            limits[0] = 0

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
                at = int64(entry_at(begins, shifts, i))
                row = uint32((uint32(entries[2 * at + 1]) >> uint32(SHIFT)) - low)
                if row < uint32(WINDOW):
                    cuda.atomic.add(tally, mine + int32(row), 1)
                i = int32(i + 32)
            cuda.syncthreads()

            many = int32(0)
            for w in range(WARPS):
                many = int32(many + tally[w * WINDOW + thread])
            start = int32(place + before(many, scratch))
            row = uint32(low + uint32(thread))
            if row < per_group:
                line = int64(group) * per_group + row
                ptx.store_64(spans, line * 2, uint32(start), uint32(many))
                if many > piece:
                    parts = int32((many + piece - 1) >> PIECE_SHIFT)
                    head = int32(ptx.atomic_add(found, 0, parts))
                    key = (row << uint32(SHIFT)) | uint32(group)
                    for p in range(parts):
                        ptx.store_128(
                            pieces, int64(head + p) * 4, key, uint32(start), uint32(many),
                            uint32(head),
                        )  # fmt: skip
                    for s in range(stretches):
                        arrived[int64(head) * stretches + s] = 0
            at = start
            for w in range(WARPS):
                some = tally[w * WINDOW + thread]
                tally[w * WINDOW + thread] = at
                at = int32(at + some)
            if thread == THREADS - 1:
                limits[0] = at  # where the next window begins
            cuda.syncthreads()
            place = limits[0]

            i = share_begin
            while i < share_end:
                token = uint32(0)
                row = uint32(NONE)
                if i + lane < share_end:
                    at64 = int64(entry_at(begins, shifts, int32(i + lane)))
                    token, key = ptx.load_64(entries, at64 * 2)
                    row = uint32((key >> uint32(SHIFT)) - low)
                inside = row < uint32(WINDOW)
                at = int32(place_of(tally, mine + int32(row), inside))
                if inside:
                    tokens[at] = int32(token)
                i = int32(i + 32)
            cuda.syncthreads()
            low = uint32(low + uint32(WINDOW))

    return order_by_id


# ---- launcher


def _power_of_two(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << max(0, n - 1).bit_length()


def plan(
    ids: torch.Tensor, dw: torch.Tensor, width: int, piece: int, stretches: int, *,
    most_groups: int = GROUPS, most_tiles: int = MAX_TILES,
) -> Plan:  # fmt: skip
    """Sort the tokens of ids (contiguous, any shape, not empty) by id, and set the last rows of
    dw (V, C) to zero.

    width: elements in one access to dw; piece: a power of two: an id with more tokens is cut up;
    most_groups: a power of two; most_tiles: at most MAX_TILES.
    """
    n, rows, dtype = ids.numel(), len(dw), dtype_name(dw)
    groups = min(most_groups, _power_of_two(n // 256 + 1), _power_of_two(rows))
    per_group = -(-rows // groups)
    rounds = -(-n // (THREADS * most_tiles))
    tile = THREADS * rounds
    tiles = -(-n // tile)

    def integers(*shape):
        return torch.empty(*shape, dtype=torch.int32, device=ids.device)

    entries, table = integers(n, 2), integers(tiles, groups + 1)
    tokens, spans, found = integers(n), integers(groups * per_group, 2), integers(1)
    # An id in p pieces has more than (p − 1) · piece tokens, and p is at least 2.
    most = 2 * n // piece + 1
    pieces, arrived = integers(most, 4), integers(most, stretches)

    accesses = dw.shape[1] // width  # of a row
    kept = rows - min(rows, 2 * CLEAR_BYTES // (16 * accesses))
    first, end = kept * accesses, rows * accesses
    middle = (first + end) // 2

    def blocks(accesses):
        return -(-accesses // (THREADS * CLEARED))

    split_kernel(dtype, width, groups)[tiles + blocks(middle - first), THREADS](
        ids, entries, table, found, dw, n, rows, tiles, rounds, first, middle
    )
    order_kernel(dtype, width, groups, piece, stretches)[groups + blocks(end - middle), THREADS](
        entries, table, tokens, spans, pieces, found, arrived, dw, tiles, tile, per_group, middle,
        end,
    )  # fmt: skip
    return Plan(tokens, spans, pieces, found, arrived, groups, kept)
