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
from typing import NamedTuple

import torch

from . import ptx
from .cross_entropy_fused import fused_kernel
from .cross_entropy_row import SCRATCH, natural_log
from .cross_entropy_stream import (
    SCALE_ROUNDS,
    SCALE_THREADS,
    backward_kernel,
    count_targets,
    forward_kernel,
    scale_kernel,
)
from .dtypes import FLOATS, dtype_name, vector_width
from .jit import jit
from .namespace import cuda, float32, int64
from .softmax_rows import exp_of, shift_of
from .warp import LOWEST, block_max, block_sum

THREADS = 128  # of the rungs that read a row more than once; a constant, for `range` divides by it
# 16-byte pieces of a row up to which so many threads take it: about a dozen pieces each. 50,304
# columns of bfloat16 are 6288 pieces, of float32 12,576.
TEAMS = ((128, 64), (1024, 128), (3072, 256), (8192, 512), (1 << 32, 1024))
COUNTED_BELOW = 16384  # bytes of a row; of longer ones so few blocks work that each may count
RESIDENT_THREADS = 1024  # of a multiprocessor, with the 64 registers that the kernel may use
RESERVED = 2048  # bytes of shared memory that a block needs besides the row
EMULATED = (2, 227 * 1024, 228 * 1024)  # multiprocessors, bytes of a block and of one of those


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


# ---- rungs that read the row more than once: one block per row, one element per access


@jit
def cross_entropy_naive(x, targets: "int64", losses: "float32", out, ignore, scale: "float32"):
    scratch = cuda.shared.array(SCRATCH, float32)
    columns = x.shape[1]
    row = cuda.blockIdx.x
    start = row * columns
    target = targets[row]
    kept = target != ignore
    peak = float32(LOWEST)
    for j in range(cuda.threadIdx.x, columns, THREADS):
        peak = max(peak, ptx.load(x, start + j))
    peak = shift_of(block_max(peak, scratch, 0))
    total = float32(0)
    for j in range(cuda.threadIdx.x, columns, THREADS):
        total += exp_of(ptx.load(x, start + j) - peak)
    total = block_sum(total, scratch, 32)
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
def cross_entropy_online(x, targets: "int64", losses: "float32", out, ignore, scale: "float32"):
    scratch = cuda.shared.array(SCRATCH, float32)
    columns = x.shape[1]
    row = cuda.blockIdx.x
    start = row * columns
    target = targets[row]
    kept = target != ignore
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
    for j in range(cuda.threadIdx.x, columns, THREADS):
        gradient = float32(0)
        if kept:
            gradient = exp_of(ptx.load(x, start + j) - top) / total
            if j == target:
                gradient -= float32(1)
        ptx.store(out, start + j, gradient * scale)
    if cuda.threadIdx.x == 0:
        losses[row] = float32(0)
        if kept:
            losses[row] = top - ptx.load(x, start + target) + natural_log(total)


# ---- launchers: contiguous logits (N, V) and int64 targets (N)


class Plan(NamedTuple):
    """How the fused kernel is launched."""

    threads: int
    blocks: int  # of the grid: as many as the GPU holds at a time, at most one for each row
    resident: int  # blocks of a multiprocessor, as far as registers go
    smem: int  # bytes of dynamic shared memory: a row, 0 where rows are streamed


def team_of(columns: int, dtype: str) -> int:
    """Threads for a row of so many columns."""
    pieces = columns // vector_width(dtype)
    return next(threads for limit, threads in TEAMS if pieces <= limit)


@functools.cache
def _machine(device: torch.device) -> tuple[int, int, int]:
    """Multiprocessors, bytes of shared memory for a row (0 without cp.async) and of all blocks."""
    if device.type != "cuda":
        return EMULATED
    found = torch.cuda.get_device_properties(device)
    if (found.major, found.minor) < (8, 0):
        return found.multi_processor_count, 0, 0
    per_block = found.shared_memory_per_block_optin
    return found.multi_processor_count, per_block, found.shared_memory_per_multiprocessor


