"""A warp's products with tiles in shared memory, for every kernel of `attention_warp`.

A warp owns a strip of 16 · strips rows and multiplies on the tensor cores (`mma.sync`), lane
4 g + t holding two neighbouring columns of rows g and g + 8 of every 16 × 8 accumulator:

    rows(acc, a, b)     acc = A Bᵀ, A the strip (strip × D), B a tile (N × D)      S = Q Kᵀ
    held(acc, words, b) the same with A already in registers
    add(acc, p, b, 0)   acc += P B, P (strip × N) in accumulators, B a tile (N × D)    O += P V

`add` needs no shuffle: the accumulator layout of two neighbouring 16 × 8 tiles is the layout of a
16 × 16 operand. Source: PTX ISA, "Matrix Fragments for mma.m16n8k16"; Dao 2023, "FlashAttention-2".

A lane's rows of a tile differ by multiples of 8, so that its swizzle never changes: it computes one
address a tile and reaches every piece by an exclusive or and an addition of constants.
"""

import functools
from typing import Any, NamedTuple

from . import ptx
from .attention_warp_tiles import PIECE, Format, pack_of, place_of
from .jit import jit
from .namespace import cuda, float32, uint32, uint64


class Lanes(NamedTuple):
    """Where a lane finds what `ldmatrix` asks of it: byte offsets in a tile, once per tile."""

    strip: Any  # (first): 16 × 16 operands whose rows begin at `first`; also rows of `add`'s B
    columns: Any  # (): two 16 × 8 operands from 16 rows of a tile, for A Bᵀ
    step: Any  # (at, k): the same, k · 32 bytes further along the rows


@functools.cache
def lanes_of(form: Format) -> Lanes:
    place, MASK = place_of(form), form.swizzled

    @jit(device=True)
    def strip(first):
        lane = uint32(cuda.threadIdx.x) & uint32(31)
        return place(uint32(first + (lane & uint32(15))), lane >> uint32(4))

    @jit(device=True)
    def columns():
        lane = uint32(cuda.threadIdx.x) & uint32(31)
        row = (lane & uint32(7)) + ((lane >> uint32(4)) << uint32(3))
        return place(uint32(row), (lane >> uint32(3)) & uint32(1))

    @jit(device=True)
    def step(at, k):
        return uint32((at ^ uint32((2 * k & MASK) * PIECE)) + uint32((2 * k & ~MASK) * PIECE))

    return Lanes(strip, columns, step)


@functools.cache
def multiply_of(form: Format) -> Any:
    """acc[i : i + 4] += A (16 × 16) B (16 × 8), one 16-deep product or two 8-deep ones."""
    deep = ptx.mma_m16n8k16_bf16 if form.dtype == "bfloat16" else ptx.mma_m16n8k16_f16
    flat = ptx.mma_m16n8k8_f16

    @jit(device=True)
    def multiply(acc, i, a0, a1, a2, a3, b0, b1):
        c = deep(a0, a1, a2, a3, b0, b1, acc[i], acc[i + 1], acc[i + 2], acc[i + 3])
        acc[i], acc[i + 1], acc[i + 2], acc[i + 3] = c[0], c[1], c[2], c[3]

    @jit(device=True)
    def multiply_turing(acc, i, a0, a1, a2, a3, b0, b1):
        c = flat(a0, a1, b0, acc[i], acc[i + 1], acc[i + 2], acc[i + 3])
        c = flat(a2, a3, b1, c[0], c[1], c[2], c[3])
        acc[i], acc[i + 1], acc[i + 2], acc[i + 3] = c[0], c[1], c[2], c[3]

    return multiply_turing if form.turing else multiply


class Products(NamedTuple):
    """Device functions; see the head of this file. Addresses are a lane's, from `Lanes`."""

    hold: Any  # (words, a): the strip's rows into registers
    rows: Any
    held: Any
    add: Any


def unrolled(step: Any, count: int, first: int = 0) -> Any:
    """A function that calls step(acc, left, words, b, k) for count values of k from `first` on.

    A loop that the compiler does not unroll begins every round with fetches that nothing hides;
    straight-line code fetches the operands of one k during the products of the one before.
    """
    last = first + count - 1
    before = unrolled(step, count - 1, first) if count > 1 else None

    @jit(device=True)
    def single(acc, left, words, b):
        step(acc, left, words, b, last)

    @jit(device=True)
    def several(acc, left, words, b):
        before(acc, left, words, b)
        step(acc, left, words, b, last)

    return several if count > 1 else single


