"""C = A B with consumers that take turns: one group's products run while the other group writes.

    group 0   |– tile 0: products –|writes|– tile 2 … ––––––––|writes|
    group 1              |– tile 1: products –––––|writes|– tile 3 …
    tensor cores  busy all the time, as long as writing takes no longer than a tile's products

As in `hopper_product`, but each group makes every second piece of the block's list alone, all
128 × 128 of a tile, in two sets of accumulators for 64 rows each. The loading thread fills the ring
in the order of the list. A group begins its products when the other one has issued the last of its
own: named barrier 3 tells group 0, barrier 4 group 1. (It must not come earlier: an mbarrier tells
one phase from the next only, and a stage may be two rounds behind.) A stage is given back by the
four warps of the group whose it is.

A tile of 128 × 128 loads 32 KB for 2.1 MFLOP, a third more than 128 × 256 does; it pays where K is
short or the epilogue long. Source: the "ping-pong" kernels of NVIDIA's CUTLASS, for the idea.
"""

import functools

from . import ptx
from .hopper_epilogue import SUMS
from .hopper_load import loader, placer
from .hopper_output import output
from .hopper_split import splitter
from .hopper_tile import A_BYTES, F32, U32, U64, Kind, Tile
from .jit import jit
from .namespace import cuda, float32, uint8, uint32

THREADS = 384


@jit(device=True)
def wait_turn(group):
    if group == 0:
        ptx.barrier_sync(3, 256)
    else:
        ptx.barrier_sync(4, 256)


@jit(device=True)
def give_turn(group):
    """To the other group."""
    if group == 0:
        ptx.barrier_arrive(4, 256)
    else:
        ptx.barrier_arrive(3, 256)


