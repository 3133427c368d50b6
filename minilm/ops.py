"""The one door to kernels: every tensor operation of the model, by name, on the backend in force.

The model never calls a kernel library itself. It calls `ops.layer_norm`, `ops.attention` and so on,
and this file decides who computes it:

- ``torch`` (the default): PyTorch's own kernels, on a CPU, a GPU or MPS;
- ``numba``: the kernels of `cuda_numba`, written in Python.

A backend that is asked for by name is used or refused, never replaced silently.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from torch import Tensor

BACKENDS = ("torch",)  # what this version can run
_backend: ContextVar[str] = ContextVar("minilm_backend", default="torch")


def backend() -> str:
    """The name of the backend in force."""
    return _backend.get()


def check_backend(name: str) -> str:
    """`name`, or a ValueError that says what it needs."""
    if name == "numba":
        raise ValueError(
            "backend: 'numba' needs the kernels of cuda_numba, which this version of the package "
            "does not contain yet; use 'torch'"
        )
    if name not in BACKENDS:
        raise ValueError(f"backend: got {name!r}, allowed are {', '.join(map(repr, BACKENDS))}")
    return name


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run the operations inside the `with` block on backend `name`.

    Raises ValueError for a backend that does not exist or cannot run here.
    """
    token = _backend.set(check_backend(name))
    try:
        yield
    finally:
        _backend.reset(token)


def linear(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    """x Wᵀ + b. x (..., K), w (N, K), b (N) → (..., N)."""
    return F.linear(x, w, b)


def embedding(ids: Tensor, w: Tensor) -> Tensor:
    """Row ids of w. ids (...) int64, w (V, C) → (..., C)."""
    return F.embedding(ids, w)


def layer_norm(x: Tensor, w: Tensor, b: Tensor | None, eps: float = 1e-5) -> Tensor:
    """(x − mean) / √(var + ε) · w + b over the last axis, biased variance (Ba et al. 2016)."""
    return F.layer_norm(x, x.shape[-1:], w, b, eps)


def rms_norm(x: Tensor, w: Tensor, eps: float = 1e-5) -> Tensor:
    """x / √(mean(x²) + ε) · w over the last axis (Zhang & Sennrich 2019)."""
    return F.rms_norm(x, x.shape[-1:], w, eps)


def gelu(x: Tensor, approximate: str = "none") -> Tensor:
    """x Φ(x), or its tanh approximation with approximate="tanh" (Hendrycks & Gimpel 2016)."""
    return F.gelu(x, approximate=approximate)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) · up, elementwise (Shazeer 2020)."""
    return F.silu(gate) * up


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (x[i], x[i + D/2]) by the angle of their position (Su et al. 2021).

    x (B, H, T, D); cos, sin (T, D/2) float32. The two halves of a head are paired, as in Llama's
    published weights, not neighbours.
    """
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)


def softmax(x: Tensor) -> Tensor:
    """Softmax over the last axis; the row maximum is subtracted first."""
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
    be seen. scale: 1/√D by default (Vaswani et al. 2017, section 3.2.1).
    """
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
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    total = F.cross_entropy(logits.to(dtype), targets, ignore_index=ignore_index, reduction="sum")
    return total / (targets != ignore_index).sum().clamp(min=1)


def linear_cross_entropy(x: Tensor, w: Tensor, targets: Tensor, ignore_index: int = -100) -> Tensor:
    """cross_entropy(x wᵀ, targets). x (N, C), w (V, C), targets (N) → scalar.

    A fused backend computes it in pieces and never holds the (N, V) logits; torch holds them.
    """
    return cross_entropy(linear(x, w), targets, ignore_index)
