"""One warp, one step: 16 cached positions against 8 or 16 query rows, on tensor cores.

With few query rows the keys are the tall operand: Sᵀ = K Qᵀ is 16 positions × 8 rows, and
Oᵀ += Vᵀ Pᵀ is 16 of D × 8 rows. Lane 4g + t of a warp loads, straight from global memory,

    K   of rows g and g + 8:                      16-byte pieces t, t + 4, t + 8, …
    V   of rows 2t, 2t + 1, 2t + 8, 2t + 9:       16-byte pieces g, g + 8

which are the registers of the mma fragments, or nearly so: the sum over D does not mind the order
of its terms, so that the eight elements of a piece stand for k = 2t, 2t + 1, 2t + 8, 2t + 9 of two
products, and Q is loaded by the same rule; of V, a byte permutation pairs the rows 2t and 2t + 1.
There is no shared memory, no ldmatrix, and no barrier. D is a constant; what a row of D elements
lacks to the next multiple of 32 counts as zeros.

    registers of a lane, D 128, 8 rows: K 32, V 32, Q 16, Oᵀ 32
    products of a step:                 8 for Sᵀ, 8 for Oᵀ, 8 rows each

The two fragments of Pᵀ come from those of Sᵀ by packing and `movmatrix`, which transposes 8 × 8.
Source: PTX ISA, "Matrix Fragments for mma.m16n8k16"; Dao 2023, "FlashAttention-2".
"""

import functools

from . import ptx
from .decode_load import pieces
from .jit import jit
from .namespace import cuda, float32, uint32, uint64
from .warp import LANES, LOWEST

LOW, HIGH = 0x5410, 0x7632  # prmt: the low halves of two words, the high halves


