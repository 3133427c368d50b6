"""Training and encoding in plain Python: for small inputs, where compiling would take longer.

The compiled versions (counter.py, merger.py, encoder.py) give the same merges and the same ids.
Pieces are str here; a byte that is no UTF-8 is a surrogate, as Python's "surrogateescape" has it.
"""

import heapq
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable

from .patterns import Pattern

Pair = tuple[int, int]
Merge = tuple[int, int, int]  # left id, right id, id of the result

SHORT = 24  # symbols: below this, looking at all pairs is faster than keeping a heap
CACHE_PIECES = 1 << 17  # pieces remembered by an encoder, some 20 MB


def to_text(text: str | bytes) -> str:
    """One str for one sequence of bytes: what is no UTF-8 becomes surrogates U+DC80 to U+DCFF.

    A str means the bytes of its UTF-8; a lone surrogate in it, which has none, the three bytes that
    "surrogatepass" gives. Those are no UTF-8 either.
    """
    if isinstance(text, str):
        if text.isascii():
            return text
        try:
            text.encode("utf-8")
            return text
        except UnicodeEncodeError:
            text = text.encode("utf-8", "surrogatepass")
    return text.decode("utf-8", "surrogateescape")


def to_bytes(text: str) -> bytes:
    """The bytes that `to_text` came from."""
    return text.encode("utf-8", "surrogateescape")


def count_pieces(texts: Iterable[str | bytes], pattern: Pattern) -> dict[bytes, int]:
    """How often each piece occurs in all `texts`."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(pattern.split(to_text(text)))
    return {to_bytes(piece): count for piece, count in counts.items()}


def learn_merges(
    counts: dict[bytes, int],
    byte_ids: list[int],
    vocab: dict[str, int],
    vocab_size: int,
    min_frequency: int,
) -> list[Merge]:
    """Merges in the order of Hugging Face's `BpeTrainer`.

    counts         how often each piece occurs
    byte_ids       the id of each of the 256 bytes
    vocab          the id of every token, spelled as in tokenizer.json; new ones are added to it
    vocab_size     stop when this many tokens exist
    min_frequency  stop when the best pair occurs less often (or never)

    The heap holds (-count, pair, words in which this entry has to be done). Its counts may be too
    high, because merges take pairs away: then the entry goes back with the right count. A merge
    whose result exists already takes that token's id and adds none.
    """
    words = [[byte_ids[byte] for byte in piece] for piece in counts]
    occurs = list(counts.values())
    spelling = {token_id: token for token, token_id in vocab.items()}
    pairs: defaultdict[Pair, int] = defaultdict(int)
    places: defaultdict[Pair, set[int]] = defaultdict(set)
    for place, word in enumerate(words):
        for pair in zip(word, word[1:], strict=False):
            pairs[pair] += occurs[place]
            places[pair].add(place)
    heap = [(-pairs[pair], pair, where) for pair, where in places.items()]
    heapq.heapify(heap)

    merges: list[Merge] = []
    while len(vocab) < vocab_size and heap:
        count, pair, where = heap[0]
        if -count != pairs[pair]:
            heapq.heapreplace(heap, (-pairs[pair], pair, where))
            continue
        if -count < max(1, min_frequency):
            break
        heapq.heappop(heap)
        token = spelling[pair[0]] + spelling[pair[1]]
        new_id = vocab.setdefault(token, len(vocab))
        spelling[new_id] = token
        merges.append((*pair, new_id))
        grown: defaultdict[Pair, set[int]] = defaultdict(set)
        for place in where:
            words[place], changes = merge_word(words[place], pair, new_id)
            for neighbours, change in changes:
                pairs[neighbours] += change * occurs[place]
                if change > 0:
                    grown[neighbours].add(place)
        for neighbours, where in grown.items():
            if pairs[neighbours] > 0:
                heapq.heappush(heap, (-pairs[neighbours], neighbours, where))
    return merges


def merge_word(word: list[int], pair: Pair, new_id: int) -> tuple[list[int], list]:
    """The word after one merge, and the pairs that this took away (-1) and added (+1).

    The count of the merged pair itself stays as it is, as in Hugging Face's trainer.
    """
    left, right = pair
    out: list[int] = []
    changes = []
    position, last = 0, len(word) - 1
    while position <= last:
        symbol = word[position]
        if symbol != left or position == last or word[position + 1] != right:
            out.append(symbol)
            position += 1
            continue
        if out:
            changes.append(((out[-1], left), -1))
            changes.append(((out[-1], new_id), 1))
        position += 2
        if position <= last:
            changes.append(((right, word[position]), -1))
            changes.append(((new_id, word[position]), 1))
        out.append(new_id)
    return out, changes


class PlainEncoder:
    """Ids of pieces, by the ranks of merges.

    byte_ids  the id of each of the 256 bytes
    merges    as `learn_merges` returns them
    whole     pieces that are one token whatever the merges say
    """

    def __init__(self, byte_ids: list[int], merges: Iterable[Merge], whole: dict[bytes, int]):
        self.byte_ids = byte_ids
        self.whole = whole
        self.ranks = {
            (left, right): (rank, new_id) for rank, (left, right, new_id) in enumerate(merges)
        }
        self.cache: dict[str, list[int]] = {}

    def encode(self, text: str, split: Callable[[str], list[str]]) -> list[int]:
        """The ids of a text as `to_text` makes it."""
        out: list[int] = []
        cache = self.cache
        for piece in split(text):
            ids = cache.get(piece)
            if ids is None:
                ids = self.encode_piece(to_bytes(piece))
                if len(cache) >= CACHE_PIECES:
                    cache.clear()
                if len(piece) <= 64:
                    cache[piece] = ids
            out += ids
        return out

    def encode_piece(self, piece: bytes) -> list[int]:
        """The ids of one piece: the merge of lowest rank first, leftmost first."""
        if piece in self.whole:
            return [self.whole[piece]]
        ids = [self.byte_ids[byte] for byte in piece]
        if len(ids) > SHORT:
            return self.merge_long(ids)
        ranks = self.ranks
        nothing = (len(ranks), -1)
        while len(ids) > 1:
            found = [ranks.get(pair, nothing) for pair in zip(ids, ids[1:], strict=False)]
            best = min(found)
            if best is nothing:
                break
            position = found.index(best)
            ids[position : position + 2] = [best[1]]
        return ids

    def merge_long(self, ids: list[int]) -> list[int]:
        """The same in O(n log n): a heap of possible merges over a linked list of symbols."""
        ranks, n = self.ranks, len(ids)
        before, after = list(range(-1, n - 1)), list(range(1, n + 1))  # n: the end
        heap: list[tuple[int, int, int, int, int]] = []

        def consider(position: int) -> None:
            pair = ids[position], ids[after[position]]
            if pair in ranks:
                rank, new_id = ranks[pair]
                heap.append((rank, position, new_id, *pair))

        for position in range(n - 1):
            consider(position)
        heapq.heapify(heap)
        while heap:
            _, position, new_id, left, right = heapq.heappop(heap)
            neighbour = after[position]
            if ids[position] != left or neighbour == n or ids[neighbour] != right:
                continue  # one of the two has been merged meanwhile
            ids[position], ids[neighbour] = new_id, -1
            after[position] = after[neighbour]
            if after[position] < n:
                before[after[position]] = position
            for start in (before[position], position):
                if start >= 0 and after[start] < n:
                    pair = ids[start], ids[after[start]]
                    if pair in ranks:
                        rank, result = ranks[pair]
                        heapq.heappush(heap, (rank, start, result, *pair))
        return [token for token in ids if token >= 0]
