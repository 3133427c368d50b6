"""Launching cross-entropy: how many threads take a row, which kernel, and what it is given.

    cross_entropy_forward             loss, log-sum-exp, count         1 · rows · columns · itemsize
    cross_entropy_backward            the gradient, from those         2 · rows · columns · itemsize
    cross_entropy_forward_backward    loss and gradient in one         2 · rows · columns · itemsize

Everywhere logits (N, V) and int64 targets (N) are contiguous. Nothing waits for the GPU.
"""

import functools
from typing import NamedTuple

import torch

from .cross_entropy_fused import fused_kernel
from .cross_entropy_stream import (
    SCALE_ROUNDS,
    SCALE_THREADS,
    backward_kernel,
    count_targets,
    forward_kernel,
    scale_kernel,
)
from .dtypes import dtype_name, vector_width
from .warp import LOWEST

# 16-byte pieces of a row up to which so many threads take it. 50,304 columns of bfloat16 are 6288
# pieces, of float32 12,576.
TEAMS = ((128, 64), (1024, 128), (3072, 256), (4096, 512), (1 << 32, 1024))
COUNTED_BELOW = 16384  # bytes of a row; of longer ones so few blocks work that each may count
RESIDENT_THREADS = 1024  # of a multiprocessor, with the 64 registers that the kernel may use
RESERVED = 2048  # bytes of shared memory that a block needs besides the row
EMULATED = (2, 227 * 1024, 228 * 1024)  # multiprocessors, bytes of a block and of one of those


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
    count: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(loss, dlogits), dlogits times `scale`; by default it is written over the logits.

    count: float32 (1,), how many targets of the batch are not ignore_index, where these rows are a
    part of it (see `count_of`); the loss is then the part's share, and the parts' losses add up.

    One launch; rows shorter than COUNTED_BELOW take one more, which counts the targets. In float16
    gradients below 6e-8 are lost: give the loss scale here, not to the result.
    """
    (rows, columns), dtype = logits.shape, dtype_name(logits)
    loss, out = _floats(logits), logits if inplace else _like(logits)
    if not logits.numel():
        return loss.zero_(), out
    plan = plan_of(rows, columns, dtype, _machine(logits.device))
    counted, losses = count is not None, _floats(logits, rows)
    if count is None:
        counted = columns * logits.itemsize < COUNTED_BELOW
        count = count_of(targets, ignore_index) if counted else _floats(logits, 1)
    kernel = fused_kernel(dtype, plan.threads, plan.resident, plan.smem > 0, counted)
    kernel[plan.blocks, plan.threads, 0, plan.smem](
        logits, out, targets, losses, loss.view(1), count, _arrival_counter(logits), rows, columns,
        ignore_index, scale,
    )  # fmt: skip
    return loss, out


def count_of(targets: torch.Tensor, ignore_index: int = -100) -> torch.Tensor:
    """How many targets are not ignore_index: float32 (1,). One launch."""
    count, rows = _floats(targets, 1), len(targets)
    if not rows:
        return count.zero_()
    count_targets[1, 1024 if rows > 1024 else 128](targets, count, rows, ignore_index)
    return count


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
