"""A weight-only quantised product for 9 to 64 rows: x and w through a ring in shared memory.

    y[m, n] = Σ_groups scale[n, group] · Σ_k x[m, k] · code[n, k]

As in `quantized_few`, w is mma's A operand, 16 columns of y at a time, and x its B operand, 8 rows
at a time. What grows with the rows is x: the warps of a block share it. cp.async fills a ring of
`stages` steps; the codes of a step go to the warp that needs them and are unpacked in registers,
between their load from shared memory and the product, once for all rows.

    block of 16 warps, `across` × `deep` = 4 × 4, one tile of 16 columns each:

                   k of a step:   0 … 127     128 … 255   256 … 383   384 … 511
    columns  0 … 15 of the block  warp 0      warp 4      warp 8      warp 12
    columns 16 … 31               warp 1      warp 5      warp 9      warp 13
    columns 32 … 47               warp 2      warp 6      warp 10     warp 14
    columns 48 … 63               warp 3      warp 7      warp 11     warp 15

    a stage:  x, rows × (deep · 128) k; 16-byte piece p of row m lies at p ^ (m & 1) · FLIP, so that
              eight lanes which read at once (rows 2 a and 2 a + 1, t = 0 … 3) touch all 32 banks
              w, for each warp and load 32 pieces of 16 bytes, a lane's own

Bytes from device memory: N · K / 2 (int4) or N · K; from L2 besides, x once for each block of
columns. At the end the warps of a column add up through shared memory, in order; where `parts`
blocks divide K, each leaves float32 sums and `combine_kernel` adds them, in order.
Source: Frantar et al. 2024, "MARLIN: Mixed-Precision Auto-Regressive Parallel Inference on Large
Language Models", section 3, for what has to overlap; the layout is another one.
"""

import functools

from . import ptx
from .jit import jit
from .namespace import cuda, float32, uint16, uint32, uint64
from .quantized_words import eight_of, unit_of

BLOCK = 128  # k that a warp takes in a step


def shared_bytes(kind: str, rows: int, tiles: int, across: int, deep: int, stages: int) -> int:
    """Dynamic shared memory: the ring, and in the same place at the end the sums."""
    codes = across * deep * 2 * tiles * (512 if kind == "int4" else 1024)
    sums = deep * 16 * tiles * across * rows * 4
    return max(stages * (rows * deep * BLOCK * 2 + codes), sums) + 128


