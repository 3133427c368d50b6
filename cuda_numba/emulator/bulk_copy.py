"""Bulk copies in the emulator: boxes of tensors and runs of bytes, by the async proxy.

A load reads its source at once and lands before its mbarrier is found complete; its write counts as
one by the thread that started it. A store reads shared memory when its group is waited for (or
earlier, as the seed has it), and writes global memory when the group is waited for without `.read`,
or when the thread ends.
"""

from collections import deque
from typing import Any

import numpy as np

from ..bits import decode, encode
from ..dtypes import kernel_dtype
from . import cluster_memory, mbarrier, shadow, tensor_map
from .in_flight import Copy

Run = tuple[int, int, int]  # offset in the box, global address, bytes


def find_map(t: Any, name: str, address: int) -> Any:
    found = tensor_map.LIVE.get(address)
    if found is None:
        t.machine.finding(
            "invalid_use", f"{name}: 0x{address:x} is not the address of a tensor map", threads=[t]
        )
    return found


def _box(t: Any, name: str, address: int, coordinates: tuple) -> tuple[Any, list[Run]] | None:
    """The map and the runs of bytes that a copy moves."""
    found = find_map(t, name, address)
    if found is None:
        return None
    if len(found.box) != len(coordinates):
        t.machine.finding(
            "invalid_use",
            f"{name}: the tensor map has {len(found.box)} dimensions, not {len(coordinates)}",
            threads=[t],
        )
        return None
    return found, tensor_map.rows(t.machine, found, coordinates)


def _aligned(t: Any, name: str, what: str, value: int, align: int) -> bool:
    if value % align:
        t.machine.finding(
            "misaligned",
            f"{name}: {what} is 0x{value:x}, it must be a multiple of {align}",
            threads=[t],
        )
    return value % align == 0


def _run(t: Any, name: str, address: int, shared: int, nbytes: int) -> bool:
    """Whether the operands of a copy of plain bytes are as they must be."""
    return (
        _aligned(t, name, "the global address", address, 16)
        and _aligned(t, name, "the shared address", shared, 16)
        and _aligned(t, name, "the number of bytes", nbytes, 16)
    )


def _global(t: Any, name: str, address: int, nbytes: int) -> np.ndarray:
    return t.span("global", address, nbytes, 1)


# ---- loads


def load_box(
    t: Any, name: str, shared: int, map: int, coordinates: tuple, bar: int, mask: int | None
) -> None:
    found = _box(t, name, map, coordinates)
    if found is None or not _aligned(t, name, "the shared address", shared, 128):
        return
    map, runs = found
    data = np.zeros(map.nbytes, np.uint8)
    _gather(t, name, data, runs)
    if mask is None:
        _land_at(t, name, shared, bar, data, map)
        return
    members = cluster_memory.blocks(t)
    if not mask or mask >> len(members):
        t.machine.finding(
            "invalid_use",
            f"{name}: mask is 0x{mask:x}, the cluster has {len(members)} blocks",
            threads=[t],
        )
        return
    for rank in range(len(members)):
        if mask >> rank & 1:
            there = (cluster_memory.mapa(t, a, rank) for a in (shared, bar))
            _land_at(t, name, *there, data, map)


def load_run(t: Any, name: str, shared: int, source: int, nbytes: int, bar: int) -> None:
    if _run(t, name, source, shared, nbytes):
        data = np.zeros(nbytes, np.uint8)
        _gather(t, name, data, [(0, source, nbytes)])
        _land_at(t, name, shared, bar, data)


def _gather(t: Any, name: str, data: np.ndarray, runs: list[Run]) -> None:
    for offset, address, nbytes in runs:
        data[offset : offset + nbytes] = _global(t, name, address, nbytes)
        shadow.check(t, name, "global", address, nbytes)
        shadow.note(t, "load", "global", address, nbytes)


def _land_at(t: Any, name: str, shared: int, bar: int, data: np.ndarray, map: Any = None) -> None:
    """Let the data arrive in some block's shared memory, and its bytes at the barrier there."""
    b = mbarrier.find_for_copy(t, bar, name)
    if b is None:
        return
    block, address = cluster_memory.resolve(t, shared)
    if block is not b.block:
        t.machine.finding(
            "invalid_use", f"{name}: the data and the mbarrier are in two blocks", threads=[t]
        )
        return
    first, extent, places = address, len(data), None
    if map is not None:
        first, extent, places = tensor_map.footprint(map, address)
    target = cluster_memory.span(t, block, first, extent, 1)
    copy = Copy(t, name, block, first, data, target, places)

    def finish() -> None:
        copy.finish()
        at = cluster_memory.logged(t, block, first)
        shadow.note(t, "store", "shared", at, extent, copy.origin)
        shadow.clean(t, "shared", at, extent)

    def land() -> None:
        copy.land()
        b.complete(t, len(data), finish)

    b.later(land)


def send_run(t: Any, name: str, target: int, shared: int, nbytes: int, bar: int) -> None:
    if _run(t, name, target, shared, nbytes):
        data = t.span("shared", shared, nbytes, 16).copy()
        shadow.check(t, name, "shared", shared, nbytes)
        shadow.note(t, "load", "shared", shared, nbytes)
        _land_at(t, name, target, bar, data)


# ---- stores


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
            target = _global(self.thread, self.name, address, nbytes)
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
    found = _box(t, name, map, coordinates)
    if found is None or not _aligned(t, name, "the shared address", shared, 128):
        return
    map, runs = found
    first, extent, places = tensor_map.footprint(map, shared)
    add = map.element if add else None
    _queue(t).open.append(Store(t, name, first, extent, runs, add, places))


def store_run(
    t: Any, name: str, target: int, shared: int, nbytes: int, add: str | None = None
) -> None:
    if _run(t, name, target, shared, nbytes):
        _global(t, name, target, nbytes)
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


# ---- prefetches: nothing but their operands to check


def prefetch_box(t: Any, name: str, map: int, coordinates: tuple) -> None:
    _box(t, name, map, coordinates)


def prefetch_run(t: Any, name: str, source: int, nbytes: int) -> None:
    if _run(t, name, source, 0, nbytes):
        _global(t, name, source, nbytes)
