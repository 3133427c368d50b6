"""The one door to kernels: every tensor operation of the model, by name, on the backend in force.

The model never calls a kernel library itself. It calls `ops.layer_norm`, `ops.attention` and so on,
and this file decides who computes it: PyTorch, or the kernels of `cuda_numba` inside
`with use_backend("numba"):`. There every operation of the model is a kernel in Python, forward and
backward, and so are the steps of AdamW and Lion; SGD stays PyTorch's, and so does attention where
it has a mask of its own or dropout. `computed_by` says who computes what (see `backends`). The
kernels take float32, float16 and bfloat16 and raise TypeError for everything else; under autocast
products, attention and the loss take their operands in autocast's format, as PyTorch's do.
"""

from collections.abc import Callable

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
    "linear",
    "linear_cross_entropy",
    "rms_norm",
    "rope",
    "softmax",
    "step_kernel",
    "swiglu",
    "use_backend",
    "visible",
]


def _kernel(op: str, tensor: Tensor) -> Callable | None:
    """cuda_numba's function for `op`, or None where PyTorch computes it.

    tensor: one of the arguments; ValueError where the backend does not compute on its device.
    """
    name = backend()
    if op not in BACKEND_OPS[name] or name == "torch":
        return None
    check_backend(name, tensor.device.type)
    import cuda_numba  # not before a kernel is wanted: `import minilm` stays light

    return getattr(cuda_numba, op)


def step_kernel(rule: str, params: list[Tensor]) -> Callable | None:
    """The kernel that takes an optimizer step, rule "adamw_step" or "lion_step", in one launch.

    It has the arguments of the function of that name in `optim`; None where PyTorch computes it.
    """
    return _kernel(rule, params[0])


def _lowered(*tensors: Tensor | None) -> list[Tensor | None]:
    """The tensors in autocast's format where autocast is on, else as they are."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return list(tensors)
    dtype = torch.get_autocast_dtype(device)
    return [t if t is None else t.to(dtype) for t in tensors]


def linear(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    """x Wᵀ + b. x (..., K), w (N, K), b (N) → (..., N)."""
    if kernel := _kernel("linear", x):
        return kernel(*_lowered(x, w, b))
    return F.linear(x, w, b)


def embedding(ids: Tensor, w: Tensor) -> Tensor:
    """Row ids of w. ids (...) int64, w (V, C) → (..., C)."""
    if kernel := _kernel("embedding", w):
        return kernel(ids, w)
    return F.embedding(ids, w)


def layer_norm(x: Tensor, w: Tensor, b: Tensor | None, eps: float = 1e-5) -> Tensor:
    """(x − mean) / √(var + ε) · w + b over the last axis, biased variance (Ba et al. 2016)."""
    if kernel := _kernel("layer_norm", x):
        return kernel(x, w, b, eps)
    return F.layer_norm(x, x.shape[-1:], w, b, eps)


def rms_norm(x: Tensor, w: Tensor, eps: float = 1e-5) -> Tensor:
    """x / √(mean(x²) + ε) · w over the last axis (Zhang & Sennrich 2019)."""
    if kernel := _kernel("rms_norm", x):
        return kernel(x, w, eps)
    return F.rms_norm(x, x.shape[-1:], w, eps)


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
        return kernel(*_lowered(x, w), targets, ignore_index)
    return cross_entropy(linear(x, w), targets, ignore_index)
