"""Attention, forward and backward, without the matrix of scores in memory.

    s[t, j] = q[t] · k[j] · scale,   −∞ where query t does not see key j
    lse[t] = log Σ_j exp(s[t, j]),   p[t, j] = exp(s[t, j] − lse[t]),   o[t] = Σ_j p[t, j] v[j]

    δ[t] = do[t] · o[t],   ds[t, j] = p[t, j] (do[t] · v[j] − δ[t]) scale
    dq[t] = Σ_j ds[t, j] k[j],   dk[j] = Σ_t ds[t, j] q[t],   dv[j] = Σ_t p[t, j] do[t]

q (B, H, Tq, D), k and v (B, H_kv, Tk, D): query head h uses head h // (H / H_kv) of the keys. The
Tq queries are the last of the Tk positions; query t sees key j when j ≤ t (causal) and
|t − j| < window. Where every query sees T keys the forward pass takes 4 · B · H · T² · D FLOPs, 2.5
times that backward, both halved where causal, and moves (2 H + 2 H_kv) · B · T · D elements: from
T = 600 on an H100 spends longer on the products than on the memory.

| rung   | file               | runs                                                               |
|--------|--------------------|--------------------------------------------------------------------|
| naive  | `attention_naive`  | by name only: three kernels, the scores in memory; forward only    |
| online | `attention_rows`   | for what the others do not take: float32, a D that is no multiple  |
|        |                    | of 8 or larger than 128, bfloat16 before compute capability 8.0    |
| warp   | `attention_warp`   | on GPUs that are no Hopper, everywhere for D < 32: `mma.sync`      |
| hopper | `attention_hopper` | on compute capability 9.0 and the emulator: TMA and `wgmma`        |

Each is `forward(q, k, v, *, causal, window, scale) -> (o, lse)` with lse to base 2: that is what
the exponentials of the backward pass want. Sources: Vaswani et al. 2017, section 3.2.1; Milakov and
Gimelshein 2018, "Online normalizer calculation for softmax"; Dao et al. 2022, "FlashAttention",
algorithms 1 and 4; Shah et al. 2024, "FlashAttention-3".
"""

import functools
import math
from importlib import import_module

import torch
from torch.autograd.function import once_differentiable

from . import driver
from .dtypes import FLOATS, dtype_name

LN2 = math.log(2.0)
TAKEN = tuple(getattr(torch, name) for name in FLOATS)
HALVES = ("bfloat16", "float16")  # what tensor cores multiply here
MODULES = {
    "naive": "attention_naive",
    "online": "attention_rows",
    "warp": "attention_warp",
    "hopper": "attention_hopper",
}
BACKWARD = MODULES | {"hopper": "attention_backward_hopper"}
del BACKWARD["naive"]


def seen(queries: int, keys: int, *, causal: bool, window: int | None = None,
         device: torch.device | str | None = None) -> torch.Tensor:  # fmt: skip
    """Which key each query sees: bool (queries, keys)."""
    t = torch.arange(keys - queries, keys, device=device)[:, None]
    j = torch.arange(keys, device=device)[None, :]
    allowed = j <= t if causal else torch.ones(queries, keys, dtype=torch.bool, device=device)
    return allowed if window is None else allowed & ((t - j).abs() < window)


