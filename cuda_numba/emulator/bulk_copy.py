"""Bulk copies in the emulator: boxes of tensors and runs of bytes, by the async proxy.

A load reads its source at once and lands before its mbarrier is found complete; its write counts as
one by the thread that started it. Stores: `bulk_write`.

Operands that break a rule of the documentation are found before anything is copied: a box that
begins between two 16-byte pieces of the tensor's memory, also one that is only prefetched, and a
shared address that is no multiple of 128. `ptx.tma` has the rules, their sources, and which of them
a GPU was seen to enforce.
"""

from typing import Any

import numpy as np

from . import cluster_memory, mbarrier, shadow, tensor_map
from .in_flight import Copy

Run = tuple[int, int, int]  # offset in the box, global address, bytes
PIECE = 16  # bytes: what bulk copies move


def find_map(t: Any, name: str, address: int) -> Any:
    found = tensor_map.LIVE.get(address)
    if found is None:
        t.machine.finding(
            "invalid_use", f"{name}: 0x{address:x} is not the address of a tensor map", threads=[t]
        )
    return found


def box(t: Any, name: str, address: int, coordinates: tuple) -> tuple[Any, list[Run]] | None:
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
    size = found.array.itemsize
    if coordinates[0] * size % PIECE:
        t.machine.finding(
            "misaligned",
            f"{name}: the box begins at element {coordinates[0]} of a row, {size} bytes each: the "
            f"innermost coordinate must be a multiple of {PIECE // size}, for {PIECE} bytes",
            threads=[t],
        )
        return None
    return found, tensor_map.rows(t.machine, found, coordinates)


def aligned(t: Any, name: str, what: str, value: int, align: int) -> bool:
    if value % align:
        t.machine.finding(
            "misaligned",
            f"{name}: {what} is 0x{value:x}, it must be a multiple of {align}",
            threads=[t],
        )
    return value % align == 0


def run_fits(t: Any, name: str, address: int, shared: int, nbytes: int) -> bool:
    """Whether the operands of a copy of plain bytes are as they must be."""
    return (
        aligned(t, name, "the global address", address, PIECE)
        and aligned(t, name, "the shared address", shared, PIECE)
        and aligned(t, name, "the number of bytes", nbytes, PIECE)
    )


# ---- loads


def load_box(
    t: Any, name: str, shared: int, map: int, coordinates: tuple, bar: int, mask: int | None
) -> None:
    found = box(t, name, map, coordinates)
    if found is None or not aligned(t, name, "the shared address", shared, 128):
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
    if run_fits(t, name, source, shared, nbytes):
        data = np.zeros(nbytes, np.uint8)
        _gather(t, name, data, [(0, source, nbytes)])
        _land_at(t, name, shared, bar, data)


def _gather(t: Any, name: str, data: np.ndarray, runs: list[Run]) -> None:
    for offset, address, nbytes in runs:
        data[offset : offset + nbytes] = t.span("global", address, nbytes, 1)
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
    if run_fits(t, name, target, shared, nbytes):
        data = t.span("shared", shared, nbytes, 16).copy()
        shadow.check(t, name, "shared", shared, nbytes)
        shadow.note(t, "load", "shared", shared, nbytes)
        _land_at(t, name, target, bar, data)


# ---- prefetches: nothing but their operands to check


def prefetch_box(t: Any, name: str, map: int, coordinates: tuple) -> None:
    box(t, name, map, coordinates)


def prefetch_run(t: Any, name: str, source: int, nbytes: int) -> None:
    if run_fits(t, name, source, 0, nbytes):
        t.span("global", source, nbytes, 1)
