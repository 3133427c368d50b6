"""The log of a traced launch: one stream of 64-bit numbers, cheap to write, decoded by NumPy.

Most of a traced kernel's time goes into writing down its accesses, so each is a single number:

    place · 2⁵² + view · 2⁴⁰ + element     an element of array `view`, at `place` in the source

What holds for a while is written when it changes, as a negative number: the thread that runs now
with its clocks, the path through the loops. `decode` spreads these over the accesses that follow.
"""

from array import array
from typing import Any

import numpy as np

from .memory import View
from .trace import Site

PLACE, VIEW = 52, 40  # bits
ELEMENT_MASK = (1 << VIEW) - 1
VIEW_MASK = (1 << (PLACE - VIEW)) - 1
# Negative numbers, from −1 downwards: ~path, then further kinds below each of these marks.
STATE = 1 << 42  # who runs: an index into `states`
BRANCH = 1 << 44  # 2 · branch site + taken
ACCESS = 1 << 46  # an access by an instruction: an index into `plain`
MAX_PLACES = 1 << (62 - PLACE)


class Log:
    """What one traced launch writes down."""

    def __init__(self) -> None:
        self.stream = array("q")
        self.states = array("q")  # block, thread, epoch, warp epoch, interval
        self.plain = array("q")  # site, address
        self.views: list[tuple] = []
        self.view_index: dict[tuple, int] = {}
        self.sites: list[Site] = []
        self.site_index: dict[tuple, int] = {}
        self.n_states = 0

    def view(self, x: View) -> int:
        """The number that an array's accesses start from: its view's, shifted."""
        key = (x.space, x.base, x.shape, x.strides, x.itemsize, x.name)
        found = self.view_index.get(key)
        if found is None:
            found = self.view_index[key] = len(self.views)
            self.views.append(key)
        return found << VIEW

    def state(self, t: Any) -> None:
        """Thread `t` runs from here on, with the clocks that it has now."""
        self.states.extend((t.block.index, t.id, t.epoch, t.warp.epoch, t.interval))
        self.stream.append(-STATE - self.n_states)
        self.stream.append(~t.path)
        self.n_states += 1

    def site(self, origin: tuple, kind: str, space: str, nbytes: int, name: str, via: str) -> int:
        """The number of a site; origin: (line, column, text, function, filename)."""
        key = (origin, kind, space, nbytes, name, via)
        found = self.site_index.get(key)
        if found is None:
            found = self.site_index[key] = len(self.sites)
            line, column, text, function, filename = origin
            self.sites.append(
                Site(line, column, kind, space, name, nbytes, text, function, filename, via)
            )
        return found

    def access(self, site: int, address: int) -> None:
        """An access by an instruction, at an address."""
        self.stream.append(-ACCESS - len(self.plain) // 2)
        self.plain.append(site)
        self.plain.append(address)

    def decode(self, places: list[tuple[tuple, str]]) -> tuple[np.ndarray, np.ndarray]:
        """The columns `accesses` and `branches` of a Trace.

        places: for each place its origin and kind ("load" or "store").
        """
        stream = np.frombuffer(self.stream, np.int64) if self.stream else np.zeros(0, np.int64)
        is_state = (stream <= -STATE) & (stream > -BRANCH)
        is_path = (stream < 0) & (stream > -STATE)
        state = carried(-STATE - stream, is_state)
        path = carried(~stream, is_path)
        table = (
            np.frombuffer(self.states, np.int64).reshape(-1, 5)
            if self.states
            else (np.zeros((1, 5), np.int64))
        )
        accesses = self.accesses(stream, state, path, table, places)
        rows = np.flatnonzero((stream <= -BRANCH) & (stream > -ACCESS))
        code = -BRANCH - stream[rows]
        who = table[state[rows]]
        branches = np.stack([who[:, 0], who[:, 1], code >> 1, path[rows], code & 1], axis=1)
        return accesses, branches

    def accesses(self, stream, state, path, table, places) -> np.ndarray:
        rows = np.flatnonzero((stream >= 0) | (stream <= -ACCESS))
        code = stream[rows]
        site, address = np.empty(len(rows), np.int64), np.empty(len(rows), np.int64)
        of_instruction = code < 0
        if of_instruction.any():
            plain = np.frombuffer(self.plain, np.int64).reshape(-1, 2)
            found = plain[-ACCESS - code[of_instruction]]
            site[of_instruction], address[of_instruction] = found[:, 0], found[:, 1]
        element = ~of_instruction
        self.elements(code[element], element, site, address, places)
        out = np.empty((len(rows), 8), np.int64)
        out[:, :5] = table[state[rows]]
        out[:, 5], out[:, 6], out[:, 7] = site, path[rows], address
        return out

    def elements(self, code, where, site, address, places) -> None:
        """Sites and addresses of the accesses that are elements of arrays."""
        if not len(code):
            return
        pair, index = code >> VIEW, code & ELEMENT_MASK
        known = np.unique(pair)
        sites = np.empty(len(known), np.int64)
        bases, steps = np.empty(len(known), np.int64), []
        for n, p in enumerate(known.tolist()):
            space, base, shape, strides, itemsize, name = self.views[p & VIEW_MASK]
            origin, kind = places[p >> (PLACE - VIEW)]
            sites[n] = self.site(origin, kind, space, itemsize, name, "")
            bases[n] = base
            steps.append((shape, strides))
        which = np.searchsorted(known, pair)
        site[where] = sites[which]
        offset = np.empty(len(code), np.int64)
        for n, (shape, strides) in enumerate(steps):
            rows = which == n if len(known) > 1 else slice(None)
            offset[rows] = offsets(index[rows], shape, strides)
        address[where] = bases[which] + offset


def offsets(index: np.ndarray, shape: tuple, strides: tuple) -> np.ndarray:
    """Byte offsets of elements that are numbered row by row."""
    if len(shape) == 1:
        return index * strides[0]
    step = strides[-1]
    if all(strides[d] == strides[d + 1] * shape[d + 1] for d in range(len(shape) - 1)):
        return index * step  # contiguous
    places = np.unravel_index(index, shape)
    return sum(p * s for p, s in zip(places, strides, strict=True))


def carried(values: np.ndarray, where: np.ndarray) -> np.ndarray:
    """At each position the last of `values` for which `where` holds; 0 before the first."""
    last = np.maximum.accumulate(np.where(where, np.arange(len(values)), -1))
    return np.where(last >= 0, values[last], 0)
