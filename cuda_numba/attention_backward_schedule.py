"""Which tiles of the score matrix the backward pass visits, in which order, and by whom.

Query t stands at position t + shift, shift = Tk − Tq. It sees key s when

    −right ≤ (t + shift) − s ≤ left          causal: right = 0; a window w: left = w − 1

("wide open" is 2³⁰). A tile is `BQ` queries by 128 keys; n counts blocks of queries, j blocks of
keys. Both borders of the band move right with j, so that every block of keys sees an interval of
query blocks, and every block of queries an interval of key blocks:

               n = 0 1 2 3 4 5 6 7                 lower(j): first n whose last key block is ≥ j
        j = 0      # # # # . . . .                 upper(j): first n whose first key block is ≥ j
        j = 1      . . # # # # . .                 j sees n in [lower(j), upper(j + 1))
        j = 2      . . . . # # # #                 j is the first of n ≥ upper(j), the last of
        j = 3      . . . . . . # #                 n < lower(j + 1)

One thread block takes block of keys after block of keys, by an atomic ticket, in the order of j
within a head, one head after another: the longest first under a causal mask. For each it walks the
query blocks *downwards*. The parts of dQ of query block n are added in the order of j: all blocks
that j waits for have smaller tickets, so some block can always go on, in whatever order they start
(Qiang et al. 2026, "DASH", calls it descending Q-tile iteration).

A mask is one subtraction and one comparison an element: t sees s when t − (s − shift − right), as
an unsigned number, is below `span` = left + right + 1; a key past the end has span 0.
"""

from .jit import jit
from .namespace import uint32

KEYS = 128  # rows of a block of keys: 64 for each of two warpgroups
OPEN = 1 << 30  # a border of the band that is nowhere: T stays below it


def band(causal: bool, window: int | None) -> tuple[int, int]:
    """(left, right): how many keys before and after its own position a query sees."""
    left = OPEN if window is None else min(window - 1, OPEN)
    return left, 0 if causal else left


def lower_of(bq: int):
    """A device function: the first query block that sees keys of block j or later."""

    @jit(device=True)
    def lower(j, shift, right):
        start, border = uint32(j * uint32(KEYS)), uint32(shift + right)
        return uint32(uint32(start - border) // uint32(bq)) if start > border else uint32(0)

    return lower


def upper_of(bq: int):
    """A device function: the first query block that sees no key before block j, j ≥ 1."""

    @jit(device=True)
    def upper(j, shift, left):
        end = uint32(j * uint32(KEYS) + left)
        if end > shift:
            return uint32(uint32(end - shift + uint32(bq - 1)) // uint32(bq))
        return uint32(0)

    return upper


def visits(j: int, bq: int, tq: int, tk: int, left: int, right: int) -> tuple[int, int]:
    """The interval [low, high) of query blocks that block of keys j visits: the schedule on the
    host, for tests and pictures."""
    shift, blocks = tk - tq, -(-tq // bq)
    low = max(j * KEYS - shift - right, 0) // bq
    high = max(-(-((j + 1) * KEYS + left - shift) // bq), 0)
    return low, min(high, blocks)
