"""Bulk stores in the emulator: from shared memory into tensors and runs of bytes, or added there.

A store reads shared memory when its group is waited for (or earlier, as the seed has it), and
writes global memory when the group is waited for without `.read`, or when the thread ends.

Refused are, as for loads, operands that are not aligned, and also a box that begins before its
tensor and a sum of a format that the PTX ISA does not list; `ptx.tma` has the sources.

Sums of float32 keep subnormal numbers, unlike those of `red` and `atom`: so it was measured on an
H100 for runs of bytes, and is taken for boxes, where the driver has a type of its own for flushing
them (`CU_TENSOR_MAP_DATA_TYPE_FLOAT32_FTZ`).
"""

from collections import deque
from typing import Any

import numpy as np

from ..bits import decode, encode
from ..dtypes import kernel_dtype
from . import shadow, tensor_map
from .bulk_copy import Run, aligned, box, run_fits

# Formats of tensors that `cp.reduce.async.bulk.tensor.….add` takes (PTX ISA, its table; an int64 is
# added as the u64 there, with the same bits). One H100 reported no error for float64, int16 and
# uint8 either, but no document says what their sums are.
ADDABLE = ("uint32", "int32", "uint64", "int64", "float32", "float16", "bfloat16")


class Store:
    """One bulk store: what it reads of shared memory, and where it writes."""

    def __init__(
        self,
        t: Any,
        name: str,
        shared: int,
        nbytes: int,
        runs: list[Run],
        add: str | None,
        places: np.ndarray | None = None,
    ):
        self.thread, self.name, self.line, self.origin = t, name, t.line, t.machine.origin
        self.source = t.span("shared", shared, nbytes, 1)
        self.shared, self.runs, self.add, self.places = shared, runs, add, places
        self.seen = self.source.copy()  # as it was when the copy started
        self.data: np.ndarray | None = None
        self.released = False  # the source may be used again
        shadow.check(t, name, "shared", shared, nbytes)
        if t.machine.rng is not None and t.machine.rng.random() < 0.5:
            self.fetch()

    def fetch(self) -> None:
        """The copy reads its source."""
        if self.data is None:
            source = self.source.copy()
            self.data = source if self.places is None else source[self.places]

    def release(self) -> None:
        """Somebody has waited until the source was read."""
        if self.released:
            return
        self.released = True
        self.fetch()
        t = self.thread
        if not np.array_equal(self.source, self.seen):
            t.machine.finding(
                "race",
                f"shared memory that {self.name} at line {self.line} reads was written before "
                f"bulk_wait_read",
                threads=[t],
                lines=[self.line],
            )
        shadow.note(t, "load", "shared", self.shared, len(self.source), self.origin)

    def write(self) -> None:
        self.release()
        for offset, address, nbytes in self.runs:
            target = self.thread.span("global", address, nbytes, 1)
            data = self.data[offset : offset + nbytes]
            target[:] = data if self.add is None else added(target, data, self.add)
            kind = "store" if self.add is None else "atomic"
            shadow.note(self.thread, kind, "global", address, nbytes, self.origin)
            shadow.clean(self.thread, "global", address, nbytes)


def added(a: np.ndarray, b: np.ndarray, dtype: str) -> np.ndarray:
    """Bytes of a + b, element by element; 16-bit floats are added in float32 and rounded."""
    kind = kernel_dtype(dtype)
    with np.errstate(all="ignore"):
        if dtype in ("float16", "bfloat16"):
            return encode(decode(a, kind) + decode(b, kind), kind)
        return (a.view(kind) + b.view(kind)).view(np.uint8)


class Queue:
    """A thread's bulk stores: those not yet in a group, and the groups, oldest first."""

    def __init__(self) -> None:
        self.open: list[Store] = []
        self.groups: deque[list[Store]] = deque()


def _queue(t: Any) -> Queue:
    found = t.state.get("bulk stores")
    if found is None:
        found = t.state["bulk stores"] = Queue()
        t.machine.at_end.append(lambda: _end(t, found))
    return found


def _end(t: Any, queue: Queue) -> None:
    """The kernel has ended: what the thread has not waited for is written now."""
    for store in [store for group in (*queue.groups, queue.open) for store in group]:
        if not store.released:
            t.machine.finding(
                "missing_wait",
                f"{t.name} ends before {store.name} at line {store.line} has read shared memory: "
                f"bulk_commit and bulk_wait_read must come first",
                threads=[t],
                lines=[store.line],
            )
        store.write()


def store_box(
    t: Any, name: str, map: int, coordinates: tuple, shared: int, add: bool = False
) -> None:
    found = box(t, name, map, coordinates)
    if found is None or not aligned(t, name, "the shared address", shared, 128):
        return
    map, runs = found
    if min(coordinates) < 0:
        t.machine.finding(
            "invalid_use",
            f"{name}: the box begins at {coordinates}, innermost first: the programming guide lets "
            "a box that is written reach over the end of a tensor, not begin before it",
            threads=[t],
        )
        return
    if add and map.element not in ADDABLE:
        t.machine.finding(
            "invalid_use",
            f"{name}: the tensor is {map.element}; the PTX ISA lists sums of {', '.join(ADDABLE)}, "
            "and what others come to is undefined, even where a GPU reports no error",
            threads=[t],
        )
        return
    first, extent, places = tensor_map.footprint(map, shared)
    add = map.element if add else None
    _queue(t).open.append(Store(t, name, first, extent, runs, add, places))


def store_run(
    t: Any, name: str, target: int, shared: int, nbytes: int, add: str | None = None
) -> None:
    if run_fits(t, name, target, shared, nbytes):
        t.span("global", target, nbytes, 1)
        _queue(t).open.append(Store(t, name, shared, nbytes, [(0, target, nbytes)], add))


def commit(t: Any) -> None:
    q = _queue(t)
    q.groups.append(q.open)
    q.open = []


def wait(t: Any, n: int, read: bool = False) -> None:
    q = _queue(t)
    if read:
        for group in list(q.groups)[: max(len(q.groups) - n, 0)]:
            for store in group:
                store.release()
        return
    while len(q.groups) > n:
        for store in q.groups.popleft():
            store.write()