def columns_of(D: int) -> int:
    """D, up to the next multiple of 32."""
    return -(-D // 32) * 32


@functools.cache
def product(dtype: str, depth: int):
    """A 16 × 16 by 16 × 8 product, from one instruction, or two of depth 8 (float16 on sm_75)."""
    if depth == 8:
        half = ptx.mma_m16n8k8_f16

        @jit(device=True)
        def multiply(a0, a1, a2, a3, b0, b1, c0, c1, c2, c3):
            c0, c1, c2, c3 = half(a0, a1, b0, c0, c1, c2, c3)
            return half(a2, a3, b1, c0, c1, c2, c3)

        return multiply
    return ptx.mma_m16n8k16_bf16 if dtype == "bfloat16" else ptx.mma_m16n8k16_f16


@functools.cache
def loaders(D: int, depth: int = 16):
    """(load_keys, load_values) of one step into local arrays of D / 4 words."""
    load_piece, load_half_piece = pieces(depth)
    COLUMNS = columns_of(D)
    PIECES = COLUMNS // 32  # of a row of K, in a lane
    WHOLE = COLUMNS // 64  # 16-byte pieces of a row of V, in a lane; then perhaps one of 8 bytes
    HALF = COLUMNS % 64 != 0
    RAGGED = COLUMNS != D

    @jit(device=True)
    def load_keys(words, address, row_bytes, row, limit):
        """address: of the lane's first piece in row g. row: its position, counted from the first
        one that may be read; limit: how many may."""
        t = uint32(cuda.threadIdx.x) & uint32(3)
        upper = uint64(address + uint64(uint32(row_bytes * uint32(8))))
        for j in range(PIECES):
            inside = t * uint32(8) + uint32(32 * j) < uint32(D) if RAGGED else True
            load_piece(words, 8 * j, address + uint64(64 * j), (row < limit) & inside)
            load_piece(
                words, 8 * j + 4, upper + uint64(64 * j), (uint32(row + uint32(8)) < limit) & inside
            )

    @jit(device=True)
    def load_values(words, address, row_bytes, row, limit):
        """address: of the lane's first piece in row 2t; row: its position, as for load_keys."""
        g = (uint32(cuda.threadIdx.x) >> uint32(2)) & uint32(7)
        for r in range(4):
            down = (r & 1) + 8 * (r >> 1)
            here = uint64(address + uint64(uint32(row_bytes * uint32(down))))
            there = uint32(row + uint32(down)) < limit
            for j in range(WHOLE):
                inside = g * uint32(8) + uint32(64 * j) < uint32(D) if RAGGED else True
                load_piece(words, 16 * j + 4 * r, here + uint64(128 * j), there & inside)
            if HALF:
                inside = g * uint32(4) + uint32(64 * WHOLE) < uint32(D) if RAGGED else True
                # The lane's half piece begins 8 g bytes from there, not 16 g.
                half = here + uint64(128 * WHOLE) - uint64(g * uint32(8))
                load_half_piece(words, 16 * WHOLE + 2 * r, half, there & inside)

    return load_keys, load_values


@functools.cache
def tile(dtype: str, D: int, rows: int, depth: int = 16):
    """(load_queries, scores, accumulate) for 8 or 16 query rows of a warp."""
    multiply = product(dtype, depth)
    load_piece, _ = pieces(depth)
    pack = ptx.pack_bf16 if dtype == "bfloat16" else ptx.pack_f16
    COLUMNS = columns_of(D)
    PIECES, WHOLE, HALF, RAGGED = COLUMNS // 32, COLUMNS // 64, COLUMNS % 64 != 0, COLUMNS != D
    GROUPS = rows // 8  # of 8 query rows
    TILES = COLUMNS // 16  # of Oᵀ, for 8 rows

    @jit(device=True)
    def load_queries(words, address, row, limit):
        """address: of element 0 of query row 0; row: the lane's first, g further; limit: rows."""
        t = uint32(cuda.threadIdx.x) & uint32(3)
        for n in range(GROUPS):
            place = uint32(row + uint32(8 * n))
            here = uint64(address + uint64(uint32(place * uint32(2 * D) + t * uint32(16))))
            for j in range(PIECES):
                inside = t * uint32(8) + uint32(32 * j) < uint32(D) if RAGGED else True
                load_piece(
                    words, 4 * PIECES * n + 4 * j, here + uint64(64 * j), (place < limit) & inside
                )

    @jit(device=True)
    def scores(keys, queries, s):
        """s = Sᵀ: four registers for each 8 query rows."""
        for n in range(GROUPS):
            c0, c1, c2, c3 = float32(0), float32(0), float32(0), float32(0)
            e0, e1, e2, e3 = float32(0), float32(0), float32(0), float32(0)
            for j in range(PIECES):
                b = 4 * PIECES * n + 4 * j
                c0, c1, c2, c3 = multiply(
                    keys[8 * j], keys[8 * j + 4], keys[8 * j + 1], keys[8 * j + 5],
                    queries[b], queries[b + 1], c0, c1, c2, c3,
                )  # fmt: skip
                e0, e1, e2, e3 = multiply(
                    keys[8 * j + 2], keys[8 * j + 6], keys[8 * j + 3], keys[8 * j + 7],
                    queries[b + 2], queries[b + 3], e0, e1, e2, e3,
                )  # fmt: skip
            s[4 * n] = c0 + e0
            s[4 * n + 1] = c1 + e1
            s[4 * n + 2] = c2 + e2
            s[4 * n + 3] = c3 + e3

    @jit(device=True)
    def transposed_product(acc, place, a, b, c, d, b0, b1):
        """One tile of Oᵀ from a word of each of the four rows of V that a lane holds."""
        low, high = uint32(LOW), uint32(HIGH)
        c0, c1, c2, c3 = multiply(
            ptx.prmt(a, b, low), ptx.prmt(a, b, high), ptx.prmt(c, d, low), ptx.prmt(c, d, high),
            b0, b1, acc[place], acc[place + 1], acc[place + 2], acc[place + 3],
        )  # fmt: skip
        acc[place] = c0
        acc[place + 1] = c1
        acc[place + 2] = c2
        acc[place + 3] = c3

    @jit(device=True)
    def accumulate(values, p, acc):
        """acc += Vᵀ Pᵀ."""
        for n in range(GROUPS):
            b0 = ptx.movmatrix_trans(pack(p[4 * n], p[4 * n + 1]))
            b1 = ptx.movmatrix_trans(pack(p[4 * n + 2], p[4 * n + 3]))
            for j in range(WHOLE):
                for k in range(4):
                    w = 16 * j + k
                    transposed_product(
                        acc, 4 * (TILES * n + 4 * j + k),
                        values[w], values[w + 4], values[w + 8], values[w + 12], b0, b1,
                    )  # fmt: skip
            if HALF:
                for k in range(2):
                    w = 16 * WHOLE + k
                    transposed_product(
                        acc, 4 * (TILES * n + 4 * WHOLE + k),
                        values[w], values[w + 2], values[w + 4], values[w + 6], b0, b1,
                    )  # fmt: skip

    return load_queries, scores, accumulate


@functools.cache
def soften(rows: int, tiles: int):
    """The online softmax of a step: scores in s become weights, sums and accumulators follow."""
    GROUPS = rows // 8

    @jit(device=True)
    def online(s, scale, position, last, window, peak, total, acc):
        """last[c] − position: how many positions further on the last one is that column c sees,
        counted from the row of s[4 n + c]; as an unsigned number very many where that row is past
        it, and then no less than any window.

        scale holds log2 e; peak and total are in the base-2 domain. A row that has seen nothing
        has peak −∞: it is shifted by 0, since −∞ − (−∞) would be NaN.
        """
        for n in range(GROUPS):
            for c in range(2):
                a, b, k = 4 * n + c, 4 * n + c + 2, 2 * n + c
                before = uint32(last[k] - position)
                s[a] = s[a] * scale if before < window else float32(LOWEST)
                s[b] = s[b] * scale if uint32(before - uint32(8)) < window else float32(LOWEST)
                top = max(s[a], s[b])
                for r in range(3):
                    top = max(top, cuda.shfl_xor_sync(LANES, top, 4 << r))
                top = max(top, peak[k])
                shift = top if top != float32(LOWEST) else float32(0)
                shrink = ptx.ex2(peak[k] - shift)
                peak[k] = top
                s[a] = ptx.ex2(s[a] - shift)
                s[b] = ptx.ex2(s[b] - shift)
                total[k] = total[k] * shrink + (s[a] + s[b])
                for i in range(tiles):
                    acc[4 * (tiles * n + i) + c] *= shrink
                    acc[4 * (tiles * n + i) + c + 2] *= shrink

    return online
