"""The two pre-training losses: cross-entropies in nats, each a mean over *all* targets of a batch.

Causal language model: position t predicts token t + 1, so the loss shifts by one.
Masked language model: position t predicts the original token t, so it does not shift.

A mean over the whole batch is not a mean of per-row means: a row with two targets must weigh twice
as much as a row with one. A batch without any target has loss 0 and gradient 0, not NaN.
"""

import torch
from torch import Tensor

from . import ops

IGNORE = -100  # a target with this id is left out of the mean


def shift_targets(ids: Tensor, mask: Tensor | None = None) -> Tensor:
    """What each position but the last must predict. ids (B, T), mask (B, T) or None → (B, T − 1).

    mask[b, t] = 1 says that ids[b, t] is a target (mask[:, 0] is never used: nothing predicts the
    first token). A position whose next token is no target gets IGNORE.
    """
    return (ids if mask is None else _keep(ids, mask))[:, 1:]


def next_token_loss(logits: Tensor, ids: Tensor, mask: Tensor | None = None) -> Tensor:
    """Causal language-model loss; the shift is inside.

    logits (B, T, V), ids (B, T) int64, mask (B, T) bool or 0/1 → scalar in nats: the mean over the
    targets of the whole batch, 0 if there is none. Raises ValueError when the shapes disagree.
    """
    _check_shapes("logits", logits, "ids", ids)
    targets = shift_targets(ids, mask)
    return ops.cross_entropy(logits[:, :-1].flatten(0, 1), targets.flatten(), IGNORE)


def masked_token_loss(logits: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Masked language-model loss (Devlin et al. 2019, section 3.1): no shift.

    logits (B, T, V), targets (B, T) the original ids, mask (B, T): 1 where the token was chosen for
    prediction → scalar in nats, the mean over those positions, 0 if there is none.
    """
    _check_shapes("logits", logits, "targets", targets)
    kept = _keep(targets, mask)
    return ops.cross_entropy(logits.flatten(0, 1), kept.flatten(), IGNORE)


def _keep(targets: Tensor, mask: Tensor) -> Tensor:
    if mask.shape != targets.shape:
        raise ValueError(
            f"mask: shape must be that of the ids, {tuple(targets.shape)}, got {tuple(mask.shape)}"
        )
    return torch.where(mask.bool(), targets, IGNORE)


def _check_shapes(name: str, logits: Tensor, ids_name: str, ids: Tensor) -> None:
    if logits.ndim != 3 or logits.shape[:2] != ids.shape:
        raise ValueError(
            f"{name}: shape must be (B, T, V) with (B, T) that of {ids_name}, "
            f"{tuple(ids.shape)}, got {tuple(logits.shape)}"
        )
