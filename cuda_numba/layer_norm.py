"""LayerNorm over the last axis (Ba, Kiros & Hinton 2016), alone and with the residual addition.

    y = (x − mean) · rstd · w + b,   mean = Σ x / n,   rstd = 1 / √(Σ (x − mean)² / n + eps)

With a residual, s = x + residual is formed, rounded to the format and kept, and s is normalised:
the addition and the norm that follow each other in every block of a transformer, in one kernel.

Bytes for R rows of n: forward 2 · R · n · itemsize (4 with a residual) and 8 R for the statistics,
backward 3 (4 when s has a gradient of its own) and the partial sums for dw and db. About 8
operations per element forward, 14 backward. At a copy's 3.0 TB/s on an H100, bf16 16384 × 4096:
89 µs forward, 134 µs backward.

Statistics are float32 whatever the format; they are saved, so the backward pass needs x, w, mean
and rstd. Which thread owns what: `norm_access`. The kernels: `norm_forward`, `norm_staged` and
`norm_backward`, slower rungs `norm_passes`, dw and db `norm_weights`. Which runs when: `norm`.
"""

import functools

import torch
from torch.autograd.function import once_differentiable

from . import norm
from .norm_arguments import check_arguments


def layer_norm_reference(x, w, b=None, eps=1e-5):
    apart = x - x.mean(-1, keepdim=True)
    y = apart / torch.sqrt((apart * apart).mean(-1, keepdim=True) + eps) * w
    return y if b is None else y + b


def layer_norm_residual_reference(x, residual, w, b=None, eps=1e-5):
    total = x + residual
    return layer_norm_reference(total, w, b, eps), total


# ---- launchers: contiguous tensors


def layer_norm_forward(x, w, b=None, eps=1e-5, *, rung=None):
    """(y, mean, rstd): x (…, n), w and b (n,) → y as x, mean and rstd float32 (…,).

    rung: one of RUNGS, by default the fastest for this width and alignment.
    """
    y, _, mean, rstd = norm.forward(x, None, w, b, eps, True, rung)
    return y, mean, rstd


def layer_norm_backward(dy, x, w, mean, rstd, *, bias=True, rung=None):
    """(dx, dw, db) from dy and what the forward pass saved; db is None with bias=False."""
    return norm.backward(dy, x, w, mean, rstd, None, bias, rung)


def layer_norm_residual_forward(x, residual, w, b=None, eps=1e-5, *, rung=None):
    """(y, total, mean, rstd): total = x + residual, rounded to the format; y its LayerNorm."""
    return norm.forward(x, residual, w, b, eps, True, rung)


def layer_norm_residual_backward(dy, dtotal, total, w, mean, rstd, *, bias=True, rung=None):
    """(dx, dw, db); dx is the gradient of x and of residual. dtotal: total's own, or None."""
    return norm.backward(dy, total, w, mean, rstd, dtotal, bias, rung)


RUNGS = {name: functools.partial(layer_norm_forward, rung=name) for name in norm.FORWARD_RUNGS}
BACKWARD_RUNGS = {
    name: functools.partial(layer_norm_backward, rung=name) for name in norm.BACKWARD_RUNGS
}


class LayerNormFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w, b, eps):
        y, mean, rstd = layer_norm_forward(x, w, b, eps)
        ctx.save_for_backward(x, w, mean, rstd)
        ctx.bias = b is not None
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        dx, dw, db = layer_norm_backward(dy.contiguous(), *ctx.saved_tensors, bias=ctx.bias)
        return dx, dw, db, None


class LayerNormResidualFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, residual, w, b, eps):
        y, total, mean, rstd = layer_norm_residual_forward(x, residual, w, b, eps)
        ctx.save_for_backward(total, w, mean, rstd)
        ctx.bias = b is not None
        ctx.set_materialize_grads(False)
        return y, total

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, dtotal):
        total, w, mean, rstd = ctx.saved_tensors
        if dy is None:  # only the sum was used
            return dtotal, dtotal, None, None, None
        dtotal = None if dtotal is None else dtotal.contiguous()
        dx, dw, db = layer_norm_residual_backward(
            dy.contiguous(), dtotal, total, w, mean, rstd, bias=ctx.bias
        )
        return dx, dx, dw, db, None


# ---- public operations


def layer_norm(
    x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None = None, eps: float = 1e-5
) -> torch.Tensor:
    """LayerNorm over the last axis: x (…, n), w (n,), b (n,) or None → as x; differentiable.

    x: float32, float16 or bfloat16; w and b: x's dtype or float32. Computed in float32, rounded
    once. What is not contiguous is copied first. Errors name the argument.
    """
    check_arguments(x, w, b)
    b = None if b is None else b.contiguous()
    return LayerNormFunction.apply(x.contiguous(), w.contiguous(), b, eps)


def layer_norm_residual(
    x: torch.Tensor,
    residual: torch.Tensor,
    w: torch.Tensor,
    b: torch.Tensor | None = None,
    eps: float = 1e-5,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(LayerNorm of x + residual, x + residual) in one kernel; differentiable in both results.

    x and residual (…, n) of one dtype; everything else as `layer_norm`.
    """
    check_arguments(x, w, b, residual=residual)
    b = None if b is None else b.contiguous()
    return LayerNormResidualFunction.apply(
        x.contiguous(), residual.contiguous(), w.contiguous(), b, eps
    )
