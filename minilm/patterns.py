r"""The two split patterns, and the splitter in plain Python.

Before anything is merged, text is cut into pieces that look like words, and no token ever reaches
across a cut. The pattern that says where is part of a tokenizer: another pattern, other ids.

    gpt2    hello|'s| world|   | 1234|\n
    gpt4    hello|'s| world|  | |123|4|\n        numbers by three digits, contractions in any case

A pattern is read by Python's own `re`, on the ASCII twins of the characters (unicode_classes.py):
there `\p{L}` is `a-zA-Z` and `\p{N}` is `0-9`. So the pieces are those of Hugging Face's engine,
whatever Unicode version Python has.

Sources: GPT-2's `encoder.py` (Radford et al. 2019), tiktoken's `cl100k_base`.
"""

import re
from dataclasses import dataclass
from functools import cached_property

from .unicode_classes import twins


@dataclass(frozen=True)
class Pattern:
    """One way to cut text into pieces.

    `regex` is the text that goes into tokenizer.json; `spellings` are other regexes that cut every
    text in the same places, as other people's files have them.
    """

    name: str
    regex: str
    spellings: tuple[str, ...]

    @cached_property
    def twin_regex(self) -> re.Pattern:
        inside = self.regex.replace(r"\p{L}\p{N}", "a-zA-Z0-9")  # within [^...]
        return re.compile(inside.replace(r"\p{L}", "[a-zA-Z]").replace(r"\p{N}", "[0-9]"), re.ASCII)

    def split(self, text: str) -> list[str]:
        """The pieces of `text`, in order; joined they are `text` again."""
        if text.isascii():
            return self.twin_regex.findall(text)
        pieces, start = [], 0
        for twin in self.twin_regex.findall(text.translate(twins())):
            end = start + len(twin)
            pieces.append(text[start:end])
            start = end
        return pieces


GPT2 = Pattern(
    name="gpt2",
    regex=r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    spellings=(
        r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
    ),
)
GPT4 = Pattern(
    name="gpt4",
    regex=r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
    spellings=(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
)
PATTERNS = {pattern.name: pattern for pattern in (GPT2, GPT4)}


def pattern_named(name: str) -> Pattern:
    if name not in PATTERNS:
        choices = " or ".join(repr(known) for known in PATTERNS)
        raise ValueError(f"pattern: must be {choices}, got {name!r}")
    return PATTERNS[name]


def pattern_spelled(regex: str) -> Pattern | None:
    """The pattern that a regex in a file means, or None for one that is not known here."""
    for pattern in PATTERNS.values():
        if regex == pattern.regex or regex in pattern.spellings:
            return pattern
    return None
