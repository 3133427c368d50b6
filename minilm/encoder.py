"""The encoder, compiled: ids of texts by the ranks of merges.

The same ids as `plain.PlainEncoder`. For one run of pieces after the other:

    cut the text (splitter) → number the pieces (words) → merge the new words → copy the ids of each

Merging goes by rank, the lowest first, the leftmost of equals first. A short word looks through all
its pairs for each merge; a long one keeps them in a heap, O(n log n).
"""

from collections.abc import Sequence

import numpy as np
from numba import types

from . import splitter
from .compiled import I32, I64, U8, helper, kernel
from .patterns import Pattern
from .words import WordTable, join

MAX_WORDS = 1 << 19  # the words remembered: beyond this number, or these bytes, all are forgotten
MAX_BYTES = 1 << 26
SHORT = 64
NONE = 1 << 62  # the value of a pair that has no merge; others are rank << 32 | new id
LOW = 0xFFFFFFFF
GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class Encoder:
    """Encodes texts with one set of merges. Not for two threads at the same time.

    pattern   where text is cut
    byte_ids  the id of each of the 256 bytes
    merges    (left id, right id, id of the result), by rank
    whole     pieces that are one token whatever the merges say
    """

    def __init__(
        self,
        pattern: Pattern,
        byte_ids: Sequence[int],
        merges: Sequence[tuple[int, int, int]],
        whole: dict[bytes, int],
    ):
        self.pattern = pattern
        self.byte_ids = np.array(byte_ids, dtype=np.int32)
        self.whole = whole
        table = np.array(merges, dtype=np.int64).reshape(-1, 3)
        self.ranks = np.full(4 << len(table).bit_length(), -1, dtype=np.int64)
        _know_merges(table.ravel(), self.ranks)
        self.forget()

    def forget(self) -> None:
        """Begin with an empty table of words."""
        self.words = WordTable()
        self.ids = np.zeros(
            1 << 16, dtype=np.int32
        )  # those of word k: ids[starts[k]:starts[k + 1]]
        self.starts = np.zeros(1 << 14, dtype=np.int64)
        self.encoded = len(self.whole)
        if self.whole:
            buffer, bounds = join(list(self.whole))
            self.words.numbers(buffer, 0, bounds[1:])
            self.ids = np.array(list(self.whole.values()), dtype=np.int32)
            self.starts = np.arange(len(self.whole) + 1, dtype=np.int64)

    def encode(self, texts: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """`(ids, offsets)`: int32 ids of all texts; int64, where each text begins in them."""
        buffer, bounds = join(texts)
        out = np.empty(bounds[-1], dtype=np.int32)
        offsets = np.zeros(len(bounds), dtype=np.int64)
        text = size = 0
        for start, ends in splitter.cut(self.pattern, buffer, bounds):
            if self.words.size > MAX_WORDS or len(self.words.arena) > MAX_BYTES:
                self.forget()
            numbers = self.words.numbers(buffer, start, ends)
            if self.words.size > self.encoded:
                self._encode_new()
            size, text = _emit(
                numbers, start, ends, self.ids, self.starts, out, size, bounds, text, offsets
            )
        offsets[text + 1 :] = size
        return out[:size].copy(), offsets

    def _encode_new(self) -> None:
        words = self.words
        starts = words.starts[self.encoded : words.size + 1]
        longest, total = int(np.diff(starts).max()), int(starts[-1] - starts[0])
        self.ids = _longer(self.ids, int(self.starts[self.encoded]) + total)
        self.starts = _longer(self.starts, words.size + 1)
        symbols, before, after = np.empty((3, longest + 1), dtype=np.int32)
        values, heap = np.empty(longest, dtype=np.int64), np.empty(3 * longest, dtype=np.int64)
        _encode(
            words.arena,
            words.starts,
            self.encoded,
            words.size,
            self.byte_ids,
            self.ranks,
            symbols,
            values,
            before,
            after,
            heap,
            self.ids,
            self.starts,
        )
        self.encoded = words.size


def _longer(array: np.ndarray, length: int) -> np.ndarray:
    if len(array) >= length:
        return array
    out = np.zeros(max(length, 2 * len(array)), dtype=array.dtype)
    out[: len(array)] = array
    return out


@helper
def _slot(key, ranks):
    h = np.uint64(key) * GOLDEN
    mask = ranks.size // 2 - 1
    slot = np.int64(h ^ (h >> np.uint64(32))) & mask
    while ranks[2 * slot] != key and ranks[2 * slot] != -1:
        slot = (slot + 1) & mask
    return slot


@kernel(I64, I64)
def _know_merges(merges, ranks):
    """Put merges into the empty hash table: key left << 32 | right, value rank << 32 | new id."""
    for rank in range(merges.size // 3):
        key = merges[3 * rank] << 32 | merges[3 * rank + 1]
        slot = _slot(key, ranks)
        ranks[2 * slot] = key
        ranks[2 * slot + 1] = np.int64(rank) << 32 | merges[3 * rank + 2]


@helper
def _value(ranks, left, right):
    slot = _slot(np.int64(left) << 32 | np.int64(right), ranks)
    return np.int64(NONE) if ranks[2 * slot] == -1 else ranks[2 * slot + 1]


@helper
def _merge_short(symbols, values, n, ranks):
    """Merge symbols[:n] in place; returns how many are left. values[k] is that of pair k, k + 1."""
    for k in range(n - 1):
        values[k] = _value(ranks, symbols[k], symbols[k + 1])
    while n > 1:
        best = 0
        for k in range(1, n - 1):
            if values[k] < values[best]:
                best = k
        if values[best] == NONE:
            break
        symbols[best] = values[best] & LOW
        n -= 1
        for k in range(best + 1, n):
            symbols[k] = symbols[k + 1]
            values[k - 1] = values[k]
        if best > 0:
            values[best - 1] = _value(ranks, symbols[best - 1], symbols[best])
        if best < n - 1:
            values[best] = _value(ranks, symbols[best], symbols[best + 1])
    return n


@helper
def _push(heap, size, item):
    while size > 0 and heap[(size - 1) >> 1] > item:
        heap[size] = heap[(size - 1) >> 1]
        size = (size - 1) >> 1
    heap[size] = item


@helper
def _drop(heap, size):
    """Take the first item away; `size` is what is left."""
    item = heap[size]
    k = 0
    while 2 * k + 1 < size:
        child = 2 * k + 1
        if child + 1 < size and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= item:
            break
        heap[k] = heap[child]
        k = child
    heap[k] = item


@helper
def _merge_long(symbols, values, before, after, heap, n, ranks):
    """The same with a heap of rank << 32 | place over a linked list of symbols."""
    size = 0
    for k in range(n):
        before[k], after[k] = k - 1, k + 1
        values[k] = _value(ranks, symbols[k], symbols[k + 1]) if k + 1 < n else NONE
        if values[k] != NONE:
            _push(heap, size, (values[k] >> 32) << 32 | k)
            size += 1
    while size > 0:
        rank, k = heap[0] >> 32, heap[0] & LOW
        size -= 1
        _drop(heap, size)
        if values[k] >> 32 != rank:
            continue  # one of the two has been merged meanwhile
        gone = after[k]
        symbols[k], symbols[gone] = values[k] & LOW, -1
        values[gone] = NONE
        after[k] = after[gone]
        if after[k] < n:
            before[after[k]] = k
        for place in (np.int64(before[k]), k):
            if place >= 0:
                follower = after[place]
                values[place] = (
                    _value(ranks, symbols[place], symbols[follower]) if follower < n else NONE
                )
                if values[place] != NONE:
                    _push(heap, size, (values[place] >> 32) << 32 | place)
                    size += 1
    left = 0
    for k in range(n):
        if symbols[k] >= 0:
            symbols[left] = symbols[k]
            left += 1
    return left


@kernel(U8, I64, types.int64, types.int64, I32, I64, I32, I64, I32, I32, I64, I32, I64)
def _encode(
    arena,
    word_starts,
    first,
    last,
    byte_ids,
    ranks,
    symbols,
    values,
    before,
    after,
    heap,
    ids,
    starts,
):
    """The ids of words first to last - 1, behind those that are there."""
    for word in range(first, last):
        begin = word_starts[word]
        n = word_starts[word + 1] - begin
        for k in range(n):
            symbols[k] = byte_ids[arena[begin + k]]
        if n <= SHORT:
            n = _merge_short(symbols, values, n, ranks)
        else:
            n = _merge_long(symbols, values, before, after, heap, n, ranks)
        for k in range(n):
            ids[starts[word] + k] = symbols[k]
        starts[word + 1] = starts[word] + n


@kernel(I32, types.int64, I64, I32, I64, I32, types.int64, I64, types.int64, I64)
def _emit(numbers, start, ends, ids, starts, out, size, bounds, text, offsets):
    """Copy the ids of one run of pieces to `out`; returns its size, and the text that it is in."""
    for k in range(numbers.size):
        while bounds[text + 1] <= start:
            text += 1
            offsets[text] = size
        word = numbers[k]
        for q in range(starts[word], starts[word + 1]):
            out[size] = ids[q]
            size += 1
        start = ends[k]
    return size, text
