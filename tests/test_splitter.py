"""Where text is cut: plain Python, the compiled table, Hugging Face and tiktoken agree."""

import random

import numpy as np
import pytest
from tokenizers import Regex, pre_tokenizers

from minilm import plain, splitter
from minilm.bench_tokenizer import corpus_prefix
from minilm.patterns import GPT2, GPT4, PATTERNS, pattern_named, pattern_spelled
from minilm.unicode_classes import LETTERS, NUMBERS, SPACES, ranges
from minilm.words import join

both = pytest.mark.parametrize("pattern", [GPT2, GPT4], ids=lambda pattern: pattern.name)

ASCII = "  \n\r\t'''sSdmtlLvVeErR 12345 ab.!-\x1c\x0b\0"
ALPHABET = list(ASCII) * 4 + list("ſéßK\u3000\u2028\x85漢字кА٣²½😀\u0301\u200d\ufeff")
BROKEN = [b"a", b" ", b"'s", b"\n", b"1", b"\xe2", b"\x82", b"\xac", b"\xf0\x9f\x98\x80", b"\xff"]
BROKEN += [b"\xf0\x9f", b"\xc3", b"\xc3\xa9", b"\xed\xa0\x80", b"\xc0\x80", b"\xf4\x90\x80\x80"]


def random_texts(n: int, seed: int = 0, longest: int = 40) -> list[str]:
    rng = random.Random(seed)
    return ["".join(rng.choices(ALPHABET, k=rng.randint(0, longest))) for _ in range(n)]


def cut(pattern, texts: list[bytes]) -> list[bytes]:
    """All pieces of all texts by the compiled table."""
    buffer, bounds = join(texts)
    whole, pieces = b"".join(texts), []
    for start, ends in splitter.cut(pattern, buffer, bounds):
        for end in ends.tolist():
            pieces.append(whole[start:end])
            start = end
    return pieces


def split(pattern, texts: list[bytes]) -> list[bytes]:
    """The same in plain Python."""
    return [plain.to_bytes(p) for text in texts for p in pattern.split(plain.to_text(text))]


def hugging_face(regex: str, text: str) -> list[str]:
    splitting = pre_tokenizers.Split(Regex(regex), "isolated")
    return [piece for piece, _ in splitting.pre_tokenize_str(text)]


@pytest.mark.parametrize(
    ("pattern", "pieces"),
    [
        (
            GPT2,
            [
                "I",
                "'ll",
                " say",
                " 12345",
                "   ",
                " x",
                "\t",
                "y",
                "!!",
                "\n",
                "\n",
                "'",
                "LL",
                " ",
            ],
        ),
        (GPT4, ["I", "'ll", " say", " ", "123", "45", "   ", " x", "\ty", "!!\n\n", "'LL", " "]),
    ],
    ids=["gpt2", "gpt4"],
)
def test_pieces_of_a_known_text(pattern, pieces):
    text = "I'll say 12345    x\ty!!\n\n'LL "
    assert pattern.split(text) == pieces
    assert cut(pattern, [text.encode()]) == [piece.encode() for piece in pieces]


@both
def test_random_texts_are_cut_as_hugging_face_does(pattern):
    for text in random_texts(3000):
        assert pattern.split(text) == hugging_face(pattern.regex, text), repr(text)


@both
def test_each_kind_of_character_in_each_place(pattern):
    """The characters at the ends of every range of the tables, and their neighbours outside."""
    edges = {c for table in (LETTERS, NUMBERS, SPACES) for r in ranges(table) for c in r}
    edges |= {c - 1 for c in edges} | set(range(256))
    chars = [chr(c) for c in sorted(edges) if 0 <= c < 0x110000 and not 0xD800 <= c < 0xE000]
    text = "".join(f"'{c}e {c}a1{c}1.{c}  {c}\n{c}{c}' {c}" for c in chars)
    pieces = hugging_face(pattern.regex, text)
    assert pattern.split(text) == pieces
    assert cut(pattern, [text.encode()]) == [piece.encode() for piece in pieces]


def test_byte_level_of_hugging_face_cuts_like_gpt2():
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    for text in random_texts(1000, seed=1):
        pieces = [text[start:end] for _, (start, end) in level.pre_tokenize_str(text)]
        assert GPT2.split(text) == pieces, repr(text)


@pytest.mark.parametrize(
    ("pattern", "spelling"),
    [(p, spelling) for p in PATTERNS.values() for spelling in p.spellings],
    ids=lambda value: getattr(value, "name", None),
)
def test_other_spellings_of_a_pattern_cut_in_the_same_places(pattern, spelling):
    assert pattern_spelled(spelling) is pattern
    for text in random_texts(1500, seed=2):
        assert pattern.split(text) == hugging_face(spelling, text), repr(text)


@both
def test_compiled_and_plain_cut_alike(pattern):
    texts = [text.encode() for text in random_texts(3000, seed=3)]
    assert cut(pattern, texts) == split(pattern, texts)


@both
def test_compiled_and_plain_cut_bytes_alike_that_are_no_utf8(pattern):
    rng = random.Random(4)
    texts = [b"".join(rng.choices(BROKEN, k=rng.randint(0, 15))) for _ in range(3000)]
    assert cut(pattern, texts) == split(pattern, texts)


@both
@pytest.mark.parametrize("chunk", [1, 2, 7, 64])
def test_pieces_do_not_depend_on_the_size_of_chunks(pattern, chunk, monkeypatch):
    texts = [text.encode() for text in random_texts(200, seed=5)] + [b"a" * 300, b" " * 300, b""]
    expected = split(pattern, texts)
    monkeypatch.setattr(splitter, "CHUNK_BYTES", chunk)
    assert cut(pattern, texts) == expected


@both
def test_source_code_is_cut_alike(pattern):
    texts = [text.encode() for text in corpus_prefix(1_000_000)]
    pieces = cut(pattern, texts)
    assert b"".join(pieces) == b"".join(texts)
    assert pieces == split(pattern, texts)


@both
def test_nothing_to_cut(pattern):
    assert pattern.split("") == []
    assert cut(pattern, []) == cut(pattern, [b"", b""]) == []


@both
def test_no_state_is_missing_from_the_table(pattern):
    """Every state that can be reached has a row, and every cut leaves at least one piece behind."""
    table = splitter.table(pattern).reshape(-1, 256)
    reached, todo = set(), [splitter.START]
    while todo:
        state = todo.pop()
        if state not in reached:
            reached.add(state)
            todo += set((table[state, :128] & splitter.STATE_BITS).tolist())
    assert reached <= set(range(splitter.LINE_BLANKS + 1))
    ends = table[sorted(reached - {splitter.START}), splitter.END_COLUMN]
    assert (ends & splitter.HERE).all()  # a text never ends without a cut
    assert table[splitter.START, splitter.END_COLUMN] == 0


def test_twins_are_bytes_of_the_kernel():
    assert splitter.twin_bytes().dtype == np.uint8
    assert len(splitter.twin_bytes()) == 0x110000


def test_unknown_pattern_is_an_error_that_names_the_known_ones():
    with pytest.raises(ValueError, match="pattern: must be 'gpt2' or 'gpt4', got 'gpt5'"):
        pattern_named("gpt5")
    assert pattern_spelled(r"\w+") is None