@functools.cache
def products_of(form: Format, strips: int, N: int, parts: int = 1, unroll: bool = True) -> Products:
    """The products of a warp that owns 16 · strips rows, with tiles of N rows.

    A call of `add` multiplies one of `parts` parts of P's columns, the one given by its number.
    unroll: without loops, where registers suffice.

    Accumulators are local arrays of float32: element 4 (m · tiles + j) + r is register r of the
    16 × 8 tile j of strip m, tiles being N / 8 for `rows` and `held`, D / 8 for `add`.
    """
    multiply, pack = multiply_of(form), pack_of(form.dtype)
    step = lanes_of(form).step
    K, TILES, WIDE, ROW = form.D // 16, N // 8, form.D // 8, form.row
    WORDS, DEPTH = 4 * strips, N // (16 * parts)

    @jit(device=True)
    def fetch(words, i, a, k):
        for m in range(strips):
            w = ptx.ldmatrix_x4(step(uint32(a + uint32(m * 16 * ROW)), k))
            for r in range(4):
                words[i + 4 * m + r] = w[r]

    @jit(device=True)
    def hold(words, a):
        for k in range(K):
            fetch(words, 4 * strips * k, a, k)

    @jit(device=True)
    def columns(acc, words, i, b, k):
        for j in range(N // 16):
            w = ptx.ldmatrix_x4(step(uint32(b + uint32(j * 16 * ROW)), k))
            for m in range(strips):
                n, at = i + 4 * m, 4 * (m * TILES + 2 * j)
                a0, a1, a2, a3 = words[n], words[n + 1], words[n + 2], words[n + 3]
                multiply(acc, at, a0, a1, a2, a3, w[0], w[1])
                multiply(acc, at + 4, a0, a1, a2, a3, w[2], w[3])

    @jit(device=True)
    def row_step(acc, a, words, b, k):
        fetch(words, 0, a, k)
        columns(acc, words, 0, b, k)

    row_steps = unrolled(row_step, K)
    straight = bool(unroll)

    @jit(device=True)
    def rows(acc, a, b):
        for i in range(4 * strips * TILES):
            acc[i] = float32(0)
        words = cuda.local.array(WORDS, uint32)
        if straight:
            row_steps(acc, a, words, b)
        else:
            for k in range(K):
                row_step(acc, a, words, b, k)

    @jit(device=True)
    def held(acc, words, b):
        for i in range(4 * strips * TILES):
            acc[i] = float32(0)
        for k in range(K):
            columns(acc, words, 4 * strips * k, b, k)

    @jit(device=True)
    def add_step(acc, p, words, b, k):
        for m in range(strips):
            for r in range(4):
                at = 4 * (m * TILES + 2 * k) + 2 * r
                words[4 * m + r] = pack(p[at], p[at + 1])
        for j in range(K):
            w = ptx.ldmatrix_x4_trans(step(uint32(b + uint32(k * 16 * ROW)), j))
            for m in range(strips):
                at = 4 * (m * WIDE + 2 * j)
                a0, a1 = words[4 * m], words[4 * m + 1]
                a2, a3 = words[4 * m + 2], words[4 * m + 3]
                multiply(acc, at, a0, a1, a2, a3, w[0], w[1])
                multiply(acc, at + 4, a0, a1, a2, a3, w[2], w[3])

    first_steps, second_steps = unrolled(add_step, DEPTH), unrolled(add_step, DEPTH, DEPTH)

    @jit(device=True)
    def add(acc, p, b, part):
        words = cuda.local.array(WORDS, uint32)
        if straight:
            if part == 0:
                first_steps(acc, p, words, b)
            else:
                second_steps(acc, p, words, b)
        else:
            for k in range(part * DEPTH, (part + 1) * DEPTH):
                add_step(acc, p, words, b, k)

    return Products(hold, rows, held, add)


@functools.cache
def output_of(form: Format, strips: int):
    """A function that writes a strip of accumulators, its rows times `factor`, as 16-bit numbers.

    By way of the strip's own part of a tile in shared memory, so that it leaves in pieces of 16
    bytes: as the accumulators lie, a lane would write 4.
    """
    place, pack = place_of(form), pack_of(form.dtype)
    WIDE, PIECES, full = form.D // 8, form.row // PIECE, form.full
    ROWS = 16 * strips

    @jit(device=True)
    def write(tile, acc, factor, target, stride, mine, first, end, width):
        lane = uint32(cuda.threadIdx.x) & uint32(31)
        for row in range(2 * strips):
            r = uint32(mine + uint32(8 * row) + (lane >> uint32(2)))
            for j in range(WIDE):
                at = 4 * ((row // 2) * WIDE + j) + 2 * (row % 2)
                word = pack(acc[at] * factor[row], acc[at + 1] * factor[row])
                to = uint32(tile + place(r, uint32(j)) + (lane & uint32(3)) * uint32(4))
                ptx.store_shared_32_at(to, word)
        cuda.syncwarp()
        for i in range(ROWS * PIECES // 32):
            n = uint32(lane + uint32(32 * i))
            r, piece = uint32(mine + uint32(n // uint32(PIECES))), uint32(n % uint32(PIECES))
            inside = uint32(first + r) < end
            if not full:
                inside = inside and uint32(piece * uint32(PIECE)) < width
            if inside:
                a, b, c, d = ptx.load_shared_128_at(uint32(tile + place(r, piece)))
                offset = uint64(uint32(first + r)) * uint64(stride) + uint64(piece * uint32(PIECE))
                ptx.store_128_at(uint64(target + offset), a, b, c, d)

    return write
