"""Tensor maps in the emulator: which elements a box holds, and where they go in shared memory.

The swizzles exchange 16-byte pieces within runs of `span` bytes, by bits of the shared address
itself: bits 4 to 6 ^= bits 7 to 9 for 128 bytes, 4 to 5 ^= 7 to 8 for 64, 4 ^= 7 for 32. So a tile
that does not begin at a multiple of 8 · span lies otherwise than one that does.
"""

import itertools
import weakref
from typing import Any

import numpy as np

ADDRESSES = itertools.count(1)  # of emulated maps: multiples of 128 beyond every allocation
LIVE: weakref.WeakValueDictionary = weakref.WeakValueDictionary()
MASKS = {0: 0, 32: 1, 64: 3, 128: 7}


def swizzled(address: np.ndarray | int, span: int) -> Any:
    """Where the byte at an unswizzled shared address lies."""
    return address ^ ((address >> 7 & MASKS[span]) << 4)


class Described:
    """A map of a tensor in host memory. It has an address that kernels can pass on, for as long as
    it lives; nbytes: of a box."""

    def __init__(
        self,
        array: np.ndarray,
        storage: tuple[int, int],
        box: tuple[int, ...],
        swizzle: int,
        element: str,
    ):
        self.array, self.storage, self.box = array, storage, box
        self.swizzle, self.element = swizzle, element
        self.nbytes = int(np.prod(box)) * array.itemsize
        self.address = 1 << 62 | next(ADDRESSES) << 7
        LIVE[self.address] = self


def footprint(map: Any, address: int) -> tuple[int, int, np.ndarray | None]:
    """Where a box at a shared address lies: first byte, number of bytes, and the offset from the
    first of each byte of the box, None where they simply follow each other."""
    if not map.swizzle:
        return address, map.nbytes, None
    places = swizzled(address + np.arange(map.nbytes), map.swizzle)
    first, last = int(places.min()), int(places.max())
    return first, last - first + 1, places - first


def rows(machine: Any, map: Any, coordinates: tuple) -> list[tuple[int, int, int]]:
    """The runs of bytes of a box that lie in the tensor: (offset in the box, address, nbytes)."""
    base = machine.memory.add(map.array, "tensor map", map.storage)
    shape, strides, box = map.array.shape[::-1], map.array.strides[::-1], map.box[::-1]
    size = map.array.itemsize
    first = max(coordinates[0], 0)
    last = min(coordinates[0] + box[0], shape[0])
    if first >= last:
        return []
    found = []
    for number, index in enumerate(itertools.product(*(range(n) for n in reversed(box[1:])))):
        at = [c + i for c, i in zip(coordinates[1:], reversed(index), strict=True)]
        if all(0 <= a < n for a, n in zip(at, shape[1:], strict=True)):
            start = base + first * size + sum(a * s for a, s in zip(at, strides[1:], strict=True))
            offset = (number * box[0] + first - coordinates[0]) * size
            found.append((offset, start, (last - first) * size))
    return found
