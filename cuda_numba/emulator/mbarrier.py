"""Mbarriers in the emulator: phases, arrivals, and the bytes that bulk copies bring.

The state lives beside the block; the barrier's 8 bytes hold a mark, so that a kernel that writes
over them is told. A copy lands when somebody tests or waits for its barrier and nobody else can run
(or earlier, as the seed has it): a missing wait then reads poison.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from . import cluster_memory, shadow
from .wgmma_state import settle

MARK = np.frombuffer(b"mbarrier", np.uint8)
LARGEST = (1 << 20) - 1  # of arrivals, and of bytes either way


class Barrier:
    """One mbarrier.

    count: arrivals of a phase; pending: those missing in this one; tx: bytes missing, negative
    where they came before they were announced; phase: phases completed so far; token, done: what
    the arrivals release, and what those of completed phases have; fenced: the async proxy sees it.
    """

    def __init__(self, t: Any, block: Any, address: int, count: int):
        self.thread, self.block, self.address, self.line = t, block, address, t.line
        self.count = self.pending = count
        self.tx = self.phase = 0
        self.token: dict[int, int] = {}
        self.done: dict[int, int] = {}
        self.waiting: list[Any] = []
        self.deferred: list[Callable[[], None]] = []
        self.landed: list[tuple[int, Any, Callable[[], None]]] = []  # phase, who started it
        self.fenced = False

    def __str__(self) -> str:
        parts = []
        if self.pending:
            parts.append(f"{self.pending} of {self.count} arrivals")
        if self.tx > 0:
            parts.append(f"{self.tx} bytes of bulk copies")
        if self.tx < 0:
            parts.append(f"the announcement of {-self.tx} bytes that have come")
        return (
            f"phase {self.phase} of the mbarrier of line {self.line}, which misses "
            f"{' and '.join(parts) or 'nothing'}"
        )

    def wrong(self, t: Any, message: str) -> None:
        t.machine.finding(
            "invalid_use",
            f"the mbarrier initialised at line {self.line}: {message}",
            threads=[t],
            lines=[self.line, t.line],
        )

    def arrive(self, t: Any, count: int) -> None:
        settle(t)
        t.order.release(self.token)
        if count > self.pending:
            self.wrong(
                t,
                f"an arrival too many in phase {self.phase}, where {self.count} are due and "
                f"{self.tx} bytes are still missing",
            )
            return
        self.pending -= count
        self.advance()

    def expect(self, t: Any, nbytes: int) -> None:
        self.tx += nbytes
        if self.tx > LARGEST:
            self.wrong(t, f"{self.tx} bytes are announced; it can count to {LARGEST}")

    def complete(self, t: Any, nbytes: int, finish: Callable[[], None]) -> None:
        """A copy that `t` started has brought its bytes; `finish` is for who waits for that."""
        t.order.release(self.token)
        self.landed.append((self.phase, t, finish))
        self.tx -= nbytes
        self.advance()

    def advance(self) -> None:
        if self.pending or self.tx:
            return
        self.phase += 1
        self.pending = self.count
        self.done = dict(self.token)
        self.thread.machine.scheduler.idle = 0

    def later(self, land: Callable[[], None]) -> None:
        """Something that will happen to the barrier before long."""
        rng = self.thread.machine.rng
        if rng is not None and rng.random() < 0.5:
            land()
        else:
            self.deferred.append(land)

    def settle(self) -> None:
        """All that was under way arrives."""
        deferred, self.deferred = self.deferred, []
        for land in deferred:
            land()

    def acquire(self, t: Any) -> None:
        """`t` has found the last phase complete: it sees what the phases have brought."""
        ready = [entry for entry in self.landed if entry[0] < self.phase]
        self.landed = [entry for entry in self.landed if entry[0] >= self.phase]
        for _, starter, finish in ready:
            finish()
            starter.order.release(self.token)
            starter.order.release(self.done)
        t.order.acquire(self.done)


def _barriers(block: Any) -> dict[int, Barrier]:
    return block.state.setdefault("mbarriers", {})


def init(t: Any, address: int, count: int) -> None:
    block, offset = t.block, address
    if not 1 <= count <= LARGEST:
        t.machine.finding(
            "invalid_use",
            f"mbarrier_init: count is {count}; it must be from 1 to {LARGEST}",
            threads=[t],
        )
        return
    old = _barriers(block).get(offset)
    if old is not None and old.waiting:
        old.wrong(t, "initialised again while threads wait for it")
    t.span("shared", offset, 8, 8)[:] = MARK
    shadow.note(t, "store", "shared", offset, 8)
    _barriers(block)[offset] = Barrier(t, block, offset, count)


def invalidate(t: Any, address: int) -> None:
    if find(t, address, "mbarrier_inval") is not None:
        del _barriers(t.block)[address]
        shadow.note(t, "store", "shared", address, 8)


def find(t: Any, address: int, name: str) -> Barrier | None:
    """The barrier at a shared or cluster address; a finding if there is none."""
    block, offset = cluster_memory.resolve(t, address)
    b = _barriers(block).get(offset)
    if b is None:
        t.machine.finding(
            "invalid_use",
            f"{name}: no mbarrier was initialised at shared address 0x{offset:x}",
            threads=[t],
        )
        return None
    if not np.array_equal(block.shared.bytes()[offset : offset + 8], MARK):
        b.wrong(t, "its 8 bytes were overwritten")
        block.shared.bytes()[offset : offset + 8] = MARK
    if block is not t.block and not b.fenced:
        _unfenced(t, b, name)
    shadow.note(t, "atomic", "shared", cluster_memory.logged(t, block, offset), 8)
    return b


def _unfenced(t: Any, b: Barrier, name: str) -> None:
    b.fenced = True  # once is enough
    t.machine.finding(
        "missing_fence",
        f"{name} uses the mbarrier of line {b.line}, which was initialised without "
        f"fence_mbarrier_init after it",
        threads=[b.thread, t],
        lines=[b.line, t.line],
    )


def find_for_copy(t: Any, address: int, name: str) -> Barrier | None:
    """The barrier that a bulk copy brings its bytes to."""
    b = find(t, address, name)
    if b is not None and not b.fenced:
        _unfenced(t, b, name)
    return b


def fence(t: Any) -> None:
    """The barriers that this thread has initialised are visible to the async proxy."""
    for b in _barriers(t.block).values():
        if b.thread is t:
            b.fenced = True


def arrive(t: Any, address: int, count: int = 1) -> None:
    b = find(t, address, "mbarrier_arrive")
    if b is not None:
        b.arrive(t, count)


def expect(t: Any, address: int, nbytes: int) -> None:
    b = find(t, address, "mbarrier_expect_tx")
    if b is not None:
        b.expect(t, nbytes)


def test(t: Any, address: int, parity: int) -> bool:
    """Whether the phase of that parity is complete; where not, others get a turn."""
    b = find(t, address, "mbarrier_test_wait")
    if b is None:
        return True
    if b.phase & 1 == parity & 1:
        b.settle()
    if b.phase & 1 == parity & 1:
        t.spin()
        return False
    b.acquire(t)
    return True


def wait(t: Any, address: int, parity: int) -> None:
    b = find(t, address, "mbarrier_wait")
    if b is None:
        return
    if parity > 1:
        b.wrong(t, f"mbarrier_wait: parity is {parity}; it must be 0 or 1")
    begin = b.phase
    if begin & 1 == parity & 1:
        tried = False

        def complete() -> bool:
            nonlocal tried
            if b.phase == begin and tried:
                b.settle()
            tried = True
            return b.phase != begin

        b.waiting.append(t)
        t.wait_until(complete, b)
        b.waiting.remove(t)
        if b.phase > begin + 1:
            b.wrong(
                t,
                f"{t.name} waits at line {t.line} for phase {begin}, but the barrier is in phase "
                f"{b.phase}: nothing holds the others back for it",
            )
    b.acquire(t)
