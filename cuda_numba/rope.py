"""Rotary position embedding, forward and backward (Su et al. 2021, "RoFormer", section 3.2.2).

    (a, b) → (a · cos − b · sin, b · cos + a · sin)    a = x[…, i], b = x[…, i + D/2], i < D/2

Each pair turns by the angle of its position t and its frequency i; cos and sin are (T, D/2) tables.
The gradient is turned back: the same kernel with −sin.

x (B, H, T, D): 2 · B · H · T · D · itemsize bytes, and the tables, T · D · 4 bytes, which all
heads of all sequences share. At the 3.0 TB/s of a copy on an H100, bf16 (16, 12, 1024, 64) is
50 MB, 17 µs, and its tables (0.26 MB) stay in the L2 cache; (8, 32, 4096, 128) is 537 MB, 180 µs,
with 2.1 MB of tables. Six operations per pair: with everything around them 6 instructions per
element of bf16 and 7 of fp32 (sm_90a), where a copy leaves time for 39 and 79.

A thread owns 16 bytes of a head's first half and the 16 bytes D/2 further, at one position, for up
to HEADS heads, and reads its angles once for all of them:

    head h      |……… t0 ………|……… t1 ………| … |……… t0 ………|……… t1 ………| …     position t, D = 64
    head h + 1  |……… t0 ………|……… t1 ………| … |……… t0 ………|……… t1 ………| …     bf16: t0 … t3
                 a: half 0                  b: half 1

Neighbouring threads go along the half, then along what is next in memory: positions, or heads where
x is the transpose of (B, T, H, D) that a projection gives. Only the last axis has to be contiguous.

    element       a thread owns one pair
    vector        16 bytes of each half: 8 pairs of bf16, whose angles are 64 bytes for 32 of x
    vectorised    the same for up to HEADS heads: a quarter of the angles, and 2 · HEADS loads on
                  their way
"""

import functools

import torch
from torch.autograd.function import once_differentiable

from . import ptx
from .access import loader, storer
from .dtypes import FLOATS, dtype_name, vector_width
from .jit import jit
from .namespace import cuda, float32, int64, uint32

THREADS = 128  # at 88 registers a multiprocessor holds five such blocks, but two of 256
HEADS = 4  # of a thread: 8 loads of 16 bytes on their way, 64 bytes of angles for 256 of x and y


