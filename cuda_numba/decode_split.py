"""Decode attention without tensor cores: serial, and split over the sequence.

    naive    one block per query row: 128 positions at a time, a thread for each of them (q · k, one
             element after the other), then a thread for each column of o (Σ p · v)
    split    `splits` blocks per query row, each with an equal part of the row's own positions; a
             second kernel joins what they have left ("Flash-Decoding", Dao et al. 2023)

Split, D 128: sixteen lanes hold a row of 8 elements each, a warp reads two rows at a time, four
times over before the first is used, and keeps a softmax state (m, l, O) for each of the two:

    lane      0    1   …   15 | 16   17   …   31
    K, V   |row j             |row j + 1         |   then j + 2 · warps and so on
    q      |8 elements each   |the same          |

A query row is a block of its own here, so that grouped heads read their keys and values once for
each of them: from L2, if they come at the same time. Per position and query row 4 D operations on
4 D bytes: one row is bound by memory, eight are not. Parameters as in `decode_stream`.
"""

import functools

from . import ptx
from .decode_merge import shift_of
from .decode_work import end_of
from .jit import jit
from .namespace import cuda, float32, int32, uint32, uint64
from .warp import LANES, LOWEST, block_max, block_sum

THREADS = 128
WARPS = THREADS // 32
AHEAD = 4  # rows of K and of V that a lane has under way
HELD = 8 * AHEAD


