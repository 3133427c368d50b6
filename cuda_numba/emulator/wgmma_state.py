"""wgmma in the emulator: products that are under way, the registers they own, and the fences.

A product is complete when all 128 threads of a warpgroup have issued it. Its operands in shared
memory are read, and its accumulators delivered, when its group is waited for (the seed may have the
operands read at once); that they still hold what they held at the start is checked then.
"""

from collections import deque
from typing import Any

import numpy as np

from . import shadow

GROUP = 128  # threads of a warpgroup: four warps whose first number is a multiple of four
POISON = np.uint32(0x7FFFFFFF).view(np.float32)


class Accumulators(tuple):
    """The registers of one thread that a product has delivered.

    array, row: the same numbers for all 128 threads, and which are this thread's; fences: how many
    wgmma_fence the thread had executed when they were written by anything but wgmma, −1 where wgmma
    wrote them.
    """

    in_registers = True
    array: Any = None
    row = 0
    fences = -1


class InFlight(Accumulators):
    """Registers that a product still owns: using their values is reported."""

    product: Any = None

    def _touched(self) -> None:
        t = self.product.machine.t
        seen = t.machine.state.setdefault("wgmma, reported", set())
        line = t.line
        if (self.product.line, line) not in seen:
            seen.add((self.product.line, line))
            t.machine.finding(
                "missing_wait",
                f"line {line} uses accumulators that {self.product.name} at line "
                f"{self.product.line} may still be writing: wgmma_wait must come first",
                threads=[t],
                lines=[self.product.line, line],
            )

    def __getitem__(self, index):
        self._touched()
        return tuple.__getitem__(self, index)

    def __iter__(self):
        self._touched()
        return tuple.__iter__(self)


class Product:
    """One wgmma of a warpgroup: D = A B (+ D)."""

    def __init__(self, group: "Warpgroup", shape: Any, t: Any):
        self.group, self.shape, self.machine = group, shape, t.machine
        self.name, self.line, self.origin = shape.name, t.line, t.machine.origin
        self.first, self.rows = t, [None] * GROUP
        self.count = 0
        self.result: np.ndarray | None = None
        self.operands: dict[str, np.ndarray] | None = None

    def add(self, t: Any, arguments: tuple) -> InFlight:
        if self.count:
            self.compare(t, arguments)
        self.rows[t.id % GROUP] = arguments
        self.count += 1
        if self.count == GROUP:
            self.issue()
        out = InFlight(self.shape.poison)
        out.product, out.row = self, t.id % GROUP
        return out

    def compare(self, t: Any, arguments: tuple) -> None:
        """All threads must name the same operands in shared memory."""
        skip = 2 if self.shape.a == "registers" else 1
        other = self.rows[self.first.id % GROUP]
        if arguments[skip:] != other[skip:]:
            t.machine.finding(
                "invalid_use",
                f"{self.name}: the descriptors or the scale of {t.name} differ from those of "
                f"{self.first.name}, in one warpgroup",
                threads=[self.first, t],
                lines=[self.line, t.line],
            )

    def issue(self) -> None:
        """All threads are here: note what the operands hold now."""
        t = self.first
        self.operands = self.read()
        for address, nbytes in self.shape.runs(self.rows[t.id % GROUP]):
            if t.block.shared.span(address, nbytes) is None:
                t.machine.finding(
                    "out_of_bounds",
                    f"{self.name} reads {nbytes} bytes at shared address 0x{address:x}, outside "
                    f"every array",
                    threads=[t],
                    lines=[self.line],
                )
            shadow.check(t, self.name, "shared", address, nbytes, self.line)

    def read(self) -> dict[str, np.ndarray]:
        buffer = self.group.block.shared.bytes()
        return self.shape.fetch(buffer, self.rows[self.first.id % GROUP])

    def finish(self) -> None:
        """The group is waited for: compute, and check that nobody touched the operands."""
        if self.result is not None:
            return
        t, m = self.first, self.machine
        now = self.read()
        for which, before in self.operands.items():
            if not np.array_equal(before, now[which]):
                m.finding(
                    "race",
                    f"operand {which.upper()} of {self.name} at line {self.line} was written in "
                    f"shared memory before wgmma_wait",
                    threads=[t],
                    lines=[self.line],
                )
        if m.rng is None or m.rng.random() < 0.5:
            self.operands = now
        for address, nbytes in self.shape.runs(self.rows[t.id % GROUP]):
            shadow.note(t, "load", "shared", address, nbytes, self.origin)
        self.result = self.shape.multiply(self.operands, self.rows, self.accumulators())
        self.operands = None

    def accumulators(self) -> np.ndarray:
        """C, 128 threads × registers."""
        values = [row[0] for row in self.rows]
        first = values[0]
        if isinstance(first, InFlight) and all(
            isinstance(v, InFlight) and v.product is first.product for v in values
        ):
            first.product.finish()
            return first.product.result
        array = getattr(first, "array", None)
        if array is not None and all(getattr(v, "array", None) is array for v in values):
            return array
        kind = np.int32 if self.shape.accumulator == "s32" else np.float32
        return np.array([tuple.__getitem__(v, slice(None)) for v in values], kind)


