"""The lesson: what it says by hand, and that the fast tokenizer does the same."""

import random

import pytest

from minilm.bench_tokenizer import corpus_prefix
from minilm.bpe import (
    BYTE_IDS,
    BYTE_ORDER,
    count_pairs,
    decode_bpe,
    encode_bpe,
    encode_piece,
    merge,
    to_ids,
    train_bpe,
    vocabulary,
)
from minilm.patterns import GPT2, GPT4
from minilm.tokenizer import Tokenizer


def test_bytes_have_the_ids_of_gpt2():
    assert sorted(BYTE_ORDER) == list(range(256))
    assert (BYTE_IDS[ord("!")], BYTE_IDS[ord("~")], BYTE_IDS[0xA1]) == (0, 93, 94)
    assert (BYTE_IDS[0], BYTE_IDS[ord(" ")], BYTE_IDS[0xAD]) == (188, 220, 255)


def test_pairs_are_counted_on_overlapping_places():
    a, b = 0, 1
    assert count_pairs({(a, a, a): 1, (a, b): 5}) == {(a, a): 2, (a, b): 5}


def test_merging_goes_from_left_to_right():
    assert merge((7, 7, 7), (7, 7), 8) == (8, 7)
    assert merge((1, 2, 1, 2, 3), (1, 2), 9) == (9, 9, 3)
    assert merge((), (1, 2), 9) == ()


def test_first_merges_of_the_docstring():
    merges = train_bpe(GPT4.split("low lower lowest"), 259)
    assert vocabulary(merges)[256:] == [b"lo", b"low", b" low"]


def test_of_equally_frequent_pairs_the_smallest_ids_win():
    merges = train_bpe(["ba", "ab", "zz"], 257)
    assert merges == [to_ids("ab")]


def test_training_ends_when_no_pair_is_left():
    assert len(train_bpe(["ab"], 1000)) == 1
    assert train_bpe([], 1000) == []
    with pytest.raises(ValueError, match="vocab_size: must be at least 256.*got 255"):
        train_bpe(["ab"], 255)


def test_earlier_merges_go_first():
    merges = train_bpe(["bc"] * 3 + ["ab"] * 2, 258)  # b c, then a b
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    assert vocabulary(merges)[256:] == [b"bc", b"ab"]
    assert [vocabulary(merges)[k] for k in encode_piece("abc", ranks)] == [b"a", b"bc"]


def test_any_bytes_come_back():
    rng = random.Random(0)
    merges = train_bpe(GPT4.split("the cat and the hat\n" * 3), 280)
    for _ in range(50):
        data = rng.randbytes(rng.randint(0, 20))
        assert decode_bpe(encode_bpe([data], merges), merges) == data


@pytest.mark.parametrize("pattern", [GPT2, GPT4], ids=lambda pattern: pattern.name)
def test_the_lesson_and_the_tokenizer_agree(pattern):
    """Same merges, same ids: on source code and on corpora full of ties."""
    rng = random.Random(1)
    corpora = [corpus_prefix(20_000)]
    corpora += [["".join(rng.choices("ab \n", k=60)) for _ in range(3)] for _ in range(20)]
    for texts in corpora:
        pieces = [piece for text in texts for piece in pattern.split(text)]
        merges = train_bpe(pieces, 300)
        tok = Tokenizer.train(texts, 300, special_tokens=(), pattern=pattern.name)
        tokens = vocabulary(merges)
        assert [(tokens[left], tokens[right]) for left, right in merges] == tok.merges
        text = texts[0][:500]
        ids = encode_bpe(pattern.split(text), merges)
        assert ids == tok.encode(text)
        assert decode_bpe(ids, merges) == text.encode()
