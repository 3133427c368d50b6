"""The producer warpgroup of the backward kernel: four threads, each with a task of its own.

    warp 0   load_queries   Q, dO, lse and D of block of queries after block, `stages` ahead
    warp 1   take_turns     waits until it is this block's turn to add to dQ, and grants it
    warp 2   take_turns     tells the next block of keys that this one has added
    warp 3   load_keys      takes tickets, tells the others the tile, brings K and V

    consumers   ── done ──▶  warp 2  ── counter in global memory ──▶  another block's warp 1
                ◀─ allow ──  warp 1  ◀────────── passed ───────────  warp 2

So neither the latency of the counters nor the fence before them is ever waited for by the threads
that multiply. A tile's numbers lie in two slots: a ticket is taken, and K and V are asked for,
while the tile before is still worked on. What a thread counts (tiles, stages, turns) gives the
place in a ring and the phase to wait for.
"""

import functools
from types import SimpleNamespace

from . import ptx
from .attention_backward_layout import TURNS, Layout
from .attention_backward_schedule import KEYS, lower_of, upper_of
from .attention_backward_words import END, bit
from .jit import jit
from .namespace import uint32, uint64


@functools.cache
def producers_of(layout: Layout) -> SimpleNamespace:
    """The device functions of the producer warpgroup, and `next_tile`, which all roles use."""
    BQ, STAGES, HALVES = layout.bq, layout.stages, layout.halves
    KSZ, QSZ, STAGE = layout.keys, layout.queries, layout.stage
    Q_AT, STATS_AT, TILE_AT = layout.q_at, layout.stats_at, layout.tile_at
    bars = {name: at for name, (at, _, _) in layout.bars().items()}
    FULL, EMPTY = bars["full"], bars["empty"]
    K_FULL, V_FULL, K_EMPTY, V_EMPTY = (bars[f"{x}_{y}"] for y in ("full", "empty") for x in "kv")
    TILE_FULL, TILE_EMPTY = bars["tile_full"], bars["tile_empty"]
    ALLOW, DONE, PASSED = bars["allow"], bars["done"], bars["passed"]
    ROUND = TURNS.bit_length() - 1
    PAIRED, MASK = layout.paired, 0xFFFFFFFE if layout.paired else 0xFFFFFFFF
    lower, upper = lower_of(BQ), upper_of(BQ)

    @jit(device=True)
    def load_block(at, map, column_step, row, h, b, bar):
        for k in range(HALVES):
            ptx.tma_load_4d(at + uint32(column_step * k), map, 64 * k, row, h, b, bar)

    @jit(device=True)
    def next_tile(base, seen, telling):
        """Block of keys and head of the next tile, the same for all lanes: END at the end."""
        at = uint32(base + uint32(8) * bit(seen, 0))
        ptx.mbarrier_wait(at + uint32(TILE_FULL), bit(seen, 1))
        j, head = ptx.load_shared_64_at(at + uint32(TILE_AT))
        if telling:
            ptx.mbarrier_arrive(at + uint32(TILE_EMPTY))
        return j, head

    @jit(device=True)
    def load_keys(base, map_k, map_v, counters, kv_heads, key_blocks, tiles, width):
        """One thread takes tickets, tells the others, and brings K and V."""
        seen = uint32(0)
        going = True
        while going:
            ticket = ptx.atomic_add(counters, 0, uint32(1))
            at = uint32(base + uint32(8) * bit(seen, 0))
            ptx.mbarrier_wait(at + uint32(TILE_EMPTY), uint32(bit(seen, 1) ^ uint32(1)))
            going = ticket < tiles
            first, rest = uint32(ticket // uint32(width * key_blocks)), width
            ticket = uint32(ticket - first * uint32(width * key_blocks))
            first = uint32(first * width)
            if uint32(first + width) * key_blocks > tiles:
                rest = uint32(uint32(tiles // key_blocks) - first)
            j = uint32(ticket // rest)
            head = uint32(first + uint32(ticket - j * rest))
            ptx.store_shared_64_at(at + uint32(TILE_AT), j if going else uint32(END), head)
            ptx.mbarrier_arrive(at + uint32(TILE_FULL))
            seen = uint32(seen + uint32(1))
            if going:
                b = uint32(head // kv_heads)
                h = uint32(head - b * kv_heads)
                j = uint32(j * uint32(KEYS))
                ptx.mbarrier_wait(base + uint32(K_EMPTY), bit(seen, 0))
                ptx.mbarrier_arrive_expect_tx(base + uint32(K_FULL), uint32(KSZ))
                load_block(base, map_k, KEYS * 128, j, h, b, base + uint32(K_FULL))
                ptx.mbarrier_wait(base + uint32(V_EMPTY), bit(seen, 0))
                ptx.mbarrier_arrive_expect_tx(base + uint32(V_FULL), uint32(KSZ))
                load_block(base + uint32(KSZ), map_v, KEYS * 128, j, h, b, base + uint32(V_FULL))

    @jit(device=True)
    def load_queries(
        base, map_q, map_do, stats, heads, kv_heads, group, blocks, shift, left, right
    ):
        """One thread brings Q, dO and their numbers, as far ahead as there are stages."""
        seen = uint32(0)
        stage, phase = uint32(0), uint32(1)
        j, head = next_tile(base, seen, True)
        while j != uint32(END):
            seen = uint32(seen + uint32(1))
            low = lower(j, shift, right)
            high = min(blocks, upper(j + uint32(1), shift, left))
            b = uint32(head // kv_heads)
            h = uint32(uint32(head - b * kv_heads) * group)
            after = uint32(h + group) if high > low else h
            n = high
            while h < after:
                n = uint32(n - uint32(1))
                bar = uint32(base + uint32(FULL) + uint32(8) * stage)
                ptx.mbarrier_wait(base + uint32(EMPTY) + uint32(8) * stage, phase)
                ptx.mbarrier_arrive_expect_tx(bar, uint32(STAGE + 8 * BQ))
                at = uint32(base + uint32(Q_AT) + uint32(STAGE) * stage)
                load_block(at, map_q, BQ * 128, n * uint32(BQ), h, b, bar)
                block = uint64(uint32(uint32(b * heads + h) * blocks + n))
                ptx.bulk_load(
                    base + uint32(STATS_AT) + uint32(8 * BQ) * stage,
                    ptx.global_address(stats) + block * uint64(8 * BQ), uint32(8 * BQ), bar,
                )  # fmt: skip
                load_block(at + uint32(QSZ), map_do, BQ * 128, n * uint32(BQ), h, b, bar)
                stage = uint32(stage + uint32(1))
                if stage == uint32(STAGES):
                    stage, phase = uint32(0), uint32(phase ^ uint32(1))
                if n == low:
                    n, h = high, uint32(h + uint32(1))
            j, head = next_tile(base, seen, True)

    @jit(device=True)
    def take_turns(
        base, granting, counters, group, blocks, shift, left, right
    ):  # fmt: skip
        """One thread waits for the turns of this block's parts of dQ, or passes them on."""
        seen, turn = uint32(0), uint32(0)
        j, head = next_tile(base, seen, True)
        while j != uint32(END):
            seen = uint32(seen + uint32(1))
            low = lower(j, shift, right)
            high = min(blocks, upper(j + uint32(1), shift, left))
            h = uint32(head * group)
            after = uint32(h + group) if high > low else h
            n = high
            while h < after:
                n = uint32(n - uint32(1))
                at = uint32(base + uint32(8) * uint32(turn & uint32(TURNS - 1)))
                m = uint32(n & uint32(MASK))  # the block of queries whose counter it is
                place = uint64(uint32(h * blocks + m) + uint32(1))
                if granting:
                    # passed on, not only done: the other thread must not miss a phase of `done`
                    ptx.mbarrier_wait(at + uint32(PASSED), uint32(bit(turn, ROUND) ^ uint32(1)))
                    start, mine = uint32(m * uint32(BQ) + shift), j
                    if start > left:
                        mine = uint32(j - uint32(uint32(start - left) // uint32(KEYS)))
                    if not PAIRED or bit(n, 0) == uint32(1) or uint32(n + uint32(1)) == high:
                        while ptx.load_acquire(counters, place) != mine:
                            pass
                    ptx.mbarrier_arrive(at + uint32(ALLOW))
                else:
                    ptx.mbarrier_wait(at + uint32(DONE), bit(turn, ROUND))
                    ptx.mbarrier_arrive(at + uint32(PASSED))
                    if not PAIRED or bit(n, 0) == uint32(0) or n == low:
                        ptx.reduce_add_release(counters, place, uint32(1))
                turn = uint32(turn + uint32(1))
                if n == low:
                    n, h = high, uint32(h + uint32(1))
            j, head = next_tile(base, seen, True)

    return SimpleNamespace(
        next_tile=next_tile, load_keys=load_keys, load_queries=load_queries, take_turns=take_turns
    )
