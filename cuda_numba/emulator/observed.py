"""Atomic operations that a later atomic operation of another thread has seen.

A thread that adds to a counter reads what all the atomic operations before it have made of it. They
come before whatever that thread does next to the same word, with or without a fence: so the last
block may put the counter back with an ordinary store. To other words the fences decide, as always.

Source: PTX ISA, "Memory Consistency Model": an operation precedes another in causality order if it
precedes a third one in observation order (here: through a chain of atomics on one location) that
precedes the other in base causality order (here: program order, or a barrier).
"""

import numpy as np

from .order import Order
from .requests import groups, order_of, pack, split
from .words import Words

LOOK = 32  # atomic operations that are looked back through, from an ordinary access


class Observed:
    """The atomic accesses of each word, in the order in which they ran.

    atomic: bool for each entry of `words`.
    """

    def __init__(self, words: Words, atomic: np.ndarray, order: Order):
        self.words, self.order = words, order
        n = self.n = len(words)
        self.place = groups(pack(words.memory, *split(words.word), words.mask))[1]
        entries = np.flatnonzero(atomic)
        self.atomics = entries[order_of(self.place[entries])]
        self.moments = self.place[self.atomics] * n + self.atomics  # by place, then time

    def before(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """For pairs of entries, a atomic and b an ordinary access after it: whether an atomic
        operation at the same place that saw a comes before b."""
        row = self.words.row
        found = np.zeros(len(a), bool)
        left = np.arange(len(a))
        at = np.searchsorted(self.moments, self.place[a] * self.n + b) - 1
        for _ in range(LOOK):
            later = self.atomics[at[left]] > a[left]
            left = left[later]
            if not len(left):
                break
            seen = self.order.before(row[self.atomics[at[left]]], row[b[left]])
            found[left[seen]] = True
            left = left[~seen]
            at[left] -= 1
        return found
