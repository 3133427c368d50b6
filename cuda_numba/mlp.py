"""Linear layer, GELU, linear layer as one operation: the feed-forward part of a block.

    pre = x w1ᵀ + b1         x (…, K), w1 (FF, K)       2 R K FF FLOPs, R rows of x
    h   = gelu(pre)                                     in the same kernel
    y   = h w2ᵀ + b2         w2 (N, FF)                 2 R FF N

    dw2 = dyᵀ h     and db2 = Σ of dy's rows, in the same kernel
    dh  = (dy w2) · gelu'(pre)      and db1 = Σ of dh's rows, in the same kernel
    dw1 = dhᵀ x              dx = dh w1                 four products: twice the forward pass

As three operations dy w2 would go to memory, come back for the slope, go out as dh and come back
once more for its column sums. Here dh is written once and read twice, by the two products. How
often R · FF numbers of 16 bits are read (r) or written (w), 100 MB for 16,384 rows of 3,072:

                three operations                                      here
    forward     w pre; r pre, w h; r h                        4       w pre, h; r h               3
    backward    r h; w dy w2; r dy w2, pre, w dh; 3 × r dh    8       r h; r pre, w dh; 2 × r dh  5

What is kept for the backward pass: x, pre, h and what was read in place of w1 and w2, nothing
twice. Where the Hopper kernel does not take the operands (see `matmul`), or rows of h are no
multiple of 16 bytes, the same steps run one by one.

Weights in float32 beside 16-bit x are read through a rounded copy, as in `linear`.
"""

import torch
from torch.autograd.function import once_differentiable

from .activation import gelu_backward
from .matmul import (
    ACTIVATIONS,
    HOPPER,
    bias_gradient,
    check_operands,
    linear_forward,
    linear_reference,
    matmul_rung,
    multiply,
    rows_of,
    weight_and_bias_gradients,
)
from .matmul_hopper import product
from .rounded import copy_for

WHOLE = 8  # 16-bit numbers in 16 bytes: rows of pre and dh that TMA moves are multiples


def mlp_reference(x, w1, b1, w2, b2, activation="gelu_tanh") -> torch.Tensor:
    return linear_reference(linear_reference(x, w1, b1, activation), w2, b2)


# ---- launchers: x (rows, K), dy (rows, N), contiguous; weights of their dtype


def slope_product(
    dy: torch.Tensor, w2: torch.Tensor, pre: torch.Tensor, activation: str,
    sums: torch.dtype | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:  # fmt: skip
    """(dh, db1): (dy w2) · activation'(pre), and its column sums in format `sums` where given."""
    one_kernel = matmul_rung(dy, w2) == HOPPER and pre.shape[1] % WHOLE == 0
    if not one_kernel or not dy.numel():
        dh = gelu_backward(multiply(dy, w2), pre, ACTIVATIONS[activation])
        return dh, bias_gradient(dh, sums) if sums else None
    db1 = torch.empty(pre.shape[1], dtype=torch.float32, device=pre.device) if sums else None
    dh = torch.empty_like(pre)
    product(dy, w2, dh, slope_at=pre, slope=activation, column_sums=db1)
    return dh, db1.to(sums) if sums else None


class MLPFunction(torch.autograd.Function):
    """copies: what is read in place of w1 and w2, None for themselves; they have no gradient."""

    @staticmethod
    def forward(ctx, x, w1, b1, w2, b2, activation, *copies):
        ctx.dtypes = [t if t is None else t.dtype for t in (w1, b1, w2, b2)]
        w1, w2 = (w if c is None else c for w, c in zip((w1, w2), copies, strict=True))
        first = any(ctx.needs_input_grad[:3])  # whether anything before h has a gradient
        h, pre = linear_forward(x, w1, b1, activation, keep_pre=first)
        y, _ = linear_forward(h, w2, b2)
        wants_x, wants_w1, _, wants_w2 = ctx.needs_input_grad[:4]
        ctx.save_for_backward(
            x if wants_w1 else None,
            w1 if wants_x else None,
            w2 if first else None,
            pre,
            h if wants_w2 else None,
        )
        ctx.activation = activation
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, w1, w2, pre, h = ctx.saved_tensors
        w1_dtype, b1_dtype, w2_dtype, b2_dtype = ctx.dtypes
        wants_x, wants_w1, wants_b1, wants_w2, wants_b2 = ctx.needs_input_grad[:5]
        dy = dy.contiguous()
        dx = dw1 = db1 = None
        dw2, db2 = weight_and_bias_gradients(
            dy, h, w2_dtype if wants_w2 else None, b2_dtype if wants_b2 else None
        )
        if pre is not None:
            sums = b1_dtype if wants_b1 else None
            dh, db1 = slope_product(dy, w2, pre, ctx.activation, sums)
            dw1 = multiply(dh.t(), x, w1_dtype) if wants_w1 else None
            dx = multiply(dh, w1) if wants_x else None
        return dx, dw1, db1, dw2, db2, None, None, None


# ---- public operation


def mlp(
    x: torch.Tensor,
    w1: torch.Tensor,
    b1: torch.Tensor | None,
    w2: torch.Tensor,
    b2: torch.Tensor | None,
    activation: str = "gelu_tanh",
    rounded: tuple[torch.Tensor | None, torch.Tensor | None] | None = None,
) -> torch.Tensor:
    """act(x w1ᵀ + b1) w2ᵀ + b2: x (…, K), w1 (FF, K), w2 (N, FF) → (…, N); differentiable.

    x: float32, bfloat16 or float16; y and h have its dtype, sums are float32. activation: "gelu" or
    "gelu_tanh". b1 (FF,), b2 (N,) of any of these formats, or None. x is copied where its rows do
    not lie evenly.

    Each weight has x's dtype, or is float32 where x is not. Then the products read its copy in
    `rounded` (of w1, of w2), or without it w.to(x.dtype), made anew in every call; its gradient is
    float32 as the product sums it, and no gradient goes to the copy. Gradients have
    the dtype of what they belong to; db1 and db2 come from float32 sums.
    """
    check_operands(x, w1, b1, "x w1 b1")
    check_operands(x.new_empty(()).expand(*x.shape[:-1], len(w1)), w2, b2, "h w2 b2")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation: got {activation!r}, it is one of {', '.join(ACTIVATIONS)}.")
    given = (None, None) if rounded is None else rounded
    if len(given) != 2:
        raise ValueError(
            f"rounded: it has {len(given)} parts, it must be (copy of w1, copy of w2)."
        )
    copies = (
        copy_for(x.dtype, w1, given[0], "x w1 rounded[0]"),
        copy_for(x.dtype, w2, given[1], "x w2 rounded[1]"),
    )
    b1, b2 = (b if b is None else b.contiguous() for b in (b1, b2))
    y = MLPFunction.apply(rows_of(x), w1, b1, w2, b2, activation, *copies)
    return y.view(*x.shape[:-1], len(w2))
