"""What a traced kernel calls: elements read and written, branches, loops and calls, all logged.

These functions run once for every access of every thread, so they are closures with everything at
hand, and the common case comes first: an element inside a shared or global array.
"""

from typing import Any

from .atomics import wrap
from .log import BRANCH, PLACE
from .memory import View

BATCH_TRIPS = 4  # of a loop that is logged as a whole, at least
PREEMPTION = 0.1  # how often a seeded run lets others go first at a memory access


class Tracer:
    """The hooks of one traced launch; `hooks` are the names that the rewritten kernel calls."""

    def __init__(self, machine: Any, program: Any):
        self.m, self.program, self.log = machine, program, machine.log
        self.path_index: dict[tuple, int] = {}
        self.iterations: dict[tuple, list[int]] = {}
        self.preempts = machine.rng is not None

    def origin(self, place: int) -> tuple:
        return self.program.places[place >> PLACE][0]

    # ---- paths --------------------------------------------------------------------------------

    def path(self, parent: int, place: int, iteration: int) -> int:
        """The number of the path that goes on from `parent` through one loop iteration or call."""
        key = (parent, place, iteration)
        found = self.path_index.get(key)
        if found is None:
            found = self.path_index[key] = len(self.m.paths)
            self.m.paths.append(key)
        return found

    def hooks(self) -> dict[str, Any]:
        m, put, iterations = self.m, self.log.stream.append, self.iterations
        slow_load, slow_store, preempts = self.load, self.store, self.preempts

        def get1(place: int, x: View, i: int) -> Any:
            if 0 <= i < x.n0 and not preempts:
                put(place + x.code + i)
                return x.get(i)
            return slow_load(place, x, i)

        def get2(place: int, x: View, i: int, j: int) -> Any:
            if 0 <= i < x.n0 and 0 <= j < x.n1 and not preempts:
                put(place + x.code + i * x.n1 + j)
                return x.get((i, j))
            return slow_load(place, x, (i, j))

        def set1(place: int, x: View, i: int, value: Any) -> None:
            if 0 <= i < x.n0 and not preempts:
                put(place + x.code + i)
                x.a[i] = value
            else:
                slow_store(place, x, i, value)

        def set2(place: int, x: View, i: int, j: int, value: Any) -> None:
            if 0 <= i < x.n0 and 0 <= j < x.n1 and not preempts:
                put(place + x.code + i * x.n1 + j)
                x.a[i, j] = value
            else:
                slow_store(place, x, (i, j), value)

        def branch(index: int, test: Any) -> bool:
            taken = bool(test)
            put(-BRANCH - 2 * index - taken)
            return taken

        def enter(place: int) -> list[int]:
            """The paths of a loop's iterations; number 0 is the path around it."""
            outer = m.t.path
            found = iterations.get((outer, place))
            if found is None:
                found = iterations[(outer, place)] = [outer]
            return found

        def step(paths: list[int], place: int, n: int) -> int:
            n += 1
            if n == len(paths):
                paths.append(self.path(paths[0], place, n))
            m.t.path = path = paths[n]
            put(~path)
            return n

        def leave(paths: list[int], place: int, n: int) -> None:
            t = m.t
            t.path = paths[0]
            put(~paths[0])
            m.loops += (t.block.index, t.id, place, paths[0], n)

        def call(place: int, function: Any, *args: Any) -> Any:
            outer = m.t.path
            m.t.path = inner = self.path(outer, place, 1)
            put(~inner)
            value = function(*args)
            m.t.path = outer
            put(~outer)
            return value

        return {
            "_e_get1": get1, "_e_get2": get2, "_e_set1": set1, "_e_set2": set2,
            "_e_load": slow_load, "_e_store": slow_store, "_e_branch": branch, "_e_enter": enter,
            "_e_step": step, "_e_leave": leave, "_e_call": call, "_e_ends": self.ends,
            "_e_batch": self.batch,
        }  # fmt: skip

    # ---- loops as a whole: see batch ----------------------------------------------------------

    def ends(self, over: range) -> tuple[int, ...]:
        """First, second and last value of a loop's variable; () if it is not worth it."""
        if self.preempts or len(over) < BATCH_TRIPS:
            return ()
        return over[0], over[1], over[-1]

    def batch(self, paths, place, over, loads, arrays, first, second, last) -> int:
        """Log the elements that a loop reads; its number of trips, or 0 if it must be watched.

        loads: place and number of dimensions of each; first, second, last: all their indices, in
        these trips.
        """
        trips = len(over)
        far = trips - 1
        moves, k = [], 0
        for (site, ndim), x in zip(loads, arrays, strict=True):
            if x.__class__ is not View or x.ndim != ndim:
                return 0
            i, n = first[k], x.n0
            step = second[k] - i
            if not (0 <= i < n and 0 <= last[k] == i + far * step < n):
                return 0
            if ndim == 2:
                k += 1
                j, n = first[k], x.n1
                along = second[k] - j
                if not (0 <= j < n and 0 <= last[k] == j + far * along < n):
                    return 0
                i, step = i * n + j, step * n + along
            moves += (site + x.code + i, step)
            k += 1
        if len(paths) <= trips:
            for n in range(len(paths), trips + 1):
                paths.append(self.path(paths[0], place, n))
        self.log.batch(paths, trips, moves)
        return trips

    # ---- elements, the general way ------------------------------------------------------------

    def load(self, place: int, x: Any, index: Any) -> Any:
        """x[index], for any x that can be indexed."""
        if x.__class__ is not View:
            return x[index]  # a tuple
        if parts(x, index):
            return x.part(index)
        where = self.locate(self.origin(place), x, index)
        if where is None:
            return x.dtype.type(0) if x.dtype.kind == "f" else 0
        if x.written is not None:
            if not x.written[where]:
                self.unwritten(self.origin(place), x, index)
        elif x.space != "constant":
            self.write_down(place, x, where)
        value = x.a[where]
        return value.item() if x.dtype.kind in "iub" else value

    def store(self, place: int, x: View, index: Any, value: Any) -> None:
        """x[index] = value."""
        where = self.locate(self.origin(place), x, index)
        if where is None:
            return
        if x.written is not None:
            x.written[where] = True
        else:
            self.write_down(place, x, where)
        x.a[where] = wrap(x.dtype, value) if x.dtype.kind in "iub" else value

    def write_down(self, place: int, x: View, where: tuple[int, ...]) -> None:
        t = self.m.t
        if x.code < 0:
            origin, kind = self.program.places[place >> PLACE]
            self.m.origin = origin
            address = x.base + sum(i * s for i, s in zip(where, x.strides, strict=True))
            self.m.note(t, kind, x.space, address, x.itemsize, x.name)
        else:
            flat = 0
            for i, n in zip(where, x.shape, strict=True):
                flat = flat * n + i
            self.log.stream.append(place + x.code + flat)
        if self.preempts and t.g is not None and self.m.rng.random() < PREEMPTION:
            self.m.scheduler.ready.append(t)
            self.m.scheduler.switch_out(t, "its turn")

    def locate(self, origin: tuple, x: View, index: Any) -> tuple[int, ...] | None:
        """A full index as a tuple inside the array, or None if it is outside (and listed)."""
        index = index if isinstance(index, tuple) else (index,)
        if len(index) != x.ndim:
            raise TypeError(f"{x.name}: an array of {x.ndim} dimensions indexed with {len(index)}")
        out = []
        for i, n in zip(index, x.shape, strict=True):
            i = int(i)
            if i < 0:
                self.negative(origin, x, index)
                i += n
            if not 0 <= i < n:
                self.outside(origin, x, index)
                return None
            out.append(i)
        return tuple(out)

    def atomic_place(self, x: Any, index: Any) -> tuple[int, ...] | None:
        """Where an atomic operation goes, logged as one access; None where it is outside."""
        return self.hinted("atomic", x, index)

    def hinted(self, kind: str, x: View, index: Any) -> tuple[int, ...] | None:
        """The same for a load or store by a function of the namespace."""
        where = self.locate(self.m.origin, x, index)
        if where is not None and x.written is None:
            address = x.base + sum(i * s for i, s in zip(where, x.strides, strict=True))
            self.m.note(self.m.t, kind, x.space, address, x.itemsize, x.name)
        return where

    # ---- findings -----------------------------------------------------------------------------

    def outside(self, origin: tuple, x: View, index: tuple) -> None:
        self.m.finding(
            "out_of_bounds",
            f"`{origin[2]}`: index {shown(index)} is outside {x.name} of shape {x.shape}",
            lines=[origin[0]],
        )

    def negative(self, origin: tuple, x: View, index: tuple) -> None:
        self.m.finding(
            "negative_index",
            f"`{origin[2]}`: index {shown(index)} counts from the end of {x.name}, as in Python",
            lines=[origin[0]],
        )

    def unwritten(self, origin: tuple, x: View, index: Any) -> None:
        self.m.finding(
            "uninitialised",
            f"`{origin[2]}`: element {shown(index)} of the local array has no value yet",
            lines=[origin[0]],
        )


def shown(index: Any) -> str:
    """An index for people: (3,) as 3."""
    if isinstance(index, tuple):
        return str(index[0]) if len(index) == 1 else str(index)
    return str(index)


def parts(x: View, index: Any) -> bool:
    """Whether an index names a part of an array and not one element."""
    if isinstance(index, tuple):
        return len(index) < x.ndim or any(isinstance(i, slice) for i in index)
    return x.ndim > 1 or isinstance(index, slice)
