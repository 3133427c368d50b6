"""Sums and maxima, from one atomic per element to one read of memory at full speed.

    total = x[0] + x[1] + … + x[n−1]        n · itemsize bytes read, n − 1 additions

The additions are free and the read is everything: 2²⁸ float32 numbers (1.07 GB) take 0.36 ms at
the 3.0 TB/s of an H100. Each rung removes one thing that stands in the way:

    atomic       every thread adds its element to one address: they queue there
    divergent    a tree in shared memory; thread t works when t is a multiple of 2, 4, 8, …
                     t = 0 1 2 3 4 5 6 7      in every warp a few lanes work and the others wait
                         └─┘ └─┘ └─┘ └─┘
    conflicts    the same tree, worked by the first 128, 64, … threads: whole warps retire, but
                 their addresses are 2, 4, 8, … words apart and fall into the same banks
    sequential   halves are added onto halves: neighbouring threads, neighbouring words
                     tile[0 … 127] += tile[128 … 255],  tile[0 … 63] += tile[64 … 127], …
    shuffle      the lanes of a warp read each other's registers: one barrier instead of eight
    vectorised   a fixed number of blocks strides over x, each thread with UNROLL 16-byte loads on
                 their way; one number per block is left, and one block adds those

All but the first add in a fixed order: the same x gives the same bits on every run. The ladder
follows M. Harris, "Optimizing Parallel Reduction in CUDA", NVIDIA 2007; shuffles came after it.
"""

import functools

import torch

from . import ptx
from .dtypes import FLOATS, dtype_name, vector_width
from .jit import jit
from .namespace import cuda, float32, int64
from .reduction_tree import THREADS, TREES
from .warp import LOWEST, block_max, block_sum, larger, warp_max, warp_sum

BLOCKS = 1024  # first-stage blocks at most: what an H100 holds at once; fixed, so the order is too
UNROLL = 4  # 16-byte loads that a thread has on their way: 16 KB per block
SCALAR_UNROLL = 16  # the same where rows are not aligned and a load is one element
WARP_ROW = 2048  # elements up to which one warp takes a row alone, eight rows to a block


def reduce_sum_reference(x: torch.Tensor) -> torch.Tensor:
    return x.sum(dtype=torch.promote_types(x.dtype, torch.float32))


def reduce_max_reference(x: torch.Tensor) -> torch.Tensor:
    return x.max()


def row_sum_reference(x: torch.Tensor) -> torch.Tensor:
    return x.sum(-1, dtype=torch.promote_types(x.dtype, torch.float32))


# ---- kernels: slow rungs in `reduction_tree`


@jit(device=True)
def plus(a, b):
    return a + b


OPERATIONS = {  # name: (of two numbers, of a warp, of a block, neutral element)
    "sum": (plus, warp_sum, block_sum, 0.0),
    "max": (larger, warp_max, block_max, LOWEST),
}


@functools.cache
def thread_reduce(width: int, operation: str):
    """Device function: a thread's share, the accesses place, place + step, … below count.

    width: elements in one access, 16 bytes of them or 1. base: the element where access 0 starts.
    """
    join, _, _, neutral = OPERATIONS[operation]
    AHEAD = UNROLL if width > 1 else SCALAR_UNROLL
    HELD = AHEAD * width  # elements of one round

    @jit(device=True)
    def share(x, base, place, step, count):
        values = cuda.local.array(HELD, float32)
        total = float32(neutral)
        i = place
        while i < count:
            for k in range(AHEAD):
                if i + k * step < count:
                    if width > 1:
                        ptx.load_vector_nc(x, base + (i + k * step) * width, values, k * width)
                    else:
                        values[k] = ptx.load(x, base + i + k * step)
                else:
                    for j in range(width):
                        values[k * width + j] = float32(neutral)
            part = values[0]
            for j in range(1, HELD):
                part = join(part, values[j])
            total = join(total, part)
            i += AHEAD * step
        return total

    return share


@functools.cache
def reduce_kernel(dtype: str, width: int, operation: str):
    """out[block] of the whole of x, over which the grid strides; `count` = n // width."""
    join, _, of_block, _ = OPERATIONS[operation]
    share = thread_reduce(width, operation)

    @jit(pointers=True, launch_bounds=(THREADS, 1))
    def reduce_vectors(x: dtype, out: "float32", n: "int64", count: "int64"):
        scratch = cuda.shared.array(32, float32)
        place = int64(cuda.blockIdx.x) * THREADS + cuda.threadIdx.x
        total = share(x, int64(0), place, int64(cuda.gridDim.x) * THREADS, count)
        rest = count * width + place  # the last n % width elements
        if rest < n:
            total = join(total, ptx.load(x, rest))
        total = of_block(total, scratch, 0)
        if cuda.threadIdx.x == 0:
            out[cuda.blockIdx.x] = total

    return reduce_vectors


