"""Addresses: where every array that a kernel sees lives, and the bytes behind an address.

Addresses are virtual and the same on every machine. Each storage that the arguments point into is
an allocation of its own, 2⁴⁰ bytes apart from the next and aligned like a GPU's (256 bytes), so the
alignment of a view inside its storage is kept and two views of one storage overlap as they do in
memory. Shared memory is a window of 32-bit addresses for each block that starts at 1024, as on
Hopper, where the system keeps the first kilobyte: address 0 is never valid.

In a plain launch a kernel indexes NumPy arrays directly. In a traced one it holds `View`s, which
know their address.
"""

import ctypes
from typing import Any

import numpy as np

ALLOCATION_BITS = 40
SHARED_START = 1024
SHARED_LIMIT = 227 * 1024  # bytes that one block may use on an H100; an A100 has 163 KB, a T4 64 KB
POISON = 0xFF  # every byte nobody has written: NaN in all float formats, −1 in integers


class View:
    """An array as a traced kernel sees it: NumPy's array and where it lives.

    space is "global", "shared", "local" or "constant"; `written` (local arrays only) marks the
    elements that have a value. n0 and n1 are the sizes that the quick way in `tracer` checks
    indices against, 0 where that way is closed; `code` is where the array's numbers in the log
    start, −1 if it has none.
    """

    __slots__ = ("a", "base", "code", "dtype", "get", "itemsize", "log", "n0", "n1", "name", "ndim")
    __slots__ += ("shape", "size", "space", "strides", "written")

    def __init__(self, a: np.ndarray, space: str, base: int, name: str, log: Any):
        self.a, self.space, self.base, self.name = a, space, base, name
        self.shape, self.strides, self.ndim, self.size = a.shape, a.strides, a.ndim, a.size
        self.itemsize, self.dtype = a.itemsize, a.dtype
        self.get = a.item if a.dtype.kind in "iub" else a.__getitem__
        self.written = np.zeros(a.shape, bool) if space == "local" else None
        logged = space in ("global", "shared")
        self.log = log
        self.code = log.view(self) if logged else 0
        quick = logged and self.code >= 0
        self.n0 = a.shape[0] if quick and a.ndim in (1, 2) else 0
        self.n1 = a.shape[1] if quick and a.ndim == 2 else 0

    def part(self, index: Any) -> "View":
        """The view that `x[index]` is when it names more than one element."""
        a = self.a[index]
        offset = address_of(a) - address_of(self.a)
        view = View(a, self.space, self.base + offset, self.name, self.log)
        view.written = None if self.written is None else self.written[index]
        return view

    # Instructions write their results into arrays given to them, unlogged.
    def __getitem__(self, index: Any) -> Any:
        return self.a[index]

    def __setitem__(self, index: Any, value: Any) -> None:
        self.a[index] = value
        if self.written is not None:
            self.written[index] = True

    def __len__(self) -> int:
        return self.shape[0]


def address_of(a: np.ndarray) -> int:
    """The machine's own address of an array's first element."""
    return a.__array_interface__["data"][0]


def root(a: np.ndarray) -> np.ndarray:
    """The array that owns the memory of `a`, or the widest one that is known."""
    while isinstance(a.base, np.ndarray):
        a = a.base
    return a


class Allocation:
    """One storage: its bytes and the address at which the kernel sees them."""

    def __init__(self, index: int, start: int, nbytes: int, name: str, owner: Any):
        self.base = (index + 1) << ALLOCATION_BITS
        self.start, self.nbytes, self.name = start, nbytes, name
        self.owner = owner  # keeps the memory alive
        self.bytes = as_bytes(start, nbytes)


def as_bytes(start: int, nbytes: int) -> np.ndarray:
    """The `nbytes` bytes at machine address `start`, as a writable uint8 array."""
    if nbytes == 0:
        return np.empty(0, np.uint8)
    return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(start))


