"""dQ of the backward kernel: dS K of both warpgroups' keys, and the sum over blocks of keys.

A part of dQ needs dS of all 128 keys, 64 of them another warpgroup's: dS goes through shared
memory, in a ring, and its product is started one tile later, when both have long written it.

    ring of dS:   | tile i − 1: read by dQ | tile i: being written | …

Each warpgroup makes 64 of the 128 queries (D ≤ 64), or half of the columns of 64 (D > 64). The
parts are added in float32, as registers hold them, 16 bytes a thread; the first block of keys of a
query block stores its part, the last takes the sum and writes dQ, scaled and rounded.
"""

import functools
from types import SimpleNamespace

from . import ptx
from .attention_backward_fragments import pack_of
from .attention_backward_layout import TURNS, Layout
from .attention_backward_schedule import KEYS, lower_of, upper_of
from .attention_backward_words import bit
from .jit import jit
from .namespace import cuda, float32, uint32, uint64


@functools.cache
def deliver_of(dtype: str, layout: Layout):
    """A device function: a warpgroup's part of dQ of a query block goes where it belongs."""
    NQ, ORDERED, BQ = layout.part_columns, layout.ordered, layout.bq
    HELD = NQ // 2
    lower, upper = lower_of(BQ), upper_of(BQ)
    pack = pack_of[dtype]
    store = ptx.wgmma_store(NQ)

    PART = 64 * NQ  # floats of a warpgroup's part
    HALF = NQ if BQ == 64 else 0  # columns of dQ between the warpgroups, or
    LATER = 0 if BQ == 64 else 64  # rows

    @jit(device=True)
    def deliver(
        acc, w, thread, j, n, head, heads, blocks, key_blocks, part, dq, dq_t, dq_h, dq_b, tq, d,
        shift, left, right, scale,
    ):  # fmt: skip
        values = cuda.local.array(HELD, float32)
        store(acc, values)
        block = uint64(uint32(head * blocks + n))
        index = (block * uint64(2) + uint64(w)) * uint64(PART) + uint64(thread * uint32(4))
        first = j == uint32(0) or n >= upper(j, shift, left)
        last = j + uint32(1) == key_blocks or n < lower(j + uint32(1), shift, right)
        if ORDERED and last:
            if not first:
                for k in range(NQ // 8):
                    words = ptx.load_128_cg(part, index + uint64(512 * k))
                    for i in range(4):
                        values[4 * k + i] += ptx.from_bits(words[i])
            row = uint32(w * uint32(LATER) + (thread >> uint32(5)) * uint32(16))
            row = uint32(row + ((thread & uint32(31)) >> uint32(2)) + n * uint32(BQ))
            column = uint32(w * uint32(HALF) + (thread & uint32(3)) * uint32(2))
            b = uint32(head // heads)
            place = uint64(b) * dq_b + uint64(uint32(head - b * heads)) * uint64(dq_h)
            place += uint64(row) * uint64(dq_t) + uint64(column)
            for k in range(NQ // 8):
                if column + uint32(8 * k) < d:
                    at = place + uint64(8 * k)
                    if row < tq:
                        word = pack(values[4 * k] * scale, values[4 * k + 1] * scale)
                        ptx.store_32(dq, at, word)
                    if row + uint32(8) < tq:
                        word = pack(values[4 * k + 2] * scale, values[4 * k + 3] * scale)
                        ptx.store_32(dq, at + uint64(uint32(8) * dq_t), word)
        elif ORDERED and first:
            for k in range(NQ // 8):
                ptx.store_128(
                    part, index + uint64(512 * k), ptx.bits(values[4 * k]),
                    ptx.bits(values[4 * k + 1]), ptx.bits(values[4 * k + 2]),
                    ptx.bits(values[4 * k + 3]),
                )  # fmt: skip
        else:
            for k in range(NQ // 8):
                ptx.reduce_add_f32x4(
                    part, index + uint64(512 * k), values[4 * k], values[4 * k + 1],
                    values[4 * k + 2], values[4 * k + 3],
                )  # fmt: skip

    return deliver


@functools.cache
def dq_of(dtype: str, layout: Layout) -> SimpleNamespace:
    """The device functions around a part of dQ."""
    BQ, RING, SCORES, ORDERED = layout.bq, layout.ring, layout.scores, layout.ordered
    NQ, RING_AT = layout.part_columns, layout.ring_at
    bars = {name: at for name, (at, _, _) in layout.bars().items()}
    DS_FULL, DS_EMPTY = bars["ds_full"], bars["ds_empty"]
    ALLOW, DONE = bars["allow"], bars["done"]
    ROUND = TURNS.bit_length() - 1
    LATER = 0 if BQ == 64 else 64  # queries between the warpgroups, or
    K_HALF = 0 if BQ == 128 else KEYS * 128 if layout.halves == 2 else 64  # bytes between columns
    partial = ptx.wgmma(NQ, dtype, k_steps=4, transpose_b=True)
    zeros_q = ptx.wgmma_zeros(NQ)

    @jit(device=True)
    def ready(base, step):
        """Wait until both warpgroups have written dS of a tile; its address."""
        ring = uint32(step % uint32(RING))
        ptx.mbarrier_wait(
            base + uint32(DS_FULL) + uint32(8) * ring, bit(uint32(step // uint32(RING)), 0)
        )
        return uint32(base + uint32(RING_AT) + uint32(SCORES) * ring)

    @jit(device=True)
    def part_of_dq(base, w, ds_at):
        """Start dS K of a tile."""
        k_columns = ptx.wgmma_descriptor(
            base + w * uint32(K_HALF), KEYS * 128, 1024, 128
        )  # fmt: skip
        ds_rows = ptx.wgmma_descriptor(ds_at + w * uint32(LATER * 128), 0, 1024, 128)
        ptx.wgmma_fence()
        acc = partial(zeros_q(), ds_rows, k_columns, False)
        acc = partial(acc, ds_rows + uint64(BQ * 8), k_columns + uint64(512), True)
        ptx.wgmma_commit()
        return acc

    @jit(device=True)
    def before(base, lane, step):
        """dS of a finished part of dQ is free; wait until it is this part's turn."""
        if lane == uint32(0):
            ptx.mbarrier_arrive(base + uint32(DS_EMPTY) + uint32(8) * uint32(step % uint32(RING)))
        if ORDERED:
            ptx.mbarrier_wait(
                base + uint32(ALLOW) + uint32(8) * uint32(step & uint32(TURNS - 1)),
                bit(step, ROUND),
            )

    @jit(device=True)
    def behind(base, lane, step):
        """The part has been added: the next block's turn, once all warps have come here."""
        if ORDERED:
            cuda.syncwarp()
            if lane == uint32(0):
                ptx.mbarrier_arrive(
                    base + uint32(DONE) + uint32(8) * uint32(step & uint32(TURNS - 1))
                )

    return SimpleNamespace(
        ready=ready, part_of_dq=part_of_dq, before=before, behind=behind,
        deliver=deliver_of(dtype, layout),
    )  # fmt: skip
