"""Shadow memory of reported launches: what bytes that asynchronous copies touch are waiting for.

Two marks for each byte: which copy is still filling it, and which ordinary store has written it
that the async proxy does not see yet. The log says who has read and written what; `catch_up` reads
it on from where it last stopped, whenever a copy begins or ends and whenever a fence, a bulk copy
or a wgmma wants to know. Kernels without those pay nothing. In a plain launch nothing is logged and
nothing is tracked here.
"""

from typing import Any

import numpy as np

from .log import ACCESS, BRANCH, STATE, carried
from .memory import ALLOCATION_BITS, SHARED_LIMIT, SHARED_START
from .trace import OWNER_BITS

SHARED_BYTES = SHARED_START + SHARED_LIMIT + 1024  # of a block's arena
BLOCK, THREAD, SITE, ADDRESS = 0, 1, 5, 7  # columns of the log
FEW = 32  # entries that are looked at one by one
NOTHING = np.zeros((0, 8), np.int64)


class Shadow:
    """The marks of one launch.

    writers: (space, block or allocation) → int32 (bytes, 2), the key + 1 of the thread whose store
    no fence has followed, and its line; written: thread key → where it has marks; filling: block →
    int32 (bytes,), the number of a copy in `copies`.
    """

    def __init__(self, machine: Any):
        self.machine = machine
        self.position = self.state = 0  # in the log's stream, and who ran there
        self.writers: dict[tuple, np.ndarray] = {}
        self.written: dict[int, list[tuple]] = {}
        self.filling: dict[int, np.ndarray] = {}
        self.copies: list[Any] = [None]
        self.flying = 0
        self.reported: set[tuple] = set()
        machine.at_end.append(self.catch_up)

    # ---- the log ------------------------------------------------------------------------------

    def rows(self) -> np.ndarray:
        """What was logged since the last time, as the columns `accesses` of a Trace."""
        log = self.machine.log
        if len(log.stream) == self.position:
            return NOTHING
        new = log.stream[self.position :]
        if len(new) < FEW and all(-ACCESS < entry < 0 for entry in new):
            self.skip()  # nobody has touched memory, somebody else runs
            return NOTHING
        stream = log.expanded(np.array(new, np.int64))
        numbers = -STATE - stream
        is_state = (stream <= -STATE) & (stream > -BRANCH)
        before = np.concatenate(([self.state], numbers))
        state = carried(before, np.concatenate(([True], is_state)))[1:]
        first = int(state.min())
        table = np.array(log.states[5 * first :], np.int64).reshape(-1, 5)
        path = np.zeros_like(state)
        places = self.machine.tracer.program.places
        found = log.accesses(stream, state - first, path, table, places)
        self.skip()
        return found

    def skip(self) -> None:
        """What was logged up to here needs no look."""
        log = self.machine.log
        self.position, self.state = len(log.stream), max(log.n_states - 1, 0)

    def catch_up(self) -> None:
        """Take in what was logged since the last time."""
        rows = self.rows()
        if not len(rows):
            return
        sites = self.machine.log.sites
        wanted = np.array([self.wants(s) for s in sites])
        for row in rows[wanted[rows[:, SITE]]].tolist():
            site = sites[row[SITE]]
            which, offset = locate(site.space, row[BLOCK], row[ADDRESS])
            key = row[BLOCK] * self.machine.threads_per_block + row[THREAD]
            if site.space == "shared" and self.flying:
                self.touch(which, offset, site, row[BLOCK], row[THREAD])
            if site.kind != "load":
                self.mark(site.space, which, offset, site.nbytes, key, site.line)

    def wants(self, site: Any) -> bool:
        if site.kind == "load":
            return self.flying > 0 and site.space == "shared"
        return site.space in ("shared", "global")

    # ---- copies that are under way ------------------------------------------------------------

    def begin(self, copy: Any) -> None:
        self.catch_up()
        copy.number = len(self.copies)
        self.copies.append(copy)
        self.flying += 1
        index = copy.block.index
        if index not in self.filling:
            self.filling[index] = np.zeros(SHARED_BYTES, np.int32)
        part = self.filling[index][copy.low : copy.high]
        for other in np.unique(part[part > 0]).tolist():
            self.report(self.copies[other], copy.thread, copy.line, "writes")
        part[:] = copy.number

    def end(self, copy: Any) -> None:
        self.catch_up()
        self.flying -= 1
        part = self.filling[copy.block.index][copy.low : copy.high]
        part[part == copy.number] = 0
        self.copies[copy.number] = None

    def touch(self, which: int, offset: int, site: Any, block: int, thread: int) -> None:
        """An access to shared memory of block `which` by some thread."""
        filling = self.filling.get(which)
        if filling is None:
            return
        found = int(filling[offset : offset + site.nbytes].max(initial=0))
        if found:
            copy = self.copies[found]
            t = copy.block.threads[thread] if block == which else copy.thread
            self.report(copy, t, site.line, "reads" if site.kind == "load" else "writes")

    def report(self, copy: Any, t: Any, line: int, verb: str) -> None:
        if self.once(copy.line, line, verb):
            self.machine.finding(
                "missing_wait" if verb == "reads" else "race",
                f"line {line} {verb} shared memory that {copy.name} at line {copy.line} may still "
                f"be filling: it must be waited for first",
                threads=[copy.thread, t],
                lines=[copy.line, line],
                block=copy.block.xyz,
            )

    # ---- stores that the async proxy does not see ---------------------------------------------

    def memory(self, space: str, which: int) -> np.ndarray | None:
        found = self.writers.get((space, which))
        if found is None:
            size = SHARED_BYTES
            if space == "global":
                if not 0 <= which < len(self.machine.memory.allocations):
                    return None
                size = self.machine.memory.allocations[which].nbytes
            found = self.writers[space, which] = np.zeros((size, 2), np.int32)
        return found

    def mark(self, space: str, which: int, offset: int, nbytes: int, key: int, line: int) -> None:
        memory = self.memory(space, which)
        if memory is not None:
            memory[offset : offset + nbytes] = key + 1, line
            self.written.setdefault(key, []).append((space, which, offset, offset + nbytes))

    def fence(self, t: Any, space: str) -> None:
        self.catch_up()
        kept = []
        for entry in self.written.pop(t.key, ()):
            where, which, first, last = entry
            if where != space:
                kept.append(entry)
                continue
            part = self.writers[where, which][first:last]
            part[part[:, 0] == t.key + 1] = 0
        if kept:
            self.written[t.key] = kept

    def unfenced(self, space: str, which: int, offset: int, nbytes: int) -> tuple[int, int] | None:
        """The first store that the async proxy does not see: thread key and line."""
        self.catch_up()
        memory = self.memory(space, which)
        if memory is None:
            return None
        found = memory[offset : offset + nbytes]
        bad = np.flatnonzero(found[:, 0])
        return (int(found[bad[0], 0]) - 1, int(found[bad[0], 1])) if len(bad) else None

    def once(self, *what: Any) -> bool:
        """Whether this is the first time that it is asked."""
        new = what not in self.reported
        self.reported.add(what)
        return new


