"""The multiplying warpgroups of the Hopper attention kernel: 64 queries each, all keys they see.

For a tile of queries, with its tiles of keys 0, 1, 2, … from the last to the first:

    tensor cores     Q K₀ᵀ           Q K₁ᵀ  P₀ V₀           Q K₂ᵀ  P₁ V₁           P₂ V₂
    the threads               P₀ = …         P₁ = …                  P₂ = …                o / l
                                             └ while P₀ V₀ runs      └ while P₁ V₁ runs

Q K₁ᵀ is asked for before P₀ V₀, so that the softmax of S₁ has something to run under
(FlashAttention-3, section 3.2); the other warpgroups fill what remains. What the assembler needs to
leave it so: P stays float32 in the registers of S until P V of the one before has been waited for,
then it is packed, into registers that the fence finds in place (`pin`); and the exponentials have
to be complete at a branch before that wait, or they are put off until after it.

Queries see different keys: a warpgroup skips tiles of keys that only the others' queries see, and
masks only where not all its queries see all keys of the tile.
"""

import functools

from . import ptx
from .attention_hopper_copies import ring
from .attention_hopper_plan import END, Plan
from .attention_hopper_softmax import mask_of, quad_sum, rescale_of, softmax_of
from .attention_parts import barrier_arrive_any, fmax, pack_fragments
from .attention_tiles import GROUP as ROWS
from .attention_tiles import end_key, end_tile, first_key, first_tile
from .jit import jit
from .namespace import cuda, float32, uint32, uint64
from .warp import LANES

# Named barriers, of warpgroup 0: its turn to begin products, and where its four warps meet.
TURN, TOGETHER = 1, 5


@jit(device=True)
def arrive(bar):
    """One arrival of the warp."""
    if uint32(cuda.threadIdx.x) & uint32(31) == uint32(0):
        ptx.mbarrier_arrive(bar)


