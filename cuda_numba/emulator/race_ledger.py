"""Racing pairs of accesses, merged to one finding for each pair of lines."""

from dataclasses import dataclass

import numpy as np

from .requests import pack, starts
from .trace import BLOCK, SITE, THREAD, WARP, Finding, Site, Trace
from .words import Words


def quote(trace: Trace, site: Site) -> str:
    """'line 12 `s[i] = x`', with the function's name where it is not the kernel's file."""
    text = trace.text(site.line, site.filename) or site.text
    own = trace.own(site.filename)
    where = f"line {site.line}" if own else f"line {site.line} of {site.function}"
    if len(text) > 60:
        text = text[:59] + "…"
    return f"{where} `{text}`" if text else where


@dataclass
class _Merged:
    rank: tuple[bool, int]  # same warp, time of the later access: the least is the example
    earlier: int  # rows of trace.accesses
    later: int
    count: int = 0


class Ledger:
    """Collects racing pairs of entries of `words`."""

    def __init__(self, trace: Trace, words: Words):
        self.trace, self.words = trace, words
        places = [(s.filename, s.function, s.line) for s in trace.sites]
        number = {place: i for i, place in enumerate(sorted(set(places)))}
        self.place = np.array([number[p] for p in places], np.int64)
        self.merged: dict[tuple[int, int], _Merged] = {}
        self.entries: list[np.ndarray] = []

    def add(self, a: np.ndarray, b: np.ndarray, group: np.ndarray) -> None:
        """a executed before b; group tells apart the words, and epochs, of this batch."""
        if not len(a):
            return
        self.entries.append(np.unique(a))
        x, y = self.trace.accesses[self.words.row[a]], self.trace.accesses[self.words.row[b]]
        p, q = self.place[x[:, SITE]], self.place[y[:, SITE]]
        low, high = np.minimum(p, q), np.maximum(p, q)
        same_warp = x[:, BLOCK] == y[:, BLOCK]
        same_warp &= x[:, THREAD] // WARP == y[:, THREAD] // WARP
        order = np.lexsort((self.words.row[b], same_warp, high, low))
        lines = low * len(self.trace.sites) + high
        at = np.flatnonzero(starts(lines[order]))
        _, once = np.unique(pack(lines, group), return_index=True)
        _, counts = np.unique(lines[once], return_counts=True)  # in the order of `at`
        for i, n in zip(order[at].tolist(), counts.tolist(), strict=True):
            rank = (bool(same_warp[i]), int(self.words.row[b[i]]))
            found = _Merged(rank, int(self.words.row[a[i]]), int(self.words.row[b[i]]))
            best = self.merged.setdefault((int(low[i]), int(high[i])), found)
            if rank < best.rank:
                best.rank, best.earlier, best.later = rank, found.earlier, found.later
            best.count += n

    def racing(self) -> np.ndarray:
        """Entries of `words` that race, one for each pair at least."""
        return np.unique(np.concatenate(self.entries)) if self.entries else np.zeros(0, np.int64)

    def findings(self) -> list[Finding]:
        return [self._finding(self.merged[lines]) for lines in sorted(self.merged)]

    def _finding(self, merged: _Merged) -> Finding:
        trace = self.trace
        x, y = trace.accesses[merged.earlier], trace.accesses[merged.later]
        if self.place[x[SITE]] > self.place[y[SITE]]:
            x, y = y, x
        a, b = trace.sites[x[SITE]], trace.sites[y[SITE]]
        threads = trace.thread(x[THREAD]), trace.thread(y[THREAD])
        blocks = trace.block(x[BLOCK]), trace.block(y[BLOCK])
        if blocks[0] == blocks[1]:
            first, second = f"thread {threads[0]}", f"thread {threads[1]} of block {blocks[0]}"
        else:
            first, second = (
                f"thread {t} of block {b}" for t, b in zip(threads, blocks, strict=True)
            )
        if self.place[x[SITE]] == self.place[y[SITE]]:
            what = f"{quote(trace, a)} by {first} and by {second}"
        else:
            what = f"{quote(trace, a)} by {first} and {quote(trace, b)} by {second}"
        message = f"{what}: {self._reason(a, b, blocks, merged.rank[0])}"
        if merged.count > 1:
            message += f" ({merged.count:,} times)"
        lines = tuple(dict.fromkeys((a.line, b.line)))
        block = blocks[0]
        return Finding("race", message, lines, threads, block, merged.count)

    @staticmethod
    def _reason(a: Site, b: Site, blocks: tuple, same_warp: bool) -> str:
        if blocks[0] != blocks[1]:
            reason = "blocks of one launch are not ordered"
        elif same_warp:
            reason = "lanes of one warp, and neither syncwarp nor a barrier between them"
        else:
            reason = "no barrier between them"
        if "atomic" in (a.kind, b.kind):
            reason += ", and only one of them is atomic"
        elif a.kind == b.kind == "store":
            reason += "; which value stays is left to chance, unless both are the same"
        return reason