def locate(space: str, block: int, address: int) -> tuple[int, int]:
    """Which memory, and the offset in it, of an address in the log of an access by `block`."""
    if space == "shared":
        owner = address >> OWNER_BITS
        return (owner - 1 if owner else block), address & ((1 << OWNER_BITS) - 1)
    return (address >> ALLOCATION_BITS) - 1, address & ((1 << ALLOCATION_BITS) - 1)


def shadow(machine: Any) -> Shadow:
    found = machine.state.get("shadow")
    if found is None:
        found = machine.state["shadow"] = Shadow(machine)
    return found


# ---- what the asynchronous instructions call; nothing happens in a plain launch ---------------


def begin(copy: Any) -> None:
    """A copy to shared memory is under way."""
    if copy.thread.machine.tracing:
        shadow(copy.thread.machine).begin(copy)


def end(copy: Any) -> None:
    """It has been waited for."""
    if copy.thread.machine.tracing:
        shadow(copy.thread.machine).end(copy)


def note(
    t: Any, kind: str, space: str, address: int, nbytes: int, origin: tuple | None = None,
    path: int | None = None,
) -> None:  # fmt: skip
    """Log an access that goes past the generic proxy, or that happens later than its instruction.

    origin: the place in the source of that instruction, where it is not the one that runs now;
    path: the path through the loops that led to it.
    """
    m = t.machine
    if not m.tracing:
        return
    found = shadow(m)
    found.catch_up()
    now, m.origin = m.origin, origin or m.origin
    here, t.path = t.path, t.path if path is None else path
    moved = here != t.path
    if moved:
        m.log.state(t)
    m.note(t, kind, space, address, nbytes, via="async")
    m.origin, t.path = now, here
    if moved:
        m.log.state(m.t)
    found.skip()


def dirty(t: Any, address: int, nbytes: int, line: int) -> None:
    """A cp.async of `t` has written to its block's shared memory, as an ordinary store does."""
    if t.machine.tracing:
        shadow(t.machine).mark("shared", t.block.index, address, nbytes, t.key, line)


def clean(t: Any, space: str, address: int, nbytes: int) -> None:
    """A bulk copy has written: no store is left to be seen there. The address is the log's."""
    if t.machine.tracing:
        found = shadow(t.machine)
        found.catch_up()
        which, offset = locate(space, t.block.index, address)
        memory = found.memory(space, which)
        if memory is not None:
            memory[offset : offset + nbytes] = 0


def fence(t: Any, space: str) -> None:
    """`t` makes what it has written to `space` visible to the async proxy."""
    if t.machine.tracing:
        shadow(t.machine).fence(t, space)


def check(
    t: Any, name: str, space: str, address: int, nbytes: int, line: int | None = None
) -> None:
    """Report bytes that the async proxy reads for `t` and that an unfenced store has written.

    line: of the reading instruction, by default where the thread is.
    """
    m = t.machine
    if not m.tracing:
        return
    which, offset = locate(space, t.block.index, address)
    found = shadow(m).unfenced(space, which, offset, nbytes)
    line = t.line if line is None else line
    if found is None or not shadow(m).once("fence", found[1], line):
        return
    block, thread = divmod(found[0], m.threads_per_block)
    fence_name = "fence_proxy_async_shared" if space == "shared" else "fence_proxy_async_global"
    m.finding(
        "missing_fence",
        f"{name} at line {line} reads {space} memory that line {found[1]} has written: the writer "
        f"must call {fence_name} after it, before the barrier",
        threads=[t.block.threads[thread], t] if block == t.block.index else [t],
        lines=[found[1], line],
    )