class Memory:
    """The global memory of one launch."""

    def __init__(self) -> None:
        self.allocations: list[Allocation] = []
        self.known: dict[int, tuple[str, int, int]] = {}  # id(array) → space, address, itemsize
        self.kept: list[np.ndarray] = []  # so that no id is used twice

    def add(self, a: np.ndarray, name: str, storage: tuple[int, int] | None = None) -> int:
        """Make the array known; returns the address of its first element.

        storage: machine address and bytes of the storage around it, for tensors.
        """
        owner = root(a)
        if storage is None:
            low, high = np.lib.array_utils.byte_bounds(owner) if owner.size else (0, 0)
            storage = (low, high - low)
        start, nbytes = storage
        found = self.find(start, nbytes)
        if found is None:
            found = Allocation(len(self.allocations), start, nbytes, name, owner)
            self.allocations.append(found)
        address = found.base + (address_of(a) - start if a.size else 0)
        self.remember(a, "global", address)
        return address

    def find(self, start: int, nbytes: int) -> Allocation | None:
        for allocation in self.allocations:
            if nbytes and allocation.start <= start < allocation.start + allocation.nbytes:
                return allocation
        return None

    def remember(self, a: np.ndarray, space: str, address: int) -> None:
        self.known[id(a)] = (space, address, a.itemsize)
        self.kept.append(a)

    def known_shared(self, a: np.ndarray, address: int) -> None:
        self.remember(a, "shared", address)

    def lookup(self, a: np.ndarray) -> tuple[str, int, int] | None:
        """Space, address and item size of an array, also of a part of a known one."""
        found = self.known.get(id(a))
        if found is None:
            at = address_of(a)
            for allocation in self.allocations:
                if allocation.start <= at < allocation.start + allocation.nbytes:
                    return "global", allocation.base + at - allocation.start, a.itemsize
        return found

    def span(self, address: int, nbytes: int) -> np.ndarray | None:
        """The bytes at a global address, or None if some are outside every allocation."""
        index = (address >> ALLOCATION_BITS) - 1
        if not 0 <= index < len(self.allocations):
            return None
        allocation = self.allocations[index]
        offset = address - allocation.base
        if offset + nbytes > allocation.nbytes:
            return None
        return allocation.bytes[offset : offset + nbytes]


class Arena:
    """The shared memory of one block: dynamic memory first, then each static array."""

    def __init__(self, dynamic: int, skew: int = 0):
        self.buffer: np.ndarray | None = None
        self.start = SHARED_START + skew
        self.dynamic = dynamic
        self.end = self.start + dynamic
        self.arrays: dict[Any, Any] = {}

    def bytes(self) -> np.ndarray:
        if self.buffer is None:
            self.buffer = np.full(SHARED_START + SHARED_LIMIT + 1024, POISON, np.uint8)
        return self.buffer

    def place(self, shape: tuple[int, ...], dtype: np.dtype, alignment: int) -> tuple[Any, int]:
        """A new array of static shared memory, or with a shape of 0 the dynamic memory."""
        if shape == (0,):
            a = self.bytes()[self.start : self.start + self.dynamic]
            return a[: a.size // dtype.itemsize * dtype.itemsize].view(dtype), self.start
        nbytes = int(np.prod(shape)) * dtype.itemsize
        address = -(-self.end // alignment) * alignment
        if address + nbytes - SHARED_START > SHARED_LIMIT:
            raise ValueError(
                f"shared memory: this block asks for {address + nbytes - SHARED_START} bytes, "
                f"at most {SHARED_LIMIT} are there"
            )
        self.end = address + nbytes
        a = self.bytes()[address : address + nbytes].view(dtype).reshape(shape)
        return a, address

    def span(self, address: int, nbytes: int) -> np.ndarray | None:
        """The bytes at a shared address, or None if some belong to no array."""
        if address < self.start or address + nbytes > self.end:
            return None
        return self.bytes()[address : address + nbytes]
