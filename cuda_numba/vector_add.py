"""The first kernel: out[i] = a[i] + b[i], and what it takes to do it at the speed of the memory.

    out = a + b        n elements each: 3 · n · itemsize bytes moved, n additions

One addition for 12 bytes of float32: the arithmetic is nothing, the traffic is everything. At the
3.0 TB/s of a copy on an H100, 2²⁶ elements (805 MB) take 0.27 ms whatever the kernel does; the
rungs differ in how well they keep the memory busy.

    element       thread i owns element i; the last block's surplus threads do nothing
                    block 0                  block 1
                    |t0|t1|t2| … |t255|      |t0|t1|t2| … |t255|
    grid_stride   a fixed grid of G threads walks over the elements: thread i owns i, i + G, i + 2G
    vectorised    a thread owns 16 neighbouring bytes, ITEMS times, all asked for before the first
                  is used: a quarter of the instructions, more bytes on their way
                    |t0: 16 bytes|t1: 16 bytes| … |t255: 16 bytes|   × ITEMS

The first two are for float32, in which `+` is one instruction. The 16-bit formats are added in
float32, by the instructions that convert.
"""

import functools

import torch

from . import ptx
from .dtypes import FLOATS, dtype_name, vector_width
from .jit import jit
from .namespace import cuda, float32, int64

THREADS = 256  # eight warps: enough to hide each other's waits, small enough to fill the last block
BLOCKS = 1024  # of the grid-stride rung: about what an H100 holds at once (132 × 8 × 256 threads)
ITEMS = 2  # 16-byte loads of a, and of b, that a thread has on their way


def vector_add_reference(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return a + b


# ---- kernels


@jit
def add_elements(a: "float32", b: "float32", out: "float32"):
    i = cuda.grid(1)
    if i < out.size:
        out[i] = a[i] + b[i]


@jit
def add_grid_stride(a: "float32", b: "float32", out: "float32"):
    for i in range(cuda.grid(1), out.size, cuda.gridsize(1)):
        out[i] = a[i] + b[i]


@functools.cache
def add_kernel(dtype: str, width: int):
    """The vectorised kernel; width: elements in one access, 16 bytes of them or 1.

    count = n // width accesses are whole.
    """
    HELD = ITEMS * width  # elements per thread

    @jit(pointers=True, launch_bounds=(THREADS, 1))
    def add_vectors(a: dtype, b: dtype, out: dtype, n: "int64", count: "int64"):
        x = cuda.local.array(HELD, float32)
        y = cuda.local.array(HELD, float32)
        first = int64(cuda.blockIdx.x) * (ITEMS * THREADS) + cuda.threadIdx.x
        for k in range(ITEMS):
            i = first + k * THREADS  # the access; its first element is i · width
            if i < count:
                if width > 1:
                    ptx.load_vector(a, i * width, x, k * width)
                    ptx.load_vector(b, i * width, y, k * width)
                else:
                    x[k] = ptx.load(a, i)
                    y[k] = ptx.load(b, i)
        for k in range(ITEMS):
            i = first + k * THREADS
            if i < count:
                for j in range(width):
                    x[k * width + j] += y[k * width + j]
                if width > 1:
                    ptx.store_vector(out, i * width, x, k * width)
                else:
                    ptx.store(out, i, x[k])
        rest = count * width + first  # the last n % width elements, for the first threads of all
        if rest < n:
            ptx.store(out, rest, ptx.load(a, rest) + ptx.load(b, rest))

    return add_vectors


# ---- launchers: contiguous a and b of one shape, dtype and device → out


def _blocks(n: int, elements: int) -> int:
    return -(-n // elements)


def add_by_element(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(a)
    if n := out.numel():
        add_elements[_blocks(n, THREADS), THREADS](a.view(-1), b.view(-1), out.view(-1))
    return out


def add_by_stride(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(a)
    if n := out.numel():
        blocks = min(BLOCKS, _blocks(n, THREADS))
        add_grid_stride[blocks, THREADS](a.view(-1), b.view(-1), out.view(-1))
    return out


def add_by_vector(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(a)
    if n := out.numel():
        dtype = dtype_name(a)
        aligned = all(t.data_ptr() % 16 == 0 for t in (a, b, out))
        width = vector_width(dtype) if aligned else 1
        blocks = _blocks(n, THREADS * ITEMS * width)
        add_kernel(dtype, width)[blocks, THREADS](a, b, out, n, n // width)
    return out


RUNGS = {"element": add_by_element, "grid_stride": add_by_stride, "vectorised": add_by_vector}


class VectorAdd(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a, b):
        return add_by_vector(a, b)

    @staticmethod
    def backward(ctx, dy):
        return dy, dy


def vector_add(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a + b, element by element; differentiable.

    a, b: tensors of one shape, one dtype (float32, float16 or bfloat16) and one device. What is not
    contiguous is copied first. The sum is made in float32 and rounded once.
    """
    if a.shape != b.shape:
        raise ValueError(f"b: its shape is {tuple(b.shape)}, it must be a's, {tuple(a.shape)}.")
    if a.dtype != b.dtype or dtype_name(a) not in FLOATS:
        raise TypeError(
            f"a, b: their dtypes are {dtype_name(a)} and {dtype_name(b)}, "
            f"they must be the same one of {', '.join(FLOATS)}."
        )
    return VectorAdd.apply(a.contiguous(), b.contiguous())
