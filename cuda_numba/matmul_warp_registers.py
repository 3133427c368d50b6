"""A warp's tile in registers: the sums, fragments from shared memory, products, and the way back.

Each function here makes one instruction for kernels out of many of the machine's, for a tile of
16 · rows × 8 · columns. The registers are one tuple of words:

    state    4 · rows · columns sums (float32), 4 · rows words of A, 2 · columns words of B

    state = first(a, b)           sums of zero, and the fragments of the first step of 16 along k
    state = walk(state, a, b)     sums += A B for the present step; each fragment is replaced by the
                                  next step's as soon as it was used last
    lay(state, address)           the sums as a matrix of float32 in shared memory

Replacing needs no second set of fragments. Steps go down and across by turns, so that what comes
back first is wanted first:

    down      row 0: b0 b1 … b7, load a0 │ row 1, load a1 │ … │ last row: b0 b1, load; b2 b3, load …
    across    column 0: a0 a1 a2 a3 │ column 1, load b0 b1 │ … │ last column: a0, load; a1, load; …

Why not loops in the kernel: an array in registers must be indexed by constants, so that the loops
over it have to vanish. LLVM unrolls them while the array has some 64 elements; at 128 it stops, and
the sums go to local memory at each product. Here the loops run in the code generator.

Register r of block (i, j), i of 16 rows, j of 8 columns, is number 4 (columns · i + j) + r. Rows
and columns are gone through to and fro: neighbours share an operand, which is not read again.
"""

import functools
from typing import NamedTuple

import numpy as np
from llvmlite import ir

from . import ptx
from .bits import bf16_values, f16_values
from .ptx.instruction import Instruction, instruction
from .ptx.memory import put_at

WORD, FLOAT = ir.IntType(32), ir.FloatType()


class Shape(NamedTuple):
    """A warp's tile and what multiplies it."""

    rows: int  # of blocks of 16
    columns: int  # of blocks of 8
    dtype: str
    ampere: bool  # m16n8k16, from compute capability 8.0; else m16n8k8, twice

    @property
    def mma(self) -> Instruction:
        kind = {"bfloat16": "bf16", "float16": "f16"}[self.dtype]
        return getattr(ptx, f"mma_m16n8k{16 if self.ampere else 8}_{kind}")

    @property
    def halves(self) -> tuple:
        """(words of A, words of B) of each mma along the 16 of k: m16n8k8 takes half of both."""
        if self.ampere:
            return ((range(4), range(2)),)
        return (range(2), range(1)), (range(2, 4), range(1, 2))

    @property
    def sums(self) -> int:
        return 4 * self.rows * self.columns

    @property
    def words(self) -> int:
        return self.sums + 4 * self.rows + 2 * self.columns


class Fragments(NamedTuple):
    """Where one operand's fragments for one step lie in shared memory: an ldmatrix.x4 for each of
    `moves`, (flip, skip), which reads at (address ^ flip) + skip."""

    moves: tuple[tuple[int, int], ...]
    transposed: bool

    def lower(self, e, address, number):
        """LLVM values of the four registers of one ldmatrix."""
        flip, skip = self.moves[number]
        at = e.builder.xor(address.value, e.integer(flip, "u32"))
        at = e.builder.add(at, e.integer(skip, "u32"))
        load = ptx.ldmatrix_x4_trans if self.transposed else ptx.ldmatrix_x4
        return e.asm(load.text, ["u32"] * 4, [("u32", at)])

    def read(self, warp, addresses, number, name):
        """The same in the emulator: uint32 (32 lanes, 4). name: of this request among others."""
        flip, skip = self.moves[number]
        lines = [
            t.read("shared", (address ^ flip) + skip, 16, via=f"ldmatrix {name} {number}")
            for t, address in zip(warp.threads, addresses, strict=True)
        ]
        words = np.empty((32, 4), np.uint32)
        for q in range(4):
            matrix = np.stack(lines[8 * q : 8 * q + 8]).view(np.uint16)
            matrix = np.ascontiguousarray(matrix.T if self.transposed else matrix)
            words[:, q] = matrix.view(np.uint32).reshape(32)
        return words


