"""C = A B on Hopper's tensor cores: a persistent kernel with warps for loading and for multiplying.

    C (M × N) = A (M × K) B (K × N), bfloat16 or float16 in, float32 sums; a batch of them

2 M N K FLOPs; at least 2 (M K + K N) + |C| bytes. A block makes tiles of 128 × n of C, by the work
list of `hopper_schedule`, 64 of K at a time:

    warpgroup 0, one thread   TMA: boxes of A and B into a ring of stages     full[s], empty[s]:
                 two warps    sums of A's rows, where wanted (`hopper_row_sums`)
    warpgroup 1               wgmma: rows 0 – 63 of the tile, 64 × n × 64     mbarriers of a stage
    warpgroup 2               wgmma: rows 64 – 127
                                                                    ┌ A  128 × 64, 16 KB
    shared memory:  | stage 0 | stage 1 | … | staging | barriers |  stage: └ B  64 × n

A consumer keeps one group of products under way: it issues those of a stage, waits for those of the
stage before, and gives that stage back. The tile leaves chunk by chunk (64 columns) through
`stmatrix`, a ring of swizzled 8-KB slots and TMA stores, which clip at C's edges and go on under
the next tile's products; rows that TMA cannot take go straight from registers (`hopper_output`).

Either operand may lie along K or along M or N in memory: boxes of 64 × 64, and wgmma's transpose
bits. Where C ends in the middle of a tile, TMA loads zeros.

Sources: PTX ISA, "Asynchronous Warpgroup Level Matrix Multiply-Accumulate Operations", "cp.async.
bulk.tensor"; Luo et al. 2024, "Benchmarking and Dissecting the Nvidia Hopper GPU Architecture".
"""

import functools

from . import ptx
from .hopper_epilogue import SUMS
from .hopper_load import loader, placer
from .hopper_output import output
from .hopper_row_sums import WARPS, adder
from .hopper_split import splitter
from .hopper_tile import A_BYTES, F32, U32, U64, Kind, Tile
from .jit import jit
from .namespace import cuda, float32, uint8, uint32

THREADS = 384


@functools.cache
def product_kernel(kind: Kind, tile: Tile, lto: bool = False):
    """The kernel. Grid: as many blocks as the table has lists; 384 threads; dynamic shared memory:
    tile.shared."""
    tile.check(kind)
    n, STAGES, SLOTS = tile[:3]
    dtype, out, a_along_m, b_along_n, _, epilogue = kind[:6]
    BIAS, BESIDE = epilogue.bias or "float32", epilogue.beside
    PAIR, ROW_SUMS = tile.pair, kind.row_sums
    READERS = (8 + WARPS * ROW_SUMS) * (1 + PAIR)  # warps that read a stage
    list_of, first_row, give_back = placer(tile)
    STAGE, BARRIERS, HELD_SUMS = tile.stage, tile.barriers, tile.chunks * SUMS
    A_LEADING = 8192 if a_along_m else 0  # from 64 of M to the next; unused along K
    B_LEADING = 8192 if b_along_n else 0
    multiply = ptx.wgmma(n, dtype, k_steps=4, transpose_a=a_along_m, transpose_b=b_along_n)
    zeros, wait_one, wait_all = ptx.wgmma_zeros(n), ptx.wgmma_wait(n, 1), ptx.wgmma_wait(n, 0)
    load, (leave, collect), (write, fetch) = loader(kind, tile), splitter(tile), output(kind, tile)
    add_up = adder(kind, tile)

    @jit(pointers=True, launch_bounds=(THREADS, 1), lto=lto)
    def product(map_a: U64, map_b: U64, map_c: U64, map_x: U64,
                work: U32, partials: F32, flags: U32, c: out, bias: BIAS,
                sums: F32, M: U32, N: U32, pitch: U32, c_batch: U64,
                many_a: U32, many_b: U32):  # fmt: skip
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
            if ROW_SUMS:
                ptx.setmaxnreg_dec(56)
            else:
                ptx.setmaxnreg_dec(40)
            if i == 0:
                load(map_a, map_b, work, base, many_a, many_b)
            if ROW_SUMS and i >= uint32(32) and i < uint32(32 + 32 * WARPS):
                add_up(work, base, sums, M, N, (i >> uint32(5)) - uint32(1), i & uint32(31))
            cuda.syncwarp()
        else:
            if ROW_SUMS:
                ptx.setmaxnreg_inc(224)
            else:
                ptx.setmaxnreg_inc(232)
            group, thread = uint32((i >> uint32(7)) - uint32(1)), uint32(i & uint32(127))
            lane = uint32(i & uint32(31))
            entry = uint32(work[list_of()])
            end_of_list = uint32(work[list_of() + uint32(1)])
            stage, phase, turn = uint32(0), uint32(0), uint32(0)
            while entry < end_of_list:
                place, batch, span, last = ptx.load_128(work, uint32(entry * uint32(4)))
                entry = uint32(entry + uint32(1))
                row = uint32(first_row(place) + group * uint32(64))
                column = uint32((place >> uint32(16)) * uint32(n))
                k, end = uint32(span & uint32(0xFFFF)), uint32(span >> uint32(16))
                first, used = k, empty
                if BESIDE and last < uint32(1 << 31):
                    fetch(map_x, base, group, thread, row, column, batch)
                acc = zeros()
                while k < end:
                    ptx.mbarrier_wait(uint32(full + uint32(8) * stage), phase)
                    at = uint32(base + uint32(STAGE) * stage)
                    a = ptx.wgmma_descriptor(at + uint32(8192) * group, A_LEADING, 1024, 128)
                    b = ptx.wgmma_descriptor(at + uint32(A_BYTES), B_LEADING, 1024, 128)
                    ptx.wgmma_fence()
                    acc = multiply(acc, a, b, k != first)
                    ptx.wgmma_commit()
                    acc = wait_one(acc)  # the stage before this one has been read
                    if k != first:
                        give_back(used, lane)
                    used = uint32(empty + uint32(8) * stage)
                    stage = uint32(stage + uint32(1))
                    if stage == uint32(STAGES):
                        stage, phase = uint32(0), uint32(phase ^ uint32(1))
                    k = uint32(k + uint32(1))
                acc = wait_all(acc)
                give_back(used, lane)
                if last >= uint32(1 << 31):
                    leave(acc, last, group, group, thread, partials, flags)
                else:
                    if last >= uint32(1 << 20):
                        acc = collect(acc, last, group, group, thread, partials, flags)
                    totals = cuda.local.array(HELD_SUMS, float32)
                    write(acc, totals, map_c, map_x, c, bias, sums, base, group, thread, row,
                          column, batch, M, N, pitch, c_batch, turn, 0)  # fmt: skip
                    turn = uint32(turn ^ uint32(1))
            if SLOTS > 0 and thread == 0:
                ptx.bulk_wait_read(0)  # the staging must outlive the last stores
        if PAIR:
            ptx.cluster_sync()  # nobody leaves while the other may still write to its memory

    return product