class Warpgroup:
    """128 threads: the products they have begun, by number."""

    def __init__(self, block: Any, index: int):
        self.block, self.index = block, index
        self.products: dict[int, Product] = {}
        self.token: dict[int, int] = {}  # what the reads of finished products release


class ThreadState:
    """What one thread has issued: products outside a group, groups that are not waited for."""

    def __init__(self) -> None:
        self.issued = self.waits = 0
        self.open: list[Product] = []
        self.groups: deque[list[Product]] = deque()
        self.fences = 0  # wgmma_fence executed so far
        self.fences_at_wait = 0  # how many of them before the last wait
        self.known: set[tuple] = set()  # register operands that a fence has covered


def state(t: Any) -> ThreadState:
    found = t.state.get("wgmma")
    if found is None:
        found = t.state["wgmma"] = ThreadState()
    return found


def warpgroup(t: Any, name: str) -> Warpgroup:
    index = t.id // GROUP
    if (index + 1) * GROUP > t.machine.threads_per_block:
        t.machine.finding(
            "invalid_use",
            f"{name}: a warpgroup is four whole warps, {t.name} has fewer beside it",
            threads=[t],
        )
        raise ValueError(f"{name}: the block has no whole warpgroup around {t.name}")
    groups = t.block.state.setdefault("warpgroups", {})
    if index not in groups:
        groups[index] = Warpgroup(t.block, index)
    return groups[index]


def issue(t: Any, shape: Any, arguments: tuple) -> InFlight:
    """One thread's part of a product; `arguments` begin with its accumulators."""
    group, s = warpgroup(t, shape.name), state(t)
    if arguments[-1]:  # the accumulators are read
        _check_accumulators(t, s, shape, arguments[0])
    elif not s.fences:
        _unfenced(t, shape, "the first wgmma")
    if shape.a == "registers":
        _check_registers(t, s, shape, arguments[1])
    number, s.issued = s.issued, s.issued + 1
    product = group.products.get(number)
    if product is None:
        product = group.products[number] = Product(group, shape, t)
    elif product.shape is not shape:
        t.machine.finding(
            "invalid_use",
            f"{shape.name} by {t.name}, but {product.name} by {product.first.name} at line "
            f"{product.line}, in one warpgroup",
            threads=[product.first, t],
            lines=[product.line, t.line],
        )
    s.open.append(product)
    return product.add(t, arguments)


def _check_accumulators(t: Any, s: ThreadState, shape: Any, values: tuple) -> None:
    """Registers that other instructions have written need a fence after that."""
    if isinstance(values, InFlight):
        return  # of the product before: these follow each other without a fence
    written = values.fences if isinstance(values, Accumulators) else s.fences_at_wait
    if written >= s.fences:
        _unfenced(t, shape, "registers that other instructions have written, the accumulators")
    elif not s.fences:
        _unfenced(t, shape, "the first wgmma")


def _check_registers(t: Any, s: ThreadState, shape: Any, values: tuple) -> None:
    if s.fences > s.fences_at_wait:
        s.known.add(values)
    elif values not in s.known:
        _unfenced(t, shape, "registers that other instructions have written, operand A")


def _unfenced(t: Any, shape: Any, what: str) -> None:
    seen = t.machine.state.setdefault("wgmma, unfenced", set())
    line = t.line
    if line not in seen:
        seen.add(line)
        t.machine.finding(
            "missing_wgmma_fence",
            f"{shape.name} at line {line} needs wgmma_fence before it: it is or reads {what}",
            threads=[t],
            lines=[line],
        )


def fence(t: Any) -> None:
    state(t).fences += 1


def commit(t: Any) -> None:
    s = state(t)
    s.groups.append(s.open)
    s.open = []


def written(t: Any, values: tuple) -> Accumulators:
    """Accumulators that an ordinary instruction has written now."""
    out = Accumulators(values)
    out.fences = state(t).fences
    return out


def wait(t: Any, pending: int, values: tuple) -> tuple:
    """Until at most the newest `pending` groups are unfinished; returns the accumulators."""
    group, s = warpgroup(t, "wgmma_wait"), state(t)
    done = []
    while len(s.groups) > pending:
        done += s.groups.popleft()
    number, s.waits = s.waits, s.waits + 1
    s.fences_at_wait = s.fences
    if done:
        t.meet(
            ("wgmma wait", group.index, number),
            GROUP,
            value=done,
            compute=lambda met: _deliver(group, met),
            why="the other threads of its warpgroup to come to wgmma_wait",
        )
        t.state["wgmma reads"] = group.token
    if isinstance(values, InFlight) and values.product.result is not None:
        array, row = values.product.result, values.row
        out = Accumulators(array[row].tolist() if array.dtype == np.int32 else array[row])
        out.array, out.row = array, row
        return out
    return values


def _deliver(group: Warpgroup, met: list[tuple]) -> None:
    readers = {}
    for product in met[0][1]:
        product.finish()
        readers[product.first] = None
        number = next(n for n, p in group.products.items() if p is product)
        del group.products[number]
    for t in readers:
        t.order.release(group.token)


def settle(t: Any) -> None:
    """Before `t` tells others that it is done: so are the reads of the products it waited for."""
    token = t.state.pop("wgmma reads", None)
    if token is not None:
        t.order.acquire(token)