@functools.cache
def first(shape: Shape, next_a: Fragments, next_b: Fragments) -> Instruction:
    """The instruction `state = first(a, b)`."""

    def lower(e, a, b):
        words = [w for i in range(shape.rows) for w in next_a.lower(e, a, i)]
        words += [w for j in range(shape.columns // 2) for w in next_b.lower(e, b, j)]
        return [ir.Constant(WORD, 0)] * shape.sums + words

    def meaning(warp, lanes):
        parts = [np.zeros((32, shape.sums), np.uint32)]
        for found, k, count in ((next_a, 0, shape.rows), (next_b, 1, shape.columns // 2)):
            addresses = [lane[k] for lane in lanes]
            parts += [found.read(warp, addresses, number, "ab"[k]) for number in range(count)]
        return [tuple(lane) for lane in np.concatenate(parts, axis=1).tolist()]

    return instruction(
        lower, f"u32x{shape.words}(u32, u32)", name=f"first_{shape.rows}_{shape.columns}",
        scope="warp", convergent=True,
    )(meaning)  # fmt: skip


def plan(rows: int, columns: int, down: bool) -> list[tuple]:
    """What a step does, in order: ("mma", i, j), ("a", i) and ("b", pair of columns): loads."""
    todo: list[tuple] = []
    for outer in range(rows if down else columns):
        last = outer == (rows if down else columns) - 1
        inner = range(columns if down else rows)
        for k in inner if last or outer % 2 == 0 else reversed(inner):
            todo.append(("mma", outer, k) if down else ("mma", k, outer))
            if last and not down:
                todo.append(("a", k))
            elif last and k % 2:
                todo.append(("b", k // 2))
        if down:
            todo.append(("a", outer))
        elif outer % 2:
            todo.append(("b", outer // 2))
    return todo


@functools.cache
def walk(shape: Shape, down: bool, next_a: Fragments, next_b: Fragments) -> Instruction:
    """The instruction `state = walk(state, a, b)`.

    a, b: what the lane adds up to addresses with `next_a` and `next_b`, the next step's fragments.
    """
    rows, columns, sums = shape.rows, shape.columns, shape.sums
    todo, mma = plan(rows, columns, down), shape.mma
    sources = {"a": (next_a, sums, 1), "b": (next_b, sums + 4 * rows, 2)}

    def lower(e, state, a, b):
        builder = e.builder
        words = [builder.extract_value(state.value, k) for k in range(shape.words)]
        words[:sums] = [builder.bitcast(word, FLOAT) for word in words[:sums]]
        for what, *where in todo:
            if what != "mma":
                fragments, start, _ = sources[what]
                at = start + 4 * where[0]
                words[at : at + 4] = fragments.lower(e, a if what == "a" else b, where[0])
                continue
            i, j = where
            at, at_a, at_b = 4 * (columns * i + j), sums + 4 * i, sums + 4 * rows + 2 * j
            for half_a, half_b in shape.halves:
                operands = [("u32", words[at_a + k]) for k in half_a]
                operands += [("u32", words[at_b + k]) for k in half_b]
                operands += [("f32", word) for word in words[at : at + 4]]
                words[at : at + 4] = e.asm(mma.text, ["f32"] * 4, operands, pure=True, memory=False)
        return [builder.bitcast(word, WORD) for word in words[:sums]] + words[sums:]

    def meaning(warp, lanes):
        state = np.array([lane[0] for lane in lanes], np.uint32)
        acc = np.ascontiguousarray(state[:, :sums]).view(np.float32)
        a, b = state[:, sums : sums + 4 * rows], state[:, sums + 4 * rows :]
        sizes = (32, rows, columns, 4), (32, rows, 4), (32, columns, 2)
        acc, a, b = (x.reshape(size) for x, size in zip((acc, a, b), sizes, strict=True))
        out = np.ascontiguousarray(_product(shape, acc, a, b)).reshape(32, sums)
        state[:, :sums] = out.view(np.uint32)
        for what, *where in todo:
            if what != "mma":
                fragments, start, k = sources[what]
                at, addresses = start + 4 * where[0], [lane[k] for lane in lanes]
                state[:, at : at + 4] = fragments.read(warp, addresses, where[0], what)
        return [tuple(lane) for lane in state.tolist()]

    return instruction(
        lower, f"u32x{shape.words}(u32x{shape.words}, u32, u32)", scope="warp", convergent=True,
        name=f"walk_{rows}_{columns}", cc=mma.cc, tensor=True,
        flops=rows * columns * len(shape.halves) * mma.flops,
    )(meaning)  # fmt: skip


def _product(shape, acc, a, b):
    """What the mma of all blocks give: float32 (32 lanes, rows, columns, 4)."""
    places = ptx.mma_layout(shape.mma.name.removeprefix("mma_"))
    values = bf16_values if shape.dtype == "bfloat16" else f16_values
    down, across = places["c"][:, :, 0, 0], places["c"][:, :, 0, 1]
    c = np.empty((shape.rows, shape.columns, 16, 8), np.float32)
    c[:, :, down, across] = acc.transpose(1, 2, 0, 3)
    with np.errstate(all="ignore"):
        for half_a, half_b in shape.halves:
            depth = 8 * len(half_b)
            left = _matrices(values, a[:, :, list(half_a)], places["a"], (16, depth))
            right = _matrices(values, b[:, :, list(half_b)], places["b"], (depth, 8))
            c = (left[:, None] @ right[None] + c).astype(np.float32)
    return c[:, :, down, across].transpose(2, 0, 1, 3)


def _matrices(values, words, places, size):
    """Words (32, blocks, registers) → the blocks' matrices as float64, (blocks, *size)."""
    elements = values(np.ascontiguousarray(words)[..., None].view(np.uint16)).astype(np.float64)
    found = np.empty((words.shape[1], *size))
    found[:, places[..., 0], places[..., 1]] = elements.transpose(1, 0, 2, 3)
    return found


@functools.cache
def lay(shape: Shape, pitch: int) -> Instruction:
    """The instruction `lay(state, address)`: the sums as rows of `pitch` bytes in shared memory.

    address: where the lane's first pair goes, row lane / 4, columns 2 (lane mod 4) and on. Rows 32
    bytes past a multiple of 128 bytes meet no bank conflict.
    """
    places = [
        (4 * (shape.columns * i + j) + 2 * h, (16 * i + 8 * h) * pitch + 32 * j)
        for i in range(shape.rows)
        for j in range(shape.columns)
        for h in range(2)
    ]

    def lower(e, state, address):
        for number, skip in places:
            at = e.builder.add(address.value, e.integer(skip, "u32"))
            pair = [e.builder.extract_value(state.value, number + k) for k in range(2)]
            put_at(e, at, pair, "", "shared")

    def meaning(t, state, address):
        words = np.array(state, np.uint32).view(np.uint8)
        for number, skip in places:
            data = words[4 * number : 4 * number + 8]
            t.write("shared", address + skip, data, 8, via=f"store {number}")

    return instruction(
        lower, f"void(u32x{shape.words}, u32)", name=f"lay_{shape.rows}_{shape.columns}"
    )(meaning)


@instruction("mov.u32 $0, %tid.x;", "u32()")
def thread_again(t):
    """threadIdx.x, read anew: what is computed from it need not be kept in registers meanwhile."""
    return t.x
