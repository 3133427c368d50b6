"""Attention one row at a time: a warp for each query, and in the backward pass for each key.

    forward     m, z = Σ p and o of a query are brought up to date with every key that it sees
                (online softmax, Milakov & Gimelshein 2018; Rabe & Staats 2021)
    backward    p = 2^(s − lse) is computed anew, δ = Σ do · o,
                ds = p (do · v − δ) scale;  dq = Σ ds k, a warp for each query,
                dk = Σ ds q, dv = Σ p do, a warp for each key: no two warps add to one number

A head's columns lie across the lanes, 32 apart, so that a warp reads whole lines:

    lane      0    1    2   …   31 |  0    1   …
    column    0    1    2   …   31 | 32   33   …

and a product of two rows is D / 32 multiplications in a lane and a `warp_sum`. Any dtype, any D up
to 256, on every GPU; computed in float32. FLOPs: 4 D for each pair of a query and a key that it
sees, backward 14 D (s and do · v are computed twice); K and V are read from L2 for every query:
4 D · itemsize bytes a pair, which is what binds it. The scores are never in memory.
"""

import functools

import torch

from . import ptx
from .attention_tiles import end_key, first_key, reach
from .dtypes import dtype_name
from .jit import jit
from .namespace import cuda, float32, uint32, uint64
from .warp import LOWEST, warp_sum

WARPS = 4  # of a block, a row each
LOG2E = 1.4426950408889634
LARGEST = 256  # columns of a head: 8 in each lane


