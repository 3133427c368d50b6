"""What threads belong to: warps, blocks with their shared memory and barrier, clusters."""

from collections.abc import Callable
from typing import Any

from . import handover
from .memory import Arena
from .thread import Dim, Thread


class Warp:
    """Up to 32 threads. `exists`, `exited`: bit masks of lanes."""

    __slots__ = ("block", "epoch", "exists", "exited", "groups", "index", "pending", "threads")

    def __init__(self, block: "Block", index: int, threads: list["Thread"]):
        self.block, self.index, self.threads = block, index, threads
        self.exists = (1 << len(threads)) - 1
        self.exited = 0
        self.epoch = 0
        self.pending: list[Any] = []
        self.groups: dict[Any, list[int]] = {}  # lanes together at a place, until they are counted


class Block:
    """One block: its threads, its shared memory, and who waits at its barrier."""

    def __init__(self, machine: Any, index: int, xyz: Dim, cluster: Any = None):
        self.machine, self.index = machine, index
        self.x, self.y, self.z = self.xyz = xyz
        self.cluster = cluster
        self.shared = Arena(machine.dynamic_shared, machine.skew)
        self.meetings: dict[Any, list] = {}
        self.state: dict[Any, Any] = {}
        self.waiting: list[Thread] = []  # at the block's barrier
        self.values: list[Any] = []  # what they bring to it
        self.reduce: Callable | None = None  # … and what becomes of that
        self.place: tuple | None = None  # where in the source the first of them waits
        self.mixed = False  # they wait at several places
        self.informed = False  # some thread has acquired what another released
        self.epoch = 0
        self.threads = [Thread(machine, self, i, xyz) for i, xyz in enumerate(machine.places)]
        self.alive = len(self.threads)
        self.warps = []
        for i in range(0, len(self.threads), 32):
            warp = Warp(self, i // 32, self.threads[i : i + 32])
            self.warps.append(warp)
            for t in warp.threads:
                t.warp = warp

    @property
    def grid(self) -> Any:
        return self.machine

    def barrier(self, t: Thread, value: Any = None, reduce: Callable | None = None) -> Any:
        """Wait for every thread of the block that has not ended (syncthreads and its kin)."""
        waiting, place = self.waiting, self.machine.origin
        if not waiting:
            self.place = place
        elif place is not self.place:
            self.mixed = True
        waiting.append(t)
        if reduce is not None:
            self.values.append(value)
            self.reduce = reduce
        if len(waiting) < self.alive:
            return self.machine.scheduler.switch_out(t, "syncthreads")
        return self.open_barrier(t)

    def open_barrier(self, last: Thread | None) -> Any:
        """Everybody has come; `last` runs now, the others wait (all of them, if it is None)."""
        waiting, self.waiting = self.waiting, []
        result = None
        if self.mixed:
            self.mixed = False
            self.machine.check_barrier(self, waiting)
        if len(waiting) < len(self.threads):
            self.machine.barrier_without(self, waiting)
        if self.values:
            values, self.values = self.values, []
            result = self.reduce(values)
        self.epoch += 1
        for t in waiting:
            t.value = result
            t.epoch += 1
        if self.informed:
            handover.meet(waiting)
        if last is not None:
            waiting.pop()
            if self.machine.tracing:
                self.machine.log.state(last)
        if waiting:
            self.machine.scheduler.wake(waiting)
        return result


class Cluster:
    """Blocks that run together and see each other's shared memory."""

    def __init__(self, index: int, shape: Dim):
        self.index, self.shape = index, shape
        self.blocks: list[Block] = []
        self.meetings: dict[Any, list] = {}
        self.state: dict[Any, Any] = {}
