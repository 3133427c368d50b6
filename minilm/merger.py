"""The merge loop of training, compiled: which pairs are glued together, in which order.

The same as `plain.learn_merges`. What it keeps:

    symbols   the ids of all different words, one word behind the other; a merge shortens words
    pairs     a record for each pair: how often it occurs, and in which words it is new
    places    linked lists of words: places[k] = (word, next place)
    heap      the pairs by count, then by ids; an entry also has its list of places

A merge takes the best entry, rewrites the words in its list, changes the counts of the pairs beside
each place, and pushes the pairs that are new there. Counts in the heap may be too high, because a
merge takes pairs away without looking for their entries: such an entry goes back with the right
count when it comes up.

The kernels allocate nothing. When an array gets short they stop where they are, and Python makes
the array longer and calls them again.

The hash tables, the heap and the loop stand in one file because a kernel may only call functions of
its own (compiled.py).

Source of the order: Hugging Face `tokenizers`, `BpeTrainer` (with 64-bit counts).
"""

from collections.abc import Sequence

import numba
import numpy as np
from numba import types

from .compiled import I32, I64, U8, array, helper, kernel
from .words import WordTable

PAIR = np.dtype([("key", "i8"), ("count", "i8"), ("places", "i4"), ("_", "i4")])
PLACE = np.dtype([("word", "i4"), ("next", "i4")])
ENTRY = np.dtype([("count", "i8"), ("key", "i8"), ("pair", "i4"), ("places", "i4")])
PAIR_ARRAY, PLACE_ARRAY, ENTRY_ARRAY = (
    array(numba.from_dtype(dtype)) for dtype in (PAIR, PLACE, ENTRY)
)
NONE = -1
GOLDEN = np.uint64(0x9E3779B97F4A7C15)
# What the kernels know between calls, in one small array: how many there are of each, then the word
# to count next, the place to go on with, and the merge that is being done.
PAIRS, PLACES, FRESH, HEAP, MERGES, TOKENS, WORD, AT, LEFT, RIGHT, NEW = range(11)


class _Merger:
    """The arrays that the kernels work on."""

    def __init__(self, words: WordTable, counts: np.ndarray, byte_ids, tokens, vocab_size: int):
        self.starts = words.starts[: words.size + 1]
        self.ends = self.starts[1:].copy()
        self.counts = counts
        self.symbols = np.array(byte_ids, dtype=np.int32)[words.arena[: self.starts[-1]]]
        self.state = np.zeros(NEW + 1, dtype=np.int64)
        self.state[TOKENS], self.state[AT] = len(tokens), NONE
        self.pairs = np.empty(1 << 12, dtype=PAIR)
        self.slots = np.full(1 << 13, NONE, dtype=np.int32)
        self.places = np.empty(1 << 12, dtype=PLACE)
        self.fresh = np.empty(1 << 12, dtype=np.int32)
        self.heap = np.empty(1 << 12, dtype=ENTRY)
        self.entry = np.empty(2, dtype=ENTRY)
        self.merges = np.empty(3 << 12, dtype=np.int32)
        # A new token takes at least one symbol away: there are no more tokens than this.
        most = len(tokens) + min(vocab_size, len(self.symbols))
        self.token_bytes = np.array(list(b"".join(tokens)), dtype=np.uint8)
        self.token_starts = np.zeros(most + 2, dtype=np.int64)
        self.token_starts[1 : len(tokens) + 1] = np.cumsum([len(token) for token in tokens])
        self.token_slots = np.full(1 << (2 * most).bit_length(), NONE, dtype=np.int32)
        _know_tokens(self.token_bytes, self.token_starts, self.token_slots, len(tokens))
        longest = int((self.ends - self.starts[:-1]).max(initial=0))
        self.margin = 2 * longest + 8  # one word needs at most this much of anything

    def make_room(self) -> None:
        n = self.state
        self.places = _longer(self.places, n[PLACES] + self.margin)
        self.fresh = _longer(self.fresh, n[FRESH] + self.margin)
        self.heap = _longer(self.heap, n[HEAP] + n[FRESH] + self.margin)
        self.merges = _longer(self.merges, 3 * n[MERGES] + self.margin)
        self.token_bytes = _longer(self.token_bytes, self.token_starts[n[TOKENS]] + self.margin)
        self.pairs = _longer(self.pairs, n[PAIRS] + self.margin)
        if len(self.slots) < 2 * len(self.pairs):
            size = 1 << (2 * len(self.pairs) - 1).bit_length()
            self.slots = np.full(size, NONE, dtype=np.int32)
            _fill(self.pairs, self.slots, n[PAIRS])

    def table(self) -> tuple[np.ndarray, ...]:
        words = self.symbols, self.starts, self.ends, self.counts
        return *words, self.pairs, self.slots, self.places, self.fresh, self.state, self.margin

    def run(self, vocab_size: int, least: int) -> np.ndarray:
        self.make_room()
        while not _count(*self.table()):
            self.make_room()
        while not _learn(
            *self.table(),
            self.heap,
            self.entry,
            self.merges,
            self.token_bytes,
            self.token_starts,
            self.token_slots,
            vocab_size,
            least,
        ):
            self.make_room()
        return self.merges[: 3 * self.state[MERGES]]


