"""What one block hands over to another through a word of memory: a flag, a counter, a lock.

A write that releases, and a read by another thread that acquires, order everything before the one
before everything after the other. Relaxed accesses (ordinary atomics among them) do so together
with fences: fence, then write; read, then fence.

Whoever writes a word leaves a token at its address, a vector clock as `Thread.order` keeps them.
Tokens only grow: that a later relaxed write would end the chain is not followed. What is reported
as a race is one; some are missed.

Source: PTX ISA, "Memory Consistency Model", release and acquire patterns.
"""

from typing import Any


def tokens(t: Any) -> dict[Any, dict[int, int]]:
    """What whoever acquires at an address gets to know."""
    return t.machine.state.setdefault("handed over", {})


def fence(t: Any) -> None:
    """A fence: what the thread has read before is acquired, what it writes after can hand over."""
    if not t.machine.tracing:
        return
    noticed = t.state.pop("noticed", None)
    if noticed:
        t.order.acquire(noticed)
    t.machine.fences = True
    t.state["fenced"] = t.epoch, t.order.release({})


def wrote(t: Any, address: Any, release: bool = False) -> None:
    """Before an atomic or strong write to a word; address: anything that names the word."""
    if not t.machine.tracing:
        return
    if release:
        t.machine.fences = True
        t.order.release(tokens(t).setdefault(address, {}))
        return
    epoch, clock = t.state.get("fenced", (0, None))
    if clock is None:
        return
    token = tokens(t).setdefault(address, {})
    if epoch != t.epoch:  # fence, barrier, write: hands over what the barrier's threads fenced
        t.order.release(token)
    else:
        merge(token, clock)


def read(t: Any, address: Any, acquire: bool = False) -> None:
    """After an atomic or strong read of a word."""
    if not t.machine.tracing:
        return
    found = tokens(t).get(address)
    if not found:
        return
    if acquire:
        t.order.acquire(found)
    else:
        t.block.informed = True
        merge(t.state.setdefault("noticed", {}), found)


def merge(into: dict[int, int], clock: dict[int, int]) -> None:
    for key, interval in clock.items():
        if interval > into.get(key, 0):
            into[key] = interval


def meet(threads: list[Any]) -> None:
    """At a barrier of a block or warp: what one of the threads has acquired or noticed, all have.

    Blocks in which nobody has (`informed`) need not call it.
    """
    first = threads[0].clock
    if any(t.clock is not first for t in threads):
        clock: dict[int, int] = {}
        for t in threads:
            merge(clock, t.clock)
        for t in threads:
            t.order.advance(clock)
    noticed: dict[int, int] = {}
    for t in threads:
        merge(noticed, t.state.get("noticed", {}))
    if noticed:
        for t in threads:
            t.state["noticed"] = dict(noticed)
