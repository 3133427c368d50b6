"""Attention of queries, keys and values that one product has left side by side: nothing is copied.

    qkv (B, T, (H + 2 H_kv) · D)     a row:  | q head 0 | … | k head 0 | … | v head 0 | … |
    y   (B, T, H · D)                        | o head 0 | o head 1 | … |

    y = attention(q, k, v), and one dqkv of qkv's layout from dy

The kernels are those of `attention`: they read heads by their strides, so that q, k and v are views
of qkv, and o has the heads side by side as the next product wants them. Backward, the rungs for
16-bit operands write dq, dk and dv through views of one dqkv: the gradient of the product that made
qkv needs no `cat`, which would read and write 2 · (H + 2 H_kv) · B · T · D elements. The rung for
float32 and odd head sizes works on contiguous heads; there operands and gradients are copied.

FLOPs and bytes are those of `attention`.
"""

import torch
from torch.autograd.function import once_differentiable

from .attention import (
    BACKWARD,
    MODULES,
    TAKEN,
    _check,
    _module,
    aligned,
    attention_reference,
    rung_of,
)
from .dtypes import FLOATS, dtype_name

Heads = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
IN_PLACE = ("warp", "hopper")  # the rungs whose backward writes where it is told


def heads_of(qkv: torch.Tensor, n_heads: int, n_kv_heads: int) -> Heads:
    """q (B, H, T, D), k and v (B, H_kv, T, D): views of qkv (B, T, (H + 2 H_kv) · D)."""
    heads = qkv.unflatten(2, (n_heads + 2 * n_kv_heads, -1)).transpose(1, 2)
    q, k, v = heads.split((n_heads, n_kv_heads, n_kv_heads), dim=1)
    return q, k, v


def packed_attention_reference(
    qkv: torch.Tensor, n_heads: int, n_kv_heads: int | None = None, *, causal: bool = True,
    window: int | None = None, scale: float | None = None,
) -> torch.Tensor:  # fmt: skip
    """y, in qkv's own precision; differentiable."""
    q, k, v = heads_of(qkv, n_heads, n_kv_heads or n_heads)
    o, _ = attention_reference(q, k, v, causal=causal, window=window, scale=scale)
    return o.transpose(1, 2).flatten(2)


class PackedAttentionFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, qkv, n_heads, n_kv_heads, causal, window, scale):
        q, k, v = heads_of(qkv, n_heads, n_kv_heads)
        rung = rung_of(q)
        options = {"causal": causal, "window": window, "scale": scale}
        o, lse = _module(MODULES[rung]).forward(q, k, v, **options)
        y = o.transpose(1, 2).flatten(2)  # a view: o lies as (B, T, H, D)
        ctx.save_for_backward(qkv, y, lse)
        ctx.heads, ctx.rung, ctx.options = (n_heads, n_kv_heads), rung, options
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        qkv, y, lse = ctx.saved_tensors
        n_heads, n_kv_heads = ctx.heads
        dqkv = torch.empty(qkv.shape, dtype=qkv.dtype, device=qkv.device)
        out = heads_of(dqkv, n_heads, n_kv_heads)
        do, o = (x.unflatten(2, (n_heads, -1)).transpose(1, 2) for x in (aligned(dy), y))
        operands = (do, *heads_of(qkv, n_heads, n_kv_heads), o, lse)
        backward = _module(BACKWARD[ctx.rung]).backward
        if ctx.rung in IN_PLACE:
            backward(*operands, **ctx.options, out=out)
        else:
            for to, grad in zip(out, backward(*operands, **ctx.options), strict=True):
                to.copy_(grad)
        return dqkv, None, None, None, None, None


def packed_attention(
    qkv: torch.Tensor, n_heads: int, n_kv_heads: int | None = None, *, causal: bool = True,
    window: int | None = None, scale: float | None = None,
) -> torch.Tensor:  # fmt: skip
    """Attention over the T positions of qkv (B, T, (H + 2 H_kv) · D); differentiable. → (B, T, H·D)

    qkv: float32, float16 or bfloat16; the heads of the queries, then those of the keys, then those
        of the values, D from 1 to 256. A contiguous qkv is read as it is, as are views with a
        contiguous last axis, and a start and other strides that are multiples of 16 bytes; other
        views are copied first, and always for float32 and a D that is no multiple of 8.
    n_heads, n_kv_heads: H, and H_kv, which divides it; H by default.
    causal, window: position t sees the keys j ≤ t (causal) with |t − j| < window.
    scale: of the scores, positive; by default 1 / √D.

    The gradient is one contiguous tensor of qkv's shape, written by the kernels. Raises TypeError
    or ValueError naming the argument.
    """
    n_kv_heads = n_heads if n_kv_heads is None else n_kv_heads
    _check_packed(qkv, n_heads, n_kv_heads)
    q, k, v = heads_of(qkv, n_heads, n_kv_heads)
    _check(q, k, v, window, scale)
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    if rung_of(q) in IN_PLACE:
        qkv = aligned(qkv)
    return PackedAttentionFunction.apply(qkv, n_heads, n_kv_heads, bool(causal), window, scale)


def _check_packed(qkv, n_heads, n_kv_heads):
    if qkv.dtype not in TAKEN:
        raise TypeError(f"qkv: its dtype is {dtype_name(qkv)}, it must be {' or '.join(FLOATS)}")
    if n_heads < 1:
        raise ValueError(f"n_heads: got {n_heads}, it must be at least 1")
    if n_kv_heads < 1 or n_heads % n_kv_heads:
        raise ValueError(f"n_kv_heads: got {n_kv_heads}, it must be a divisor of n_heads {n_heads}")
    heads = n_heads + 2 * n_kv_heads
    if qkv.dim() != 3 or min(qkv.shape) < 1 or qkv.shape[2] % heads or qkv.shape[2] > 256 * heads:
        raise ValueError(
            f"qkv: its shape is {tuple(qkv.shape)}, it must be (B, T, {heads} · D), "
            f"{n_heads} + 2 · {n_kv_heads} heads, with D from 1 to 256 and no empty axis"
        )
