"""Before the backward pass of attention: D = rowsum(dO · O), and the log-sum-exp beside it.

    delta[t] = Σ_d dO[t, d] · O[t, d]          stats: (B, H, blocks of BQ queries, 2, BQ) float32,
                                               the log-sum-exps of a block, then its deltas

    8 lanes of D = 64 (4, 16, 16 of 32, 96, 128) share a row, 16 bytes of dO and of O each:

        row t   |lane 0 |lane 1 | … |lane 7 |      a warp: 4 rows

Rows past the end, and rows that see no key (lse = −∞), get lse = +∞: exp2(s − ∞) = 0, and such a
row adds nothing to any gradient. The kernel also clears the counters and the ticket that the next
one starts from. Bytes: O and dO once, 4 · B · H · T · D, and 8 · B · H · T.
"""

import functools
import math

from . import ptx
from .jit import jit
from .namespace import cuda, float32, uint32, uint64

THREADS = 256
INFINITY = math.inf


def lanes_of(d: int) -> int:
    """Lanes that share a row of d elements, 8 each: a power of two."""
    return 1 << (d // 8 - 1).bit_length()


@functools.cache
def delta_kernel(dtype: str, d: int, bq: int):
    """stats from O, dO and lse; grid (rows of a head / rows of a block, H, B)."""
    LANES, ODD = lanes_of(d), d // 8 != lanes_of(d)
    ROWS = THREADS // LANES
    unpack = ptx.unpack_bf16 if dtype == "bfloat16" else ptx.unpack_f16
    STEPS = LANES.bit_length() - 1

    @jit(pointers=True, launch_bounds=(THREADS, 1))
    def attention_delta(
        o: dtype, do: dtype, lse: "float32", stats: "float32", counters: "uint32",
        o_t: "uint32", o_h: "uint32", o_b: "uint64", do_t: "uint32", do_h: "uint32",
        do_b: "uint64", tq: "uint32", blocks: "uint32",
    ):  # fmt: skip
        thread = uint32(cuda.threadIdx.x)
        lane = thread & uint32(LANES - 1)
        t = uint32(uint32(cuda.blockIdx.x) * uint32(ROWS) + thread // uint32(LANES))
        h, b = uint32(cuda.blockIdx.y), uint32(cuda.blockIdx.z)
        head = uint32(b * uint32(cuda.gridDim.y) + h)
        total = float32(0)
        if t < tq and (not ODD or lane < uint32(d // 8)):
            place = uint64(b) * o_b + uint64(h) * uint64(o_h) + uint64(t) * uint64(o_t)
            x = ptx.load_128_nc(o, place + uint64(lane * uint32(8)))
            place = uint64(b) * do_b + uint64(h) * uint64(do_h) + uint64(t) * uint64(do_t)
            y = ptx.load_128_nc(do, place + uint64(lane * uint32(8)))
            for k in range(4):
                low, high = unpack(x[k])
                low2, high2 = unpack(y[k])
                total = ptx.fma(low, low2, total)
                total = ptx.fma(high, high2, total)
        for k in range(STEPS):
            total += cuda.shfl_xor_sync(0xFFFFFFFF, total, 1 << k)
        if lane == uint32(0):
            n, row = uint32(t // uint32(bq)), uint32(t & uint32(bq - 1))
            if n < blocks:
                log = float32(INFINITY)
                if t < tq:
                    log = ptx.load(lse, uint64(head) * uint64(tq) + uint64(t))
                    if log == float32(-INFINITY):
                        log, total = float32(INFINITY), float32(0)
                block = uint64(head) * uint64(blocks) + uint64(n)
                at = block * uint64(2 * bq) + uint64(row)
                ptx.store(stats, at, log)
                ptx.store(stats, at + uint64(bq), total)
                if row == uint32(0):
                    ptx.store_32(counters, block + uint64(1), uint32(0))
                    if block == uint64(0):
                        ptx.store_32(counters, 0, uint32(0))

    return attention_delta
