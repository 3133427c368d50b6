"""Byte-pair encoding, the algorithm as a lesson.

Text is bytes, and the 256 bytes are the first tokens, so nothing is ever "unknown". Training looks
for the pair of neighbouring tokens that occurs most often, glues it together into a new token, and
goes on until the vocabulary is full:

    b"low lower lowest"     l o w  ␣ l o w e r  ␣ l o w e s t
    merge (l, o)            lo w  ␣ lo w e r  ␣ lo w e s t
    merge (lo, w)           low  ␣ low e r  ␣ low e s t
    merge (␣, low)          low  ␣low e r  ␣low e s t

Encoding new text replays the merges in the order in which they were learned. Decoding is a look-up
and a join.

Merges do not cross words: the text is first cut into pieces (patterns.py), and pairs are counted
inside pieces only. This file takes the pieces as they come. It is written to be read: `Tokenizer`
learns the same merges and gives the same ids many times faster (a test compares them).

Source: Sennrich, Haddow and Birch 2016, "Neural Machine Translation of Rare Words with Subword
Units", section 3.2; on bytes: Radford et al. 2019 (GPT-2), section 2.2.
"""

from collections import Counter
from collections.abc import Iterable

Pair = tuple[int, int]

# Bytes that Latin-1 can print come first, the rest behind them: the order that GPT-2 chose.
# The id of a byte is its place in this list. Ids matter to training: they settle ties.
PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
BYTE_ORDER = PRINTABLE + [byte for byte in range(256) if byte not in PRINTABLE]
BYTE_IDS = [BYTE_ORDER.index(byte) for byte in range(256)]


def to_ids(piece: bytes | str) -> tuple[int, ...]:
    """The ids of single bytes, before any merge: `"low"` -> the ids of b"l", b"o", b"w"."""
    data = piece.encode("utf-8") if isinstance(piece, str) else piece
    return tuple(BYTE_IDS[byte] for byte in data)


def count_pairs(words: dict[tuple[int, ...], int]) -> Counter[Pair]:
    """How often each pair of neighbours occurs, where `words` says how often each word does."""
    pairs: Counter[Pair] = Counter()
    for ids, count in words.items():
        for pair in zip(ids, ids[1:], strict=False):
            pairs[pair] += count
    return pairs


def merge(ids: tuple[int, ...], pair: Pair, new_id: int) -> tuple[int, ...]:
    """`ids` with every `pair` replaced by `new_id`, from left to right: aaa -> (aa) a."""
    out = []
    position = 0
    while position < len(ids):
        if ids[position : position + 2] == pair:
            out.append(new_id)
            position += 2
        else:
            out.append(ids[position])
            position += 1
    return tuple(out)


def train_bpe(pieces: Iterable[bytes | str], vocab_size: int) -> list[Pair]:
    """Learn up to `vocab_size - 256` merges from pieces of text.

    Merge k is a pair of ids and makes id 256 + k. There are fewer merges when no pair is left, and
    then the vocabulary is smaller. Cost: all pairs are counted again for each merge.
    """
    if vocab_size < 256:
        raise ValueError(f"vocab_size: must be at least 256, one for each byte, got {vocab_size}")
    words: Counter[tuple[int, ...]] = Counter(to_ids(piece) for piece in pieces)
    merges: list[Pair] = []
    while 256 + len(merges) < vocab_size:
        pairs = count_pairs(words)
        if not pairs:
            break
        # The most frequent pair; of equally frequent ones the pair with the smallest ids.
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        new_id = 256 + len(merges)
        merges.append(best)
        merged: Counter[tuple[int, ...]] = Counter()
        for ids, count in words.items():
            merged[merge(ids, best, new_id)] += count
        words = merged
    return merges


def encode_piece(piece: bytes | str, ranks: dict[Pair, int]) -> list[int]:
    """The ids of one piece: again and again, the merge that was learned first is done first."""
    ids = to_ids(piece)
    while len(ids) > 1:
        best = min(zip(ids, ids[1:], strict=False), key=lambda pair: ranks.get(pair, len(ranks)))
        if best not in ranks:
            break
        ids = merge(ids, best, 256 + ranks[best])
    return list(ids)


def encode_bpe(pieces: Iterable[bytes | str], merges: list[Pair]) -> list[int]:
    """The ids of all pieces, one after the other."""
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    return [token for piece in pieces for token in encode_piece(piece, ranks)]


def vocabulary(merges: list[Pair]) -> list[bytes]:
    """The bytes that each id stands for: the 256 single bytes, then one token for each merge."""
    tokens = [bytes([byte]) for byte in BYTE_ORDER]
    for left, right in merges:
        tokens.append(tokens[left] + tokens[right])
    return tokens


def decode_bpe(ids: Iterable[int], merges: list[Pair]) -> bytes:
    """The bytes behind `ids`: of `encode_bpe(pieces, merges)`, all pieces joined."""
    tokens = vocabulary(merges)
    return b"".join(tokens[token] for token in ids)
