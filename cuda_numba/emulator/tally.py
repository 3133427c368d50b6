"""What was counted, for one source line or for a whole launch."""

from collections import Counter
from dataclasses import dataclass, field

from .divergence import Parting, part_branches, part_loops
from .trace import Counts, Finding, Trace
from .traffic import Counted, Traffic, traffic_of_sites


@dataclass
class Tally(Counted):
    """Memory traffic, arithmetic and divergence.

    `flops_by_type`: operations of threads by type ("float32", "float64", "int", …); `barriers`:
    waits of threads; `promotions`: float64 operations that the source does not ask for;
    `long_integer`: 64-bit integer operations; `parting`: branches and loops of warps.
    """

    parts: dict[tuple[str, str], Traffic] = field(default_factory=dict)
    flops_by_type: Counter = field(default_factory=Counter)
    tensor_flops: int = 0
    barrier_waits: int = 0
    promotions: int = 0
    long_integer: int = 0
    parting: Parting = field(default_factory=Parting)

    def add_traffic(self, space: str, kind: str, traffic: Traffic) -> None:
        self.parts[space, kind] = self.parts.get((space, kind), Traffic()) + traffic

    def add_counts(self, counts: Counts, hits: int) -> None:
        for name, n in counts.flops.items():
            self.flops_by_type[name] += n * hits
        self.tensor_flops += counts.tensor_flops * hits
        self.barrier_waits += counts.barriers * hits
        self.promotions += counts.promotions * hits
        self.long_integer += counts.long_integer * hits

    def add(self, other: "Tally") -> None:
        for (space, kind), traffic in other.parts.items():
            self.add_traffic(space, kind, traffic)
        self.flops_by_type.update(other.flops_by_type)
        self.tensor_flops += other.tensor_flops
        self.barrier_waits += other.barrier_waits
        self.promotions += other.promotions
        self.long_integer += other.long_integer
        self.parting += other.parting

    @property
    def flops(self) -> int:
        """Floating-point operations, not those of tensor cores; a fused multiply-add is two."""
        return sum(n for name, n in self.flops_by_type.items() if "float" in name)

    @property
    def divergence(self) -> float:
        """Share of the executions of branches and loops by warps in which lanes parted."""
        return self.parting.share

    @property
    def intensity(self) -> float:
        """Floating-point operations, tensor cores included, per byte of the moved sectors."""
        work = self.flops + self.tensor_flops
        return work / self.moved if self.moved else float("inf") if work else 0.0


@dataclass
class Line(Tally):
    """One source line. `where`: "12", or "gelu:7" for line 7 of a function of another file."""

    where: str = ""
    line: int = 0
    function: str = ""
    text: str = ""
    own: bool = True
    findings: list[Finding] = field(default_factory=list)

    @property
    def quiet(self) -> bool:
        """Whether there is nothing to say: only branches and loops at which no lanes parted."""
        counts = self.tensor_flops, self.barrier_waits, self.promotions, self.long_integer
        return not (
            self.parts or self.flops or self.parting.divergent or self.findings or any(counts)
        )

    @property
    def key(self) -> int | str:
        return self.line if self.own else self.where


def tally_lines(trace: Trace) -> dict[int | str, Line]:
    """The lines that do something, in order: those of the kernel's file, then others."""
    lines: dict[int | str, Line] = {}

    def at(line: int, function: str, filename: str) -> Line:
        own = trace.own(filename)
        key = line if own else f"{function}:{line}"
        if key not in lines:
            text = trace.text(line, filename)
            lines[key] = Line(where=str(key), line=line, function=function, text=text, own=own)
        return lines[key]

    for site, traffic in zip(trace.sites, traffic_of_sites(trace), strict=True):
        if traffic.accesses:
            line = at(site.line, site.function, site.filename)
            line.text = line.text or site.text
            line.add_traffic(site.space, site.kind, traffic)
    branches = zip(trace.branch_sites, part_branches(trace), strict=True)
    loops = zip(trace.loop_sites, part_loops(trace), strict=True)
    for site, parting in (*branches, *loops):
        if parting.executions:
            line = at(site.line, site.function, site.filename)
            line.text = line.text or site.text
            line.parting += parting
    for chunk, hits in zip(trace.chunks, trace.chunk_hits, strict=True):
        for number, counts in chunk.lines.items():
            if hits and counts != Counts():
                at(number, chunk.function, chunk.filename).add_counts(counts, hits)
    return dict(sorted(lines.items(), key=lambda item: _place(item[1])))


def _place(line: Line) -> tuple:
    return (0, "", line.line) if line.own else (1, line.function, line.line)
