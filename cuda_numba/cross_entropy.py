"""Cross-entropy of logits and targets: the loss and its gradient, fused in place of the logits.

    loss = 1/count · Σᵣ (lseᵣ − x[r, tᵣ])          over the rows with tᵣ ≠ ignore_index
    lseᵣ = log Σⱼ exp(x[r, j]) = m + log Σⱼ exp(x[r, j] − m),      m = maxⱼ x[r, j]
    dx[r, j] = (exp(x[r, j] − lseᵣ) − [j = tᵣ]) · dy / count,      0 in rows that are left out

x (N, V), targets (N), loss a scalar in nats; count: how many targets are not ignore_index. bf16,
N = 8192, V = 50,304: x has 824 MB, and at the 3.0 TB/s of a copy on an H100 one read and one write
take 0.55 ms. Two exponentials and about ten operations an element take a third of that.

    naive     three passes over the row: maximum, sum, gradient. 3 reads, 1 write
    online    maximum and sum in one pass (Milakov & Gimelshein 2018, algorithm 3). 2 reads, 1 write
    fused     the row waits in shared memory: 1 read, 1 write, one launch. Loss and gradient of a
              row are made by the same block, and the gradient lies where the logits were

A model's loss is the last thing it computes with its logits, so that nothing is lost when the
gradient overwrites them, and half the memory of the step is saved: `cross_entropy_`. The safe
`cross_entropy` keeps them: it saves lse, and the backward pass reads the logits again.

A target outside 0 … V − 1 that is not ignore_index makes its row's loss and gradient NaN: a GPU
raises nothing, and memory outside the row is not read. A row of −∞ alone is NaN, as in torch.
"""

import functools

import torch
from torch.autograd.function import once_differentiable

from .cross_entropy_launch import (
    cross_entropy_backward,
    cross_entropy_forward,
    cross_entropy_forward_backward,
    scale_gradient_,
)
from .cross_entropy_rungs import (
    cross_entropy_by_rung,
    cross_entropy_naive,
    cross_entropy_online,
)
from .dtypes import FLOATS, dtype_name


def cross_entropy_reference(
    logits: torch.Tensor, targets: torch.Tensor, ignore_index: int = -100
) -> torch.Tensor:
    kept = targets != ignore_index
    aim = logits.gather(1, targets.where(kept, 0)[:, None])[:, 0]
    losses = torch.where(kept, torch.logsumexp(logits, 1) - aim, 0)
    return losses.sum() / kept.sum().clamp(min=1)


def cross_entropy_backward_reference(
    logits: torch.Tensor, targets: torch.Tensor, ignore_index: int = -100
) -> torch.Tensor:
    kept = targets != ignore_index
    dx = torch.softmax(logits, 1)
    dx[torch.arange(len(dx)), targets.where(kept, 0)] -= 1
    return torch.where(kept[:, None], dx, 0) / kept.sum().clamp(min=1)


RUNGS = {  # (logits, targets, ignore_index=-100) → (loss, dlogits)
    "naive": functools.partial(cross_entropy_by_rung, cross_entropy_naive),
    "online": functools.partial(cross_entropy_by_rung, cross_entropy_online),
    "fused": cross_entropy_forward_backward,
}


class CrossEntropyFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, targets, ignore_index):
        loss, lse, count = cross_entropy_forward(logits, targets, ignore_index)
        ctx.save_for_backward(logits, targets, lse, count)
        ctx.ignore_index = ignore_index
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        return cross_entropy_backward(dy, *ctx.saved_tensors, ctx.ignore_index), None, None


class CrossEntropyInPlace(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, targets, ignore_index):
        loss, dlogits = cross_entropy_forward_backward(logits, targets, ignore_index)
        torch.autograd.graph.increment_version(logits)  # whoever saved the logits is told
        ctx.save_for_backward(dlogits.detach())
        ctx.used = False
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        if ctx.used:
            raise RuntimeError(
                "cross_entropy_: its backward pass ran before, and the gradient was scaled in "
                "place then; use cross_entropy to go backward more than once."
            )
        ctx.used = True
        return scale_gradient_(ctx.saved_tensors[0], dy), None, None


# ---- public operations


def _checked(logits: torch.Tensor, targets: torch.Tensor) -> None:
    if dtype_name(logits) not in FLOATS:
        raise TypeError(
            f"logits: their dtype is {dtype_name(logits)}, cross_entropy takes {', '.join(FLOATS)}."
        )
    if logits.dim() != 2:
        raise ValueError(f"logits: their shape is {tuple(logits.shape)}, it must be (N, V).")
    if targets.dtype != torch.int64:
        raise TypeError(f"targets: their dtype is {dtype_name(targets)}, it must be int64.")
    if targets.shape != logits.shape[:1]:
        raise ValueError(
            f"targets: their shape is {tuple(targets.shape)}, it must be ({len(logits)},)."
        )
    if targets.device != logits.device:
        raise ValueError(f"targets: on {targets.device}, they must be on {logits.device}.")


def cross_entropy(
    logits: torch.Tensor, targets: torch.Tensor, ignore_index: int = -100
) -> torch.Tensor:
    """Mean of −log softmax(logits)[target] over the targets ≠ ignore_index, 0 if there is none.

    logits (N, V) float32, float16 or bfloat16, targets (N) int64 → a float32 scalar, in nats;
    differentiable. The logits stay as they are. What is not contiguous is copied first.
    """
    _checked(logits, targets)
    return CrossEntropyFunction.apply(logits.contiguous(), targets.contiguous(), ignore_index)


def cross_entropy_(
    logits: torch.Tensor, targets: torch.Tensor, ignore_index: int = -100
) -> torch.Tensor:
    """`cross_entropy`, with the gradient written over the logits at once: they are lost.

    Half the memory traffic and one (N, V) tensor less. logits must be contiguous; nothing may read
    them afterwards, and autograd raises where something that needs their old values runs backward.
    One backward pass only. In float16, where gradients below 6e-8 vanish, a loss scale comes too
    late here: see `cross_entropy_forward_backward`.
    """
    _checked(logits, targets)
    if not logits.is_contiguous():
        raise ValueError(
            "logits: not contiguous, cross_entropy_ can write only over contiguous ones."
        )
    if logits.is_leaf and logits.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            "logits: a leaf that requires grad, cross_entropy_ would overwrite its data."
        )
    return CrossEntropyInPlace.apply(logits, targets.contiguous(), ignore_index)