def learn_merges(
    words: WordTable,
    counts: np.ndarray,
    byte_ids: Sequence[int],
    tokens: Sequence[bytes],
    vocab_size: int,
    min_frequency: int,
) -> list[tuple[int, int, int]]:
    """Merges as (left id, right id, id of the result), in the order of Hugging Face's `BpeTrainer`.

    words, counts  the different pieces, and how often each occurs (int64)
    byte_ids       the id of each of the 256 bytes
    tokens         the bytes of the tokens that there are, by id; b"" for one that no merge can make
    vocab_size     stop when this many tokens exist
    min_frequency  stop when the best pair occurs less often (or never)
    """
    merger = _Merger(words, counts, byte_ids, tokens, vocab_size)
    most = len(merger.token_starts) - 2
    merges = merger.run(min(vocab_size, most), min(max(1, min_frequency), 1 << 62))
    return list(map(tuple, merges.reshape(-1, 3).tolist()))


def _longer(array: np.ndarray, length: int) -> np.ndarray:
    """The array, or a copy at least twice as long, so that it has `length` places."""
    if len(array) >= length:
        return array
    out = np.empty(max(int(length), 2 * len(array)), dtype=array.dtype)
    out[: len(array)] = array
    return out


# The pairs: a hash table from the key (left << 32 | right) to the record.


@helper
def _home(key, slots):
    h = np.uint64(key) * GOLDEN
    return np.int64(h ^ (h >> np.uint64(32))) & (slots.size - 1)


@helper
def _pair(pairs, slots, n, key):
    """The index of a pair's record, which is made if there is none."""
    slot = _home(key, slots)
    while slots[slot] != NONE:
        if pairs[slots[slot]].key == key:
            return np.int64(slots[slot])
        slot = (slot + 1) & (slots.size - 1)
    pair = n[PAIRS]
    n[PAIRS] += 1
    slots[slot] = pair
    pairs[pair].key = key
    pairs[pair].count = 0
    pairs[pair].places = NONE
    return pair


@kernel(PAIR_ARRAY, I32, types.int64)
def _fill(pairs, slots, size):
    """Put all pairs into an empty hash table."""
    for pair in range(size):
        slot = _home(pairs[pair].key, slots)
        while slots[slot] != NONE:
            slot = (slot + 1) & (slots.size - 1)
        slots[slot] = pair


@helper
def _take(pairs, slots, n, left, right, count):
    """A pair occurs less often."""
    pairs[_pair(pairs, slots, n, left << 32 | right)].count -= count


