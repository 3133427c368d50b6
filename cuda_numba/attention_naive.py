"""Attention with the scores in memory: three kernels, as the formula is read.

    scores     s[t, j] = q[t] · k[j] · scale, −∞ where query t does not see key j: a thread for each
    softmax    every row of s to p = 2^(s − lse), and its lse: a warp for each row
    output     o[t, d] = Σ_j p[t, j] v[j, d]: a thread for each column of o

Memory: B · H · Tq · Tk float32 for s, 1 GiB for one head of 16,384 positions, written and read
twice. FLOPs 4 · B · H · Tq · Tk · D: masked scores are computed and multiplied like all others.
This rung is there to be read, and to see what the others save.
"""

import functools

import torch

from . import ptx
from .attention_tiles import end_key, first_key, reach
from .dtypes import dtype_name
from .jit import jit
from .namespace import cuda, float32, uint32, uint64
from .warp import LOWEST, warp_max, warp_sum

THREADS = 128
LOG2E = 1.4426950408889634


@functools.cache
def scores_kernel(dtype: str, D: int):
    @jit(pointers=True)
    def attention_scores(
        q: dtype, k: dtype, s: "float32", group: "uint32", queries: "uint32", length: "uint32",
        behind: "uint32", ahead: "uint32", scale: "float32",
    ):  # fmt: skip
        key = uint32(uint32(cuda.blockIdx.x) * uint32(THREADS) + uint32(cuda.threadIdx.x))
        if key >= length:
            return
        row = uint64(uint64(cuda.blockIdx.z) * uint64(queries) + uint64(cuda.blockIdx.y))
        position = uint32(uint32(cuda.blockIdx.y) + uint32(length - queries))
        value = float32(LOWEST)
        if key >= first_key(position, behind) and key < end_key(position, ahead, length):
            head = uint64(uint32(uint32(cuda.blockIdx.z) // group))
            a = uint64(row * uint64(D))
            b = uint64(uint64(head * uint64(length) + uint64(key)) * uint64(D))
            value = float32(0)
            for d in range(D):
                value += ptx.load(q, a + uint64(d)) * ptx.load(k, b + uint64(d))
            value *= scale
        s[row * uint64(length) + uint64(key)] = value

    return attention_scores


@jit(pointers=True)
def attention_softmax(s: "float32", lse: "float32", length: "uint32"):
    row = uint64(cuda.blockIdx.x)
    start = uint64(row * uint64(length))
    m, z = float32(LOWEST), float32(0)
    j = uint32(cuda.threadIdx.x)
    while j < length:
        m = max(m, s[start + uint64(j)])
        j = uint32(j + uint32(32))
    m = warp_max(m)
    j = uint32(cuda.threadIdx.x)
    while j < length:
        z += ptx.ex2(s[start + uint64(j)] - m)
        j = uint32(j + uint32(32))
    z = warp_sum(z)
    j = uint32(cuda.threadIdx.x)
    while j < length:
        s[start + uint64(j)] = ptx.ex2(s[start + uint64(j)] - m) / z
        j = uint32(j + uint32(32))
    if cuda.threadIdx.x == 0:
        lse[row] = m + ptx.lg2(z)


@functools.cache
def output_kernel(dtype: str, D: int):
    @jit(pointers=True)
    def attention_output(
        s: "float32", v: dtype, o: dtype, heads: "uint32", group: "uint32", queries: "uint32",
        length: "uint32",
    ):  # fmt: skip
        row, index = uint32(cuda.blockIdx.x), uint32(cuda.blockIdx.y)
        d = uint32(cuda.threadIdx.x)
        a = uint64(uint64(index) * uint64(queries) + uint64(row)) * uint64(length)
        b = uint64(uint64(index // group) * uint64(length)) * uint64(D) + uint64(d)
        total = float32(0)
        j = uint32(0)
        while j < length:
            total += s[a + uint64(j)] * ptx.load(v, b + uint64(j) * uint64(D))
            j = uint32(j + uint32(1))
        batch = uint32(index // heads)
        place = uint64(uint64(batch) * uint64(queries) + uint64(row)) * uint64(heads)
        place = uint64(place + uint64(uint32(index - uint32(batch * heads)))) * uint64(D)
        ptx.store(o, place + uint64(d), total)

    return attention_output


def forward(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, causal: bool,
            window: int | None, scale: float) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """(o, lse): o (B, H, Tq, D), a view of (B, Tq, H, D) memory; lse (B, H, Tq) to base 2.

    Operands that are not contiguous are copied first.
    """
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    (B, H, Tq, D), (_, H_kv, Tk, _) = q.shape, k.shape
    dtype, group = dtype_name(q), H // H_kv
    s = torch.empty(B, H, Tq, Tk, dtype=torch.float32, device=q.device)
    o = torch.empty(B, Tq, H, D, dtype=q.dtype, device=q.device)
    lse = torch.empty(B, H, Tq, dtype=torch.float32, device=q.device)
    scores_kernel(dtype, D)[(-(-Tk // THREADS), Tq, B * H), THREADS](
        q, k, s, group, Tq, Tk, *reach(causal, window), scale * LOG2E
    )
    attention_softmax[B * H * Tq, 32](s, lse, Tk)
    output_kernel(dtype, D)[(Tq, B * H), D](s, v, o, H, group, Tq, Tk)
    return o.transpose(1, 2), lse
