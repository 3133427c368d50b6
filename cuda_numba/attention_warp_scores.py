"""Scores of a warp's strip in registers: which keys a query sees, and the softmax that is online.

Positions count the Tk keys; the queries are the last Tq of them, so query t stands at
p = t + Tk − Tq. It sees the keys [low, high):

    high = p + 1 (causal), else min(Tk, p + window)          low = max(0, p + 1 − window)

A tile of 64 keys lies within that of all rows (no mask), of none (never fetched) or is cut by the
edge, and only there keys are compared one by one. What is not seen scores −∞.

Softmax over keys that come tile by tile (Milakov & Gimelshein 2018; Dao 2023): a row keeps a peak
m, the sum l of 2^(c (s − m)) so far and the output O to match, c = scale · log2 e. Two parts of a
row, (m, l, O) and (m', l', O'), make one:

    M = max(m, m')      l ← l · 2^(c (m − M)) + l' · 2^(c (m' − M)),  O likewise

Any M gives the same quotient O / l. So m moves only when a score exceeds it by SLACK powers of two:
until then 2^(c (s − m)) is at most 2^SLACK, harmless in float32 sums and in 16-bit P, and a warp
none of whose rows moves skips the multiplication of all its O.
"""

import functools
from typing import Any, NamedTuple

from . import ptx
from .jit import jit
from .namespace import cuda, float32, uint32
from .warp import LANES, LOWEST

SLACK = 8.0


class Sight(NamedTuple):
    """The mask: compile-time constants of a kernel."""

    causal: bool
    windowed: bool


class Range(NamedTuple):
    """Device functions of a position: what it sees, or is seen by, is [begin, end).

    Neither falls as the position grows.
    """

    begin: Any  # (position, window)
    end: Any  # (position, Tk, window)


@functools.cache
def keys_of(sight: Sight) -> Range:
    """The keys that a query sees."""
    causal, windowed = sight

    @jit(device=True)
    def begin(p, window):
        if windowed:
            return uint32(p + uint32(1) - window) if p >= window else uint32(0)
        return uint32(0)

    @jit(device=True)
    def end(p, Tk, window):
        if causal:
            return uint32(p + uint32(1))
        if windowed:
            return min(uint32(p + window), Tk)
        return Tk

    return Range(begin, end)


@functools.cache
def queries_of(sight: Sight) -> Range:
    """The queries, by position, that see a key."""
    causal, windowed = sight
    keys = keys_of(sight).begin

    @jit(device=True)
    def begin(s, window):
        if causal:
            return s
        return keys(s, window)

    @jit(device=True)
    def end(s, Tk, window):
        if windowed:
            return min(uint32(s + window), Tk)
        return Tk

    return Range(begin, end)


@functools.cache
def mask_of(range_: Range, strips: int, N: int, fill: float) -> Any:
    """A function (s, first, key, Tk, window): what is not seen becomes `fill`.

    s: accumulators of 16 · strips rows, at the positions from `first` on, and N columns from `key`
    on. Rows are queries and columns keys, or the other way round, as `range_` says. A tile that all
    the rows see whole is left at once.
    """
    begin, end = range_
    TILES, ROWS = N // 8, 16 * strips

    @jit(device=True)
    def apply(s, first, key, Tk, window):
        last = uint32(first + uint32(ROWS - 1))
        whole = end(first, Tk, window) >= uint32(key + uint32(N)) and begin(last, window) <= key
        if not whole:
            lane = uint32(cuda.threadIdx.x) & uint32(31)
            column = uint32(key + (lane & uint32(3)) * uint32(2))
            for row in range(2 * strips):
                p = uint32(first + uint32(8 * row) + (lane >> uint32(2)))
                low, high = begin(p, window), end(p, Tk, window)
                for j in range(TILES):
                    for r in range(2):
                        at = 4 * ((row // 2) * TILES + j) + 2 * (row % 2) + r
                        n = uint32(column + uint32(8 * j + r))
                        if n >= high or n < low:
                            s[at] = float32(fill)

    return apply


@jit(device=True)
def shift_of(peak):
    """What to subtract: the peak, or 0 while a row has seen no key and −∞ − (−∞) would be NaN."""
    return peak if peak != float32(LOWEST) else float32(0)


@jit(device=True)
def quad_max(x):
    """The largest x of the four lanes that share a row."""
    x = max(x, cuda.shfl_xor_sync(LANES, x, 1))
    return max(x, cuda.shfl_xor_sync(LANES, x, 2))


@jit(device=True)
def quad_sum(x):
    x += cuda.shfl_xor_sync(LANES, x, 1)
    return x + cuda.shfl_xor_sync(LANES, x, 2)


@functools.cache
def softmax_of(strips: int, N: int, D: int) -> Any:
    """A function (s, o, peak, total, c): s ← 2^(c (s − m)), total and o rescaled if m moves.

    peak, total: per row of this lane (two in each strip); totals are this lane's share.
    """
    TILES, WIDE, ROWS = N // 8, D // 8, 2 * strips

    @jit(device=True)
    def softmax(s, o, peak, total, c):
        moved = False
        old = cuda.local.array(ROWS, float32)
        for row in range(ROWS):
            at = 4 * (row // 2) * TILES + 2 * (row % 2)
            top = max(s[at], s[at + 1])
            for j in range(1, TILES):
                top = max(top, max(s[at + 4 * j], s[at + 4 * j + 1]))
            top = quad_max(top)
            old[row] = peak[row]
            if (top - peak[row]) * c > float32(SLACK):
                peak[row] = top
                moved = True
        if cuda.any_sync(LANES, moved):
            for row in range(2 * strips):
                # An empty row stays empty: its factor is 0, where the difference would be NaN.
                factor = ptx.ex2((old[row] - shift_of(peak[row])) * c)
                total[row] *= factor
                at = 4 * (row // 2) * WIDE + 2 * (row % 2)
                for j in range(WIDE):
                    o[at + 4 * j] *= factor
                    o[at + 4 * j + 1] *= factor
        for row in range(ROWS):
            at = 4 * (row // 2) * TILES + 2 * (row % 2)
            base = shift_of(peak[row]) * c
            for j in range(TILES):
                for r in range(2):
                    p = ptx.ex2(s[at + 4 * j + r] * c - base)
                    s[at + 4 * j + r] = p
                    total[row] += p

    return softmax
