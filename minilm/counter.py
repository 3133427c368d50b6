"""The counter, compiled: how often each piece occurs in a stream of texts.

Memory is that of the different pieces, not of the texts.
"""

from collections.abc import Sequence

import numpy as np

from . import splitter
from .compiled import I32, I64, kernel
from .patterns import Pattern
from .words import WordTable, join


class PieceCounter:
    """Counts pieces batch by batch: `counter.counts[k]` (int64) is how often word k occurred."""

    def __init__(self, pattern: Pattern):
        self.pattern = pattern
        self.words = WordTable()
        self.counts = np.zeros(0, dtype=np.int64)

    def add(self, texts: Sequence[bytes]) -> None:
        buffer, bounds = join(texts)
        for start, ends in splitter.cut(self.pattern, buffer, bounds):
            numbers = self.words.numbers(buffer, start, ends)
            if self.words.size > len(self.counts):
                counts = np.zeros(2 * self.words.size, dtype=np.int64)
                counts[: len(self.counts)] = self.counts
                self.counts = counts
            _count(numbers, self.counts)


@kernel(I32, I64)
def _count(numbers, counts):
    for number in numbers:
        counts[number] += 1
