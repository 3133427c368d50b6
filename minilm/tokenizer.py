"""`Tokenizer`: text to ids and back, with the merges and ids of Hugging Face `tokenizers`.

    text ──special tokens──▶ parts ──pattern──▶ pieces ──merges──▶ ids

The algorithm is told in bpe.py. Here stand the class and the choice between two ways to do each
step: plain Python (plain.py) for small inputs, compiled by Numba (counter.py, merger.py,
encoder.py) for large ones. Both give the same merges and ids. Compiling happens once and is kept on
disk.

Ids: special tokens first, in the order given, then the 256 bytes (bpe.BYTE_ORDER), then one new
token for each merge.

Text is bytes. A str means its UTF-8. Bytes that are no UTF-8, and the three bytes of a lone
surrogate in a str, are single characters that are neither letter, number nor space; so
`decode_bytes(encode(data)) == data` for any bytes. `decode` shows such bytes as U+FFFD.
"""

import hashlib
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path

import numpy as np

from . import plain, tokenizer_json
from .bpe import BYTE_ORDER
from .patterns import pattern_named
from .tokenizer_json import CHAR_OF_BYTE, Contents, unspell

Text = str | bytes

BATCH_BYTES = 8 << 20  # texts are taken in batches of this size, which bounds the memory
PLAIN_BYTES = 100_000  # inputs up to this size never wait for a compiler
END_OF_TEXT = "<|endoftext|>"


