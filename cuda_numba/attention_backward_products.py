"""dK, dV and dQ of attention on Hopper: the kernel, and its two warpgroups that multiply.

    warps  0 –  3   producers: see attention_backward_producers              24 registers
    warps  4 –  7   keys  0 – 63 of a block: 64 × D of dK and dV         } 240 registers, 128 of
    warps  8 – 11   keys 64 – 127                                        } them dK and dV at D 128

    shared memory   | K | V | Q dO | Q dO | … | dS | dS | … | lse D | … | barriers |

A thread block stays on its multiprocessor and takes tile after tile of 128 keys by tickets. While
dK and dV of one leave, through the places of dS and by TMA, the next K, V, Q and dO arrive.
"""

import functools

from . import ptx
from .attention_backward_dq import dq_of
from .attention_backward_fragments import pack_of
from .attention_backward_layout import TURNS, Layout
from .attention_backward_producers import producers_of
from .attention_backward_schedule import KEYS, lower_of, upper_of
from .attention_backward_tile import tiles_of
from .attention_backward_words import END, bit, uniform
from .jit import jit
from .namespace import cuda, float32, uint32, uint64

THREADS = 384


@functools.cache
def consumer_of(dtype: str, layout: Layout):
    """The device function of a warpgroup that multiplies: tile after tile."""
    D, BQ, STAGES, RING = layout.d, layout.bq, layout.stages, layout.ring
    HALVES, STAGE, SCORES = layout.halves, layout.stage, layout.scores
    Q_AT, RING_AT, STATS_AT = layout.q_at, layout.ring_at, layout.stats_at
    bars = {name: at for name, (at, _, _) in layout.bars().items()}
    FULL, EMPTY = bars["full"], bars["empty"]
    K_FULL, V_FULL, K_EMPTY, V_EMPTY = (bars[f"{x}_{y}"] for y in ("full", "empty") for x in "kv")
    lower, upper = lower_of(BQ), upper_of(BQ)
    next_tile = producers_of(layout).next_tile
    tiles, dq_part = tiles_of(dtype, layout), dq_of(dtype, layout)
    clean, tile_clean, tile_masked = tiles.clean, tiles.plain, tiles.masked
    ready, part_of_dq, deliver = dq_part.ready, dq_part.part_of_dq, dq_part.deliver
    before, behind = dq_part.before, dq_part.behind
    TILE, ROWS = BQ // 2, D // 2  # registers of a tile of scores, of dK or dV
    zeros_d, store_d = ptx.wgmma_zeros(D), ptx.wgmma_store(D)
    wait_q0 = ptx.wgmma_wait(layout.part_columns, 0)
    pack_d = pack_of[dtype]

    @jit(device=True)
    def stage_out(acc, base, w, warp, lane, scale, first):
        """64 rows of dK or dV, rounded, into the parts of the ring that this warpgroup writes."""
        values = cuda.local.array(ROWS, float32)
        store_d(acc, values)
        row = uint32(warp * uint32(16) + (lane & uint32(15)))
        for j in range(D // 16):
            box = first + j // 4
            at = RING_AT + box * (SCORES if BQ == 64 else 8192)
            chunk = uint32(uint32(uint32(2 * (j % 4)) + bit(lane, 4)) ^ uint32(row & uint32(7)))
            ptx.stmatrix_x4(
                base + uint32(at) + w * uint32(BQ * 128) + row * uint32(128) + chunk * uint32(16),
                pack_d(values[8 * j] * scale, values[8 * j + 1] * scale),
                pack_d(values[8 * j + 2] * scale, values[8 * j + 3] * scale),
                pack_d(values[8 * j + 4] * scale, values[8 * j + 5] * scale),
                pack_d(values[8 * j + 6] * scale, values[8 * j + 7] * scale),
            )  # fmt: skip

    @jit(device=True)
    def together(w):
        """A barrier of one warpgroup."""
        if w == uint32(0):
            ptx.barrier_sync(2, 128)
        else:
            ptx.barrier_sync(3, 128)

    @jit(device=True)
    def multiply(
        base, w, map_dk, map_dv, part, dq, dq_t, dq_h, dq_b, heads, kv_heads, group, blocks,
        key_blocks, tq, tk, d, shift, left, right, scale_log2, scale,
    ):  # fmt: skip
        """A warpgroup: 64 of the 128 keys of tile after tile."""
        thread = uint32(uint32(cuda.threadIdx.x) & uint32(127))
        lane, warp = uint32(thread & uint32(31)), uint32(thread >> uint32(5))
        prob = cuda.local.array(TILE, float32)
        grad = cuda.local.array(TILE, float32)
        # dS goes to shared memory transposed: rows are queries, this warpgroup's 64 keys a line
        chunk = uint32(uint32(warp * uint32(2) + bit(lane, 3)) ^ uint32(lane & uint32(7)))
        ds_to = uint32(
            base + uint32(RING_AT) + w * uint32(BQ * 128) + (lane >> uint32(4)) * uint32(1024)
            + (lane & uint32(7)) * uint32(128) + chunk * uint32(16)
        )  # fmt: skip
        stats_first = uint32(base + uint32(STATS_AT) + (lane & uint32(3)) * uint32(8))
        seen = uint32(0)  # tiles so far
        stage, phase = uint32(0), uint32(0)
        step = uint32(
            2 * TURNS * RING
        )  # tiles of scores so far, and a start where all phases are 0
        j, head = next_tile(base, seen, lane == uint32(0))
        j, head = uniform(j), uniform(head)
        while j != uint32(END):
            seen = uint32(seen + uint32(1))
            low = lower(j, shift, right)
            high = min(blocks, upper(j + uint32(1), shift, left))
            after = uint32(head * group + group)
            head = uint32(after - group) if high > low else after
            dk, dv = zeros_d(), zeros_d()
            n, old_n, old_head = high, uint32(END), head
            ptx.bulk_wait_read(0)  # the last dK and dV have left the ring
            together(w)
            ptx.mbarrier_wait(base + uint32(K_FULL), uint32(bit(seen, 0) ^ uint32(1)))
            ptx.mbarrier_wait(base + uint32(V_FULL), uint32(bit(seen, 0) ^ uint32(1)))
            while head < after:
                n = uint32(n - uint32(1))
                q_at = uint32(base + uint32(Q_AT) + uint32(STAGE) * stage)
                stats_at = uint32(stats_first + uint32(8 * BQ) * stage)
                ptx.mbarrier_wait(base + uint32(FULL) + uint32(8) * stage, phase)
                if clean(j, n, w, tk, shift, left, right):
                    dk, dv = tile_clean(
                        dk, dv, prob, grad, base, w, thread, ds_to, q_at, stats_at, step, j, n,
                        old_n, old_head, part, dq, dq_t, dq_h, dq_b, heads, blocks, key_blocks,
                        tq, tk, d, shift, left, right, scale_log2, scale,
                    )  # fmt: skip
                else:
                    dk, dv = tile_masked(
                        dk, dv, prob, grad, base, w, thread, ds_to, q_at, stats_at, step, j, n,
                        old_n, old_head, part, dq, dq_t, dq_h, dq_b, heads, blocks, key_blocks,
                        tq, tk, d, shift, left, right, scale_log2, scale,
                    )  # fmt: skip
                if lane == uint32(0):
                    ptx.mbarrier_arrive(base + uint32(EMPTY) + uint32(8) * stage)
                stage = uint32(stage + uint32(1))
                if stage == uint32(STAGES):
                    stage, phase = uint32(0), uint32(phase ^ uint32(1))
                step = uint32(step + uint32(1))
                old_n, old_head = n, head
                if n == low:
                    n, head = high, uint32(head + uint32(1))
            if lane == uint32(0):
                ptx.mbarrier_arrive(base + uint32(V_EMPTY))
            if old_n != uint32(END):
                acc = part_of_dq(base, w, ready(base, step - uint32(1)))
                acc = wait_q0(acc)
                before(base, lane, step - uint32(1))
                deliver(
                    acc, w, thread, j, old_n, old_head, heads, blocks, key_blocks, part, dq,
                    dq_t, dq_h, dq_b, tq, d, shift, left, right, scale,
                )  # fmt: skip
                behind(base, lane, step - uint32(1))
            if lane == uint32(0):
                ptx.mbarrier_arrive(base + uint32(K_EMPTY))
            ptx.barrier_sync(1, 256)  # both have read all of the ring
            stage_out(dv, base, w, warp, lane, float32(1), 0)
            stage_out(dk, base, w, warp, lane, scale, HALVES)
            ptx.fence_proxy_async_shared()
            together(w)
            if thread == uint32(0):
                at = uint32(base + uint32(RING_AT) + w * uint32(BQ * 128))
                head = uint32(uint32(after // group) - uint32(1))
                b = uint32(head // kv_heads)
                for k in range(2 * HALVES):
                    ptx.tma_store_4d(
                        map_dv if k < HALVES else map_dk, 64 * (k % HALVES),
                        j * uint32(KEYS) + w * uint32(64), head - b * kv_heads, b,
                        at + uint32(k * (SCORES if BQ == 64 else 8192)),
                    )  # fmt: skip
                ptx.bulk_commit()
            j, head = next_tile(base, seen, lane == uint32(0))
            j, head = uniform(j), uniform(head)
        ptx.bulk_wait(0)

    return multiply


@functools.cache
def backward_kernel(dtype: str, layout: Layout):
    """The kernel; its grid is as many blocks as run at a time, or fewer."""
    producers, multiply = producers_of(layout), consumer_of(dtype, layout)
    load_keys, load_queries = producers.load_keys, producers.load_queries
    take_turns = producers.take_turns
    STAGES, RING, ORDERED = layout.stages, layout.ring, layout.ordered
    PRODUCER, CONSUMER = layout.producer, layout.consumer
    # barriers by the arrivals of a phase: one thread, the 8 warps that multiply, a tile's readers
    bars = {name: at for name, (at, _, _) in layout.bars().items()}
    FULL, EMPTY, TILE_EMPTY = bars["full"], bars["empty"], bars["tile_empty"]
    SINGLE, WARPS = STAGES + 4 + 2 * TURNS, STAGES + 2 + TURNS + 2 * RING
    READERS = 11 if ORDERED else 9

    @jit(pointers=True, launch_bounds=(THREADS, 1))
    def attention_backward(
        map_q: "uint64", map_k: "uint64", map_v: "uint64", map_do: "uint64", map_dk: "uint64",
        map_dv: "uint64", stats: "float32", part: "float32", counters: "uint32", dq: dtype,
        dq_t: "uint32", dq_h: "uint32", dq_b: "uint64", heads: "uint32", kv_heads: "uint32",
        group: "uint32", blocks: "uint32", key_blocks: "uint32", tiles: "uint32", width: "uint32",
        tq: "uint32", tk: "uint32", d: "uint32", left: "uint32", right: "uint32",
        scale_log2: "float32", scale: "float32",
    ):  # fmt: skip
        memory = cuda.shared.array(0, uint32)
        base = uint32(uint32(ptx.shared_address(memory) + uint32(1023)) & uint32(0xFFFFFC00))
        thread = uint32(cuda.threadIdx.x)
        shift = uint32(tk - tq)
        if thread == uint32(0):
            for k in range(SINGLE):
                ptx.mbarrier_init(base + uint32(FULL + 8 * k), 1)
            for k in range(WARPS):
                ptx.mbarrier_init(base + uint32(EMPTY + 8 * k), 8)
            for k in range(2):
                ptx.mbarrier_init(base + uint32(TILE_EMPTY + 8 * k), READERS)
            ptx.fence_mbarrier_init()
        cuda.syncthreads()
        if thread < uint32(128):
            ptx.setmaxnreg_dec(PRODUCER)
            if thread == uint32(0):
                load_queries(
                    base, map_q, map_do, stats, heads, kv_heads, group, blocks, shift, left, right
                )
            if thread == uint32(96):
                load_keys(base, map_k, map_v, counters, kv_heads, key_blocks, tiles, width)
            if ORDERED:
                if thread == uint32(32):
                    take_turns(base, True, counters, group, blocks, shift, left, right)
                if thread == uint32(64):
                    take_turns(base, False, counters, group, blocks, shift, left, right)
        else:
            ptx.setmaxnreg_inc(CONSUMER)
            w = uniform(uint32((thread >> uint32(7)) - uint32(1)))
            multiply(
                base, w, map_dk, map_dv, part, dq, dq_t,
                dq_h, dq_b, heads, kv_heads, group, blocks, key_blocks, tq, tk, d, shift, left,
                right, scale_log2, scale,
            )  # fmt: skip

    return attention_backward
