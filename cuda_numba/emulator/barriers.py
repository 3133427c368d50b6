"""Twins that threads of a block or of the grid wait at: barriers, fences, cooperative groups."""

from collections.abc import Callable
from typing import Any

from . import handover
from .schedule import FULL
from .twin import TWINS, Twin, twin


def bind_syncthreads(m: Any, place: tuple) -> Callable:
    """Block.barrier and Scheduler.switch_out in one, for the call that every tile makes."""
    scheduler, log = m.scheduler, m.log
    ready, hub = scheduler.ready, scheduler.hub

    def syncthreads() -> None:
        t = m.t
        block = t.block
        waiting = block.waiting
        if not waiting:
            block.place = place
        elif block.place is not place:
            block.mixed = True
        waiting.append(t)
        if len(waiting) == block.alive:
            block.open_barrier(t)
            return
        t.why = "syncthreads"
        if ready and ready[0].g is not None:
            m.t = other = ready.popleft()
            other.g.switch()
        else:
            hub.switch()
        t.why = None
        if m.tracing:
            log.state(t)

    return syncthreads


TWINS["syncthreads"] = Twin("syncthreads", None, switches=True, barrier=True, bind=bind_syncthreads)


@twin("syncthreads_count", switches=True, barrier=True)
def syncthreads_count(m, predicate):
    return m.t.block.barrier(m.t, bool(predicate), sum)


@twin("syncthreads_and", switches=True, barrier=True)
def syncthreads_and(m, predicate):
    return m.t.block.barrier(m.t, bool(predicate), lambda values: int(all(values)))


@twin("syncthreads_or", switches=True, barrier=True)
def syncthreads_or(m, predicate):
    return m.t.block.barrier(m.t, bool(predicate), lambda values: int(any(values)))


@twin("syncwarp", switches=True)
def syncwarp(m, mask=FULL):
    t = m.t
    warp, threads = t.warp, t.warp.threads
    mask &= FULL & warp.exists

    def order(lanes):
        if mask == warp.exists:
            warp.epoch += 1
            if t.block.informed:
                handover.meet(threads)
        else:  # some lanes only: their vector clocks meet
            token: dict[int, int] = {}
            for lane in lanes:
                threads[lane].order.release(token)
            for lane in lanes:
                threads[lane].order.acquire(token)

    t.collect("syncwarp", mask, None, order)


@twin("threadfence")
@twin("threadfence_block")
@twin("threadfence_system")
def threadfence(m):
    """Orders this thread's own accesses; between threads only together with an atomic or a flag."""
    handover.fence(m.t)


@twin("nanosleep", switches=True)
def nanosleep(m, nanoseconds):
    m.t.spin()


# ---- cooperative groups -----------------------------------------------------------------------


class GridGroup:
    """All threads of a cooperative launch."""

    def __init__(self, machine: Any):
        self.machine = machine

    def sync(self) -> int:
        m = self.machine
        t = m.t

        def order(met):
            m.grid_epoch += 1
            for other, _ in met:
                other.epoch = (m.grid_epoch << 32) | (other.epoch & 0xFFFFFFFF)

        living = m.n_blocks * m.threads_per_block - m.ended
        t.meet("grid", living, compute=order, why="grid.sync", scope=m)
        return 0


@twin("cg.this_grid")
def this_grid(m):
    return GridGroup(m)