def rope_reference(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


# ---- the kernel, for both directions and all rungs


@functools.cache
def angle_loader(width: int):
    """Device function: table[i : i + width], float32 whatever x is → values[0 : width]."""
    EACH = min(width, 4)  # of an access
    load = loader(width, ptx.load_vector)

    @jit(device=True)
    def load_angles(table, i, values):
        for k in range(width // EACH):
            load(table, i + EACH * k, values, EACH * k)

    return load_angles


@functools.cache
def rope_kernel(dtype: str, half: int, width: int, heads: int, along_heads: bool, inverse: bool):
    """y = x turned, or turned back (inverse); x and y by their strides, in elements.

    half = D/2; heads: of a thread, a divisor of H; along_heads: neighbouring threads go along the
    half, then the heads; otherwise along the half, then the positions.
    """
    ACCESSES = half // width  # threads that share a half
    HELD = heads * width
    SIGN = -1.0 if inverse else 1.0
    load = loader(width, ptx.load_vector_no_allocate)  # not the read-only path: y may be x
    store = storer(width, ptx.store_vector_no_allocate)
    load_angles = angle_loader(width)

    @jit(pointers=True, launch_bounds=(THREADS, 1))
    def rope_turn(
        x: dtype, cos: "float32", sin: "float32", y: dtype,
        threads: "uint32", times: "uint32", groups: "uint32", groups_per_batch: "uint32",
        x_batch: "int64", x_head: "int64", x_time: "int64",
        y_batch: "int64", y_head: "int64", y_time: "int64",
    ):  # fmt: skip
        first = cuda.local.array(HELD, float32)
        second = cuda.local.array(HELD, float32)
        c = cuda.local.array(width, float32)
        s = cuda.local.array(width, float32)
        place = uint32(uint32(cuda.blockIdx.x) * uint32(THREADS) + uint32(cuda.threadIdx.x))
        if place >= threads:
            return
        row = uint32(place // uint32(ACCESSES))
        column = int64(uint32(place - row * uint32(ACCESSES)) * uint32(width))
        if along_heads:
            time = uint32(row // groups)
            group = uint32(row - time * groups)
        else:
            group = uint32(row // times)
            time = uint32(row - group * times)
        batch = uint32(group // groups_per_batch)
        head = int64(uint32(group - batch * groups_per_batch) * uint32(heads))
        i = int64(batch) * x_batch + head * x_head + int64(time) * x_time + column
        o = int64(batch) * y_batch + head * y_head + int64(time) * y_time + column
        angle = int64(time) * half + column
        for h in range(heads):
            load(x, i + h * x_head, first, h * width)
            load(x, i + h * x_head + half, second, h * width)
        load_angles(cos, angle, c)
        load_angles(sin, angle, s)
        for j in range(width):
            s[j] *= float32(SIGN)
        for h in range(heads):
            for j in range(width):
                a = first[h * width + j]
                b = second[h * width + j]
                first[h * width + j] = a * c[j] - b * s[j]
                second[h * width + j] = b * c[j] + a * s[j]
            store(y, o + h * y_head, first, h * width)
            store(y, o + h * y_head + half, second, h * width)

    return rope_turn


# ---- launchers: x, y (B, H, T, D) with contiguous last axes; cos, sin (T, D/2) contiguous


def _strides(x: torch.Tensor) -> list[int]:
    """Elements between neighbours along batch, heads and time; 0 along an axis of length 1."""
    return [x.stride(k) if x.shape[k] > 1 else 0 for k in range(3)]


def _memory(x: torch.Tensor) -> torch.Tensor:
    """The stretch of memory between the first and the last element of x, as a contiguous tensor."""
    if x.is_contiguous():
        return x
    last = sum((size - 1) * step for size, step in zip(x.shape, x.stride(), strict=True))
    return x.detach().as_strided((last + 1,), (1,))


def _width(half: int, x: torch.Tensor, y: torch.Tensor, *tables: torch.Tensor) -> int:
    """Elements in one access: 16 bytes where every half of every head starts at 16, else 1."""
    width = vector_width(dtype_name(x))
    steps = [half, *_strides(x), *_strides(y)]
    aligned = all(t.data_ptr() % 16 == 0 for t in (x, y, *tables))
    return width if aligned and all(n % width == 0 for n in steps) else 1


def rope_forward(
    x: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    out: torch.Tensor | None = None,
    inverse: bool = False,
    rung: str = "vectorised",
) -> torch.Tensor:
    """x turned by the angles, or back (inverse) → out, a new tensor by default.

    out may be x itself. x and out may have any strides along the first three axes.
    """
    if out is None:
        out = torch.empty_like(x)  # keeps the order of the axes in memory
        if out.stride(-1) != 1:
            out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if not x.numel():
        return out
    B, H, T, D = x.shape
    half = D // 2
    width = 1 if rung == "element" else _width(half, x, out, cos, sin)
    heads = max(h for h in range(1, HEADS + 1) if H % h == 0) if rung == "vectorised" else 1
    groups = B * H // heads
    threads = half // width * T * groups
    _, by_head, by_time = _strides(x)
    kernel = rope_kernel(dtype_name(x), half, width, heads, 0 < by_head < by_time, inverse)
    kernel[-(-threads // THREADS), THREADS](
        _memory(x), cos, sin, _memory(out),
        threads, T, groups, H // heads, *_strides(x), *_strides(out),
    )  # fmt: skip
    return out


def rope_backward(dy: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """dx of rope from dy: turned back."""
    return rope_forward(dy, cos, sin, inverse=True)


RUNGS = {
    name: functools.partial(rope_forward, rung=name) for name in ("element", "vector", "vectorised")
}


def _readable(x: torch.Tensor) -> torch.Tensor:
    """x, copied where its last axis is not contiguous."""
    return x if x.stride(-1) == 1 else x.contiguous()


class RopeFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, cos, sin):
        ctx.save_for_backward(cos, sin)
        return rope_forward(x, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        return rope_backward(_readable(dy), *ctx.saved_tensors), None, None


# ---- public operation


def rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn the pairs (x[…, i], x[…, i + D/2]) by the angle of their position; differentiable in x.

    x: (B, H, T, D), D even; float32, float16 or bfloat16; with any strides along B, H and T, so a
    transposed (B, T, H, D) is read in place. cos, sin: (T, D/2) float32, of x's device. The result
    has x's shape and dtype, computed in float32 and rounded once.
    """
    if dtype_name(x) not in FLOATS:
        raise TypeError(f"x: its dtype is {dtype_name(x)}, rope takes {', '.join(FLOATS)}.")
    if x.dim() != 4 or x.shape[-1] % 2 or not x.shape[-1]:
        raise ValueError(f"x: its shape is {tuple(x.shape)}, it must be (B, H, T, D) with D even.")
    expected = (x.shape[2], x.shape[3] // 2)
    for name, table in (("cos", cos), ("sin", sin)):
        if dtype_name(table) != "float32":
            raise TypeError(f"{name}: its dtype is {dtype_name(table)}, it must be float32.")
        if tuple(table.shape) != expected:
            raise ValueError(
                f"{name}: its shape is {tuple(table.shape)}, it must be (T, D/2), {expected}."
            )
    return RopeFunction.apply(_readable(x), cos.contiguous(), sin.contiguous())
