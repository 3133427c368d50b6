"""The file format of Hugging Face `tokenizers`: reading and writing tokenizer.json.

Only what a byte-level BPE tokenizer needs is read; anything else in the file that would change an
id (a normalizer, another pre-tokenizer, a prefix space, ...) is an error that names the field.
Reading runs no code, and a file may have MAX_BYTES at most.

In the file a token is text, not bytes: each byte is written as one visible character, printable
ones as themselves and the others as U+0100, U+0101, ... (so a space is `Ġ`).
"""

import json
from dataclasses import dataclass
from pathlib import Path

from .bpe import BYTE_ORDER, PRINTABLE
from .patterns import GPT2, PATTERNS, Pattern, pattern_spelled

MAX_BYTES = 256 << 20
MAX_ID = 1 << 24

CHARACTERS = [chr(code) for code in PRINTABLE] + [
    chr(0x100 + k) for k in range(256 - len(PRINTABLE))
]
CHAR_OF_BYTE = dict(zip(BYTE_ORDER, CHARACTERS, strict=True))
BYTE_OF_CHAR = {char: byte for byte, char in CHAR_OF_BYTE.items()}


def unspell(text: str) -> bytes | None:
    """`"Ġthe"` -> `b" the"`; None where a character stands for no byte."""
    try:
        return bytes([BYTE_OF_CHAR[char] for char in text])
    except KeyError:
        return None


@dataclass
class Contents:
    """What a tokenizer.json says: `vocab` and `merges` in the file's own spelling."""

    vocab: dict[str, int]  # ordinary tokens and special ones
    merges: list[tuple[str, str]]
    special_tokens: dict[str, int]
    pattern: Pattern
    ignore_merges: bool


def dump(contents: Contents) -> bytes:
    """The file, byte for byte as Hugging Face's own `save` writes it."""
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    if contents.pattern is GPT2:
        pre_tokenizer = level | {"use_regex": True}
    else:
        regex = {"Regex": contents.pattern.regex}
        split = {"type": "Split", "pattern": regex, "behavior": "Isolated", "invert": False}
        pre_tokenizer = {"type": "Sequence", "pretokenizers": [split, level | {"use_regex": False}]}
    flags = {"single_word": False, "lstrip": False, "rstrip": False}
    flags |= {"normalized": False, "special": True}
    by_id = sorted(contents.vocab.items(), key=lambda item: item[1])
    specials = sorted(contents.special_tokens.items(), key=lambda item: item[1])
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": number, "content": name} | flags for name, number in specials],
        "normalizer": None,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": level | {"add_prefix_space": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": contents.ignore_merges,
            "vocab": dict(by_id),
            "merges": contents.merges,
        },
    }
    return json.dumps(document, ensure_ascii=False, indent=2).encode("utf-8")


def read(path: Path) -> Contents:
    """Read a tokenizer.json. Anything that is wrong is a ValueError that names file and field."""
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise ValueError(f"{path}: has {size:,} bytes, a tokenizer.json may have {MAX_BYTES:,}")
    return parse(path.read_bytes(), str(path))


def parse(data: bytes, where: str = "tokenizer.json") -> Contents:
    try:
        document = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: is not a tokenizer.json ({error})") from None
    reader = _Reader(where)
    document = reader.expect("the file", document, dict)
    model = reader.expect("model", document.get("model"), dict)
    if model.get("type", "BPE") != "BPE" or "vocab" not in model or "merges" not in model:
        kind = model.get("type")
        raise reader.wrong("model.type", f"must be 'BPE' with vocab and merges, got {kind!r}")
    pattern = reader.pattern(document.get("pre_tokenizer"))
    reader.nothing_else(document, model)
    vocab = reader.vocab(model["vocab"])
    special_tokens = reader.special_tokens(document.get("added_tokens") or [], vocab)
    merges = reader.merges(model["merges"], vocab)
    ignore_merges = model.get("ignore_merges") or False
    return Contents(vocab, merges, special_tokens, pattern, bool(ignore_merges))


