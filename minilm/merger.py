"""The merge loop of training, compiled: which pairs are glued together, in which order.

The same as `plain.learn_merges`. What it keeps:

    symbols   the ids of all different words, one word after the other; merging shortens a word in place
    pairs     a record for each pair seen: how often it occurs, and the words where it has newly appeared
    places    linked lists of words: places[k] = (word, next place)
    heap      the pairs by count, then by ids; an entry also has its list of places

A merge takes the best entry, rewrites the words in its list, changes the counts of the pairs beside
each place, and pushes the pairs that appeared. Counts in the heap may be too high (a merge takes pairs
away without looking for their entries): such an entry goes back with the right count when it comes up.

Source of the order: Hugging Face `tokenizers`, `BpeTrainer` (with 64-bit counts).
"""

from collections.abc import Sequence

import numba
import numpy as np
from numba import types

from .compiled import I32, I64, U8, helper, kernel
from .words import WordTable

PAIR = numba.from_dtype(np.dtype([("key", "i8"), ("count", "i8"), ("places", "i4"), ("_", "i4")]))
PLACE = numba.from_dtype(np.dtype([("word", "i4"), ("next", "i4")]))
ENTRY = numba.from_dtype(
    np.dtype([("count", "i8"), ("key", "i8"), ("pair", "i4"), ("places", "i4")])
)
PAIRS, PLACES, FRESH, HEAP = 0, 1, 2, 3  # how many there are of each, in one small array
NONE = -1
GOLDEN = np.uint64(0x9E3779B97F4A7C15)


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
    starts = words.starts[: words.size + 1]
    symbols = np.array(byte_ids, dtype=np.int32)[words.arena[: starts[-1]]]
    token_starts = np.zeros(len(tokens) + 1, dtype=np.int64)
    np.cumsum([len(token) for token in tokens], out=token_starts[1:])
    token_bytes = np.array(list(b"".join(tokens)), dtype=np.uint8)
    merges = _learn(
        symbols, starts, counts, token_bytes, token_starts, vocab_size, max(1, min_frequency)
    )
    return list(map(tuple, merges.reshape(-1, 3).tolist()))


@helper
def _room(array, size):
    """The array, or a longer copy, so that it has at least `size` places."""
    if array.size >= size:
        return array
    longer = np.empty(max(size, 2 * array.size), array.dtype)
    longer[: array.size] = array
    return longer


# The pairs: a hash table from the key (left << 32 | right) to the record.


@helper
def _home(key, slots):
    return np.int64((np.uint64(key) * GOLDEN) >> np.uint64(24)) & (slots.size - 1)


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


@helper
def _room_for_pairs(pairs, slots, n, more):
    if n[PAIRS] + more <= pairs.size:
        return pairs, slots
    pairs = _room(pairs, n[PAIRS] + more)
    size = slots.size
    while size < 2 * pairs.size:
        size *= 2
    slots = np.full(size, NONE, np.int32)
    for pair in range(n[PAIRS]):
        slot = _home(pairs[pair].key, slots)
        while slots[slot] != NONE:
            slot = (slot + 1) & (slots.size - 1)
        slots[slot] = pair
    return pairs, slots


@helper
def _change(pairs, slots, places, fresh, n, left, right, change, word):
    """Count a pair up or down; one that goes up gets the word into its list of places."""
    pair = _pair(pairs, slots, n, np.int64(left) << 32 | np.int64(right))
    pairs[pair].count += change
    if change < 0:
        return
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
def _count_word(symbols, begin, end, pairs, slots, places, fresh, n, count, word):
    for k in range(begin, end - 1):
        _change(pairs, slots, places, fresh, n, symbols[k], symbols[k + 1], count, word)


@helper
def _merge_word(symbols, begin, end, merge, pairs, slots, places, fresh, n, count, word):
    """Do one merge (left, right, new) in a word; returns the new end. The count of the merged pair
    itself stays as it is."""
    left, right, new = merge
    read = write = begin
    while read < end:
        symbol = symbols[read]
        if symbol != left or read + 1 == end or symbols[read + 1] != right:
            symbols[write] = symbol
            read += 1
            write += 1
            continue
        if write > begin:
            before = symbols[write - 1]
            _change(pairs, slots, places, fresh, n, before, left, -count, word)
            _change(pairs, slots, places, fresh, n, before, new, count, word)
        read += 2
        if read < end:
            after = symbols[read]
            _change(pairs, slots, places, fresh, n, right, after, -count, word)
            _change(pairs, slots, places, fresh, n, new, after, count, word)
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


@helper
def _known_tokens(data, token_starts, most):
    """The table of the tokens that there are, with places for `most`."""
    size = 1 << 10
    while size < 2 * most:
        size *= 2
    slots = np.full(size, NONE, np.int32)
    for token in range(token_starts.size - 1):
        begin, end = token_starts[token], token_starts[token + 1]
        if begin < end:
            slots[_token(data, begin, end, token_starts, slots)] = token
    return slots


@kernel(I32, I64, I64, U8, I64, types.int64, types.int64)
def _learn(symbols, starts, counts, data, token_starts, vocab_size, least):
    """int32 merges, three numbers each."""
    n = np.zeros(4, np.int64)
    pairs = np.empty(1 << 16, PAIR)
    slots = np.full(1 << 17, NONE, np.int32)
    places = np.empty(symbols.size + 1, PLACE)
    fresh = np.empty(1 << 12, np.int32)
    heap = np.empty(1 << 12, ENTRY)
    entry = np.empty(2, ENTRY)
    ends = starts[1:].copy()
    merges = np.empty(3 << 12, np.int32)
    done = 0
    tokens = token_starts.size - 1
    most = tokens + min(vocab_size, symbols.size)  # a new token takes at least one symbol away
    token_slots = _known_tokens(data, token_starts, most)
    token_starts = _room(token_starts, most + 2)

    for word in range(ends.size):
        begin, end = starts[word], ends[word]
        pairs, slots = _room_for_pairs(pairs, slots, n, end - begin)
        fresh = _room(fresh, n[FRESH] + end - begin)
        _count_word(symbols, begin, end, pairs, slots, places, fresh, n, counts[word], word)
    while True:
        heap = _room(heap, n[HEAP] + n[FRESH])
        _push_fresh(heap, pairs, fresh, n, entry[1])
        if tokens >= vocab_size or not _pop(heap, pairs, n, least, entry):
            return merges[: 3 * done].copy()
        left, right = entry[0].key >> 32, entry[0].key & 0xFFFFFFFF
        length = token_starts[left + 1] - token_starts[left]
        length += token_starts[right + 1] - token_starts[right]
        data = _room(data, token_starts[tokens] + length)
        new = _joined(data, token_starts, token_slots, left, right, tokens)
        tokens = max(tokens, new + 1)
        merges = _room(merges, 3 * done + 3)
        merges[3 * done], merges[3 * done + 1], merges[3 * done + 2] = left, right, new
        done += 1
        place = np.int64(entry[0].places)
        while place != NONE:
            word = np.int64(places[place].word)
            place = np.int64(places[place].next)
            begin, end = starts[word], ends[word]
            more = 2 * (end - begin)
            if n[PAIRS] + more > pairs.size:
                pairs, slots = _room_for_pairs(pairs, slots, n, more)
            if n[FRESH] + more > fresh.size:
                fresh = _room(fresh, n[FRESH] + more)
            if n[PLACES] + more > places.size:
                places = _room(places, n[PLACES] + more)
            ends[word] = _merge_word(
                symbols,
                begin,
                end,
                (left, right, new),
                pairs,
                slots,
                places,
                fresh,
                n,
                counts[word],
                word,
            )
