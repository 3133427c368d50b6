"""Text in pieces: never half a character, never past a stop text, whatever the tokens are."""

import itertools
import random

import pytest

from minilm.text import stream_text


class Pieces:
    """A tokenizer whose token i is the i-th of some byte strings: all boundaries can be tried."""

    def __init__(self, *tokens: bytes):
        self.tokens = tokens

    def id_to_bytes(self, i: int) -> bytes:
        return self.tokens[i]


def streamed(tokens, stop=()):
    return list(stream_text(range(len(tokens)), Pieces(*tokens), stop))


def cuts(data: bytes):
    """Every way to cut `data` into tokens."""
    for n in range(len(data)):
        for places in itertools.combinations(range(1, len(data)), n):
            yield [data[a:b] for a, b in itertools.pairwise((0, *places, len(data)))]


def test_a_character_over_several_tokens_comes_whole():
    assert streamed([b"na", b"\xc3", b"\xafve"]) == ["na", "ïve"]
    assert streamed([b"\xf0\x9f", b"\x98", b"\x80"]) == ["😀"]


def test_any_cut_gives_the_same_text():
    text = "aé€😀"
    for tokens in cuts(text.encode()):
        pieces = streamed(tokens)
        assert "".join(pieces) == text
        assert "" not in pieces and not any("\ufffd" in piece for piece in pieces)


def test_bytes_that_are_not_utf8_are_replaced_as_decode_does():
    data = b"a\xff\xc3(\xe2\x82"
    expected = data.decode("utf-8", "replace")
    for tokens in cuts(data):
        assert "".join(streamed(tokens)) == expected


def first_stop(text, stops):
    """What is left of text, seen character by character: the reference."""
    for end in range(len(text) + 1):
        found = [len(s) for s in stops if text[:end].endswith(s)]
        if found:
            return text[: end - max(found)]
    return text


def test_stop_texts_over_any_token_boundaries():
    rng = random.Random(0)
    for _ in range(300):
        text = "".join(rng.choices("ab\n", k=rng.randint(1, 9)))
        sizes = [rng.randint(1, 3) for _ in range(rng.randint(0, 2))]
        stops = ["".join(rng.choices("ab\n", k=size)) for size in sizes]
        expected = first_stop(text, stops)
        data = text.encode()
        for tokens in itertools.islice(cuts(data), 40):
            assert "".join(streamed(tokens, stops)) == expected, (tokens, stops)


def test_only_what_may_be_a_stop_is_held_back():
    assert streamed([b"x", b"\n", b"y", b"\n", b"\n", b"z"], ["\n\n"]) == ["x", "\ny"]
    assert streamed([b"x", b"\n"], ["\n\n"]) == ["x", "\n"]


def test_nothing_more_is_asked_for_after_a_stop():
    asked = []

    def ids():
        for i in range(9):
            asked.append(i)
            yield i

    letters = [bytes([byte]) for byte in b"ab;cdefgh"]
    pieces = stream_text(ids(), Pieces(*letters), [";"])
    assert "".join(pieces) == "ab"
    assert asked == [0, 1, 2]


def test_the_reason_is_passed_on():
    def ids(reason):
        yield 0
        return reason

    def end(stop, reason):
        pieces = stream_text(ids(reason), Pieces(b"ab"), stop)
        while True:
            try:
                next(pieces)
            except StopIteration as over:
                return over.value

    assert end([], "length") == "length"
    assert end(["b"], "length") == "stop"
    assert end([], None) is None


@pytest.mark.parametrize("stop", ["text", [""], ["a", ""]])
def test_bad_stops(stop):
    with pytest.raises(ValueError, match="stop"):
        stream_text([], Pieces(), stop)