@functools.cache
def scores_of(dtype: str, plan: Plan):
    """s = scores(s, queries, keys): S = Q Kᵀ is asked for, a group of its own."""
    low = min(plan.width, 64)
    high = plan.width - low
    first = ptx.wgmma(plan.keys, dtype, k_steps=low // 16)
    second = ptx.wgmma(plan.keys, dtype, k_steps=max(high, 16) // 16)
    QUERY_PART, KEY_PART = plan.query_part >> 4, plan.key_part >> 4  # as descriptors count

    @jit(device=True)
    def scores(s, queries, keys):
        s = first(s, queries, keys, False)
        if high:
            s = second(s, queries + uint64(QUERY_PART), keys + uint64(KEY_PART), True)
        ptx.wgmma_commit()
        return s

    return scores


@functools.cache
def tiles_of(plan: Plan):
    keys = plan.keys

    @jit(device=True)
    def tiles(start, groups, worker, queries, length, behind, ahead):
        """Tiles of keys, from the last to the first: of the block from n to n_begin, of the
        warpgroup from n_end to n_last; ends are not included."""
        offset = uint32(length - queries)
        last = uint32(min(uint32(start + uint32(ROWS) * groups), queries) - uint32(1))
        n = end_tile(uint32(last + offset), ahead, length, keys)
        n_begin = first_tile(uint32(start + offset), behind, keys)
        if worker >= groups:  # no query at all: one tile of keys, and nothing of it is stored
            return n, uint32(n_begin + uint32(1)), n_begin, n_begin
        first = uint32(start + uint32(ROWS) * worker + offset)
        last = uint32(min(uint32(first + uint32(ROWS - 1)), uint32(length - uint32(1))))
        return n, end_tile(last, ahead, length, keys), first_tile(first, behind, keys), n_begin

    return tiles


@functools.cache
def skipper(plan: Plan):
    K_FULL, K_EMPTY, V_FULL, V_EMPTY = plan.stage_barriers()
    turns, next_stage = plan.turns, ring(plan.stages)

    @jit(device=True)
    def skip(base, n, until, stage, phase, mine, others):
        """Give back tiles of keys that this warpgroup's queries do not see, down to `until`."""
        while n > until:
            n = uint32(n - uint32(1))
            step = uint32(base + uint32(8) * stage)
            ptx.mbarrier_wait(uint32(step + uint32(K_FULL)), phase)
            if turns:
                ptx.barrier_sync_any(mine, 256)
                barrier_arrive_any(others, 256)
            ptx.mbarrier_wait(uint32(step + uint32(V_FULL)), phase)
            arrive(uint32(step + uint32(K_EMPTY)))
            arrive(uint32(step + uint32(V_EMPTY)))
            stage, phase = next_stage(stage, phase)
        return stage, phase

    return skip


@functools.cache
def writer(dtype: str, plan: Plan):
    """The end of a tile: o / l into the slot, lse into memory."""
    width, QUERY_PART = plan.width, plan.query_part
    pack, rescale = pack_fragments(width // 2, dtype), rescale_of(width)

    @jit(device=True)
    def write(place, output, l0, l1, line):
        """place: the slot; line: the first of the warp's sixteen rows in it."""
        lane = uint32(uint32(cuda.threadIdx.x) & uint32(31))
        rescale(
            output,
            ptx.rcp(l0) if l0 != float32(0) else float32(0),
            ptx.rcp(l1) if l1 != float32(0) else float32(0),
        )
        words = pack(output)
        line = uint32(line + uint32(lane & uint32(15)))
        place = uint32(place + uint32(128) * line)
        for j in range(width // 16):
            piece = uint32(uint32((2 * j) % 8) + (lane >> uint32(4)))
            piece = uint32(piece ^ (lane & uint32(7)))  # the swizzle
            ptx.stmatrix_x4(
                uint32(place + uint32((j // 4) * QUERY_PART) + (piece << uint32(4))),
                words[4 * j], words[4 * j + 1], words[4 * j + 2], words[4 * j + 3],
            )  # fmt: skip
        ptx.fence_proxy_async_shared()
        cuda.syncwarp()

    return write


@functools.cache
def multiplier(dtype: str, plan: Plan):
    width, keys, consumers = plan.width, plan.keys, plan.consumers
    turns, NS, NO = plan.turns, plan.keys // 2, plan.width // 2
    QUERIES, KEYS, KEY_PART = plan.query_bytes, plan.key_bytes, plan.key_part
    KEYS_AT, VALUES_AT, TILES_AT = plan.keys_at, plan.values_at, plan.tiles_at
    FULL, _, DONE = plan.slot_barriers()
    K_FULL, K_EMPTY, V_FULL, V_EMPTY = plan.stage_barriers()
    pv = ptx.wgmma(width, dtype, a="registers", k_steps=keys // 16, transpose_b=True)
    load_s, store_s = ptx.wgmma_load(keys), ptx.wgmma_store(keys)
    load_o, store_o = ptx.wgmma_load(width), ptx.wgmma_store(width)
    zeros_s, zeros_o = ptx.wgmma_zeros(keys), ptx.wgmma_zeros(width)
    wait_s0, wait_s1 = ptx.wgmma_wait(keys, 0), ptx.wgmma_wait(keys, 1)
    wait_o = ptx.wgmma_wait(width, 0)
    pack, pin = pack_fragments(keys // 2, dtype), ptx.pin(keys // 4)
    scores, write = scores_of(dtype, plan), writer(dtype, plan)
    tiles, skip = tiles_of(plan), skipper(plan)
    mask, (begin, go_on) = mask_of(keys), softmax_of(keys)
    rescale = rescale_of(width)
    next_stage, next_slot = ring(plan.stages), ring(2)

    @jit(device=True)
    def multiply_all(base, lse, heads, queries, length, behind, ahead, scale):
        stage, phase, slot, turn = uint32(0), uint32(0), uint32(0), uint32(0)
        offset = uint32(length - queries)
        lane = uint32(uint32(cuda.threadIdx.x) & uint32(31))
        warp = uint32((uint32(cuda.threadIdx.x) >> uint32(5)) & uint32(3))
        worker = uint32((uint32(cuda.threadIdx.x) >> uint32(7)) - uint32(1))
        mine, others = uint32(worker + uint32(TURN)), uint32(worker + uint32(TURN + 1))
        if worker == uint32(consumers - 1):
            others = uint32(TURN)
            if turns:
                barrier_arrive_any(others, 256)
        values, output = cuda.local.array(NS, float32), cuda.local.array(NO, float32)
        ptx.mbarrier_wait(uint32(base + uint32(FULL)), 0)
        start, head, batch, groups = ptx.load_shared_128_at(uint32(base + uint32(TILES_AT)))
        while start != uint32(END):
            # ---- which keys: of the whole tile, of this warpgroup's queries, of this thread's two
            top = uint32(start + uint32(ROWS) * worker)
            n, n_end, n_last, n_begin = tiles(start, groups, worker, queries, length, behind, ahead)
            first = uint32(top + offset)
            last = uint32(min(uint32(first + uint32(ROWS - 1)), uint32(length - uint32(1))))
            inner_first, inner_end = first_key(last, behind), end_key(first, ahead, length)
            first = uint32(first + uint32(16) * warp + (lane >> uint32(2)))
            first0, first1 = first_key(first, behind), first_key(first + uint32(8), behind)
            seen0 = uint32(end_key(first, ahead, length) - first0)
            seen1 = uint32(end_key(first + uint32(8), ahead, length) - first1)
            stage, phase = skip(base, n, n_end, stage, phase, mine, others)

            # ---- the first tile of keys
            n = uint32(min(n, n_end) - uint32(1))
            step, place = uint32(base + uint32(8) * stage), uint32(base + uint32(KEYS) * stage)
            q = uint32(base + uint32(QUERIES) * slot + uint32(ROWS * 128) * worker)
            dq = ptx.wgmma_descriptor(q, 0, 1024, 128)
            s, o = zeros_s(), zeros_o()
            ptx.mbarrier_wait(uint32(step + uint32(K_FULL)), phase)
            if turns:
                ptx.barrier_sync_any(mine, 256)
            ptx.wgmma_fence()
            s = scores(s, dq, ptx.wgmma_descriptor(place + uint32(KEYS_AT), 0, 1024, 128))
            if turns:
                barrier_arrive_any(others, 256)
            s = wait_s0(s)
            arrive(uint32(step + uint32(K_EMPTY)))
            store_s(s, values)
            mask(values, n, inner_first, inner_end, first0, seen0, first1, seen1)
            m0, m1, l0, l1 = begin(values, scale)
            ptx.mbarrier_wait(uint32(step + uint32(V_FULL)), phase)
            p = pin(pack(values))

            # ---- the others: Q Kᵀ of this one, P V of the one before
            while n > n_last:
                n = uint32(n - uint32(1))
                v, before = uint32(place + uint32(VALUES_AT)), uint32(step + uint32(V_EMPTY))
                stage, phase = next_stage(stage, phase)
                step = uint32(base + uint32(8) * stage)
                place = uint32(base + uint32(KEYS) * stage)
                s = load_s(values)
                ptx.mbarrier_wait(uint32(step + uint32(K_FULL)), phase)
                if turns:
                    ptx.barrier_sync_any(mine, 256)
                ptx.wgmma_fence()
                s = scores(s, dq, ptx.wgmma_descriptor(place + uint32(KEYS_AT), 0, 1024, 128))
                o = pv(o, p, ptx.wgmma_descriptor(v, KEY_PART, 1024, 128), True)
                ptx.wgmma_commit()
                if turns:
                    barrier_arrive_any(others, 256)
                s = wait_s1(s)
                arrive(uint32(step + uint32(K_EMPTY)))
                store_s(s, values)
                mask(values, n, inner_first, inner_end, first0, seen0, first1, seen1)
                m0, m1, l0, l1, c0, c1, rises = go_on(values, scale, m0, m1, l0, l1)
                # The branch: the phase is as it was, for no sum of exponentials is negative.
                sign = uint32(ptx.bits(fmax(l0 + l1, float32(0))) >> uint32(31))
                ptx.mbarrier_wait(uint32(step + uint32(V_FULL)), phase | sign)
                o = wait_o(o)
                arrive(before)
                p = pin(pack(values))
                if cuda.any_sync(LANES, rises):
                    store_o(o, output)
                    rescale(output, c0, c1)
                    o = load_o(output)

            # ---- the last P V
            ptx.wgmma_fence()
            v = ptx.wgmma_descriptor(place + uint32(VALUES_AT), KEY_PART, 1024, 128)
            o = pv(o, p, v, True)
            ptx.wgmma_commit()
            l0, l1 = quad_sum(l0), quad_sum(l1)
            o = wait_o(o)
            arrive(uint32(step + uint32(V_EMPTY)))
            stage, phase = next_stage(stage, phase)
            stage, phase = skip(base, n, n_begin, stage, phase, mine, others)

            # ---- into the slot, where all four warps are done with the queries
            ptx.barrier_sync_any(uint32(worker + uint32(TOGETHER)), 128)
            store_o(o, output)
            line = uint32(uint32(16) * warp + uint32(ROWS) * worker)
            write(uint32(base + uint32(QUERIES) * slot), output, l0, l1, line)
            arrive(uint32(base + uint32(DONE) + uint32(8) * slot))
            if lane & uint32(3) == uint32(0) and worker < groups:
                row = uint32(top + uint32(16) * warp + (lane >> uint32(2)))
                out = uint64(uint64(batch * heads + head) * uint64(queries)) + uint64(row)
                if row < queries:
                    lse[out] = ptx.fma(m0, scale, ptx.lg2(l0))
                if uint32(row + uint32(8)) < queries:
                    lse[out + uint64(8)] = ptx.fma(m1, scale, ptx.lg2(l1))
            slot, turn = next_slot(slot, turn)
            ptx.mbarrier_wait(uint32(base + uint32(FULL) + uint32(8) * slot), turn)
            info = uint32(base + uint32(TILES_AT) + uint32(16) * slot)
            start, head, batch, groups = ptx.load_shared_128_at(info)

    return multiply_all
