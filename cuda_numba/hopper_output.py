"""How a consumer writes its 64 rows of a tile: chunk by chunk, through the epilogue, by TMA or not.

    for each chunk of 64 columns:
        take 32 accumulators a thread → epilogue → round → slot of the staging ring → TMA store

        slot 0   |chunk 0|        |chunk 2|          a slot is written again when the copy engine
        slot 1           |chunk 1|        |chunk 3|  has read it: bulk_wait_read(slots − 1)

A matrix that is read beside (a residual, the argument of a slope) has come into the same slots by
TMA while the products ran; each warp reads its 16 rows from there and writes its own over them.

float32 leaves in slots of 32 columns, and can be added to what is in memory on its way. Rows that
TMA cannot take are written from registers: a quad of lanes has 8 columns of a row.
"""

import functools

from . import ptx
from .hopper_epilogue import (
    SUMS,
    add_bias,
    added,
    mapped,
    sloped,
    thread_column_sums,
    warp_column_sums,
)
from .hopper_fragments import (
    HELD,
    chunk_load,
    chunk_of,
    chunk_store,
    halves,
    meet,
    put_wide,
    staged_row,
)
from .hopper_tile import CHUNK_BYTES, Kind, Tile
from .jit import jit
from .namespace import cuda, float32, uint32, uint64


@functools.cache
def direct_store(out: str, pairs: bool, accumulate: bool):
    """The device function (values, c, start, rows, column, columns, pitch): a chunk from registers.

    start: the index in c of this thread's first element; rows: how many rows there are from its
    first on; column: of its first element.
    """
    WIDE = out == "float32"
    pack, _ = (None, None) if WIDE else halves(out)

    @jit(device=True)
    def two(c, at, low, high):
        if WIDE:
            if accumulate:
                ptx.reduce_add_f32x2(c, at, low, high)  # one sum for each element: no order
            else:
                ptx.store_64(c, at, ptx.bits(low), ptx.bits(high))
        else:
            ptx.store_32(c, at, pack(low, high))

    @jit(device=True)
    def one(c, at, value):
        if accumulate:
            ptx.reduce_add(c, at, value)
        else:
            ptx.store(c, at, value)

    @jit(device=True)
    def store(values, c, start, rows, column, columns, pitch):
        for h in range(2):
            if uint32(8 * h) < rows:
                for j in range(8):
                    at = start + uint64(8 * h) * uint64(pitch) + uint64(8 * j)
                    if pairs:
                        if uint32(column + uint32(8 * j)) < columns:
                            two(c, at, values[4 * j + 2 * h], values[4 * j + 2 * h + 1])
                    else:
                        for i in range(2):
                            if uint32(column + uint32(8 * j + i)) < columns:
                                one(c, at + uint64(i), values[4 * j + 2 * h + i])

    return store


