"""Tiles in shared memory, for every kernel of `attention_warp`: how they lie, how they come there.

A tile is some rows of Q, K, V or dO, D numbers of 16 bits each, in pieces of 16 bytes. The eight
lanes that fetch a piece of eight neighbouring rows at once (`ldmatrix`) must meet eight different
groups of banks, so piece c of row r stands where piece c ^ swizzle(r) would:

    D 64, 128: swizzle(r) = r mod 8            D 32, 96: swizzle(r) = (r / 2) mod 4
    row 0  |0 1 2 3 4 5 6 7|                   rows 0, 1  |0 1 2 3|0 1 2 3|
    row 1  |1 0 3 2 5 4 7 6|                   rows 2, 3  |1 0 3 2|1 0 3 2|      128 bytes a line
    row 2  |2 3 0 1 6 7 4 5|                   rows 4, 5  |2 3 0 1|2 3 0 1|
"""

import functools
from typing import Any, NamedTuple

from . import ptx
from .jit import jit
from .namespace import cuda, uint8, uint32, uint64
from .ptx.instruction import instruction

PIECE = 16  # bytes of a copy, and of a row of an 8 × 8 matrix
ALIGNED = 128  # where a tile begins; dynamic shared memory promises 16


class Format(NamedTuple):
    """What the numbers are and which instructions there are: compile-time constants."""

    dtype: str  # "bfloat16" or "float16"
    D: int  # numbers in a row of a tile: 32, 64, 96 or 128
    full: bool  # the tensors' rows have D numbers; else they are shorter and zeros follow
    turing: bool  # sm_75: no cp.async, products 8 deep

    @property
    def row(self) -> int:
        """Bytes of a row of a tile."""
        return 2 * self.D

    @property
    def swizzled(self) -> int:
        """The bits of a piece's number that the swizzle changes."""
        return 7 if self.D % 64 == 0 else 3


# ---- single instructions, as this architecture has them


class Copy(NamedTuple):
    """Copies from global to shared memory that go on while the thread does."""

    start: Any  # (shared, source, inside): 16 bytes, or zeros where not inside
    commit: Any
    wait: Any  # until all that were started have come


@functools.cache
def copy_of(turing: bool) -> Copy:
    """On sm_75 a copy is a load and a store, finished when it returns; the rest does nothing."""

    @jit(device=True)
    def start(shared, source, inside):
        ptx.cp_async_16_zfill(shared, source, uint32(16) if inside else uint32(0))

    @jit(device=True)
    def start_turing(shared, source, inside):
        a, b, c, d = uint32(0), uint32(0), uint32(0), uint32(0)
        if inside:
            a, b, c, d = ptx.load_128_at(source)
        ptx.store_shared_128_at(shared, a, b, c, d)

    @jit(device=True)
    def commit():
        ptx.cp_async_commit()

    @jit(device=True)
    def wait():
        ptx.cp_async_wait(0)

    @jit(device=True)
    def nothing():
        pass

    return Copy(start_turing, nothing, nothing) if turing else Copy(start, commit, wait)


def pack_of(dtype: str) -> Any:
    return ptx.pack_bf16 if dtype == "bfloat16" else ptx.pack_f16


def unpack_of(dtype: str) -> Any:
    return ptx.unpack_bf16 if dtype == "bfloat16" else ptx.unpack_f16


# ---- where things begin


@instruction("mov.u32 $0, %tid.x;", "u32()", memory=False)
def thread_anew(t):
    """threadIdx.x, read each time: what is made of it is made again instead of being kept.

    The loops of these kernels need every register for operands; addresses of copies, which cost a
    few instructions a tile, would otherwise stay in some of them from before the loop on.
    """
    return t.x


@jit(device=True)
def shared_start():
    """The first multiple of ALIGNED bytes in dynamic shared memory."""
    start = ptx.shared_address(cuda.shared.array(0, uint8))
    return uint32((start + uint32(ALIGNED - 1)) & uint32(0xFFFFFFFF ^ (ALIGNED - 1)))


@jit(device=True)
def head_start(x, batch, batch_stride, head, head_stride):
    """The global address of a head's first row; strides in bytes."""
    start = ptx.global_address(x) + uint64(batch) * batch_stride
    return uint64(start + uint64(head) * head_stride)


# ---- tiles


@functools.cache
def place_of(form: Format) -> Any:
    """Byte offset of piece `piece` of row `row` in a tile, swizzled."""
    ROW, MASK, SHIFT = form.row, form.swizzled, 0 if form.swizzled == 7 else 1

    @jit(device=True)
    def place(row, piece):
        swizzle = (row >> uint32(SHIFT)) & uint32(MASK)
        return uint32(row * uint32(ROW) + ((piece ^ swizzle) << uint32(4)))

    return place


@functools.cache
def tile_copy(form: Format, rows: int, threads: int) -> Any:
    """A function (shared, source, stride, first, end, width) that starts the copy of a tile.

    Rows first, first + 1, … of the matrix at the global address `source`, `stride` bytes apart;
    rows from `end` on, and columns from `width` bytes on, become zeros. 8 (or 4) neighbouring
    threads copy 128 (or 64) neighbouring bytes.
    """
    start, place = copy_of(form.turing).start, place_of(form)
    LANES = 8 if form.D % 64 == 0 else 4
    STEP, GROUPS = threads // LANES, form.row // (PIECE * LANES)
    COUNT, ROW, full = -(-rows // STEP), form.row, form.full
    guarded = rows % STEP != 0

    @jit(device=True)
    def copy(shared, source, stride, first, end, width):
        thread = thread_anew()
        row, piece = uint32(thread // uint32(LANES)), uint32(thread % uint32(LANES))
        to = uint32(shared + place(row, piece))
        column = uint32(piece * uint32(PIECE))
        for i in range(COUNT):
            if not guarded or uint32(row + uint32(i * STEP)) < uint32(rows):
                r = uint32(first + row + uint32(i * STEP))
                address = uint64(source + uint64(r) * uint64(stride) + uint64(column))
                for g in range(GROUPS):
                    offset = g * LANES * PIECE
                    inside = r < end
                    if not full:
                        inside = inside and uint32(column + uint32(offset)) < width
                    start(
                        uint32(to + uint32(i * STEP * ROW + offset)),
                        uint64(address + uint64(offset)),
                        inside,
                    )

    return copy
