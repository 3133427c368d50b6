"""One emulated thread: also the interface for the instructions of `ptx`.

Their Python meanings read and write memory, wait and meet through it.
"""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from .memory import View
from .schedule import collect, exited

Dim = tuple[int, int, int]
NOTHING: dict[int, int] = {}  # the clock of a thread that has acquired nothing; never written


class Thread:
    """One CUDA thread, and what an instruction may ask of it."""

    __slots__ = ("_order", "_state", "block", "clock", "epoch", "g", "id", "interval")
    __slots__ += ("lane", "machine", "path", "value", "warp", "why", "x", "y", "z")

    def __init__(self, machine: Any, block: Any, index: int, place: Dim):
        self.machine, self.block, self.id = machine, block, index
        self.x, self.y, self.z = place
        self.lane = index & 31
        self.epoch = machine.grid_epoch << 32
        self.path = self.interval = 0
        self.g = self.value = self.why = self._state = self._order = None
        self.clock = NOTHING

    @property
    def state(self) -> dict[Any, Any]:
        """What instructions keep for this thread."""
        if self._state is None:
            self._state = {}
        return self._state

    @property
    def order(self) -> "Order":
        """Its vector clock, to release and acquire."""
        if self._order is None:
            self._order = Order(self)
        return self._order

    @property
    def xyz(self) -> Dim:
        return self.x, self.y, self.z

    @property
    def name(self) -> str:
        return f"thread {self.xyz} of block {self.block.xyz}"

    @property
    def key(self) -> int:
        """Its number in the whole grid."""
        return self.block.index * self.machine.threads_per_block + self.id

    @property
    def line(self) -> int | None:
        """The line of the kernel, or of the device function, that the thread is at."""
        frame = self.g.gr_frame if self.g else None
        if frame is None:  # it runs now, or the kernel needs no greenlets
            frame = sys._getframe(1)
        while frame is not None:
            if frame.f_code in self.machine.codes:
                return frame.f_lineno
            frame = frame.f_back
        return None

    @property
    def where(self) -> dict[str, Any]:
        """Thread, block and line, as errors want them."""
        return {"thread": self.xyz, "block": self.block.xyz, "line": self.line}

    def finish(self) -> None:
        """The thread has returned from the kernel."""
        block, warp = self.block, self.warp
        self.g = None
        block.alive -= 1
        self.machine.ended += 1
        warp.exited |= 1 << self.lane
        for pending in warp.pending:
            if pending.mask >> self.lane & 1:
                raise exited(pending.threads[0], pending.op, 1 << self.lane)
        if block.waiting and len(block.waiting) == block.alive:
            block.open_barrier(None)
        if not block.alive:
            self.machine.scheduler.running.remove(block)

    # ---- waiting ------------------------------------------------------------------------------

    def meet(
        self,
        key: Any,
        expected: int,
        value: Any = None,
        compute: Callable | None = None,
        why: str = "the others",
        sync: str | None = None,
        scope: Any = None,
    ) -> Any:
        """Wait until `expected` threads have arrived at `key`.

        The last one calls compute([(thread, value), …]), which returns {thread: result} or None.
        sync: "block" if the meeting orders memory as the block's barrier does.
        """
        table = (scope or self.block).meetings
        met = table.setdefault(key, [])
        met.append((self, value))
        if len(met) < expected:
            return self.machine.scheduler.switch_out(self, why)
        del table[key]
        results = compute(met) if compute else None
        others = [t for t, _ in met[:-1]]
        for t, _ in met:
            t.value = results.get(t) if results else None
            if sync == "block":
                t.epoch += 1
        if others:
            self.machine.scheduler.wake(others)
        self.changed()
        return self.value

    def changed(self) -> None:
        """The thread's clocks have moved: what it does from here on is logged with the new ones."""
        if self.machine.tracing and self.machine.t is self:
            self.machine.log.state(self)

    def collect(self, op: str, mask: int, value: Any, compute: Callable[[dict], Any]) -> Any:
        """A warp operation over the lanes of `mask`: see schedule.collect."""
        return collect(self, op, mask, value, compute)

    def wait_until(self, condition: Callable[[], bool], why: str = "a condition") -> None:
        self.machine.scheduler.wait_until(self, condition, why)

    def spin(self) -> None:
        self.machine.scheduler.spin(self)

    # ---- memory -------------------------------------------------------------------------------

    def locate(self, x: Any, i: int = 0) -> tuple[str, int, int]:
        """Space, address and item size of element i (flat) of an array or pointer.

        An element outside the array is out of bounds, except the one just past its end, whose
        address may be formed.
        """
        i = int(i)
        if isinstance(x, View):
            space, base, size = x.space, x.base, x.itemsize
        else:
            found = self.machine.memory.lookup(x)
            if found is None:
                found = self.machine.shared_or_local(self, x)
            space, base, size = found
        if not 0 <= i <= x.size:
            self.machine.finding(
                "out_of_bounds",
                f"element {i} of an array of {x.size}",
                threads=[self],
                lines=[self.line],
            )
        return space, base + i * size, size

    def span(self, space: str, address: int, nbytes: int, align: int | None) -> np.ndarray:
        """The live bytes at an address, after the checks; writing into them writes memory."""
        align = align or nbytes
        if address % align:
            self.machine.finding(
                "misaligned",
                f"a {nbytes}-byte access at {space} address 0x{address:x}, which is not a multiple "
                f"of {align}",
                threads=[self],
                lines=[self.line],
            )
        if space == "shared":
            found = self.block.shared.span(address, nbytes)
        elif space == "local":
            found = self.machine.local_span(self, address, nbytes)
        else:
            found = self.machine.memory.span(address, nbytes)
        if found is None:
            self.machine.finding(
                "out_of_bounds",
                f"{nbytes} bytes at {space} address 0x{address:x}, outside every array",
                threads=[self],
                lines=[self.line],
            )
            return np.full(nbytes, 0xFF, np.uint8)
        return found

    def read(
        self, space: str, address: int, nbytes: int, align: int | None = None, via: str = ""
    ) -> np.ndarray:
        """A copy of `nbytes` bytes, as uint8. via: as in trace.Site."""
        data = self.span(space, address, nbytes, align).copy()
        if self.machine.tracing:
            self.machine.note(self, "load", space, address, nbytes, via=via)
        return data

    def write(
        self, space: str, address: int, data: np.ndarray, align: int | None = None, via: str = ""
    ) -> None:
        """Write the bytes of `data` (uint8)."""
        self.span(space, address, len(data), align)[:] = data
        if self.machine.tracing:
            self.machine.note(self, "store", space, address, len(data), via=via)

    def atomic(self, space: str, address: int, data: np.ndarray) -> None:
        """Write the bytes of `data` as one atomic operation."""
        self.span(space, address, len(data), None)[:] = data
        self.machine.scheduler.idle = 0
        if self.machine.tracing:
            self.machine.note(self, "atomic", space, address, len(data))

    def peek(self, space: str, address: int, nbytes: int) -> np.ndarray:
        return self.span(space, address, nbytes, 1).copy()

    def poke(self, space: str, address: int, data: np.ndarray) -> None:
        self.span(space, address, len(data), 1)[:] = data


class Order:
    """Vector clocks for synchronisation that is not a whole barrier: release and acquire tokens.

    A thread's clock is replaced and never changed, so that threads may share one.
    """

    __slots__ = ("t",)

    def __init__(self, t: Thread):
        self.t = t

    def release(self, token: dict[int, int]) -> dict[int, int]:
        """All that the thread did so far happens before whoever acquires the token."""
        t = self.t
        if t.machine.tracing:
            mine = {**t.clock, t.key: t.interval + 1}
            for key, interval in mine.items():
                if interval > token.get(key, 0):
                    token[key] = interval
            self.advance(t.clock)
        return token

    def acquire(self, token: dict[int, int]) -> None:
        t = self.t
        if t.machine.tracing:
            clock = dict(t.clock)
            for key, interval in token.items():
                if interval > clock.get(key, 0):
                    clock[key] = interval
            t.block.informed = True
            self.advance(clock)

    def advance(self, clock: dict[int, int]) -> None:
        """A new interval begins, with this clock."""
        t = self.t
        t.clock = clock
        t.interval += 1
        t.machine.record_clock(t)
        t.changed()
