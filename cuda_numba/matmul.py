"""Products of matrices and the linear layer, for every format and GPU: the public operations.

    C (…, M, N) = A (…, M, K) B (…, K, N)                2 M N K FLOPs
    y (…, N)    = act(x (…, K) wᵀ + b)                   w (N, K), as in torch.nn.Linear

    dA = dC Bᵀ    dB = Aᵀ dC               dx = dy w    dw = dyᵀ x    db = Σ of dy's rows

Sums are float32 in every kernel. At the 989 TFLOP/s of an H100's data sheet 8192³ takes 1.1 ms; a
product of 16384 × 768 by 768 × 768 moves 53 MB and does 19 GFLOP: it is bound by neither alone.

The ladder, slow rung first: `matmul_simt` (naive, coalesced, shared tile, register tile; float32),
`matmul_warp` (tensor cores by `mma.sync`), `matmul_hopper` (TMA and `wgmma`). Which one a call runs
follows from its operands, and `matmul_rung(a, b)` says it:

    float32                                                          the last of `matmul_simt`
    bfloat16, float16 on compute capability 9.0 or the emulator,
    where TMA can take both operands (`hopper_operand.problem`)      "hopper"
    bfloat16, float16 otherwise                                      the last of `matmul_warp`
"""

from importlib import import_module

import torch
from torch.autograd.function import once_differentiable

from .activation import gelu_backward, gelu_forward
from .dtypes import FLOATS, dtype_name
from .hopper_operand import DTYPES, batch_of, problem
from .matmul_hopper import product
from .matmul_sums import column_sums
from .rounded import copy_for

HOPPER = "hopper"
# activation → `approximate` of torch and of `activation.gelu`
ACTIVATIONS = {"gelu": "none", "gelu_tanh": "tanh"}


def matmul_reference(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return a @ b


def linear_reference(x, w, b=None, activation=None) -> torch.Tensor:
    y = torch.nn.functional.linear(x, w, b)
    if activation is None:
        return y
    return torch.nn.functional.gelu(y, approximate=ACTIVATIONS[activation])


# ---- rungs


def _rungs(module: str) -> dict:
    """Rungs by name, slow ones first: fn(a, b, out=None)."""
    return import_module(f".{module}", __package__).RUNGS


def __getattr__(name: str):
    if name == "RUNGS":
        return _rungs("matmul_simt") | _rungs("matmul_warp") | {HOPPER: product}
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _has_hopper(x: torch.Tensor) -> bool:
    """Whether x is where the Hopper kernel runs: an H100 or its like, or the emulator."""
    if not x.is_cuda:
        return True
    return torch.cuda.get_device_capability(x.device)[0] == 9


def matmul_rung(a: torch.Tensor, b: torch.Tensor) -> str:
    """The name of the rung that `matmul(a, b)` runs: see the module."""
    return _rung(a, b)[0]


def _rung(a: torch.Tensor, b: torch.Tensor) -> tuple:
    """Name and function."""
    cores = dtype_name(a) in DTYPES
    if cores and _has_hopper(a) and not problem(a) and not problem(b):
        return HOPPER, product
    return list(_rungs("matmul_warp" if cores else "matmul_simt").items())[-1]


def multiply(
    a: torch.Tensor, b: torch.Tensor, out_dtype: torch.dtype | None = None
) -> torch.Tensor:
    """A B by the rung that `matmul_rung` names, without autograd."""
    if b.dim() == 2 and a.dim() > 2 and (flat := _flat(a)) is not None:
        return multiply(flat, b, out_dtype).view(*a.shape[:-1], b.shape[-1])
    if not a.numel() or not b.numel():
        batch = (a if a.dim() >= b.dim() else b).shape[:-2]
        shape = (*batch, a.shape[-2], b.shape[-1])
        return torch.zeros(shape, dtype=out_dtype or a.dtype, device=a.device)
    a, b = _readable(a), _readable(b)
    rung, run = _rung(a, b)
    if rung == HOPPER:
        return product(a, b, out_dtype=out_dtype)
    batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    shape = (*batch, a.shape[-2], b.shape[-1])
    out = torch.empty(shape, dtype=out_dtype or a.dtype, device=a.device)
    return run(a, b, out=out)


def _readable(x: torch.Tensor) -> torch.Tensor:
    """x, copied where neither its rows nor its columns are contiguous, or its batch is uneven."""
    contiguous = any(x.stride(d) == 1 or x.shape[d] == 1 for d in (-1, -2))
    return x if contiguous and batch_of(x) is not None else x.contiguous()


def _flat(x: torch.Tensor) -> torch.Tensor | None:
    """x (…, n) as (rows, n); None where that is no view."""
    try:
        return x.view(-1, x.shape[-1])
    except RuntimeError:
        return None


def rows_of(x: torch.Tensor) -> torch.Tensor:
    """x (…, n) as (rows, n), copied where that is no view."""
    rows = _flat(x)
    return x.reshape(-1, x.shape[-1]) if rows is None else rows


# ---- autograd


class MatmulFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a, b, out_dtype):
        ctx.save_for_backward(a, b)
        return multiply(a, b, out_dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, dc):
        a, b = ctx.saved_tensors
        dc = dc.to(a.dtype).contiguous()
        da = _gradient(dc, b.transpose(-1, -2), a) if ctx.needs_input_grad[0] else None
        db = _gradient(a.transpose(-1, -2), dc, b) if ctx.needs_input_grad[1] else None
        return da, db, None


