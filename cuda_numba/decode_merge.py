"""Softmax states and how to join them: what a warp, a block, or another block has seen of a row.

A state is (m, l, O): the largest score (times scale · log2 e), the sum of 2^(score − m), and the
sum of 2^(score − m) · v, for the positions seen so far. Two of them join as

    m = max(m₁, m₂)    l = l₁ · 2^(m₁ − m) + l₂ · 2^(m₂ − m)    O likewise

and o = O / l at the end. A state that has seen nothing is (−∞, 0, 0); where both are, m is taken as
0, or −∞ − (−∞) would be NaN; and where l stays 0, o is 0. The order of joining is fixed, warps
first, then blocks, so that results are the same bit for bit on every run.

Shared memory of a block, in float32: warps × rows states, O padded to COLUMNS + 4:

    |O of warp 0, row 0|O of warp 0, row 1| … |O of the last|  m of all |  l of all | arrivals |
"""

import functools
from typing import NamedTuple

from . import ptx
from .decode_tile import columns_of
from .jit import jit
from .namespace import cuda, float32, uint32
from .warp import LANES, LOWEST


class Room(NamedTuple):
    """Where the states of a block's warps lie in shared memory, in float32."""

    D: int
    warps: int
    rows: int  # of one warp: 8 or 16

    @property
    def pitch(self) -> int:
        return columns_of(self.D) + 4

    @property
    def peaks(self) -> int:
        return self.warps * self.rows * self.pitch

    @property
    def totals(self) -> int:
        return self.peaks + self.warps * self.rows

    @property
    def flag(self) -> int:
        return self.totals + self.warps * self.rows

    @property
    def nbytes(self) -> int:
        return 4 * (self.flag + 4)


@jit(device=True)
def shift_of(peak):
    return peak if peak != float32(LOWEST) else float32(0)


@functools.cache
def deposit(room: Room):
    """What a warp does with its state at the end: (peak, total, acc) → shared memory."""
    D, PITCH, ROWS = room.D, room.pitch, room.rows
    PEAKS, TOTALS = room.peaks, room.totals
    COLUMNS = columns_of(D)
    WHOLE, HALF, TILES, GROUPS = COLUMNS // 64, COLUMNS % 64 != 0, COLUMNS // 16, ROWS // 8

    @jit(device=True)
    def put(shared, peak, total, acc, rows, mine):
        """Query rows from `rows` on do not exist, and stay unwritten; mine: the warp's first."""
        four = cuda.local.array(4, float32)
        lane = uint32(cuda.threadIdx.x) & uint32(31)
        warp = uint32(cuda.threadIdx.x) >> uint32(5)
        g, t = lane >> uint32(2), lane & uint32(3)
        for n in range(GROUPS):
            for c in range(2):
                sum_ = total[2 * n + c]
                for r in range(3):
                    sum_ += cuda.shfl_xor_sync(LANES, sum_, 4 << r)
                row = t * uint32(2) + uint32(8 * n + c)
                state = uint32(warp * uint32(ROWS) + row)
                if uint32(mine + row) < rows:
                    if g == 0:
                        shared[uint32(PEAKS) + state] = peak[2 * n + c]
                        shared[uint32(TOTALS) + state] = sum_
                    start = uint32(state * uint32(PITCH))
                    for j in range(WHOLE):
                        for h in range(2):
                            a = 4 * (TILES * n + 4 * j + 2 * h) + c
                            four[0] = acc[a]
                            four[1] = acc[a + 2]
                            four[2] = acc[a + 4]
                            four[3] = acc[a + 6]
                            place = start + g * uint32(8) + uint32(64 * j + 4 * h)
                            ptx.store_shared_vector(shared, place, four, 0)
                    if HALF:
                        a = 4 * (TILES * n + 4 * WHOLE) + c
                        four[0] = acc[a]
                        four[1] = acc[a + 2]
                        four[2] = acc[a + 4]
                        four[3] = acc[a + 6]
                        place = start + g * uint32(4) + uint32(64 * WHOLE)
                        ptx.store_shared_vector(shared, place, four, 0)

    return put


@functools.cache
def join(room: Room, groups: int):
    """The states of a block's warps in shared memory → one state of four elements of one row.

    Warp w has rows (w mod groups) · rows + …; those of equal w mod groups are joined, in order.
    """
    PITCH, ROWS, WARPS = room.pitch, room.rows, room.warps
    PEAKS, TOTALS = room.peaks, room.totals

    @jit(device=True)
    def gather(shared, row, column, four):
        """four = O[row, column : column + 4]; returns (m, l)."""
        part = cuda.local.array(4, float32)
        peak = float32(LOWEST)
        for w in range(WARPS // groups):
            peak = max(peak, shared[uint32(PEAKS + w * groups * ROWS) + row])
        shift = shift_of(peak)
        total = float32(0)
        for k in range(4):
            four[k] = float32(0)
        for w in range(WARPS // groups):
            state = uint32(uint32(w * groups * ROWS) + row)
            factor = ptx.ex2(shared[uint32(PEAKS) + state] - shift)
            total += shared[uint32(TOTALS) + state] * factor
            ptx.load_shared_vector(shared, state * uint32(PITCH) + column, part, 0)
            for k in range(4):
                four[k] += part[k] * factor
        return peak, total

    return gather