@helper
def _add(pairs, slots, places, fresh, n, left, right, count, word):
    """A pair occurs more often, in this word, which goes into its list of places."""
    pair = _pair(pairs, slots, n, left << 32 | right)
    pairs[pair].count += count
    head = pairs[pair].places
    if head == NONE:
        fresh[n[FRESH]] = pair
        n[FRESH] += 1
    if head == NONE or places[head].word != word:
        place = n[PLACES]
        n[PLACES] += 1
        places[place].word = word
        places[place].next = head
        pairs[pair].places = place


@helper
def _merge_word(symbols, begin, end, pairs, slots, places, fresh, n, count, word):
    """Do the present merge in a word; returns the new end. The merged pair's own count stays."""
    left, right, new = n[LEFT], n[RIGHT], n[NEW]
    read = write = begin
    while read < end:
        symbol = symbols[read]
        if symbol != left or read + 1 == end or symbols[read + 1] != right:
            symbols[write] = symbol
            read += 1
            write += 1
            continue
        if write > begin:
            before = np.int64(symbols[write - 1])
            _take(pairs, slots, n, before, left, count)
            _add(pairs, slots, places, fresh, n, before, new, count, word)
        read += 2
        if read < end:
            after = np.int64(symbols[read])
            _take(pairs, slots, n, right, after, count)
            _add(pairs, slots, places, fresh, n, new, after, count, word)
        symbols[write] = new
        write += 1
    return write


# The heap: each entry has four children and goes before them.


@helper
def _before(a, b):
    return a.count > b.count or (a.count == b.count and a.key < b.key)


@helper
def _put(heap, k, entry):
    heap[k].count = entry.count
    heap[k].key = entry.key
    heap[k].pair = entry.pair
    heap[k].places = entry.places


@helper
def _rise(heap, k, entry):
    """Put an entry at place k or above."""
    while k > 0 and _before(entry, heap[(k - 1) >> 2]):
        _put(heap, k, heap[(k - 1) >> 2])
        k = (k - 1) >> 2
    _put(heap, k, entry)


@helper
def _sink(heap, size, entry):
    """Put an entry at the top or below."""
    k = 0
    while 4 * k + 1 < size:
        best = 4 * k + 1
        for child in range(best + 1, min(4 * k + 5, size)):
            if _before(heap[child], heap[best]):
                best = child
        if not _before(heap[best], entry):
            break
        _put(heap, k, heap[best])
        k = best
    _put(heap, k, entry)


@helper
def _push_fresh(heap, pairs, fresh, n, entry):
    """Push the pairs that have got new places; `entry` is a record to work in."""
    for k in range(n[FRESH]):
        pair = pairs[fresh[k]]
        if pair.count > 0:
            entry.count = pair.count
            entry.key = pair.key
            entry.pair = fresh[k]
            entry.places = pair.places
            _rise(heap, n[HEAP], entry)
            n[HEAP] += 1
        pair.places = NONE
    n[FRESH] = 0


@helper
def _pop(heap, pairs, n, least, entry):
    """Take the best pair into `entry`; False when none occurs `least` times."""
    while n[HEAP] > 0:
        _put(entry, 0, heap[0])
        count = pairs[entry[0].pair].count
        if entry[0].count == count:
            n[HEAP] -= 1
            if n[HEAP] > 0:
                _put(entry, 1, heap[n[HEAP]])
                _sink(heap, n[HEAP], entry[1])
            return count >= least
        entry[0].count = count
        _sink(heap, n[HEAP], entry[0])
    return False


# The tokens: a hash table from their bytes to their ids.


@helper
def _token(data, begin, end, token_starts, slots):
    """The slot of the token with these bytes, or the empty one where it belongs."""
    h = np.uint64(0xCBF29CE484222325)
    for k in range(begin, end):
        h = (h ^ np.uint64(data[k])) * np.uint64(0x100000001B3)
    slot = np.int64(h >> np.uint64(20)) & (slots.size - 1)
    while slots[slot] != NONE:
        other = token_starts[slots[slot]]
        if token_starts[slots[slot] + 1] - other == end - begin:
            k = 0
            while k < end - begin and data[begin + k] == data[other + k]:
                k += 1
            if k == end - begin:
                return slot
        slot = (slot + 1) & (slots.size - 1)
    return slot


