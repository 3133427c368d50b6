"""Attention backward on `mma.sync`, the keys' half: dK and dV.

    Sᵀ = K Qᵀ       Pᵀ = 2^(c Sᵀ − lse)      dV = Pᵀ dO
    dPᵀ = V dOᵀ     dSᵀ = Pᵀ ∘ (dPᵀ − δ)     dK = scale · dSᵀ Q

A block owns some keys of one head and walks over the tiles of queries that see them. Transposed,
Pᵀ and dSᵀ come out of one product as the left operand of the next: nothing is transposed in shared
memory. But a warp that owns 32 keys has no registers for both dK and dV at D 128, and one that
owns 16 fetches each number of Q and dO for 16 rows only. So two warps share 32 keys:

                      first product      between                        second product
    the value warp    Sᵀ  = K Qᵀ         Pᵀ, and leaves it in shared    dV += Pᵀ dO
    the key warp      dPᵀ = V dOᵀ        takes Pᵀ, makes dSᵀ            dK += dSᵀ Q

They run the same code with the operands exchanged; Pᵀ passes as the 16-bit words that the value
warp multiplies with, each lane to its own counterpart, and a named barrier of the two warps says
that it is there.

Grouped queries: the walk goes over all query heads of the key head, one after the other, so that
the sum over the group has a fixed order. Nothing is added by atomics.

FLOPs: 8 Tq Tk D a query head (half of it where causal).
"""

import functools
from typing import NamedTuple

from .attention_warp_exchange import arrive, exchange_of, meet, numbers_copy, weights_of
from .attention_warp_products import lanes_of, output_of, products_of
from .attention_warp_scores import Sight, mask_of, queries_of
from .attention_warp_tiles import ALIGNED, Format, copy_of, head_start, shared_start, tile_copy
from .jit import jit
from .namespace import cuda, float32, uint32, uint64
from .warp import LOWEST


class KeysPlan(NamedTuple):
    """Sizes of the kernel: compile-time constants."""

    form: Format
    strips: int  # of 16 keys to a pair of warps
    pairs: int
    M: int  # queries in a tile
    hold: bool  # K, or V, in registers
    blocks: int  # that a multiprocessor holds: bounds the registers
    parts: int  # 1 or 2, in which a tile's P passes from warp to warp
    unroll: bool = True  # products without loops: faster, and a few registers more

    @property
    def N(self) -> int:
        """Keys of a block."""
        return 16 * self.strips * self.pairs

    @property
    def threads(self) -> int:
        return 64 * self.pairs

    @property
    def shared(self) -> int:
        """Bytes: K, V, two tiles of each Q and dO, Pᵀ, two tiles of lse and δ."""
        return ALIGNED + self.form.row * (2 * self.N + 4 * self.M) + self.M * (2 * self.N + 16)


