"""One tile of scores in the backward kernel: 64 keys of a warpgroup, `BQ` queries, five products.

    Sᵀ = K Qᵀ, dPᵀ = V dOᵀ      from shared memory
    dV += Pᵀ dO, dK += dSᵀ Q     A from registers: the accumulators of the products above, rounded
    dQ part of the tile before   see attention_backward_dq

    tensor cores   S      dP    │ dV (early)      │ dQ of i − 1   dK
    other units              exp2               dS      store dS      add to dQ

All products of a tile are finished at its end: accumulators in flight over the loop's back edge
made ptxas put a wait after every product (C7514). For the same reason nothing conditional stands
between two products. A tile that a mask cuts is a function of its own: the choice inside one made
copies of all its scores.
"""

import functools
from types import SimpleNamespace

from . import ptx
from .attention_backward_dq import dq_of
from .attention_backward_fragments import pack_fragment
from .attention_backward_layout import Layout
from .attention_backward_schedule import KEYS
from .attention_backward_words import END, bit
from .jit import jit
from .namespace import cuda, float32, uint32, uint64


@functools.cache
def tiles_of(dtype: str, layout: Layout) -> SimpleNamespace:
    """Device functions: whether a tile is clean, and a tile with and without a mask."""
    D, BQ, RING, EARLY = layout.d, layout.bq, layout.ring, layout.early
    HALVES, KSZ, QSZ, SCORES = layout.halves, layout.keys, layout.queries, layout.scores
    bars = {name: at for name, (at, _, _) in layout.bars().items()}
    DS_FULL, DS_EMPTY = bars["ds_full"], bars["ds_empty"]
    dq_part = dq_of(dtype, layout)
    ready, part_of_dq, deliver = dq_part.ready, dq_part.part_of_dq, dq_part.deliver
    before, behind = dq_part.before, dq_part.behind
    scores_1 = ptx.wgmma(BQ, dtype, k_steps=min(D, 64) // 16)  # the first 64 columns
    scores_2 = ptx.wgmma(BQ, dtype, k_steps=max((D - 64) // 16, 1))  # the others
    update = ptx.wgmma(D, dtype, a="registers", k_steps=BQ // 16, transpose_b=True)
    zeros_s, store_s = ptx.wgmma_zeros(BQ), ptx.wgmma_store(BQ)
    wait_s0, wait_s1 = ptx.wgmma_wait(BQ, 0), ptx.wgmma_wait(BQ, 1)
    wait_q1, wait_d = ptx.wgmma_wait(layout.part_columns, 1), ptx.wgmma_wait(D, 0)
    pack, pin = pack_fragment(BQ, dtype), ptx.pin(BQ // 4)

    @jit(device=True)
    def mask(prob, n, j, w, thread, tk, shift, left, right):
        """Zeros where a query does not see a key: see attention_backward_schedule."""
        row = uint32(w * uint32(64) + uint32(thread >> uint32(5)) * uint32(16))
        key = uint32(j * uint32(KEYS) + row + uint32(uint32(thread & uint32(31)) >> uint32(2)))
        span_0 = span_1 = uint32(left + right + uint32(1))
        if key >= tk:
            span_0 = uint32(0)
        if uint32(key + uint32(8)) >= tk:
            span_1 = uint32(0)
        far = uint32(n * uint32(BQ) + uint32(thread & uint32(3)) * uint32(2) + shift + right - key)
        for k in range(BQ // 8):
            if uint32(far + uint32(8 * k)) >= span_0:
                prob[4 * k] = float32(0)
            if uint32(far + uint32(8 * k + 1)) >= span_0:
                prob[4 * k + 1] = float32(0)
            if uint32(far + uint32(8 * k) - uint32(8)) >= span_1:
                prob[4 * k + 2] = float32(0)
            if uint32(far + uint32(8 * k + 1) - uint32(8)) >= span_1:
                prob[4 * k + 3] = float32(0)

    @jit(device=True)
    def clean(j, n, w, tk, shift, left, right):
        """Whether every query of a block sees every key of this warpgroup."""
        key = uint32(j * uint32(KEYS) + w * uint32(64))
        t = uint32(n * uint32(BQ) + shift)  # the first query's position
        return (
            uint32(t + right) >= uint32(key + uint32(63))
            and uint32(t + uint32(BQ - 1)) <= uint32(key + left)
            and uint32(key + uint32(64)) <= tk
        )

    @jit(device=True)
    def product_of_rows(a_at, b_at):
        """Start 64 rows of K or V times the rows of Q or dO, a group of its own."""
        a = ptx.wgmma_descriptor(a_at, 0, 1024, 128)
        b = ptx.wgmma_descriptor(b_at, 0, 1024, 128)
        s = scores_1(zeros_s(), a, b, False)
        if HALVES == 2:
            s = scores_2(s, a + uint64(KEYS * 8), b + uint64(BQ * 8), True)
        ptx.wgmma_commit()
        return s

    @jit(device=True)
    def columns_of(at):
        """Q or dO as operand B of a product over queries."""
        return ptx.wgmma_descriptor(at, BQ * 128, 1024, 128)

    def tile_of(masked):
        """A device function: one tile of scores, its five products."""

        @jit(device=True)
        def tile(
            dk, dv, prob, grad, base, w, thread, ds_to, q_at, stats_at, step, j, n, old_n,
            old_head, part, dq, dq_t, dq_h, dq_b, heads, blocks, key_blocks, tq, tk, d, shift,
            left, right, scale_log2, scale,
        ):  # fmt: skip
            lane = uint32(thread & uint32(31))
            ptx.wgmma_fence()
            s = product_of_rows(base + w * uint32(8192), q_at)
            dp = product_of_rows(
                base + w * uint32(8192) + uint32(KSZ), q_at + uint32(QSZ)
            )  # fmt: skip
            s = wait_s1(s)
            store_s(s, prob)
            for k in range(BQ // 8):
                words = ptx.load_shared_64_at(stats_at + uint32(32 * k))
                log_0, log_1 = -ptx.from_bits(words[0]), -ptx.from_bits(words[1])
                prob[4 * k] = ptx.ex2(ptx.fma(prob[4 * k], scale_log2, log_0))
                prob[4 * k + 1] = ptx.ex2(ptx.fma(prob[4 * k + 1], scale_log2, log_1))
                prob[4 * k + 2] = ptx.ex2(ptx.fma(prob[4 * k + 2], scale_log2, log_0))
                prob[4 * k + 3] = ptx.ex2(ptx.fma(prob[4 * k + 3], scale_log2, log_1))
            if masked:
                mask(prob, n, j, w, thread, tk, shift, left, right)
            if EARLY:
                p = pin(pack(prob))
                ptx.wgmma_fence()
                dv = update(dv, p, columns_of(q_at + uint32(QSZ)), True)
                ptx.wgmma_commit()
                dp = wait_s1(dp)
            else:
                dp = wait_s0(dp)
            store_s(dp, grad)
            for k in range(BQ // 8):
                words = ptx.load_shared_64_at(stats_at + uint32(4 * BQ + 32 * k))
                for i in range(2):
                    delta = ptx.from_bits(words[i])
                    grad[4 * k + i] = prob[4 * k + i] * (grad[4 * k + i] - delta)
                    grad[4 * k + 2 + i] = prob[4 * k + 2 + i] * (grad[4 * k + 2 + i] - delta)
            if not EARLY:
                p = pin(pack(prob))
            ds = pin(pack(grad))
            ring = uint32(step % uint32(RING))
            at = uint32(base + uint32(8) * ring)
            ptx.mbarrier_wait(
                at + uint32(DS_EMPTY), uint32(bit(uint32(step // uint32(RING)), 0) ^ uint32(1))
            )
            for k in range(BQ // 16):
                ptx.stmatrix_x4_trans(
                    ds_to + uint32(SCORES) * ring + uint32(2048 * k),
                    ds[4 * k], ds[4 * k + 1], ds[4 * k + 2], ds[4 * k + 3],
                )  # fmt: skip
            ptx.fence_proxy_async_shared()
            cuda.syncwarp()
            if lane == uint32(0):
                ptx.mbarrier_arrive(at + uint32(DS_FULL))
            if not EARLY:
                ptx.wgmma_fence()
                dv = update(dv, p, columns_of(q_at + uint32(QSZ)), True)
                ptx.wgmma_commit()
            # the first time there is no dS yet: any tile will do, nobody takes the result
            ds_at = ready(base, step - uint32(1))
            acc = part_of_dq(base, w, q_at if old_n == uint32(END) else ds_at)
            ptx.wgmma_fence()
            dk = update(dk, ds, columns_of(q_at), True)
            ptx.wgmma_commit()
            acc = wait_q1(acc)
            if old_n != uint32(END):
                before(base, lane, step - uint32(1))
                deliver(
                    acc, w, thread, j, old_n, old_head, heads, blocks, key_blocks, part,
                    dq, dq_t, dq_h, dq_b, tq, d, shift, left, right, scale,
                )  # fmt: skip
                behind(base, lane, step - uint32(1))
            dv, dk = wait_d(dv), wait_d(dk)
            return dk, dv

        return tile

    return SimpleNamespace(clean=clean, plain=tile_of(False), masked=tile_of(True))
