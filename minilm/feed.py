"""What a training run is fed with: the batch of each step, from a stream or from given batches.

A step's batch and its corruption are functions of (seed, step) alone, so nothing of them has to be
saved to go on with a run.
"""

import zlib
from collections.abc import Iterable, Iterator

import torch

from .corruption import corrupt
from .data import Batch, TokenStream
from .model import PADDING, ModelConfig
from .tokenizer import Tokenizer
from .trainconfig import TrainConfig

MASK_TOKEN = "<|mask|>"


class Feed:
    """The batches of a run, for either objective.

    data: a TokenStream, or batches {"ids", "mask"?, "segments"?}, which start over when they run
    out. model: the config of the model to be fed. tok: may tell the id of <|mask|>. ValueError when
    they do not fit together.
    """

    def __init__(
        self,
        data: TokenStream | Iterable[Batch],
        config: TrainConfig,
        model: ModelConfig,
        tok: Tokenizer | None = None,
    ):
        self.data, self.config = data, config
        self.T = config.context_length or model.context_length
        self.vocab_size = model.vocab_size
        self.special_ids = () if tok is None else tok.special_ids
        self.mask_id = config.mask_id
        if self.mask_id is None and tok is not None:
            self.mask_id = tok.special_tokens.get(MASK_TOKEN)
        self._batches: Iterator[Batch] | None = None
        self._check(model)

    def batch(self, step: int) -> Batch:
        """The batch of step number `step`, counted from 1, on the CPU.

        Causal: {"ids" (B, T + 1), "mask"?, "segments"?}. Masked: {"ids" (B, T) with hidden tokens,
        "targets" (B, T), "mask" (B, T), "segments"?}.
        """
        c = self.config
        if isinstance(self.data, TokenStream):
            batch = self.data.batch_at(step - 1, c.batch_size, self.T, c.seed)
        else:
            batch = self._next(step)
        if c.objective == "causal" or "targets" in batch:
            return batch
        return self._hide(batch, c.seed * 2**31 + step)

    def validation(self, valid: TokenStream | Iterable[Batch]) -> TokenStream | Iterable[Batch]:
        """`valid` as `evaluate` wants it: for the masked objective hidden, always in one way."""
        if self.config.objective == "causal":
            return valid
        stream = isinstance(valid, TokenStream)
        batches = valid.sequential_batches(32, self.T) if stream else valid
        return (b if "targets" in b else self._hide(b, seed) for seed, b in enumerate(batches))

    @property
    def bytes_per_token(self) -> float | None:
        """Of the whole stream; None where it is not known or, without a shift, means nothing."""
        known = isinstance(self.data, TokenStream) and self.config.objective == "causal"
        return self.data.n_bytes / len(self.data) if known and self.data.n_bytes else None

    def fingerprint(self) -> str:
        """A line that tells two streams apart: the length and a checksum of both ends."""
        if not isinstance(self.data, TokenStream):
            return "batches"
        ids = self.data.ids
        checksum = zlib.crc32(ids[-65536:].tobytes(), zlib.crc32(ids[:65536].tobytes()))
        return f"a stream of {len(ids)} tokens with checksum {checksum:08x}"

    def _next(self, step: int) -> Batch:
        if self._batches is None:
            self._batches = _endless(self.data)
            for _ in range(step - 1):  # a run that goes on skips what it has had
                next(self._batches)
        return next(self._batches)

    def _hide(self, batch: Batch, seed: int) -> Batch:
        """Hidden tokens are predicted in place: no shift, so T tokens, not T + 1."""
        cut = {name: t[:, : self.T] for name, t in batch.items()}
        inputs, mask = corrupt(
            cut["ids"],
            mask_id=self.mask_id,
            vocab_size=self.vocab_size,
            generator=torch.Generator().manual_seed(seed),
            p=self.config.mask_p,
            special_ids=self.special_ids,
        )
        hidden = {"ids": inputs, "targets": cut["ids"], "mask": mask}
        if "segments" in cut:  # padding is neither seen nor asked for
            hidden["segments"] = cut["segments"]
            hidden["mask"] = mask & (cut["segments"] != PADDING)
        return hidden

    def _check(self, model: ModelConfig) -> None:
        if self.T > model.context_length and model.position == "learned":
            raise ValueError(
                f"context_length: the model has learned {model.context_length} positions, "
                f"got {self.T}"
            )
        if isinstance(self.data, TokenStream) and len(self.data) <= self.T:
            raise ValueError(
                f"context_length: must be below the {len(self.data)} tokens of data, got {self.T}"
            )
        if self.config.objective == "masked" and model.causal:
            raise ValueError("objective: 'masked' needs a model with causal=False")
        if self.config.objective == "causal" and not model.causal:
            raise ValueError("objective: 'causal' needs a model with causal=True")
        if self.config.objective == "masked" and self.mask_id is None:
            raise ValueError(
                f"mask_id: give one, or a tokenizer with the special token {MASK_TOKEN}"
            )
        V = getattr(self.data, "vocab_size", None)
        if V is not None and V > model.vocab_size:
            raise ValueError(
                f"data: its tokenizer has {V} tokens, the model only {model.vocab_size}"
            )


def _endless(batches: Iterable[Batch]) -> Iterator[Batch]:
    if iter(batches) is batches:  # an iterator can be read once only
        yield from batches
        raise ValueError("data: the iterator ended before the run; give a list, or a TokenStream")
    while True:
        empty = True
        for batch in batches:
            empty = False
            yield batch
        if empty:
            raise ValueError("data: holds no batch")
