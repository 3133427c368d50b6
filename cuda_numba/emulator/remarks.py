"""What costs time in a kernel that is right: one plain sentence for each line."""

from .columns import percent
from .divergence import Parting
from .tally import Line, Tally
from .traffic import Traffic

WASTE = 1.2  # sectors over the ideal from which a line is worth a sentence
PARTED = 0.25  # share of divergent executions
IDLE = 0.1  # share of a loop's trips that lanes sit out
FEW = 4  # lanes


def remark(lines: dict[int | str, Line], total: Tally) -> list[str]:
    """Sentences on coalescing, bank conflicts, atomics, divergence and 64-bit arithmetic."""
    found = []
    for line in lines.values():
        name = f"line {line.line}" + ("" if line.own else f" of {line.function}")
        if line.text:
            text = line.text if len(line.text) <= 60 else line.text[:59] + "…"
            name += f" `{text}`"
        found += [f"{name}: {sentence}" for sentence in _sentences(line)]
    if total.long_integer > 0.1 * max(sum(total.flops_by_type.values()), 1):
        found.append(
            f"{total.long_integer:,} integer operations are 64 bits wide: each costs two or more "
            f"of 32 bits; int32 or uint32 indices avoid them"
        )
    return found


def _sentences(line: Line) -> list[str]:
    found = []
    for kind, verb in (("load", "loads"), ("store", "stores"), ("atomic", "atomics")):
        found += _coalescing(line.of("global", kind), verb)
    shared = line.of("shared")
    if shared.conflicts:
        found.append(
            f"{shared.degree}-way bank conflicts: {shared.wavefronts:,} wavefronts where "
            f"{shared.wavefronts - shared.conflicts:,} would do"
        )
    collisions = line.of(None, "atomic").collisions
    if collisions > 1:
        found.append(f"up to {collisions} lanes of a warp wait for each other at one address")
    found += _parting(line.parting)
    if line.promotions:
        found.append(
            f"{line.promotions:,} operations in float64 that nobody asked for: "
            f"write float32(…) around the constant or variable that is float64"
        )
    return found


def _parting(parting: Parting) -> list[str]:
    if parting.share < PARTED:
        return []
    cases = f"lanes of a warp part in {parting.divergent:,} of {parting.executions:,} cases"
    idle = parting.idle / max(parting.idle + parting.trips, 1)
    aside = parting.aside / parting.divergent
    if idle >= IDLE:
        return [f"{cases}: {percent(idle)} of the trips, a lane waits for others to finish theirs"]
    if aside >= FEW:  # one lane that does what the warp needs done once is as it should be
        return [f"{cases}, on average {aside:.3g} lanes against the others: both sides are run"]
    return []


def _coalescing(traffic: Traffic, verb: str) -> list[str]:
    if not traffic.sectors or traffic.sectors < WASTE * traffic.ideal:
        return []
    ideal = traffic.ideal / traffic.requests
    return [
        f"{verb} move {traffic.sectors_per_request:.3g} sectors per request where {ideal:.3g} "
        f"would do: {percent(traffic.efficiency)} of the moved bytes are used"
    ]
