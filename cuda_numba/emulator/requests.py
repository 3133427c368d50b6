"""From accesses of threads to requests of warps.

One memory instruction of a warp is one request. Its lanes share the site and the path, so equal
(block, warp, site, path) is the definition used here, also where lanes of a warp have parted and
the hardware serves the same line twice, once for each part.
"""

import numpy as np

from .trace import BLOCK, PATH, SITE, THREAD, WARP

ROOM = 1 << 62
FEW = 4096  # rows, for which the plain way is as fast


def pack(*columns: np.ndarray) -> np.ndarray:
    """One int64 key for each row, equal where all columns are, and ordered as they are."""
    key, room = None, 1
    for column in columns:
        if not column.size:
            return np.zeros(0, np.int64)
        column = column - column.min()
        size = int(column.max()) + 1
        if key is not None and room * size > ROOM:  # too wide: number the values that occur
            key, column = _rank(key), _rank(column)
            room, size = int(key.max()) + 1, int(column.max()) + 1
        if key is None:
            key = column
        else:  # in place, as fresh memory costs more than the sums
            key *= size
            key += column
        room *= size
    return key


def split(address: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """High and low part of addresses, whose ranges are small: `pack` likes them better."""
    return address >> 32, address & 0xFFFFFFFF


def starts(key: np.ndarray) -> np.ndarray:
    """Where runs of equal values begin in a sorted array, as bools."""
    new = np.ones(len(key), bool)
    new[1:] = key[1:] != key[:-1]
    return new


def spread(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For counts (2, 3): rows (0, 0, 1, 1, 1) and numbers within a row (0, 1, 0, 1, 2)."""
    counts = np.asarray(counts, np.int64)
    rows = np.repeat(np.arange(len(counts)), counts)
    within = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    return rows, within


class Requests:
    """The requests of a launch.

    `number` int64 (n,): the request of each access; `site` and `lanes` int64 (R,): the site of each
    request, and how many accesses it serves.
    """

    def __init__(self, accesses: np.ndarray):
        key = pack(
            accesses[:, BLOCK], accesses[:, THREAD] // WARP, accesses[:, SITE], accesses[:, PATH]
        )
        first, self.number, self.lanes = groups(key)
        self.site = accesses[first, SITE]

    def __len__(self) -> int:
        return len(self.site)


def order_of(key: np.ndarray) -> np.ndarray:
    """The stable order of int64 keys, as np.argsort gives it, in less time for many.

    NumPy sorts numbers with vector instructions, but not what they are the keys of: so each key
    takes its row along in its low bits. Where both do not fit, and for short keys, passes by 16
    bits, which NumPy sorts digit by digit, are faster than a stable sort of whole keys.
    """
    if len(key) < FEW:
        return np.argsort(key, kind="stable")
    if (key[1:] >= key[:-1]).all():
        return np.arange(len(key))
    key = key - key.min()
    top, shift = int(key.max()), 16
    bits = len(key).bit_length()
    if top >> shift and top.bit_length() + bits < 63:
        both = key << bits | np.arange(len(key))
        both.sort()
        return both & ((1 << bits) - 1)
    order = np.argsort((key & 0xFFFF).astype(np.uint16), kind="stable")
    while top >> shift:
        digit = (key >> shift & 0xFFFF).astype(np.uint16)[order]
        order = order[np.argsort(digit, kind="stable")]
        shift += 16
    return order


def groups(key: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of equal int64 key, numbered by key: the first row of each group, the group of each row,
    and the sizes. np.unique gives the same; keys from a small range need no sorting here."""
    n = len(key)
    if not n:
        return (np.zeros(0, np.int64),) * 3
    low = int(key.min())
    room = int(key.max()) - low + 1
    if room > 4 * n + FEW:
        order = order_of(key)
        new = starts(key[order])
        at = np.flatnonzero(new)
        group = np.empty(n, np.int64)
        group[order] = np.cumsum(new) - 1
        return order[at], group, np.diff(np.append(at, n))
    key = key - low
    counts = np.bincount(key, minlength=room)
    there = counts > 0
    group = (np.cumsum(there) - 1)[key]
    first = np.empty(int(there.sum()), np.int64)
    first[group[::-1]] = np.arange(n - 1, -1, -1)  # what is written last stays
    return first, group, counts[there]


def beside_some(key: np.ndarray, marked: np.ndarray) -> np.ndarray:
    """For each row, whether its key is that of a marked row; all rows where that is not cheap."""
    n = len(key)
    if not n:
        return np.zeros(0, bool)
    low = int(key.min())
    room = int(key.max()) - low + 1
    if room > 16 * n + FEW:
        return np.ones(n, bool)
    table = np.zeros(room, bool)
    table[key[marked] - low] = True
    return table[key - low]


def _rank(values: np.ndarray) -> np.ndarray:
    return groups(values)[1]
