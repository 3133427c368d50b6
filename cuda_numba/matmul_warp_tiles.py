"""Tiles of 16-bit matrices on their way: global memory → shared memory → fragments of `mma.sync`.

An operand of C = A B lies in memory with K along its rows (K-major) or across them (MN-major: the
rows run along M or N, see `matmul_operands`). Both are copied as they lie, in pieces of 16 bytes,
and the tensor core gets what it wants from `ldmatrix`, which can transpose on the way:

    K-major, depth 64: a line is a row          MN-major: a line is 64 columns of one k; a tile of
    of the tile, 64 values of k                 128 columns is two panels of `depth` lines

    line 0   |p0|p1|p2|p3|p4|p5|p6|p7|          128 bytes: eight pieces, one wavefront of the banks
    line 1   |p1|p0|p3|p2|p5|p4|p7|p6|          piece p of line r lies at place p ^ (r mod 8)
    line 2   |p2|p3|p0|p1|p6|p7|p4|p5|

`ldmatrix` reads one piece of eight neighbouring lines: without the exclusive-or all eight would lie
in the same four banks and take eight wavefronts, with it they fill the 32 banks once. Lines of 64
bytes (K-major, depth 32) lie two to a row of the banks: there the place is p ^ (r / 2 mod 4).

Exclusive-or also makes the addresses cheap. A step of 16 along k moves a K-major address from piece
p to piece p ^ 2 s, and a step of 16 columns does the same to an MN-major one; tiles begin at
multiples of 128 bytes, so that one exclusive-or of the whole address does it.

At the edges of a matrix what is missing is zero in shared memory. (PTX ISA, "ldmatrix"; the swizzle
is that of TMA's 128-byte mode.)
"""

import functools
from typing import NamedTuple

from . import matmul_warp_registers as registers
from . import ptx
from .emulator import async_copy
from .jit import jit
from .namespace import int32, uint32, uint64
from .ptx.instruction import instruction

PIECE = 8  # elements of 16 bits in one copy of 16 bytes
PANEL = 64  # columns in a line of 128 bytes


@instruction("cp.async.cg.shared.global.L2::256B [$0], [$1], 16;", "void(u32, u64)", cc=(8, 0))
def cp_async_16_l2_256(t, shared, source):
    """As ptx.cp_async_16; L2 fetches 256 bytes around it: the next tile along K as well."""
    async_copy.start(t, "cp_async_16_l2_256", shared, source, 16, 16)


class Operand(NamedTuple):
    """One of the two matrices, as the blocks of a kernel see it: compile-time constants."""

    first: bool  # A (M × K), else B (K × N)
    k_major: bool  # K runs along the rows in memory
    extent: int  # rows of A or columns of B in a block's tile
    depth: int  # k in a tile: 32 or 64
    warp: int  # rows of A or columns of B in a warp's tile
    exact: bool  # no tile reaches over the edges of the matrix: no guards
    wide: bool  # every row begins at a multiple of 16 bytes, else element by element
    swizzled: bool = True  # False: every piece at its own place, to see what that costs

    @property
    def nbytes(self) -> int:
        return 2 * self.extent * self.depth

    @property
    def layout(self) -> tuple[int, int, int]:
        """(bytes of a line, shift, mask): piece p of line r lies at p ^ (r >> shift & mask)."""
        if self.k_major and self.depth == 32:
            return 64, 1, 3 * self.swizzled
        return 128, 0, 7 * self.swizzled


class Mover(NamedTuple):
    """How the threads of a block bring a tile into shared memory: functions for kernels.

    state = begin(x, pitch, corner, size, K, thread)
                            where the thread's pieces of the first tile come from. x: the address of
                            the matrix; corner: the tile's first row of A or column of B, of `size`
    place(thread)           where its first piece goes, in bytes of the tile
    state = advance(state)  the tile after that along K
    copy[0](shared, state)  its pieces by cp.async; copy[1] and copy[2]: half of them each
    fetch(words, state), then keep(words, shared)
                            the same in two halves, through registers: words (passes, 4) uint32
    """

    begin: object
    place: object
    advance: object
    copy: tuple
    fetch: object
    keep: object
    passes: int


