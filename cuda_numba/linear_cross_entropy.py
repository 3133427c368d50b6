"""A linear layer and its cross-entropy, forward and backward, without the logits whole in memory.

    logits = x wᵀ                       x (N, C), w (V, C)
    loss   = 1/count · Σᵣ (lseᵣ − logits[r, tᵣ])      over the rows with tᵣ ≠ ignore_index
    dlogits = (softmax(logits) − onehot) / count,     dx = dlogits w,     dw = dlogitsᵀ x

The loss of a row needs that row's logits alone. So the rows are taken in chunks, and a chunk's
logits become its gradient in place (`cross_entropy_fused`) and then its part of dx and dw:

    for each chunk    logits ← x[chunk] wᵀ         2 c V C FLOPs; c V numbers written
                      loss, logits ← dlogits       c V read and written
                      dx[chunk] ← logits w         2 c V C, split along V: few tiles
                      dw += logitsᵀ x[chunk]       2 c V C, float32

6 N V C FLOPs in all, and 10 bytes for each logit in bfloat16. For N = 8192, C = 768, V = 50,304:
1.90 TFLOP, 2.8 ms at the 680 TFLOP/s of cuBLAS, and 0.55 ms for the in-place gradient at the 3.0
TB/s of a copy. In memory at a time: CHUNK_BYTES of logits, dw in float32, and the results.

That the gradient is made in the forward pass is Liger's idea (Hsu et al. 2024, "Liger Kernel",
section 3.2); recomputing instead would cost a fourth product (Wijmans et al. 2024, "Cut Your Losses
in Large-Vocabulary Language Models"). float16 does that: there dlogits without the loss scale
would vanish, and the scale comes only with the backward pass.
"""

import torch
from torch.autograd.function import once_differentiable

from .cross_entropy import cross_entropy_reference
from .cross_entropy_launch import (
    count_of,
    cross_entropy_backward,
    cross_entropy_forward,
    cross_entropy_forward_backward,
    scale_gradient_,
)
from .dtypes import FLOATS, dtype_name
from .matmul import HOPPER, matmul_rung, multiply
from .matmul_hopper import product
from .rounded import copy_for

CHUNK_BYTES = 288 << 20  # of logits at a time
CHUNK_ROWS = 128  # a chunk's rows are a multiple: one tile of the product
EIGHT = 8  # 16-bit numbers in 16 bytes: rows of logits begin at multiples, as TMA wants


def linear_cross_entropy_reference(x, w, targets, ignore_index=-100) -> torch.Tensor:
    return cross_entropy_reference(x @ w.t(), targets, ignore_index)


