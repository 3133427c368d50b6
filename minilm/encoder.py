"""The encoder, compiled: pieces to ids, each different piece once.

    bytes ──splitter──▶ pieces ──words──▶ numbers ──▶ ids[starts[number] : starts[number + 1]]

A piece that has been seen has its ids by its number. The ids of a new one are found by merging: of
all neighbours the pair of lowest rank, the leftmost first, until none is left. For a long piece
that search would take a time that grows with the square of its length; those few go to
`plain.PlainEncoder`, which keeps a heap. Both give the same ids.
"""

from collections.abc import Sequence

import numpy as np
from numba import types

from . import splitter
from .compiled import I32, I64, U8, helper, kernel
from .patterns import Pattern
from .plain import SHORT, PlainEncoder
from .words import WordTable, join

MOST_WORDS = 1 << 19  # words remembered, then all are forgotten: the memory stays below 100 MB
MOST_BYTES = 1 << 25
NONE = np.int64(-1)
NEVER = np.int64(1 << 62)


class CompiledEncoder:
    """Ids of many texts at a time. `plain` is the encoder of the same merges that it must equal."""

    def __init__(self, plain: PlainEncoder, pattern: Pattern):
        self.plain, self.pattern = plain, pattern
        self.byte_ids = np.array(plain.byte_ids, dtype=np.int32)
        size = 1 << 10
        while size < 2 * len(plain.ranks):
            size *= 2
        self.pairs = np.full(2 * size, NONE, dtype=np.int64)
        items = [(a << 32 | b, rank << 32 | c) for (a, b), (rank, c) in plain.ranks.items()]
        _fill(np.array(items, dtype=np.int64).reshape(-1), self.pairs)
        self._forget()

    def encode(self, texts: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """(ids int32 of all texts, number of ids of each text int64)."""
        buffer, bounds = join(texts)
        before = np.zeros(len(bounds), dtype=np.int64)  # ids before each bound
        runs, total, reached = [], 0, 1
        for start, ends in splitter.cut(self.pattern, buffer, bounds):
            if self.words.size > MOST_WORDS or self.words.starts[self.words.size] > MOST_BYTES:
                self._forget()
            numbers = self.words.numbers(buffer, start, ends)
            self._encode_new_words()
            lengths = self.starts[numbers + 1] - self.starts[numbers]
            upto = np.cumsum(lengths)  # ids up to each piece's end
            run = np.empty(upto[-1], dtype=np.int32)
            _copy(numbers, self.ids, self.starts, run)
            runs.append(run)
            # every bound of a text is the end of a piece
            last = reached + int(np.searchsorted(bounds[reached:], ends[-1], side="right"))
            inside = bounds[reached:last]
            piece = np.searchsorted(ends, inside, side="right") - 1
            before[reached:last] = total + np.where(piece >= 0, upto[piece], 0)
            total, reached = total + int(upto[-1]), last
        before[reached:] = total
        ids = np.concatenate(runs) if runs else np.zeros(0, dtype=np.int32)
        return ids, np.diff(before)

    def _forget(self) -> None:
        self.words = WordTable()
        self.known = 0  # words whose ids are there
        self.ids = np.empty(1 << 16, dtype=np.int32)
        self.starts = np.zeros(1 << 14, dtype=np.int64)

    def _encode_new_words(self) -> None:
        words = self.words
        if words.size + 1 > len(self.starts):
            self.starts = _longer(self.starts, 2 * words.size + 1)
        new_bytes = int(words.starts[words.size] - words.starts[self.known])
        need = int(self.starts[self.known]) + new_bytes  # a word has at most as many ids as bytes
        if need > len(self.ids):
            self.ids = _longer(self.ids, 2 * need)
        while self.known < words.size:
            self.known = _encode_words(
                words.arena,
                words.starts,
                self.known,
                words.size,
                self.byte_ids,
                self.pairs,
                self.ids,
                self.starts,
            )
            if self.known < words.size:  # it stopped at a long one
                begin, end = words.starts[self.known : self.known + 2]
                ids = self.plain.encode_piece(words.arena[begin:end].tobytes())
                place = self.starts[self.known]
                self.ids[place : place + len(ids)] = ids
                self.known += 1
                self.starts[self.known] = place + len(ids)


def _longer(array: np.ndarray, length: int) -> np.ndarray:
    out = np.zeros(length, dtype=array.dtype)
    out[: len(array)] = array
    return out


@helper
def _home(key, pairs):
    h = np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)
    return np.int64(h >> np.uint64(24)) & (pairs.size // 2 - 1)


@helper
def _rank(pairs, left, right):
    """rank << 32 | id of the result, or NEVER."""
    key = np.int64(left) << 32 | np.int64(right)
    slot = _home(key, pairs)
    while pairs[2 * slot] != NONE:
        if pairs[2 * slot] == key:
            return pairs[2 * slot + 1]
        slot = (slot + 1) & (pairs.size // 2 - 1)
    return NEVER


@kernel(I64, I64)
def _fill(items, pairs):
    for k in range(0, items.size, 2):
        slot = _home(items[k], pairs)
        while pairs[2 * slot] != NONE:
            slot = (slot + 1) & (pairs.size // 2 - 1)
        pairs[2 * slot] = items[k]
        pairs[2 * slot + 1] = items[k + 1]


@kernel(U8, I64, types.int64, types.int64, I32, I64, I32, I64)
def _encode_words(arena, word_starts, first, last, byte_ids, pairs, ids, starts):
    """Encode words first … last − 1; returns the first word that was not, because it is long."""
    ranks = np.empty(4 * SHORT, np.int64)
    for word in range(first, last):
        begin = word_starts[word]
        n = word_starts[word + 1] - begin
        if n > 4 * SHORT:
            return word
        out = starts[word]
        for k in range(n):
            ids[out + k] = byte_ids[arena[begin + k]]
        for k in range(n - 1):
            ranks[k] = _rank(pairs, ids[out + k], ids[out + k + 1])
        while n > 1:
            best = 0
            for k in range(1, n - 1):
                if ranks[k] < ranks[best]:
                    best = k
            if ranks[best] == NEVER:
                break
            ids[out + best] = np.int32(ranks[best] & 0xFFFFFFFF)
            n -= 1
            for k in range(best + 1, n):
                ids[out + k] = ids[out + k + 1]
                ranks[k - 1] = ranks[k]
            if best > 0:
                ranks[best - 1] = _rank(pairs, ids[out + best - 1], ids[out + best])
            if best < n - 1:
                ranks[best] = _rank(pairs, ids[out + best], ids[out + best + 1])
        starts[word + 1] = out + n
    return last


@kernel(I32, I32, I64, I32)
def _copy(numbers, ids, starts, out):
    n = 0
    for number in numbers:
        for k in range(starts[number], starts[number + 1]):
            out[n] = ids[k]
            n += 1
