"""How much memory traffic: requests, bytes, sectors and wavefronts, for each site and summed."""

from dataclasses import dataclass, fields

import numpy as np

from .banks import count_collisions, count_wavefronts
from .requests import Requests
from .sectors import count_sectors
from .trace import ADDRESS, SECTOR, SITE, THREAD, WARP, Trace

LARGEST = {"degree", "collisions"}  # fields of which a sum keeps the largest


@dataclass
class Traffic:
    """Counts of one kind of access; adding two of them sums them.

    - `requests`: instructions of warps; `accesses`: those of threads; `requested`: their bytes.
    - `unique`: bytes asked for, each counted once in a request; `sectors` moved for them, `ideal`
      if those bytes lay together (global memory only, as in Nsight Compute).
    - `wavefronts`, of which `conflicts` because of bank conflicts; `degree`: wavefronts of the
      worst phase, 1 without a conflict (shared memory only).
    - `collisions`: lanes of one request that meet at one address, at most (atomics only).
    """

    requests: int = 0
    accesses: int = 0
    requested: int = 0
    unique: int = 0
    sectors: int = 0
    ideal: int = 0
    wavefronts: int = 0
    conflicts: int = 0
    degree: int = 0
    collisions: int = 0

    def __add__(self, other: "Traffic") -> "Traffic":
        total = Traffic()
        for f in fields(self):
            a, b = getattr(self, f.name), getattr(other, f.name)
            setattr(total, f.name, max(a, b) if f.name in LARGEST else a + b)
        return total

    @property
    def moved(self) -> int:
        """Bytes moved in whole sectors."""
        return self.sectors * SECTOR

    @property
    def efficiency(self) -> float:
        """Share of the moved bytes that a lane asked for; 1 where nothing was moved."""
        return self.unique / self.moved if self.sectors else 1.0

    @property
    def sectors_per_request(self) -> float:
        return self.sectors / self.requests if self.requests else 0.0


class Counted:
    """Something with traffic: `parts` maps (space, kind) to `Traffic`.

    Sectors, efficiency and requests are those of global memory, conflicts those of shared memory.
    """

    parts: dict[tuple[str, str], Traffic]

    def of(self, space: str | None = None, kind: str | None = None) -> Traffic:
        """The traffic of a space ("global", …), of a kind ("load", "store", "atomic"), or both."""
        chosen = (t for (s, k), t in self.parts.items() if space in (None, s) and kind in (None, k))
        return sum(chosen, Traffic())

    @property
    def by_space(self) -> dict[str, Traffic]:
        return {s: self.of(s) for s in ("global", "shared", "local")}

    @property
    def requests(self) -> int:
        """Requests for global memory."""
        return self.of("global").requests

    @property
    def reads(self) -> int:
        """Bytes that threads asked to load from global memory."""
        return self.of("global", "load").requested

    @property
    def writes(self) -> int:
        """Bytes that threads asked to store to global memory, atomics included."""
        return self.of("global", "store").requested + self.of("global", "atomic").requested

    @property
    def sectors(self) -> int:
        """32-byte sectors of global memory that all requests together moved."""
        return self.of("global").sectors

    @property
    def moved(self) -> int:
        """Bytes in those sectors."""
        return self.of("global").moved

    @property
    def efficiency(self) -> float:
        """Share of the moved bytes that a lane asked for."""
        return self.of("global").efficiency

    @property
    def conflicts(self) -> int:
        """Wavefronts of shared memory beyond the least possible."""
        return self.of("shared").conflicts

    @property
    def degree(self) -> int:
        """Wavefronts of the worst phase: 32 for a 32-way bank conflict, 1 without a conflict."""
        return self.of("shared").degree


def traffic_of_sites(trace: Trace) -> list[Traffic]:
    """The traffic of each site of the trace, in the order of `trace.sites`."""
    sites, accesses = trace.sites, trace.accesses
    if not len(accesses):
        return [Traffic() for _ in sites]
    requests = Requests(accesses)
    site, address = accesses[:, SITE], accesses[:, ADDRESS]
    nbytes = np.array([s.nbytes for s in sites], np.int64)
    space = np.array([s.space for s in sites])
    per_request = {
        "accesses": requests.lanes,
        "requested": requests.lanes * nbytes[requests.site],
    } | {name: np.zeros(len(requests), np.int64) for name in ("sectors", "unique", "ideal")}

    rows = np.flatnonzero((space == "global")[site])
    if len(rows):
        sectors, unique = count_sectors(
            requests.number[rows], address[rows], nbytes[site[rows]], len(requests)
        )
        per_request |= {"sectors": sectors, "unique": unique, "ideal": -(-unique // SECTOR)}

    rows = np.flatnonzero((space == "shared")[site])
    ordinary = np.array([s.kind == "load" and not s.via for s in sites])
    wavefronts, least, degree = count_wavefronts(
        requests.number[rows],
        accesses[rows, THREAD] & (WARP - 1),
        address[rows] & 0xFFFFFFFF,
        nbytes[site[rows]],
        ordinary[site[rows]],
        len(requests),
    )
    per_request |= {"wavefronts": wavefronts, "conflicts": wavefronts - least, "degree": degree}

    rows = np.flatnonzero(np.array([s.kind == "atomic" for s in sites])[site])
    per_request["collisions"] = count_collisions(
        requests.number[rows], address[rows], len(requests)
    )
    return _by_site(requests, per_request, len(sites))


def _by_site(requests: Requests, per_request: dict, n_sites: int) -> list[Traffic]:
    columns = {"requests": np.bincount(requests.site, minlength=n_sites)}
    for name, values in per_request.items():
        total = np.zeros(n_sites, np.int64)
        (np.maximum if name in LARGEST else np.add).at(total, requests.site, values)
        columns[name] = total
    return [Traffic(**{name: int(c[i]) for name, c in columns.items()}) for i in range(n_sites)]


def footprint(trace: Trace) -> int:
    """Bytes in the sectors of global memory that the launch touched, each counted once."""
    sites = trace.sites
    if not len(trace.accesses):
        return 0
    on_global = np.array([s.space == "global" for s in sites])[trace.accesses[:, SITE]]
    address = trace.accesses[on_global, ADDRESS]
    nbytes = np.array([s.nbytes for s in sites], np.int64)[trace.accesses[on_global, SITE]]
    if not len(address):
        return 0
    return int(count_sectors(np.zeros(len(address), np.int64), address, nbytes, 1)[0][0]) * SECTOR
