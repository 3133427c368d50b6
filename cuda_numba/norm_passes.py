"""LayerNorm and RMSNorm by rungs that read the row again for every step: where the ladder starts.

    naive         one thread per row, three loops over it. Neighbouring threads read addresses a row
                  apart: every lane of a request is a sector of its own, 32 bytes for 2 that count
    block         one block per row, neighbouring threads read neighbouring elements; two sums over
                  the block by shuffles
    vectorised    the same with 16-byte accesses. Also what rows get that no team of warps can hold

Forward: mean, then Σ (x − mean)², then the result: 3 reads (2 for RMSNorm), 1 write. Backward:
Σ g and Σ g·x̂, then dx: 4 reads, 1 write, and dw and db from two more (`norm_weights`). Rows of up
to about 190 KB are still in the 50 MB L2 of an H100 when they are read again.
"""

import functools

from . import ptx
from .jit import jit
from .namespace import cuda, float32, int32, int64, uint32
from .norm_access import Variant, access
from .warp import block_sum

THREADS = 256  # of a block


# ---- one thread per row


@functools.cache
def naive_forward_kernel(dtype: str, wdtype: str, variant: Variant):
    CENTRED, BIAS, RESIDUAL = variant

    @jit(pointers=True)
    def norm_forward_naive(
        x: dtype, residual: dtype, w: wdtype, b: wdtype, y: dtype, total: dtype,
        mean: "float32", rstd: "float32", rows: "int32", n: "int32", share: "float32",
        eps: "float32",
    ):  # fmt: skip
        row = int64(cuda.grid(1))
        if row >= rows:
            return
        source = total if RESIDUAL else x
        middle = float32(0)
        for j in range(n):
            if RESIDUAL:
                ptx.store(
                    total, row * n + j, ptx.load(x, row * n + j) + ptx.load(residual, row * n + j)
                )
            if CENTRED:
                middle += ptx.load(source, row * n + j)
        middle *= share
        squares = float32(0)
        for j in range(n):
            apart = ptx.load(source, row * n + j) - middle
            squares += apart * apart
        scale = ptx.rsqrt(squares * share + eps)
        for j in range(n):
            value = (ptx.load(source, row * n + j) - middle) * scale * ptx.load(w, j)
            if BIAS:
                value += ptx.load(b, j)
            ptx.store(y, row * n + j, value)
        if CENTRED:
            mean[row] = middle
        rstd[row] = scale

    return norm_forward_naive


@functools.cache
def naive_backward_kernel(dtype: str, wdtype: str, variant: Variant):
    CENTRED, _, RESIDUAL = variant

    @jit(pointers=True)
    def norm_backward_naive(
        dy: dtype, x: dtype, w: wdtype, mean: "float32", rstd: "float32", dtotal: dtype,
        dx: dtype, rows: "int32", n: "int32", share: "float32",
    ):  # fmt: skip
        row = int64(cuda.grid(1))
        if row >= rows:
            return
        middle = mean[row] if CENTRED else float32(0)
        scale = rstd[row]
        sum_g = float32(0)
        sum_gx = float32(0)
        for j in range(n):
            g = ptx.load(dy, row * n + j) * ptx.load(w, j)
            if CENTRED:
                sum_g += g
            sum_gx += g * ((ptx.load(x, row * n + j) - middle) * scale)
        sum_g *= share
        sum_gx *= share
        for j in range(n):
            g = ptx.load(dy, row * n + j) * ptx.load(w, j)
            normal = (ptx.load(x, row * n + j) - middle) * scale
            value = scale * (g - sum_g - normal * sum_gx)
            if RESIDUAL:
                value += ptx.load(dtotal, row * n + j)
            ptx.store(dx, row * n + j, value)

    return norm_backward_naive


# ---- one block per row


