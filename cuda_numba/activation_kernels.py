"""The kernels of GELU and SwiGLU: a thread owns `items` times `width` elements of each tensor.

n elements are count = n // width whole accesses; the rest, less than one access, goes to the first
threads of all. Where rows lie apart, as the halves of (rows, 2 · columns) do, a row is a whole
number of accesses and there is no rest:

    gate_up      |gate: access 0|access 1| … |up: access 0|access 1| … |    row 0
                 |…                          |                         |    row 1: one step further
"""

import functools

from . import ptx
from .access import loader, storer
from .activation_curve import curve
from .jit import jit
from .namespace import cuda, float32, int64, uint32

THREADS = 256  # eight warps: enough to hide each other's waits, small enough to fill the last block


def mover(width: int):
    """Device functions (load, store) of `width` elements: 16 bytes of them, or 1.

    Without cache hints, although nothing is read twice: with them this kernel would leave in L2
    what others have left there, and be slower (decisions, "a cache full of others' lines").
    """
    return loader(width, ptx.load_vector), storer(width, ptx.store_vector)


@functools.cache
def placer(width: int, apart: bool):
    """Device function: the element where access i starts.

    apart: rows of `per_row` accesses begin every `step` elements; otherwise one row is all.
    """

    @jit(device=True)
    def in_rows(i, per_row, step):
        row = uint32(uint32(i) // max(per_row, uint32(1)))  # no branch for a division by 0
        return int64(row) * step + int64(uint32(uint32(i) - row * per_row)) * width

    @jit(device=True)
    def in_one(i, per_row, step):
        return i * width

    return in_rows if apart else in_one


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
        rest = count * width + first  # the last n % width elements
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
def swiglu_kernel(dtype: str, width: int, items: int, apart: bool):
    """y = silu(gate) · up. apart, per_row and the steps: see `placer`."""
    HELD = items * width
    COUNT = "uint32" if apart else "int64"  # what is divided has 32 bits
    load, store = mover(width)
    place = placer(width, apart)
    silu, _ = curve("silu", dtype)

    @jit(pointers=True, launch_bounds=(THREADS, 1))
    def swiglu_forward(
        gate: dtype, up: dtype, y: dtype, n: "int64", count: COUNT, per_row: "uint32",
        gate_step: "int64", up_step: "int64", y_step: "int64",
    ):  # fmt: skip
        gates = cuda.local.array(HELD, float32)
        ups = cuda.local.array(HELD, float32)
        first = int64(cuda.blockIdx.x) * (items * THREADS) + cuda.threadIdx.x
        for k in range(items):
            i = first + k * THREADS
            if i < count:
                load(gate, place(i, per_row, gate_step), gates, k * width)
                load(up, place(i, per_row, up_step), ups, k * width)
        for k in range(items):
            i = first + k * THREADS
            if i < count:
                for j in range(k * width, (k + 1) * width):
                    ups[j] *= silu(gates[j])
                store(y, place(i, per_row, y_step), ups, k * width)
        if not apart:
            rest = count * width + first
            if rest < n:
                ptx.store(y, rest, ptx.load(up, rest) * silu(ptx.load(gate, rest)))

    return swiglu_forward


@functools.cache
def swiglu_backward_kernel(dtype: str, width: int, items: int, apart: bool):
    """dgate = dy · up · silu'(gate), dup = dy · silu(gate)."""
    HELD = items * width
    COUNT = "uint32" if apart else "int64"
    load, store = mover(width)
    place = placer(width, apart)
    silu, derivative = curve("silu", dtype)

    @jit(pointers=True, launch_bounds=(THREADS, 1))
    def swiglu_backward(
        dy: dtype, gate: dtype, up: dtype, dgate: dtype, dup: dtype,
        n: "int64", count: COUNT, per_row: "uint32", dy_step: "int64",
        gate_step: "int64", up_step: "int64", dgate_step: "int64", dup_step: "int64",
    ):  # fmt: skip
        grads = cuda.local.array(HELD, float32)
        gates = cuda.local.array(HELD, float32)
        ups = cuda.local.array(HELD, float32)
        first = int64(cuda.blockIdx.x) * (items * THREADS) + cuda.threadIdx.x
        for k in range(items):
            i = first + k * THREADS
            if i < count:
                load(gate, place(i, per_row, gate_step), gates, k * width)
                load(up, place(i, per_row, up_step), ups, k * width)
                load(dy, place(i, per_row, dy_step), grads, k * width)
        for k in range(items):
            i = first + k * THREADS
            if i < count:
                for j in range(k * width, (k + 1) * width):
                    ups[j] *= grads[j] * derivative(gates[j])
                    grads[j] *= silu(gates[j])
                store(dgate, place(i, per_row, dgate_step), ups, k * width)
                store(dup, place(i, per_row, dup_step), grads, k * width)
        if not apart:
            rest = count * width + first
            if rest < n:
                grad, x = ptx.load(dy, rest), ptx.load(gate, rest)
                ptx.store(dgate, rest, ptx.load(up, rest) * (grad * derivative(x)))
                ptx.store(dup, rest, grad * silu(x))

    return swiglu_backward
