"""Attention backward on `mma.sync`, the queries' half: δ and dQ.

    δ = rowsum(dO ∘ O)     P = 2^(c Q Kᵀ − lse)     dS = P ∘ (dO Vᵀ − δ)     dQ = scale · dS K

The kernel walks as the forward one does, a block of queries over the tiles of keys they see, three
products a tile instead of two: no number of dQ is touched by two blocks, so nothing is added by
atomics and the bits are the same on every run. P needs no peak: the forward pass left
lse = log2 Σ 2^(c s), and a masked score's P is set to 0.

δ is made here, before the walk, four lanes to a row, and written for the keys' half
(`attention_warp_keys`), which runs after this one.

FLOPs: 6 Tq Tk D a head (half of it where causal).
"""

import functools
from typing import NamedTuple

from . import ptx
from .attention_warp_products import lanes_of, output_of, products_of
from .attention_warp_scores import Sight, keys_of, mask_of, quad_sum
from .attention_warp_tiles import (
    ALIGNED,
    Format,
    copy_of,
    head_start,
    pack_of,
    shared_start,
    tile_copy,
    unpack_of,
)
from .jit import jit
from .namespace import cuda, float32, uint32, uint64


class QueriesPlan(NamedTuple):
    """Sizes of the kernel: compile-time constants."""

    form: Format
    strips: int  # of 16 queries to a warp
    warps: int
    N: int  # keys in a tile
    hold: bool  # Q and dO in registers
    blocks: int  # that a multiprocessor holds: bounds the registers
    unroll: bool = True  # products without loops: faster, and a few registers more

    @property
    def M(self) -> int:
        """Queries of a block."""
        return 16 * self.strips * self.warps

    @property
    def threads(self) -> int:
        return 32 * self.warps

    @property
    def shared(self) -> int:
        """Bytes: Q, dO, and two tiles of each K and V."""
        return ALIGNED + self.form.row * (2 * self.M + 4 * self.N)


