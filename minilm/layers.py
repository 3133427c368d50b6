"""The layers around attention: norm, MLP, and the block that adds both to the residual stream."""

from torch import Tensor, nn

from . import ops
from .attention import KVCache, MultiHeadAttention


class Norm(nn.Module):
    """LayerNorm (with a bias if the config has biases) or RMSNorm. (..., C) → (..., C)."""

    def __init__(self, config):
        super().__init__()
        make = nn.LayerNorm if config.norm == "layernorm" else nn.RMSNorm
        inner = make(config.d_model, eps=config.norm_eps)
        self.eps, self.weight = config.norm_eps, inner.weight
        self.kind = config.norm
        bias = inner.bias if config.norm == "layernorm" and config.bias else None
        self.register_parameter("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "layernorm":
            return ops.layer_norm(x, self.weight, self.bias, self.eps)
        return ops.rms_norm(x, self.weight, self.eps)


class MLP(nn.Module):
    """Two matrices with a GELU between them: C → FF → C."""

    def __init__(self, config):
        super().__init__()
        self.up = nn.Linear(config.d_model, config.d_ff, bias=config.bias)
        self.down = nn.Linear(config.d_ff, config.d_model, bias=config.bias)
        self.approximate = "tanh" if config.mlp == "gelu_tanh" else "none"

    def forward(self, x: Tensor) -> Tensor:
        hidden = ops.linear(x, self.up.weight, self.up.bias)  # (B, T, FF)
        hidden = ops.gelu(hidden, self.approximate)
        return ops.linear(hidden, self.down.weight, self.down.bias)


class SwiGLU(nn.Module):
    """Three matrices: silu(x W_gateᵀ) · (x W_upᵀ), back through W_down (Shazeer 2020).

    Gate and up stand in one matrix `gate_up` (2 FF, C), gate first: one product instead of two.
    """

    def __init__(self, config):
        super().__init__()
        self.gate_up = nn.Linear(config.d_model, 2 * config.d_ff, bias=config.bias)
        self.down = nn.Linear(config.d_ff, config.d_model, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        gate_up = ops.linear(x, self.gate_up.weight, self.gate_up.bias)
        return ops.linear(ops.swiglu(gate_up), self.down.weight, self.down.bias)


class Block(nn.Module):
    """One transformer block, norms first (pre-norm, Xiong et al. 2020). (B, T, C) → (B, T, C).

    x = x + attention(norm1(x))
    x = x + mlp(norm2(x))
    """

    def __init__(self, config, layer: int = 0):
        super().__init__()
        self.norm1, self.norm2 = Norm(config), Norm(config)
        self.attention = MultiHeadAttention(config, layer)
        self.mlp = SwiGLU(config) if config.mlp == "swiglu" else MLP(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, cache: KVCache | None = None
    ) -> Tensor:
        x = x + self.dropout(self.attention(self.norm1(x), mask, cache))
        return x + self.dropout(self.mlp(self.norm2(x)))