def chunks_of(rows: int, columns: int, itemsize: int, limit: int | None = None) -> list[slice]:
    """Rows in chunks of about equal size, whose logits have at most `limit` bytes (CHUNK_BYTES)."""
    limit = CHUNK_BYTES if limit is None else limit
    number = max(1, -(-rows * columns * itemsize // limit))
    size = max(1, -(-rows // number))
    size = -(-size // CHUNK_ROWS) * CHUNK_ROWS
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


# ---- the pieces of a chunk


def _padded(columns: int) -> int:
    return -(-columns // EIGHT) * EIGHT


def _logits_of(x: torch.Tensor, w: torch.Tensor, room: torch.Tensor) -> torch.Tensor:
    """x wᵀ in `room` (rows, V rounded up to a multiple of 8); −∞ in the columns past V."""
    logits, V = room[: len(x)], w.shape[0]
    _into(x, w.t(), logits[:, :V])
    if V < logits.shape[1]:
        logits[:, V:] = -torch.inf
    return logits


def _into(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor, accumulate: bool = False) -> None:
    """out = a b, or out += a b, by the rung for these operands."""
    if matmul_rung(a, b) == HOPPER:
        product(a, b, out, accumulate=accumulate)
    elif accumulate:
        out += multiply(a, b, out.dtype)
    else:
        out.copy_(multiply(a, b, out.dtype))


class _Chunks:
    """The chunks of a batch, and a buffer for the logits of the largest."""

    def __init__(self, x, w, targets):
        self.x, self.w, self.targets = x, w, targets
        V = w.shape[0]
        self.slices = chunks_of(len(x), V, x.itemsize)
        most = max((s.stop - s.start for s in self.slices), default=0)
        self.room = torch.empty(most, _padded(V), dtype=x.dtype, device=x.device)

    def __iter__(self):
        """(rows, their number, logits, targets) of each."""
        for i, rows in enumerate(self.slices):
            logits = _logits_of(self.x[rows], self.w, self.room)
            yield rows, i, logits, self.targets[rows]


class _Gradients:
    """dx and dw, filled chunk by chunk. dw: a float32 tensor that is added to, or None: one of
    `dtype` is made, by default w's."""

    def __init__(self, x, w, dw=None, dtype=None):
        self.x, self.w, self.given = x, w, dw is not None
        self.dtype = dtype or w.dtype
        self.dx = torch.empty_like(x)
        make = torch.empty if len(x) else torch.zeros
        self.sums = make(w.shape, dtype=torch.float32, device=w.device) if dw is None else dw

    def add(self, rows, i, dlogits):
        dlogits = dlogits[:, : self.w.shape[0]]
        _into(dlogits, self.w, self.dx[rows])
        _into(dlogits.t(), self.x[rows], self.sums, accumulate=self.given or i > 0)

    @property
    def dw(self):
        return self.sums if self.given else self.sums.to(self.dtype)


# ---- launchers: contiguous tensors


def linear_cross_entropy_forward(
    x: torch.Tensor, w: torch.Tensor, targets: torch.Tensor, ignore_index: int = -100
) -> torch.Tensor:
    """The loss alone, float32."""
    chunks = _Chunks(x, w, targets)
    losses = torch.zeros(len(chunks.slices), 2, dtype=torch.float32, device=x.device)
    for _, i, logits, aims in chunks:
        found = cross_entropy_forward(logits, aims, ignore_index)
        losses[i, 0] = found.loss * found.count.view(())
        losses[i, 1] = found.count.view(())
    total, count = losses.sum(0)
    return total / count.clamp(min=1)


def linear_cross_entropy_forward_backward(
    x: torch.Tensor, w: torch.Tensor, targets: torch.Tensor, ignore_index: int = -100, *,
    scale: float = 1.0, dw: torch.Tensor | None = None, dw_dtype: torch.dtype | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """(loss, dx, dw), the gradients times `scale`.

    dw: float32 (V, C) that the gradient of w is added to; None: one of `dw_dtype` is made, by
    default w's.
    """
    chunks, gradients = _Chunks(x, w, targets), _Gradients(x, w, dw, dw_dtype)
    count = count_of(targets, ignore_index)
    losses = torch.zeros(len(chunks.slices), dtype=torch.float32, device=x.device)
    for rows, i, logits, aims in chunks:
        losses[i], dlogits = cross_entropy_forward_backward(
            logits, aims, ignore_index, scale=scale, count=count
        )
        gradients.add(rows, i, dlogits)
    return losses.sum(), gradients.dx, gradients.dw


def linear_cross_entropy_backward(
    dy: torch.Tensor, x: torch.Tensor, w: torch.Tensor, targets: torch.Tensor,
    ignore_index: int = -100, dw_dtype: torch.dtype | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """(dx, dw) from dy (float32, one number), with the logits computed once more."""
    chunks, gradients = _Chunks(x, w, targets), _Gradients(x, w, dtype=dw_dtype)
    count = count_of(targets, ignore_index)
    for rows, i, logits, aims in chunks:
        lse = cross_entropy_forward(logits, aims, ignore_index).lse
        cross_entropy_backward(dy, logits, aims, lse, count, ignore_index, inplace=True)
        gradients.add(rows, i, logits)
    return gradients.dx, gradients.dw


class LinearCrossEntropyFunction(torch.autograd.Function):
    """Gradients in the forward pass; scaled in place by the backward pass, which runs once.

    copy: what is read in w's place, None for w itself; only w has a gradient.
    """

    @staticmethod
    def forward(ctx, x, w, targets, ignore_index, copy):
        loss, dx, dw = linear_cross_entropy_forward_backward(
            x, w if copy is None else copy, targets, ignore_index, dw_dtype=w.dtype
        )
        ctx.save_for_backward(dx, dw)
        ctx.used = False
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        if ctx.used:
            raise RuntimeError(
                "linear_cross_entropy: its backward pass ran before, and the gradients were "
                "scaled in place then; call it again, or keep the logits and use cross_entropy."
            )
        ctx.used = True
        return (*(scale_gradient_(d, dy) for d in ctx.saved_tensors), None, None, None)


class LinearCrossEntropyRecomputed(torch.autograd.Function):
    """The logits are computed once more in the backward pass, when dy, the loss scale, is known."""

    @staticmethod
    def forward(ctx, x, w, targets, ignore_index, copy):
        read = w if copy is None else copy
        ctx.save_for_backward(x, read, targets)
        ctx.ignore_index, ctx.weight_dtype = ignore_index, w.dtype
        return linear_cross_entropy_forward(x, read, targets, ignore_index)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        gradients = linear_cross_entropy_backward(
            dy, *ctx.saved_tensors, ctx.ignore_index, ctx.weight_dtype
        )
        return *gradients, None, None, None


# ---- public operation


def linear_cross_entropy(
    x: torch.Tensor,
    w: torch.Tensor,
    targets: torch.Tensor,
    ignore_index: int = -100,
    rounded: torch.Tensor | None = None,
) -> torch.Tensor:
    """cross_entropy(x wᵀ, targets), with at most CHUNK_BYTES of logits in memory.

    x (N, C), w (V, C) of one dtype, float32, float16 or bfloat16; targets (N) int64 → a float32
    scalar, in nats, the mean over the targets ≠ ignore_index, 0 if there is none. Logits are
    rounded to the dtype, sums are float32. Differentiable in x and w, once: the gradients exist
    when the forward pass is done (in float16 they are computed by the backward pass, as often as
    wanted). What is not contiguous is copied first. A target outside 0 … V − 1 that is not
    ignore_index makes the loss NaN or infinite.

    w may be float32 where x is not. Then the products read `rounded`, w's numbers in x's dtype, or
    without it w.to(x.dtype), made anew in every call; dw is float32 as it is summed, and no
    gradient goes to `rounded`.
    """
    for name, tensor in (("x", x), ("w", w)):
        if dtype_name(tensor) not in FLOATS:
            raise TypeError(
                f"{name}: its dtype is {dtype_name(tensor)}, linear_cross_entropy takes "
                f"{', '.join(FLOATS)}."
            )
        if tensor.dim() != 2:
            raise ValueError(f"{name}: its shape is {tuple(tensor.shape)}, it must have two axes.")
    if w.dtype not in (x.dtype, torch.float32) or w.shape[1] != x.shape[1]:
        raise ValueError(
            f"w: {tuple(w.shape)} {dtype_name(w)}, with x's {tuple(x.shape)} {dtype_name(x)} it "
            f"must be (V, {x.shape[1]}) {dtype_name(x)} or float32."
        )
    if targets.dtype != torch.int64 or targets.shape != x.shape[:1]:
        raise ValueError(
            f"targets: {tuple(targets.shape)} {dtype_name(targets)}, they must be "
            f"({len(x)},) int64."
        )
    if not x.device == w.device == targets.device:
        raise ValueError(
            f"targets, w: on {targets.device} and {w.device}, they must be on {x.device}."
        )
    copy = copy_for(x.dtype, w, rounded)
    copy = copy if copy is None else copy.contiguous()
    x, targets = x.contiguous(), targets.contiguous()
    if not (torch.is_grad_enabled() and (x.requires_grad or w.requires_grad)):
        read = w.contiguous() if copy is None else copy
        return linear_cross_entropy_forward(x, read, targets, ignore_index)
    w = w.contiguous() if copy is None else w
    if x.dtype == torch.float16:
        return LinearCrossEntropyRecomputed.apply(x, w, targets, ignore_index, copy)
    return LinearCrossEntropyFunction.apply(x, w, targets, ignore_index, copy)