@functools.cache
def turns_kernel(kind: Kind, tile: Tile, lto: bool = False):
    """The kernel. Arguments, grid and block as those of `hopper_product.product_kernel`."""
    tile.check(kind)
    n, STAGES, SLOTS = tile[:3]
    dtype, out, a_along_m, b_along_n, _, epilogue = kind[:6]
    BIAS, BESIDE = epilogue.bias or "float32", epilogue.beside
    PAIR, READERS = tile.pair, 4 * (1 + tile.pair)  # warps that read a stage
    list_of, first_row, give_back = placer(tile)
    STAGE, BARRIERS, HELD_SUMS = tile.stage, tile.barriers, tile.chunks * SUMS
    A_LEADING = 8192 if a_along_m else 0
    B_LEADING = 8192 if b_along_n else 0
    multiply = ptx.wgmma(n, dtype, k_steps=4, transpose_a=a_along_m, transpose_b=b_along_n)
    zeros, wait_one, wait_all = ptx.wgmma_zeros(n), ptx.wgmma_wait(n, 1), ptx.wgmma_wait(n, 0)
    load, (leave, collect), (write, fetch) = loader(kind, tile), splitter(tile), output(kind, tile)

    @jit(pointers=True, launch_bounds=(THREADS, 1), lto=lto)
    def product_turns(map_a: U64, map_b: U64, map_c: U64, map_x: U64,
                      work: U32, partials: F32, flags: U32, c: out, bias: BIAS,
                      sums: F32, M: U32, N: U32, pitch: U32,
                      c_batch: U64, many_a: U32, many_b: U32):  # fmt: skip
        memory = cuda.shared.array(0, uint8)
        base = uint32((ptx.shared_address(memory) + uint32(1023)) & uint32(0xFFFFFC00))
        full, empty = uint32(base + uint32(BARRIERS)), uint32(base + uint32(BARRIERS + 64))
        i = uint32(cuda.threadIdx.x)
        if i == 0:
            for s in range(STAGES):
                ptx.mbarrier_init(full + uint32(8 * s), 1)
                ptx.mbarrier_init(empty + uint32(8 * s), READERS)
            for reader in range(2):
                ptx.mbarrier_init(base + uint32(BARRIERS + 128 + 8 * reader), 1)
            ptx.fence_mbarrier_init()
        if PAIR:
            ptx.cluster_sync()  # the other block's mbarriers are ready, too
        else:
            cuda.syncthreads()
        if i < uint32(128):
            ptx.setmaxnreg_dec(24)
            if i == 0:
                load(map_a, map_b, work, base, many_a, many_b)
            cuda.syncwarp()
        else:
            ptx.setmaxnreg_inc(240)
            group, thread = uint32((i >> uint32(7)) - uint32(1)), uint32(i & uint32(127))
            lane = uint32(i & uint32(31))
            entry = uint32(work[list_of()])
            end_of_list = uint32(work[list_of() + uint32(1)])
            position, turn = uint32(0), uint32(0)  # stages that the block's pieces have taken
            if group == 1 and entry < end_of_list:
                give_turn(group)  # the first piece is group 0's
                _, _, span, _ = ptx.load_128(work, uint32(entry * uint32(4)))
                position = uint32((span >> uint32(16)) - (span & uint32(0xFFFF)))
                entry = uint32(entry + uint32(1))
            while entry < end_of_list:
                place, batch, span, last = ptx.load_128(work, uint32(entry * uint32(4)))
                row = first_row(place)
                column = uint32((place >> uint32(16)) * uint32(n))
                k, end = uint32(span & uint32(0xFFFF)), uint32(span >> uint32(16))
                round_ = uint32(position // uint32(STAGES))
                stage, phase = (
                    uint32(position - round_ * uint32(STAGES)),
                    uint32(round_ & uint32(1)),
                )
                position = uint32(position + end - k)
                entry = uint32(entry + uint32(1))
                other = entry < end_of_list
                if other:
                    _, _, span, _ = ptx.load_128(work, uint32(entry * uint32(4)))
                    position = uint32(position + (span >> uint32(16)) - (span & uint32(0xFFFF)))
                entry = uint32(entry + uint32(1))
                first, used = k, empty
                if BESIDE and last < uint32(1 << 31):
                    fetch(map_x, base, group, thread, row, column, batch)
                top, low = zeros(), zeros()
                wait_turn(group)
                while k < end:
                    ptx.mbarrier_wait(uint32(full + uint32(8) * stage), phase)
                    at = uint32(base + uint32(STAGE) * stage)
                    a = ptx.wgmma_descriptor(at, A_LEADING, 1024, 128)
                    a_low = ptx.wgmma_descriptor(at + uint32(8192), A_LEADING, 1024, 128)
                    b = ptx.wgmma_descriptor(at + uint32(A_BYTES), B_LEADING, 1024, 128)
                    ptx.wgmma_fence()
                    top = multiply(top, a, b, k != first)
                    low = multiply(low, a_low, b, k != first)
                    ptx.wgmma_commit()
                    top, low = wait_one(top), wait_one(low)
                    if k != first:
                        give_back(used, lane)
                    used = uint32(empty + uint32(8) * stage)
                    stage = uint32(stage + uint32(1))
                    if stage == uint32(STAGES):
                        stage, phase = uint32(0), uint32(phase ^ uint32(1))
                    k = uint32(k + uint32(1))
                if other:
                    give_turn(group)
                top, low = wait_all(top), wait_all(low)
                give_back(used, lane)
                if last >= uint32(1 << 31):
                    leave(top, last, uint32(0), group, thread, partials, flags)
                    leave(low, last, uint32(1), group, thread, partials, flags)
                else:
                    if last >= uint32(1 << 20):
                        top = collect(top, last, uint32(0), group, thread, partials, flags)
                        low = collect(low, last, uint32(1), group, thread, partials, flags)
                    totals = cuda.local.array(HELD_SUMS, float32)
                    write(top, totals, map_c, map_x, c, bias, sums, base, group, thread, row,
                          column, batch, M, N, pitch, c_batch, turn, 0)  # fmt: skip
                    write(low, totals, map_c, map_x, c, bias, sums, base, group, thread,
                          row + uint32(64), column, batch, M, N, pitch, c_batch, turn,
                          1)  # fmt: skip
                    turn = uint32(turn ^ uint32(1))
            if SLOTS > 0 and thread == 0:
                ptx.bulk_wait_read(0)
        if PAIR:
            ptx.cluster_sync()  # nobody leaves while the other may still write to its memory

    return product_turns
