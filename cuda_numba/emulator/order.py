"""Which of two accesses must happen before the other, whatever the GPU's scheduling.

Barriers of blocks and warps and of the grid are numbers to compare. What is left goes through the
vector clocks: a thread that acquired what another released has all that came before the release, in
the releasing thread and, through barriers before it, in that thread's warp and block.
"""

from bisect import bisect_right

import numpy as np

from .requests import groups, pack
from .trace import BLOCK, EPOCH, INTERVAL, THREAD, WARP, WARP_EPOCH, Trace


class Knowledge:
    """What a thread has acquired: intervals of threads, epochs of blocks and of warps."""

    def __init__(self, trace: Trace, clock: dict[int, int]):
        self.intervals, self.epochs, self.warp_epochs = clock, {}, {}
        size = trace.threads_per_block
        for key, interval in clock.items():
            block, thread = divmod(key, size)
            stamps = trace.stamps.get((block, thread))
            if not stamps:
                continue
            epoch, warp_epoch = stamps[min(interval, len(stamps) - 1)]
            warp = block, thread // WARP
            self.epochs[block] = max(epoch, self.epochs.get(block, 0))
            self.warp_epochs[warp] = max(warp_epoch, self.warp_epochs.get(warp, 0))

    def covers(
        self, key: int, block: int, thread: int, interval: int, epoch: int, warp_epoch: int
    ) -> bool:
        return (
            self.intervals.get(key, 0) > interval
            or self.epochs.get(block, -1) > epoch
            or self.warp_epochs.get((block, thread // WARP), -1) > warp_epoch
        )


class Order:
    """The order of the accesses of one trace."""

    def __init__(self, trace: Trace):
        self.trace, self.rows = trace, trace.accesses
        self.known: dict[tuple, Knowledge] = {}
        self.begins = {who: [entry[0] for entry in log] for who, log in trace.clocks.items()}

    def before(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """For pairs of rows of `trace.accesses`, b executed after a: whether that was certain."""
        x, y = self.rows[a], self.rows[b]
        same_block = x[:, BLOCK] == y[:, BLOCK]
        same_warp = same_block & (x[:, THREAD] // WARP == y[:, THREAD] // WARP)
        ordered = x[:, EPOCH] >> 32 != y[:, EPOCH] >> 32
        ordered |= same_block & (x[:, EPOCH] != y[:, EPOCH])
        ordered |= same_warp & (x[:, WARP_EPOCH] != y[:, WARP_EPOCH])
        ordered |= same_block & (x[:, THREAD] == y[:, THREAD])
        left = np.flatnonzero(~ordered)
        if self.trace.clocks and len(left):
            ordered[left] = self._by_clocks(x[left], y[left])
        return ordered

    def _by_clocks(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        # Many pairs of words are the same pair of moments: ask once for each of those.
        moment_x = pack(x[:, BLOCK], x[:, THREAD], x[:, INTERVAL], x[:, EPOCH], x[:, WARP_EPOCH])
        moment_y = pack(y[:, BLOCK], y[:, THREAD], y[:, INTERVAL])
        first, which, _ = groups(pack(moment_x, moment_y))
        answers = np.zeros(len(first), bool)
        size = self.trace.threads_per_block
        for i, at in enumerate(first):
            knowledge = self._knowledge(*y[at, [BLOCK, THREAD, INTERVAL]].tolist())
            if knowledge is not None:
                block, thread, epoch, warp_epoch, interval = x[at, :5].tolist()
                answers[i] = knowledge.covers(
                    block * size + thread, block, thread, interval, epoch, warp_epoch
                )
        return answers[which]

    def _knowledge(self, block: int, thread: int, interval: int) -> Knowledge | None:
        who = block, thread
        entry = bisect_right(self.begins.get(who, ()), interval) - 1
        if entry < 0:
            return None
        if (who, entry) not in self.known:
            self.known[who, entry] = Knowledge(self.trace, self.trace.clocks[who][entry][1])
        return self.known[who, entry]
