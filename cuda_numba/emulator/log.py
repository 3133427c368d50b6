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
from .requests import groups, pack
from .trace import Site

PLACE, VIEW = 52, 40  # bits
ELEMENT_MASK = (1 << VIEW) - 1
VIEW_MASK = (1 << (PLACE - VIEW)) - 1
# Negative numbers, from −1 downwards: ~path, then further kinds below each of these marks.
STATE = 1 << 42  # who runs: an index into `states`
BRANCH = 1 << 44  # 2 · branch site + taken
ACCESS = 1 << 46  # an access by an instruction: an index into `plain`
BATCH = 1 << 48  # the elements that a whole loop reads: where its numbers start in `batches`
MAX_PLACES = 1 << (62 - PLACE)


class Log:
    """What one traced launch writes down."""

    def __init__(self) -> None:
        self.stream = array("q")
        # Lists take several numbers at once three times as fast as arrays do.
        self.states: list[int] = []  # block, thread, epoch, warp epoch, interval
        self.plain: list[int] = []  # site, address
        self.views: list[tuple] = []
        self.view_index: dict[tuple, int] = {}
        self.sites: list[Site] = []
        self.site_index: dict[tuple, int] = {}
        self.n_states = 0
        self.batches: list[int] = []  # elements, trips, number of the list of paths; then moves
        self.path_lists: list[list[int]] = []
        self.path_numbers: dict[int, int] = {}  # by identity

    def view(self, x: View) -> int:
        """The number that an array's accesses start from: its view's, shifted; −1 if there are too
        many views for one more."""
        key = (x.space, x.base, x.shape, x.strides, x.itemsize, x.name)
        found = self.view_index.get(key)
        if found is None:
            if len(self.views) > VIEW_MASK:
                return -1
            found = self.view_index[key] = len(self.views)
            self.views.append(key)
        return found << VIEW

    def state(self, t: Any) -> None:
        """Thread `t` runs from here on, with the clocks that it has now."""
        self.states += (t.block.index, t.id, t.epoch, t.warp.epoch, t.interval)
        put = self.stream.append
        put(-STATE - self.n_states)
        put(~t.path)
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

    def batch(self, paths: list[int], trips: int, moves: list[int]) -> None:
        """A loop of `trips` iterations, each on a path of its own (paths[1] to paths[trips]), that
        read the elements moves[0], moves[2], … and move on by moves[1], moves[3], … each time."""
        number = self.path_numbers.get(id(paths))
        if number is None:
            number = self.path_numbers[id(paths)] = len(self.path_lists)
            self.path_lists.append(paths)
        batches = self.batches
        self.stream.append(-BATCH - len(batches))
        batches += (len(moves) // 2, trips, number)
        batches += moves

    # ---- reading it -----------------------------------------------------------------------------

    def expanded(self, stream: np.ndarray) -> np.ndarray:
        """The stream with each batch as the paths and elements that it stands for."""
        at = np.flatnonzero(stream <= -BATCH)
        if not len(at):
            return stream
        table, row = numbers(self.batches), -BATCH - stream[at]
        elements, trips_of, paths_of = (table[row + column] for column in range(3))
        width = np.ones(len(stream), np.int64)
        width[at] = (elements + 1) * trips_of
        ends = np.cumsum(width)
        out = np.empty(ends[-1], np.int64)
        plain = np.ones(len(stream), bool)
        plain[at] = False
        out[ends[plain] - 1] = stream[plain]
        begins = (ends - width)[at]
        first, group, _ = groups(pack(elements, trips_of, paths_of))
        for k, example in enumerate(row[first].tolist()):
            n, trips, paths = table[example : example + 3].tolist()
            here = np.flatnonzero(group == k)
            block = np.empty((len(here), trips, n + 1), np.int64)
            block[:, :, 0] = ~np.array(self.path_lists[paths][1 : trips + 1])
            move = table[row[here, None] + np.arange(3, 3 + 2 * n)]
            trip = np.arange(trips)
            for i in range(n):
                block[:, :, 1 + i] = move[:, 2 * i, None] + move[:, 2 * i + 1, None] * trip
            places = begins[here][:, None] + np.arange(trips * (n + 1))
            out[places] = block.reshape(len(here), -1)
        return out

    def decode(self, places: list[tuple[tuple, str]]) -> tuple[np.ndarray, np.ndarray]:
        """The columns `accesses` and `branches` of a Trace.

        places: for each place its origin and kind ("load" or "store").
        """
        stream = self.expanded(np.array(self.stream, np.int64))
        is_access = (stream >= 0) | (stream <= -ACCESS)
        before = np.cumsum(is_access)  # accesses up to each place in the stream
        code = stream[is_access]
        states = np.flatnonzero((stream <= -STATE) & (stream > -BRANCH))
        paths = np.flatnonzero((stream < 0) & (stream > -STATE))
        table = numbers(self.states).reshape(-1, 5)
        who, path = table[-STATE - stream[states]], ~stream[paths]
        # One column after another in memory: what follows reads columns.
        out = np.empty((len(code), 8), np.int64, order="F")
        counts = np.diff(before[states], append=len(code))
        for column in range(5):
            out[:, column] = np.repeat(who[:, column], counts)
        out[:, 6] = np.repeat(path, np.diff(before[paths], append=len(code)))
        self.locate(code, places, out[:, 5], out[:, 7])
        rows = np.flatnonzero((stream <= -BRANCH) & (stream > -ACCESS))
        code = -BRANCH - stream[rows]
        who = who[np.searchsorted(states, rows) - 1, :2]
        path = path[np.searchsorted(paths, rows) - 1]
        return out, np.stack([*who.T, code >> 1, path, code & 1], axis=1)

    def accesses(self, stream, state, path, table, places) -> np.ndarray:
        """The rows for a stream, where state and path of each of its entries are known."""
        rows = np.flatnonzero((stream >= 0) | (stream <= -ACCESS))
        out = np.empty((len(rows), 8), np.int64)
        out[:, :5] = table[state[rows]]
        out[:, 6] = path[rows]
        self.locate(stream[rows], places, out[:, 5], out[:, 7])
        return out

    def locate(self, code, places, site, address) -> None:
        """Fill in site and address of accesses."""
        of_instruction = code < 0
        if not of_instruction.any():
            site[:], address[:] = self.elements(code, places)
            return
        plain = np.array(self.plain, np.int64).reshape(-1, 2)
        found = plain[-ACCESS - code[of_instruction]]
        site[of_instruction], address[of_instruction] = found[:, 0], found[:, 1]
        element = ~of_instruction
        site[element], address[element] = self.elements(code[element], places)

    def elements(self, code: np.ndarray, places) -> tuple[np.ndarray, np.ndarray]:
        """Sites and addresses of the accesses that are elements of arrays."""
        index = code & ELEMENT_MASK
        first, which, _ = groups(code >> VIEW)
        sites, bases, steps = (np.empty(len(first), np.int64) for _ in range(3))
        scattered = []
        for n, pair in enumerate((code[first] >> VIEW).tolist()):
            space, base, shape, strides, itemsize, name = self.views[pair & VIEW_MASK]
            origin, kind = places[pair >> (PLACE - VIEW)]
            sites[n] = self.site(origin, kind, space, itemsize, name, "")
            bases[n], steps[n] = base, strides[-1]
            if not is_dense(shape, strides):
                scattered.append((n, shape, strides))
        address = bases[which] + index * steps[which]
        for n, shape, strides in scattered:
            rows = np.flatnonzero(which == n)
            parts = np.unravel_index(index[rows], shape)
            address[rows] = bases[n] + sum(p * s for p, s in zip(parts, strides, strict=True))
        return sites[which], address


def numbers(values: list[int]) -> np.ndarray:
    """int64; by way of an array, which takes half the time."""
    return np.array(array("q", values), np.int64)


def is_dense(shape: tuple, strides: tuple) -> bool:
    """Whether elements numbered row by row are equally far apart."""
    return all(strides[d] == strides[d + 1] * shape[d + 1] for d in range(len(shape) - 1))


def carried(values: np.ndarray, where: np.ndarray) -> np.ndarray:
    """At each position the last of `values` for which `where` holds; 0 before the first."""
    last = np.maximum.accumulate(np.where(where, np.arange(len(values)), -1))
    return np.where(last >= 0, values[last], 0)
