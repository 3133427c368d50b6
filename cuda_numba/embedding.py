"""Embedding lookup: rows of a matrix by number, forward. The gradient is in `embedding_gradient`.

    y[n, :] = w[ids[n], :]        w (V, C), N = ids.numel()

2 · N · C · itemsize bytes and 8 · N of ids, no arithmetic: bf16, N = 16,384 tokens of C = 768 read
and write 50 MB, 17 µs at the 3.0 TB/s of a copy on an H100; frequent rows come from the L2 cache.

The rows of y lie end to end, so threads are dealt out over 16-byte pieces of y, whatever C is:

    y[0, :]                          y[1, :]
    |t0 |t1 |t2 | … |t95            |t96|t97| …                bf16, C = 768: 96 pieces in a row

    element       a thread moves one element
    vector        a thread moves 16 bytes
    vectorised    ITEMS times 16 bytes: all ids are asked for, then all pieces, then all are written
    rows          a warp takes MANY rows: one load of their ids, no division, and 512 bytes end to
                  end in every access; for C of which 32 lanes share a row evenly

A number outside 0 … V − 1: kernels cannot raise, and asking the GPU for the largest id would make
the CPU wait for it. So on a GPU such a token's row is NaN, and its gradient goes nowhere; on CPU
tensors, where looking is free, `embedding` raises IndexError.
"""

import functools

import torch
from torch.autograd.function import once_differentiable

from . import ptx
from .dtypes import FLOATS, dtype_name, vector_width
from .embedding_gradient import embedding_backward
from .jit import jit
from .namespace import cuda, float32, int32, int64, uint32
from .rounded import copy_for

THREADS = 256
LANES = 0xFFFFFFFF
ITEMS = 4  # 16-byte loads of a thread on their way; each waits for an id first, so two round trips
ROW_THREADS = 128
MANY = 2  # rows of y of a warp
PARTS = 4  # accesses of a lane to one row, at most; longer rows are shared by several warps
NAN = float("nan")
NAN_WORDS = {"float32": 0x7FFFFFFF, "float16": 0x7FFF7FFF, "bfloat16": 0x7FFF7FFF}
PER_LAUNCH = 2**31 - 1  # accesses: their number is 32 bits wide
IDS = ("int64", "int32")


