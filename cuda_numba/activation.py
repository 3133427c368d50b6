"""GELU and SwiGLU, forward and backward: how much arithmetic fits into the time of a copy.

    gelu(x)         x · Φ(x), Φ the normal distribution function (Hendrycks & Gimpel 2016)
    gelu_tanh(x)    x · σ(2u), u = √(2/π) · (x + 0.044715 x³): ½x(1 + tanh u), written with σ
    silu(x)         x · σ(x);  swiglu(gate, up) = silu(gate) · up (Shazeer 2020)

n elements: gelu reads and writes 2 · n · itemsize bytes, backward 3; swiglu 3, backward 5. At the
3.0 TB/s of a copy on an H100, bf16 16384 × 4096: 90, 134, 134 and 224 µs.

All three are the ramp max(x, 0) less a bump that is the same on both sides (t = |x|):

    y     = max(x, 0) − t · Q(t)         Q(t) = Φ(−t), σ(−2u(t)) or σ(−t), from ½ down to 0
    dy/dx = N(t) left of 0, 1 − N(t) right of it,    N(t) = Q(t) + t · Q'(t), the slope at −t

`activation_curve` makes Q and N. Nothing cancels: y keeps its digits far down the left tail, where
1 + erf(x/√2) in float32 has none left (x < −5.5). At ±∞ the limits come out (−∞ → 0).

What fits: 132 SMs issue 128 lanes each at 1.755 GHz, 29.7 · 10¹² instructions a second. A copy of
bf16 moves 0.75 · 10¹² elements in that time, so gelu may take 39 instructions per element before
the memory waits for the arithmetic. The whole machine code (sm_90a) over the elements of a thread:

                     forward: bf16, fp32, may      backward: bf16, fp32, may (bf16)
        gelu                  18    24    39                 26    32    59
        gelu_tanh             17    19    39                 25    28    59
        swiglu                18    20    59                 32    37    99

    element       one element per thread: each of its instructions is there for 2 or 4 bytes
    vector        16 bytes per thread: what surrounds an access is there for 8 or 4 elements
    vectorised    `items` times 16 bytes per thread, all asked for before the first is used
                    |t0: 16 bytes|t1: 16 bytes| … |t255: 16 bytes|   × items
"""

import functools

import torch

from . import ptx
from .activation_curve import curve
from .dtypes import FLOATS, dtype_name, vector_width
from .jit import jit
from .namespace import cuda, float32, int64

THREADS = 256  # eight warps: enough to hide each other's waits, small enough to fill the last block
ITEMS = 2  # accesses to each tensor that a thread has on their way; unrolled: up to 70 registers
GELU = {"none": "gelu", "tanh": "gelu_tanh"}  # by the name that PyTorch gives the form


def gelu_reference(x: torch.Tensor, approximate: str = "none") -> torch.Tensor:
    if approximate == "none":
        return x * torch.special.erfc(-x / 2**0.5) / 2
    u = (2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)
    return x * torch.sigmoid(2 * u)