class Tokenizer:
    """A byte-level BPE tokenizer. Made by `Tokenizer.train` or `Tokenizer.load`.

    special_tokens  dict[str, int], in the order of their ids
    special_ids     frozenset[int]
    eot_id          the id of "<|endoftext|>", or None
    vocab_size      one more than the largest id
    pattern         "gpt2" or "gpt4"
    merges          list of (left, right) bytes, in the order in which they were learned
    """

    def __init__(self, contents: Contents):
        vocab = contents.vocab
        specials = sorted(contents.special_tokens.items(), key=lambda item: item[1])
        self.special_tokens: dict[str, int] = dict(specials)
        self.special_ids = frozenset(self.special_tokens.values())
        self.eot_id = self.special_tokens.get(END_OF_TEXT)
        self.vocab_size = max(vocab.values()) + 1
        self.pattern = contents.pattern.name
        self._contents = contents
        self._byte_ids = [vocab[CHAR_OF_BYTE[byte]] for byte in range(256)]
        self._merges = [
            (vocab[left], vocab[right], vocab[left + right]) for left, right in contents.merges
        ]
        self._tokens = {number: _token_bytes(token) for token, number in vocab.items()}
        made = {new_id for _, _, new_id in self._merges} | set(self._byte_ids)
        for name, number in self.special_tokens.items():
            data = name.encode("utf-8")
            if number in made and self._tokens[number] != data:
                raise ValueError(
                    f"special_tokens: {name!r} is how tokenizer.json spells the bytes "
                    f"{self._tokens[number]!r}, which have a token of their own; choose another"
                )
            self._tokens[number] = data
        self._plain = plain.PlainEncoder(self._byte_ids, self._merges)

    # Making one

    @classmethod
    def train(
        cls,
        texts: Iterable[Text],
        vocab_size: int,
        special_tokens: Iterable[str] = (END_OF_TEXT,),
        pattern: str = "gpt4",
        min_frequency: int = 0,
    ) -> "Tokenizer":
        """Learn merges from texts; the result has at most `vocab_size` tokens.

        texts           any iterable of str (or bytes), read once; a text is never merged with the
        next vocab_size      at least 256 + the number of special tokens; it is reached unless the
        texts run
                        out of pairs
        special_tokens  get the ids 0, 1, ...; in the texts themselves they mean nothing
        pattern         "gpt2" or "gpt4": where text is cut into pieces
        min_frequency   a pair that occurs less often is not merged

        Merges and ids are those of Hugging Face's `BpeTrainer` (with the 256 bytes as its initial
        alphabet): the most frequent pair first, of equally frequent ones the pair with the smallest
        ids. Counts are 64-bit. Raises ValueError when no text holds anything.
        """
        chosen = pattern_named(pattern)
        names = _special_names(special_tokens)
        if not isinstance(vocab_size, int) or isinstance(vocab_size, bool):
            raise TypeError(f"vocab_size: must be a whole number, got {vocab_size!r}")
        if vocab_size < 256 + len(names):
            raise ValueError(
                f"vocab_size: must be at least {256 + len(names)}, the 256 bytes and "
                f"{len(names)} special tokens, got {vocab_size}"
            )
        vocab = {name: number for number, name in enumerate(names)}
        for byte in BYTE_ORDER:
            vocab.setdefault(CHAR_OF_BYTE[byte], len(vocab))
        merges = _learn(texts, chosen, vocab, vocab_size, min_frequency)
        # A pair that was merged twice counts where it was merged last, as in Hugging Face's trainer.
        last = {(left, right): k for k, (left, right, _) in enumerate(merges)}
        spelling = list(vocab)
        pairs = [
            (spelling[left], spelling[right])
            for k, (left, right, _) in enumerate(merges)
            if last[left, right] == k
        ]
        special = {name: vocab[name] for name in names}
        return cls(Contents(vocab, pairs, special, chosen, ignore_merges=False))

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Tokenizer":
        """Read a tokenizer.json of Hugging Face `tokenizers`.

        Raises ValueError, naming the file and the field, when it is not byte-level BPE with one of
        the known split patterns, or does something that is not supported; FileNotFoundError when
        there is none.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"path: there is no tokenizer file {str(path)!r}")
        return cls(tokenizer_json.read(path))

    def save(self, path: str | os.PathLike) -> None:
        """Write tokenizer.json, which `Tokenizer.load` and Hugging Face `tokenizers` read.

        The file appears whole or not at all.
        """
        path = Path(path)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(self.to_json())
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise

    def to_json(self) -> bytes:
        """The bytes of the file that `save` writes."""
        return tokenizer_json.dump(self._contents)

    def sha256(self) -> str:
        """Hex digest of `to_json()`: equal for tokenizers that give the same ids."""
        return hashlib.sha256(self.to_json()).hexdigest()

    def __reduce__(self):
        return _from_json, (self.to_json(),)

    def __repr__(self) -> str:
        return (
            f"Tokenizer(vocab_size={self.vocab_size}, pattern={self.pattern!r}, "
            f"special_tokens={list(self.special_tokens)})"
        )

    # Looking into it

    @property
    def merges(self) -> list[tuple[bytes, bytes]]:
        tokens = self._tokens
        return [(tokens[left], tokens[right]) for left, right, _ in self._merges]

    def id_to_bytes(self, token_id: int) -> bytes:
        """The bytes of one token, those of its name for a special one."""
        return self.decode_bytes([token_id])

    def split(self, text: Text) -> list[bytes]:
        """The pieces that `text` is cut into before anything is merged."""
        pieces = pattern_named(self.pattern).split(plain.to_text(text))
        return [plain.to_bytes(piece) for piece in pieces]

    # Using it

    def encode(self, text: Text, allowed_special: str | Iterable[str] = "all") -> list[int]:
        """The ids of a text; `[]` for an empty one.

        allowed_special  which special tokens, written out in the text, become their one id: "all"
        (as
                         Hugging Face does), "none", or a set of them. The others are text like any.
        """
        special = self._special_regex(allowed_special)
        text = plain.to_text(_checked(text))
        split = pattern_named(self.pattern).split
        ids: list[int] = []
        for k, part in enumerate([text] if special is None else special.split(text)):
            if k % 2:
                ids.append(self.special_tokens[part])
            elif len(part) > PLAIN_BYTES:
                ids += self._compiled.encode([plain.to_bytes(part)])[0].tolist()
            else:
                ids += self._plain.encode(part, split)
        return ids

    def encode_array(
        self, texts: Iterable[Text], allowed_special: str | Iterable[str] = "none"
    ) -> tuple[np.ndarray, np.ndarray]:
        """The ids of many texts in one array: `(ids, offsets)`.

        ids      int32, all ids one after the other
        offsets  int64, one more than there are texts: text k has `ids[offsets[k] : offsets[k + 1]]`

        Special tokens that are written out in the texts are text, unless allowed.
        """
        special = self._special_regex(allowed_special)
        ids = [np.zeros(0, dtype=np.int32)]
        lengths = [np.zeros(1, dtype=np.int64)]
        for batch in _batches(texts):
            large = sum(map(len, batch)) > PLAIN_BYTES
            if large and not (special and any(special.search(plain.to_text(t)) for t in batch)):
                some_ids, some_lengths = self._compiled.encode(batch)
            else:
                lists = [self.encode(data, allowed_special) for data in batch]
                some_ids = np.array([i for part in lists for i in part], dtype=np.int32)
                some_lengths = np.array([len(part) for part in lists], dtype=np.int64)
            ids.append(some_ids)
            lengths.append(some_lengths)
        return np.concatenate(ids), np.cumsum(np.concatenate(lengths))

    @cached_property
    def _compiled(self):
        """The encoder for large inputs; numba is imported only here."""
        from .encoder import CompiledEncoder

        return CompiledEncoder(self._plain, pattern_named(self.pattern))

    def decode(self, ids: Iterable[int]) -> str:
        """The text behind `ids`; bytes that are no UTF-8, such as half a character, become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes behind `ids`: any iterable, array or tensor of whole numbers."""
        if hasattr(ids, "tolist"):
            ids = ids.tolist()
        ids = list(ids)
        try:
            return b"".join(map(self._tokens.__getitem__, ids))
        except KeyError:
            k = next(k for k, number in enumerate(ids) if number not in self._tokens)
            raise ValueError(
                f"ids: must be tokens, 0 to {self.vocab_size - 1}, got {ids[k]!r} at place {k}"
            ) from None

    def _special_regex(self, allowed: str | Iterable[str]) -> re.Pattern | None:
        """A regex with one group that finds the allowed special tokens, the longest where two fit."""
        if isinstance(allowed, str):
            if allowed not in ("all", "none"):
                raise ValueError(
                    f'allowed_special: must be "all", "none" or a set, got {allowed!r}'
                )
            names = frozenset(self.special_tokens if allowed == "all" else ())
        else:
            names = frozenset(allowed)
        if names not in self._special_regexes:
            for name in names:
                if name not in self.special_tokens:
                    raise ValueError(
                        f"allowed_special: must be among {list(self.special_tokens)}, got {name!r}"
                    )
            choices = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
            self._special_regexes[names] = re.compile(f"({choices})") if names else None
        return self._special_regexes[names]

    @cached_property
    def _special_regexes(self) -> dict[frozenset[str], re.Pattern | None]:
        return {}


def _learn(
    texts: Iterable[Text], pattern, vocab: dict[str, int], vocab_size: int, min_frequency: int
) -> list[plain.Merge]:
    """The merges of `texts`; `vocab` gets the new tokens. Large inputs are counted compiled."""
    batches = _batches(texts)
    first = next(batches, [])
    if not any(first):
        raise ValueError("texts: must hold some text to learn from, got none")
    byte_ids = [vocab[CHAR_OF_BYTE[byte]] for byte in range(256)]
    if sum(map(len, first)) <= PLAIN_BYTES:  # less than a batch, so it is all there is
        counts = plain.count_pieces(first, pattern)
        return plain.learn_merges(counts, byte_ids, vocab, vocab_size, min_frequency)
    from .counter import PieceCounter
    from .merger import learn_merges

    counter = PieceCounter(pattern)
    counter.add(first)
    for batch in batches:
        counter.add(batch)
    # A special token's name is no token's bytes, unless it is spelled like one in tokenizer.json.
    tokens = [unspell(name) or b"" for name in vocab]
    merges = learn_merges(
        counter.words, counter.counts, byte_ids, tokens, vocab_size, min_frequency
    )
    spelling = list(vocab)
    for left, right, new_id in merges:
        if new_id == len(spelling):
            spelling.append(spelling[left] + spelling[right])
            vocab[spelling[-1]] = new_id
    return merges


def _from_json(data: bytes) -> Tokenizer:
    return Tokenizer(tokenizer_json.parse(data))


def _token_bytes(token: str) -> bytes:
    data = unspell(token)
    return token.encode("utf-8", "surrogatepass") if data is None else data


def _special_names(special_tokens: Iterable[str]) -> list[str]:
    if isinstance(special_tokens, str):
        raise TypeError(f"special_tokens: must be several str, got the one str {special_tokens!r}")
    names = list(special_tokens)
    for name in names:
        if not isinstance(name, str) or not name:
            raise ValueError(f"special_tokens: must be str and not empty, got {name!r}")
        if names.count(name) > 1:
            raise ValueError(f"special_tokens: must differ, got {name!r} twice")
        if plain.to_text(name) != name:
            raise ValueError(f"special_tokens: must be text, got the lone surrogate in {name!r}")
    return names


def _checked(text: Text) -> Text:
    if not isinstance(text, str | bytes | bytearray):
        raise TypeError(f"text: must be str or bytes, got {type(text).__name__}")
    return text


def _batches(texts: Iterable[Text]) -> Iterator[list[bytes]]:
    """Texts as bytes, in lists of about BATCH_BYTES."""
    if isinstance(texts, str | bytes | bytearray):
        raise TypeError("texts: must be an iterable of texts, got a single one: write [text]")
    batch: list[bytes] = []
    size = 0
    for k, text in enumerate(texts):
        if isinstance(text, str):
            text = text.encode("utf-8", "surrogatepass")
        elif not isinstance(text, bytes):
            raise TypeError(f"texts: must hold str, got {type(text).__name__} at place {k}")
        batch.append(text)
        size += len(text)
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
