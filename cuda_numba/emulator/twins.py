"""What each name of the `cuda` namespace means in the emulator.

A twin is called as twin(machine, *arguments), with the arguments that the kernel gave. `switches`
says that threads may wait in it, so that the kernel needs a greenlet for each; `memory` that it
touches memory and wants to know the place in the source that it is called from.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import handover
from .arrays import bind_shared_array, local_array, shared_array
from .atomics import ATOMICS, wrap
from .memory import View
from .schedule import FULL


@dataclass(frozen=True)
class Twin:
    """One function of the namespace. bind(machine, place in the source), where it is worth a
    function of its own, gives what the kernel calls."""

    path: str
    run: Callable[..., Any]
    switches: bool = False
    memory: bool = False
    barrier: bool = False
    bind: Callable[[Any, tuple], Callable] | None = None


TWINS: dict[str, Twin] = {}


def twin(path: str, **options: Any) -> Callable:
    def define(run: Callable) -> Callable:
        TWINS[path] = Twin(path, run, **options)
        return run

    return define


# ---- where am I -------------------------------------------------------------------------------


@twin("grid")
def grid(m, n):
    """The thread's place in the whole grid: an int for n = 1, else a tuple."""
    t, b = m.t, m.block_dim
    place = (t.x + t.block.x * b[0], t.y + t.block.y * b[1], t.z + t.block.z * b[2])
    return place[0] if n == 1 else place[:n]


@twin("gridsize")
def gridsize(m, n):
    size = tuple(g * b for g, b in zip(m.grid_dim, m.block_dim, strict=True))
    return size[0] if n == 1 else size[:n]


# ---- barriers and fences ----------------------------------------------------------------------


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


@twin("syncthreads", switches=True, barrier=True, bind=bind_syncthreads)
def syncthreads(m):
    m.t.block.barrier(m.t)


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


# ---- warps ------------------------------------------------------------------------------------


def shuffle(name: str, source: Callable[[int, int], int]) -> None:
    def compute(lanes):
        out = {}
        for lane, (value, by) in lanes.items():
            other = source(lane, by)
            out[lane] = lanes[other][0] if other in lanes else value
        return out

    def run(m, mask, value, by):
        return m.t.collect(name, mask & FULL, (value, int(by)), compute)

    TWINS[name] = Twin(name, run, switches=True)


shuffle("shfl_sync", lambda lane, by: by & 31)
shuffle("shfl_up_sync", lambda lane, by: lane - by)
shuffle("shfl_down_sync", lambda lane, by: lane + by)
shuffle("shfl_xor_sync", lambda lane, by: lane ^ by)


def signed(mask: int) -> int:
    """A mask of lanes as Numba types it: an int32, −1 where all 32 are set."""
    return mask - (1 << 32) if mask >> 31 else mask


def vote(name: str, decide: Callable[[dict], Any]) -> None:
    def compute(lanes):
        result = decide(lanes)
        return dict.fromkeys(lanes, result)

    def run(m, mask, predicate):
        return m.t.collect(name, mask & FULL, predicate, compute)

    TWINS[name] = Twin(name, run, switches=True)


vote("all_sync", lambda lanes: all(map(bool, lanes.values())))
vote("any_sync", lambda lanes: any(map(bool, lanes.values())))
vote("eq_sync", lambda lanes: len(set(map(bool, lanes.values()))) == 1)
vote("ballot_sync", lambda lanes: signed(sum(1 << lane for lane, v in lanes.items() if v)))


@twin("match_any_sync", switches=True)
def match_any_sync(m, mask, value):
    def compute(lanes):
        groups: dict[Any, int] = {}
        for lane, v in lanes.items():
            groups[v] = groups.get(v, 0) | 1 << lane
        return {lane: signed(groups[v]) for lane, v in lanes.items()}

    return m.t.collect("match_any_sync", mask & FULL, value, compute)


@twin("match_all_sync", switches=True)
def match_all_sync(m, mask, value):
    def compute(lanes):
        same = len(set(lanes.values())) == 1
        every = sum(1 << lane for lane in lanes)
        return dict.fromkeys(lanes, (signed(every) if same else 0, same))

    return m.t.collect("match_all_sync", mask & FULL, value, compute)


@twin("activemask")
def activemask(m):
    """The lanes that have not ended: a GPU may name fewer, those that happen to be here with us."""
    return m.t.warp.exists & ~m.t.warp.exited


@twin("lanemask_lt")
def lanemask_lt(m):
    return (1 << m.t.lane) - 1


# ---- arrays -----------------------------------------------------------------------------------

TWINS["shared.array"] = Twin("shared.array", shared_array, memory=True, bind=bind_shared_array)
TWINS["local.array"] = Twin("local.array", local_array, memory=True)


@twin("const.array_like", memory=True)
def array_like(m, a):
    return View(a, "constant", 0, "constant", m.log) if m.tracing else a


for name, run in ATOMICS.items():
    TWINS[f"atomic.{name}"] = Twin(f"atomic.{name}", run, memory=True)


# ---- integers and floats ----------------------------------------------------------------------


def _bits(value: Any) -> int:
    return 64 if not -(1 << 31) <= value < 1 << 32 else 32


@twin("popc")
def popc(m, value):
    return (int(value) & ((1 << _bits(value)) - 1)).bit_count()


@twin("clz")
def clz(m, value):
    bits = _bits(value)
    return bits - (int(value) & ((1 << bits) - 1)).bit_length()


@twin("brev")
def brev(m, value):
    bits = _bits(value)
    return int(format(int(value) & ((1 << bits) - 1), f"0{bits}b")[::-1], 2)


@twin("ffs")
def ffs(m, value):
    """1 + the place of the lowest bit that is set; 0 if none is."""
    value = int(value)
    return (value & -value).bit_length()


@twin("selp")
def selp(m, condition, a, b):
    return a if condition else b


@twin("fma")
def fma(m, a, b, c):
    """a · b + c with one rounding: float32 products are exact in float64."""
    if all(isinstance(v, np.float32) for v in (a, b, c)):
        return np.float32(np.float64(a) * np.float64(b) + np.float64(c))
    return np.float64(np.longdouble(a) * np.longdouble(b) + np.longdouble(c))


@twin("cbrt")
def cbrt(m, a):
    return np.cbrt(a)


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


# ---- cache hints: loads and stores like any other ---------------------------------------------


def hinted_load(m, a, i):
    where = m.atomic_place(a, i) if not m.tracing else m.tracer.hinted("load", a, i)
    x = a.a if isinstance(a, View) else a
    value = x[where] if where is not None else x.dtype.type(0)
    return value.item() if x.dtype.kind in "iub" else value


def hinted_store(m, a, i, value):
    where = m.atomic_place(a, i) if not m.tracing else m.tracer.hinted("store", a, i)
    x = a.a if isinstance(a, View) else a
    if where is not None:
        x[where] = wrap(x.dtype, value)


for hint in ("ldca", "ldcg", "ldcs", "ldlu", "ldcv"):
    TWINS[hint] = Twin(hint, hinted_load, memory=True)
for hint in ("stcg", "stcs", "stwb", "stwt"):
    TWINS[hint] = Twin(hint, hinted_store, memory=True)
