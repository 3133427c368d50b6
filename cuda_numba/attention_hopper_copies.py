"""The copying warps of the Hopper attention kernel: one thread loads, another stores.

    loads    for every tile of the block's list: its queries into a slot, when that is empty, then
             the tiles of keys and values that they read, from the last to the first, each into the
             next stage that is empty
    stores   a slot's outputs when they are done; then the slot is empty

Queries beyond Tq and keys beyond Tk arrive as zeros, and rows beyond Tq are not stored: TMA knows
the tensors. The last slot says END.
"""

import functools

from . import ptx
from .attention_hopper_plan import END, Plan
from .attention_tiles import GROUP, end_tile, first_tile, tile_of
from .jit import jit
from .namespace import cuda, uint32


@functools.cache
def ring(stages: int):
    """What a kernel calls as stage, phase = after(stage, phase): the next stage of a ring, and the
    parity of its barriers' phases, which changes after the last."""

    @jit(device=True)
    def after(stage, phase):
        stage = uint32(stage + uint32(1))
        if stage == uint32(stages):
            return uint32(0), uint32(phase ^ uint32(1))
        return stage, phase

    return after


@functools.cache
def tile_loader(plan: Plan):
    """load(place, map, row, head, batch, bar, …): the parts of a tile, into shared memory."""
    parts = plan.parts

    @jit(device=True)
    def load_parts(place, part, map, row, head, batch, bar):
        for h in range(parts):
            ptx.tma_load_4d(
                uint32(place + uint32(uint32(h) * part)), map, 64 * h, row, head, batch, bar
            )

    return load_parts


@functools.cache
def loader(plan: Plan):
    keys, consumers, stages = plan.keys, plan.consumers, plan.stages
    QUERIES, KEYS = plan.query_bytes, plan.key_bytes
    QUERY_PART, KEY_PART = plan.query_part, plan.key_part
    FULL, EMPTY, _ = plan.slot_barriers()
    K_FULL, K_EMPTY, V_FULL, V_EMPTY = plan.stage_barriers()
    KEYS_AT, VALUES_AT, TILES_AT = plan.keys_at, plan.values_at, plan.tiles_at
    load_parts, next_stage, next_slot = tile_loader(plan), ring(stages), ring(2)

    @jit(device=True)
    def fill(place, map, key, head, batch, full, empty, phase):
        """A tile of keys or values into its stage."""
        ptx.mbarrier_wait(empty, uint32(phase ^ uint32(1)))
        ptx.mbarrier_arrive_expect_tx(full, KEYS)
        load_parts(place, uint32(KEY_PART), map, key, head, batch, full)

    @jit(device=True)
    def load_all(base, q_map, k_map, v_map, order, heads, group, batch_heads, queries, length,
                 behind, ahead):  # fmt: skip
        stage, phase, slot, turn = uint32(0), uint32(0), uint32(0), uint32(0)
        offset = uint32(length - queries)
        at, end = uint32(order[cuda.blockIdx.x]), uint32(order[cuda.blockIdx.x + 1])
        tile = uint32(order[at])
        while at < end:
            row = uint32(tile // batch_heads)
            index = uint32(tile - uint32(row * batch_heads))
            at = uint32(at + uint32(1))
            if at < end:
                tile = uint32(order[at])  # on its way while this one's keys are loaded
            batch = uint32(index // heads)
            head = uint32(index - uint32(batch * heads))
            key_head = uint32(head // group)
            start, groups = tile_of(row, queries, consumers)
            last = uint32(min(uint32(start + uint32(GROUP) * groups), queries) - uint32(1))
            n = end_tile(uint32(last + offset), ahead, length, keys)
            n_begin = first_tile(uint32(start + offset), behind, keys)

            bar = uint32(base + uint32(FULL) + uint32(8) * slot)
            ptx.mbarrier_wait(uint32(base + uint32(EMPTY) + uint32(8) * slot), turn ^ uint32(1))
            info = uint32(base + uint32(TILES_AT) + uint32(16) * slot)
            ptx.store_shared_128_at(info, start, head, batch, groups)
            ptx.mbarrier_arrive_expect_tx(bar, QUERIES)
            place = uint32(base + uint32(QUERIES) * slot)
            load_parts(place, uint32(QUERY_PART), q_map, start, head, batch, bar)
            while n > n_begin:
                n = uint32(n - uint32(1))
                key, step = uint32(n * uint32(keys)), uint32(base + uint32(8) * stage)
                place = uint32(base + uint32(KEYS) * stage)
                fill(
                    uint32(place + uint32(KEYS_AT)), k_map, key, key_head, batch,
                    uint32(step + uint32(K_FULL)), uint32(step + uint32(K_EMPTY)), phase,
                )  # fmt: skip
                fill(
                    uint32(place + uint32(VALUES_AT)), v_map, key, key_head, batch,
                    uint32(step + uint32(V_FULL)), uint32(step + uint32(V_EMPTY)), phase,
                )  # fmt: skip
                stage, phase = next_stage(stage, phase)
            slot, turn = next_slot(slot, turn)
        ptx.mbarrier_wait(uint32(base + uint32(EMPTY) + uint32(8) * slot), turn ^ uint32(1))
        info = uint32(base + uint32(TILES_AT) + uint32(16) * slot)
        ptx.store_shared_128_at(info, END, 0, 0, 0)
        ptx.mbarrier_arrive(uint32(base + uint32(FULL) + uint32(8) * slot))

    return load_all


@functools.cache
def storer(plan: Plan):
    QUERIES, QUERY_PART, parts = plan.query_bytes, plan.query_part, plan.parts
    FULL, EMPTY, DONE = plan.slot_barriers()
    TILES_AT, GROUP_BYTES = plan.tiles_at, 128 * GROUP
    next_slot = ring(2)

    @jit(device=True)
    def store_all(base, o_map):
        slot, turn = uint32(0), uint32(0)
        ptx.mbarrier_wait(uint32(base + uint32(FULL)), 0)
        start, head, batch, groups = ptx.load_shared_128_at(uint32(base + uint32(TILES_AT)))
        while start != uint32(END):
            ptx.mbarrier_wait(uint32(base + uint32(DONE) + uint32(8) * slot), turn)
            place = uint32(base + uint32(QUERIES) * slot)
            while groups > uint32(0):
                groups = uint32(groups - uint32(1))
                row, at = (
                    uint32(start + uint32(GROUP) * groups),
                    place + uint32(GROUP_BYTES) * groups,
                )
                for h in range(parts):
                    ptx.tma_store_4d(
                        o_map, 64 * h, row, head, batch, uint32(at + uint32(h * QUERY_PART))
                    )
            ptx.bulk_commit()
            ptx.bulk_wait_read(0)
            ptx.mbarrier_arrive(uint32(base + uint32(EMPTY) + uint32(8) * slot))
            slot, turn = next_slot(slot, turn)
            ptx.mbarrier_wait(uint32(base + uint32(FULL) + uint32(8) * slot), turn)
            info = uint32(base + uint32(TILES_AT) + uint32(16) * slot)
            start, head, batch, groups = ptx.load_shared_128_at(info)
        ptx.bulk_wait(0)

    return store_all