def attention_reference(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, causal: bool = True,
    window: int | None = None, scale: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """(o, lse), in the operands' own precision; lse is the natural logarithm."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    s = q @ k.transpose(-1, -2) * scale
    allowed = seen(*s.shape[-2:], causal=causal, window=window, device=q.device)
    s = s.masked_fill(~allowed, -math.inf)
    lse = s.logsumexp(-1)
    return torch.exp(s - lse[..., None]) @ v, lse


def attention_backward_reference(
    do: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, causal: bool = True,
    window: int | None = None, scale: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """(dq, dk, dv), in the operands' own precision."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    group = q.shape[1] // k.shape[1]
    kk, vv = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    o, lse = attention_reference(q, k, v, causal=causal, window=window, scale=scale)
    allowed = seen(q.shape[2], k.shape[2], causal=causal, window=window, device=q.device)
    p = torch.exp(q @ kk.transpose(-1, -2) * scale - lse[..., None]) * allowed
    ds = p * (do @ vv.transpose(-1, -2) - (do * o).sum(-1, keepdim=True)) * scale
    dk, dv = ds.transpose(-1, -2) @ q, p.transpose(-1, -2) @ do
    return ds @ kk, *(x.unflatten(1, (-1, group)).sum(2) for x in (dk, dv))


# ---- which rung


def rung_of(q: torch.Tensor) -> str:
    """The rung that takes q's dtype, head size and device: "online", "warp" or "hopper"."""
    return _rung_of(q.dtype, q.shape[-1], q.device)


@functools.cache
def _rung_of(dtype, D, device):
    dtype = dtype_name(dtype)
    cc = driver.compute_capability(device.index) if device.type == "cuda" else (9, 0)
    if D % 8 or D > 128 or dtype not in (HALVES if cc >= (8, 0) else ("float16",)):
        return "online"
    return "hopper" if cc == (9, 0) and D >= 32 else "warp"


@functools.cache
def _module(name):
    return import_module(f".{name}", __package__)


def _rung(name):
    def forward(q, k, v, *, causal=True, window=None, scale=None):
        _check(q, k, v, window, scale)
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        return _module(MODULES[name]).forward(q, k, v, causal=causal, window=window, scale=scale)

    forward.__name__ = name
    return forward


RUNGS = {name: _rung(name) for name in MODULES}


def aligned(x: torch.Tensor) -> torch.Tensor:
    """x itself where copies of whole boxes can read it, else a contiguous copy.

    They want a contiguous last axis, a start and other strides that are multiples of 16 bytes.
    """
    unit = 16 // x.element_size()
    odd = [s <= 0 or s % unit != 0 for s in x.stride()[:-1]]
    if not any(odd) and x.stride(-1) == 1 and x.data_ptr() % 16 == 0:
        return x
    if any(o and n > 1 for o, n in zip(odd, x.shape, strict=False)) or x.stride(-1) != 1:
        x = x.contiguous()
    elif x.data_ptr() % 16:
        x = x.clone(memory_format=torch.contiguous_format)
    # Where there is only one row, its stride means nothing to torch, but to the copies.
    row = -(-x.shape[-1] // unit) * unit
    strides = [row if n == 1 else s for n, s in zip(x.shape[:-1], x.stride(), strict=False)]
    return x.as_strided(x.shape, (*strides, 1))


class AttentionFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, causal, window, scale):
        rung = rung_of(q)
        options = {"causal": causal, "window": window, "scale": scale}
        o, lse = _module(MODULES[rung]).forward(q, k, v, **options)
        ctx.save_for_backward(q, k, v, o, lse)
        ctx.rung, ctx.options = rung, options
        ctx.mark_non_differentiable(lse)
        return o, lse

    @staticmethod
    @once_differentiable
    def backward(ctx, do, _):
        backward = _module(BACKWARD[ctx.rung]).backward
        grads = backward(aligned(do), *ctx.saved_tensors, **ctx.options)
        return *grads, None, None, None


def attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, causal: bool = True,
    window: int | None = None, scale: float | None = None, return_lse: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """softmax(q kᵀ · scale, masked) v; differentiable in q, k and v.

    q (B, H, Tq, D); k, v (B, H_kv, Tk, D), H a multiple of H_kv, 1 ≤ Tq ≤ Tk, D up to 256; float32,
    float16 or bfloat16. → o (B, H, Tq, D) of the same dtype, a view of (B, Tq, H, D) memory:
    `o.transpose(1, 2).reshape(B, Tq, H * D)` copies nothing.

    causal, window: query t, at position t + Tk − Tq, sees the keys j ≤ position (causal) with
        |position − j| < window. Its own position is always among them.
    scale: of the scores, positive; by default 1 / √D.
    return_lse: also return lse (B, H, Tq), float32: the natural logarithm of the sum of the
        exponentials of each row's scores. No gradient goes through it.

    Products of 16-bit operands are accumulated in float32; p is rounded to the operands' format, as
    operand of p v. Views are read as they are, with any strides that are multiples of 16 bytes: q,
    k and v may be slices of one (B, T, 3, H, D) tensor. Other views are copied first, and the rung
    for float32 copies every view. Raises TypeError or ValueError naming the argument.
    """
    _check(q, k, v, window, scale)
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    o, lse = AttentionFunction.apply(
        aligned(q), aligned(k), aligned(v), bool(causal), window, scale
    )
    return (o, lse * LN2) if return_lse else o


def _check(q, k, v, window, scale):
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.dim() != 4:
            raise ValueError(f"{name}: its shape is {tuple(x.shape)}, it must be (B, H, T, D)")
        if x.dtype != q.dtype or x.dtype not in TAKEN:
            raise TypeError(
                f"{name}: its dtype is {dtype_name(x)}, q's is {dtype_name(q)}; all three must be "
                f"one of {', '.join(FLOATS)}"
            )
        if x.device != q.device:
            raise ValueError(f"{name}: it is on {x.device}, q on {q.device}")
    (B, H, Tq, D), (_, H_kv, Tk, _) = q.shape, k.shape
    if k.shape != (B, H_kv, Tk, D) or v.shape != k.shape:
        raise ValueError(
            f"k, v: their shapes are {tuple(k.shape)} and {tuple(v.shape)}, both must be "
            f"({B}, H_kv, Tk, {D})"
        )
    if min(q.shape) < 1 or min(k.shape) < 1 or D > 256:
        raise ValueError(
            f"q: its shape is {tuple(q.shape)}, k's {tuple(k.shape)}; every size must be at least "
            "1, and D at most 256"
        )
    if H % H_kv:
        raise ValueError(f"k: it has {H_kv} heads, which do not divide q's {H}")
    if Tq > Tk:
        raise ValueError(f"q: it has {Tq} positions, more than the {Tk} of k")
    if window is not None and window < 1:
        raise ValueError(f"window: got {window}, it must be at least 1, or None")
    if scale is not None and not 0 < scale < math.inf:
        raise ValueError(f"scale: got {scale}, it must be positive and finite")
