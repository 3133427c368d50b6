"""What a reported launch leaves behind: every memory access, branch and loop, as plain integers.

The emulator fills a `Trace` while it runs a kernel; `Report` turns it into counts and findings.

A *site* is one place in the source that touches memory. A *path* names the loop iterations and
calls around an execution of it, so that the lanes of one warp with equal (site, path) are exactly
the lanes that one hardware instruction would have served: one *request*.

Order between threads is kept three ways, from cheap to general:

- `epoch`: barriers of the whole block, with the barriers of the whole grid in the high half;
- `warp_epoch`: full-mask `syncwarp`s;
- `interval` with `clocks` and `stamps`: named barriers, mbarriers, partial warp barriers, release
  and acquire (vector clocks, as in FastTrack, Flanagan and Freund, PLDI 2009, section 3).
"""

import linecache
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

WARP = 32  # lanes of a warp, on every architecture so far
SECTOR = 32  # bytes: the unit in which L1 asks L2, and L2 asks memory
GLOBAL_BITS = 40  # a global address is (allocation + 1) << 40 | offset
OWNER_BITS = 32  # in shared memory of another block: (owner block + 1) << 32 | offset

BLOCK, THREAD, EPOCH, WARP_EPOCH, INTERVAL, SITE, PATH, ADDRESS = range(8)  # columns of `accesses`


@dataclass(frozen=True)
class Site:
    """One place that touches memory; `nbytes` are moved per thread and execution.

    `kind` is "load", "store" or "atomic"; `space` "global", "shared" or "local". `via` names the
    instruction where the way matters: "ldmatrix", "stmatrix", "async" (cp.async and bulk copies,
    which log a load where they read and a store where they write), else "".
    """

    line: int
    column: int
    kind: str
    space: str
    array: str
    nbytes: int
    text: str = ""
    function: str = ""
    filename: str = ""
    via: str = ""


@dataclass(frozen=True)
class Branch:
    """One `if`, `while`, conditional expression or loop: a place where lanes can part."""

    line: int
    text: str = ""
    function: str = ""
    filename: str = ""


@dataclass
class Counts:
    """What one execution of a piece of code does on one line, by one thread.

    Of what a warp or warpgroup does together (mma), each thread has its share.
    """

    flops: dict[str, int] = field(default_factory=dict)  # "float32": 2, "float64": 1, "int": 3, …
    tensor_flops: int = 0
    barriers: int = 0
    promotions: int = 0  # float64 operations that the source does not ask for
    long_integer: int = 0  # 64-bit integer operations


@dataclass
class Chunk:
    """Straight-line code: line -> counts. `chunk_hits` says how often a thread ran it."""

    lines: dict[int, Counts]
    function: str = ""
    filename: str = ""


@dataclass(frozen=True)
class Finding:
    """One fault, in one sentence; `count` says at how many places or times it was seen."""

    kind: str
    message: str
    lines: tuple[int, ...] = ()
    threads: tuple[tuple[int, int, int], ...] = ()
    block: tuple[int, int, int] | None = None
    count: int = 1

    def __str__(self) -> str:
        text = f"{self.kind.replace('_', ' ')}: {self.message}"
        if self.lines and "line" not in self.message:  # an instruction does not know its place
            text += f" (line {', '.join(map(str, self.lines))}"
            if self.threads:
                text += f", thread {self.threads[0]} of block {self.block}"
            text += ")"
        return text


class ArrayInfo(NamedTuple):
    """Where an array of the kernel lies; shared and local addresses are those of one block."""

    space: str
    address: int
    shape: tuple[int, ...]
    itemsize: int
    dtype: str


def _empty(columns: int):
    return field(default_factory=lambda: np.zeros((0, columns), np.int64))


@dataclass
class Trace:
    """Everything that happened in one launch.

    - `accesses` int64 (n, 8), in execution order: block, thread (linear in the block), epoch,
      warp_epoch, interval, site, path, address.
    - `branches` int64 (m, 5): block, thread, index into `branch_sites`, path, taken (0 or 1).
    - `loops` int64 (k, 5): block, thread, index into `loop_sites`, path around the loop, trips.
    - `clocks[block, thread]`: list of (interval, {other: interval}), sorted: from that interval on,
      the thread knows everything that `other` did in intervals below the given one. `other` is
      a thread's number in the grid, block · threads_per_block + thread. Full barriers of a block or
      a warp hand on what their threads have acquired, so the clocks after one are joined.
    - `stamps[block, thread]`: list of (epoch, warp_epoch) at the start of each interval, interval 0
      included, so that what a barrier ordered before a release counts as released by it. Threads
      without an entry are taken to have met no barrier before they released.
    - `written`: allocation number -> bool per byte, for global arrays whose contents at the launch
      are undefined (True: was written). Other global memory counts as written.
    - `arrays`: name -> where it lies, for the access map.
    """

    kernel: str
    filename: str = ""
    source: list[str] = field(default_factory=list)  # the kernel's lines, without line ends
    first_line: int = 1
    block_shape: tuple[int, int, int] = (1, 1, 1)
    grid_shape: tuple[int, int, int] = (1, 1, 1)
    sites: list[Site] = field(default_factory=list)
    accesses: np.ndarray = _empty(8)
    clocks: dict = field(default_factory=dict)
    stamps: dict = field(default_factory=dict)
    paths: list[tuple] = field(default_factory=list)  # (parent, loop or call site, iteration)
    branch_sites: list[Branch] = field(default_factory=list)
    branches: np.ndarray = _empty(5)
    loop_sites: list[Branch] = field(default_factory=list)
    loops: np.ndarray = _empty(5)
    chunks: list[Chunk] = field(default_factory=list)
    chunk_hits: list[int] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    shared_bytes: int = 0  # per block
    local_bytes: int = 0  # per thread
    written: dict | None = None
    arrays: dict[str, ArrayInfo] = field(default_factory=dict)

    @property
    def threads_per_block(self) -> int:
        return int(np.prod(self.block_shape))

    @property
    def n_blocks(self) -> int:
        return int(np.prod(self.grid_shape))

    def thread(self, linear: int) -> tuple[int, int, int]:
        """threadIdx of a thread's number within its block."""
        return _unravel(linear, self.block_shape)

    def block(self, linear: int) -> tuple[int, int, int]:
        """blockIdx of a block's number within the grid."""
        return _unravel(linear, self.grid_shape)

    def own(self, filename: str) -> bool:
        """Whether it is the kernel's file ("" stands for that)."""
        return filename in ("", self.filename)

    def text(self, line: int, filename: str = "") -> str:
        """The source on that line of a file, stripped; "" where it is not known."""
        at = line - self.first_line
        if self.own(filename) and 0 <= at < len(self.source):
            return self.source[at].strip()
        return linecache.getline(filename or self.filename, line).strip()


def _unravel(linear: int, shape: tuple[int, int, int]) -> tuple[int, int, int]:
    x, y = shape[0], shape[1]
    return int(linear % x), int(linear // x % y), int(linear // (x * y))
