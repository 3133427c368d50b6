"""Accesses cut into 4-byte words of memory, so that accesses of different sizes can be compared."""

from dataclasses import dataclass

import numpy as np

from .requests import spread
from .trace import ADDRESS, BLOCK, OWNER_BITS, SITE, THREAD, Trace


@dataclass
class Words:
    """One row for each word that an access touches, in the order of the accesses.

    row: index into `trace.accesses`; memory: which memory the word is in (0 global, else of which
    block or thread); word: its number there; mask: the bytes of it that are touched, 4 bits.
    """

    row: np.ndarray
    memory: np.ndarray
    word: np.ndarray
    mask: np.ndarray

    def __len__(self) -> int:
        return len(self.row)

    def of(self, chosen: np.ndarray) -> "Words":
        return Words(self.row[chosen], self.memory[chosen], self.word[chosen], self.mask[chosen])


def sites_where(trace: Trace, test) -> np.ndarray:
    """bool for each access: whether its site passes the test."""
    table = np.array([bool(test(s)) for s in trace.sites], bool)
    return table[trace.accesses[:, SITE]] if len(table) else np.zeros(0, bool)


def cut_words(trace: Trace, rows: np.ndarray) -> Words:
    """The words that these rows of `trace.accesses` touch."""
    site, block, address = (trace.accesses[:, c][rows] for c in (SITE, BLOCK, ADDRESS))
    nbytes = np.array([s.nbytes for s in trace.sites], np.int64)[site]
    shared = np.array([s.space == "shared" for s in trace.sites])[site]
    memory = (block + 1) * shared
    remote = np.flatnonzero(shared & (address >= 1 << OWNER_BITS))
    if len(remote):
        memory[remote] = address[remote] >> OWNER_BITS
        address[remote] &= (1 << OWNER_BITS) - 1
    local = np.array([s.space == "local" for s in trace.sites])[site]
    if local.any():
        thread = trace.accesses[:, THREAD][rows[local]]
        memory[local] = 1 + block[local] * trace.threads_per_block + thread
    first = address >> 2
    if ((address == first << 2) & (nbytes == 4)).all():  # as most are
        return Words(rows, memory, first, np.full(len(rows), 15))
    of, within = spread(((address + nbytes - 1) >> 2) - first + 1)
    word = first[of] + within
    low = np.maximum(address[of] - 4 * word, 0)
    high = np.minimum(address[of] + nbytes[of] - 4 * word, 4)
    return Words(rows[of], memory[of], word, (1 << high) - (1 << low))
