"""Special tokens: names in a text that stand for one id each, such as <|endoftext|>."""

import re
from collections.abc import Iterable

from .plain import to_text


class SpecialTokens:
    """Finds special tokens in texts. `ids`: the id of each name."""

    def __init__(self, ids: dict[str, int]):
        self.ids = ids
        self._bytes_ids = {name.encode("utf-8"): number for name, number in ids.items()}
        self._regexes: dict[tuple[frozenset[str], type], re.Pattern] = {}

    def allowed(self, choice: str | Iterable[str]) -> frozenset[str]:
        """The names that "all", "none" or a set of names mean; ValueError for anything else."""
        if isinstance(choice, str):
            if choice not in ("all", "none"):
                raise ValueError(f'allowed_special: must be "all", "none" or a set, got {choice!r}')
            return frozenset(self.ids if choice == "all" else ())
        names = frozenset(choice)
        for name in names:
            if name not in self.ids:
                raise ValueError(f"allowed_special: must be among {list(self.ids)}, got {name!r}")
        return names

    def split(self, text: str | bytes, names: frozenset[str]) -> list:
        """`[text, id, text, id, ..., text]`: the text around the names, and their ids. The first
        name counts, of several at the same place the longest (as in Hugging Face `tokenizers`)."""
        if not names:
            return [text]
        parts = self._regex(names, type(text)).split(text)
        ids = self.ids if isinstance(text, str) else self._bytes_ids
        parts[1::2] = [ids[name] for name in parts[1::2]]
        return parts

    def _regex(self, names: frozenset[str], kind: type) -> re.Pattern:
        if (names, kind) not in self._regexes:
            longest_first = sorted(names, key=lambda name: (-len(name.encode("utf-8")), name))
            text = "(" + "|".join(map(re.escape, longest_first)) + ")"
            self._regexes[names, kind] = re.compile(text if kind is str else text.encode("utf-8"))
        return self._regexes[names, kind]


def checked_names(special_tokens: Iterable[str]) -> list[str]:
    """The names as a list; an error where one cannot be a special token."""
    if isinstance(special_tokens, str):
        raise TypeError(f"special_tokens: must be several str, got the one str {special_tokens!r}")
    names = list(special_tokens)
    for name in names:
        if not isinstance(name, str) or not name:
            raise ValueError(f"special_tokens: must be str and not empty, got {name!r}")
        if names.count(name) > 1:
            raise ValueError(f"special_tokens: must differ, got {name!r} twice")
        if to_text(name) != name:
            raise ValueError(f"special_tokens: must be text, got the lone surrogate in {name!r}")
    return names