def plan_of(rows: int, columns: int, dtype: str, machine: tuple[int, int, int]) -> Plan:
    """machine: multiprocessors, bytes of shared memory that a block and that one of them has."""
    processors, per_block, per_processor = machine
    threads, width = team_of(columns, dtype), vector_width(dtype)
    smem = columns // width * 16
    resident = RESIDENT_THREADS // threads
    if smem + RESERVED > per_block:
        smem, together = 0, resident
    else:
        together = min(resident, per_processor // (smem + RESERVED))
    return Plan(threads, min(rows, processors * together), resident, smem)


_counters: dict[tuple[int, int], torch.Tensor] = {}


def _arrival_counter(x: torch.Tensor) -> torch.Tensor:
    """A zero that the kernel counts its blocks in, and leaves as zero: one per GPU and stream."""
    if not x.is_cuda or torch.cuda.is_current_stream_capturing():
        return torch.zeros(1, dtype=torch.int32, device=x.device)
    key = x.get_device(), torch.cuda.current_stream(x.device).cuda_stream
    if key not in _counters:
        _counters[key] = torch.zeros(1, dtype=torch.int32, device=x.device)
    return _counters[key]


def _floats(x: torch.Tensor, *shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.float32, device=x.device)


class Forward(NamedTuple):
    loss: torch.Tensor  # float32, 0-dimensional
    lse: torch.Tensor  # float32 (N,)
    count: torch.Tensor  # float32 (1,), on the logits' device


def cross_entropy_forward(
    logits: torch.Tensor, targets: torch.Tensor, ignore_index: int = -100
) -> Forward:
    """The mean loss, the rows' log-sum-exp and the number of targets that count. One launch."""
    (rows, columns), dtype = logits.shape, dtype_name(logits)
    loss, lse, count = _floats(logits), _floats(logits, rows), _floats(logits, 1)
    if not logits.numel():
        return Forward(loss.zero_(), lse.fill_(LOWEST), count.zero_())
    threads = team_of(columns, dtype)
    forward_kernel(dtype, threads)[rows, threads](
        logits, targets, torch.empty_like(lse), lse, loss.view(1), count, _arrival_counter(logits),
        rows, columns, ignore_index,
    )  # fmt: skip
    return Forward(loss, lse, count)


def cross_entropy_backward(
    dy: torch.Tensor,
    logits: torch.Tensor,
    targets: torch.Tensor,
    lse: torch.Tensor,
    count: torch.Tensor,
    ignore_index: int = -100,
    *,
    inplace: bool = False,
) -> torch.Tensor:
    """dlogits from dy (float32, one number) and what `cross_entropy_forward` returned.

    inplace: write it over the logits. One launch.
    """
    out = logits if inplace else _like(logits)
    if logits.numel():
        (rows, columns), dtype = logits.shape, dtype_name(logits)
        threads = team_of(columns, dtype)
        backward_kernel(dtype, threads)[rows, threads](
            logits, out, targets, lse, dy.view(1), count, columns, ignore_index
        )
    return out


def cross_entropy_forward_backward(
    logits: torch.Tensor,
    targets: torch.Tensor,
    ignore_index: int = -100,
    *,
    scale: float = 1.0,
    inplace: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(loss, dlogits), dlogits times `scale`; by default it is written over the logits.

    One launch; rows shorter than COUNTED_BELOW take one more, which counts the targets. In float16
    gradients below 6e-8 are lost: give the loss scale here, not to the result.
    """
    (rows, columns), dtype = logits.shape, dtype_name(logits)
    loss, out = _floats(logits), logits if inplace else _like(logits)
    if not logits.numel():
        return loss.zero_(), out
    plan = plan_of(rows, columns, dtype, _machine(logits.device))
    count, losses = _floats(logits, 1), _floats(logits, rows)
    counted = columns * logits.itemsize < COUNTED_BELOW
    if counted:
        count_targets[1, 1024 if rows > 1024 else 128](targets, count, rows, ignore_index)
    kernel = fused_kernel(dtype, plan.threads, plan.resident, plan.smem > 0, counted)
    kernel[plan.blocks, plan.threads, 0, plan.smem](
        logits, out, targets, losses, loss.view(1), count, _arrival_counter(logits), rows, columns,
        ignore_index, scale,
    )  # fmt: skip
    return loss, out


def _like(x: torch.Tensor) -> torch.Tensor:
    """An empty tensor like x that starts as far from a multiple of 16 bytes as x does."""
    beyond = x.data_ptr() % 16 // x.itemsize
    out = torch.empty(x.numel() + beyond, dtype=x.dtype, device=x.device)
    return out[beyond:].view(x.shape)


def scale_gradient_(dx: torch.Tensor, dy: torch.Tensor) -> torch.Tensor:
    """dx *= dy (one float32 on dx's device); nothing is moved where dy is 1, and nothing waits."""
    if n := dx.numel():
        dtype = dtype_name(dx)
        width = vector_width(dtype) if dx.data_ptr() % 16 == 0 else 1
        blocks = -(-n // (SCALE_THREADS * SCALE_ROUNDS * width))
        scale_kernel(dtype, width)[blocks, SCALE_THREADS](dx, dy.view(1), n, n // width)
    return dx


def _by_rung(kernel, logits, targets, ignore_index=-100):
    """The slow rungs: count and mean are torch's."""
    count = (targets != ignore_index).sum().clamp(min=1)
    losses, out = _floats(logits, len(logits)), torch.empty_like(logits)
    if logits.numel():
        scale = 1 / int(count)  # waits for the GPU: one more thing that the fused rung does not do
        kernel[len(logits), THREADS](logits, targets, losses, out, ignore_index, scale)
    return losses.sum() / count, out


RUNGS = {  # (logits, targets, ignore_index=-100) → (loss, dlogits)
    "naive": functools.partial(_by_rung, cross_entropy_naive),
    "online": functools.partial(_by_rung, cross_entropy_online),
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
    def backward(ctx, dy):
        if ctx.used:
            raise RuntimeError(
                "cross_entropy_: its backward pass ran before, and the gradient was scaled in "
                "place then; use cross_entropy to go backward more than once."
            )
        ctx.used = True
        return scale_gradient_(ctx.saved_tensors[0], dy), None, None


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
