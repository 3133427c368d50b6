"""dQ from its float32 parts to 16 bits, for the rung whose parts are added by plain atomics.

There nobody knows which part of a query block is the last, so a kernel of its own scales and rounds
them. (In order, the last block of keys does it on the way, and saves 4 bytes read and written an
element.) The parts lie as the registers of a warpgroup hold them,

    [B · H · blocks][2 warpgroups][columns / 8][128 threads][4 floats]

and a thread here takes 8 columns of two rows: four threads of one group of registers. Bytes: 6 · B
· H · T · D.
"""

import functools

from . import ptx
from .attention_backward_fragments import pack_of
from .attention_backward_layout import Layout
from .jit import jit
from .namespace import cuda, float32, uint32, uint64

THREADS = 256


@functools.cache
def convert_kernel(dtype: str, layout: Layout):
    """dq from the parts; grid (blocks · 2 · 4 · columns / 8 / 32 rounded up, H, B)."""
    BQ, GROUPS = layout.bq, layout.part_columns // 8
    PART = 64 * layout.part_columns
    HALF = layout.part_columns if BQ == 64 else 0
    LATER = 0 if BQ == 64 else 64
    pack = pack_of[dtype]

    @jit(pointers=True, launch_bounds=(THREADS, 1))
    def attention_convert(
        part: "float32", dq: dtype, dq_t: "uint32", dq_h: "uint32", dq_b: "uint64",
        blocks: "uint32", tq: "uint32", d: "uint32", scale: "float32",
    ):  # fmt: skip
        values = cuda.local.array(16, float32)
        i = uint32(uint32(cuda.blockIdx.x) * uint32(THREADS) + uint32(cuda.threadIdx.x))
        group = uint32(i % uint32(GROUPS))
        quad = uint32(i // uint32(GROUPS)) & uint32(31)
        tile = uint32(i // uint32(32 * GROUPS))  # (block of queries, warpgroup)
        n, w = tile >> uint32(1), tile & uint32(1)
        if n < blocks:
            h, b = uint32(cuda.blockIdx.y), uint32(cuda.blockIdx.z)
            head = uint32(b * uint32(cuda.gridDim.y) + h)
            block = uint64(uint32(head * blocks + n))
            at = (block * uint64(2) + uint64(w)) * uint64(PART)
            at += uint64(uint32(group * uint32(512) + quad * uint32(16)))
            for k in range(4):
                ptx.load_vector(part, at + uint64(4 * k), values, 4 * k)
            for k in range(16):
                values[k] *= scale
            row = uint32(n * uint32(BQ) + w * uint32(LATER))
            row = uint32(row + (quad >> uint32(3)) * uint32(16) + (quad & uint32(7)))
            column = uint32(w * uint32(HALF) + group * uint32(8))
            place = uint64(b) * dq_b + uint64(h) * uint64(dq_h) + uint64(column)
            for r in range(2):
                t = uint32(row + uint32(8 * r))
                if t < tq and column < d:
                    ptx.store_128(
                        dq, place + uint64(t) * uint64(dq_t),
                        pack(values[2 * r], values[2 * r + 1]),
                        pack(values[4 + 2 * r], values[5 + 2 * r]),
                        pack(values[8 + 2 * r], values[9 + 2 * r]),
                        pack(values[12 + 2 * r], values[13 + 2 * r]),
                    )  # fmt: skip

    return attention_convert
