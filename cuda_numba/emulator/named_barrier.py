"""Named barriers in the emulator: `bar.sync`, `bar.arrive` and `bar.red`."""

from collections.abc import Callable
from typing import Any

from .wgmma_state import settle

NUMBERS = 16


class NamedBarrier:
    """One of a block's sixteen: who has come in this round, and who of them waits."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        self.arrived: list[Any] = []
        self.waiting: list[Any] = []
        self.values: list[Any] = []
        self.count = self.combine = None
        self.token: dict[int, int] = {}


def _come(t: Any, number: int, count: int, name: str) -> NamedBarrier | None:
    def wrong(message: str) -> None:
        t.machine.finding("invalid_use", f"{name}: {message}", threads=[t])

    if not 0 <= number < NUMBERS:
        return wrong(f"number is {number}; it must be from 0 to {NUMBERS - 1}")
    if count % 32 or not 0 < count <= -(-t.machine.threads_per_block // 32) * 32:
        return wrong(
            f"count is {count}; it must be a multiple of 32, and at most the "
            f"{t.machine.threads_per_block} threads of the block"
        )
    barriers = t.block.state.setdefault("named barriers", {})
    b = barriers.setdefault(number, NamedBarrier())
    if b.count is None:
        b.count = count
    elif b.count != count:
        first = b.arrived[0]
        t.machine.finding(
            "invalid_use",
            f"{name}: count is {count} at line {t.line}, but {b.count} at line {first.line} for "
            f"the same barrier {number}",
            threads=[first, t],
        )
    settle(t)
    t.order.release(b.token)
    b.arrived.append(t)
    return b


def _complete(t: Any, b: NamedBarrier) -> Any:
    """Everybody is here: the round ends."""
    waiting, token, combine, values = b.waiting, b.token, b.combine, b.values
    b.begin()
    result = combine(values) if combine else None
    for other in waiting:
        other.order.acquire(token)
        other.value = result
    if waiting:
        t.machine.scheduler.wake(waiting)
    return result


def arrive(t: Any, number: int, count: int) -> None:
    b = _come(t, number, count, "barrier_arrive")
    if b and len(b.arrived) == b.count:
        _complete(t, b)


def sync(
    t: Any, number: int, count: int, value: Any = None, combine: Callable | None = None
) -> Any:
    if number == 0 and count == t.machine.threads_per_block:
        return t.block.barrier(t, value, combine)
    b = _come(t, number, count, "barrier_sync")
    if b is None:
        return None
    if combine:
        b.combine = combine
        b.values.append(value)
    if len(b.arrived) < b.count:
        b.waiting.append(t)
        return t.machine.scheduler.switch_out(t, f"named barrier {number}, {b.count} threads")
    token = b.token
    result = _complete(t, b)
    t.order.acquire(token)
    return result
