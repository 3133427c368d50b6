"""Races: two threads touch the same byte, one of them writes, and nothing orders them.

Two accesses race if they are by different threads, overlap, at least one of them writes, they are
not both atomic, and neither must happen before the other (`order.py`). Shuffles order no memory:
lanes of a warp need `syncwarp`. Whether both happen to write the same value is not looked at.

The search narrows down in three steps: words that several threads touch and one writes, within one
epoch; of these, few accesses that stand for the others; the exact check of each pair of them. No
pair of sites that races in some word is lost on the way:

- Without vector clocks, accesses of one site to one word in one epoch differ only in thread, warp
  and warp epoch. Where they come from two warps, two of them are enough to find a partner from
  another warp for any access; where all come from one warp, two threads for each warp epoch are.
  Where atomics are among them, the last ones are looked at too: what these have seen (`observed`)
  all have.
- With clocks, an access is compared with the last earlier one of each other thread at each site:
  what is ordered after that one is ordered after all that the thread did before it.
"""

from collections.abc import Iterator

import numpy as np

from .observed import Observed
from .order import Order
from .race_ledger import Ledger
from .requests import beside_some, groups, order_of, pack, split, spread, starts
from .trace import (
    ADDRESS,
    BLOCK,
    EPOCH,
    GLOBAL_BITS,
    SITE,
    THREAD,
    WARP,
    WARP_EPOCH,
    Finding,
    Trace,
)
from .words import Words, cut_words, sites_where

BATCH = 1 << 20  # pairs that are looked at together


def find_races(trace: Trace) -> tuple[list[Finding], Words]:
    """The races of a launch, one finding for each pair of lines, and the words that race."""
    empty = np.zeros(0, np.int64)
    if not len(trace.accesses):
        return [], Words(empty, empty, empty, empty)
    words = cut_words(trace, _contended(trace))
    ledger = Ledger(trace, words)
    search = _Search(trace, words)
    for pairs in search.within_blocks():
        ledger.add(*pairs)
    for pairs in search.across_blocks():
        ledger.add(*pairs)
    return ledger.findings(), words.of(ledger.racing())


def _contended(trace: Trace) -> np.ndarray:
    """Rows in shared memory, and in those allocations of global memory that something writes."""
    shared = sites_where(trace, lambda s: s.space == "shared")
    on_global = sites_where(trace, lambda s: s.space == "global")
    writes = sites_where(trace, lambda s: s.kind != "load")
    allocation = trace.accesses[:, ADDRESS] >> GLOBAL_BITS
    written = np.unique(allocation[on_global & writes])
    return np.flatnonzero(shared | (on_global & np.isin(allocation, written)))


