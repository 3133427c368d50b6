"""`Tokenizer`: text to ids and back, with the merges and ids of Hugging Face `tokenizers`.

    text ──special tokens──▶ parts ──pattern──▶ pieces ──merges──▶ ids

The algorithm is told in bpe.py. It is done in two ways that give the same merges and ids: in plain
Python (plain.py) for small inputs, compiled by Numba (counter.py, merger.py, encoder.py) for large
ones. Compiling happens once and is kept on disk. How merges are learned is chosen here, how text is
encoded in coder.py.

Ids: special tokens first, in the order given, then the 256 bytes (bpe.BYTE_ORDER), then one new
token for each merge.

Text is bytes. A str means its UTF-8. Bytes that are no UTF-8, and the three bytes of a lone
surrogate in a str, are single characters that are neither letter, number nor space; so
`decode_bytes(encode(data)) == data` for any bytes. `decode` shows such bytes as U+FFFD.
"""

import hashlib
import operator
import os
import secrets
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from . import plain, tokenizer_json
from .bpe import BYTE_ORDER
from .coder import PLAIN_BYTES, Coder, Text, batches
from .patterns import Pattern, pattern_named
from .special_tokens import SpecialTokens, checked_names
from .tokenizer_json import CHAR_OF_BYTE, Contents, unspell

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
        self._special = SpecialTokens(self.special_tokens)
        self.special_ids = frozenset(self.special_tokens.values())
        self.eot_id = self.special_tokens.get(END_OF_TEXT)
        self.vocab_size = max(vocab.values()) + 1
        self.pattern = contents.pattern.name
        self._contents = contents
        byte_ids = [vocab[CHAR_OF_BYTE[byte]] for byte in range(256)]
        self._merges = [
            (vocab[left], vocab[right], vocab[left + right]) for left, right in contents.merges
        ]
        self._tokens = {number: _token_bytes(token) for token, number in vocab.items()}
        made = {new_id for _, _, new_id in self._merges} | set(byte_ids)
        for name, number in self.special_tokens.items():
            data = name.encode("utf-8")
            if number in made and self._tokens[number] != data:
                raise ValueError(
                    f"special_tokens: {name!r} is how tokenizer.json spells the bytes "
                    f"{self._tokens[number]!r}, which have a token of their own; choose another"
                )
            self._tokens[number] = data
        whole = set(vocab) - set(self.special_tokens) if contents.ignore_merges else ()
        whole_ids = {self._tokens[vocab[token]]: vocab[token] for token in whole}
        self._coder = Coder(contents.pattern, self._special, byte_ids, self._merges, whole_ids)

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

        texts           any iterable of str (or bytes), read once; no token reaches into the next
        vocab_size      at least 256 + the number of special tokens; there are fewer tokens when
                        the texts run out of pairs
        special_tokens  get the ids 0, 1, ...; in the texts themselves they mean nothing
        pattern         "gpt2" or "gpt4": where text is cut into pieces
        min_frequency   a pair that occurs less often is not merged

        Merges and ids are those of Hugging Face's `BpeTrainer` (with the 256 bytes as its initial
        alphabet): the most frequent pair first, of equally frequent ones the pair with the smallest
        ids. Counts are 64-bit. Raises ValueError when no text holds anything.
        """
        chosen = pattern_named(pattern)
        names = checked_names(special_tokens)
        vocab_size = _whole_number("vocab_size", vocab_size)
        min_frequency = _whole_number("min_frequency", min_frequency)
        if vocab_size < 256 + len(names):
            raise ValueError(
                f"vocab_size: must be at least {256 + len(names)}, the 256 bytes and "
                f"{len(names)} special tokens, got {vocab_size}"
            )
        vocab = {name: number for number, name in enumerate(names)}
        for byte in BYTE_ORDER:
            vocab.setdefault(CHAR_OF_BYTE[byte], len(vocab))
        merges = _learn(texts, chosen, vocab, vocab_size, min_frequency)
        spelling = list(vocab)
        pairs = [(spelling[left], spelling[right]) for left, right, _ in merges]
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
        # not by `tempfile`, whose files are closed to all but the user, whatever the umask says
        temporary = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
        file = open(temporary, "xb")
        try:
            with file:
                file.write(self.to_json())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink()
            raise

    def to_json(self) -> bytes:
        """The bytes of the file that `save` writes."""
        return tokenizer_json.dump(self._contents)

    def sha256(self) -> str:
        """Hex digest of `to_json()`: a name for everything that this tokenizer makes."""
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
                         (as Hugging Face does), "none", or a set. The others are text like any.
        """
        if not isinstance(text, str | bytes):
            raise TypeError(f"text: must be str or bytes, got {type(text).__name__}")
        return self._coder.encode(text, self._special.allowed(allowed_special))

    def encode_array(
        self, texts: Iterable[Text], allowed_special: str | Iterable[str] = "none"
    ) -> tuple[np.ndarray, np.ndarray]:
        """The ids of many texts in one array: `(ids, offsets)`.

        ids      int32, all ids one after the other
        offsets  int64, one more than there are texts: text k has `ids[offsets[k] : offsets[k + 1]]`

        Special tokens that are written out in the texts are text, unless allowed.
        """
        return self._coder.encode_array(texts, self._special.allowed(allowed_special))

    def decode(self, ids: Iterable[int]) -> str:
        """The text behind `ids`; bytes that are no UTF-8, like half a character, become U+FFFD."""
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


def _learn(
    texts: Iterable[Text], pattern: Pattern, vocab: dict[str, int], vocab_size: int, least: int
) -> list[plain.Merge]:
    """Merges (left id, right id, id of the result), in plain Python or compiled; new tokens are
    added to `vocab`."""
    rest = batches(texts)
    first = next(rest, [])
    byte_ids = [vocab[CHAR_OF_BYTE[byte]] for byte in range(256)]
    if sum(map(len, first)) <= PLAIN_BYTES:  # less than a batch: all there is
        counts = plain.count_pieces(first, pattern)
        if not counts:
            raise ValueError("texts: must hold some text to learn from, got none")
        return plain.learn_merges(counts, byte_ids, vocab, vocab_size, least)

    from .counter import PieceCounter
    from .merger import learn_merges

    counter = PieceCounter(pattern)
    counter.add(first)
    for batch in rest:
        counter.add(batch)
    # Of special tokens only those count that are spelled like bytes: a merge can make them.
    tokens = [unspell(token) or b"" for token in vocab]
    merges = learn_merges(counter.words, counter.counts, byte_ids, tokens, vocab_size, least)
    spelling = list(vocab)
    for left, right, new_id in merges:
        if new_id == len(spelling):
            spelling.append(spelling[left] + spelling[right])
            vocab[spelling[new_id]] = new_id
    return merges


def _from_json(data: bytes) -> Tokenizer:
    return Tokenizer(tokenizer_json.parse(data))


def _token_bytes(token: str) -> bytes:
    data = unspell(token)
    return token.encode("utf-8", "surrogatepass") if data is None else data


def _whole_number(name: str, value) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: must be a whole number, got {value!r}") from None
