"""Attention: one head as the formula, then all heads at once.

    weights = softmax(Q Kᵀ / √D + mask)        Q = x W_Qᵀ,  K = x W_Kᵀ,  V = x W_Vᵀ
    head    = weights V                        (Vaswani et al. 2017, section 3.2)

Tensors of heads are (B, H, T, D): batch, head, time, head size. Query t sees key s when s ≤ t.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from . import ops


class RotaryEmbedding(nn.Module):
    """Rotary positions (Su et al. 2021, section 3.2.2): pair i turns by position · θ^(−2i/D).

    The score of a query at t and a key at s then depends on t − s alone. It has no parameters; the
    tables of cosines and sines grow when a longer sequence comes. `scaling` stretches the
    wavelengths of a trained model: {"rope_type": "linear", "factor": f}, or {"rope_type": "llama3",
    "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"} (Llama
    3.1).
    """

    def __init__(
        self, head_dim: int, length: int, theta: float = 10000.0, scaling: dict | None = None
    ):
        super().__init__()
        if head_dim % 2:
            raise ValueError(f"head_dim: rotary positions need an even number, got {head_dim}")
        pairs = torch.arange(0, head_dim, 2, dtype=torch.float64, device="cpu")
        frequency = theta ** (-pairs / head_dim)
        self.frequency = scale_frequencies(frequency, scaling)  # (D/2), radians per position
        self._make_tables(length, torch.device("cpu"))

    def _make_tables(self, length: int, device: torch.device) -> None:
        # Plain attributes, not buffers: a model cast to bf16 must keep its angles in float32.
        position = torch.arange(length, dtype=torch.float64, device="cpu")
        angle = position[:, None] * self.frequency
        self.cos = angle.cos().float().to(device)  # (T, D/2)
        self.sin = angle.sin().float().to(device)

    def forward(self, x: Tensor, start: int = 0) -> Tensor:
        """x (B, H, T, D), whose first position is `start` → the same shape, rotated."""
        end, length = start + x.shape[-2], self.cos.shape[0]
        if end > length or self.cos.device != x.device:
            self._make_tables(length if end <= length else max(end, 2 * length), x.device)
        return ops.rope(x, self.cos[start:end], self.sin[start:end])


SCALINGS = {  # what each rope_type needs
    "linear": ("factor",),
    "llama3": (
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    ),
}


def scale_frequencies(frequency: Tensor, scaling: dict | None) -> Tensor:
    """The rotary frequencies (D/2) after `rope_scaling`; ValueError names what is not supported."""
    if scaling is None:
        return frequency
    kind = scaling.get("rope_type")
    missing = [key for key in SCALINGS.get(kind, ()) if key not in scaling]
    if missing:
        raise ValueError(f"rope_scaling: {kind!r} needs {missing[0]!r}, got {scaling!r}")
    if kind == "linear":
        return frequency / scaling["factor"]
    if kind == "llama3":  # long waves are stretched, short ones kept, a ramp between them
        turns = scaling["original_max_position_embeddings"] * frequency / (2 * math.pi)
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        keep = ((turns - low) / (high - low)).clamp(0, 1)
        return frequency * (keep + (1 - keep) / scaling["factor"])
    raise ValueError(f"rope_scaling: rope_type must be 'linear' or 'llama3', got {kind!r}")


def attention_weights(
    q: Tensor,
    k: Tensor,
    *,
    causal: bool = True,
    window: int | None = None,
    scale: float | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The textbook path, with the (T, T) matrices in the open.

    q, k (..., T, D) → scores (scaled, −inf where a key may not be seen) and weights, both (..., Tq,
    Tk).
    """
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    scores = q @ k.transpose(-2, -1) * scale  # (..., Tq, Tk)
    allowed = ops.visible(q.shape[-2], k.shape[-2], causal=causal, window=window, device=q.device)
    for restriction in (allowed, mask):
        if restriction is not None:
            scores = scores.masked_fill(~restriction, float("-inf"))
    return scores, ops.softmax(scores)


