"""What a training step keeps in memory, part by part, read from the allocator at the right moments.

    weights, copies, moments       there all the time
    activations                    what the blocks have kept for the backward pass
    logits and loss                the most that is added by the loss, its backward pass included
    gradients                      after the backward pass
    peak                           of the whole step

Parts are not all there at once: gradients come while activations go (the head's comes first, with
the loss). So the peak is nearer to the sum of the others than to the sum of all.
"""

from collections.abc import Callable, Iterable
from typing import Protocol

import torch
from torch import Tensor

from . import ops
from .loss import IGNORE, shift_targets
from .model import MiniLM


class Meter(Protocol):
    """Bytes of a device's memory: in use now, and the most since the last `reset`."""

    def now(self) -> int: ...
    def peak(self) -> int: ...
    def reset(self) -> None: ...


class CudaMeter:
    """What PyTorch's allocator says of the present GPU."""

    def now(self) -> int:
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated()

    def peak(self) -> int:
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()

    def reset(self) -> None:
        torch.cuda.reset_peak_memory_stats()


def nbytes(tensors: Iterable[Tensor | None]) -> int:
    return sum(t.nbytes for t in tensors if t is not None)


def memory_parts(
    model: MiniLM,
    ids: Tensor,
    update: Callable[[], object],
    *,
    copies: Iterable[Tensor] = (),
    moments: Callable[[], Iterable[Tensor]],
    meter: Meter,
) -> dict[str, int]:
    """Bytes of each part in one step of ids (B, T + 1); the backend and autocast are the caller's.

    update: the optimizer's step, called when the gradients are there. No gradients may be there at
    the start.
    """
    params = list(model.parameters())
    parts = {"weights": nbytes(params), "copies": nbytes(copies)}
    meter.reset()
    start = meter.now()
    targets = shift_targets(ids)
    x = model.hidden(ids[:, :-1])
    parts["activations"] = (before := meter.now()) - start
    leaf = x.detach().requires_grad_()  # backward stops here: the blocks' comes after
    ops.linear_cross_entropy(
        leaf.flatten(0, 1), model.head_weight, targets.flatten(), IGNORE
    ).backward()
    parts["logits and loss"] = meter.peak() - before
    x.backward(leaf.grad)
    del x, leaf
    parts["gradients"] = nbytes(p.grad for p in params)
    update()
    parts["moments"] = nbytes(moments())
    parts["peak"] = meter.peak()
    return parts