@functools.cache
def row_sum_kernel(dtype: str, width: int, alone: bool):
    """out[row] = Σ x[row, :]; alone: a warp takes a row by itself, else a block does."""
    share = thread_reduce(width, "sum")

    @jit(pointers=True, launch_bounds=(THREADS, 1))
    def row_sums(x: dtype, out: "float32", rows: "int64", columns: "int64"):
        if alone:
            row = int64(cuda.blockIdx.x) * (THREADS // 32) + (cuda.threadIdx.x >> 5)
            place = int64(cuda.threadIdx.x & 31)
            if row >= rows:  # a whole warp leaves
                return
            total = warp_sum(share(x, row * columns, place, int64(32), columns // width))
        else:
            scratch = cuda.shared.array(32, float32)
            row = int64(cuda.blockIdx.x)
            place = int64(cuda.threadIdx.x)
            total = share(x, row * columns, place, int64(THREADS), columns // width)
            total = block_sum(total, scratch, 0)
        if place == 0:
            out[row] = total

    return row_sums


# ---- launchers: contiguous x → float32


def _blocks(n: int, elements: int) -> int:
    return -(-n // elements)


def _width(x: torch.Tensor, n: int = 0) -> int:
    """Elements in one access: 16 bytes of them where x, and every row of n, starts aligned."""
    width = vector_width(dtype_name(x))
    return width if x.data_ptr() % 16 == 0 and n % width == 0 else 1


def reduce_by_vector(x: torch.Tensor, operation: str = "sum") -> torch.Tensor:
    """All of x (any shape, at least one element) → 0-dimensional float32."""
    n, width = x.numel(), _width(x)
    count = n // width
    blocks = max(1, min(BLOCKS, _blocks(count, THREADS * UNROLL)))
    partial = torch.empty(blocks, dtype=torch.float32, device=x.device)
    reduce_kernel(dtype_name(x), width, operation)[blocks, THREADS](x, partial, n, count)
    return partial[0] if blocks == 1 else reduce_by_vector(partial, operation)


def _sum_by_tree(name: str, x: torch.Tensor) -> torch.Tensor:
    """One of the slow rungs; partial sums are added by the same rung until one is left."""
    x = x.view(-1)
    while True:
        blocks = _blocks(x.numel(), THREADS)
        out = torch.zeros(1 if name == "atomic" else blocks, device=x.device)
        TREES[name][blocks, THREADS](x, out)
        if out.numel() == 1:
            return out[0]
        x = out


RUNGS = {name: functools.partial(_sum_by_tree, name) for name in TREES}
RUNGS["vectorised"] = reduce_by_vector


def row_sum_forward(x: torch.Tensor) -> torch.Tensor:
    """x (rows, columns) → float32 (rows,)."""
    rows, columns = x.shape
    out = torch.empty(rows, dtype=torch.float32, device=x.device)
    if rows:
        alone = columns <= WARP_ROW
        blocks = _blocks(rows, THREADS // 32) if alone else rows
        kernel = row_sum_kernel(dtype_name(x), _width(x, columns), alone)
        kernel[blocks, THREADS](x, out, rows, columns)
    return out


class ReduceSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.shape, ctx.dtype = x.shape, x.dtype
        return reduce_by_vector(x)

    @staticmethod
    def backward(ctx, dy):
        return dy.to(ctx.dtype).expand(ctx.shape)


class RowSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.shape, ctx.dtype = x.shape, x.dtype
        return row_sum_forward(x.view(-1, x.shape[-1])).view(x.shape[:-1])

    @staticmethod
    def backward(ctx, dy):
        return dy.to(ctx.dtype).unsqueeze(-1).expand(ctx.shape)


# ---- public operations


def _checked(x: torch.Tensor, name: str) -> torch.Tensor:
    if dtype_name(x) not in FLOATS:
        raise TypeError(f"x: its dtype is {dtype_name(x)}, {name} takes {', '.join(FLOATS)}.")
    return x.contiguous()


def reduce_sum(x: torch.Tensor) -> torch.Tensor:
    """The sum of all elements of x, as a 0-dimensional float32 tensor; differentiable.

    x: any shape; float32, float16 or bfloat16; copied first where it is not contiguous. Added in
    float32 in a fixed order. 0 where x has no element.
    """
    x = _checked(x, "reduce_sum")
    return ReduceSum.apply(x) if x.numel() else x.float().sum()


def reduce_max(x: torch.Tensor) -> torch.Tensor:
    """The largest element of x, 0-dimensional and of x's dtype; NaN where x holds one.

    x: any shape with at least one element; float32, float16 or bfloat16. Not differentiable.
    """
    x = _checked(x, "reduce_max")
    if not x.numel():
        raise ValueError("x: it has no element, reduce_max takes at least one.")
    return reduce_by_vector(x.detach(), "max").to(x.dtype)


def row_sum(x: torch.Tensor) -> torch.Tensor:
    """Sums over the last axis: x (…, n) → float32 (…); differentiable.

    float32, float16 or bfloat16; copied first where it is not contiguous. Added in float32 in a
    fixed order. 0 where n is 0.
    """
    x = _checked(x, "row_sum")
    return RowSum.apply(x) if x.numel() else x.float().sum(-1)