def embedding_reference(ids: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return w[ids]


# ---- kernels


@functools.cache
def embedding_kernel(dtype: str, row: int, width: int, items: int):
    """y = w[ids]; row: accesses in a row; total = N · row; count: rows of w."""
    WORDS = items * 4
    NAN_WORD = NAN_WORDS[dtype]

    @jit(pointers=True, launch_bounds=(THREADS, 1))
    def embedding_forward(ids: IDS, w: dtype, y: dtype, total: "uint32", count: "int64"):
        words = cuda.local.array(WORDS, uint32)
        chosen = cuda.local.array(items, int64)
        first = uint32(uint32(cuda.blockIdx.x) * uint32(items * THREADS))
        first = uint32(first + uint32(cuda.threadIdx.x))
        for k in range(items):
            i = uint32(first + uint32(k * THREADS))
            chosen[k] = int64(ids[i // uint32(row)]) if i < total else int64(-1)
        for k in range(items):
            i = uint32(first + uint32(k * THREADS))
            inside = 0 <= chosen[k] and chosen[k] < count
            source = (chosen[k] * row + int64(i % uint32(row))) * width
            if width == 1:
                if i < total:
                    ptx.store(y, i, ptx.load(w, source) if inside else float32(NAN))
            elif inside:
                a, b, c, d = ptx.load_128_nc(w, source)
                words[4 * k] = a
                words[4 * k + 1] = b
                words[4 * k + 2] = c
                words[4 * k + 3] = d
            else:
                for j in range(4):
                    words[4 * k + j] = uint32(NAN_WORD)
        if width > 1:
            for k in range(items):
                i = uint32(first + uint32(k * THREADS))
                if i < total:
                    m = 4 * k
                    ptx.store_128_cs(
                        y, int64(i) * width, words[m], words[m + 1], words[m + 2], words[m + 3]
                    )

    return embedding_forward


@functools.cache
def rows_kernel(dtype: str, row: int, parts: int):
    """y = w[ids]; row: 16-byte accesses in a row, 32 · parts for each warp that shares it;
    n = len(y), count: rows of w."""
    WARPS = ROW_THREADS // 32
    WORDS = MANY * parts * 4
    SHARING = row // (32 * parts)  # warps
    NAN_WORD = NAN_WORDS[dtype]
    width = vector_width(dtype)

    @jit(pointers=True, launch_bounds=(ROW_THREADS, 1))
    def embedding_rows(ids: IDS, w: dtype, y: dtype, n: "uint32", count: "int64"):
        words = cuda.local.array(WORDS, uint32)
        thread = uint32(cuda.threadIdx.x)
        lane = uint32(thread & uint32(31))
        warp = uint32(uint32(uint32(cuda.blockIdx.x) * uint32(WARPS)) + (thread >> uint32(5)))
        first = uint32(warp // uint32(SHARING))
        place = uint32(uint32(uint32(warp - first * uint32(SHARING)) * uint32(32 * parts)) + lane)
        first = uint32(first * uint32(MANY))
        mine = int32(-1)
        if lane < uint32(MANY) and first + lane < n:
            chosen = int64(ids[first + lane])
            mine = int32(chosen) if 0 <= chosen and chosen < count else int32(-1)
        for r in range(MANY):
            source = int32(cuda.shfl_sync(LANES, mine, r))
            for p in range(parts):
                m = (r * parts + p) * 4
                if source >= 0:
                    at = (int64(source) * row + place + p * 32) * width
                    a, b, c, d = ptx.load_128(w, at)
                    words[m] = a
                    words[m + 1] = b
                    words[m + 2] = c
                    words[m + 3] = d
                else:
                    for j in range(4):
                        words[m + j] = uint32(NAN_WORD)
        for r in range(MANY):
            if first + uint32(r) < n:
                for p in range(parts):
                    m = (r * parts + p) * 4
                    at = (int64(first + uint32(r)) * row + place + p * 32) * width
                    ptx.store_128_cs(y, at, words[m], words[m + 1], words[m + 2], words[m + 3])

    return embedding_rows


# ---- launcher: contiguous ids (any shape) and w


def embedding_forward(ids: torch.Tensor, w: torch.Tensor, rung: str = "rows") -> torch.Tensor:
    """ids (…), w (V, C) → y (…, C) of w's dtype; NaN rows where an id is not in 0 … V − 1.

    Where "rows" does not suit C it is "vectorised"; where C or an address is no whole number of 16
    bytes, the others move one element at a time.
    """
    V, C = w.shape
    y = torch.empty(*ids.shape, C, dtype=w.dtype, device=w.device)
    if not y.numel():
        return y
    dtype = dtype_name(w)
    width = vector_width(dtype)
    if rung == "element" or C % width or w.data_ptr() % 16 or y.data_ptr() % 16:
        width = 1
    row, items = C // width, 1 if rung in ("element", "vector") else ITEMS
    whole = rung == "rows" and width > 1 and row % 32 == 0
    if whole:
        parts = max(p for p in range(1, PARTS + 1) if row // 32 % p == 0)
        kernel = rows_kernel(dtype, row, parts)
    else:
        kernel = embedding_kernel(dtype, row, width, items)
    flat_ids, rows = ids.view(-1), y.view(-1, C)
    step = max(1, PER_LAUNCH // row)
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        some = flat_ids[start : start + step]
        if whole:
            warps = -(-len(part) // MANY) * (row // (32 * parts))
            kernel[-(-warps // (ROW_THREADS // 32)), ROW_THREADS](some, w, part, len(part), V)
        else:
            total = len(part) * row
            kernel[-(-total // (THREADS * items)), THREADS](some, w, part, total, V)
    return y


RUNGS = {
    name: functools.partial(embedding_forward, rung=name)
    for name in ("element", "vector", "vectorised", "rows")
}


class EmbeddingFunction(torch.autograd.Function):
    """copy: what is read in w's place, None for w itself; only w has a gradient."""

    @staticmethod
    def forward(ctx, ids, w, copy):
        ctx.save_for_backward(ids)
        ctx.rows, ctx.dtype = len(w), w.dtype
        return embedding_forward(ids, w if copy is None else copy)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        (ids,) = ctx.saved_tensors
        return None, embedding_backward(dy.contiguous(), ids, ctx.rows, ctx.dtype), None


# ---- public operation


def embedding(
    ids: torch.Tensor, w: torch.Tensor, rounded: torch.Tensor | None = None
) -> torch.Tensor:
    """Rows ids of w: ids (…) int64 or int32, w (V, C) → (…, C); differentiable in w.

    w: float32, float16 or bfloat16; copied first where it is not contiguous. The gradient (V, C) is
    dense, of w's dtype, added in float32 in a fixed order and rounded once. Ids outside 0 … V − 1
    raise IndexError on CPU tensors; on a GPU they give rows of NaN and no gradient.

    rounded: w's numbers in float16 or bfloat16, where w is float32: the rows come from it and have
    its dtype; dw stays float32 and is never rounded, and no gradient goes to `rounded`.
    """
    if dtype_name(ids) not in IDS:
        raise TypeError(f"ids: its dtype is {dtype_name(ids)}, embedding takes {', '.join(IDS)}.")
    if dtype_name(w) not in FLOATS:
        raise TypeError(f"w: its dtype is {dtype_name(w)}, embedding takes {', '.join(FLOATS)}.")
    if w.dim() != 2:
        raise ValueError(f"w: its shape is {tuple(w.shape)}, it must be (V, C).")
    copy = None
    if rounded is not None:
        if dtype_name(rounded) not in FLOATS:
            raise TypeError(
                f"rounded: its dtype is {dtype_name(rounded)}, embedding takes {', '.join(FLOATS)}."
            )
        copy = copy_for(rounded.dtype, w, rounded, "rounded w rounded").contiguous()
    if ids.device.type == "cpu" and ids.numel():
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= len(w):
            wrong = low if low < 0 else high
            raise IndexError(f"ids: got {wrong}, allowed are 0 to {len(w) - 1}.")
    w = w.contiguous() if copy is None else w
    return EmbeddingFunction.apply(ids.contiguous(), w, copy)
