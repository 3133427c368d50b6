"""Who runs next: a greenlet for each CUDA thread, switched only where threads wait for each other.

Between two waits a thread is plain Python at full speed. A thread that must wait hands over to the
next ready one directly; when none is ready the hub looks for a condition that has become true,
starts the next blocks if the running ones spin, or says who waits where: a deadlock. A greenlet
whose thread has ended goes on with one that has not begun: a new one costs as much as ten switches.
"""

import contextvars
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from greenlet import getcurrent, greenlet

from .errors import Deadlock, InvalidUse, Livelock

SPIN_ROUNDS = 2000  # turns that every spinning thread gets while nothing changes
FULL = 0xFFFFFFFF


class Scheduler:
    """Runs groups of blocks. A group is one block, the blocks of a cluster, or the whole grid."""

    def __init__(self, machine: Any):
        self.m = machine
        self.ready: deque = deque()
        self.waiters: list[tuple[Any, Callable[[], bool]]] = []
        self.hub: greenlet = getcurrent()
        self.alive = 0
        self.idle = 0  # turns given to spinning threads since something last changed
        self.groups: Any = iter(())
        self.running: list[Any] = []  # blocks with living threads
        self.free: list[greenlet] = []  # whose threads have ended
        self.over = False

    # ---- the hub ------------------------------------------------------------------------------

    def run(self, groups: Iterable[list[Any]], body: Callable[[], Any]) -> None:
        """Run every group of blocks to its end, one after another."""
        self.groups, self.body = iter(groups), body
        self.context = contextvars.copy_context()  # with NumPy's error state
        while self.start_group():
            self.drain()
        self.over = True
        for g in self.free:
            g.switch()

    def start_group(self) -> bool:
        """Make the threads of the next group ready; False when there is none."""
        group = next(self.groups, None)
        if group is None:
            return False
        threads = [t for block in group for t in block.threads]
        self.alive += len(threads)
        self.running += group
        self.wake(threads)
        return True

    def drain(self) -> None:
        ready, m = self.ready, self.m
        while True:
            while ready:
                m.t = t = ready.popleft()
                if t.g is None:
                    t.g = self.free.pop() if self.free else self.new()
                t.g.switch()
            if self.alive == 0:
                return
            if not self.retry() and not self.deadlock_is_only_late():
                raise self.deadlock()

    def deadlock_is_only_late(self) -> bool:
        """Blocks that wait for blocks not yet started: start those, as a GPU with room would."""
        return self.start_group()

    def new(self) -> greenlet:
        g = greenlet(self.run_threads, self.hub)
        g.gr_context = self.context
        return g

    def run_threads(self) -> None:
        """The body of every greenlet: one thread after another, until the launch is over."""
        m, ready, body, me = self.m, self.ready, self.body, getcurrent()
        while not self.over:
            t = m.t
            if m.tracing:
                m.log.state(t)
            body()
            self.alive -= 1
            self.idle = 0
            t.finish()
            if ready and ready[0].g is None:
                m.t = t = ready.popleft()
                t.g = me
            else:
                self.free.append(me)
                self.hub.switch()

    # ---- waiting ------------------------------------------------------------------------------

    def switch_out(self, t: Any, why: str) -> Any:
        """Let others run until someone makes `t` ready; returns the value left for it."""
        t.why = why
        ready = self.ready
        # A thread that has not begun is begun by the hub: begun here, it would sit on our stack.
        if ready and ready[0].g is not None:
            self.m.t = other = ready.popleft()
            other.g.switch()
        else:
            self.hub.switch()
        t.why = None
        if self.m.tracing:
            self.m.log.state(t)
        return t.value

    def wake(self, threads: list[Any]) -> None:
        self.idle = 0
        if self.m.rng is not None and len(threads) > 1:
            self.m.rng.shuffle(threads)
        self.ready.extend(threads)

    def wait_until(self, t: Any, condition: Callable[[], bool], why: str) -> None:
        while not condition():
            self.waiters.append((t, condition))
            self.switch_out(t, why)

    def retry(self) -> bool:
        """Make the waiting threads ready whose condition has come true."""
        now = [t for t, condition in self.waiters if condition()]
        if now:
            self.waiters = [w for w in self.waiters if w[0] not in now]
            self.wake(now)
        return bool(now)

    def yield_turn(self, t: Any) -> None:
        """Everybody else who can run gets a turn before `t` goes on."""
        self.ready.append(t)
        self.switch_out(t, "its turn")

    def spin(self, t: Any) -> None:
        """`t` looked and found nothing new: everybody else gets a turn first."""
        self.idle += 1
        if self.idle > SPIN_ROUNDS * (len(self.ready) + 1):
            self.idle = 0
            if not self.retry() and not self.start_group():
                raise self.livelock(t)
        self.yield_turn(t)

    def pause(self, m: Any) -> None:
        """At an atomic operation, in kernels that wait for one in a loop: others get a turn."""
        if m.spins and m.t.g is not None:
            self.spin(m.t)

    # ---- reports ------------------------------------------------------------------------------

    def waiting(self) -> list[Any]:
        return [t for block in self.running for t in block.threads if t.g and t.why]

    def deadlock(self) -> Deadlock:
        threads = self.waiting()
        self.m.finding(
            "deadlock",
            message := describe(threads),
            threads=threads,
            lines=[t.line for t in threads],
        )
        first = threads[0]
        return Deadlock(
            f"deadlock: {message}", thread=first.xyz, block=first.block.xyz, line=first.line
        )

    def livelock(self, t: Any) -> Livelock:
        others = [o for o in self.waiting() if o is not t]
        message = f"{t.name} spins at line {t.line} and nothing changes any more"
        if others:
            message += f"; {describe(others)}"
        self.m.finding("livelock", message, threads=[t, *others], lines=[t.line])
        return Livelock(f"livelock: {message}", thread=t.xyz, block=t.block.xyz, line=t.line)


