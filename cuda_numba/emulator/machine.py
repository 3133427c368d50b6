"""The emulated GPU during one launch: its blocks, its memory, and what they have logged."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np

from .block import Block, Cluster
from .errors import InvalidUse, Misaligned, OutOfBounds
from .log import Log
from .memory import SHARED_START, Memory
from .schedule import Scheduler
from .thread import Dim, Thread
from .trace import ArrayInfo, Finding

FATAL = {"out_of_bounds": OutOfBounds, "misaligned": Misaligned, "invalid_use": InvalidUse}


class Machine:
    """One launch. `t` is the thread that runs now."""

    def __init__(
        self,
        grid: Dim,
        block: Dim,
        *,
        shared: int = 0,
        seed: int | None = None,
        tracing: bool = False,
        cluster: Dim | None = None,
        cooperative: bool = False,
    ):
        self.grid_dim, self.block_dim = grid, block
        self.threads_per_block = block[0] * block[1] * block[2]
        bx, by, bz = (range(n) for n in block)
        self.places = [(x, y, z) for z in bz for y in by for x in bx]
        self.n_blocks = grid[0] * grid[1] * grid[2]
        self.dynamic_shared = shared
        self.tracing, self.cooperative, self.cluster_dim = tracing, cooperative, cluster
        self.rng = random.Random(seed) if seed is not None else None
        # A dynamic array that the code takes to be 1,024-byte aligned need not be: seeds show it.
        self.skew = self.rng.randrange(0, SHARED_START, 16) if self.rng else 0
        self.memory = Memory()
        self.grid_epoch = 0
        self.meetings: dict[Any, list] = {}
        self.state: dict[Any, Any] = {}
        self.codes: set[Any] = set()
        self.t: Thread | None = None
        self.scheduler = Scheduler(self)
        self.findings: list[Finding] = []
        self.at_end: list[Callable] = []  # what is left to do when all threads have ended
        self.local_bytes = 0
        self.shared_bytes = shared
        # the log: see trace.Trace
        self.log = Log()
        self.loops: list[int] = []
        self.tracer: Any = None
        self.ended = 0  # threads that have returned
        self.hits: list[int] = []
        self.origin: tuple | None = None  # the instruction that runs now: its place in the source
        self.paths: list[tuple] = [(-1, -1, 0)]
        self.clocks: dict[tuple, list] = {}
        self.stamps: dict[tuple, list] = {}
        self.arrays: dict[str, ArrayInfo] = {}
        self.fences = False  # some thread has met a fence
        self.spins = False  # the kernel waits for other threads in a loop

    def groups(self):
        """The blocks, in groups that run together."""
        gx, gy, gz = self.grid_dim
        order = [(x, y, z) for z in range(gz) for y in range(gy) for x in range(gx)]
        index = {xyz: i for i, xyz in enumerate(order)}
        if self.cluster_dim and self.cluster_dim != (1, 1, 1):
            yield from self.clusters(index)
        elif self.cooperative:
            yield [Block(self, i, xyz) for xyz, i in index.items()]
        else:
            if self.rng is not None:
                self.rng.shuffle(order)
            for xyz in order:
                yield [Block(self, index[xyz], xyz)]

    def clusters(self, index: dict[Dim, int]):
        cx, cy, cz = self.cluster_dim
        found: dict[Dim, list] = {}
        for x, y, z in index:
            found.setdefault((x // cx, y // cy, z // cz), []).append((x, y, z))
        for n, members in enumerate(found.values()):
            cluster = Cluster(n, self.cluster_dim)
            cluster.blocks = [Block(self, index[xyz], xyz, cluster) for xyz in members]
            yield cluster.blocks

    # ---- findings -----------------------------------------------------------------------------

    def finding(
        self,
        kind: str,
        message: str,
        *,
        threads: list[Any] | None = None,
        lines: list[int | None] | None = None,
        block: Dim | None = None,
    ) -> None:
        """List a finding; a plain launch raises those that leave a value undefined."""
        threads = threads if threads is not None else [self.t] if self.t else []
        first = threads[0] if threads else None
        if lines is None:
            lines = [t.line for t in threads]
        if block is None and first is not None:
            block = first.block.xyz
        found = Finding(
            kind=kind,
            lines=tuple(dict.fromkeys(line for line in lines if line is not None)),
            threads=tuple(t.xyz for t in threads),
            block=block,
            message=message,
        )
        if self.tracing:
            if len(self.findings) < 10_000:
                self.findings.append(found)
            return
        if kind in FATAL:
            raise FATAL[kind](
                f"{message} ({first.name}, line {lines[0]})" if first else message,
                thread=first.xyz if first else None,
                block=block,
                line=lines[0] if lines else None,
            )

    def check_barrier(self, block: Block, waiting: list[Thread]) -> None:
        """Threads that meet at one barrier from different lines: some branch diverged."""
        if not self.tracing:
            return
        places: dict[int | None, Thread] = {}
        for t in waiting:
            places.setdefault(t.line, t)
        if len(places) > 1:
            self.finding(
                "divergent_barrier",
                "threads of one block meet at a barrier from different lines: "
                + ", ".join(f"thread {t.xyz} at line {line}" for line, t in places.items()),
                threads=list(places.values()),
                lines=list(places),
            )

    def barrier_without(self, block: Block, waiting: list[Thread]) -> None:
        """Some threads have ended and all the others are at a barrier."""
        if self.tracing:
            t, there = waiting[0], {other.id for other in waiting}
            gone = [other for other in block.threads if other.id not in there]
            self.finding(
                "barrier_not_reached",
                f"{len(waiting)} threads wait at a barrier that {len(gone)} "
                f"threads of the block, which have ended, never reached",
                threads=[t, gone[0]],
                lines=[t.line],
            )

    # ---- memory -------------------------------------------------------------------------------

    def shared_or_local(self, t: Thread, x: Any) -> tuple[str, int, int]:
        """Where an array lives that is no argument: a part of shared memory, or a local array."""
        if not isinstance(x, np.ndarray):
            raise TypeError(f"expected an array of the kernel, got {type(x).__name__}")
        at = x.__array_interface__["data"][0]
        arena = t.block.shared
        if arena.buffer is not None:
            start = arena.buffer.__array_interface__["data"][0]
            if start <= at < start + arena.buffer.size:
                return "shared", at - start, x.itemsize
        locals_ = t.state.setdefault("local arrays", {})
        locals_.setdefault(id(x), x)
        return "local", (list(locals_).index(id(x)) + 1) << 32, x.itemsize

    def local_span(self, t: Thread, address: int, nbytes: int) -> np.ndarray | None:
        arrays = list(t.state.get("local arrays", {}).values())
        index, offset = (address >> 32) - 1, address & 0xFFFFFFFF
        if not 0 <= index < len(arrays) or offset + nbytes > arrays[index].nbytes:
            return None
        return arrays[index].reshape(-1).view(np.uint8)[offset : offset + nbytes]

    # ---- the log ------------------------------------------------------------------------------

    def note(
        self, t: Thread, kind: str, space: str, address: int, nbytes: int, name: str = "",
        via: str = "",
    ) -> None:  # fmt: skip
        """Log an access by an instruction."""
        if t is not self.t:  # an instruction of a whole warp logs for each of its lanes
            self.log.state(t)
        self.log.access(self.log.site(self.origin, kind, space, nbytes, name, via), address)
        if t is not self.t:
            self.log.state(self.t)

    def atomic_place(self, x: Any, index: Any) -> tuple[int, ...] | None:
        """Where an atomic operation goes; None where it is outside, and listed as that."""
        if self.tracing:
            return self.tracer.atomic_place(x, index)
        index = index if isinstance(index, tuple) else (index,)
        return tuple(int(i) for i in index)

    def incomplete_warp(self, name: str) -> InvalidUse:
        t = self.t
        return InvalidUse(
            f"{name}: all 32 lanes of a warp take part, this warp has {len(t.warp.threads)}",
            **t.where,
        )

    def add_array(self, name: str, space: str, base: int, a: np.ndarray) -> None:
        """Make an array known to the report's access map."""
        if name in self.arrays and self.arrays[name].address != base:
            name = f"{name} ({space}, 0x{base:x})"  # of another function that has one of that name
        self.arrays[name] = ArrayInfo(space, base, a.shape, a.itemsize, a.dtype.name)

    def record_clock(self, t: Thread) -> None:
        stamps = self.stamps.setdefault((t.block.index, t.id), [])
        while len(stamps) <= t.interval:
            stamps.append((t.epoch, t.warp.epoch))
        self.clocks.setdefault((t.block.index, t.id), []).append((t.interval, t.clock))
