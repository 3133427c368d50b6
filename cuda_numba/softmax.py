"""Softmax over the last axis, forward and backward: read once, written once.

    y[j] = exp(x[j] − m) / Σₖ exp(x[k] − m),   m = maxₖ x[k]
    dx[j] = y[j] · (dy[j] − Σₖ dy[k] · y[k])

For `rows` rows of `columns` elements the forward pass moves 2 · rows · columns · itemsize bytes,
the backward pass 3 of them; per element one exponential and about six operations. At the 3.0 TB/s
of a copy on an H100: bf16 16384 × 4096, 268 MB, 90 µs forward and 134 µs backward; fp32
65536 × 4096 and 8192 × 50304, 2.15 and 3.30 GB, 0.72 and 1.10 ms forward.

    naive        three passes over the row: maximum, sum, result. 3 reads, 1 write
    online       maximum and sum in one pass: when the maximum grows from m to m', the sum so far
                 shrinks by exp(m − m'). 2 reads, 1 write (Milakov & Gimelshein 2018, algorithm 3)
    vectorised   the row stays in registers: 1 read, 1 write

The kernels of the last rung are in `softmax_rows`; rows that registers cannot hold are read twice,
by `softmax_long`. A row whose entries are all −∞ gives NaN, as in torch; NaN anywhere in a row
makes the row NaN.
"""

import functools

import torch
from torch.autograd.function import once_differentiable

from . import ptx
from .dtypes import FLOATS, dtype_name, vector_width
from .jit import jit
from .namespace import cuda, float32
from .softmax_long import LONG_THREADS, long_backward_kernel, long_forward_kernel
from .softmax_rows import (
    BACKWARD,
    FORWARD,
    backward_kernel,
    exp_of,
    forward_kernel,
    shift_of,
    team_of,
)
from .warp import LOWEST, block_max, block_sum

THREADS = 128  # of the rungs that read a row more than once; a constant, for `range` divides by it


def softmax_reference(x: torch.Tensor) -> torch.Tensor:
    e = torch.exp(x - x.amax(-1, keepdim=True))
    return e / e.sum(-1, keepdim=True)


def softmax_backward_reference(dy: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return y * (dy - (dy * y).sum(-1, keepdim=True))


# ---- rungs that read the row more than once: one block per row, one element per access


@jit
def softmax_naive(x, y):
    scratch = cuda.shared.array(64, float32)
    columns = x.shape[1]
    start = cuda.blockIdx.x * columns
    peak = float32(LOWEST)
    for j in range(cuda.threadIdx.x, columns, THREADS):
        peak = max(peak, ptx.load(x, start + j))
    peak = block_max(peak, scratch, 0)
    total = float32(0)
    for j in range(cuda.threadIdx.x, columns, THREADS):
        total += exp_of(ptx.load(x, start + j) - peak)
    total = block_sum(total, scratch, 32)
    for j in range(cuda.threadIdx.x, columns, THREADS):
        ptx.store(y, start + j, exp_of(ptx.load(x, start + j) - peak) / total)


@jit
def softmax_online(x, y):
    scratch = cuda.shared.array(64, float32)
    columns = x.shape[1]
    start = cuda.blockIdx.x * columns
    peak = float32(LOWEST)
    total = float32(0)
    for j in range(cuda.threadIdx.x, columns, THREADS):
        value = ptx.load(x, start + j)
        if value > peak:
            total = total * exp_of(peak - value) + float32(1)
            peak = value
        else:
            total += exp_of(value - shift_of(peak))
    top = block_max(peak, scratch, 0)
    total = block_sum(total * exp_of(peak - shift_of(top)), scratch, 32)
    for j in range(cuda.threadIdx.x, columns, THREADS):
        ptx.store(y, start + j, exp_of(ptx.load(x, start + j) - top) / total)


# ---- launchers: contiguous tensors, softmax over the last axis


def _rows_of(x: torch.Tensor) -> tuple[int, int]:
    columns = x.shape[-1] if x.dim() else 1
    return x.numel() // columns, columns


def _width(columns: int, *tensors: torch.Tensor) -> int:
    """Elements in one access: 16 bytes where every row of every tensor starts at 16, else 1."""
    width = vector_width(dtype_name(tensors[0]))
    aligned = columns % width == 0 and all(t.data_ptr() % 16 == 0 for t in tensors)
    return width if aligned else 1


def softmax_forward(x: torch.Tensor) -> torch.Tensor:
    """y = softmax(x), by the vectorised kernel for rows of this length."""
    y = torch.empty_like(x)
    if not x.numel():
        return y
    (rows, columns), dtype = _rows_of(x), dtype_name(x)
    width = _width(columns, x, y)
    team = team_of(columns, width, FORWARD)
    if team is None:
        kernel = long_forward_kernel(dtype, width)
        kernel[rows, LONG_THREADS](x, y, columns, columns // width)
    else:
        blocks = -(-rows // team.rows)
        forward_kernel(dtype, team)[blocks, team.threads](x, y, rows, columns)
    return y


def softmax_backward(dy: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """dx of softmax from dy and its result y, by the vectorised kernel."""
    dx = torch.empty_like(y)
    if not y.numel():
        return dx
    (rows, columns), dtype = _rows_of(y), dtype_name(y)
    width = _width(columns, dy, y, dx)
    team = team_of(columns, width, BACKWARD)
    if team is None:
        kernel = long_backward_kernel(dtype, width)
        kernel[rows, LONG_THREADS](dy, y, dx, columns, columns // width)
    else:
        blocks = -(-rows // team.rows)
        backward_kernel(dtype, team)[blocks, team.threads](dy, y, dx, rows, columns)
    return dx


def _by_rung(kernel, x: torch.Tensor) -> torch.Tensor:
    y = torch.empty_like(x)
    if x.numel():
        rows, columns = _rows_of(x)
        kernel[rows, THREADS](x.view(rows, columns), y.view(rows, columns))
    return y


RUNGS = {
    "naive": functools.partial(_by_rung, softmax_naive),
    "online": functools.partial(_by_rung, softmax_online),
    "vectorised": softmax_forward,
}


class SoftmaxFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        y = softmax_forward(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        return softmax_backward(dy.contiguous(), *ctx.saved_tensors)


def softmax(x: torch.Tensor) -> torch.Tensor:
    """Softmax over the last axis: x (…, n) → y (…, n) of x's dtype; differentiable.

    float32, float16 or bfloat16, any n; computed in float32 and rounded once. What is not
    contiguous is copied first. A row of −∞ alone, and a row that holds NaN or +∞, is NaN.
    """
    if dtype_name(x) not in FLOATS:
        raise TypeError(f"x: its dtype is {dtype_name(x)}, softmax takes {', '.join(FLOATS)}.")
    return SoftmaxFunction.apply(x.contiguous())