def describe(threads: list[Any]) -> str:
    """Who waits where, grouped by line and reason: "threads (0, 0, 0), … wait at line 7 for …"."""
    places: dict[tuple, list[Any]] = {}
    for t in threads:
        places.setdefault((t.block.xyz, t.line, t.why), []).append(t)
    parts = []
    for (block, line, why), group in list(places.items())[:8]:
        names = ", ".join(str(t.xyz) for t in group[:3]) + (", …" if len(group) > 3 else "")
        parts.append(
            f"{len(group)} thread{'s' if len(group) > 1 else ''} {names} of block {block} "
            f"wait{'s' if len(group) == 1 else ''} at line {line} for {why}"
        )
    return "; ".join(parts)


class Pending:
    """A warp operation that some of the lanes named in its mask have reached."""

    __slots__ = ("lanes", "mask", "n", "op", "threads")

    def __init__(self, op: str, mask: int):
        self.op, self.mask, self.n = op, mask, mask.bit_count()
        self.lanes: dict[int, Any] = {}
        self.threads: list[Any] = []


def collect(t: Any, op: str, mask: int, value: Any, compute: Callable[[dict], Any]) -> Any:
    """A warp operation: `t` arrives with `value`; the last lane of `mask` to arrive computes.

    compute(values by lane) returns the results by lane (a dict or a list), or None.
    """
    warp = t.warp
    mask &= warp.exists
    pending = None
    for p in warp.pending:
        if p.mask == mask and p.op == op:
            pending = p
        elif p.mask >> t.lane & 1 and any(mask >> lane & 1 for lane in p.lanes):
            raise clash(t, op, p)  # each waits for the other; else one of them can go first
    if not mask >> t.lane & 1:
        raise InvalidUse(
            f"{op}: lane {t.lane} calls it with mask 0x{mask:08x}, which does not name the lane",
            **t.where,
        )
    if warp.exited & mask:
        raise exited(t, op, warp.exited & mask)
    if pending is None:
        pending = Pending(op, mask)
        warp.pending.append(pending)
    pending.lanes[t.lane] = value
    pending.threads.append(t)
    if len(pending.threads) < pending.n:
        return t.machine.scheduler.switch_out(t, f"the other lanes of {op}")
    warp.pending.remove(pending)
    results = compute(pending.lanes)
    t.changed()
    others = pending.threads[:-1]
    if results is None:
        for other in others:
            other.value = None
    else:
        for other in others:
            other.value = results[other.lane]
    if others:
        t.machine.scheduler.wake(others)
    return None if results is None else results[t.lane]


def clash(t: Any, op: str, pending: Pending) -> InvalidUse:
    other = pending.threads[0]
    return InvalidUse(
        f"{op}: {t.name} is at line {t.line} while {other.name} of the same warp waits at line "
        f"{other.line} for {pending.op} with mask 0x{pending.mask:08x}, which names lanes of both",
        **t.where,
    )


def exited(t: Any, op: str, lanes: int) -> InvalidUse:
    gone = [lane for lane in range(32) if lanes >> lane & 1]
    return InvalidUse(
        f"{op}: {t.name} waits at line {t.line} for lane {gone[0]}, which has ended"
        + (f" (so have {len(gone) - 1} more)" if len(gone) > 1 else ""),
        **t.where,
    )
