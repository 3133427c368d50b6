"""Traces built by hand, for the tests of what is counted and found in them."""

import numpy as np

from cuda_numba.emulator.trace import Branch, Chunk, Counts, Site, Trace

GLOBAL = 1 << 40  # the first allocation
SHARED = 1024


class Log:
    """Collects accesses; `trace()` gives the Trace."""

    def __init__(self, block=(32, 1, 1), grid=(1, 1, 1), source=""):
        self.t = Trace("kernel", "kernel.py", source.splitlines(), 1, block, grid)
        self.rows, self.branches, self.loops = [], [], []

    def site(self, line, kind, space, nbytes=4, array="x", via="", **more):
        self.t.sites.append(
            Site(line, 0, kind, space, array, nbytes, filename="kernel.py", via=via, **more)
        )
        return len(self.t.sites) - 1

    def access(self, thread, site, address, *, block=0, epoch=0, warp_epoch=0, interval=0, path=0):
        self.rows.append((block, thread, epoch, warp_epoch, interval, site, path, address))

    def warp(self, site, addresses, *, first=0, **when):
        """One access by each lane; None: the lane is not active."""
        for lane, address in enumerate(addresses):
            if address is not None:
                self.access(first + lane, site, address, **when)

    def branch(self, line, text="if", **more):
        self.t.branch_sites.append(Branch(line, text, filename="kernel.py", **more))
        return len(self.t.branch_sites) - 1

    def loop(self, line, text="for", **more):
        self.t.loop_sites.append(Branch(line, text, filename="kernel.py", **more))
        return len(self.t.loop_sites) - 1

    def count(self, hits, **lines):
        """count(8, l3=Counts(flops={"float32": 2})): line 3, run 8 times."""
        chunk = Chunk({int(name[1:]): counts for name, counts in lines.items()})
        self.t.chunks.append(chunk)
        self.t.chunk_hits.append(hits)

    def trace(self):
        t = self.t
        t.accesses = np.array(self.rows, np.int64).reshape(-1, 8)
        t.branches = np.array(self.branches, np.int64).reshape(-1, 5)
        t.loops = np.array(self.loops, np.int64).reshape(-1, 5)
        return t


def random_log(rng, *, n, threads=64, blocks=2, spaces=("global", "shared"), sites=5, words=6):
    """A log without any sense, dense enough that everything collides."""
    log = Log((threads, 1, 1), (blocks, 1, 1))
    for i in range(sites):
        kind = ["load", "store", "atomic"][rng.choice(3, p=[0.5, 0.35, 0.15])]
        log.site(int(rng.integers(1, 5)), kind, spaces[i % len(spaces)], int(2 ** rng.integers(5)))
    epochs = {}
    for _ in range(n):
        block, thread = int(rng.integers(blocks)), int(rng.integers(threads))
        site = int(rng.integers(sites))
        s = log.t.sites[site]
        offset = int(rng.integers(4 * words)) // s.nbytes * s.nbytes
        base = GLOBAL if s.space == "global" else SHARED
        epoch, warp_epoch = epochs.get(block, (0, {}))
        if rng.random() < 0.05:
            epoch += 1
        if rng.random() < 0.2:
            warp_epoch[thread // 32] = warp_epoch.get(thread // 32, 0) + 1
        epochs[block] = epoch, warp_epoch
        log.access(
            thread, site, base + offset, block=block, epoch=epoch,
            warp_epoch=warp_epoch.get(thread // 32, 0), path=int(rng.integers(3)),
        )  # fmt: skip
    return log


__all__ = ["GLOBAL", "SHARED", "Branch", "Counts", "Log", "random_log"]
