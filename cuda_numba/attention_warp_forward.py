"""Attention forward on `mma.sync`: FlashAttention-2 (Dao 2023, algorithm 1).

A block owns `warps` strips of queries of one head and walks over the tiles of keys they see:

    queries of a block         keys  tile 0   tile 1   tile 2
    warp 0 | 32 rows |               all      edge     –                  a causal block of 128
    warp 1 | 32 rows |               all      edge     –                  queries at positions 64 …
    warp 2 | 32 rows |               all      all      edge
    warp 3 | 32 rows |               all      all      edge

    S = Q Kᵀ   mask   P = 2^(c S − c m)   O += P V            all in the warp's registers

While a tile is multiplied the next K and V are on their way (`cp.async`); one barrier a tile says
both that they have come and that the place of the tile before is free. The longest walks start
first. Each number of K and V that a warp fetches from shared memory serves 32 rows: with 16, the
fetches would take as long as the products.

FLOPs: 4 Tq Tk D a head (half of it where causal). Bytes: Q, K, V and O once, K and V besides once
a block from L2, 4 bytes of lse a query.
"""

import functools
from typing import NamedTuple

from . import ptx
from .attention_warp_products import lanes_of, output_of, products_of
from .attention_warp_scores import (
    Sight,
    keys_of,
    mask_of,
    quad_sum,
    shift_of,
    softmax_of,
)
from .attention_warp_tiles import ALIGNED, Format, copy_of, head_start, shared_start, tile_copy
from .jit import jit
from .namespace import cuda, float32, uint32, uint64
from .warp import LOWEST


class ForwardPlan(NamedTuple):
    """Sizes of the kernel: compile-time constants."""

    form: Format
    strips: int  # of 16 queries to a warp
    warps: int
    N: int  # keys in a tile
    hold: bool  # Q in registers; else it is fetched from shared memory for every tile
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
        """Bytes: Q, and two tiles of each K and V."""
        return ALIGNED + self.form.row * (self.M + 4 * self.N)


@functools.cache
def forward_kernel(plan: ForwardPlan, sight: Sight):
    form, strips, _, N, hold, blocks, unroll = plan
    D, ROW, M, THREADS = form.D, form.row, plan.M, plan.threads
    TILE, SCORES, OUTPUTS, ROWS = N * ROW, strips * N // 2, strips * D // 2, 2 * strips
    HELD = strips * D // 4 if hold else 1
    dtype, causal = form.dtype, sight.causal
    _, commit, wait = copy_of(form.turing)
    copy_queries, copy_keys = tile_copy(form, M, THREADS), tile_copy(form, N, THREADS)
    strip, columns, _ = lanes_of(form)
    keep, rows, held, add = products_of(form, strips, N, 1, unroll)
    low, high = keys_of(sight)
    mask, softmax = mask_of(keys_of(sight), strips, N, LOWEST), softmax_of(strips, N, D)
    write = output_of(form, strips)

    @jit(pointers=True, launch_bounds=(THREADS, blocks))
    def attention_warp_forward(
        q: dtype, k: dtype, v: dtype, o: dtype, lse: "float32",
        q_batch: "uint64", q_head: "uint64", q_row: "uint32",
        k_batch: "uint64", k_head: "uint64", k_row: "uint32",
        v_batch: "uint64", v_head: "uint64", v_row: "uint32",
        o_batch: "uint64", o_head: "uint64", o_row: "uint32",
        H: "uint32", group: "uint32", Tq: "uint32", Tk: "uint32", width: "uint32",
        window: "uint32", scale: "float32",
    ):  # fmt: skip
        """Strides and width (of a row of q) in bytes; scale times log2 e."""
        base = shared_start()
        keys, values = uint32(base + uint32(M * ROW)), uint32(base + uint32(M * ROW + 2 * TILE))
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

        first = uint32(tile * uint32(M))
        before = uint32(Tk - Tq)  # positions before the first query
        last = uint32(min(uint32(first + uint32(M)), Tq) - uint32(1))
        key = uint32(low(uint32(first + before), window) // uint32(N)) * uint32(N)
        end = high(uint32(last + before), Tk, window)
        copy_queries(base, q_at, q_row, first, Tq, width)
        copy_keys(keys, k_at, k_row, key, Tk, width)
        copy_keys(values, v_at, v_row, key, Tk, width)
        commit()

        s = cuda.local.array(SCORES, float32)
        out = cuda.local.array(OUTPUTS, float32)
        peak = cuda.local.array(ROWS, float32)
        total = cuda.local.array(ROWS, float32)
        words = cuda.local.array(HELD, uint32)
        for i in range(OUTPUTS):
            out[i] = float32(0)
        for i in range(ROWS):
            peak[i] = float32(LOWEST)
            total[i] = float32(0)
        mine = uint32((uint32(cuda.threadIdx.x) >> uint32(5)) * uint32(16 * strips))
        q_lane = uint32(base + strip(mine))
        k_lane, v_lane = columns(), strip(uint32(0))
        p = uint32(first + before + mine)
        if hold:
            wait()
            cuda.syncthreads()
            keep(words, q_lane)
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
                held(s, words, uint32(keys + buffer + k_lane))
            else:
                rows(s, q_lane, uint32(keys + buffer + k_lane))
            mask(s, p, key, Tk, window)
            softmax(s, out, peak, total, scale)
            add(out, s, uint32(values + buffer + v_lane), 0)
            key, buffer = after, other

        wait()
        cuda.syncthreads()
        start = uint64(uint64(head) * uint64(Tq))
        for i in range(ROWS):
            total[i] = quad_sum(total[i])
            lane = uint32(cuda.threadIdx.x) & uint32(31)
            row = uint32(first + mine + uint32(8 * i) + (lane >> uint32(2)))
            if lane & uint32(3) == uint32(0) and row < Tq:
                if total[i] != float32(0):
                    lse[start + uint64(row)] = shift_of(peak[i]) * scale + ptx.lg2(total[i])
                else:
                    lse[start + uint64(row)] = float32(LOWEST)
            total[i] = ptx.rcp(total[i]) if total[i] != float32(0) else float32(0)
        write(base, out, total, o_at, o_row, mine, first, Tq, width)

    return attention_warp_forward