@functools.cache
def block_forward_kernel(dtype: str, wdtype: str, width: int, variant: Variant):
    """width: elements in one access."""
    CENTRED, BIAS, RESIDUAL = variant
    io, weight_io = access(dtype, width), access(wdtype, width)
    WORDS, WEIGHT_WORDS = io.words, weight_io.words
    # What this thread has just written it may not read through the read-only path.
    load, load_weight = io.load, weight_io.load
    unpack, pack, store, unpack_weight = io.unpack, io.pack, io.store, weight_io.unpack
    FIRST, STEP = width, THREADS * width

    @jit(pointers=True, launch_bounds=(THREADS, 1))
    def norm_forward_block(
        x: dtype, residual: dtype, w: wdtype, b: wdtype, y: dtype, total: dtype,
        mean: "float32", rstd: "float32", rows: "int32", n: "int32", share: "float32",
        eps: "float32",
    ):  # fmt: skip
        scratch = cuda.shared.array(64, float32)
        words = cuda.local.array(WORDS, uint32)
        weight = cuda.local.array(WEIGHT_WORDS, uint32)
        v = cuda.local.array(width, float32)
        u = cuda.local.array(width, float32)
        start = int64(cuda.blockIdx.x) * n
        first = uint32(cuda.threadIdx.x * FIRST)
        limit = uint32(n)
        source = total if RESIDUAL else x
        middle = float32(0)
        if CENTRED or RESIDUAL:
            i = first
            while i < limit:
                load(x, start + i, words, 0)
                unpack(words, 0, v)
                if RESIDUAL:
                    load(residual, start + i, words, 0)
                    unpack(words, 0, u)
                    for j in range(width):
                        v[j] += u[j]
                    pack(v, words, 0)
                    store(total, start + i, words, 0)
                    unpack(words, 0, v)  # as it is stored
                for j in range(width):
                    middle += v[j]
                i = uint32(i + STEP)
        if CENTRED:
            middle = block_sum(middle, scratch, 0) * share
        else:
            middle = float32(0)
        squares = float32(0)
        i = first
        while i < limit:
            load(source, start + i, words, 0)
            unpack(words, 0, v)
            for j in range(width):
                squares += (v[j] - middle) * (v[j] - middle)
            i = uint32(i + STEP)
        scale = ptx.rsqrt(block_sum(squares, scratch, 32) * share + eps)
        i = first
        while i < limit:
            load(source, start + i, words, 0)
            unpack(words, 0, v)
            load_weight(w, int64(i), weight, 0)
            unpack_weight(weight, 0, u)
            for j in range(width):
                v[j] = (v[j] - middle) * scale * u[j]
            if BIAS:
                load_weight(b, int64(i), weight, 0)
                unpack_weight(weight, 0, u)
                for j in range(width):
                    v[j] += u[j]
            pack(v, words, 0)
            store(y, start + i, words, 0)
            i = uint32(i + STEP)
        if first == 0:
            if CENTRED:
                mean[cuda.blockIdx.x] = middle
            rstd[cuda.blockIdx.x] = scale

    return norm_forward_block


@functools.cache
def block_backward_kernel(dtype: str, wdtype: str, width: int, variant: Variant):
    """width: elements in one access."""
    CENTRED, _, RESIDUAL = variant
    io, weight_io = access(dtype, width), access(wdtype, width)
    WORDS, WEIGHT_WORDS = io.words, weight_io.words
    load, load_weight = io.load, weight_io.load
    unpack, pack, store, unpack_weight = io.unpack, io.pack, io.store, weight_io.unpack
    FIRST, STEP = width, THREADS * width

    @jit(pointers=True, launch_bounds=(THREADS, 1))
    def norm_backward_block(
        dy: dtype, x: dtype, w: wdtype, mean: "float32", rstd: "float32", dtotal: dtype,
        dx: dtype, rows: "int32", n: "int32", share: "float32",
    ):  # fmt: skip
        scratch = cuda.shared.array(64, float32)
        words = cuda.local.array(WORDS, uint32)
        weight = cuda.local.array(WEIGHT_WORDS, uint32)
        a = cuda.local.array(width, float32)
        g = cuda.local.array(width, float32)
        u = cuda.local.array(width, float32)
        start = int64(cuda.blockIdx.x) * n
        first = uint32(cuda.threadIdx.x * FIRST)
        limit = uint32(n)
        middle = mean[cuda.blockIdx.x] if CENTRED else float32(0)
        scale = rstd[cuda.blockIdx.x]
        sum_g = float32(0)
        sum_gx = float32(0)
        i = first
        while i < limit:
            load(x, start + i, words, 0)
            unpack(words, 0, a)
            load(dy, start + i, words, 0)
            unpack(words, 0, g)
            load_weight(w, int64(i), weight, 0)
            unpack_weight(weight, 0, u)
            for j in range(width):
                if CENTRED:
                    sum_g += g[j] * u[j]
                sum_gx += g[j] * u[j] * ((a[j] - middle) * scale)
            i = uint32(i + STEP)
        if CENTRED:
            sum_g = block_sum(sum_g, scratch, 0) * share
        sum_gx = block_sum(sum_gx, scratch, 32) * share
        i = first
        while i < limit:
            load(x, start + i, words, 0)
            unpack(words, 0, a)
            load(dy, start + i, words, 0)
            unpack(words, 0, g)
            load_weight(w, int64(i), weight, 0)
            unpack_weight(weight, 0, u)
            for j in range(width):
                g[j] = scale * (g[j] * u[j] - sum_g - (a[j] - middle) * scale * sum_gx)
            if RESIDUAL:
                load(dtotal, start + i, words, 0)
                unpack(words, 0, u)
                for j in range(width):
                    g[j] += u[j]
            pack(g, words, 0)
            store(dx, start + i, words, 0)
            i = uint32(i + STEP)

    return norm_backward_block
