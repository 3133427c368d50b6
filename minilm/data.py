"""Token streams: all documents as one long line of ids, and the batches cut from it.

    … x₀ x₁ x₂ x₃ x₄ x₅ …        one stream, every document behind its own <|endoftext|>
      └─────────────┘             a row of T + 1 = 5 consecutive ids
      inputs  x₀ x₁ x₂ x₃         what a model with context length T = 4 sees
      targets x₁ x₂ x₃ x₄         what it must predict: the same row, shifted by one

A batch is a dict: "ids" (B, L) int64, where needed "mask" (B, L) bool, True where the id is a
target, and "segments" (B, L) int64, −1 for padding. The shift is made inside the loss.
"""

import hashlib
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from .corpus import Corpus
from .tokenfile import cache_folder, id_dtype, open_token_file, write_token_file
from .tokenizer import Text, Tokenizer

Batch = dict[str, torch.Tensor]
PADDING = -1  # the segment number of padding
CHUNK = 1 << 23  # characters of text tokenised at a time: bounds memory on large corpora


class TokenStream:
    """One-dimensional token ids, in memory or mapped from a file.

    ids         array, memory map, tensor or list of whole numbers ≥ 0; kept as uint16 when every
                id is below 65,536, else as uint32, without a copy where it is so already
    n_bytes     UTF-8 bytes of the text behind the ids, special tokens not counted; None: unknown
    vocab_size  V of the tokenizer; when given, every id must be below it
    """

    def __init__(self, ids, n_bytes: int | None = None, vocab_size: int | None = None):
        array = np.asarray(ids)  # of a memory map: the same memory, without its slower indexing
        if array.ndim != 1 or len(array) == 0:
            raise ValueError(f"ids: must be one-dimensional and not empty, got shape {array.shape}")
        if array.dtype.kind not in "iu":
            raise TypeError(f"ids: must be whole numbers, got {array.dtype}")
        low, high = int(array.min()), int(array.max())
        limit = 2**32 if vocab_size is None else vocab_size
        if low < 0 or high >= limit:
            raise ValueError(f"ids: must be 0 to {limit - 1}, got {low if low < 0 else high}")
        self.ids = array.astype(id_dtype(high + 1 if vocab_size is None else limit), copy=False)
        self.n_bytes = n_bytes
        self.vocab_size = vocab_size

    @classmethod
    def from_texts(
        cls, texts: Iterable[Text], tok: Tokenizer, add_eot: bool = True
    ) -> "TokenStream":
        """Tokenise documents into memory, each behind <|endoftext|> when `tok` has it.

        A special token that is spelled out in a text is encoded as the characters it is made of.
        """
        chunks = list(_encode(texts, tok, add_eot))
        if not chunks:
            raise ValueError("texts: must hold at least one text, got none")
        n_bytes = sum(n for _, n in chunks)
        return cls(np.concatenate([ids for ids, _ in chunks]), n_bytes, tok.vocab_size)

    @classmethod
    def from_corpus(
        cls, corpus: Corpus, tok: Tokenizer, split: str, cache_dir: str | Path | None = None
    ) -> "TokenStream":
        """The ids of a split ("train", "heldout" or "all"), mapped from a token file.

        The file is looked up by the contents of corpus and tokenizer and made where it is missing,
        in `cache_dir`, by default $MINILM_CACHE or the user's cache folder. Two runs may make it at
        the same time. Raises ValueError for a split without text, OSError when the folder cannot be
        written.
        """
        corpus.texts(split)  # an unknown split is an error before any file is read
        corpus_key = corpus.key()
        key = hashlib.sha256(f"{corpus_key} {tok.sha256()} {split}".encode("ascii")).hexdigest()
        folder = cache_folder() if cache_dir is None else Path(cache_dir)
        path = folder / f"{split}-{key[:32]}.tokens"
        found = open_token_file(path, key)
        if found is None:
            chunks = _chunks(corpus, tok, split, corpus_key)
            write_token_file(path, key, id_dtype(tok.vocab_size), chunks)
            found = open_token_file(path, key)
        if found is None:
            raise OSError(f"the token file {path} was written and cannot be read back")
        return cls(*found, tok.vocab_size)

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        text = "" if self.n_bytes is None else f" of {self.n_bytes:,} bytes of text"
        return f"TokenStream({len(self):,} ids{text})"

    def random_batch(
        self, batch_size: int, T: int, generator: torch.Generator | None = None
    ) -> Batch:
        """Rows of T + 1 consecutive ids from independent uniform starts: {"ids": (B, T + 1)}."""
        _at_least_one(T=T, batch_size=batch_size)
        self._check_length(T)
        starts = torch.randint(len(self) - T, (batch_size,), generator=generator)
        return self._rows(starts.numpy(), T)

    def batch_at(
        self,
        step: int,
        batch_size: int,
        T: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> Batch:
        """The batch of one training step, a function of its arguments alone: {"ids": (B, T + 1)}.

        The stream is cut into windows of T targets and the windows are shuffled, in every epoch
        anew and from another offset: each id is a target once before any is a second time (but for
        fewer than 2 T at the ends that the offset leaves out). Nothing has to be saved to resume.

        batch_size counts the rows of all ranks together; rank r gets the r-th of world_size equal
        slices, so the ranks' rows in order are the batch of a single process.
        """
        _at_least_one(T=T, batch_size=batch_size, world_size=world_size)
        self._check_length(T)
        if not 0 <= rank < world_size:
            raise ValueError(f"rank: must be 0 to world_size - 1 = {world_size - 1}, got {rank}")
        if batch_size % world_size:
            raise ValueError(f"batch_size: must be a multiple of {world_size=}, got {batch_size}")
        if step < 0:
            raise ValueError(f"step: must be at least 0, got {step}")
        if not 0 <= seed < 2**64:
            raise ValueError(f"seed: must be 0 to 2**64 - 1, got {seed}")
        rows = batch_size // world_size
        first = step * batch_size + rank * rows
        n = self.windows_per_epoch(T)
        starts = []
        while rows:  # a batch may reach into the next epoch
            epoch, place = divmod(first, n)
            starts.append(_epoch_starts(len(self), T, n, seed, epoch)[place : place + rows])
            first, rows = first + len(starts[-1]), rows - len(starts[-1])
        return self._rows(np.concatenate(starts), T)

    def windows_per_epoch(self, T: int) -> int:
        """Rows that `batch_at` draws before it starts over; divided by batch_size: steps."""
        # one window is given up to make room for the offset
        return max(1, (len(self) - 1) // T - 1)

    def sequential_batches(self, batch_size: int, T: int) -> Iterator[Batch]:
        """Neighbouring windows in order, in which every id but the first is a target exactly once.

        Rows of T + 1 ids start T apart, so the last id of a row is the first of the next. The last
        batch may have fewer rows; where its last row is too short it is padded and the batch has
        "mask" and "segments" too. This is what a loss per byte is measured on.
        """
        if len(self) < 2:
            raise ValueError("the stream has one id: at least two are needed to predict one")
        _at_least_one(batch_size=batch_size, T=T)
        starts = np.arange(0, len(self) - 1, T)
        for first in range(0, len(starts), batch_size):
            rows = starts[first : first + batch_size]
            short = rows[-1] + T >= len(self)
            yield self._padded(rows, T) if short else self._rows(rows, T)

    def _padded(self, starts: np.ndarray, T: int) -> Batch:
        """Rows like `_rows`, the last one filled up with padding."""
        rest = self.ids[starts[-1] :].astype(np.int64)
        ids = torch.zeros(len(starts), T + 1, dtype=torch.int64)
        ids[:-1] = self._rows(starts[:-1], T)["ids"]
        ids[-1, : len(rest)] = torch.from_numpy(rest)
        mask = torch.ones_like(ids, dtype=torch.bool)
        mask[:, 0] = False  # a row's first id is only an input
        mask[-1, len(rest) :] = False
        segments = torch.zeros_like(ids)
        segments[-1, len(rest) :] = PADDING
        return {"ids": ids, "mask": mask, "segments": segments}

    def _rows(self, starts: np.ndarray, T: int) -> Batch:
        rows = self.ids[starts[:, None] + np.arange(T + 1)]
        return {"ids": torch.from_numpy(rows.astype(np.int64))}

    def _check_length(self, T: int) -> None:
        if len(self) < T + 1:
            raise ValueError(f"T: must be below the stream's length, {len(self)} ids, got {T}")


@lru_cache(maxsize=2)  # a batch may need the end of one epoch and the start of the next
def _epoch_starts(length: int, T: int, n: int, seed: int, epoch: int) -> np.ndarray:
    """Where the n windows of one epoch start, in the order in which they are drawn."""
    # NumPy promises that the raw numbers of a bit generator never change; of the methods of
    # np.random.Generator it does not, and a run must go on as it was after an upgrade.
    draw = np.random.Philox(key=[seed, epoch]).random_raw(n + 1)
    offset = int(draw[n]) % (length - n * T)
    return np.argsort(draw[:n], kind="stable") * T + offset


def _at_least_one(**counts: int) -> None:
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name}: must be at least 1, got {value}")


def _encode(
    texts: Iterable[Text], tok: Tokenizer, add_eot: bool
) -> Iterator[tuple[np.ndarray, int]]:
    """(ids, bytes of text) of a few documents at a time."""
    if isinstance(texts, Text):
        raise TypeError(f"texts: must be an iterable of str, got one {type(texts).__name__}")
    waiting, size = [], 0
    for text in texts:
        waiting.append(text)
        size += len(text)
        if size >= CHUNK:
            yield _encode_some(waiting, tok, add_eot)
            waiting, size = [], 0
    if waiting:
        yield _encode_some(waiting, tok, add_eot)


def _encode_some(texts: list[Text], tok: Tokenizer, add_eot: bool) -> tuple[np.ndarray, int]:
    ids, offsets = tok.encode_array(texts)
    if add_eot and tok.eot_id is not None:
        ids = np.insert(ids, offsets[:-1], tok.eot_id)
    as_bytes = (t if isinstance(t, bytes) else t.encode("utf-8", "surrogatepass") for t in texts)
    return ids, sum(map(len, as_bytes))


def _chunks(
    corpus: Corpus, tok: Tokenizer, split: str, corpus_key: str
) -> Iterator[tuple[np.ndarray, int]]:
    n = 0
    for ids, n_bytes in _encode(corpus.texts(split), tok, add_eot=True):
        n += len(ids)
        yield ids, n_bytes
    if n == 0:
        raise ValueError(f"split: {split!r} of {corpus!r} holds no text, add files or folders")
    if corpus.key() != corpus_key:  # the file would be found under a key that is not its own
        raise OSError(f"a file of {corpus!r} changed while it was read: run this again")