class AttentionHead(nn.Module):
    """One head, written as the formula. x (B, T, C) → (B, T, D).

    `rope`: a RotaryEmbedding that turns queries and keys, or None for a head without positions.
    """

    def __init__(
        self,
        d_model: int,
        head_dim: int,
        *,
        causal: bool = True,
        window: int | None = None,
        bias: bool = False,
        rope: RotaryEmbedding | None = None,
    ):
        super().__init__()
        self.query = nn.Linear(d_model, head_dim, bias=bias)
        self.key = nn.Linear(d_model, head_dim, bias=bias)
        self.value = nn.Linear(d_model, head_dim, bias=bias)
        self.causal, self.window, self.rope = causal, window, rope

    def forward(self, x: Tensor, return_weights: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """The head's output (B, T, D); with return_weights also the weights (B, T, T)."""
        q, k, v = self.query(x), self.key(x), self.value(x)  # (B, T, D) each
        if self.rope is not None:
            q, k = (self.rope(z[:, None])[:, 0] for z in (q, k))
        _, weights = attention_weights(q, k, causal=self.causal, window=self.window)
        out = weights @ v
        return (out, weights) if return_weights else out


class KVCache:
    """Keys and values of the positions so far: a new token then costs a pass over one token.

    One pair of (B, H_kv, max_length, D) tensors per layer, filled from the left; `length` positions
    are in use. A model adds to it at each call and moves `length` on when the last layer is done.
    """

    def __init__(
        self,
        n_layers: int,
        batch_size: int,
        n_kv_heads: int,
        head_dim: int,
        max_length: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ):
        shape = (n_layers, batch_size, n_kv_heads, max_length, head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.max_length, self.length = max_length, 0

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store k, v (B, H_kv, T, D) of the next T positions; return all keys and values so far."""
        end = self.length + k.shape[-2]
        if end > self.max_length:
            raise ValueError(
                f"cache: it holds {self.max_length} positions and {self.length} are in use, "
                f"so {k.shape[-2]} more do not fit"
            )
        self.keys[layer, :, :, self.length : end] = k
        self.values[layer, :, :, self.length : end] = v
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]


class MultiHeadAttention(nn.Module):
    """All heads of a layer in three matrix products: queries, keys and values; scores; output.

    x (B, T, C) → (B, T, C). `config` is a ModelConfig. Grouped queries: with n_kv_heads < n_heads,
    n_heads / n_kv_heads query heads share one key/value head (Ainslie et al. 2023).
    Row blocks of `qkv.weight` are, in order, the H query heads, the H_kv key heads, the H_kv value
    heads; column block h of `out.weight` is head h's share of W_O.

    `watch`: None, or a function that is called with the keyword tensors q, k, v, scores, weights
    and out (B, H, T, ·) at each forward pass; the (T, T) matrices are then computed in the open.
    """

    def __init__(self, config, layer: int = 0):
        super().__init__()
        C, H, H_kv, D = config.d_model, config.n_heads, config.n_kv_heads, config.head_dim
        self.n_heads, self.n_kv_heads, self.head_dim, self.layer = H, H_kv, D, layer
        self.causal, self.window, self.dropout = config.causal, config.window, config.dropout
        self.qkv = nn.Linear(C, (H + 2 * H_kv) * D, bias=config.qkv_bias)
        self.out = nn.Linear(H * D, C, bias=config.bias)
        self.q_norm = self.k_norm = self.rope = None
        if config.qk_norm:  # Henry et al. 2020, with a root-mean-square norm per head
            self.q_norm = nn.RMSNorm(D, eps=config.norm_eps)
            self.k_norm = nn.RMSNorm(D, eps=config.norm_eps)
        if config.position == "rope":
            self.rope = RotaryEmbedding(
                D, config.context_length, config.rope_theta, config.rope_scaling
            )
        self.watch: Callable[..., None] | None = None

    def forward(
        self, x: Tensor, mask: Tensor | None = None, cache: KVCache | None = None
    ) -> Tensor:
        """x (B, T, C); mask (B, 1, T, T) bool, True may be seen; cache: the positions before x."""
        dropout = self.dropout if self.training else 0.0
        options = dict(causal=self.causal, window=self.window, mask=mask)
        if cache is None and self.watch is None and self.rope is None and self.q_norm is None:
            qkv, heads = self._qkv(x), (self.n_heads, self.n_kv_heads)
            y = ops.packed_attention(qkv, *heads, dropout=dropout, **options)
            return ops.linear(y, self.out.weight, self.out.bias)
        q, k, v = self.project(x, start=0 if cache is None else cache.length)
        if cache is not None:
            k, v = cache.extend(self.layer, k, v)
        if self.watch is None:
            y = ops.attention(q, k, v, dropout=dropout, **options)
        else:
            y = self._watched(q, k, v, mask)
        y = y.transpose(1, 2).flatten(2)  # (B, T, H·D)
        return ops.linear(y, self.out.weight, self.out.bias)

    def _qkv(self, x: Tensor) -> Tensor:
        return ops.linear(x, self.qkv.weight, self.qkv.bias)  # (B, T, (H + 2 H_kv)·D)

    def project(self, x: Tensor, start: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, T, C) from position start on → q (B, H, T, D), k and v (B, H_kv, T, D)."""
        q, k, v = ops.split_heads(self._qkv(x), self.n_heads, self.n_kv_heads)
        if self.q_norm is not None:
            q = ops.rms_norm(q, self.q_norm.weight, self.q_norm.eps)
            k = ops.rms_norm(k, self.k_norm.weight, self.k_norm.eps)
        if self.rope is not None:
            q, k = self.rope(q, start), self.rope(k, start)
        return q, k, v

    def _watched(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        group = self.n_heads // self.n_kv_heads
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        scores, weights = attention_weights(q, k, causal=self.causal, window=self.window, mask=mask)
        dropped = nn.functional.dropout(weights, self.dropout, self.training)
        out = dropped @ v  # (B, H, T, D)
        self.watch(q=q, k=k, v=v, scores=scores, weights=weights, out=out)
        return out

    def head(self, h: int) -> AttentionHead:
        """Query head h with copies of its weights, as one AttentionHead.

        Concatenated and multiplied by `out`, the heads of a layer give the layer's output. Not
        defined for qk_norm (ValueError): the formula of AttentionHead has no norm.
        """
        if self.q_norm is not None:
            raise ValueError(
                "qk_norm: a single AttentionHead has none, so this layer has no such head"
            )
        D, H, H_kv = self.head_dim, self.n_heads, self.n_kv_heads
        head = AttentionHead(
            self.qkv.in_features,
            D,
            causal=self.causal,
            window=self.window,
            bias=self.qkv.bias is not None,
            rope=self.rope,
        ).to(self.qkv.weight)
        g = h // (H // H_kv)
        for part, block in ((head.query, h), (head.key, H + g), (head.value, H + H_kv + g)):
            rows = slice(block * D, (block + 1) * D)
            part.weight.data.copy_(self.qkv.weight.data[rows])
            if part.bias is not None:
                part.bias.data.copy_(self.qkv.bias.data[rows])
        return head
