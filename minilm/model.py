"""The language model: token ids in, logits of the next token out.

    ids (B, T) → embedding (B, T, C) → n_layers blocks → norm → logits (B, T, V)

`ModelConfig` says everything about the shape of a model; with the weights it is the checkpoint.
"""

import math
from dataclasses import asdict, dataclass, fields

import torch
from torch import Tensor, nn

from . import ops
from .attention import KVCache
from .layers import Block, Norm, has_hooks
from .loss import IGNORE, shift_targets

PADDING = -1  # the segment number of positions that only fill a row

CHOICES = {
    "norm": ("layernorm", "rmsnorm"),
    "mlp": ("gelu", "gelu_tanh", "swiglu"),
    "position": ("learned", "rope"),
}


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The shape of a MiniLM. Fields that are None are filled in; a ValueError names what cannot be.

    d_ff defaults to 4 C for GELU and to 8/3 C, rounded up to a multiple of 8, for SwiGLU (which has
    three matrices, so that both hold about 8 C² parameters).
    """

    vocab_size: int  # V
    context_length: int  # T, tokens
    d_model: int  # C
    n_layers: int
    n_heads: int  # H
    n_kv_heads: int | None = None  # key/value heads; None: H
    head_dim: int | None = None  # D; None: C / H
    d_ff: int | None = None  # FF
    norm: str = "layernorm"
    norm_eps: float = 1e-5
    mlp: str = "gelu"
    position: str = "learned"
    rope_theta: float = 10000.0  # base of the rotary wavelengths
    rope_scaling: dict | None = None
    bias: bool = True
    qkv_bias: bool | None = None  # None: as bias
    qk_norm: bool = False
    tied: bool = True  # output matrix = token embedding
    causal: bool = True
    window: int | None = None  # tokens a query sees, itself included; None: all
    dropout: float = 0.0

    def __post_init__(self) -> None:
        self._fill("n_kv_heads", self.n_heads)
        self._fill("qkv_bias", self.bias)
        for name in (
            "vocab_size",
            "context_length",
            "d_model",
            "n_layers",
            "n_heads",
            "n_kv_heads",
        ):
            self._check(name, _is_count(getattr(self, name)), "a positive whole number")
        if self.head_dim is None:
            rest = self.d_model % self.n_heads
            self._check("d_model", not rest, f"a multiple of n_heads = {self.n_heads}")
        self._fill("head_dim", self.d_model // self.n_heads)
        gated = 8 * math.ceil(self.d_model / 3)
        self._fill("d_ff", gated if self.mlp == "swiglu" else 4 * self.d_model)
        for name in ("head_dim", "d_ff"):
            self._check(name, _is_count(getattr(self, name)), "a positive whole number")
        rest = self.n_heads % self.n_kv_heads
        self._check("n_kv_heads", not rest, f"a divisor of n_heads = {self.n_heads}")
        for name, allowed in CHOICES.items():
            self._check(name, getattr(self, name) in allowed, " or ".join(map(repr, allowed)))
        self._check("window", self.window is None or _is_count(self.window), "None or at least 1")
        for name in ("norm_eps", "rope_theta"):
            value = getattr(self, name)
            self._check(name, _is_number(value) and value > 0, "a number above 0")
        for name in ("bias", "qkv_bias", "qk_norm", "tied", "causal"):
            self._check(name, isinstance(getattr(self, name), bool), "True or False")
        small = _is_number(self.dropout) and 0 <= self.dropout < 1
        self._check("dropout", small, "at least 0 and below 1")
        self._check(
            "rope_scaling",
            self.rope_scaling is None or isinstance(self.rope_scaling, dict),
            "None or a dict",
        )
        odd = self.position == "rope" and self.head_dim % 2
        self._check("head_dim", not odd, "even with position='rope'")

    def _fill(self, name: str, value: object) -> None:
        if getattr(self, name) is None:
            object.__setattr__(self, name, value)  # the dataclass is frozen for everyone else

    def _check(self, name: str, holds: bool, allowed: str) -> None:
        if not holds:
            raise ValueError(f"{name}: must be {allowed}, got {getattr(self, name)!r}")

    def to_dict(self) -> dict:
        """All fields, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "ModelConfig":
        """The config of a dict as `to_dict` writes it; ValueError names an unknown field."""
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(f"config: unknown field {unknown[0]!r}, allowed are {sorted(known)}")
        try:
            return cls(**values)
        except TypeError as error:  # a field without a default is missing
            raise ValueError(f"config: {error}".replace("ModelConfig.__init__() ", "")) from None

    @classmethod
    def gpt2(cls, **changes) -> "ModelConfig":
        """GPT-2 124M (Radford et al. 2019), with `changes`."""
        gpt2 = {
            "vocab_size": 50257,
            "context_length": 1024,
            "d_model": 768,
            "n_layers": 12,
            "n_heads": 12,
            "mlp": "gelu_tanh",
        }
        return cls(**(gpt2 | changes))

    @classmethod
    def llama(cls, **changes) -> "ModelConfig":
        """Llama's choices (Touvron et al. 2023): RMSNorm, SwiGLU, RoPE, no biases, untied.

        vocab_size, context_length, d_model, n_layers and n_heads must be among `changes`.
        """
        llama = {
            "norm": "rmsnorm",
            "mlp": "swiglu",
            "position": "rope",
            "bias": False,
            "tied": False,
        }
        return cls(**(llama | changes))


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