@functools.cache
def output(kind: Kind, tile: Tile):
    """The device functions (write, fetch) of a kernel: see there."""
    n, _, SLOTS, TURNS, _ = tile
    HALVES = 2 if TURNS else 1  # of 64 rows, that a group writes
    dtype, out, _, _, how, epilogue = kind[:6]
    CHUNKS, STAGING = tile.chunks, tile.staging
    BARRIERS = tile.barriers
    TMA, BIAS, PRE = how == "tma", epilogue.bias is not None, epilogue.keep_pre
    WIDE, ACCUMULATE = out == "float32", epilogue.accumulate
    ACTIVATED, SLOPED = epilogue.activation is not None, epilogue.slope is not None
    BESIDE, SUMMED = epilogue.beside, epilogue.sums
    WRITES, RING = max(kind.writes, 1), max(SLOTS, 1)  # slots that a chunk takes; that there are
    takes = [chunk_of(n, min(c, CHUNKS - 1)) for c in range(4)]
    take0, take1, take2, take3 = takes
    add = add_bias(epilogue.bias or "float32", kind.bias_pairs)
    act = mapped(epilogue.activation or "gelu", dtype)
    slope = sloped(epilogue.slope or "gelu", dtype)
    put, put_pre, get = chunk_store(dtype if WIDE else out), chunk_store(dtype), chunk_load(dtype)
    store = direct_store(out, how == "pairs", epilogue.accumulate)

    BESIDE_BYTES = HALVES * CHUNKS * CHUNK_BYTES

    @jit(device=True)
    def arrival(base, group):
        """The mbarrier of what a group reads beside."""
        return uint32(base + uint32(BARRIERS + 128) + uint32(8) * group)

    @jit(device=True)
    def fetch(map_x, base, group, thread, row, column, batch):
        """Bring the matrix beside into the slots: all chunks, one for each."""
        if thread == 0:
            ptx.bulk_wait_read(0)
            bar = arrival(base, group)
            at = uint32(base + uint32(STAGING) + group * uint32(SLOTS * CHUNK_BYTES))
            ptx.mbarrier_arrive_expect_tx(bar, BESIDE_BYTES)
            for c in range(CHUNKS):
                x = uint32(column + uint32(64 * c))
                ptx.tma_load_3d(at + uint32(c * CHUNK_BYTES), map_x, x, row, batch, bar)
                if TURNS:
                    to = uint32(at + uint32((CHUNKS + c) * CHUNK_BYTES))
                    ptx.tma_load_3d(to, map_x, x, row + uint32(64), batch, bar)

    @jit(device=True)
    def slot_ready(number, group, thread):
        """Before slot `number` mod SLOTS of this tile is written."""
        if not BESIDE:
            if number == 0:
                if thread == 0:
                    ptx.bulk_wait_read(0)
                meet(group)
            elif number >= SLOTS:
                if thread == 0:
                    ptx.bulk_wait_read(SLOTS - 1)
                meet(group)

    @jit(device=True)
    def send(map, slot, group, thread, row, column, batch):
        """What a slot holds is complete: store it."""
        ptx.fence_proxy_async_shared()
        meet(group)
        if thread == 0:
            ptx.tma_store_3d(map, column, row, batch, slot)
            ptx.bulk_commit()

    @jit(device=True)
    def send_wide(map, slot, group, thread, row, column, batch):
        """As `send`, 32 columns of float32: stored, or added to what is there."""
        ptx.fence_proxy_async_shared()
        meet(group)
        if thread == 0:
            if ACCUMULATE:
                ptx.tma_reduce_add_3d(map, column, row, batch, slot)
            else:
                ptx.tma_store_3d(map, column, row, batch, slot)
            ptx.bulk_commit()

    @jit(device=True)
    def column_sums(values, totals, number, sums, thread, row, column, M, N):
        """This warp's rows of a chunk, and with the last half of a tile a row of partial sums."""
        lane, warp = uint32(thread & uint32(31)), uint32(thread >> uint32(5))
        place = number % CHUNKS * SUMS
        top = uint32(row + warp * uint32(16) + (lane >> uint32(2)))
        left = uint32(M - top) if top < M else uint32(0)
        thread_column_sums(values, totals, place, number < CHUNKS, left)
        if number >= (HALVES - 1) * CHUNKS:
            low, high = warp_column_sums(totals, place, lane)
            at = uint32(column + lane * uint32(2))
            if at < N and (TURNS or row < M):
                line = uint32(row >> uint32(7 if TURNS else 6)) * uint32(4) + warp
                pitch = uint32((N + uint32(1)) & uint32(0xFFFFFFFE))
                ptx.store_64(
                    sums, uint64(line) * uint64(pitch) + uint64(at), ptx.bits(low), ptx.bits(high)
                )

    @jit(device=True)
    def chunk(number, values, totals, map_c, map_x, c, bias, sums, base, group, thread, row, column,
              batch, M, N, pitch, c_batch):  # fmt: skip
        lane, warp = uint32(thread & uint32(31)), uint32(thread >> uint32(5))
        mine = uint32(column + (lane & uint32(3)) * uint32(2))
        ring = uint32(base + uint32(STAGING) + group * uint32(SLOTS * CHUNK_BYTES))
        slot = uint32(ring + uint32(number * WRITES % RING * CHUNK_BYTES))
        if BIAS:
            add(values, bias, mine, N)
        if PRE:
            slot_ready(number * WRITES, group, thread)
            put_pre(values, staged_row(slot, warp, lane))
            send(map_x, slot, group, thread, row, column, batch)
            slot = uint32(ring + uint32((number * WRITES + 1) % RING * CHUNK_BYTES))
        if ACTIVATED:
            act(values)
        if BESIDE:
            beside = cuda.local.array(HELD, float32)
            get(staged_row(slot, warp, lane), beside)
            if SLOPED:
                slope(values, beside)
            else:
                added(values, beside)
        if SUMMED:
            column_sums(values, totals, number, sums, thread, row, column, M, N)
        if TMA and WIDE:
            for part in range(2):
                taken = number * WRITES + int(PRE) + part
                slot_ready(taken, group, thread)
                slot = uint32(ring + uint32(taken % RING * CHUNK_BYTES))
                put_wide(values, slot, warp, lane, part)
                send_wide(map_c, slot, group, thread, row, column + uint32(32 * part), batch)
        elif TMA:
            slot_ready(number * WRITES + WRITES - 1, group, thread)
            put(values, staged_row(slot, warp, lane))
            send(map_c, slot, group, thread, row, column, batch)
        else:
            top = uint32(row + warp * uint32(16) + (lane >> uint32(2)))
            start = uint64(batch) * c_batch + uint64(top) * uint64(pitch) + uint64(mine)
            store(values, c, start, uint32(M - top) if top < M else uint32(0), mine, N, pitch)
            if BESIDE:  # before the next tile's comes into this slot
                meet(group)

    @jit(device=True)
    def write(acc, totals, map_c, map_x, c, bias, sums, base, group, thread, row, column, batch, M,
              N, pitch, c_batch, turn, half):  # fmt: skip
        values = cuda.local.array(HELD, float32)
        if BESIDE:
            ptx.mbarrier_wait(arrival(base, group), turn)
        take0(acc, values)
        chunk(half * CHUNKS, values, totals, map_c, map_x, c, bias, sums, base, group, thread, row,
              column, batch, M, N, pitch, c_batch)  # fmt: skip
        if CHUNKS > 1:
            take1(acc, values)
            chunk(half * CHUNKS + 1, values, totals, map_c, map_x, c, bias, sums, base, group,
                  thread, row, column + uint32(64), batch, M, N, pitch, c_batch)  # fmt: skip
        if CHUNKS > 2:
            take2(acc, values)
            chunk(half * CHUNKS + 2, values, totals, map_c, map_x, c, bias, sums, base, group,
                  thread, row, column + uint32(128), batch, M, N, pitch, c_batch)  # fmt: skip
        if CHUNKS > 3:
            take3(acc, values)
            chunk(half * CHUNKS + 3, values, totals, map_c, map_x, c, bias, sums, base, group,
                  thread, row, column + uint32(192), batch, M, N, pitch, c_batch)  # fmt: skip

    return write, fetch
