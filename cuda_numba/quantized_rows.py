"""A weight-only quantised product for 1 to 4 rows on the FMA pipe: no tensor cores, any GPU.

    y[m, n] = Σ_groups scale[n, group] · Σ_k x[m, k] · code[n, k]

The stored order of codes and the division of labour are those of `quantized_few`: lane 4 g + t
reads 16 bytes of row g of a tile and 16 of row g + 8, warps of a block take turns along K. Here the
lane unpacks them to float32 and multiplies them with x, which comes through L1; then the four lanes
of a row add up (two shuffles), and the warps of a block.

    chunk of a tile:   row g:      |t = 0|t = 1|t = 2|t = 3|   · x[m, k of t]  for m = 0 … M − 1
                       row g + 8:  |t = 0|t = 1|t = 2|t = 3|   · the same x

Bytes: N · K / 2 (int4) or N · K. Unpacking eight int4 codes takes 15 instructions and each row of
x eight FMAs more: with one row nearly as long as an H100 needs to read them, with four twice as
long; that is why the kernel in `quantized_few` exists. All sums are float32, in a fixed order.
"""

import functools

from . import ptx
from .jit import jit
from .namespace import cuda, float32, uint16, uint32, uint64
from .quantized_words import dot8, floats_of
from .warp import LANES


@functools.cache
def rows_kernel(kind: str, dtype: str, M: int, warps: int, depth: int, group: int = 0):
    """The kernel for codes of `kind`, x and y of `dtype` with M rows.

    warps: of a block, which share K. depth: chunks on their way. group: k of one scale of int4.
    """
    floats = floats_of(kind)
    unpack = ptx.unpack_bf16 if dtype == "bfloat16" else ptx.unpack_f16
    GROUPED = kind == "int4"
    CODE, SCALE = "uint8", "bfloat16" if GROUPED else "float32"
    PIECES = 4 if GROUPED else 2  # of x, 8 k each, that belong to 16 bytes of codes
    CHUNK = 32 * PIECES
    STEP, LANE = (32, 8) if GROUPED else (8, 16)  # in k, between pieces and between lanes
    SPAN = max(1, group // CHUNK)  # chunks of a group
    PARTS = max(1, CHUNK // group) if GROUPED else 1  # groups of a chunk
    SUMS, CODES, FACTORS, TOTALS, VALUES = (
        16 * warps * M,
        8 * depth,
        2 * depth * PARTS,
        2 * M,
        8 * M,
    )
    THREADS = 32 * warps

    @jit(device=True)
    def load_chunk(place, scales, chunk, columns, N, codes, factors, u):
        for r in range(2):
            a, b, c, d = ptx.load_128_nc_at(place + uint64(512 * r))
            at = 8 * u + 4 * r
            codes[at] = a
            codes[at + 1] = b
            codes[at + 2] = c
            codes[at + 3] = d
            if GROUPED:
                for k in range(PARTS):
                    line = chunk * uint32(PARTS) + uint32(k) if SPAN == 1 else chunk // uint32(SPAN)
                    at = (2 * u + r) * PARTS + k
                    factors[at] = scales[uint64(line) * uint64(N) + uint64(columns[r])]

    @jit(device=True)
    def load_values(x, place, K, values):
        for m in range(M):
            words = ptx.load_128(x, uint64(m) * uint64(K) + uint64(place))
            values[8 * m], values[8 * m + 1] = unpack(words[0])
            values[8 * m + 2], values[8 * m + 3] = unpack(words[1])
            values[8 * m + 4], values[8 * m + 5] = unpack(words[2])
            values[8 * m + 6], values[8 * m + 7] = unpack(words[3])

    @jit(device=True)
    def add_products(values, w, part, r):
        for m in range(M):
            v = 8 * m
            part[r * M + m] = dot8(
                values[v], values[v + 1], values[v + 2], values[v + 3],
                values[v + 4], values[v + 5], values[v + 6], values[v + 7],
                w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7], part[r * M + m],
            )  # fmt: skip

    @jit(pointers=True, launch_bounds=(THREADS, 1))
    def quantized_rows(x: dtype, q: CODE, scales: SCALE, y: dtype, N: "uint32", K: "uint32"):
        sums = cuda.shared.array(SUMS, float32)
        codes = cuda.local.array(CODES, uint32)
        factors = cuda.local.array(FACTORS, uint16)  # as they are: converting would wait for them
        values = cuda.local.array(VALUES, float32)
        total = cuda.local.array(TOTALS, float32)
        part = cuda.local.array(TOTALS, float32)
        columns = cuda.local.array(2, uint32)
        thread = uint32(cuda.threadIdx.x)
        lane, warp = thread & uint32(31), thread >> uint32(5)
        g, t = lane >> uint32(2), lane & uint32(3)
        first = uint32(cuda.blockIdx.x) * uint32(16)
        chunks = K // uint32(CHUNK)
        stride = ((N + uint32(15)) >> uint32(4)) * uint32(1024)  # bytes of a chunk of all tiles
        base = ptx.global_address(q) + uint64(first) * uint64(64) + uint64(lane * uint32(16))
        for r in range(2):
            columns[r] = min(uint32(first + g + uint32(8 * r)), uint32(N - uint32(1)))
        for u in range(depth):
            c = uint32(warp + uint32(u * warps))
            if c < chunks:
                place = base + uint64(uint32(c * stride))
                load_chunk(place, scales, c, columns, N, codes, factors, u)
        for j in range(TOTALS):
            total[j] = float32(0)
            part[j] = float32(0)
        chunk = warp
        while chunk < chunks:
            for u in range(depth):
                c = uint32(chunk + uint32(u * warps))
                if c < chunks:
                    for p in range(PIECES):
                        k = c * uint32(CHUNK) + t * uint32(LANE) + uint32(STEP * p)
                        load_values(x, k, K, values)
                        word = 8 * u + p * 4 // PIECES
                        more = word + 1 if PIECES == 2 else word
                        add_products(values, floats(codes[word], codes[more]), part, 0)
                        add_products(values, floats(codes[word + 4], codes[more + 4]), part, 1)
                        if GROUPED and (p + 1) % (PIECES // PARTS) == 0:
                            for r in range(2):
                                at = (2 * u + r) * PARTS + p // (PIECES // PARTS)
                                factor = ptx.bf16_to_f32(factors[at])
                                for m in range(M):
                                    total[r * M + m] += factor * part[r * M + m]
                                    part[r * M + m] = float32(0)
                    after = uint32(c + uint32(depth * warps))
                    if after < chunks:
                        place = base + uint64(uint32(after * stride))
                        load_chunk(place, scales, after, columns, N, codes, factors, u)
            chunk = uint32(chunk + uint32(depth * warps))

        for j in range(TOTALS):
            value = total[j] if GROUPED else part[j]
            value += cuda.shfl_xor_sync(LANES, value, 1)
            value += cuda.shfl_xor_sync(LANES, value, 2)
            if t == 0:
                slot = warp * uint32(16 * M) + uint32(16 * (j % M) + 8 * (j // M)) + g
                sums[slot] = value
        cuda.syncthreads()
        j = thread
        while j < uint32(16 * M):
            n = uint32(first + (j & uint32(15)))
            if n < N:
                value = float32(0)
                for w in range(warps):
                    value += sums[uint32(w * 16 * M) + j]
                if not GROUPED:
                    value *= scales[n]
                ptx.store(y, uint64(j >> uint32(4)) * uint64(N) + uint64(n), value)
            j = uint32(j + uint32(THREADS))

    return quantized_rows
