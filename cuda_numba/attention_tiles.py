"""Which keys a query sees, and which tiles of keys a tile of queries has to read.

The Tq queries are the last of the Tk positions: query t stands at position p = t + Tk − Tq. It sees
the keys from `first_key` up to, not including, `end_key`:

    first_key = max(0, p − behind)         end_key = min(Tk, p + ahead + 1)

`reach` turns `causal` and `window` into the two numbers. Both bounds never fall as p grows, so a
tile of queries needs the keys from the first bound of its first query to the last bound of its last
one; tiles of keys inside the bounds of all its queries need no mask. Tk 10, tiles of 4 queries and
4 keys, causal, window 6:

    keys     0 1 2 3 | 4 5 6 7 | 8 9
    query 4  # # # # | # . . . | . .      `#` seen. Queries 4 to 7 read tiles 0 and 1, and mask
    query 5  # # # # | # # . . | . .      both: tile 0 because query 7 no longer sees keys 0 and 1,
    query 6  . # # # | # # # . | . .      tile 1 because query 4 does not yet see keys 5 to 7.
    query 7  . . # # | # # # # | . .

Tiles of queries are counted in groups of 64. Where the groups do not fill the tiles it is the first
tile that is short: in a causal sequence it reads the fewest keys.

The functions are device functions for kernels; `first_key.function` is the same in Python. All of
it is uint32: no number here exceeds 2³¹.
"""

from .jit import jit
from .namespace import uint32

FAR = 1 << 30  # a reach longer than any sequence
GROUP = 64  # queries


def reach(causal: bool, window: int | None) -> tuple[int, int]:
    """(behind, ahead): how many keys before and after its own position a query sees."""
    behind = FAR if window is None else min(window - 1, FAR)
    return behind, 0 if causal else behind


@jit(device=True)
def tile_of(number, queries, size):
    """(first query, groups) of a tile of `size` groups at most; `size` is a constant."""
    groups = uint32(uint32(queries + uint32(GROUP - 1)) // uint32(GROUP))
    full = uint32(uint32(groups - uint32(1)) // uint32(size))  # all but the first
    short = uint32(groups - full * uint32(size))
    if number == uint32(0):
        return uint32(0), short
    return uint32((short + (number - uint32(1)) * uint32(size)) * uint32(GROUP)), uint32(size)


@jit(device=True)
def first_key(position, behind):
    """The first key that the query at `position` sees."""
    return uint32(position - min(position, behind))


@jit(device=True)
def end_key(position, ahead, keys):
    """One past the last key that the query at `position` sees, of `keys`."""
    return uint32(min(uint32(position + ahead + uint32(1)), keys))


@jit(device=True)
def first_tile(position, behind, size):
    """The first tile of `size` keys that the query at `position` needs; `size` is a constant."""
    return uint32(uint32(position - min(position, behind)) // uint32(size))


@jit(device=True)
def end_tile(position, ahead, keys, size):
    """One past the last tile of `size` keys that the query at `position` needs."""
    end = uint32(min(uint32(position + ahead + uint32(1)), keys))
    return uint32(uint32(end + uint32(size - 1)) // uint32(size))
