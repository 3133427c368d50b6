"""`Coder`: the ids of texts, in plain Python or compiled, whichever is there sooner.

    text ──special tokens──▶ parts ──pattern──▶ pieces ──merges──▶ ids

Plain Python (plain.py) for small inputs, compiled by Numba (encoder.py) for large ones: both give
the same ids. Compiling happens once and is kept on disk.
"""

import sys
from collections.abc import Iterable, Iterator

import numpy as np

from . import plain
from .patterns import Pattern
from .special_tokens import SpecialTokens

Text = str | bytes

BATCH_BYTES = 4 << 20  # texts are taken in batches of this size, which bounds the memory
# What plain Python does in a third of a second never waits for numba, let alone for its compiler.
# Once the kernels are there, plain Python is faster on very small texts only.
PLAIN_BYTES = 1 << 20
SMALL_BYTES = 1 << 11


class Coder:
    """Turns texts into ids.

    pattern   where text is cut into pieces
    special   the special tokens
    byte_ids  the id of each of the 256 bytes
    merges    (left id, right id, id of the result), in the order in which they were learned
    whole     bytes → id: pieces that are one token whatever the merges say
    """

    def __init__(
        self,
        pattern: Pattern,
        special: SpecialTokens,
        byte_ids: list[int],
        merges: list[plain.Merge],
        whole: dict[bytes, int],
    ):
        self._pattern, self._special = pattern, special
        self._byte_ids, self._merges, self._whole = byte_ids, merges, whole
        self._plain = plain.PlainEncoder(byte_ids, merges, whole)
        self._plain_bytes = 0  # encoded by it so far
        self._encoders: list = []  # compiled ones, as many as threads have used at the same time

    def encode(self, text: Text, names: frozenset[str]) -> list[int]:
        """The ids of one text; `names` are the special tokens that count in it."""
        if self._compiled_for(len(text)):
            return self._encode_compiled([_to_bytes(text)], names)[0].tolist()
        return self._encode_plain(text, names)

    def encode_array(
        self, texts: Iterable[Text], names: frozenset[str]
    ) -> tuple[np.ndarray, np.ndarray]:
        """All ids (int32), and one offset (int64) more than there are texts."""
        ids = [np.zeros(0, dtype=np.int32)]
        offsets = [np.zeros(1, dtype=np.int64)]
        for batch in batches(texts):
            if self._compiled_for(sum(map(len, batch))):
                found, ends = self._encode_compiled(batch, names)
            else:
                lists = [self._encode_plain(text, names) for text in batch]
                found = np.array([token for tokens in lists for token in tokens], dtype=np.int32)
                ends = np.cumsum([len(tokens) for tokens in lists])
            ids.append(found)
            offsets.append(ends + offsets[-1][-1])
        return np.concatenate(ids), np.concatenate(offsets)

    def _compiled_for(self, size: int) -> bool:
        """Whether to encode so many bytes with the compiled encoder."""
        if size < SMALL_BYTES:
            return False
        if "minilm.encoder" in sys.modules:
            return True
        self._plain_bytes += size
        return self._plain_bytes > PLAIN_BYTES

    def _encode_plain(self, text: Text, names: frozenset[str]) -> list[int]:
        split = self._pattern.split
        ids: list[int] = []
        for k, part in enumerate(self._special.split(plain.to_text(text), names)):
            if k % 2:
                ids.append(part)
            else:
                ids += self._plain.encode(part, split)
        return ids

    def _encode_compiled(
        self, texts: list[bytes], names: frozenset[str]
    ) -> tuple[np.ndarray, np.ndarray]:
        """The ids of all texts (int32), and where those of each text end (int64)."""
        parts: list[bytes] = []
        marks: list[tuple[int, int]] = []  # special tokens: how many parts stand before it, its id
        last: list[int] = []  # how many parts stand before the end of each text
        for text in texts:
            for k, part in enumerate(self._special.split(text, names)):
                if k % 2:
                    marks.append((len(parts), part))
                else:
                    parts.append(part)
            last.append(len(parts))
        ids, offsets = self._encode_parts(parts)
        if not marks:
            return ids, offsets[last]
        before, special_ids = np.array(marks).T
        ids = np.insert(ids, offsets[before], special_ids)
        return ids, offsets[last] + np.searchsorted(before, last)

    def _encode_parts(self, parts: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """ids (int32) and offsets (int64) of texts without special tokens."""
        from .encoder import Encoder

        try:
            encoder = self._encoders.pop()
        except IndexError:
            encoder = Encoder(self._pattern, self._byte_ids, self._merges, self._whole)
        found = encoder.encode(parts)
        self._encoders.append(encoder)
        return found


def _to_bytes(text: Text) -> bytes:
    return text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text


def batches(texts: Iterable[Text]) -> Iterator[list[bytes]]:
    """Texts as bytes, in lists of about BATCH_BYTES."""
    if isinstance(texts, str | bytes):
        raise TypeError("texts: must be an iterable of texts, got a single one: write [text]")
    batch: list[bytes] = []
    size = 0
    for k, text in enumerate(texts):
        if not isinstance(text, str | bytes):
            raise TypeError(f"texts: must hold str, got {type(text).__name__} at place {k}")
        batch.append(_to_bytes(text))
        size += len(batch[-1])
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
