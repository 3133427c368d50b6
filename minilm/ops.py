"""The one door to kernels: every tensor operation of the model, by name, on the backend in force.

The model never calls a kernel library itself. It calls `ops.layer_norm`, `ops.attention` and so on,
and this file decides who computes it: PyTorch, or the kernels of `cuda_numba` inside
`with use_backend("numba"):`. There every operation of the model is a kernel in Python, forward and
backward, and so are the steps of AdamW and Lion; SGD stays PyTorch's, and so does attention where
it has a mask of its own or dropout. `computed_by` says who computes what (see `backends`). The
kernels take float32, float16 and bfloat16 and raise TypeError for everything else.

Autocast, on the numba backend: products, attention and the loss take their operands in autocast's
format, as PyTorch's do. So does the residual stream, from the embedding on, which PyTorch keeps in
float32. A float32 parameter is rounded where it enters a product, or `use_rounded` has a copy; its
gradient is added up in float32 and never rounded, where PyTorch's has passed through 16 bits. (Of
learned positions, which are added to the stream, it is rounded once, after the sum over the batch.)
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor

from .backends import (
    BACKEND_OPS,
    BACKENDS,
    OPS,
    backend,
    check_backend,
    computed_by,
    use_backend,
)

__all__ = [
    "BACKENDS",
    "BACKEND_OPS",
    "OPS",
    "attention",
    "backend",
    "check_backend",
    "computed_by",
    "cross_entropy",
    "embedding",
    "gelu",
    "layer_norm",
    "layer_norm_residual",
    "linear",
    "linear_cross_entropy",
    "mlp",
    "packed_attention",
    "rms_norm",
    "rms_norm_residual",
    "rope",
    "softmax",
    "split_heads",
    "step_kernel",
    "swiglu",
    "use_backend",
    "use_rounded",
    "visible",
]


def _kernel(op: str, tensor: Tensor) -> Callable | None:
    """cuda_numba's function for `op`, or None where PyTorch computes it.

    tensor: one of the arguments; ValueError where the backend does not compute on its device.
    """
    name = computed_by(op)
    if name == "torch":
        return None
    check_backend(name, tensor.device.type)
    import cuda_numba  # not before a kernel is wanted: `import minilm` stays light

    return getattr(cuda_numba, op)


def step_kernel(rule: str, params: list[Tensor]) -> Callable | None:
    """The kernel that takes an optimizer step, rule "adamw_step" or "lion_step", in one launch.

    It has the arguments of the function of that name in `optim`; None where PyTorch computes it.
    """
    return _kernel(rule, params[0])


# ---- autocast on the numba backend


@contextmanager
def use_rounded(copies: Mapping[Tensor, Tensor]) -> Iterator[None]:
    """Read these copies instead of rounding a parameter at each use; parameter → its copy.

    A copy has the parameter's values in autocast's format, and whoever changes the parameter sees
    to that. The numba backend uses it under autocast; gradients go to the parameter.
    """
    token = _rounded.set(copies)
    try:
        yield
    finally:
        _rounded.reset(token)


_rounded: ContextVar[Mapping[Tensor, Tensor]] = ContextVar(
    "minilm_rounded", default=MappingProxyType({})
)


def _autocast_dtype(tensor: Tensor) -> torch.dtype | None:
    """Autocast's format on the tensor's device; None where autocast is off."""
    device = tensor.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def _lowered(*tensors: Tensor | None) -> list[Tensor | None]:
    """The tensors in autocast's format where autocast is on, else as they are."""
    dtype = _autocast_dtype(tensors[0])
    return [t if t is None or dtype is None else t.to(dtype) for t in tensors]


def _copy(w: Tensor, dtype: torch.dtype) -> Tensor | None:
    """The copy of a parameter in this format that `use_rounded` has given, if there is one."""
    copy = _rounded.get().get(w)
    return copy if copy is not None and copy.dtype == dtype else None


# ---- the operations


