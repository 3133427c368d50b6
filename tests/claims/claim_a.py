"""Claim a: BPE splits raw bytes into sub-words drawn from a learned vocabulary. Each check has a
control that it rejects."""

import random

import pytest

from minilm import Tokenizer, bpe

LESSON = """The lighthouse keeper counted the ships. In the morning there were three ships, in the
evening there were five, and at night he counted the lights of the ships that he could not see."""


@pytest.fixture(scope="module")
def keeper():
    return Tokenizer.train([LESSON], 257 + 60)


def is_built_from_merges(tokens: list[bytes], first: int) -> bool:
    """Is every token from `first` on the join of two tokens that come before it?"""
    for k in range(first, len(tokens)):
        before = set(tokens[:k])
        word = tokens[k]
        if not any(word[:i] in before and word[i:] in before for i in range(1, len(word))):
            return False
    return True


def test_the_vocabulary_is_bytes_and_joins_of_what_was_there(keeper):
    tokens = [keeper.id_to_bytes(i) for i in range(1, keeper.vocab_size)]
    assert sorted(tokens[:256]) == [bytes([b]) for b in range(256)]
    assert len(tokens) == 256 + 60 and is_built_from_merges(tokens, 256)
    # Control: a word that was put in without its parts.
    assert not is_built_from_merges([*tokens[:300], b"xylophone", *tokens[300:]], 256)


def test_a_new_word_falls_into_learned_sub_words(keeper):
    ids = keeper.encode(" counters")  # ` counted` was learned, ` counters` was never seen
    pieces = [keeper.id_to_bytes(i) for i in ids]
    assert b"".join(pieces) == b" counters" and 1 < len(ids) < len(b" counters")
    assert max(map(len, pieces)) >= 4
    # Control: a vocabulary that has learned nothing spells it out.
    spelled = Tokenizer.train([LESSON], 257)
    assert len(spelled.encode(" counters")) == len(b" counters")


def survives(encode, decode_bytes) -> bool:
    """Does any sequence of bytes come back?"""
    draw = random.Random(0)
    samples = [draw.randbytes(draw.randint(0, 40)) for _ in range(300)]
    return all(decode_bytes(encode(data)) == data for data in samples)


def test_any_bytes_come_back(keeper):
    assert survives(keeper.encode, keeper.decode_bytes)
    # Control: a tokenizer of characters, which has to replace what is no UTF-8.
    assert not survives(lambda b: b.decode("utf-8", "replace"), lambda s: s.encode("utf-8"))


def hugging_face_merges(text: str, vocab_size: int) -> list[tuple[bytes, bytes]]:
    """The merges of the `tokenizers` library on the same pieces."""
    tokenizers = pytest.importorskip("tokenizers")
    from minilm.patterns import GPT4

    theirs = tokenizers.Tokenizer(tokenizers.models.BPE())
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Split(tokenizers.Regex(GPT4.regex), "isolated"),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    theirs.train_from_iterator([text], trainer)
    import json

    from minilm.tokenizer_json import unspell

    pairs = json.loads(theirs.to_str())["model"]["merges"]
    return [(unspell(left), unspell(right)) for left, right in pairs]


def lesson_merges(pieces, vocab_size: int, sign: int = 1) -> list[tuple[bytes, bytes]]:
    """The lesson's trainer; sign = −1 breaks ties the wrong way round."""
    words = {bpe.to_ids(piece): pieces.count(piece) for piece in pieces}
    tokens = [bytes([byte]) for byte in bpe.BYTE_ORDER]
    merges = []
    while len(tokens) < vocab_size:
        pairs = bpe.count_pairs(words)
        best = min(pairs, key=lambda p: (-pairs[p], sign * p[0], sign * p[1]))
        merges.append((tokens[best[0]], tokens[best[1]]))
        tokens.append(b"".join(merges[-1]))
        words = {bpe.merge(w, best, len(tokens) - 1): n for w, n in words.items()}
    return merges


def test_the_same_text_gives_everyone_the_same_merges(keeper):
    expected = hugging_face_merges(LESSON, 257 + 60)
    assert keeper.merges == expected
    pieces = keeper.split(LESSON)
    assert lesson_merges(pieces, 256 + 60) == expected
    # Control: ties settled the other way round give another vocabulary.
    assert lesson_merges(pieces, 256 + 60, sign=-1) != expected


def crosses_words(tok: Tokenizer) -> bool:
    """Is there a token with a space behind its first byte?"""
    return any(b" " in tok.id_to_bytes(i)[1:].strip(b" ") for i in range(1, tok.vocab_size))


def test_no_token_reaches_across_words(keeper):
    assert not crosses_words(keeper)
    # Control: without a split pattern the most frequent pairs do.
    merges = bpe.train_bpe([LESSON], 256 + 60)
    assert any(b" " in token[1:] for token in bpe.vocabulary(merges)[256:])