class _Search:
    """Pairs of entries of `words` that race, in batches of (earlier, later, group)."""

    def __init__(self, trace: Trace, words: Words):
        self.words, self.order, self.clocked = words, Order(trace), bool(trace.clocks)
        self.many_blocks = trace.n_blocks > 1
        self.block, self.thread, self.epoch, self.site, self.warp_epoch = (
            trace.accesses[:, column][words.row]
            for column in (BLOCK, THREAD, EPOCH, SITE, WARP_EPOCH)
        )
        kind = np.array([s.kind for s in trace.sites])
        self.write, self.plain = (kind != "load")[self.site], (kind != "atomic")[self.site]
        self.threads_per_block = trace.threads_per_block
        self.atomics = not self.plain.all()
        self.observed = Observed(words, ~self.plain, self.order) if self.atomics else None

    def within_blocks(self) -> Iterator[tuple]:
        w = self.words
        key = pack(w.memory, self.block, self.epoch, *split(w.word))
        entries, group = self.suspects(np.arange(len(w)), key, self.thread)
        if not self.clocked:
            stream = pack(group, self.site[entries], w.mask[entries])
            warp = self.thread[entries] // WARP
            one_warp = ~_several(stream, warp)
            by_warp = self.examples(stream, warp)
            fine = np.flatnonzero(one_warp)
            stream = pack(stream[fine], self.warp_epoch[entries[fine]])
            by_thread = fine[self.examples(stream, self.thread[entries[fine]])]
            chosen = np.union1d(by_warp, by_thread)
            entries, group = entries[chosen], group[chosen]
        yield from self.racing(entries, group)

    def across_blocks(self) -> Iterator[tuple]:
        if not self.many_blocks:
            return
        w = self.words
        remote = w.memory != np.where(w.memory == 0, 0, self.block + 1)
        chosen = np.arange(len(w)) if remote.any() else np.flatnonzero(w.memory == 0)
        key = pack(w.memory[chosen], self.epoch[chosen] >> 32, *split(w.word[chosen]))
        entries, group = self.suspects(chosen, key, self.block)
        if not self.clocked:
            stream = pack(group, self.site[entries], w.mask[entries])
            chosen = self.examples(stream, self.block[entries])
            entries, group = entries[chosen], group[chosen]
        for a, b, of in self.racing(entries, group):
            other = self.block[a] != self.block[b]  # the rest was found within blocks
            yield a[other], b[other], of[other]

    def suspects(
        self, chosen: np.ndarray, key: np.ndarray, party: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Chosen entries in groups of equal key with two parties, a write and a plain access; by
        group. `key` is that of the chosen ones."""
        beside = beside_some(key, self.write[chosen])  # most words are only read at a time
        chosen, key = chosen[beside], key[beside]
        if not len(key):
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        by_key = order_of(key)
        order = chosen[by_key]
        at = np.flatnonzero(starts(key[by_key]))
        party = party[order]
        suspect = np.minimum.reduceat(party, at) != np.maximum.reduceat(party, at)
        suspect &= np.logical_or.reduceat(self.write[order], at)
        suspect &= np.logical_or.reduceat(self.plain[order], at)
        sizes = np.diff(np.append(at, len(order)))
        entries = order[np.repeat(suspect, sizes)]
        return entries, np.repeat(np.arange(suspect.sum()), sizes[suspect])

    def racing(self, entries: np.ndarray, group: np.ndarray) -> Iterator[tuple]:
        """Those pairs of the entries of each group (in order of group, then time) that race."""
        pairs = self.recent_pairs if self.clocked else self.all_pairs
        sizes = np.bincount(group) if len(group) else np.zeros(0, np.int64)
        cost = np.cumsum(sizes * sizes // (1 if self.clocked else 2))
        ends = np.cumsum(sizes)
        g = 0
        while g < len(sizes):
            spent = cost[g - 1] if g else 0
            h = max(g + 1, int(np.searchsorted(cost, spent + BATCH)))
            part = slice(ends[g] - sizes[g], ends[h - 1])
            a, b, of = pairs(entries[part], group[part])
            keep = self.conflict(a, b)
            a, b, of = a[keep], b[keep], of[keep]
            keep = ~self.order.before(self.words.row[a], self.words.row[b])
            a, b, of = a[keep], b[keep], of[keep]
            if self.observed is not None:
                counted = np.flatnonzero(~self.plain[a])  # b is an ordinary access, then
                keep = np.ones(len(a), bool)
                keep[counted] = ~self.observed.before(a[counted], b[counted])
                a, b, of = a[keep], b[keep], of[keep]
            yield a, b, of
            g = h

    def examples(self, stream: np.ndarray, party: np.ndarray) -> np.ndarray:
        """Rows that stand for their streams: the first by each of two parties, with atomics the
        last too."""
        found = _two_parties(stream, party)
        if self.atomics:
            last = len(stream) - 1 - _two_parties(stream[::-1], party[::-1])
            found = np.concatenate((found, last))
        return np.unique(found)

    def conflict(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Different threads, common bytes, one of them a write, not both atomic."""
        conflict = (self.write[a] | self.write[b]) & (self.plain[a] | self.plain[b])
        conflict &= (self.thread[a] != self.thread[b]) | (self.block[a] != self.block[b])
        return conflict & (self.words.mask[a] & self.words.mask[b] != 0)

    @staticmethod
    def all_pairs(entries: np.ndarray, group: np.ndarray) -> tuple:
        last = np.searchsorted(group, group, side="right")
        i, within = spread(last - np.arange(len(group)) - 1)
        return entries[i], entries[i + 1 + within], group[i]

    def recent_pairs(self, entries: np.ndarray, group: np.ndarray) -> tuple:
        """Each entry with the last earlier one of every stream (site, thread, bytes) beside it."""
        w = self.words
        who = self.block[entries] * self.threads_per_block + self.thread[entries]
        stream = pack(group, self.site[entries], who, w.mask[entries])
        first, stream, _ = groups(stream)
        n = len(entries)
        in_order = order_of(stream)
        moments = stream[in_order] * n + in_order  # sorted: by stream, then time
        stream_group = group[first]  # sorted, because streams are packed by group first
        low = np.searchsorted(stream_group, group, side="left")
        count = np.searchsorted(stream_group, group, side="right") - low
        i, within = spread(count)
        other = low[i] + within
        keep = self.conflict(entries[first[other]], entries[i])  # all of a stream answer alike
        i, other = i[keep], other[keep]
        at = np.searchsorted(moments, other * n + i) - 1
        keep = (at >= 0) & (moments[at] // n == other)
        i, at = i[keep], at[keep]
        return entries[in_order[at]], entries[i], group[i]


def _several(stream: np.ndarray, party: np.ndarray) -> np.ndarray:
    """For each row, whether its stream has rows of more than one party."""
    if not len(stream):
        return np.zeros(0, bool)
    order = order_of(stream)
    at = np.flatnonzero(starts(stream[order]))
    several = np.minimum.reduceat(party[order], at) != np.maximum.reduceat(party[order], at)
    answer = np.empty(len(stream), bool)
    answer[order] = np.repeat(several, np.diff(np.append(at, len(order))))
    return answer


def _two_parties(stream: np.ndarray, party: np.ndarray) -> np.ndarray:
    """The first row of each stream, and the first by another party than that one's."""
    n = len(stream)
    if not n:
        return np.zeros(0, np.int64)
    order = order_of(stream)
    at = np.flatnonzero(starts(stream[order]))
    head = np.repeat(at, np.diff(np.append(at, n)))
    party = party[order]
    second = np.minimum.reduceat(np.where(party != party[head], np.arange(n), n), at)
    return order[np.concatenate((at, second[second < n]))]