@helper
def _append(data, end, begin, stop):
    """Copy data[begin:stop] to `end`; returns the new end."""
    for k in range(begin, stop):
        data[end + k - begin] = data[k]
    return end + stop - begin


@helper
def _joined(data, token_starts, slots, left, right, new):
    """The id of the token left + right: `new`, or that of a token which exists with these bytes."""
    begin = token_starts[new]
    end = _append(data, begin, token_starts[left], token_starts[left + 1])
    end = _append(data, end, token_starts[right], token_starts[right + 1])
    slot = _token(data, begin, end, token_starts, slots)
    if slots[slot] == NONE:
        slots[slot] = new
        token_starts[new + 1] = end
    return np.int64(slots[slot])


@kernel(U8, I64, I32, types.int64)
def _know_tokens(data, token_starts, slots, size):
    """Put the first tokens into the empty hash table."""
    for token in range(size):
        begin, end = token_starts[token], token_starts[token + 1]
        if begin < end:
            slots[_token(data, begin, end, token_starts, slots)] = token


TABLE = (I32, I64, I64, I64, PAIR_ARRAY, I32, PLACE_ARRAY, I32, I64, types.int64)


@helper
def _has_room(pairs, places, fresh, n, margin):
    return (
        n[PAIRS] + margin <= pairs.size
        and n[PLACES] + margin <= places.size
        and n[FRESH] + margin <= fresh.size
    )


@kernel(*TABLE)
def _count(symbols, starts, ends, counts, pairs, slots, places, fresh, n, margin):
    """Count the pairs of all words; False when room is short before the end."""
    for word in range(n[WORD], ends.size):
        if not _has_room(pairs, places, fresh, n, margin):
            n[WORD] = word
            return False
        for k in range(starts[word], ends[word] - 1):
            left, right = np.int64(symbols[k]), np.int64(symbols[k + 1])
            _add(pairs, slots, places, fresh, n, left, right, counts[word], word)
    n[WORD] = ends.size
    return True


@kernel(*TABLE, ENTRY_ARRAY, ENTRY_ARRAY, I32, U8, I64, I32, types.int64, types.int64)
def _learn(
    symbols,
    starts,
    ends,
    counts,
    pairs,
    slots,
    places,
    fresh,
    n,
    margin,
    heap,
    entry,
    merges,
    token_bytes,
    token_starts,
    token_slots,
    vocab_size,
    least,
):
    """Learn merges, three numbers each; False when room is short before the end."""
    while True:
        while n[AT] != NONE:
            if not _has_room(pairs, places, fresh, n, margin):
                return False
            word = np.int64(places[n[AT]].word)
            n[AT] = places[n[AT]].next
            ends[word] = _merge_word(
                symbols,
                starts[word],
                ends[word],
                pairs,
                slots,
                places,
                fresh,
                n,
                counts[word],
                word,
            )
        if (
            n[HEAP] + n[FRESH] > heap.size
            or 3 * n[MERGES] + 3 > merges.size
            or token_starts[n[TOKENS]] + margin > token_bytes.size
        ):
            return False
        _push_fresh(heap, pairs, fresh, n, entry[1])
        if n[TOKENS] >= vocab_size or not _pop(heap, pairs, n, least, entry):
            return True
        n[AT] = entry[0].places
        n[LEFT], n[RIGHT] = entry[0].key >> 32, entry[0].key & 0xFFFFFFFF
        n[NEW] = _joined(token_bytes, token_starts, token_slots, n[LEFT], n[RIGHT], n[TOKENS])
        n[TOKENS] = max(n[TOKENS], n[NEW] + 1)
        for k in range(3):
            merges[3 * n[MERGES] + k] = n[LEFT + k]
        n[MERGES] += 1