@functools.cache
def forward_kernel(dtype: str, D: int):
    PER = -(-D // 32)

    @jit(pointers=True, launch_bounds=(32 * WARPS, 1))
    def attention_online(
        q: dtype, k: dtype, v: dtype, o: dtype, lse: "float32", heads: "uint32", group: "uint32",
        queries: "uint32", length: "uint32", behind: "uint32", ahead: "uint32", scale: "float32",
    ):  # fmt: skip
        own, total = cuda.local.array(PER, float32), cuda.local.array(PER, float32)
        lane = uint32(uint32(cuda.threadIdx.x) & uint32(31))
        row = uint32(uint32(cuda.blockIdx.x) * uint32(WARPS))
        row = uint32(row + (uint32(cuda.threadIdx.x) >> uint32(5)))
        if row >= queries:
            return
        index = uint32(cuda.blockIdx.y)  # of the head, in all of the batch
        start = uint64(uint64(index) * uint64(queries) + uint64(row)) * uint64(D)
        for e in range(PER):
            own[e], total[e] = float32(0), float32(0)
            if uint32(32 * e) + lane < uint32(D):
                own[e] = ptx.load(q, start + uint64(uint32(32 * e) + lane)) * scale
        position = uint32(row + uint32(length - queries))
        key, end = first_key(position, behind), end_key(position, ahead, length)
        place = uint64(uint64(index // group) * uint64(length) + uint64(key)) * uint64(D)
        m, z = float32(LOWEST), float32(0)
        while key < end:
            score = float32(0)
            for e in range(PER):
                if uint32(32 * e) + lane < uint32(D):
                    score += own[e] * ptx.load(k, place + uint64(uint32(32 * e) + lane))
            score = warp_sum(score)
            if score > m:  # every lane has the same score
                factor = ptx.ex2(m - score)
                z *= factor
                for e in range(PER):
                    total[e] *= factor
                m = score
            p = ptx.ex2(score - m)
            z += p
            for e in range(PER):
                if uint32(32 * e) + lane < uint32(D):
                    total[e] += p * ptx.load(v, place + uint64(uint32(32 * e) + lane))
            place += uint64(D)
            key = uint32(key + uint32(1))
        batch = uint32(index // heads)
        place = uint64(uint64(batch) * uint64(queries) + uint64(row)) * uint64(heads)
        place = uint64(place + uint64(uint32(index - uint32(batch * heads)))) * uint64(D)
        for e in range(PER):
            if uint32(32 * e) + lane < uint32(D):
                ptx.store(o, place + uint64(uint32(32 * e) + lane), total[e] / z)
        if lane == uint32(0):
            lse[uint64(index) * uint64(queries) + uint64(row)] = m + ptx.lg2(z)

    return attention_online


@functools.cache
def query_gradient_kernel(dtype: str, D: int):
    PER = -(-D // 32)

    @jit(pointers=True, launch_bounds=(32 * WARPS, 1))
    def attention_rows_dq(
        do: dtype, q: dtype, k: dtype, v: dtype, o: dtype, lse: "float32", delta: "float32",
        dq: dtype, group: "uint32", queries: "uint32", length: "uint32", behind: "uint32",
        ahead: "uint32", scale: "float32",
    ):  # fmt: skip
        own, grad = cuda.local.array(PER, float32), cuda.local.array(PER, float32)
        total = cuda.local.array(PER, float32)
        lane = uint32(uint32(cuda.threadIdx.x) & uint32(31))
        row = uint32(uint32(cuda.blockIdx.x) * uint32(WARPS))
        row = uint32(row + (uint32(cuda.threadIdx.x) >> uint32(5)))
        if row >= queries:
            return
        index = uint32(cuda.blockIdx.y)
        at = uint64(uint64(index) * uint64(queries) + uint64(row))
        start = uint64(at * uint64(D))
        d = float32(0)
        for e in range(PER):
            own[e], grad[e], total[e] = float32(0), float32(0), float32(0)
            if uint32(32 * e) + lane < uint32(D):
                column = uint64(uint32(32 * e) + lane)
                own[e] = ptx.load(q, start + column) * scale
                grad[e] = ptx.load(do, start + column)
                d += grad[e] * ptx.load(o, start + column)
        d = warp_sum(d)
        if lane == uint32(0):
            delta[at] = d
        shift = lse[at]
        position = uint32(row + uint32(length - queries))
        key, end = first_key(position, behind), end_key(position, ahead, length)
        place = uint64(uint64(index // group) * uint64(length) + uint64(key)) * uint64(D)
        while key < end:
            score, dp = float32(0), float32(0)
            for e in range(PER):
                if uint32(32 * e) + lane < uint32(D):
                    column = uint64(uint32(32 * e) + lane)
                    score += own[e] * ptx.load(k, place + column)
                    dp += grad[e] * ptx.load(v, place + column)
            score, dp = warp_sum(score), warp_sum(dp)
            ds = ptx.ex2(score - shift) * (dp - d)
            for e in range(PER):
                if uint32(32 * e) + lane < uint32(D):
                    total[e] += ds * ptx.load(k, place + uint64(uint32(32 * e) + lane))
            place += uint64(D)
            key = uint32(key + uint32(1))
        for e in range(PER):
            if uint32(32 * e) + lane < uint32(D):
                # `scale` holds log2(e) too, which is no part of the gradient
                part = total[e] * scale * float32(1 / LOG2E)
                ptx.store(dq, start + uint64(uint32(32 * e) + lane), part)

    return attention_rows_dq


@functools.cache
def key_gradient_kernel(dtype: str, D: int):
    PER = -(-D // 32)

    @jit(pointers=True, launch_bounds=(32 * WARPS, 1))
    def attention_rows_dkdv(
        do: dtype, q: dtype, k: dtype, v: dtype, lse: "float32", delta: "float32", dk: dtype,
        dv: dtype, group: "uint32", queries: "uint32", length: "uint32", behind: "uint32",
        ahead: "uint32", scale: "float32",
    ):  # fmt: skip
        key, value = cuda.local.array(PER, float32), cuda.local.array(PER, float32)
        sum_k, sum_v = cuda.local.array(PER, float32), cuda.local.array(PER, float32)
        lane = uint32(uint32(cuda.threadIdx.x) & uint32(31))
        at = uint32(uint32(cuda.blockIdx.x) * uint32(WARPS))
        at = uint32(at + (uint32(cuda.threadIdx.x) >> uint32(5)))
        if at >= length:
            return
        index = uint32(cuda.blockIdx.y)  # of the head of keys
        start = uint64(uint64(index) * uint64(length) + uint64(at)) * uint64(D)
        for e in range(PER):
            key[e], value[e], sum_k[e], sum_v[e] = float32(0), float32(0), float32(0), float32(0)
            if uint32(32 * e) + lane < uint32(D):
                key[e] = ptx.load(k, start + uint64(uint32(32 * e) + lane)) * scale
                value[e] = ptx.load(v, start + uint64(uint32(32 * e) + lane))
        # Who sees whom is the same from both sides, with `ahead` and `behind` exchanged.
        offset = uint32(length - queries)
        first = max(first_key(at, ahead), offset)
        end = max(end_key(at, behind, length), first)
        member = uint32(0)
        while member < group:
            row = uint64(uint64(index) * uint64(group) + uint64(member)) * uint64(queries)
            row = uint64(row + uint64(uint32(first - offset)))
            position = first
            while position < end:
                place = uint64(row * uint64(D))
                score, dp = float32(0), float32(0)
                for e in range(PER):
                    if uint32(32 * e) + lane < uint32(D):
                        column = uint64(uint32(32 * e) + lane)
                        score += key[e] * ptx.load(q, place + column)
                        dp += value[e] * ptx.load(do, place + column)
                score, dp = warp_sum(score), warp_sum(dp)
                p = ptx.ex2(score - lse[row])
                ds = p * (dp - delta[row])
                for e in range(PER):
                    if uint32(32 * e) + lane < uint32(D):
                        column = uint64(uint32(32 * e) + lane)
                        sum_k[e] += ds * ptx.load(q, place + column)
                        sum_v[e] += p * ptx.load(do, place + column)
                row += uint64(1)
                position = uint32(position + uint32(1))
            member = uint32(member + uint32(1))
        for e in range(PER):
            if uint32(32 * e) + lane < uint32(D):
                column = uint64(uint32(32 * e) + lane)
                ptx.store(dk, start + column, sum_k[e] * scale * float32(1 / LOG2E))
                ptx.store(dv, start + column, sum_v[e])

    return attention_rows_dkdv


def forward(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, causal: bool,
            window: int | None, scale: float) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """(o, lse): o (B, H, Tq, D), a view of (B, Tq, H, D) memory; lse (B, H, Tq) to base 2.

    Operands that are not contiguous are copied first.
    """
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    B, H, Tq, D = q.shape
    H_kv, Tk = k.shape[1:3]
    o = torch.empty(B, Tq, H, D, dtype=q.dtype, device=q.device)
    lse = torch.empty(B, H, Tq, dtype=torch.float32, device=q.device)
    kernel = forward_kernel(dtype_name(q), D)
    kernel[(-(-Tq // WARPS), B * H), 32 * WARPS](
        q, k, v, o, lse, H, H // H_kv, Tq, Tk, *reach(causal, window), scale * LOG2E
    )
    return o.transpose(1, 2), lse


def backward(do: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, o: torch.Tensor,
             lse: torch.Tensor, *, causal: bool, window: int | None,
             scale: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """(dq, dk, dv), contiguous, of the operands' shapes; lse to base 2, as `forward` returns it.

    Operands that are not contiguous are copied first.
    """
    do, q, k, v, o = (x.contiguous() for x in (do, q, k, v, o))
    (B, H, Tq, D), (_, H_kv, Tk, _) = q.shape, k.shape
    dtype, group = dtype_name(q), H // H_kv
    dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    delta = torch.empty_like(lse)
    sizes = (group, Tq, Tk, *reach(causal, window), scale * LOG2E)
    query_gradient_kernel(dtype, D)[(-(-Tq // WARPS), B * H), 32 * WARPS](
        do, q, k, v, o, lse, delta, dq, *sizes
    )
    key_gradient_kernel(dtype, D)[(-(-Tk // WARPS), B * H_kv), 32 * WARPS](
        do, q, k, v, lse, delta, dk, dv, *sizes
    )
    return dq, dk, dv
