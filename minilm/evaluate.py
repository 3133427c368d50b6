"""How good is a model? The mean loss on text it has not seen, and the same per byte of text.

A loss per token depends on the tokenizer: larger tokens are fewer and harder to guess. Bits per
byte do not, so models with different vocabularies can be compared:

    bits per byte = (sum of the losses of all tokens, in nats) / ln 2 / (bytes of text)
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch

from .data import Batch, TokenStream
from .loss import masked_token_loss
from .model import MiniLM
from .precision import autocast


class Evaluation(NamedTuple):
    """What `evaluate` returns; bits_per_byte and bytes are None where the bytes are not known."""

    loss: float  # nats per target, the mean over all targets
    bits_per_byte: float | None
    tokens: int  # targets
    bytes: int | None  # of text, special tokens not counted


@torch.no_grad()
def evaluate(
    model: MiniLM,
    data: TokenStream | Iterable[Batch],
    batch_size: int = 32,
    *,
    context_length: int | None = None,
    dtype: torch.dtype | str | None = None,
) -> Evaluation:
    """The mean loss of `model` on `data`, without gradients, dropout off.

    A TokenStream is cut into neighbouring windows of context_length targets (None: the model's), so
    that every token but the first is predicted exactly once; `batch_size` rows are computed at a
    time. Other data are batches {"ids", "mask"?, "segments"?}, or {"ids", "targets", "mask"} for a
    masked language model ("ids" are then the corrupted inputs). dtype: of the matrix products, see
    `autocast`. Raises ValueError when there is no target, or when a model that is not causal should
    predict the next token, which it can see.
    """
    stream = isinstance(data, TokenStream)
    if stream and data.vocab_size is not None and data.vocab_size > model.config.vocab_size:
        raise ValueError(
            f"data: its tokenizer has {data.vocab_size} tokens, the model only "
            f"{model.config.vocab_size}; use the model's own tokenizer"
        )
    T = model.config.context_length if context_length is None else context_length
    batches = data.sequential_batches(batch_size, T) if stream else data
    device = model.head_weight.device
    was_training = model.training
    model.eval()
    total, tokens = 0.0, 0
    try:
        for batch in batches:
            batch = {name: t.to(device) for name, t in batch.items()}
            n = count_targets(batch)
            with autocast(device, dtype):
                loss = batch_loss(model, batch)
            total += loss.item() * n
            tokens += n
    finally:
        model.train(was_training)
    if tokens == 0:
        raise ValueError("data: holds no target to predict")
    n_bytes = data.n_bytes if stream else None
    per_byte = total / math.log(2) / n_bytes if n_bytes else None
    return Evaluation(total / tokens, per_byte, tokens, n_bytes)


def batch_loss(model: MiniLM, batch: Batch) -> torch.Tensor:
    """The mean loss over a batch's targets: next-token, or masked where the batch has "targets"."""
    mask, segments = batch.get("mask"), batch.get("segments")
    if "targets" in batch:
        return masked_token_loss(model(batch["ids"], segments), batch["targets"], mask)
    if not model.config.causal:
        raise ValueError(
            "model: it is not causal and sees the next token; give batches with 'targets'"
        )
    return model.loss(batch["ids"], mask, segments)


def count_targets(batch: Batch) -> int:
    """The number of targets that `batch_loss` takes its mean over."""
    if "targets" in batch:
        return int(batch["mask"].sum())
    ids, mask, segments = batch["ids"], batch.get("mask"), batch.get("segments")
    if mask is None and segments is None:
        return ids.shape[0] * (ids.shape[1] - 1)
    counted = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
    if segments is not None:
        counted = counted & (segments >= 0)  # padding is never a target
    return int(counted[:, 1:].sum())
