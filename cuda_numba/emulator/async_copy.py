"""cp.async in the emulator: a thread's copies and their groups.

A copy reads its source at once, lands when its group is waited for (or earlier, as the seed has
it), and only then is a write by its thread: other threads need a barrier after the wait.
"""

from collections import deque
from typing import Any

import numpy as np

from . import mbarrier, shadow
from .in_flight import Copy


class Queue:
    """A thread's copies: those not yet in a group, and the groups, oldest first."""

    def __init__(self) -> None:
        self.open: list[Copy] = []
        self.groups: deque[list[Copy]] = deque()


def queue(t: Any) -> Queue:
    return t.state.setdefault("cp.async", Queue())


def start(t: Any, name: str, shared: int, source: int, nbytes: int, count: int) -> None:
    if count > nbytes:
        t.machine.finding(
            "invalid_use", f"{name}: count is {count}; it may be at most {nbytes}", threads=[t]
        )
        count = nbytes
    target = t.span("shared", shared, nbytes, nbytes)
    data = np.zeros(nbytes, np.uint8)
    if count:
        data[:count] = t.span("global", source, count, nbytes)
        shadow.note(t, "load", "global", source, count)
    queue(t).open.append(Copy(t, name, t.block, shared, data, target))


def finish(copies: list[Copy]) -> None:
    """The copies are there, written by their thread."""
    for copy in copies:
        if not copy.done:
            copy.finish()
            shadow.note(
                *(copy.thread, "store", "shared", copy.low, len(copy.data)),
                origin=copy.origin,
                path=copy.path,
            )
            shadow.dirty(copy.thread, copy.low, len(copy.data), copy.line)


def commit(t: Any) -> None:
    q = queue(t)
    q.groups.append(q.open)
    q.open = []


def wait(t: Any, n: int) -> None:
    q = queue(t)
    while len(q.groups) > n:
        finish(q.groups.popleft())


def wait_all(t: Any) -> None:
    q = queue(t)
    wait(t, 0)
    finish(q.open)
    q.open = []


def arrive_later(t: Any, bar: int) -> None:
    """Arrive at an mbarrier when all copies started so far are there."""
    b = mbarrier.find(t, bar, "cp_async_mbarrier_arrive")
    if b is None:
        return
    q = queue(t)
    copies = [copy for group in (*q.groups, q.open) for copy in group]

    def land() -> None:
        finish(copies)
        b.arrive(t, 1)

    b.later(land)
