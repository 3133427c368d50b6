"""A weight-only quantised product for 1 to 8 rows: read the weights once, multiply on tensor cores.

    y[m, n] = Σ_groups scale[n, group] · Σ_k x[m, k] · code[n, k]

Bytes: N · K / 2 (int4) or N · K, and little else; 2 · M · N · K FLOPs. 8192 × 8192 in int4 is
33.5 MB, 11 µs at 3 TB/s, for which each of 132 SMs unpacks 0.5 million codes. On the FMA pipe that
alone takes most of the time (see `quantized_rows`). mma.sync.m16n8k16 multiplies 16 columns of w
with 8 rows of x, sums in float32, and takes the codes as pairs of bfloat16, one instruction for
256 of them: 1 row costs what 8 do, and the unpacking is what remains.

w is the A operand, so the columns of y are its 16 rows; x is B. The order of k within a product is
free as long as both agree. A lane therefore takes 16 bytes of codes as they lie, and of x the k
that belong to them: nothing is shuffled, and every byte goes to the one lane that needs it.

    lane = 4 g + t      row g of the tile: n = first + g, and n + 8 by a second load
                        16 bytes there, number t of the four that are a chunk (64 k, int4 128)
                        x[g, the same k], 16 bytes for 8 k

    block of W warps:   warp 0    warp 1    …    warp W − 1     warp 0   …
                      |chunk 0  |chunk 1  |   |chunk W − 1   |chunk W  |      `tiles` tiles of w

Each warp keeps `depth` chunks of w on their way in registers, and sums its own chunks; at the end
the block adds the warps' sums in order, through shared memory. There is no barrier before that.
"""

import functools

from . import ptx
from .jit import jit
from .namespace import cuda, float32, uint16, uint32, uint64
from .quantized_words import eight_of, unit_of