@functools.cache
def tiles_kernel(kind: str, dtype: str, rows: int, tiles: int, across: int, deep: int, stages: int,
                 blocks: int, group: int = 0, parts: int = 1):  # fmt: skip
    """The kernel for codes of `kind`, x of `dtype` and up to `rows` rows, a multiple of 8.

    tiles: of 16 columns, of a warp. across, deep: warps of a block along N and K. stages: steps in
    shared memory. blocks: on an SM at least, which limits registers. group: k of one scale of int4.
    parts: 1, and y is of `dtype`; otherwise y is float32 (parts, M, N).
    """
    eight = eight_of(kind, dtype)
    mma = ptx.mma_m16n8k16_bf16 if dtype == "bfloat16" else ptx.mma_m16n8k16_f16
    GROUPED = kind == "int4"
    CODE, SCALE = "uint8", "bfloat16" if GROUPED else "float32"
    FOLD = 1 / unit_of(kind, dtype)
    LOADS = 1 if GROUPED else 2  # of 16 bytes of a row in a step
    FLIP = 4 if GROUPED else 1
    SPAN = max(1, group // BLOCK)  # steps of a group
    PARTS = max(1, BLOCK // group) if GROUPED else 1  # groups of a step
    R, WARPS = rows // 8, across * deep
    THREADS, COLUMNS = 32 * WARPS, 16 * tiles * across
    LINES = 2 * tiles  # rows of w that a lane reads
    FACTORS, SUMS = LINES * PARTS, 4 * tiles * R
    LINE = deep * BLOCK * 2  # bytes of a row of x in a stage
    CODES = rows * LINE  # where w begins in a stage
    OWN = LINES * LOADS * 512  # bytes of a warp's codes in a stage
    STAGE = CODES + WARPS * OWN
    PIECES = rows * deep * BLOCK // 8
    OUT = dtype if parts == 1 else "float32"

    @jit(device=True)
    def copy_codes(places, block, stride, target):
        """The 16-byte pieces of this lane."""
        for i in range(LOADS):
            chunk = uint64(uint32((block * uint32(LOADS) + uint32(i)) * stride))
            for r in range(LINES):
                place = places[r // 2] + chunk + uint64(512 * (r % 2))
                ptx.cp_async_16(uint32(target + uint32((r * LOADS + i) * 512)), place)

    @jit(device=True)
    def copy_x(source, K, M, first, end, target):
        """x of the steps of 128 k from `first` on, up to `end`; zeros beyond and past row M."""
        piece = uint32(cuda.threadIdx.x)
        while piece < uint32(PIECES):
            m, p = piece // uint32(16 * deep), piece % uint32(16 * deep)
            inside = m < M and first + (p >> uint32(4)) < end
            place = source
            if inside:
                k = first * uint32(BLOCK) + p * uint32(8)
                place = source + uint64(2) * (uint64(m) * uint64(K) + uint64(k))
            swizzled = p ^ ((m & uint32(1)) * uint32(FLIP))
            to = uint32(target + m * uint32(LINE) + swizzled * uint32(16))
            ptx.cp_async_16_zfill(to, place, uint32(16) if inside else uint32(0))
            piece = uint32(piece + uint32(THREADS))

    @jit(device=True)
    def load_factors(scales, block, columns, N, factors):
        for r in range(LINES):
            for k in range(PARTS):
                line = block * uint32(PARTS) + uint32(k) if SPAN == 1 else block // uint32(SPAN)
                factors[r * PARTS + k] = scales[uint64(line) * uint64(N) + uint64(columns[r])]

    @jit(pointers=True, launch_bounds=(THREADS, blocks))
    def quantized_tiles(x: dtype, q: CODE, scales: SCALE, y: OUT, M: "uint32", N: "uint32",
                        K: "uint32", share: "uint32"):  # fmt: skip
        ring = cuda.shared.array(0, uint32)
        factors = cuda.local.array(FACTORS, uint16)
        later = cuda.local.array(FACTORS, uint16)  # of the next step
        total = cuda.local.array(SUMS, float32)
        part = cuda.local.array(SUMS, float32)
        places = cuda.local.array(tiles, uint64)
        columns = cuda.local.array(LINES, uint32)
        thread = uint32(cuda.threadIdx.x)
        lane, warp = thread & uint32(31), thread >> uint32(5)
        g, t = lane >> uint32(2), lane & uint32(3)
        beside, slice = warp % uint32(across), warp // uint32(across)
        corner = uint32(cuda.blockIdx.x) * uint32(COLUMNS)
        first = corner + beside * uint32(16 * tiles)
        height = (N + uint32(15)) >> uint32(4)  # tiles of w
        stride = height * uint32(1024)  # bytes of a chunk of all tiles
        begin = uint32(cuda.blockIdx.y) * share  # in steps of one warp, 128 k
        end = min(uint32(begin + share), uint32(K // uint32(BLOCK)))
        base = (ptx.shared_address(ring) + uint32(127)) & uint32(0xFFFFFF80)
        own = uint32(base + uint32(CODES) + warp * uint32(OWN) + lane * uint32(16))
        source = ptx.global_address(x)
        # Tiles past the end read the last one; what comes of them is not stored.
        for i in range(tiles):
            tile = min((first >> uint32(4)) + uint32(i), height - uint32(1))
            place = uint64(uint32(tile * uint32(1024) + lane * uint32(16)))
            places[i] = ptx.global_address(q) + place
        for r in range(LINES):
            columns[r] = min(uint32(first + g + uint32(8 * r)), uint32(N - uint32(1)))
        for s in range(stages - 1):
            block = uint32(begin + slice + uint32(s * deep))
            if block < end:
                copy_codes(places, block, stride, uint32(own + uint32(s * STAGE)))
            at = uint32(begin + uint32(s * deep))
            if at < end:  # even zeros would arrive too late to be waited for
                copy_x(source, K, M, at, end, uint32(base + uint32(s * STAGE)))
            ptx.cp_async_commit()
        if GROUPED and begin + slice < end:
            load_factors(scales, uint32(begin + slice), columns, N, later)
        for j in range(SUMS):
            total[j] = float32(0)
            part[j] = float32(0)

        step, stage = begin, uint32(0)
        while step < end:
            ptx.cp_async_wait(stages - 2)
            cuda.syncthreads()
            fill = stage + uint32(stages - 1)
            fill = uint32(fill - uint32(stages)) if fill >= uint32(stages) else fill
            ahead = uint32(step + uint32((stages - 1) * deep))
            if ahead + slice < end:
                copy_codes(
                    places, uint32(ahead + slice), stride, uint32(own + fill * uint32(STAGE))
                )
            if ahead < end:
                copy_x(source, K, M, ahead, end, uint32(base + fill * uint32(STAGE)))
            ptx.cp_async_commit()
            block = uint32(step + slice)
            if block < end:
                if GROUPED:
                    for j in range(FACTORS):
                        factors[j] = later[j]
                    if block + uint32(deep) < end:
                        load_factors(scales, uint32(block + uint32(deep)), columns, N, later)
                here = uint32(base + stage * uint32(STAGE) + g * uint32(LINE))
                mine = uint32(own + stage * uint32(STAGE))
                for load in range(LOADS):
                    for i in range(tiles):
                        at = uint32(mine + uint32((2 * i * LOADS + load) * 512))
                        c = ptx.load_shared_128_at(at)
                        d = ptx.load_shared_128_at(uint32(at + uint32(LOADS * 512)))
                        for p in range(4 // LOADS):
                            # Piece of x, 8 k, in a row: where the codes' 8 k of this lane are.
                            if GROUPED:
                                piece = slice * uint32(16) + t + uint32(4 * p)
                                low = eight(c[p], c[p])
                                high = eight(d[p], d[p])
                            else:
                                piece = slice * uint32(16) + t * uint32(2) + uint32(8 * load + p)
                                low = eight(c[2 * p], c[2 * p + 1])
                                high = eight(d[2 * p], d[2 * p + 1])
                            piece = piece ^ ((g & uint32(1)) * uint32(FLIP))
                            spot = uint32(here + piece * uint32(16))
                            for r in range(R):
                                b = ptx.load_shared_128_at(uint32(spot + uint32(8 * r * LINE)))
                                j = 4 * (i * R + r)
                                part[j], part[j + 1], part[j + 2], part[j + 3] = mma(
                                    low[0], high[0], low[1], high[1], b[0], b[1],
                                    part[j], part[j + 1], part[j + 2], part[j + 3],
                                )  # fmt: skip
                                part[j], part[j + 1], part[j + 2], part[j + 3] = mma(
                                    low[2], high[2], low[3], high[3], b[2], b[3],
                                    part[j], part[j + 1], part[j + 2], part[j + 3],
                                )  # fmt: skip
                            if GROUPED and (p + 1) % (4 // PARTS) == 0:
                                at = 2 * i * PARTS + p // (4 // PARTS)
                                upper = ptx.bf16_to_f32(factors[at])
                                lower = ptx.bf16_to_f32(factors[at + PARTS])
                                for r in range(R):
                                    for j in range(4):
                                        k = 4 * (i * R + r) + j
                                        total[k] += (upper if j < 2 else lower) * part[k]
                                        part[k] = float32(0)
            step = uint32(step + uint32(deep))
            stage = uint32(stage + uint32(1)) if stage < uint32(stages - 1) else uint32(0)

        cuda.syncthreads()  # the ring has been read
        sums = cuda.shared.array(0, float32)
        for i in range(tiles):
            for r in range(R):
                for j in range(4):
                    column = beside * uint32(16 * tiles) + g + uint32(16 * i + 8 * (j // 2))
                    m = t * uint32(2) + uint32(8 * r + j % 2)
                    at = (slice * uint32(rows) + m) * uint32(COLUMNS) + column
                    k = 4 * (i * R + r) + j
                    sums[at] = total[k] if GROUPED else part[k]
        cuda.syncthreads()
        k = thread
        while k < uint32(rows * COLUMNS):
            m, n = k // uint32(COLUMNS), uint32(corner + k % uint32(COLUMNS))
            if m < M and n < N:
                value = float32(0)
                for w in range(deep):
                    value += sums[uint32(w * rows * COLUMNS) + k]
                value *= float32(FOLD)
                if not GROUPED and parts == 1:
                    value *= scales[n]
                place = uint64(m) * uint64(N) + uint64(n)
                if parts > 1:
                    place += uint64(cuda.blockIdx.y) * uint64(M) * uint64(N)
                ptx.store(y, place, value)
            k = uint32(k + uint32(THREADS))

    return quantized_tiles


COMBINE_THREADS = 128


@functools.cache
def combine_kernel(dtype: str, parts: int, scaled: bool):
    """y[m, n] = (scale[n] ·) Σ_p sums[p, m, n], p in order: block (b, m), a column a thread."""

    @jit(pointers=True, launch_bounds=(COMBINE_THREADS, 1))
    def quantized_combine(sums: "float32", scales: "float32", y: dtype, M: "uint32", N: "uint32"):
        n = uint32(cuda.blockIdx.x) * uint32(COMBINE_THREADS) + uint32(cuda.threadIdx.x)
        place = uint64(cuda.blockIdx.y) * uint64(N) + uint64(n)
        if n < N:
            value = float32(0)
            for p in range(parts):
                value += sums[uint64(p) * uint64(M) * uint64(N) + place]
            if scaled:
                value *= scales[n]
            ptx.store(y, place, value)

    return quantized_combine