@functools.cache
def row_places(paged: bool):
    """place(…): the element of a cache where the row of a position begins."""

    @jit(device=True)
    def place(table, sequence, head, position, page_size, pages, page, head_stride, row):
        far = uint64(head) * head_stride
        if paged:
            number = uint32(position // page_size)
            entry = uint32(table[uint32(sequence * pages + number)])
            inside = uint32(position - number * page_size)
            return far + uint64(entry) * page + uint64(inside) * uint64(row)
        return far + uint64(sequence) * page + uint64(position) * uint64(row)

    return place


@jit(device=True)
def seen_by(query, end, queries, window):
    """(first, last + 1) of the positions that query number `query` of a sequence sees."""
    last = int32(end) - int32(queries) + int32(query) + int32(1)
    upto = uint32(max(last, int32(0)))
    return uint32(upto - window) if upto > window else uint32(0), upto


@functools.cache
def naive_kernel(dtype: str, D: int, paged: bool):
    place = row_places(paged)

    @jit(pointers=True, launch_bounds=(THREADS, 1))
    def decode_naive(
        q: dtype, k: dtype, v: dtype, lengths: "int32", table: "int32", o: dtype,
        heads: "uint32", group: "uint32", queries: "uint32", capacity: "uint32",
        page_size: "uint32", pages: "uint32", window: "uint32", scale: "float32",
        k_page: "uint64", k_head: "uint64", k_row: "uint32",
        v_page: "uint64", v_head: "uint64", v_row: "uint32",
    ):  # fmt: skip
        scratch = cuda.shared.array(64, float32)
        weights = cuda.shared.array(THREADS, float32)
        thread, row = uint32(cuda.threadIdx.x), uint32(cuda.blockIdx.x)
        head = uint32(uint32(row // queries) % heads)
        sequence = uint32(uint32(row // queries) // heads)
        kv_head = uint32(head // group)
        end = end_of(lengths[sequence], capacity)
        first, upto = seen_by(uint32(row % queries), end, queries, window)
        q_row = uint64(row) * uint64(D)
        peak, total, mine = float32(LOWEST), float32(0), float32(0)
        while first < upto:
            position = uint32(first + thread)
            score = float32(LOWEST)
            if position < upto:
                k_start = place(
                    table, sequence, kv_head, position, page_size, pages, k_page, k_head, k_row
                )
                score = float32(0)
                for d in range(D):
                    score += ptx.load(q, q_row + uint64(d)) * ptx.load(k, k_start + uint64(d))
                score *= scale
            top = max(peak, block_max(score, scratch, 0))
            shrink = ptx.ex2(peak - shift_of(top))
            weight = ptx.ex2(score - shift_of(top))
            peak = top
            total = total * shrink + block_sum(weight, scratch, 32)
            weights[thread] = weight
            cuda.syncthreads()
            mine *= shrink
            if thread < uint32(D):
                here = min(uint32(THREADS), uint32(upto - first))
                for j in range(here):
                    v_start = place(
                        table, sequence, kv_head, uint32(first + uint32(j)), page_size, pages,
                        v_page, v_head, v_row,
                    )  # fmt: skip
                    mine += weights[j] * ptx.load(v, v_start + uint64(thread))
            cuda.syncthreads()
            first = uint32(first + uint32(THREADS))
        if thread < uint32(D):
            if total != float32(0):
                mine *= ptx.rcp(total)
            ptx.store(o, q_row + uint64(thread), mine)

    return decode_naive


@functools.cache
def split_kernel(dtype: str, D: int, paged: bool):
    place = row_places(paged)
    LANES_A_ROW = 1 << (D // 8 - 1).bit_length()
    STEPS = (D // 8 - 1).bit_length()  # shuffles of a dot product
    AT_ONCE = 32 // LANES_A_ROW  # rows that a warp reads at a time
    STATES = WARPS * AT_ONCE
    OUT = STATES * D

    @jit(pointers=True, launch_bounds=(THREADS, 4))
    def decode_split(
        q: dtype, k: dtype, v: dtype, lengths: "int32", table: "int32",
        partial: "float32", states: "float32",
        heads: "uint32", group: "uint32", queries: "uint32", capacity: "uint32",
        page_size: "uint32", pages: "uint32", window: "uint32", scale: "float32",
        k_page: "uint64", k_head: "uint64", k_row: "uint32",
        v_page: "uint64", v_head: "uint64", v_row: "uint32",
    ):  # fmt: skip
        """Grid: (query rows, splits). partial (rows, splits, D), states (rows, splits, 2)."""
        peaks = cuda.shared.array(STATES, float32)
        totals = cuda.shared.array(STATES, float32)
        sums = cuda.shared.array(OUT, float32)
        query = cuda.local.array(8, float32)
        keys = cuda.local.array(HELD, float32)
        values = cuda.local.array(HELD, float32)
        scores = cuda.local.array(AHEAD, float32)
        acc = cuda.local.array(8, float32)
        thread, row = uint32(cuda.threadIdx.x), uint32(cuda.blockIdx.x)
        lane = thread & uint32(LANES_A_ROW - 1)
        state = uint32(thread // uint32(LANES_A_ROW))
        column = lane * uint32(8)
        head = uint32(uint32(row // queries) % heads)
        sequence = uint32(uint32(row // queries) // heads)
        kv_head = uint32(head // group)
        end = end_of(lengths[sequence], capacity)
        first, upto = seen_by(uint32(row % queries), end, queries, window)
        splits = uint32(cuda.gridDim.y)
        share = uint32(uint32(uint32(upto - first) + splits - uint32(1)) // splits)
        position = uint32(first + uint32(cuda.blockIdx.y) * share)
        upto = min(upto, uint32(position + share))
        position = uint32(position + state)
        for i in range(8):
            query[i] = float32(0)
            acc[i] = float32(0)
        holds = column < uint32(D)
        if holds:
            ptx.load_vector(q, uint64(row) * uint64(D) + uint64(column), query, 0)
        peak, total = float32(LOWEST), float32(0)
        # The lanes of a warp shuffle together: all go on until the warp's last row is done.
        while uint32(position - state % uint32(AT_ONCE)) < upto:
            for r in range(AHEAD):
                here = uint32(position + uint32(r * STATES))
                scores[r] = float32(LOWEST)
                for i in range(8):
                    keys[8 * r + i] = float32(0)
                    values[8 * r + i] = float32(0)
                if (here < upto) & holds:
                    start = place(
                        table, sequence, kv_head, here, page_size, pages, k_page, k_head, k_row
                    )
                    ptx.load_vector(k, start + uint64(column), keys, 8 * r)
                    start = place(
                        table, sequence, kv_head, here, page_size, pages, v_page, v_head, v_row
                    )
                    ptx.load_vector(v, start + uint64(column), values, 8 * r)
            top = peak
            for r in range(AHEAD):
                dot = float32(0)
                for i in range(8):
                    dot += query[i] * keys[8 * r + i]
                for i in range(STEPS):
                    dot += cuda.shfl_xor_sync(LANES, dot, 1 << i)
                if uint32(position + uint32(r * STATES)) < upto:
                    scores[r] = dot * scale
                top = max(top, scores[r])
            shift = shift_of(top)
            shrink = ptx.ex2(peak - shift)
            peak = top
            total *= shrink
            for i in range(8):
                acc[i] *= shrink
            for r in range(AHEAD):
                weight = ptx.ex2(scores[r] - shift)
                total += weight
                for i in range(8):
                    acc[i] += weight * values[8 * r + i]
            position = uint32(position + uint32(AHEAD * STATES))
        if lane == 0:
            peaks[state] = peak
            totals[state] = total
        if holds:
            ptx.store_shared_vector(sums, state * uint32(D) + column, acc, 0)
            ptx.store_shared_vector(sums, state * uint32(D) + column + uint32(4), acc, 4)
        cuda.syncthreads()
        if thread < uint32(D):
            peak, total, mine = float32(LOWEST), float32(0), float32(0)
            for i in range(STATES):
                peak = max(peak, peaks[i])
            for i in range(STATES):
                factor = ptx.ex2(peaks[i] - shift_of(peak))
                total += totals[i] * factor
                mine += sums[uint32(uint32(i * D) + thread)] * factor
            slot = uint64(row) * uint64(splits) + uint64(cuda.blockIdx.y)
            ptx.store(partial, slot * uint64(D) + uint64(thread), mine)
            if thread == 0:
                ptx.store(states, slot * uint64(2), peak)
                ptx.store(states, slot * uint64(2) + uint64(1), total)

    return decode_split


@functools.cache
def combine_kernel(dtype: str, D: int):
    @jit(pointers=True, launch_bounds=(THREADS, 1))
    def decode_combine(partial: "float32", states: "float32", o: dtype, splits: "uint32"):
        """A block per query row, a thread per column; every thread reads all (m, l) of its row."""
        thread, row = uint32(cuda.threadIdx.x), uint32(cuda.blockIdx.x)
        slot = uint64(row) * uint64(splits)
        if thread >= uint32(D):
            return
        peak, total, mine = float32(LOWEST), float32(0), float32(0)
        for i in range(splits):
            peak = max(peak, ptx.load(states, (slot + uint64(i)) * uint64(2)))
        for i in range(splits):
            here = slot + uint64(i)
            factor = ptx.ex2(ptx.load(states, here * uint64(2)) - shift_of(peak))
            total += ptx.load(states, here * uint64(2) + uint64(1)) * factor
            mine += ptx.load(partial, here * uint64(D) + uint64(thread)) * factor
        if total != float32(0):
            mine *= ptx.rcp(total)
        ptx.store(o, uint64(row) * uint64(D) + uint64(thread), mine)

    return decode_combine
