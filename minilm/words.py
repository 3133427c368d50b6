"""Numbers for pieces, compiled: equal pieces get the same number, new ones the next.

Text repeats itself: in ten megabytes of Python four per cent are pieces not seen before. So the
work for a piece is done once, and the rest is finding its number again, in a hash table:

    slots   key │ number │ key │ number │ ...       both 64 bits: one cache line fetched per look-up
    key     a piece of up to 7 bytes:  the bytes themselves, the length in the top byte
            a longer one:              a hash with the top bit set; its bytes are then compared

So two pieces are only taken for equal when all their bytes are.
"""

from collections.abc import Sequence

import numpy as np
from numba import types

from .compiled import BYTES, I32, I64, U8, U64, array, helper, kernel

MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: spreads keys over the top bits
LONG = np.uint64(1 << 63)
WORDS = array(types.uint64, readonly=True)
PADDING = 16  # bytes that may be read behind the last one


def join(texts: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Texts as one padded buffer (uint8), and their bounds (int64, one more than texts)."""
    bounds = np.zeros(len(texts) + 1, dtype=np.int64)
    np.cumsum([len(text) for text in texts], out=bounds[1:])
    padding = bytes(PADDING - bounds[-1] % 8)
    return np.frombuffer(b"".join([*texts, padding]), dtype=np.uint8), bounds


class WordTable:
    """The numbers given so far.

    size    how many words there are; word k is `arena[starts[k] : starts[k + 1]]`
    arena   uint8, the bytes of all words
    starts  int64
    """

    def __init__(self, words: int = 1 << 14):
        self.size = 0
        self.slots = np.zeros(4 * words, dtype=np.uint64)
        self.arena = np.zeros(16 * words, dtype=np.uint8)
        self.starts = np.zeros(words + 1, dtype=np.int64)

    def numbers(self, buffer: np.ndarray, start: int, ends: np.ndarray) -> np.ndarray:
        """int32, the number of each piece; the pieces as `splitter.cut` gives them."""
        numbers = np.empty(len(ends), dtype=np.int32)
        longest = int(ends[-1]) - start  # an upper bound, so that there is room in the arena
        self._reserve(longest)
        done = 0
        while True:
            done, self.size = _find(
                buffer,
                buffer.view(np.uint64),
                start,
                ends,
                done,
                numbers,
                self.slots,
                self.arena,
                self.arena.view(np.uint64),
                self.starts,
                self.size,
            )
            if done == len(ends):
                return numbers
            self._grow()

    def _reserve(self, more: int) -> None:
        need = int(self.starts[self.size]) + more + PADDING
        if need > len(self.arena):
            self.arena = _longer(self.arena, max(need + (-need) % 8, 2 * len(self.arena)))

    def _grow(self) -> None:
        self.starts = _longer(self.starts, 4 * len(self.starts))
        slots = np.zeros(4 * len(self.slots), dtype=np.uint64)
        _fill(self.slots, slots)
        self.slots = slots


def _longer(array: np.ndarray, length: int) -> np.ndarray:
    out = np.zeros(length, dtype=array.dtype)
    out[: len(array)] = array
    return out


@helper
def _load(words, i):
    """Eight bytes from place `i` on, out of the array seen as 64-bit words; no branches."""
    shift = (np.uint64(i) & np.uint64(7)) << np.uint64(3)
    low = words[i >> 3] >> shift
    high = (words[(i >> 3) + 1] << np.uint64(1)) << (np.uint64(63) - shift)
    return low | high


@helper
def _load_some(words, i, n):
    """The first n of them, 1 to 8, the others zero."""
    return _load(words, i) & (~np.uint64(0) >> np.uint64((8 - n) << 3))


@helper
def _key(words, i, n):
    if n < 8:
        return _load_some(words, i, n) | np.uint64(n) << np.uint64(56)
    h = np.uint64(n)
    while n >= 8:
        h = (h ^ _load(words, i)) * MULTIPLIER
        h ^= h >> np.uint64(32)
        i += 8
        n -= 8
    if n > 0:
        h = (h ^ _load_some(words, i, n)) * MULTIPLIER
        h ^= h >> np.uint64(32)
    return h | LONG


@helper
def _equal(words, i, others, j, n):
    while n >= 8:
        if _load(words, i) != _load(others, j):
            return False
        i += 8
        j += 8
        n -= 8
    return n == 0 or _load_some(words, i, n) == _load_some(others, j, n)


@helper
def _home(key, slots):
    """The place of a key in the table, as an index of its slot."""
    h = key * MULTIPLIER
    return np.int64((h ^ (h >> np.uint64(29))) >> np.uint64(8)) & (slots.size // 2 - 1)


@kernel(
    BYTES,
    WORDS,
    types.int64,
    I64,
    types.int64,
    I32,
    U64,
    U8,
    U64,
    I64,
    types.int64,
)
def _find(buffer, words, start, ends, done, numbers, slots, arena, arena_words, starts, size):
    """Number pieces from `done` on, until the table is full; returns `done` and its size."""
    mask = slots.size // 2 - 1
    i = ends[done - 1] if done > 0 else start
    while done < ends.size:
        end = ends[done]
        n = end - i
        key = _key(words, i, n)
        slot = _home(key, slots)
        while True:
            found = slots[2 * slot]
            number = np.int64(slots[2 * slot + 1])
            if found == key:
                if n < 8:
                    break
                begin = starts[number]
                if starts[number + 1] - begin == n and _equal(words, i, arena_words, begin, n):
                    break
            elif found == 0:
                if size == starts.size - 1:
                    return done, size
                number = size
                begin = starts[size]
                for k in range(n):
                    arena[begin + k] = buffer[i + k]
                size += 1
                starts[size] = begin + n
                slots[2 * slot] = key
                slots[2 * slot + 1] = np.uint64(number)
                break
            slot = (slot + 1) & mask
        numbers[done] = number
        done += 1
        i = end
    return done, size


@kernel(U64, U64)
def _fill(old, new):
    """Move all entries into a larger table."""
    mask = new.size // 2 - 1
    for k in range(0, old.size, 2):
        if old[k] != 0:
            slot = _home(old[k], new)
            while new[2 * slot] != 0:
                slot = (slot + 1) & mask
            new[2 * slot] = old[k]
            new[2 * slot + 1] = old[k + 1]
