"""Which thread owns what of a row, and how it gets there: what LayerNorm and RMSNorm share.

A normalisation reads a row, needs a statistic of all of it, and writes the row. Read once and
written once it costs 2 · N · itemsize bytes; whoever reads the row again for the second half pays
3. So the row stays in registers in between, as the raw words that the loads brought:

    row of n elements, a team of `warps` warps, `width` elements to a 16-byte access
      access 0                        access 1
      |t0 |t1 |t2 | … |t127           |t0 |t1 |t2 | … |t127          | …       `accesses` per thread

Neighbouring threads own neighbouring 16 bytes: every request is whole 128-byte lines. A row of up
to 32 · `accesses` accesses belongs to one warp, which needs no barrier; a wider one to a block.
Raw words rather than float32 because they are half as many registers for 16-bit formats, and
because a load whose value is converted at once makes the thread wait for it, when the loads that
follow ought to be on their way.
"""

import functools
from typing import Any, NamedTuple

import torch

from . import ptx
from .dtypes import itemsize, vector_width
from .jit import jit

WARP = 32
BLOCK_WARPS = 4  # warps of a block whose rows need one warp each
REGISTERS = 65536  # of a multiprocessor, on every architecture from sm_75 on
MAX_THREADS = 1024  # of a multiprocessor that we count on: sm_75 has no more


class Variant(NamedTuple):
    """Which normalisation: compile-time constants of every kernel."""

    centred: bool  # LayerNorm subtracts the mean, RMSNorm does not
    bias: bool
    residual: bool  # forward: normalises x + residual; backward: a gradient of that sum comes in


# ---- the map from threads to a row


class RowPlan(NamedTuple):
    """Who owns what of a row: compile-time constants of a kernel that keeps rows in registers."""

    width: int  # elements in one access: 16 bytes of them, or 1
    accesses: int  # of one thread
    warps: int  # that share a row
    rows: int  # that a block works on at a time: 1 where a row takes more than a warp
    exact: bool  # the row fills its team: no access needs a guard

    @property
    def threads(self) -> int:
        return WARP * self.warps * self.rows

    @property
    def team(self) -> int:
        """Threads that share a row."""
        return WARP * self.warps

    @property
    def step(self) -> int:
        """Elements between two accesses of a thread."""
        return self.team * self.width

    @property
    def elements(self) -> int:
        """Elements that a thread owns."""
        return self.accesses * self.width


def row_plan(n: int, width: int, elements: int, max_warps: int = 32) -> RowPlan | None:
    """The smallest team for a row of n elements, or None where `max_warps` are not enough.

    width: elements in one access; elements: the most that a thread may have.
    """
    needed = -(-n // width)
    warps = -(-needed // (WARP * (elements // width)))
    if warps > max_warps:
        return None
    accesses = -(-needed // (WARP * warps))
    rows = BLOCK_WARPS if warps == 1 else 1
    return RowPlan(width, accesses, warps, rows, n == WARP * warps * accesses * width)


def blocks_that_fit(threads: int, registers: int) -> int:
    """Blocks of so many threads on a multiprocessor, 0 where the registers are too many."""
    registers = -(-registers // 8) * 8  # allocated by eights
    return min(REGISTERS // (registers * threads), MAX_THREADS // threads) if registers < 256 else 0


def access_width(n: int, dtype: str, *tensors: torch.Tensor | None) -> int:
    """Elements in one access to rows of n: 16 bytes of them, or 1 where rows are not aligned.

    Aligned means that every row of every tensor starts at a multiple of 16 bytes. The scalar path
    also serves odd n.
    """
    width = vector_width(dtype)
    aligned = all(t is None or t.data_ptr() % 16 == 0 for t in tensors)
    return width if n % width == 0 and aligned else 1


# ---- accesses: 16 bytes, or one element, as raw words


class Access(NamedTuple):
    """Device functions that move `width` elements between memory, raw words and float32."""

    words: int  # uint32 registers that one access fills
    load: Any  # (x, i, words, j): x[i : i + width] → words[j : j + self.words]
    unpack: Any  # (words, j, values): → values[0 : width], float32
    pack: Any  # (values, words, j): values[0 : width], rounded → words[j : j + self.words]
    store: Any  # (y, i, words, j): words[j : j + self.words] → y[i : i + width]


@functools.cache
def access(dtype: str, width: int) -> Access:
    """How kernels access `width` elements of `dtype` in a row; a width of 1 needs no alignment."""
    return _element_access(dtype) if width == 1 else _vector_access(dtype, width)


def _vector_access(dtype: str, width: int) -> Access:
    words = width * itemsize(dtype) // 4
    lanes = words // 4  # 16-byte accesses
    per = 16 // itemsize(dtype)
    halves = itemsize(dtype) == 2
    to_floats = ptx.unpack_bf16 if dtype == "bfloat16" else ptx.unpack_f16
    from_floats = ptx.pack_bf16 if dtype == "bfloat16" else ptx.pack_f16

    @jit(device=True)
    def load(x, i, words, j):
        for k in range(lanes):
            a, b, c, d = ptx.load_128(x, i + per * k)
            words[j + 4 * k] = a
            words[j + 4 * k + 1] = b
            words[j + 4 * k + 2] = c
            words[j + 4 * k + 3] = d

    @jit(device=True)
    def store(y, i, words, j):
        for k in range(lanes):
            m = j + 4 * k
            ptx.store_128(y, i + per * k, words[m], words[m + 1], words[m + 2], words[m + 3])

    @jit(device=True)
    def unpack_halves(words, j, values):
        for k in range(width // 2):
            low, high = to_floats(words[j + k])
            values[2 * k] = low
            values[2 * k + 1] = high

    @jit(device=True)
    def pack_halves(values, words, j):
        for k in range(width // 2):
            words[j + k] = from_floats(values[2 * k], values[2 * k + 1])

    @jit(device=True)
    def unpack_words(words, j, values):
        for k in range(width):
            values[k] = ptx.from_bits(words[j + k])

    @jit(device=True)
    def pack_words(values, words, j):
        for k in range(width):
            words[j + k] = ptx.bits(values[k])

    unpack, pack = (unpack_halves, pack_halves) if halves else (unpack_words, pack_words)
    return Access(words, load, unpack, pack, store)


def _element_access(dtype: str) -> Access:
    @jit(device=True)
    def load(x, i, words, j):
        words[j] = ptx.bits(ptx.load(x, i))

    @jit(device=True)
    def unpack(words, j, values):
        values[0] = ptx.from_bits(words[j])

    @jit(device=True)
    def pack_float(values, words, j):
        words[j] = ptx.bits(values[0])

    @jit(device=True)
    def pack_bf16(values, words, j):
        words[j] = ptx.bits(ptx.bf16_to_f32(ptx.f32_to_bf16(values[0])))

    @jit(device=True)
    def pack_f16(values, words, j):
        words[j] = ptx.bits(ptx.f16_to_f32(ptx.f32_to_f16_bits(values[0])))

    @jit(device=True)
    def store(y, i, words, j):
        ptx.store(y, i, ptx.from_bits(words[j]))

    pack = {"float32": pack_float, "bfloat16": pack_bf16, "float16": pack_f16}[dtype]
    return Access(1, load, unpack, pack, store)