@functools.cache
def queries_kernel(plan: QueriesPlan, sight: Sight):
    form, strips, _, N, hold, blocks, unroll = plan
    D, ROW, M, THREADS = form.D, form.row, plan.M, plan.threads
    TILE, SCORES, OUTPUTS, ROWS = N * ROW, strips * N // 2, strips * D // 2, 2 * strips
    HELD, PARCEL = strips * D // 4 if hold else 1, SCORES // 2
    dtype, causal = form.dtype, sight.causal
    _, commit, wait = copy_of(form.turing)
    copy_queries, copy_keys = tile_copy(form, M, THREADS), tile_copy(form, N, THREADS)
    strip, columns, _ = lanes_of(form)
    keep, rows, held, add = products_of(form, strips, N, 1, unroll)
    low, high = keys_of(sight)
    mask = mask_of(keys_of(sight), strips, N, 0.0)
    weigh = weights_of(strips, N)
    fold, spread = folding_of(form.dtype, strips, N)
    inner, write = inner_of(form), output_of(form, strips)

    @jit(pointers=True, launch_bounds=(THREADS, blocks))
    def attention_warp_queries(
        q: dtype, k: dtype, v: dtype, o: dtype, do: dtype, lse: "float32", delta: "float32",
        dq: dtype,
        q_batch: "uint64", q_head: "uint64", q_row: "uint32",
        k_batch: "uint64", k_head: "uint64", k_row: "uint32",
        v_batch: "uint64", v_head: "uint64", v_row: "uint32",
        o_batch: "uint64", o_head: "uint64", o_row: "uint32",
        g_batch: "uint64", g_head: "uint64", g_row: "uint32",
        d_batch: "uint64", d_head: "uint64", d_row: "uint32",
        H: "uint32", group: "uint32", Tq: "uint32", Tk: "uint32", width: "uint32",
        window: "uint32", scale2: "float32", scale: "float32",
    ):  # fmt: skip
        """Strides and width (of a row of q) in bytes, g of do, d of dq; scale2 = scale log2 e."""
        base = shared_start()
        grads = uint32(base + uint32(M * ROW))
        keys, values = uint32(grads + uint32(M * ROW)), uint32(grads + uint32(M * ROW + 2 * TILE))
        head, tile = uint32(cuda.blockIdx.x), uint32(cuda.blockIdx.y)
        if causal:
            tile = uint32(uint32(cuda.gridDim.y) - uint32(1) - tile)
        batch = uint32(head // H)
        h = uint32(head - batch * H)
        h_kv = uint32(h // group)
        q_at = head_start(q, batch, q_batch, h, q_head)
        k_at = head_start(k, batch, k_batch, h_kv, k_head)
        v_at = head_start(v, batch, v_batch, h_kv, v_head)
        o_at = head_start(o, batch, o_batch, h, o_head)
        g_at = head_start(do, batch, g_batch, h, g_head)
        d_at = head_start(dq, batch, d_batch, h, d_head)

        first = uint32(tile * uint32(M))
        before = uint32(Tk - Tq)  # positions before the first query
        last = uint32(min(uint32(first + uint32(M)), Tq) - uint32(1))
        key = uint32(low(uint32(first + before), window) // uint32(N)) * uint32(N)
        end = high(uint32(last + before), Tk, window)
        copy_queries(base, q_at, q_row, first, Tq, width)
        copy_queries(grads, g_at, g_row, first, Tq, width)
        copy_keys(keys, k_at, k_row, key, Tk, width)
        copy_keys(values, v_at, v_row, key, Tk, width)
        commit()

        s = cuda.local.array(SCORES, float32)
        parcel = cuda.local.array(PARCEL, uint32)
        out = cuda.local.array(OUTPUTS, float32)
        level = cuda.local.array(ROWS, float32)
        inners = cuda.local.array(ROWS, float32)
        words = cuda.local.array(HELD, uint32)
        g_words = cuda.local.array(HELD, uint32)
        for i in range(OUTPUTS):
            out[i] = float32(0)
        lane = uint32(cuda.threadIdx.x) & uint32(31)
        mine = uint32((uint32(cuda.threadIdx.x) >> uint32(5)) * uint32(16 * strips))
        start = uint64(uint64(head) * uint64(Tq))
        for i in range(ROWS):
            row = uint32(first + mine + uint32(8 * i) + (lane >> uint32(2)))
            level[i] = float32(0)
            inners[i] = inner(o_at, o_row, g_at, g_row, row, Tq, width)
            if row < Tq:
                level[i] = lse[start + uint64(row)]
                if lane & uint32(3) == uint32(0):
                    delta[start + uint64(row)] = inners[i]
        q_lane, g_lane = uint32(base + strip(mine)), uint32(grads + strip(mine))
        b_lane, t_lane = columns(), strip(uint32(0))
        p = uint32(first + before + mine)
        if hold:
            wait()
            cuda.syncthreads()
            keep(words, q_lane)
            keep(g_words, g_lane)
        buffer = uint32(0)
        while key < end:
            wait()
            cuda.syncthreads()
            after = uint32(key + uint32(N))
            other = uint32(uint32(TILE) - buffer)
            if after < end:
                copy_keys(uint32(keys + other), k_at, k_row, after, Tk, width)
                copy_keys(uint32(values + other), v_at, v_row, after, Tk, width)
            commit()
            if hold:
                held(s, words, uint32(keys + buffer + b_lane))
            else:
                rows(s, q_lane, uint32(keys + buffer + b_lane))
            weigh(s, level, scale2)
            mask(s, p, key, Tk, window)
            fold(s, parcel)
            if hold:
                held(s, g_words, uint32(values + buffer + b_lane))
            else:
                rows(s, g_lane, uint32(values + buffer + b_lane))
            spread(s, parcel, inners)
            add(out, s, uint32(keys + buffer + t_lane), 0)
            key, buffer = after, other

        wait()
        cuda.syncthreads()
        for i in range(ROWS):
            level[i] = scale
        write(base, out, level, d_at, d_row, mine, first, Tq, width)

    return attention_warp_queries


@functools.cache
def weights_of(strips: int, N: int):
    """A function (s, level, c): s ← 2^(c s − level), level by row."""
    TILES = N // 8

    @jit(device=True)
    def weigh(s, level, c):
        for row in range(2 * strips):
            at = 4 * (row // 2) * TILES + 2 * (row % 2)
            for j in range(TILES):
                for r in range(2):
                    s[at + 4 * j + r] = ptx.ex2(s[at + 4 * j + r] * c - level[row])

    return weigh


@functools.cache
def folding_of(dtype: str, strips: int, N: int):
    """(fold, spread): P into half as many registers; dS = P ∘ (s − δ) with P from there.

    So that the tile's S and dP need not be in registers at the same time.
    """
    pack, unpack, TILES = pack_of(dtype), unpack_of(dtype), N // 8

    @jit(device=True)
    def fold(s, parcel):
        for i in range(2 * strips * TILES):
            parcel[i] = pack(s[2 * i], s[2 * i + 1])

    @jit(device=True)
    def spread(s, parcel, inners):
        for m in range(strips):
            for j in range(TILES):
                for r in range(2):
                    i = 2 * (m * TILES + j) + r
                    p0, p1 = unpack(parcel[i])
                    s[2 * i] = p0 * (s[2 * i] - inners[2 * m + r])
                    s[2 * i + 1] = p1 * (s[2 * i + 1] - inners[2 * m + r])

    return fold, spread


@functools.cache
def inner_of(form: Format):
    """A function of a row: Σ dO ∘ O, in each of the four lanes that call it with that row.

    Lane t takes pieces t, t + 4, … of both rows; rows from `end` on give 0.
    """
    unpack, PARTS, full = unpack_of(form.dtype), form.D // 32, form.full

    @jit(device=True)
    def products(a, b):
        a0, a1 = unpack(a)
        b0, b1 = unpack(b)
        return a0 * b0 + a1 * b1

    @jit(device=True)
    def inner(x, x_stride, y, y_stride, row, end, width):
        total = float32(0)
        column = (uint32(cuda.threadIdx.x) & uint32(3)) * uint32(16)
        x = uint64(x + uint64(row) * uint64(x_stride) + uint64(column))
        y = uint64(y + uint64(row) * uint64(y_stride) + uint64(column))
        for i in range(PARTS):
            inside = row < end
            if not full:
                inside = inside and uint32(column + uint32(64 * i)) < width
            if inside:
                a0, a1, a2, a3 = ptx.load_128_at(uint64(x + uint64(64 * i)))
                b0, b1, b2, b3 = ptx.load_128_at(uint64(y + uint64(64 * i)))
                total += (products(a0, b0) + products(a1, b1)) + (
                    products(a2, b2) + products(a3, b3)
                )
        return quad_sum(total)

    return inner