def swiglu_reference(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return gate * torch.sigmoid(gate) * up


# ---- kernels: count = n // width accesses are whole, the rest is less than one


@functools.cache
def mover(width: int):
    """Device functions (load, store) of `width` elements: 16 bytes of them, or 1."""

    @jit(device=True)
    def load_vector(x, i, values, j):
        ptx.load_vector_nc(x, i, values, j)

    @jit(device=True)
    def store_vector(y, i, values, j):
        ptx.store_vector_cs(y, i, values, j)

    @jit(device=True)
    def load_element(x, i, values, j):
        values[j] = ptx.load(x, i)

    @jit(device=True)
    def store_element(y, i, values, j):
        ptx.store(y, i, values[j])

    return (load_vector, store_vector) if width > 1 else (load_element, store_element)


@functools.cache
def gelu_kernel(form: str, dtype: str, width: int, items: int):
    """y = gelu(x) or gelu_tanh(x)."""
    HELD = items * width  # elements per thread
    load, store = mover(width)
    value, _ = curve(form, dtype)

    @jit(pointers=True, launch_bounds=(THREADS, 1))
    def gelu_forward(x: dtype, y: dtype, n: "int64", count: "int64"):
        values = cuda.local.array(HELD, float32)
        first = int64(cuda.blockIdx.x) * (items * THREADS) + cuda.threadIdx.x
        for k in range(items):
            i = first + k * THREADS  # the access; its first element is i · width
            if i < count:
                load(x, i * width, values, k * width)
        for k in range(items):
            i = first + k * THREADS
            if i < count:
                for j in range(k * width, (k + 1) * width):
                    values[j] = value(values[j])
                store(y, i * width, values, k * width)
        rest = count * width + first  # the last n % width elements, for the first threads of all
        if rest < n:
            ptx.store(y, rest, value(ptx.load(x, rest)))

    return gelu_forward


@functools.cache
def gelu_backward_kernel(form: str, dtype: str, width: int, items: int):
    """dx = dy · gelu'(x)."""
    HELD = items * width
    load, store = mover(width)
    _, derivative = curve(form, dtype)

    @jit(pointers=True, launch_bounds=(THREADS, 1))
    def gelu_backward(dy: dtype, x: dtype, dx: dtype, n: "int64", count: "int64"):
        values = cuda.local.array(HELD, float32)
        grads = cuda.local.array(HELD, float32)
        first = int64(cuda.blockIdx.x) * (items * THREADS) + cuda.threadIdx.x
        for k in range(items):
            i = first + k * THREADS
            if i < count:
                load(x, i * width, values, k * width)
                load(dy, i * width, grads, k * width)
        for k in range(items):
            i = first + k * THREADS
            if i < count:
                for j in range(k * width, (k + 1) * width):
                    grads[j] *= derivative(values[j])
                store(dx, i * width, grads, k * width)
        rest = count * width + first
        if rest < n:
            ptx.store(dx, rest, ptx.load(dy, rest) * derivative(ptx.load(x, rest)))

    return gelu_backward


@functools.cache
def swiglu_kernel(dtype: str, width: int, items: int):
    """y = silu(gate) · up."""
    HELD = items * width
    load, store = mover(width)
    silu, _ = curve("silu", dtype)

    @jit(pointers=True, launch_bounds=(THREADS, 1))
    def swiglu_forward(gate: dtype, up: dtype, y: dtype, n: "int64", count: "int64"):
        gates = cuda.local.array(HELD, float32)
        ups = cuda.local.array(HELD, float32)
        first = int64(cuda.blockIdx.x) * (items * THREADS) + cuda.threadIdx.x
        for k in range(items):
            i = first + k * THREADS
            if i < count:
                load(gate, i * width, gates, k * width)
                load(up, i * width, ups, k * width)
        for k in range(items):
            i = first + k * THREADS
            if i < count:
                for j in range(k * width, (k + 1) * width):
                    ups[j] *= silu(gates[j])
                store(y, i * width, ups, k * width)
        rest = count * width + first
        if rest < n:
            ptx.store(y, rest, ptx.load(up, rest) * silu(ptx.load(gate, rest)))

    return swiglu_forward


@functools.cache
def swiglu_backward_kernel(dtype: str, width: int, items: int):
    """dgate = dy · up · silu'(gate), dup = dy · silu(gate)."""
    HELD = items * width
    load, store = mover(width)
    silu, derivative = curve("silu", dtype)

    @jit(pointers=True, launch_bounds=(THREADS, 1))
    def swiglu_backward(
        dy: dtype, gate: dtype, up: dtype, dgate: dtype, dup: dtype, n: "int64", count: "int64"
    ):
        grads = cuda.local.array(HELD, float32)
        gates = cuda.local.array(HELD, float32)
        ups = cuda.local.array(HELD, float32)
        first = int64(cuda.blockIdx.x) * (items * THREADS) + cuda.threadIdx.x
        for k in range(items):
            i = first + k * THREADS
            if i < count:
                load(gate, i * width, gates, k * width)
                load(up, i * width, ups, k * width)
                load(dy, i * width, grads, k * width)
        for k in range(items):
            i = first + k * THREADS
            if i < count:
                for j in range(k * width, (k + 1) * width):
                    ups[j] *= grads[j] * derivative(gates[j])
                    grads[j] *= silu(gates[j])
                store(dgate, i * width, ups, k * width)
                store(dup, i * width, grads, k * width)
        rest = count * width + first
        if rest < n:
            grad, x = ptx.load(dy, rest), ptx.load(gate, rest)
            ptx.store(dgate, rest, ptx.load(up, rest) * (grad * derivative(x)))
            ptx.store(dup, rest, grad * silu(x))

    return swiglu_backward


# ---- launchers: contiguous tensors of one shape, dtype and device


def _launch(kernel_of, items: int, *tensors: torch.Tensor, rung: str = "vectorised") -> None:
    """Run kernel_of(dtype, width, items), as the rung says, on the tensors."""
    n, dtype = tensors[0].numel(), dtype_name(tensors[0])
    if not n:
        return
    aligned = all(t.data_ptr() % 16 == 0 for t in tensors)
    width = vector_width(dtype) if aligned and rung != "element" else 1
    items = items if rung == "vectorised" else 1
    count = n // width
    blocks = max(1, -(-count // (THREADS * items)))
    kernel_of(dtype, width, items)[blocks, THREADS](*tensors, n, count)


def gelu_forward(
    x: torch.Tensor, approximate: str = "none", rung: str = "vectorised"
) -> torch.Tensor:
    """y = gelu(x), of x's shape and dtype."""
    y = torch.empty_like(x)
    _launch(functools.partial(gelu_kernel, GELU[approximate]), ITEMS, x, y, rung=rung)
    return y


def gelu_backward(dy: torch.Tensor, x: torch.Tensor, approximate: str = "none") -> torch.Tensor:
    """dx of gelu from dy and its argument x."""
    dx = torch.empty_like(x)
    _launch(functools.partial(gelu_backward_kernel, GELU[approximate]), ITEMS, dy, x, dx)
    return dx


def swiglu_forward(gate: torch.Tensor, up: torch.Tensor, rung: str = "vectorised") -> torch.Tensor:
    """y = silu(gate) · up, of their shape and dtype."""
    y = torch.empty_like(gate)
    _launch(swiglu_kernel, ITEMS, gate, up, y, rung=rung)
    return y


def swiglu_backward(
    dy: torch.Tensor, gate: torch.Tensor, up: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(dgate, dup) of swiglu from dy and its arguments."""
    dgate, dup = torch.empty_like(gate), torch.empty_like(up)
    _launch(swiglu_backward_kernel, 1, dy, gate, up, dgate, dup)
    return dgate, dup


RUNGS = {  # of gelu
    name: functools.partial(gelu_forward, rung=name) for name in ("element", "vector", "vectorised")
}
SWIGLU_RUNGS = {name: functools.partial(swiglu_forward, rung=name) for name in RUNGS}


class GELUFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, approximate):
        ctx.save_for_backward(x)
        ctx.approximate = approximate
        return gelu_forward(x, approximate)

    @staticmethod
    def backward(ctx, dy):
        return gelu_backward(dy.contiguous(), *ctx.saved_tensors, ctx.approximate), None


class SwiGLUFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate, up):
        ctx.save_for_backward(gate, up)
        return swiglu_forward(gate, up)

    @staticmethod
    def backward(ctx, dy):
        return swiglu_backward(dy.contiguous(), *ctx.saved_tensors)


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


def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """silu(gate) · up, element by element; differentiable.

    gate, up: tensors of one shape, one dtype (float32, float16 or bfloat16) and one device; copied
    first where not contiguous. Computed in float32 and rounded once. silu(−∞) is 0, the limit.
    """
    if gate.shape != up.shape:
        raise ValueError(
            f"up: its shape is {tuple(up.shape)}, it must be gate's, {tuple(gate.shape)}."
        )
    if gate.dtype != up.dtype or dtype_name(gate) not in FLOATS:
        raise TypeError(
            f"gate, up: their dtypes are {dtype_name(gate)} and {dtype_name(up)}, "
            f"they must be the same one of {', '.join(FLOATS)}."
        )
    return SwiGLUFunction.apply(gate.contiguous(), up.contiguous())
