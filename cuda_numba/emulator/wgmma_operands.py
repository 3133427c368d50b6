"""Where the operands of a wgmma lie: in shared memory, by descriptor, and in registers.

A descriptor names a start, two strides and a swizzle. Let W be the swizzle's bytes, P the elements
in W and T those in 16 bytes, and one k step 32 bytes of each row. Element (row r, column c of the
step) has its first byte at

    rows along K    no swizzle   (r % 8) 16 + (r / 8) stride + (c / T) leading + (c % T) size
                    swizzle W    (r % 8) W + (r / 8) stride + c size
    rows along M, N no swizzle   (c % 8) 16 + (c / 8) leading + (r / T) stride + (r % T) size
                    swizzle W    (c % 8) W + (c / 8) stride + (r / P) leading + (r % P) size

from the start; the swizzle then exchanges 16-byte pieces by the bits of the whole address. Source:
PTX ISA, section "Asynchronous Warpgroup Level Matrix Shared Memory Layout".
"""

import functools
from typing import NamedTuple

import numpy as np

from .tensor_map import swizzled

SWIZZLE_CODES = {0: 0, 128: 1, 64: 2, 32: 3}
SPANS = {code: span for span, code in SWIZZLE_CODES.items()}
STEP = 32  # bytes of a row in one k step


class Descriptor(NamedTuple):
    """A descriptor's fields, in bytes."""

    start: int
    leading: int
    stride: int
    base: int
    swizzle: int


def encode(address: int, leading: int, stride: int, swizzle: int) -> int:
    """The 64-bit descriptor of a matrix at a shared address."""
    low = (address & 0x3FFFF) >> 4 | (leading >> 4 & 0x3FFF) << 16
    return low | (stride >> 4 & 0x3FFF) << 32 | SWIZZLE_CODES[swizzle] << 62


def decode(bits: int) -> Descriptor:
    return Descriptor(
        (bits & 0x3FFF) << 4,
        (bits >> 16 & 0x3FFF) << 4,
        (bits >> 32 & 0x3FFF) << 4,
        bits >> 49 & 7,
        SPANS[bits >> 62],
    )


@functools.lru_cache(maxsize=256)
def addresses(
    bits: int, rows: int, size: int, steps: int, step: int, transposed: bool
) -> np.ndarray:
    """Shared addresses of the elements, int64 (rows, columns of all steps).

    size: bytes of an element; step: bytes from one k step to the next.
    """
    d = decode(bits)
    r, c = np.arange(rows)[:, None], np.arange(STEP // size)[None, :]
    per, w = 16 // size, d.swizzle
    if not transposed and not w:
        offset = r % 8 * 16 + r // 8 * d.stride + c // per * d.leading + c % per * size
    elif not transposed:
        offset = r % 8 * w + r // 8 * d.stride + c * size
    elif not w:
        offset = c % 8 * 16 + c // 8 * d.leading + r // per * d.stride + r % per * size
    else:
        wide = w // size
        offset = c % 8 * w + c // 8 * d.stride + r // wide * d.leading + r % wide * size
    starts = d.start + step * np.arange(steps)
    every = np.concatenate([offset + start for start in starts], axis=1)
    found = swizzled(every, w)
    found.setflags(write=False)
    return found


@functools.lru_cache(maxsize=256)
def runs(bits: int, rows: int, size: int, steps: int, step: int, transposed: bool) -> tuple:
    """The operand's bytes as (first address, number), in order, each once."""
    pieces = np.unique(addresses(bits, rows, size, steps, step, transposed) >> 4)
    first = np.flatnonzero(np.diff(pieces, prepend=pieces[0] - 2) != 1)
    counts = np.diff(np.append(first, len(pieces)))
    return tuple((int(p) << 4, int(n) << 4) for p, n in zip(pieces[first], counts, strict=True))


@functools.cache
def accumulator_places(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Row and column, in D (64 × n), of each thread's registers: int (128, n / 2) each."""
    t, r = np.arange(128)[:, None], np.arange(n // 2)[None, :]
    lane = t % 32
    rows = t // 32 * 16 + lane // 4 + r % 4 // 2 * 8
    return rows, r // 4 * 8 + lane % 4 * 2 + r % 2


@functools.cache
def fragment_places(size: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Row and column, in A (64 × columns), of each element of each thread's words: int
    (128, 4 · steps, elements of a word) each."""
    per = 4 // size
    t, r, e = np.arange(128)[:, None, None], np.arange(4 * steps)[None, :, None], np.arange(per)
    lane, part = t % 32, r % 4
    rows = t // 32 * 16 + lane // 4 + part % 2 * 8
    columns = r // 4 * (STEP // size) + part // 2 * (STEP // size // 2) + lane % 4 * per + e
    return np.broadcast_arrays(rows, columns)
