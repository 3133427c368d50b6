"""Branches at which the lanes of a warp parted, and loops in which some lanes stayed longer.

One execution of a branch is one warp at one (branch, path). It is divergent where some of its lanes
went each way; the warp then runs both sides, one after the other. A loop is divergent where the
lanes' trip counts differ: those that have finished wait for the last.
"""

from dataclasses import dataclass

import numpy as np

from .requests import groups, pack
from .trace import WARP, Trace


@dataclass
class Parting:
    """Executions of a branch or loop by warps, and how many of them were divergent.

    `aside`: lanes on the smaller side of divergent branches; for loops `trips` that lanes made, and
    `idle` ones that they sat out while others of their warp went on.
    """

    executions: int = 0
    divergent: int = 0
    aside: int = 0
    trips: int = 0
    idle: int = 0

    def __add__(self, other: "Parting") -> "Parting":
        return Parting(
            self.executions + other.executions,
            self.divergent + other.divergent,
            self.aside + other.aside,
            self.trips + other.trips,
            self.idle + other.idle,
        )

    @property
    def share(self) -> float:
        """Divergent executions of all executions."""
        return self.divergent / self.executions if self.executions else 0.0


def part_branches(trace: Trace) -> list[Parting]:
    """For each of `trace.branch_sites`."""
    return _part(trace.branches, len(trace.branch_sites), False)


def part_loops(trace: Trace) -> list[Parting]:
    """For each of `trace.loop_sites`."""
    return _part(trace.loops, len(trace.loop_sites), True)


def _part(rows: np.ndarray, n_sites: int, loops: bool) -> list[Parting]:
    if not len(rows):
        return [Parting() for _ in range(n_sites)]
    block, thread, site, path, value = rows.T
    key = pack(block, thread // WARP, site, path)
    first, group, lanes = groups(key)
    high = np.full(len(first), np.iinfo(np.int64).min)
    low = np.full(len(first), np.iinfo(np.int64).max)
    np.maximum.at(high, group, value)
    np.minimum.at(low, group, value)
    sums = np.bincount(group, value)

    def total(per_execution: np.ndarray) -> list[int]:
        return np.bincount(site[first], per_execution, n_sites).astype(int).tolist()

    columns = {"executions": total(np.ones(len(first))), "divergent": total(high != low)}
    if loops:
        columns |= {"trips": total(sums), "idle": total(high * lanes - sums)}
    else:
        columns |= {"aside": total(np.minimum(sums, lanes - sums))}
    return [Parting(**{name: c[i] for name, c in columns.items()}) for i in range(n_sites)]