def linear(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    """x Wᵀ + b. x (..., K), w (N, K), b (N) → (..., N)."""
    if kernel := _kernel("linear", x):
        (x,) = _lowered(x)
        return kernel(x, w, b, rounded=_copy(w, x.dtype))
    return F.linear(x, w, b)


def mlp(
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    approximate: str = "none",
) -> Tensor:
    """linear(gelu(linear(x, w1, b1)), w2, b2). x (..., C), w1 (FF, C), w2 (C, FF) → (..., C)."""
    if kernel := _kernel("mlp", x):
        (x,) = _lowered(x)
        copies = _copy(w1, x.dtype), _copy(w2, x.dtype)
        activation = "gelu_tanh" if approximate == "tanh" else "gelu"
        return kernel(x, w1, b1, w2, b2, activation, rounded=None if None in copies else copies)
    return linear(gelu(linear(x, w1, b1), approximate), w2, b2)


def embedding(ids: Tensor, w: Tensor) -> Tensor:
    """Row ids of w. ids (...) int64, w (V, C) → (..., C)."""
    if kernel := _kernel("embedding", w):
        dtype = _autocast_dtype(w) or w.dtype
        if (copy := _copy(w, dtype)) is not None:
            return kernel(ids, w, rounded=copy)
        return kernel(ids, w).to(dtype)
    return F.embedding(ids, w)


def layer_norm(x: Tensor, w: Tensor, b: Tensor | None, eps: float = 1e-5) -> Tensor:
    """(x − mean) / √(var + ε) · w + b over the last axis, biased variance (Ba et al. 2016)."""
    if kernel := _kernel("layer_norm", x):
        return kernel(x, w, b, eps)
    return F.layer_norm(x, x.shape[-1:], w, b, eps)


def layer_norm_residual(
    x: Tensor, branch: Tensor, w: Tensor, b: Tensor | None, eps: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """(layer_norm(x + branch), x + branch)."""
    if kernel := _kernel("layer_norm_residual", x):
        return kernel(*_lowered(x, branch), w, b, eps)
    total = x + branch
    return layer_norm(total, w, b, eps), total


def rms_norm(x: Tensor, w: Tensor, eps: float = 1e-5) -> Tensor:
    """x / √(mean(x²) + ε) · w over the last axis (Zhang & Sennrich 2019)."""
    if kernel := _kernel("rms_norm", x):
        return kernel(x, w, eps)
    return F.rms_norm(x, x.shape[-1:], w, eps)


def rms_norm_residual(
    x: Tensor, branch: Tensor, w: Tensor, eps: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """(rms_norm(x + branch), x + branch)."""
    if kernel := _kernel("rms_norm_residual", x):
        return kernel(*_lowered(x, branch), w, eps)
    total = x + branch
    return rms_norm(total, w, eps), total


def gelu(x: Tensor, approximate: str = "none") -> Tensor:
    """x Φ(x), or its tanh approximation with approximate="tanh" (Hendrycks & Gimpel 2016)."""
    if kernel := _kernel("gelu", x):
        return kernel(x, approximate)
    return F.gelu(x, approximate=approximate)


def swiglu(gate: Tensor, up: Tensor | None = None) -> Tensor:
    """silu(gate) · up, elementwise (Shazeer 2020).

    Without up, gate (..., 2 FF) holds both, gate first → (..., FF).
    """
    if kernel := _kernel("swiglu", gate):
        return kernel(gate, up)
    if up is None:
        gate, up = gate.chunk(2, dim=-1)
    return F.silu(gate) * up


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (x[i], x[i + D/2]) by the angle of their position (Su et al. 2021).

    x (B, H, T, D); cos, sin (T, D/2) float32. The two halves of a head are paired, as in Llama's
    published weights, not neighbours.
    """
    if kernel := _kernel("rope", x):
        return kernel(x, cos, sin)
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)


def softmax(x: Tensor) -> Tensor:
    """Softmax over the last axis; the row maximum is subtracted first."""
    if kernel := _kernel("softmax", x):
        return kernel(x)
    return F.softmax(x, dim=-1)


def visible(
    n_queries: int,
    n_keys: int,
    *,
    causal: bool,
    window: int | None = None,
    device: torch.device | str | None = None,
) -> Tensor | None:
    """Which key each query may see: bool (n_queries, n_keys), or None when it may see all.

    The queries are the last `n_queries` of the `n_keys` positions (so it holds with a KV cache
    too). Query t sees key s when s ≤ t (causal) and |t − s| < window.
    """
    if not causal and window is None:
        return None
    t = torch.arange(n_keys - n_queries, n_keys, device=device)[:, None]
    s = torch.arange(n_keys, device=device)[None, :]
    allowed = (s <= t) if causal else torch.ones(n_queries, n_keys, dtype=torch.bool, device=device)
    return allowed if window is None else allowed & ((t - s).abs() < window)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = True,
    window: int | None = None,
    scale: float | None = None,
    mask: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """softmax(q kᵀ · scale, masked) v, without the (T, T) matrix in memory where torch can.

    q (B, H, Tq, D); k, v (B, H_kv, Tk, D), H a multiple of H_kv; → (B, H, Tq, D). The queries are
    the last Tq of the Tk positions. `mask` (B, 1, Tq, Tk) bool is a further restriction: True may
    be seen. scale: 1/√D by default (Vaswani et al. 2017, section 3.2.1). On the numba backend
    PyTorch computes what has a mask or dropout.
    """
    if mask is None and not dropout and (kernel := _kernel("attention", q)):
        return kernel(*_lowered(q, k, v), causal=causal, window=window, scale=scale)
    n_queries, n_keys = q.shape[-2], k.shape[-2]
    # PyTorch aligns its own causal mask at the first key, so it fits only when Tq = Tk.
    plain = causal and window is None and mask is None and n_queries == n_keys
    allowed = None
    if not plain and not (n_queries == 1 and window is None):  # the last query sees every key
        allowed = visible(n_queries, n_keys, causal=causal, window=window, device=q.device)
    if mask is not None:
        allowed = mask if allowed is None else mask & allowed
    return F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=allowed,
        dropout_p=dropout,
        is_causal=plain,
        scale=scale,
        enable_gqa=k.shape[1] != q.shape[1],
    )


def split_heads(qkv: Tensor, n_heads: int, n_kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """qkv (B, T, (H + 2 H_kv) · D) → q (B, H, T, D), k and v (B, H_kv, T, D): views of it."""
    blocks = (n_heads, n_kv_heads, n_kv_heads)
    heads = qkv.unflatten(-1, (sum(blocks), -1))  # (B, T, H + 2 H_kv, D)
    # transposed after the split: backward then joins the three gradients without a copy
    q, k, v = (part.transpose(1, 2) for part in heads.split(blocks, dim=2))
    return q, k, v


def packed_attention(
    qkv: Tensor,
    n_heads: int,
    n_kv_heads: int,
    *,
    causal: bool = True,
    window: int | None = None,
    mask: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """`attention` of the heads in qkv (B, T, (H + 2 H_kv) · D), joined again → (B, T, H · D)."""
    if mask is None and not dropout and (kernel := _kernel("packed_attention", qkv)):
        return kernel(*_lowered(qkv), n_heads, n_kv_heads, causal=causal, window=window)
    q, k, v = split_heads(qkv, n_heads, n_kv_heads)
    y = attention(q, k, v, causal=causal, window=window, mask=mask, dropout=dropout)
    return y.transpose(1, 2).flatten(2)


def cross_entropy(logits: Tensor, targets: Tensor, ignore_index: int = -100) -> Tensor:
    """Mean of −log softmax(logits)[target] over the targets that are not `ignore_index`; 0 if none.

    logits (N, V), targets (N) int64 → scalar, in nats, accumulated in at least float32.
    """
    if kernel := _kernel("cross_entropy", logits):
        return kernel(logits, targets, ignore_index)
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    total = F.cross_entropy(logits.to(dtype), targets, ignore_index=ignore_index, reduction="sum")
    return total / (targets != ignore_index).sum().clamp(min=1)


def linear_cross_entropy(x: Tensor, w: Tensor, targets: Tensor, ignore_index: int = -100) -> Tensor:
    """cross_entropy(x wᵀ, targets). x (N, C), w (V, C), targets (N) → scalar.

    PyTorch has the (N, V) logits in memory. The numba backend never has them whole; there backward
    can run only once, except in float16.
    """
    if kernel := _kernel("linear_cross_entropy", x):
        (x,) = _lowered(x)
        return kernel(x, w, targets, ignore_index, rounded=_copy(w, x.dtype))
    return cross_entropy(linear(x, w), targets, ignore_index)
