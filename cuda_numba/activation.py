"""GELU and SwiGLU, forward and backward: how much arithmetic fits into the time of a copy.

    gelu(x)         x · Φ(x), Φ the normal distribution function (Hendrycks & Gimpel 2016)
    gelu_tanh(x)    x · σ(2u), u = √(2/π) · (x + 0.044715 x³): ½x(1 + tanh u), written with σ
    silu(x)         x · σ(x);  swiglu(gate, up) = silu(gate) · up (Shazeer 2020)

n elements: gelu reads and writes 2 · n · itemsize bytes, backward 3; swiglu 3, backward 5. At the
3.0 TB/s of a copy on an H100, bf16 16384 × 4096: 90, 134, 134 and 224 µs.

`activation_curve` makes the curves so that nothing cancels: y keeps its digits far down the left
tail, where 1 + erf(x/√2) in float32 has none left (x < −5.5). At ±∞ the limits come out (−∞ → 0).

What fits: 132 SMs issue 128 lanes each at 1.755 GHz, 29.7 · 10¹² instructions a second. A copy of
bf16 moves 0.75 · 10¹² elements in that time, so gelu may take 39 instructions per element before
the memory waits for the arithmetic. One access more for a thread makes the machine code (sm_90a)
longer by so many instructions per element:

                     forward: bf16, fp32, may      backward: bf16, fp32, may (bf16)
        gelu                  15    17    39                 22    23    59
        gelu_tanh             12    12    39                 20    18    59
        swiglu                12    11    59                 21    19    99

So what counts is how many loads are on their way. One multiprocessor holds 65,536 registers: a
thread with two accesses to each of two tensors has 72, and three blocks of 256 fit; with one
access, 48, and five.

    element       one element per thread: each of its instructions is there for 2 or 4 bytes
    vector        16 bytes per thread: what surrounds an access is there for 8 or 4 elements
    vectorised    16 bytes of each tensor a thread; eight blocks hide each other's waits
                    |t0: 16 bytes|t1: 16 bytes| … |t255: 16 bytes|   × items

The kernels are in `activation_kernels`.
"""

import functools

import torch
from torch.autograd.function import once_differentiable

from .activation_kernels import (
    THREADS,
    gelu_backward_kernel,
    gelu_kernel,
    swiglu_backward_kernel,
    swiglu_kernel,
)
from .dtypes import FLOATS, dtype_name, vector_width

# Accesses to each tensor that a thread has on their way: more of them were no faster, since fewer
# registers mean more blocks, and those wait for each other just as well.
ITEMS = {"gelu": 1, "gelu_backward": 1, "swiglu": 1, "swiglu_backward": 1}
GELU = {"none": "gelu", "tanh": "gelu_tanh"}  # by the name that PyTorch gives the form


def gelu_reference(x: torch.Tensor, approximate: str = "none") -> torch.Tensor:
    if approximate == "none":
        return x * torch.special.erfc(-x / 2**0.5) / 2
    u = (2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)
    return x * torch.sigmoid(2 * u)