class _Reader:
    """Checks of one file; every error begins with the file's name and the field's."""

    def __init__(self, where: str):
        self.where = where

    def wrong(self, field: str, problem: str) -> ValueError:
        return ValueError(f"{self.where}: {field} {problem}")

    def expect(self, field: str, value, kind: type):
        names = {dict: "an object", list: "a list", str: "text", int: "a whole number"}
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise self.wrong(field, f"must be {names[kind]}, got {str(value)[:40]!r}")
        return value

    def number(self, field: str, value) -> int:
        if not 0 <= self.expect(field, value, int) < MAX_ID:
            raise self.wrong(field, f"must be an id from 0 to {MAX_ID - 1}, got {value}")
        return value

    def nothing_else(self, document: dict, model: dict) -> None:
        """Fields that this package does not act on must say nothing."""
        for field in ("normalizer", "truncation", "padding"):
            if document.get(field) is not None:
                raise self.wrong(field, "must be null: it is not supported")
        for field in ("post_processor", "decoder"):
            part = document.get(field)
            if part is not None and self.expect(field, part, dict).get("type") != "ByteLevel":
                raise self.wrong(field, f"must be ByteLevel or null, got {part.get('type')!r}")
        for field in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
            if model.get(field):
                raise self.wrong(f"model.{field}", f"must be null, got {model[field]!r}")

    def pattern(self, part) -> Pattern:
        parts = [part]
        if isinstance(part, dict) and part.get("type") == "Sequence":
            parts = self.expect("pre_tokenizer.pretokenizers", part.get("pretokenizers"), list)
        parts = [self.expect("pre_tokenizer", part, dict) for part in parts]
        kinds = [part.get("type") for part in parts]
        if kinds not in (["ByteLevel"], ["Split", "ByteLevel"]):
            raise self.wrong(
                "pre_tokenizer", f"must be ByteLevel or Split and ByteLevel, got {kinds}"
            )
        level = parts[-1]
        if level.get("add_prefix_space", True):
            raise self.wrong("pre_tokenizer.add_prefix_space", "must be false, got true")
        if level.get("use_regex", True) != (len(parts) == 1):
            raise self.wrong(
                "pre_tokenizer.use_regex", "must be false after a Split and true without one"
            )
        if len(parts) == 1:
            return GPT2
        split = parts[0]
        regex = self.expect("pre_tokenizer.pattern", split.get("pattern"), dict).get("Regex")
        pattern = pattern_spelled(regex)
        if pattern is None:
            known = " or ".join(PATTERNS)
            raise self.wrong(
                "pre_tokenizer.pattern", f"must be the split of {known}, got {str(regex)[:60]!r}"
            )
        if split.get("behavior") != "Isolated" or split.get("invert"):
            raise self.wrong("pre_tokenizer.behavior", "must be Isolated and not inverted")
        return pattern

    def vocab(self, part) -> dict[str, int]:
        vocab = self.expect("model.vocab", part, dict)
        for token, number in vocab.items():
            self.number(f"model.vocab[{token!r}]", number)
        if len(set(vocab.values())) != len(vocab):
            raise self.wrong("model.vocab", "must give each token an id of its own")
        for char in CHARACTERS:
            if char not in vocab:
                raise self.wrong("model.vocab", f"must have all 256 bytes, {char!r} is missing")
        return vocab

    def special_tokens(self, part, vocab: dict[str, int]) -> dict[str, int]:
        """The added tokens; those that are not in `vocab` are put there."""
        special: dict[str, int] = {}
        ids = set(vocab.values())
        for k, entry in enumerate(self.expect("added_tokens", part, list)):
            field = f"added_tokens[{k}]"
            entry = self.expect(field, entry, dict)
            name = self.expect(f"{field}.content", entry.get("content"), str)
            number = self.number(f"{field}.id", entry.get("id"))
            for flag in ("single_word", "lstrip", "rstrip"):
                if entry.get(flag):
                    raise self.wrong(f"{field}.{flag}", "must be false: it is not supported")
            if not name or name in special:
                raise self.wrong(f"{field}.content", f"must be a new token, got {name!r}")
            if vocab.get(name, number) != number or (name not in vocab and number in ids):
                raise self.wrong(f"{field}.id", f"must be the id of {name!r} alone, got {number}")
            special[name] = vocab[name] = number
            ids.add(number)
        return special

    def merges(self, part, vocab: dict[str, int]) -> list[tuple[str, str]]:
        """Merges as pairs; older files have "left right" as one text."""
        merges = []
        for k, entry in enumerate(self.expect("model.merges", part, list)):
            pair = entry.split(" ") if isinstance(entry, str) else entry
            if (
                not isinstance(pair, list)
                or len(pair) != 2
                or not all(isinstance(side, str) for side in pair)
            ):
                raise self.wrong(f"model.merges[{k}]", f"must be two tokens, got {entry!r}")
            left, right = pair
            for token in (left, right, left + right):
                if token not in vocab:
                    raise self.wrong(f"model.merges[{k}]", f"needs {token!r} in model.vocab")
            merges.append((left, right))
        return merges
