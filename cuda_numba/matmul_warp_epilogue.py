"""From a warp's accumulators to the result in memory: through shared memory, in whole sectors.

A lane holds pairs of neighbouring columns, eight bytes of float32 in each of many rows. Written
straight to memory, a request would touch half of each 32-byte sector of bfloat16. So the warp lays
its tile into its own part of shared memory, which the product needs no more, and takes it out again
four columns a lane, a row of the tile on neighbouring lanes:

    64 columns, bfloat16      lanes 0 … 15: 16 · 8 bytes, all of one row      16 … 31: the next row

    out = acc + bias + beta · out       in float32, rounded once

Rows in shared memory are 32 bytes longer than the tile is wide: what four rows of lanes write at
once then lies in different banks. What runs along them is read in order, and has no conflicts.
"""

import functools
from typing import NamedTuple

from . import matmul_warp_registers as registers
from . import ptx
from .jit import jit
from .namespace import cuda, float32, int32, uint32, uint64

COLUMNS = 4  # of one lane
BATCH = 4  # rows of a lane that are read from shared memory together


class Epilogue(NamedTuple):
    """What happens to the sums on their way out: compile-time constants."""

    rows: int  # of a warp's tile
    columns: int
    out: str  # the name of the result's format
    bias: str | None  # of the bias's format, None where there is none
    accumulate: bool  # beta · out is added
    wide: bool  # four columns of out lie at a multiple of their bytes

    @property
    def pitch(self) -> int:
        """Bytes of a row in shared memory."""
        return 4 * self.columns + 32

    @property
    def nbytes(self) -> int:
        """Shared memory of a warp."""
        return self.rows * self.pitch


@functools.cache
def writer(form: Epilogue, shape: registers.Shape):
    """write(state, shared, out, at, pitch, top, side, row, column, M, N, bias, beta): the tile.

    shared: where the warp's own part of shared memory begins; at: the index of the matrix's first
    element in `out`; row, column: of the tile's first element in the matrix of M × N. What lies
    before row `top` and before column `side` is another block's to write.
    """
    PITCH, ACROSS = form.pitch, form.columns // COLUMNS
    DOWN = 32 // ACROSS  # rows that a warp takes out at once
    STEPS = form.rows // DOWN
    BIAS = form.bias is not None
    put = _put(form)
    lay = registers.lay(shape, PITCH)

    @jit(device=True)
    def write(state, shared, out, at, pitch, top, side, row, column, M, N, bias, beta):
        lane = registers.thread_again() & uint32(31)
        values = cuda.local.array((BATCH, COLUMNS), float32)
        extra = cuda.local.array(COLUMNS, float32)
        lay(state, shared + (lane >> uint32(2)) * uint32(PITCH) + (lane & uint32(3)) * uint32(8))
        cuda.syncwarp()
        down = uint32(lane // uint32(ACROSS))
        across = uint32(lane % uint32(ACROSS)) * uint32(COLUMNS)
        place = uint32(shared + down * uint32(PITCH) + across * uint32(4))
        row = uint32(row + down)
        column = uint32(column + across)
        left = int32(int32(N) - int32(column)) if column >= side else int32(0)
        for k in range(COLUMNS):
            extra[k] = float32(0)
            if BIAS and int32(k) < left:
                extra[k] = ptx.load(bias, column + uint32(k))
        at += uint64(row) * uint64(pitch) + uint64(column)
        step = uint32(0)
        while step < uint32(STEPS):
            for q in range(BATCH):
                words = ptx.load_shared_128_at(place + uint32(q * DOWN * PITCH))
                for k in range(COLUMNS):
                    values[q, k] = ptx.from_bits(words[k]) + extra[k]
            for q in range(BATCH):
                if row >= top and row < M and left > int32(0):
                    put(out, at, values, q, left, beta)
                row += uint32(DOWN)
                at += uint64(uint32(DOWN)) * uint64(pitch)
            place += uint32(BATCH * DOWN * PITCH)
            step += uint32(BATCH)

    return write


def _put(form: Epilogue):
    """put(out, at, values, q, left, beta): four neighbours, values[q], `left` in the matrix."""
    WIDE, ACCUMULATE, HALVES = form.wide, form.accumulate, form.out != "float32"
    pack = ptx.pack_f16 if form.out == "float16" else ptx.pack_bf16
    unpack = ptx.unpack_f16 if form.out == "float16" else ptx.unpack_bf16

    @jit(device=True)
    def add_old(out, at, values, q, beta):
        if HALVES:
            words = ptx.load_64(out, at)
            for k in range(2):
                pair = unpack(words[k])
                values[q, 2 * k] += beta * pair[0]
                values[q, 2 * k + 1] += beta * pair[1]
        else:
            old = ptx.load_128(out, at)
            for k in range(4):
                values[q, k] += beta * ptx.from_bits(old[k])

    @jit(device=True)
    def put(out, at, values, q, left, beta):
        if WIDE and left >= int32(COLUMNS):
            if ACCUMULATE:
                add_old(out, at, values, q, beta)
            if HALVES:
                low = pack(values[q, 0], values[q, 1])
                ptx.store_64(out, at, low, pack(values[q, 2], values[q, 3]))
            else:
                ptx.store_128(
                    out, at, ptx.bits(values[q, 0]), ptx.bits(values[q, 1]),
                    ptx.bits(values[q, 2]), ptx.bits(values[q, 3]),
                )  # fmt: skip
        else:
            for k in range(COLUMNS):
                if int32(k) < left:
                    value = values[q, k]
                    if ACCUMULATE:
                        value += beta * ptx.load(out, at + uint64(k))
                    ptx.store(out, at + uint64(k), value)

    return put