def _gradient(left: torch.Tensor, right: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """left · right, added up over the batch where `like` is a single matrix."""
    if like.dim() == max(left.dim(), right.dim()):
        return multiply(left, right)
    return multiply(left, right, torch.float32).flatten(0, -3).sum(0).to(like.dtype)


class LinearFunction(torch.autograd.Function):
    """rounded: what is read in w's place, None for w itself; only w has a gradient."""

    @staticmethod
    def forward(ctx, x, w, b, activation, rounded):
        wanted = activation is not None and any(ctx.needs_input_grad)
        ctx.weight_dtype = w.dtype
        w = w if rounded is None else rounded
        y, pre = linear_forward(x, w, b, activation, wanted)
        ctx.save_for_backward(x, w, pre)
        ctx.activation, ctx.bias_dtype = activation, None if b is None else b.dtype
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, w, pre = ctx.saved_tensors
        dy = dy.contiguous()
        if ctx.activation is not None:
            dy = gelu_backward(dy, pre, ACTIVATIONS[ctx.activation])
        dx = multiply(dy, w) if ctx.needs_input_grad[0] else None
        dw, db = weight_and_bias_gradients(
            dy, x, ctx.weight_dtype if ctx.needs_input_grad[1] else None,
            ctx.bias_dtype if ctx.needs_input_grad[2] else None,
        )  # fmt: skip
        return dx, dw, db, None, None


def linear_forward(x, w, b=None, activation=None, keep_pre=False):
    """(y, pre) of x (rows, K), w (N, K); pre is the argument of the activation, where wanted."""
    pre = None
    if matmul_rung(x, w.t()) == HOPPER and _even(w.shape[0], keep_pre) and x.shape[1]:
        y = torch.empty(x.shape[0], w.shape[0], dtype=x.dtype, device=x.device)
        pre = torch.empty_like(y) if keep_pre else None
        return product(x, w.t(), y, bias=b, activation=activation, pre=pre), pre
    y = multiply(x, w.t())
    if b is not None:
        y += b
    if activation is not None:
        y, pre = gelu_forward(y, ACTIVATIONS[activation]), y
    return y, pre if keep_pre else None


def weight_and_bias_gradients(
    dy: torch.Tensor, x: torch.Tensor, w_dtype: torch.dtype | None, b_dtype: torch.dtype | None
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """(dyᵀ x, the sums of dy's columns) in these formats, None for what is not wanted.

    The Hopper kernel adds up dy on its way: dy is read once for both.
    """
    both = None not in (w_dtype, b_dtype) and dy.shape[1] > 1
    if both and len(dy) and x.shape[1] and matmul_rung(dy.t(), x) == HOPPER:
        db = torch.empty(dy.shape[1], dtype=torch.float32, device=dy.device)
        dw = product(dy.t(), x, out_dtype=w_dtype, row_sums=db)
        return dw, db.to(b_dtype)
    dw = None if w_dtype is None else multiply(dy.t(), x, w_dtype)
    return dw, None if b_dtype is None else bias_gradient(dy, b_dtype)


def bias_gradient(dy: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The sums of dy's columns (rows, N), contiguous, in float32 and then rounded to `dtype`."""
    if not len(dy):
        return torch.zeros(dy.shape[1], dtype=dtype, device=dy.device)
    return column_sums(dy).to(dtype)


def _even(columns: int, keep_pre: bool) -> bool:
    """Whether rows of so many columns can leave by TMA, as `pre` has to."""
    return not keep_pre or columns % 8 == 0


# ---- public operations


def check_operands(x, w, b, names: str = "x w b") -> None:
    """Raises TypeError or ValueError where x (…, K), w (N, K) and b (N,) or None do not fit.

    names: of the three, for the messages.
    """
    x_name, w_name, b_name = names.split()
    _check_float(x, x_name)
    _check_float(w, w_name)
    if w.device != x.device:
        raise TypeError(f"{w_name}: it is on {w.device}, {x_name} on {x.device}; they must agree.")
    if w.dim() != 2 or not x.dim() or x.shape[-1] != w.shape[1]:
        raise ValueError(
            f"{w_name}: its shape is {tuple(w.shape)}, with {x_name}'s {tuple(x.shape)} it must be "
            f"(N, {x.shape[-1] if x.dim() else '…'})."
        )
    if b is None:
        return
    if tuple(b.shape) != (w.shape[0],) or dtype_name(b) not in FLOATS or b.device != x.device:
        raise ValueError(
            f"{b_name}: {tuple(b.shape)} {dtype_name(b)} on {b.device}, it must be "
            f"({w.shape[0]},) of a float format on {x.device}."
        )


def _check_float(x: torch.Tensor, name: str) -> None:
    if dtype_name(x) not in FLOATS:
        raise TypeError(f"{name}: its dtype is {dtype_name(x)}, products take {', '.join(FLOATS)}.")


def matmul(a: torch.Tensor, b: torch.Tensor, out_dtype: torch.dtype | None = None) -> torch.Tensor:
    """A B: a (…, M, K), b (…, K, N) → (…, M, N), of a's dtype or `out_dtype`; differentiable.

    float32, bfloat16 or float16, both the same; sums are float32. The leading dimensions are equal,
    or one of them is a single matrix. Transposed and padded views are read where they are; what has
    contiguous rows neither way is copied. The rung that runs is `matmul_rung(a, b)`; the module
    says by which rule. Gradients have the operands' dtype; that of C is converted to it first.
    """
    _check_float(a, "a")
    _check_float(b, "b")
    if a.dtype != b.dtype or a.device != b.device:
        raise TypeError(
            f"b: it is {dtype_name(b)} on {b.device}, a {dtype_name(a)} on {a.device}; they must "
            "agree."
        )
    if a.dim() < 2 or b.dim() < 2:
        raise ValueError(
            f"a, b: they have {a.dim()} and {b.dim()} dimensions, matmul takes 2 or more."
        )
    if a.shape[-1] != b.shape[-2]:
        raise ValueError(
            f"b: its shape is {tuple(b.shape)}, with a's {tuple(a.shape)} its second to last "
            f"number must be {a.shape[-1]}."
        )
    if min(a.dim(), b.dim()) > 2 and a.shape[:-2] != b.shape[:-2]:
        raise ValueError(
            f"b: its batch is {tuple(b.shape[:-2])}, a's is {tuple(a.shape[:-2])}; they must be "
            "equal, or one of them a single matrix."
        )
    if out_dtype not in (None, torch.float32, torch.bfloat16, torch.float16):
        raise TypeError(f"out_dtype: got {out_dtype}, it may be {', '.join(FLOATS)}.")
    return MatmulFunction.apply(a, b, out_dtype)


def linear(
    x: torch.Tensor,
    w: torch.Tensor,
    b: torch.Tensor | None = None,
    activation: str | None = None,
    rounded: torch.Tensor | None = None,
) -> torch.Tensor:
    """act(x wᵀ + b): x (…, K), w (N, K), b (N,) → (…, N) of x's dtype; differentiable.

    activation: None, "gelu" or "gelu_tanh". On the Hopper rung bias and activation are part of the
    product's kernel; elsewhere they follow it. x is copied where its rows do not lie evenly.

    w has x's dtype, or is float32 where x is bfloat16 or float16. Then the product reads `rounded`,
    w's numbers in x's dtype, or without it w.to(x.dtype), made anew in every call; dw is float32 as
    the product sums it, and no gradient goes to `rounded`. Gradients have the dtype
    of what they belong to, db from float32 sums.
    """
    check_operands(x, w, b)
    if activation not in (None, *ACTIVATIONS):
        raise ValueError(f"activation: got {activation!r}, it is one of {', '.join(ACTIVATIONS)}.")
    copy = copy_for(x.dtype, w, rounded)
    y = LinearFunction.apply(rows_of(x), w, None if b is None else b.contiguous(), activation, copy)
    return y.view(*x.shape[:-1], w.shape[0])
