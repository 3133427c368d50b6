"""Clusters in the emulator: addresses of other blocks' shared memory, and the cluster's barrier.

A cluster address is (rank + 1) << 24 | shared address: `mapa` makes it, so that an address without
it is the block's own, as in hardware. In the log, the shared memory of another block is
(its index + 1) << 32 | address.
"""

from typing import Any

import numpy as np

from .trace import OWNER_BITS
from .wgmma_state import settle

RANK_SHIFT = 24
OFFSET = (1 << RANK_SHIFT) - 1


def blocks(t: Any) -> list[Any]:
    """The blocks of the thread's cluster, by rank."""
    return t.block.cluster.blocks if t.block.cluster else [t.block]


def rank(t: Any) -> int:
    return blocks(t).index(t.block)


def place(t: Any) -> tuple[int, int]:
    """The cluster's number along x, and how many there are along x."""
    width = t.block.cluster.shape[0] if t.block.cluster else 1
    return t.block.x // width, t.machine.grid_dim[0] // width


def mapa(t: Any, address: int, rank: int) -> int:
    if rank >= len(blocks(t)):
        t.machine.finding(
            "invalid_use",
            f"mapa: rank is {rank}; the cluster has {len(blocks(t))} blocks",
            threads=[t],
        )
    return (rank + 1) << RANK_SHIFT | address & OFFSET


def resolve(t: Any, address: int) -> tuple[Any, int]:
    """The block that a cluster address names, and the shared address in it."""
    number = address >> RANK_SHIFT
    found = blocks(t)
    if not number:
        return t.block, address
    if number > len(found):
        t.machine.finding(
            "out_of_bounds", f"shared address 0x{address:x} is outside the cluster", threads=[t]
        )
        return t.block, address & OFFSET
    block = found[number - 1]
    if not block.alive:
        t.machine.finding(
            "invalid_use",
            f"shared memory of block {block.xyz}, which has ended: it must wait for the cluster",
            threads=[t],
        )
    return block, address & OFFSET


def logged(t: Any, block: Any, address: int) -> int:
    """A shared address of `block` as the log of accesses by `t` wants it."""
    return address if block is t.block else (block.index + 1) << OWNER_BITS | address


def span(t: Any, block: Any, address: int, nbytes: int, align: int) -> np.ndarray:
    """The bytes at a shared address of any block, after the checks."""
    if block is t.block:
        return t.span("shared", address, nbytes, align)
    if address % align:
        t.machine.finding(
            "misaligned",
            f"{nbytes} bytes at shared address 0x{address:x}, which is not a multiple of {align}",
            threads=[t],
        )
    found = block.shared.span(address, nbytes)
    if found is None:
        t.machine.finding(
            "out_of_bounds",
            f"{nbytes} bytes at shared address 0x{address:x} of block {block.xyz}, outside every "
            f"array",
            threads=[t],
        )
        return np.full(nbytes, 0xFF, np.uint8)
    return found


def read(t: Any, address: int, nbytes: int) -> np.ndarray:
    block, offset = resolve(t, address)
    data = span(t, block, offset, nbytes, nbytes).copy()
    if t.machine.tracing:
        t.machine.note(t, "load", "shared", logged(t, block, offset), nbytes)
    return data


def write(t: Any, address: int, data: np.ndarray) -> None:
    block, offset = resolve(t, address)
    span(t, block, offset, len(data), len(data))[:] = data
    if t.machine.tracing:
        t.machine.note(t, "store", "shared", logged(t, block, offset), len(data))


class ClusterBarrier:
    """One phase after the other: who has come, and what they release."""

    def __init__(self, members: list[Any]):
        self.members, self.phase = members, 0
        self.arrived: list[Any] = []
        self.token: dict[int, int] = {}
        self.done: dict[int, int] = {}

    def complete(self) -> bool:
        """Begin the next phase if all living threads have come."""
        living = sum(block.alive for block in self.members)
        here = sum(t.g is not None for t in self.arrived)
        if here < living:
            return False
        self.phase += 1
        self.arrived, self.done = [], dict(self.token)
        return True


def barrier(t: Any) -> ClusterBarrier:
    state = t.block.cluster.state if t.block.cluster else t.block.state
    if "cluster barrier" not in state:
        state["cluster barrier"] = ClusterBarrier(blocks(t))
    return state["cluster barrier"]


def arrive(t: Any, release: bool = True) -> None:
    b = barrier(t)
    if "cluster phase" in t.state:
        t.machine.finding(
            "invalid_use", "cluster_arrive twice without cluster_wait between", threads=[t]
        )
    settle(t)
    if release:
        t.order.release(b.token)
    t.state["cluster phase"] = b.phase
    b.arrived.append(t)
    if b.complete():
        t.machine.scheduler.idle = 0


def wait(t: Any) -> None:
    b = barrier(t)
    phase = t.state.pop("cluster phase", None)
    if phase is None:
        t.machine.finding("invalid_use", "cluster_wait without cluster_arrive", threads=[t])
        return
    t.wait_until(lambda: b.phase > phase or b.complete(), "the threads of its cluster")
    t.order.acquire(b.done)
