"""Cross-entropy as one would write it first: rungs that read a row more than once.

One block has one row, one thread every THREADS-th element, one element is an access. `naive` goes
over the row three times, `online` twice; the last time over, both write the gradient. Bytes: 4 and
3 times rows · columns · itemsize, of which what fits into L2 does not come from memory again.

    row    |t0 t1 … t127|t0 t1 … t127|…                     then block_max and block_sum
"""

import torch

from . import ptx
from .cross_entropy_row import SCRATCH, natural_log
from .jit import jit
from .namespace import cuda, float32, int64
from .softmax_rows import exp_of, shift_of
from .warp import LOWEST, block_max, block_sum

THREADS = 128  # a constant, for `range` divides by it


@jit(device=True)
def write_gradient_and_loss(x, target, losses, out, ignore, scale, peak, total):
    """Gradient and loss of the block's row, whose maximum and sum of exponentials are known."""
    columns = x.shape[1]
    row = cuda.blockIdx.x
    start = row * columns
    kept = target != ignore
    for j in range(cuda.threadIdx.x, columns, THREADS):
        gradient = float32(0)
        if kept:
            gradient = exp_of(ptx.load(x, start + j) - peak) / total
            if j == target:
                gradient -= float32(1)
        ptx.store(out, start + j, gradient * scale)
    if cuda.threadIdx.x == 0:
        losses[row] = float32(0)
        if kept:
            losses[row] = peak - ptx.load(x, start + target) + natural_log(total)


@jit
def cross_entropy_naive(x, targets: "int64", losses: "float32", out, ignore, scale: "float32"):
    scratch = cuda.shared.array(SCRATCH, float32)
    columns = x.shape[1]
    row = cuda.blockIdx.x
    start = row * columns
    target = targets[row]
    peak = float32(LOWEST)
    for j in range(cuda.threadIdx.x, columns, THREADS):
        peak = max(peak, ptx.load(x, start + j))
    peak = shift_of(block_max(peak, scratch, 0))
    total = float32(0)
    for j in range(cuda.threadIdx.x, columns, THREADS):
        total += exp_of(ptx.load(x, start + j) - peak)
    total = block_sum(total, scratch, 32)
    write_gradient_and_loss(x, target, losses, out, ignore, scale, peak, total)


@jit
def cross_entropy_online(x, targets: "int64", losses: "float32", out, ignore, scale: "float32"):
    scratch = cuda.shared.array(SCRATCH, float32)
    columns = x.shape[1]
    row = cuda.blockIdx.x
    start = row * columns
    target = targets[row]
    peak = float32(LOWEST)
    total = float32(0)
    for j in range(cuda.threadIdx.x, columns, THREADS):
        value = ptx.load(x, start + j)
        if value > peak:
            total = total * exp_of(peak - value) + float32(1)
            peak = value
        else:
            total += exp_of(value - shift_of(peak))
    top = shift_of(block_max(peak, scratch, 0))
    total = block_sum(total * exp_of(peak - top), scratch, 32)
    write_gradient_and_loss(x, target, losses, out, ignore, scale, top, total)


def cross_entropy_by_rung(
    kernel, logits: torch.Tensor, targets: torch.Tensor, ignore_index: int = -100
) -> tuple[torch.Tensor, torch.Tensor]:
    """(loss, dlogits) by `cross_entropy_naive` or `cross_entropy_online`; logits stay.

    Count and mean are torch's.
    """
    count = (targets != ignore_index).sum().clamp(min=1)
    losses = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
    out = torch.empty_like(logits)
    if logits.numel():
        scale = 1 / int(count)  # waits for the GPU: one more thing that the fused rung does not do
        kernel[len(logits), THREADS](logits, targets, losses, out, ignore_index, scale)
    return losses.sum() / count, out
