"""What our kernels read, write and compute in one step of StepGraph, by formula.

For each kernel: every operand is read once, every result written once, wherever a cache may help or
tiles may read again. That is how `profile_ops` counts PyTorch's operations, so the two can be
compared. Left out are lists of tiles, sums of parts and other workspace, well under a hundredth.
(At a small size the emulator counts what is really touched, and a test holds the formula to it.)

    N = B T rows of C, s bytes of an activation; FF = 4 C; V rows of the table; L blocks

FLOPs: 2 M N K for a product, of attention those pairs that a causal mask leaves, and for the rest
operations per element as in `profile_ops`. What PyTorch does between our kernels, such as adding
the positions, is not here: `profile_ops.profile` counts it.
"""

from typing import NamedTuple

from .kernel_classes import ATTENTION, ELEMENTWISE, GATHER, GEMM, REDUCTION, SOFTMAX
from .model import ModelConfig

F32 = 4  # bytes: parameters, gradients, moments, sums
S = 2  # bytes of an activation and of a rounded weight
LOGITS = 288 << 20  # bytes of logits that are there at a time, at most
ROWS = 128  # a chunk of them has a multiple of so many rows


class Work(NamedTuple):
    """A kernel's share of a step: `calls` launches together."""

    kind: str
    name: str
    calls: int
    bytes: int
    flops: int


def kernel_work(config: ModelConfig, B: int, T: int, parameters: dict[str, int]) -> list[Work]:
    """One step of a model with LayerNorm, GELU, biases, learned positions and a tied head, bf16.

    parameters: numbers in the "matrices" (which have a rounded copy) and in the "vectors". Raises
    ValueError for another kind of model.
    """
    c = config
    if (c.norm, c.position, c.tied, c.bias) != ("layernorm", "learned", True, True) or (
        c.mlp == "swiglu" or c.n_kv_heads != c.n_heads or c.dropout or c.window or not c.causal
    ):
        raise ValueError("config: the formulas are those of GPT-2, got another kind of model")
    N, C, L = B * T, c.d_model, c.n_layers
    return [
        *_table(N, C, c.vocab_size),
        *_norms(N, C, L),
        *_attention(B, T, c),
        *_products(N, C, c.d_ff, L),
        *_head(N, C, c.vocab_size),
        *_optimizer(**parameters),
    ]


def _table(N, C, V):
    ids = 8 * N
    scattered = N * C * S + min(N, V) * C * F32
    return [
        Work(GATHER, "embedding", 1, ids + 2 * N * C * S, 0),
        Work(GATHER, "embedding, backward", 1, ids + scattered, N * C),
    ]


def _norms(N, C, L):
    """2 L + 1 norms; all but the first add the branch, all but first and last take dtotal in."""
    x, stats, weights = N * C * S, 2 * N * F32, 2 * C * F32
    first = 2 * x + stats + weights
    back = 3 * x + stats + weights // 2 + weights  # dy, x, dx; w; dw and db
    more = 2 * L - 1
    return [
        Work(REDUCTION, "layer norm", 1, first, 8 * N * C),
        Work(REDUCTION, "addition + norm", 2 * L, 2 * L * (first + 2 * x), 2 * L * 9 * N * C),
        Work(REDUCTION, "norm, backward", 2, 2 * back, 2 * 14 * N * C),
        Work(REDUCTION, "addition + norm, backward", more, more * (back + x), more * 15 * N * C),
    ]


def _attention(B, T, c):
    """dq is added up in float32 and rounded by a kernel of its own: written and read once more."""
    L, H, N, width = c.n_layers, c.n_heads, B * T, c.n_heads * c.head_dim
    x, row = N * width * S, N * H * F32  # row: a float32 for each query and head
    pairs = B * H * T * (T + 1) // 2
    forward = 4 * x + row
    backward = (2 * x + row) + (4 * x + 2 * row + 2 * x + x * F32 // S) + (x * F32 // S + x)
    return [
        Work(ATTENTION, "attention", L, L * forward, L * pairs * (4 * c.head_dim + 5)),
        Work(ATTENTION, "attention, backward", L, L * backward, L * pairs * (10 * c.head_dim + 6)),
    ]


def product(M: int, N: int, K: int, out: int = S) -> tuple[int, int]:
    """(bytes, FLOPs) of (M, K) times (K, N)."""
    return S * (M * K + K * N) + out * M * N, 2 * M * N * K


def _products(N, C, FF, L):
    found = []
    for name, rows, columns in (("qkv", 3 * C, C), ("out", C, C), ("up", FF, C), ("down", C, FF)):
        for suffix, (moved, flops), extra, more in (
            # extra bytes and FLOPs of the epilogue: the bias; GELU with pre kept; its slope
            ("", product(N, rows, columns), rows * F32, N * rows),
            (", dx", product(N, columns, rows), 0, 0),
            (", dw", product(rows, columns, N, F32), 0, 0),
        ):
            if (name, suffix) == ("up", ""):
                extra, more = extra + N * FF * S, more + 5 * N * FF
            elif (name, suffix) == ("down", ", dx"):  # dh and db1
                extra, more = N * FF * S + FF * F32, 11 * N * FF
            found.append(Work(GEMM, name + suffix, L, L * (moved + extra), L * (flops + more)))
        if name != "up":  # whose column sums come out of down's epilogue
            summed = N * rows * S + rows * F32
            found.append(Work(REDUCTION, f"{name}, db", L, L * summed, L * N * rows))
    return found


def chunks(N: int, V: int) -> int:
    """How many chunks the rows of logits are made in."""
    size = -(-N // max(1, -(-N * V * S // LOGITS)))
    return -(-N // (-(-size // ROWS) * ROWS))


def _head(N, C, V):
    """Chunk by chunk: logits, the loss and dlogits in their place, dx, and dw added up."""
    k, dw = chunks(N, V), V * C * F32
    logits, x, w = N * V * S, N * C * S, V * C * S
    flops = 2 * N * V * C
    return [
        Work(GEMM, "head", k, x + k * w + logits, flops),
        Work(SOFTMAX, "cross-entropy", k, 2 * logits + 8 * N, 9 * N * V),
        Work(GEMM, "head, dx", k, logits + k * w + x, flops),
        Work(GEMM, "head, dw", k, logits + x + (2 * k - 1) * dw, flops),
    ]


def _optimizer(matrices, vectors):
    """AdamW: parameter, gradient and two moments in, three of them out, and the rounded copy."""
    moved = 7 * F32 * (matrices + vectors) + S * matrices
    return [Work(ELEMENTWISE, "AdamW", 2, moved, 14 * (matrices + vectors))]
