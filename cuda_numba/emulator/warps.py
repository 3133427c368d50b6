"""Twins that the lanes of a warp meet in: shuffles, votes, matches."""

from collections.abc import Callable
from typing import Any

from .schedule import FULL
from .twin import TWINS, Twin, twin


def shuffle(name: str, source: Callable[[int, int], int]) -> None:
    def compute(lanes):
        out = {}
        for lane, (value, by) in lanes.items():
            other = source(lane, by)
            out[lane] = lanes[other][0] if other in lanes else value
        return out

    def run(m, mask, value, by):
        return m.t.collect(name, mask & FULL, (value, int(by) & 31), compute)  # as PTX has it

    TWINS[name] = Twin(name, run, switches=True)


shuffle("shfl_sync", lambda lane, by: by)
shuffle("shfl_up_sync", lambda lane, by: lane - by)
shuffle("shfl_down_sync", lambda lane, by: lane + by)
shuffle("shfl_xor_sync", lambda lane, by: lane ^ by)


def signed(mask: int) -> int:
    """A mask of lanes as Numba types it: an int32, −1 where all 32 are set."""
    return mask - (1 << 32) if mask >> 31 else mask


def vote(name: str, decide: Callable[[dict], Any]) -> None:
    def compute(lanes):
        result = decide(lanes)
        return dict.fromkeys(lanes, result)

    def run(m, mask, predicate):
        return m.t.collect(name, mask & FULL, predicate, compute)

    TWINS[name] = Twin(name, run, switches=True)


vote("all_sync", lambda lanes: all(map(bool, lanes.values())))
vote("any_sync", lambda lanes: any(map(bool, lanes.values())))
vote("eq_sync", lambda lanes: len(set(map(bool, lanes.values()))) == 1)
vote("ballot_sync", lambda lanes: signed(sum(1 << lane for lane, v in lanes.items() if v)))


@twin("match_any_sync", switches=True)
def match_any_sync(m, mask, value):
    def compute(lanes):
        groups: dict[Any, int] = {}
        for lane, v in lanes.items():
            groups[v] = groups.get(v, 0) | 1 << lane
        return {lane: signed(groups[v]) for lane, v in lanes.items()}

    return m.t.collect("match_any_sync", mask & FULL, value, compute)


@twin("match_all_sync", switches=True)
def match_all_sync(m, mask, value):
    def compute(lanes):
        same = len(set(lanes.values())) == 1
        every = sum(1 << lane for lane in lanes)
        return dict.fromkeys(lanes, (signed(every) if same else 0, same))

    return m.t.collect("match_all_sync", mask & FULL, value, compute)


def bind_activemask(m: Any, place: tuple) -> Callable:
    """Which lanes are here together: those that come to this place without waiting elsewhere.

    The first one gives the others a turn; whoever has come by then is of the group. A GPU promises
    no more: lanes that are kept up come later, in a group of their own.
    """

    def activemask() -> int:
        t = m.t
        groups = t.warp.groups
        lanes = groups.setdefault(place, [0])
        lanes[0] |= 1 << t.lane
        m.scheduler.yield_turn(t)
        if groups.get(place) is lanes:
            del groups[place]  # closed: the next lane opens another one
        return lanes[0]

    return activemask


TWINS["activemask"] = Twin("activemask", None, switches=True, bind=bind_activemask)


@twin("lanemask_lt")
def lanemask_lt(m):
    return (1 << m.t.lane) - 1
