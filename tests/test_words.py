"""Numbers of pieces: equal only when all bytes are equal, whatever the hashes say."""

import random

import numpy as np
import pytest

from minilm import words
from minilm.counter import PieceCounter
from minilm.patterns import GPT4
from minilm.words import WordTable, join


def numbers(table: WordTable, pieces: list[bytes]) -> list[int]:
    buffer, bounds = join(pieces)
    return table.numbers(buffer, 0, bounds[1:]).tolist()


def expected_numbers(pieces: list[bytes]) -> list[int]:
    known: dict[bytes, int] = {}
    return [known.setdefault(piece, len(known)) for piece in pieces]


@pytest.mark.parametrize("alphabet", [b"\0\1", bytes(range(256))], ids=["zeros", "all bytes"])
def test_numbers_are_those_of_a_dict(alphabet):
    rng = random.Random(0)
    pieces = [bytes(rng.choices(alphabet, k=rng.randint(1, 26))) for _ in range(5000)]
    pieces += pieces[::2]
    table = WordTable(words=4)  # it has to grow
    found = numbers(table, pieces[:3000]) + numbers(table, pieces[3000:])
    assert found == expected_numbers(pieces)
    arena, starts = table.arena.tobytes(), table.starts.tolist()
    known = [arena[starts[k] : starts[k + 1]] for k in range(table.size)]
    assert known == list(dict.fromkeys(pieces))


def test_lengths_and_zeros_are_told_apart():
    pieces = [b"\0" * n for n in range(1, 40)] + [b"a" + b"\0" * n for n in range(39)]
    assert numbers(WordTable(), pieces) == list(range(len(pieces)))


def stir(h: int, eight: bytes) -> int:
    """One step of the hash of a long piece, in plain Python."""
    h = ((h ^ int.from_bytes(eight, "little")) * int(words.MULTIPLIER)) & ((1 << 64) - 1)
    return h ^ h >> 32


def ending(before: int, h: int, eight: bytes) -> bytes:
    """The eight bytes that lead from `before` to where `eight` leads from `h`."""
    return (before ^ h ^ int.from_bytes(eight, "little")).to_bytes(8, "little")


def test_a_collision_of_hashes_is_settled_by_the_bytes():
    """Different pieces with the same hash, of one length and of two, made by undoing a step."""
    start, end = b"ABCDEFGH", b"IJKLMNOP"
    h = stir(16, start)
    same_length = b"other 8!" + ending(stir(16, b"other 8!"), h, end)
    longer = start + end + ending(stir(stir(24, start), end), h, end)
    hashes = {stir(h, end), stir(stir(16, same_length[:8]), same_length[8:])}
    hashes.add(stir(stir(stir(24, start), end), longer[16:]))
    assert len(hashes) == 1
    pieces = [longer, start + end, same_length, longer, start + end, same_length]
    assert numbers(WordTable(), pieces) == [0, 1, 2, 0, 1, 2]


def test_counts_are_64_bits_and_go_on_over_batches():
    counter = PieceCounter(GPT4)
    counter.add([b"a b a", b""])
    counter.add([])
    counter.add([b"b " * 3])
    starts, arena = counter.words.starts, counter.words.arena.tobytes()
    counted = {
        arena[starts[k] : starts[k + 1]]: int(counter.counts[k]) for k in range(counter.words.size)
    }
    assert counted == {b"a": 1, b" b": 3, b" a": 1, b"b": 1, b" ": 1}
    assert counter.counts.dtype == np.int64