@functools.cache
def few_kernel(kind: str, dtype: str, tiles: int, warps: int, depth: int, blocks: int,
               ahead: int, full: bool = False, group: int = 0):  # fmt: skip
    """The kernel for codes of `kind` and x, y of `dtype`.

    tiles: of 16 columns, of a block. warps: that share K. depth: chunks of w on their way. blocks:
    on an SM at least, which limits registers. ahead: pieces of x on their way, 2 or all of a chunk.
    full: N is a multiple of a block's columns. group: k of one scale of int4.
    """
    eight = eight_of(kind, dtype)
    mma = ptx.mma_m16n8k16_bf16 if dtype == "bfloat16" else ptx.mma_m16n8k16_f16
    GROUPED = kind == "int4"
    CODE, SCALE = "uint8", "bfloat16" if GROUPED else "float32"
    FOLD = 1 / unit_of(kind, dtype)
    PIECES = 4 if GROUPED else 2  # pieces of x, 8 k each, that belong to 16 bytes of codes
    CHUNK, ROWS = 32 * PIECES, 2 * tiles
    STEP, LANE = (32, 8) if GROUPED else (8, 16)  # in k, between pieces and between lanes
    SPAN = max(1, group // CHUNK)  # chunks of a group
    PARTS = max(1, CHUNK // group) if GROUPED else 1  # groups of a chunk
    COLUMNS = 16 * tiles
    THREADS = 32 * warps
    SUMS, CODES, FACTORS = warps * COLUMNS * 8, 4 * depth * ROWS, depth * ROWS * PARTS
    X_WORDS, ACCUMULATORS = 4 * ahead, 4 * tiles

    @jit(device=True)
    def load_chunk(places, offset, codes, u):
        for i in range(tiles):
            for r in range(2):
                # The tiles of a full block lie side by side: one address, several offsets.
                place = places[0] + uint64(1024 * i) if full else places[i]
                a, b, c, d = ptx.load_128_nc_at(place + uint64(offset) + uint64(512 * r))
                at = 4 * (u * ROWS + 2 * i + r)
                codes[at] = a
                codes[at + 1] = b
                codes[at + 2] = c
                codes[at + 3] = d

    @jit(device=True)
    def load_factors(scales, chunk, columns, N, factors, u):
        for k in range(PARTS):
            line = chunk * uint32(PARTS) + uint32(k) if SPAN == 1 else chunk // uint32(SPAN)
            start = uint64(line) * uint64(N)
            for r in range(ROWS):
                column = uint64(columns[0]) + uint64(8 * r) if full else uint64(columns[r])
                factors[(u * ROWS + r) * PARTS + k] = scales[start + column]

    @jit(device=True)
    def load_piece(address, pieces, place):
        a, b, c, d = ptx.load_128_at(address)
        pieces[place] = a
        pieces[place + 1] = b
        pieces[place + 2] = c
        pieces[place + 3] = d

    @jit(device=True)
    def multiply(codes, word, more, pieces, x, part, at):
        """8 k of each lane: two products of 16 columns, 16 k and 8 rows."""
        a = eight(codes[word], codes[more])
        b = eight(codes[word + 4], codes[more + 4])
        for h in range(2):
            part[at], part[at + 1], part[at + 2], part[at + 3] = mma(
                a[2 * h], b[2 * h], a[2 * h + 1], b[2 * h + 1],
                pieces[x + 2 * h], pieces[x + 2 * h + 1],
                part[at], part[at + 1], part[at + 2], part[at + 3],
            )  # fmt: skip

    @jit(pointers=True, launch_bounds=(THREADS, blocks))
    def quantized_few(x: dtype, q: CODE, scales: SCALE, y: dtype, M: "uint32", N: "uint32",
                      K: "uint32"):  # fmt: skip
        sums = cuda.shared.array(SUMS, float32)
        codes = cuda.local.array(CODES, uint32)
        factors = cuda.local.array(FACTORS, uint16)  # as they are: converting would wait for them
        pieces = cuda.local.array(X_WORDS, uint32)
        places = cuda.local.array(tiles, uint64)
        columns = cuda.local.array(ROWS, uint32)
        total = cuda.local.array(ACCUMULATORS, float32)
        part = cuda.local.array(ACCUMULATORS, float32)
        thread = uint32(cuda.threadIdx.x)
        lane, warp = thread & uint32(31), thread >> uint32(5)
        g, t = lane >> uint32(2), lane & uint32(3)
        first = uint32(cuda.blockIdx.x) * uint32(COLUMNS)
        chunks = K // uint32(CHUNK)
        height = (N + uint32(15)) >> uint32(4)  # tiles of w
        stride = height * uint32(1024)  # bytes of a chunk of all tiles
        # Tiles past the end read the last one; what comes of them is not stored.
        for i in range(tiles):
            tile = uint32(cuda.blockIdx.x) * uint32(tiles) + uint32(i)
            if not full:
                tile = min(tile, uint32(height - uint32(1)))
            place = uint64(uint32(tile * uint32(1024) + lane * uint32(16)))
            places[i] = ptx.global_address(q) + place
        for r in range(ROWS):
            columns[r] = uint32(first + g + uint32(8 * r))
            if not full:
                columns[r] = min(columns[r], uint32(N - uint32(1)))
        mine = uint64(min(g, uint32(M - uint32(1)))) * uint64(K) + uint64(t * uint32(LANE))
        mine = ptx.global_address(x) + uint64(2) * mine

        for u in range(depth):
            c = uint32(warp + uint32(u * warps))
            if c < chunks:
                load_chunk(places, c * stride, codes, u)
                if GROUPED:
                    load_factors(scales, c, columns, N, factors, u)
        here = mine + uint64(uint32(min(warp, chunks - uint32(1)) * uint32(2 * CHUNK)))
        for p in range(ahead):
            load_piece(here + uint64(2 * STEP * p), pieces, 4 * p)
        for j in range(4 * tiles):
            total[j] = float32(0)
            part[j] = float32(0)
        chunk = warp
        while chunk < chunks:
            for u in range(depth):
                c = uint32(chunk + uint32(u * warps))
                if c < chunks:
                    # x of the chunk after this one; behind the last one it is read once more.
                    next = min(uint32(c + uint32(warps)), uint32(chunks - uint32(1)))
                    next = mine + uint64(uint32(next * uint32(2 * CHUNK)))
                    for p in range(PIECES):
                        spot = 4 * ((u * PIECES + p) % ahead)
                        word = 4 * (u * ROWS) + p * 4 // PIECES
                        more = word + 1 if PIECES == 2 else word
                        for i in range(tiles):
                            multiply(codes, word + 8 * i, more + 8 * i, pieces, spot, part, 4 * i)
                        place = here if p + ahead < PIECES else next
                        load_piece(place + uint64(2 * STEP * ((p + ahead) % PIECES)), pieces, spot)
                        if GROUPED and (p + 1) % (PIECES // PARTS) == 0:
                            for i in range(tiles):
                                at = PARTS * (u * ROWS + 2 * i) + p // (PIECES // PARTS)
                                upper = ptx.bf16_to_f32(factors[at])
                                lower = ptx.bf16_to_f32(factors[at + PARTS])
                                for j in range(4):
                                    factor = upper if j < 2 else lower
                                    total[4 * i + j] += factor * part[4 * i + j]
                                    part[4 * i + j] = float32(0)
                    here = next
                    after = uint32(c + uint32(depth * warps))
                    if after < chunks:
                        load_chunk(places, after * stride, codes, u)
                        if GROUPED:
                            load_factors(scales, after, columns, N, factors, u)
            chunk = uint32(chunk + uint32(depth * warps))

        for j in range(4 * tiles):
            # Register j of a tile: column g, or g + 8 from 2 on, of rows 2 t and 2 t + 1.
            column = g + uint32(16 * (j // 4) + 8 * (j % 4 // 2))
            slot = (warp * uint32(8) + t * uint32(2) + uint32(j % 2)) * uint32(COLUMNS) + column
            sums[slot] = total[j] if GROUPED else part[j]
        cuda.syncthreads()
        k = thread
        while k < M * uint32(COLUMNS):
            m, n = k // uint32(COLUMNS), uint32(first + k % uint32(COLUMNS))
            if full or n < N:
                value = float32(0)
                for w in range(warps):
                    value += sums[uint32(w * 8 * COLUMNS) + k]
                value *= float32(FOLD) if GROUPED else scales[n] * float32(FOLD)
                ptx.store(y, uint64(m) * uint64(N) + uint64(n), value)
            k = uint32(k + uint32(THREADS))

    return quantized_few
