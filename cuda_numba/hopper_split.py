"""Tiles that several blocks share along K: partial tiles left in global memory, and collected.

    helper   accumulators → slot, all 128 threads → barrier → flag[slot] = 1 (release)
    owner    flag[slot] (acquire) → barrier → accumulators += slot, slot after slot, in order of k

A slot holds 64 rows of a tile as registers lie (`hopper_fragments`), in two parts for the 128 rows:
part 0 and 1, each with a flag. The owner clears a flag as it has seen it, for the next launch.
"""

import functools

from . import ptx
from .hopper_fragments import add_partial, meet, store_partial
from .hopper_tile import Tile
from .jit import jit
from .namespace import uint32, uint64


@functools.cache
def splitter(tile: Tile):
    """The device functions (leave, collect) for tiles of tile.n columns; `last` is the last word of
    a piece (`hopper_schedule`)."""
    leave_in, add = store_partial(tile.n), add_partial(tile.n)
    PART_BYTES = 64 * tile.n * 4

    @jit(device=True)
    def address(partials, part, thread):
        start = ptx.global_address(partials) + uint64(part) * uint64(PART_BYTES)
        return start + uint64(thread * uint32(16))

    @jit(device=True)
    def leave(acc, last, half, group, thread, partials, flags):
        part = uint32((last & uint32(0xFFFFF)) * uint32(2) + half)
        leave_in(acc, address(partials, part, thread))
        meet(group)
        if thread == 0:
            ptx.store_release(flags, part, 1)

    @jit(device=True)
    def collect(acc, last, half, group, thread, partials, flags):
        part = uint32((last & uint32(0xFFFFF)) * uint32(2) + half)
        end = uint32(part + uint32(2) * (last >> uint32(20)))
        while part < end:
            if thread == 0:
                while ptx.load_acquire(flags, part) == 0:
                    pass
                ptx.store_relaxed(flags, part, 0)
            meet(group)
            acc = add(acc, address(partials, part, thread))
            part = uint32(part + uint32(2))
        return acc

    return leave, collect
