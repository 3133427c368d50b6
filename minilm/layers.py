"""The layers around attention: norm, MLP, and the block that adds both to the residual stream."""

from torch import Tensor, nn

from . import ops
from .attention import KVCache, MultiHeadAttention


def has_hooks(module: nn.Module) -> bool:
    """Whether somebody wants to see what the module takes and gives, forward or backward."""
    forward = module._forward_hooks or module._forward_pre_hooks
    return bool(forward or module._backward_hooks or module._backward_pre_hooks)


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

    def joins(self) -> bool:
        """Whether the backend in force has one kernel for an addition and this norm."""
        op = "layer_norm_residual" if self.kind == "layernorm" else "rms_norm_residual"
        return ops.computed_by(op) != "torch"

    def of_sum(self, x: Tensor, branch: Tensor) -> tuple[Tensor, Tensor]:
        """(norm(x + branch), x + branch); one by one where a hook wants to see the norm's input."""
        if not self.joins() or has_hooks(self):
            total = x + branch
            return self(total), total
        if self.kind == "layernorm":
            return ops.layer_norm_residual(x, branch, self.weight, self.bias, self.eps)
        return ops.rms_norm_residual(x, branch, self.weight, self.eps)


class MLP(nn.Module):
    """Two matrices with a GELU between them: C → FF → C."""

    def __init__(self, config):
        super().__init__()
        self.up = nn.Linear(config.d_model, config.d_ff, bias=config.bias)
        self.down = nn.Linear(config.d_ff, config.d_model, bias=config.bias)
        self.approximate = "tanh" if config.mlp == "gelu_tanh" else "none"

    def forward(self, x: Tensor) -> Tensor:
        up, down = self.up, self.down
        return ops.mlp(x, up.weight, up.bias, down.weight, down.bias, self.approximate)


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
        x, branch = self.halves(x, None, mask, cache)
        return x + branch

    def halves(
        self,
        x: Tensor,
        branch: Tensor | None,
        mask: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The block of x + branch, its own last addition left to the norm that follows it.

        (x, branch) → (x, branch), whose sum is the stream. An addition and a norm in one kernel
        read and write the stream once; branch is None where there is nothing to be added.
        """
        y, x = (self.norm1(x), x) if branch is None else self.norm1.of_sum(x, branch)
        y, x = self.norm2.of_sum(x, self.dropout(self.attention(y, mask, cache)))
        return x, self.dropout(self.mlp(y))