def swiglu_reference(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return gate * torch.sigmoid(gate) * up


# ---- launchers: tensors of one shape, dtype and device


def row_step(x: torch.Tensor) -> int | None:
    """Elements between the starts of neighbouring rows of x (…, columns); None where it has none.

    It has one where every row is contiguous and all rows lie equally far apart.
    """
    try:
        rows = x.view(-1, x.shape[-1]) if x.dim() else x.view(1, 1)
    except RuntimeError:
        return None
    return rows.stride(0) if rows.stride(1) == 1 else None


def _memory(x: torch.Tensor) -> torch.Tensor:
    """The stretch of memory from the first to the last element of x, as a contiguous tensor."""
    if x.is_contiguous():
        return x
    last = sum((size - 1) * step for size, step in zip(x.shape, x.stride(), strict=True))
    return x.detach().as_strided((last + 1,), (1,))


def _launch(kernel_of, items: int, *tensors: torch.Tensor, rung: str = "vectorised") -> None:
    """Run kernel_of(dtype, width, items), as the rung says, on contiguous tensors."""
    n, dtype = tensors[0].numel(), dtype_name(tensors[0])
    if not n:
        return
    aligned = all(t.data_ptr() % 16 == 0 for t in tensors)
    width = vector_width(dtype) if aligned and rung != "element" else 1
    items = items if rung == "vectorised" else 1
    count = n // width
    blocks = max(1, -(-count // (THREADS * items)))
    kernel_of(dtype, width, items)[blocks, THREADS](*tensors, n, count)


def _launch_rows(kernel_of, items: int, *tensors: torch.Tensor, rung: str = "vectorised") -> None:
    """Run kernel_of(dtype, width, items, apart) on tensors whose rows may lie apart."""
    n, dtype = tensors[0].numel(), dtype_name(tensors[0])
    if not n:
        return
    apart = not all(t.is_contiguous() for t in tensors)
    steps = [row_step(t) if apart else 0 for t in tensors]
    columns = tensors[0].shape[-1] if apart else 0
    width = vector_width(dtype)
    aligned = all(t.data_ptr() % 16 == 0 for t in tensors)
    if rung == "element" or not aligned or any(s % width for s in (columns, *steps)):
        width = 1
    count = n // width
    blocks = max(1, -(-count // (THREADS * items)))
    kernel_of(dtype, width, items, apart)[blocks, THREADS](
        *map(_memory, tensors), n, count, columns // width, *steps
    )


def gelu_forward(
    x: torch.Tensor, approximate: str = "none", rung: str = "vectorised"
) -> torch.Tensor:
    """y = gelu(x), of x's shape and dtype."""
    y = torch.empty_like(x)
    _launch(functools.partial(gelu_kernel, GELU[approximate]), ITEMS["gelu"], x, y, rung=rung)
    return y


def gelu_backward(dy: torch.Tensor, x: torch.Tensor, approximate: str = "none") -> torch.Tensor:
    """dx of gelu from dy and its argument x."""
    dx = torch.empty_like(x)
    kernel_of = functools.partial(gelu_backward_kernel, GELU[approximate])
    _launch(kernel_of, ITEMS["gelu_backward"], dy, x, dx)
    return dx


def swiglu_forward(gate: torch.Tensor, up: torch.Tensor, rung: str = "vectorised") -> torch.Tensor:
    """y = silu(gate) · up, contiguous, of their shape and dtype; each has a `row_step`."""
    y = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    _launch_rows(swiglu_kernel, ITEMS["swiglu"], gate, up, y, rung=rung)
    return y


def swiglu_backward(
    dy: torch.Tensor,
    gate: torch.Tensor,
    up: torch.Tensor,
    out: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(dgate, dup) of swiglu from dy and its arguments; written to out where it is given.

    Each tensor has a `row_step`.
    """
    if out is None:
        out = tuple(torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (gate, up))
    _launch_rows(swiglu_backward_kernel, ITEMS["swiglu_backward"], dy, gate, up, *out)
    return out


RUNGS = {  # of gelu
    name: functools.partial(gelu_forward, rung=name) for name in ("element", "vector", "vectorised")
}
SWIGLU_RUNGS = {
    name: functools.partial(swiglu_forward, rung=name) for name in ("element", "vectorised")
}


def _readable(x: torch.Tensor) -> torch.Tensor:
    """x, copied where its rows do not lie evenly."""
    return x if x.is_contiguous() or row_step(x) is not None else x.contiguous()


class GELUFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, approximate):
        ctx.save_for_backward(x)
        ctx.approximate = approximate
        return gelu_forward(x, approximate)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        return gelu_backward(dy.contiguous(), *ctx.saved_tensors, ctx.approximate), None


class SwiGLUFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate, up):
        ctx.save_for_backward(gate, up)
        return swiglu_forward(gate, up)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        return swiglu_backward(_readable(dy), *ctx.saved_tensors)


class SwiGLUHalvesFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate_up):
        ctx.save_for_backward(gate_up)
        return swiglu_forward(*gate_up.chunk(2, dim=-1))

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        (gate_up,) = ctx.saved_tensors
        both = torch.empty(gate_up.shape, dtype=gate_up.dtype, device=gate_up.device)
        swiglu_backward(_readable(dy), *gate_up.chunk(2, dim=-1), out=both.chunk(2, dim=-1))
        return both


# ---- public operations


def gelu(x: torch.Tensor, approximate: str = "none") -> torch.Tensor:
    """x · Φ(x), or with approximate="tanh" its tanh form; differentiable.

    x: any shape; float32, float16 or bfloat16; copied first where it is not contiguous. Computed in
    float32 and rounded once. gelu(−∞) is 0, the limit (PyTorch gives NaN).
    """
    if approximate not in GELU:
        raise ValueError(f"approximate: got {approximate!r}, allowed are 'none' and 'tanh'.")
    if dtype_name(x) not in FLOATS:
        raise TypeError(f"x: its dtype is {dtype_name(x)}, gelu takes {', '.join(FLOATS)}.")
    return GELUFunction.apply(x.contiguous(), approximate)


def swiglu(gate: torch.Tensor, up: torch.Tensor | None = None) -> torch.Tensor:
    """silu(gate) · up, element by element; differentiable.

    gate, up: tensors of one shape, one dtype (float32, float16 or bfloat16) and one device. Without
    up, gate is (…, 2 · FF), what one product with both matrices gives: the gate's half first, then
    up's, → (…, FF); its gradient is one tensor too. Rows that are contiguous and lie equally far
    apart are read where they are, anything else is copied first. Computed in float32 and rounded
    once. silu(−∞) is 0, the limit.
    """
    if up is None:
        if dtype_name(gate) not in FLOATS:
            raise TypeError(
                f"gate: its dtype is {dtype_name(gate)}, swiglu takes {', '.join(FLOATS)}."
            )
        if not gate.dim() or gate.shape[-1] % 2:
            raise ValueError(
                f"gate: its shape is {tuple(gate.shape)}, without up the last axis must be even: "
                "both halves."
            )
        return SwiGLUHalvesFunction.apply(_readable(gate))
    if gate.shape != up.shape:
        raise ValueError(
            f"up: its shape is {tuple(up.shape)}, it must be gate's, {tuple(gate.shape)}."
        )
    if gate.dtype != up.dtype or dtype_name(gate) not in FLOATS:
        raise TypeError(
            f"gate, up: their dtypes are {dtype_name(gate)} and {dtype_name(up)}, "
            f"they must be the same one of {', '.join(FLOATS)}."
        )
    return SwiGLUFunction.apply(_readable(gate), _readable(up))