@functools.cache
def mover(form: Operand, threads: int) -> Mover:
    """The functions for a block of so many threads, whose pieces of a tile lie `passes` apart."""
    LINE, SHIFT, MASK = form.layout
    PIECES = LINE // 16
    LINES = threads // PIECES  # that one pass fills
    PASSES = form.nbytes // 16 // threads
    DEPTH, EXACT, WIDE, K_MAJOR = form.depth, form.exact, form.wide, form.k_major
    # Pass p is LINES · (p mod GROUPS) lines and p / GROUPS panels from pass 0.
    GROUPS = PASSES if K_MAJOR else DEPTH // LINES
    if LINES % 8 or PASSES * threads * 16 != form.nbytes or not GROUPS:
        raise ValueError(f"form: {threads} threads cannot share the tile {form} evenly")

    @jit(device=True)
    def begin(x, pitch, corner, size, K, thread):
        line = uint32(thread // uint32(PIECES))
        column = uint32((thread % uint32(PIECES)) * uint32(PIECE))
        rows, columns = size, K
        if K_MAJOR:
            line = uint32(line + corner)
        else:
            column = uint32(column + corner)
            rows, columns = K, size
        at = x + uint64(2) * (uint64(line) * uint64(pitch) + uint64(column))
        return (
            at,
            uint32(pitch),
            int32(int32(rows) - int32(line)),
            int32(int32(columns) - int32(column)),
        )

    @jit(device=True)
    def place(thread):
        line = uint32(thread // uint32(PIECES))
        piece = uint32(thread % uint32(PIECES)) ^ ((line >> uint32(SHIFT)) & uint32(MASK))
        return uint32(line * uint32(LINE) + piece * uint32(16))

    @jit(device=True)
    def advance(state):
        at, pitch, rows, columns = state
        if K_MAJOR:
            return at + uint64(2 * DEPTH), pitch, rows, int32(columns - int32(DEPTH))
        return at + uint64(2 * DEPTH) * uint64(pitch), pitch, int32(rows - int32(DEPTH)), columns

    @jit(device=True)
    def source(p, state):
        lines = uint32(uint32(2 * LINES) * state[1]) * uint32(p % GROUPS)
        return state[0] + uint64(uint32(lines + uint32(p // GROUPS * 2 * PANEL)))

    @jit(device=True)
    def inside(p, state):
        """Elements of the thread's piece of pass p that the matrix has: 0 to 8."""
        count = min(max(int32(state[3] - int32(p // GROUPS * PANEL)), int32(0)), int32(PIECE))
        return uint32(count) if int32(p % GROUPS * LINES) < state[2] else uint32(0)

    @jit(device=True)
    def piece_of(p, state):
        at = source(p, state)
        if WIDE and EXACT:
            return ptx.load_128_at(at)
        count = inside(p, state)
        if WIDE and count == uint32(PIECE):
            return ptx.load_128_at(at)
        return (
            pair_of(at, count, 0),
            pair_of(at, count, 2),
            pair_of(at, count, 4),
            pair_of(at, count, 6),
        )

    def copier(FIRST, LAST):
        @jit(device=True)
        def copy(shared, state):
            for p in range(FIRST, LAST):
                to = shared + uint32(p * LINES * LINE)
                if not WIDE:
                    found = piece_of(p, state)
                    ptx.store_shared_128_at(to, found[0], found[1], found[2], found[3])
                elif EXACT:
                    cp_async_16_l2_256(to, source(p, state))
                else:
                    ptx.cp_async_16_zfill(to, source(p, state), uint32(2) * inside(p, state))

        return copy

    @jit(device=True)
    def fetch(words, state):
        for p in range(PASSES):
            found = piece_of(p, state)
            for k in range(4):
                words[p, k] = found[k]

    @jit(device=True)
    def keep(words, shared):
        for p in range(PASSES):
            to = shared + uint32(p * LINES * LINE)
            ptx.store_shared_128_at(to, words[p, 0], words[p, 1], words[p, 2], words[p, 3])

    copy = copier(0, PASSES), copier(0, PASSES // 2), copier(PASSES // 2, PASSES)
    return Mover(begin, place, advance, copy, fetch, keep, PASSES)


@jit(device=True)
def pair_of(address, count, k):
    """Elements k and k + 1 of a piece in one word, zeros from `count` on."""
    low = uint32(0)
    high = uint32(0)
    if uint32(k) < count:
        low = uint32(ptx.load_16_at(address + uint64(2 * k)))
    if uint32(k + 1) < count:
        high = uint32(ptx.load_16_at(address + uint64(2 * k + 2)))
    return uint32(low | (high << uint32(16)))


@functools.cache
def lanes(form: Operand):
    """lanes(lane, begin): what a lane adds to the address of a tile to get at fragments; begin: the
    warp's first row of A or column of B in the tile."""
    LINE, SHIFT, MASK = form.layout
    K_MAJOR, DEPTH = form.k_major, form.depth
    if not K_MAJOR and PANEL % form.warp and form.warp % PANEL:
        raise ValueError(f"form: a warp's {form.warp} columns do not fit lines of {PANEL}")
    # Lanes 8 q to 8 q + 7 address matrix q of four: A's come rows first (0, 1 | 2, 3 along k), B's
    # k first; transposed, each takes the other's order.
    ROWS_FIRST = form.first == K_MAJOR

    @jit(device=True)
    def lanes(lane, begin):
        if ROWS_FIRST:
            line = lane & uint32(15)
            piece = lane >> uint32(4)
        else:
            line = (lane & uint32(7)) + ((lane >> uint32(4)) << uint32(3))
            piece = (lane >> uint32(3)) & uint32(1)
        key = (line >> uint32(SHIFT)) & uint32(MASK)
        if K_MAJOR:
            line += begin
        else:
            line += uint32(begin // uint32(PANEL)) * uint32(DEPTH)
            piece += uint32(uint32(begin % uint32(PANEL)) // uint32(PIECE))
        return uint32(line * uint32(LINE) + ((piece ^ key) << uint32(4)))

    return lanes


def fragments(form: Operand) -> list[registers.Fragments]:
    """Where a warp's fragments for k from 0, 16, 32, … on lie, from a tile's address plus what
    `lanes` says on. For each 16 rows of A four registers; for each 16 columns of B two of the first
    8 and two of the rest."""
    line = form.layout[0]
    blocks, steps = range(form.warp // 16), range(form.depth // 16)
    if form.k_major:
        moves = [[(32 * step, 16 * line * i) for i in blocks] for step in steps]
    else:
        panel = form.depth * line
        moves = [
            [(32 * (i % 4), i // 4 * panel + 16 * step * line) for i in blocks] for step in steps
        ]
    return [registers.Fragments(tuple(found), not form.k_major) for found in moves]
