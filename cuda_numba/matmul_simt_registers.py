"""A tile of float32 sums in a thread's registers: one instruction for kernels each, as one tuple.

    state    rows · columns sums, then rows numbers of A and columns of B: one line, one k

    state = first(a, b)           sums of zero, and the numbers of line 0
    state = walk(state, a, b)     for each of its lines: load the line's numbers while the present
                                  ones are multiplied, which are rows · columns multiply-adds
    put(state, …)                 the sums to memory, 16 bytes at a time

A warp's 32 lanes lie as lanes_m × lanes_n. Lane (y, x) has rows 4 y … 4 y + 3 of its warp's tile,
and those 4 · lanes_m further on, and so on; columns likewise. So what neighbouring lanes read at
once lies side by side in the banks of shared memory, and what they write in the same sectors:

    columns   0 … 3   4 … 7   …   28 … 31   32 … 35   …          8 lanes, 8 columns each
    lane x    0       1           7         0

Why not loops in the kernel: see `matmul_warp_registers`; the sums must be indexed by constants.
"""

import functools
from typing import NamedTuple

import numpy as np
from llvmlite import ir

from .ptx.instruction import Instruction, instruction
from .ptx.memory import fetch_at

FLOAT = ir.FloatType()
BANKS = 32


class Grid(NamedTuple):
    """How a block's tile of the result is shared out, and how deep it is along K."""

    lanes_m: int  # of a warp along M; 32 / lanes_m along N
    rows: int  # sums of one lane: a multiple of 4
    columns: int
    warps_m: int
    warps_n: int
    k: int  # lines of a tile: 8 or 16
    blocks: int = 2  # at least so many on a multiprocessor

    lanes_n = property(lambda self: 32 // self.lanes_m)
    warp_m = property(lambda self: self.lanes_m * self.rows)
    warp_n = property(lambda self: self.lanes_n * self.columns)
    m = property(lambda self: self.warp_m * self.warps_m)
    n = property(lambda self: self.warp_n * self.warps_n)
    threads = property(lambda self: 32 * self.warps_m * self.warps_n)
    sums = property(lambda self: self.rows * self.columns)
    words = property(lambda self: self.sums + self.rows + self.columns)


def key_step(depth: int) -> int:
    """Number x of line k of a tile in shared memory lies at x ^ (k / 4 · key_step).

    Threads that store four lines each then reach 32 different banks, and reads of a line stay
    whole: the exclusive-or moves pieces of 4 numbers or more within 128 bytes.
    """
    return BANKS // (depth // 4) % BANKS


def moves(grid: Grid, k: int, along_m: bool) -> list[tuple[int, int]]:
    """Where a lane's numbers of line k lie, 16 bytes each: (address ^ flip) + skip."""
    count, lanes, extent = (
        (grid.rows, grid.lanes_m, grid.m) if along_m else (grid.columns, grid.lanes_n, grid.n)
    )
    offsets = [4 * lanes * c for c in range(count // 4)]
    key = k // 4 * key_step(grid.k)
    return [(4 * (key ^ x % BANKS), 4 * (x // BANKS * BANKS + k * extent)) for x in offsets]


def _line(grid: Grid, k: int) -> list[tuple]:
    """(operand, flip, skip) of all reads of line k, in the order of the state."""
    return [(side, *move) for side in (0, 1) for move in moves(grid, k, side == 0)]


def _lower_line(e, addresses, line):
    values = []
    for side, flip, skip in line:
        at = e.builder.xor(addresses[side].value, e.integer(flip, "u32"))
        at = e.builder.add(at, e.integer(skip, "u32"))
        values += [e.builder.bitcast(w, FLOAT) for w in fetch_at(e, at, 4, "", "shared")]
    return values


def _read_line(t, addresses, line, number):
    parts = []
    for side, flip, skip in line:
        at, via = (addresses[side] ^ flip) + skip, f"load {'ab'[side]} {number} {skip}"
        parts.append(t.read("shared", at, 16, 16, via).view(np.float32))
    return np.concatenate(parts)


@functools.cache
def first(grid: Grid) -> Instruction:
    """The instruction `state = first(a, b)`. a, b: shared addresses of the lane's numbers."""
    line = _line(grid, 0)

    def lower(e, a, b):
        return [ir.Constant(FLOAT, 0.0)] * grid.sums + _lower_line(e, (a, b), line)

    def meaning(t, a, b):
        return (np.float32(0),) * grid.sums + tuple(_read_line(t, (a, b), line, 0))

    name = f"first_{grid.rows}_{grid.columns}"
    return instruction(lower, f"f32x{grid.words}(u32, u32)", name=name)(meaning)


@functools.cache
def walk(grid: Grid, lines: tuple[int, ...]) -> Instruction:
    """The instruction `state = walk(state, a, b)`, which ends with the numbers of lines[-1]."""
    rows, columns, sums = grid.rows, grid.columns, grid.sums
    todo = [_line(grid, k) for k in lines]

    def lower(e, state, a, b):
        values = [e.builder.extract_value(state.value, k) for k in range(grid.words)]
        out, now = values[:sums], values[sums:]
        for line in todo:
            then = _lower_line(e, (a, b), line)
            for i in range(rows):
                # There and back: neighbours share an operand, which saves reads of registers.
                for j in range(columns) if i % 2 == 0 else reversed(range(columns)):
                    at = columns * i + j
                    out[at] = e.builder.fma(now[i], now[rows + j], out[at])
            now = then
        return out + now

    def meaning(t, state, a, b):
        values = np.array(state, np.float32)
        out, now = values[:sums].reshape(rows, columns), values[sums:]
        for number, line in enumerate(todo):
            then = _read_line(t, (a, b), line, number)
            product = np.outer(now[:rows].astype(np.float64), now[rows:].astype(np.float64))
            out, now = (product + out).astype(np.float32), then
        return tuple(np.concatenate([out.ravel(), now]))

    return instruction(
        lower, f"f32x{grid.words}(f32x{grid.words}, u32, u32)", flops=2 * sums * len(lines),
        name=f"walk_{rows}_{columns}_{len(lines)}",
    )(meaning)  # fmt: skip


@functools.cache
def put(grid: Grid, wide: bool) -> Instruction:
    """The instruction `put(state, address, pitch, first_row, rows, first_column, columns)`.

    address: of the lane's first sum in memory; pitch: bytes from row to row. Sums are written whose
    row, counted from the lane's first, is at least first_row and less than rows, and columns
    likewise. wide: in fours, which lie at multiples of 16 bytes and are inside or outside whole.
    """
    width = 4 if wide else 1
    places = [
        (grid.columns * i + j, i // 4 * 4 * grid.lanes_m + i % 4, j // 4 * 4 * grid.lanes_n + j % 4)
        for i in range(grid.rows)
        for j in range(0, grid.columns, width)
    ]
    vector = ".v4" if wide else ""
    values = "{$3, $4, $5, $6}" if wide else "$3"
    text = (
        f"{{.reg .pred inside; setp.ne.u32 inside, $2, 0; "
        f"@inside st.global{vector}.f32 [$0 + $1], {values};}}"
    )

    def lower(e, state, address, pitch, *limits):
        b = e.builder
        low_row, rows, low_column, columns = (limit.value for limit in limits)

        def between(n, low, high):
            n = e.integer(n, "s32")
            return b.and_(b.icmp_signed("<=", low, n), b.icmp_signed("<", n, high))

        for number, row, column in places:
            inside = b.and_(between(row, low_row, rows), between(column, low_column, columns))
            line = b.add(address.value, b.mul(pitch.value, e.integer(row, "u64")))
            operands = [("u64", line), ("literal", e.integer(4 * column, "s32"))]
            operands.append(("u32", b.zext(inside, ir.IntType(32))))
            operands += [("f32", b.extract_value(state.value, number + k)) for k in range(width)]
            e.asm(text, [], operands)

    def meaning(t, state, address, pitch, low_row, rows, low_column, columns):
        for number, row, column in places:
            if low_row <= row < rows and low_column <= column < columns:
                data = np.array(state[number : number + width], np.float32).view(np.uint8)
                at = address + pitch * row + 4 * column
                t.write("global", at, data, 4 * width, via=f"store {number}")

    return instruction(
        lower, f"void(f32x{grid.words}, u64, u64, s32, s32, s32, s32)",
        name=f"put_{grid.rows}_{grid.columns}_{width}",
    )(meaning)  # fmt: skip
