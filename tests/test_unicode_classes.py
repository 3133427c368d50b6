"""The fixed table of letters, numbers and spaces, against Hugging Face's regex engine."""

import pytest

from minilm import unicode_classes
from minilm.unicode_classes import LETTERS, NUMBERS, SPACES, ranges, twins


def test_table_is_hugging_faces_over_all_code_points(capsys):
    """The command prints what Hugging Face's engine says of each of 1,114,112 code points."""
    unicode_classes.main()
    printed = capsys.readouterr().out
    for name in ("LETTERS", "NUMBERS", "SPACES"):
        assert f'{name} = """{getattr(unicode_classes, name)}"""' in printed


@pytest.mark.parametrize(
    ("table", "size"),
    [(LETTERS, 141_028), (NUMBERS, 1_911), (SPACES, 25)],
    ids=["letters", "numbers", "spaces"],
)
def test_sizes_of_the_classes(table, size):
    assert sum(end - first for first, end in ranges(table)) == size


def test_ranges_are_half_open():
    assert ranges("41-5a aa") == [(0x41, 0x5B), (0xAA, 0xAB)]


def test_every_code_point_has_an_ascii_twin_of_its_own_class():
    table = twins()
    assert len(table) == 0x110000
    assert table[:128] == bytes(range(128)).decode()
    expected = {"é": "a", "漢": "a", "\u3000": "\t", "\x85": "\t", "４": "0", "²": "0", "😀": "."}
    assert {char: table[ord(char)] for char in expected} == expected
    assert table[0xD800] == table[0x10FFFF] == "."  # a surrogate, a code point without a meaning


def test_long_s_is_the_only_character_that_folds_to_a_letter_of_a_contraction():
    folds = [chr(c) for c in range(128, 0x110000) if chr(c).casefold() in set("sdmtlver")]
    assert folds == ["ſ"]
    assert twins()[ord("ſ")] == "S"