@functools.cache
def keys_kernel(plan: KeysPlan, sight: Sight):
    form, strips, pairs, M, hold, blocks, parts, unroll = plan
    D, ROW, N, THREADS = form.D, form.row, plan.N, plan.threads
    TILE, SCORES, OUTPUTS, ROWS = M * ROW, strips * M // 2, strips * D // 2, 2 * strips
    HELD = strips * D // 4 if hold else 1
    dtype = form.dtype
    _, commit, wait = copy_of(form.turing)
    copy_keys, copy_queries = tile_copy(form, N, THREADS), tile_copy(form, M, THREADS)
    copy_numbers = numbers_copy(form.turing, M, THREADS)
    strip, columns, _ = lanes_of(form)
    keep, rows, held, add = products_of(form, strips, M, parts, unroll)
    low, high = queries_of(sight)
    mask = mask_of(queries_of(sight), strips, M, LOWEST)
    weigh = weights_of(strips, M, parts)
    leave, take = exchange_of(form.dtype, strips, M, parts)
    write = output_of(form, strips)

    @jit(device=True)
    def middle(s, is_key, pair, parcel, level, c, part):
        if is_key:
            meet(pair, part)
            take(s, parcel, uint32(level + uint32(8 * M)), part)
        else:
            weigh(s, level, c, part)
            leave(s, parcel, part)
            arrive(pair, part)

    @jit(pointers=True, launch_bounds=(THREADS, blocks))
    def attention_warp_keys(
        q: dtype, k: dtype, v: dtype, do: dtype, lse: "float32", delta: "float32",
        dk: dtype, dv: dtype,
        q_batch: "uint64", q_head: "uint64", q_row: "uint32",
        k_batch: "uint64", k_head: "uint64", k_row: "uint32",
        v_batch: "uint64", v_head: "uint64", v_row: "uint32",
        g_batch: "uint64", g_head: "uint64", g_row: "uint32",
        dk_batch: "uint64", dk_head: "uint64", dk_row: "uint32",
        dv_batch: "uint64", dv_head: "uint64", dv_row: "uint32",
        H: "uint32", group: "uint32", Tq: "uint32", Tk: "uint32", width: "uint32",
        window: "uint32", scale2: "float32", scale: "float32",
    ):  # fmt: skip
        """H counts key heads. Strides and width in bytes, g of do; scale2 = scale log2 e."""
        base = shared_start()
        queries = uint32(base + uint32(2 * N * ROW))
        parcels = uint32(queries + uint32(4 * TILE))
        numbers = uint32(parcels + uint32(2 * N * M))
        head, first = uint32(cuda.blockIdx.x), uint32(uint32(cuda.blockIdx.y) * uint32(N))
        batch = uint32(head // H)
        h_kv = uint32(head - batch * H)
        h = uint32(h_kv * group)
        q_at = head_start(q, batch, q_batch, h, q_head)
        g_at = head_start(do, batch, g_batch, h, g_head)
        n_at = uint64((uint64(head) * uint64(group)) * uint64(Tq) * uint64(4))
        k_at = head_start(k, batch, k_batch, h_kv, k_head)
        v_at = head_start(v, batch, v_batch, h_kv, v_head)

        before = uint32(Tk - Tq)  # positions before the first query
        last = uint32(min(uint32(first + uint32(N)), Tk) - uint32(1))
        begin, end = low(first, window), high(last, Tk, window)
        begin = uint32(begin - before) if begin > before else uint32(0)
        begin = uint32(uint32(begin // uint32(M)) * uint32(M))
        end = uint32(end - before) if end > before else uint32(0)
        left = group if begin < end else uint32(0)  # query heads still to do
        copy_keys(base, k_at, k_row, first, Tk, width)
        copy_keys(uint32(base + uint32(N * ROW)), v_at, v_row, first, Tk, width)
        copy_queries(queries, q_at, q_row, begin, Tq, width)
        copy_queries(uint32(queries + uint32(2 * TILE)), g_at, g_row, begin, Tq, width)
        copy_numbers(numbers, lse, n_at, begin, Tq)
        copy_numbers(uint32(numbers + uint32(8 * M)), delta, n_at, begin, Tq)
        commit()

        s = cuda.local.array(SCORES, float32)
        out = cuda.local.array(OUTPUTS, float32)
        factor = cuda.local.array(ROWS, float32)
        words = cuda.local.array(HELD, uint32)
        for i in range(OUTPUTS):
            out[i] = float32(0)
        warp = uint32(uint32(cuda.threadIdx.x) >> uint32(5))
        is_key = warp >= uint32(pairs)
        pair = uint32(warp - uint32(pairs)) if is_key else warp
        mine = uint32(pair * uint32(16 * strips))
        own = uint32(base + uint32(N * ROW)) if is_key else base  # K or V, the left operand
        right = uint32(2 * TILE) if is_key else uint32(0)  # from Q to dO, the first product's
        a_lane = uint32(own + strip(mine))
        b_lane = uint32(queries + right + columns())
        t_lane = uint32(queries + (uint32(2 * TILE) - right) + strip(uint32(0)))
        parcel = uint32(parcels + pair * uint32(32 * strips * M))
        if hold:
            wait()
            cuda.syncthreads()
            keep(words, a_lane)
        query, buffer = begin, uint32(0)
        while left > uint32(0):
            wait()
            cuda.syncthreads()
            after, other = uint32(query + uint32(M)), uint32(uint32(1) - buffer)
            if after >= end:
                after, left = begin, uint32(left - uint32(1))
                q_at, g_at = uint64(q_at + q_head), uint64(g_at + g_head)
                n_at = uint64(n_at + uint64(Tq) * uint64(4))
            if left > uint32(0):
                to = uint32(other * uint32(TILE))
                copy_queries(uint32(queries + to), q_at, q_row, after, Tq, width)
                copy_queries(uint32(queries + uint32(2 * TILE) + to), g_at, g_row, after, Tq, width)
                to = uint32(numbers + other * uint32(4 * M))
                copy_numbers(to, lse, n_at, after, Tq)
                copy_numbers(uint32(to + uint32(8 * M)), delta, n_at, after, Tq)
            commit()
            p = uint32(query + before)
            at = uint32(buffer * uint32(TILE))
            if hold:
                held(s, words, uint32(b_lane + at))
            else:
                rows(s, a_lane, uint32(b_lane + at))
            if not is_key:
                mask(s, uint32(first + mine), p, Tk, window)
            level = uint32(numbers + buffer * uint32(4 * M))
            t = uint32(t_lane + at)
            middle(s, is_key, pair, parcel, level, scale2, 0)
            add(out, s, t, 0)
            if parts > 1:
                middle(s, is_key, pair, parcel, level, scale2, 1)
                add(out, s, t, 1)
            query, buffer = after, other

        wait()
        cuda.syncthreads()
        for i in range(ROWS):
            factor[i] = scale if is_key else float32(1)
        if is_key:
            d_at = head_start(dk, batch, dk_batch, h_kv, dk_head)
            d_row = dk_row
        else:
            d_at = head_start(dv, batch, dv_batch, h_kv, dv_head)
            d_row = dv_row
        write(own, out, factor, d_at, d_row, mine, first, Tk, width)

    return attention_warp_keys