class MiniLM(nn.Module):
    """A GPT-style language model: `model(ids)` gives the logits. The module says how."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        V, C = config.vocab_size, config.d_model
        self.token_embedding = nn.Embedding(V, C)
        learned = config.position == "learned"
        self.position_embedding = nn.Embedding(config.context_length, C) if learned else None
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        self.final_norm = Norm(config)
        self.head = None if config.tied else nn.Linear(C, V, bias=False)
        initialise(self)

    @property
    def head_weight(self) -> Tensor:
        """The output matrix (V, C): the token embedding itself when tied (Press & Wolf 2017)."""
        return self.token_embedding.weight if self.head is None else self.head.weight

    def forward(
        self, ids: Tensor, segments: Tensor | None = None, cache: KVCache | None = None
    ) -> Tensor:
        """ids (B, T) int64 → logits (B, T, V). Arguments as in `hidden`."""
        return ops.linear(self.hidden(ids, segments, cache), self.head_weight)

    def hidden(
        self, ids: Tensor, segments: Tensor | None = None, cache: KVCache | None = None
    ) -> Tensor:
        """ids (B, T) int64 → the residual stream after the final norm (B, T, C).

        segments (B, T) int64: a position sees only positions of its own number. Documents packed
        into one row have numbers of their own; padding has −1. cache: the keys and values of the
        positions before `ids`; it is extended by them. Raises ValueError for ids out of range, and
        past context_length where positions are learned; with rotary positions a longer sequence
        runs, outside what training has shown the model.
        """
        self._check_ids(ids)
        start = 0 if cache is None else cache.length
        x = ops.embedding(ids, self.token_embedding.weight)  # (B, T, C)
        if self.position_embedding is not None:
            positions = self.position_embedding.weight[self._positions(start, ids.shape[1])]
            x = x + positions.to(x.dtype)
        mask = None
        if segments is not None:
            if cache is not None:
                raise ValueError("segments: cannot be combined with a cache")
            mask = (segments[:, :, None] == segments[:, None, :])[:, None]  # (B, 1, T, T)
        x = self._through_blocks(self.dropout(x), mask, cache)
        if cache is not None:
            cache.length += ids.shape[1]
        return x

    def _through_blocks(self, x: Tensor, mask: Tensor | None, cache: KVCache | None) -> Tensor:
        """All blocks and the final norm.

        Where the backend adds and normalises in one kernel, each addition is left to the norm after
        it; not where a hook wants to see what a block takes and gives.
        """
        if not self.final_norm.joins() or any(map(has_hooks, self.blocks)):
            for block in self.blocks:
                x = block(x, mask, cache)
            return self.final_norm(x)
        branch = None
        for block in self.blocks:
            x, branch = block.halves(x, branch, mask, cache)
        return self.final_norm.of_sum(x, branch)[0]

    def loss(
        self, ids: Tensor, mask: Tensor | None = None, segments: Tensor | None = None
    ) -> Tensor:
        """Next-token loss of rows of up to context_length + 1 tokens (the last is only a target).

        ids (B, L), mask (B, L): 1 where the token is a target, segments (B, L) → scalar in nats,
        the mean over the targets of the whole batch; padding (segment −1) is never a target. Equal
        to next_token_loss(model(ids, segments), ids, mask), without the logits of the last
        position, and without any logits in memory where the backend has a fused op.
        """
        targets, inner = shift_targets(ids.long(), mask), None
        if segments is not None:
            inner = segments[:, :-1]
            targets = targets.masked_fill(segments[:, 1:] == PADDING, IGNORE)
        x = self.hidden(ids[:, :-1], inner)
        return ops.linear_cross_entropy(
            x.flatten(0, 1), self.head_weight, targets.flatten(), IGNORE
        )

    def new_cache(self, batch_size: int = 1, max_length: int | None = None) -> KVCache:
        """An empty KVCache for `max_length` positions (default: context_length)."""
        c, weight = self.config, self.token_embedding.weight
        return KVCache(
            c.n_layers,
            batch_size,
            c.n_kv_heads,
            c.head_dim,
            c.context_length if max_length is None else max_length,
            dtype=weight.dtype,
            device=weight.device,
        )

    def num_parameters(self, non_embedding: bool = False) -> int:
        """The number of learned numbers, tied weights once.

        `non_embedding` leaves out the embeddings, and the head when it has a matrix of its own.
        """
        total = sum(p.numel() for p in self.parameters())
        if non_embedding:
            tables = [self.token_embedding, self.position_embedding, self.head]
            total -= sum(t.weight.numel() for t in tables if t is not None)
        return total

    def flops_per_token(self, T: int | None = None) -> int:
        """Floating-point operations to train on one token: forward + backward = 3 × forward.

        forward = 2 · (entries of all matrices that multiply the token) + 4 · L · H · D · T for
        scores and weighted sum, counted without the causal half (Chowdhery et al. 2022, appendix
        B).
        """
        c = self.config
        T = c.context_length if T is None else T
        matrices = sum(p.numel() for p in self.blocks.parameters() if p.ndim == 2)
        matrices += self.head_weight.numel()
        return 3 * (2 * matrices + 4 * c.n_layers * c.n_heads * c.head_dim * T)

    def _positions(self, start: int, n: int) -> slice:
        limit = self.config.context_length
        if start + n > limit:
            raise ValueError(
                f"ids: {start + n} positions, but this model has learned {limit} (context_length)"
            )
        return slice(start, start + n)

    def _check_ids(self, ids: Tensor) -> None:
        if ids.ndim != 2 or ids.dtype not in (torch.int64, torch.int32):
            raise ValueError(f"ids: must be (B, T) of int64, got {tuple(ids.shape)} of {ids.dtype}")
        # Reading a value back from a GPU would stall it at every step, so there the kernel checks.
        if ids.device.type == "cpu" and ids.numel():
            low, high = ids.aminmax()
            if low < 0 or high >= self.config.vocab_size:
                bad = int(low if low < 0 else high)
                raise ValueError(f"ids: must be 0 to {self.config.vocab_size - 1}, got {bad}")


def initialise(model: MiniLM) -> None:
    """Every weight of a fresh model, in one place.

    Matrices are normal with σ = 1/√(fan-in), so that each keeps the size of what it multiplies. The
    two matrices per block that write into the residual stream are divided by √(2L): the sum of 2L
    writes then starts no larger than one (Radford et al. 2019, section 2.3). Embeddings are normal
    with σ = 1/(2√C) (0.018 for GPT-2's C = 768): as the output matrix they give logits of σ = 1/2
    at first, so that the first loss is ln V + 1/8, a little above that of a uniform guess. Biases
    start at 0, norms at 1.
    """
    residual = 1 / math.sqrt(2 * model.config.n_layers)
    for name, p in model.named_parameters():
        if "embedding" in name or name == "head.weight":
            nn.init.normal_(p, std=0.5 / math.sqrt(model.config.d_model))
        elif p.ndim == 2:
            writes = name.endswith(("attention.out.weight", "mlp.down.weight"))
            nn.init.normal_(p, std=(residual if writes else 1) / math.sqrt(p.shape[1]))
        else:
            nn.init.zeros_(p) if name.endswith("bias") else nn.init.ones_(p)


PRESETS = {
    "tiny": ModelConfig(
        vocab_size=2048,
        context_length=128,
        d_model=128,
        n_layers=4,
        n_heads=4,
        position="rope",
        bias=False,
    ),
    "small": ModelConfig.llama(
        vocab_size=4096, context_length=256, d_model=256, n_layers=6, n_heads=8, tied=True
    ),
    "gpt2": ModelConfig.gpt2(),
}
