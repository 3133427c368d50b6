"""The report of a launch: what it did, line by line, and what is wrong with it."""

import re
from dataclasses import replace
from typing import Any

from .races import find_races
from .remarks import remark
from .tally import Line, Tally, tally_lines
from .trace import Finding, Trace
from .traffic import footprint
from .uninitialised import find_uninitialised

MILD = ("negative_index", "untyped")  # findings that change no result


class Report(Tally):
    """Exact counts and findings of one emulated launch, the same on every machine.

    - `kernel`, `grid`, `block`: name and launch shape; `shared_bytes` of a block, `local_bytes` of
      a thread's arrays.
    - Global memory: `requests`, `reads` and `writes` (bytes that threads asked for), `sectors`,
      `moved` (bytes in them), `efficiency` (share that was asked for), `footprint` (bytes of
      distinct sectors: what perfect caches would have moved). Shared memory: `conflicts`, `degree`.
      All of these by space or kind: `by_space["shared"].requests`, `of("global", "store").sectors`.
    - `flops`, `flops_by_type`, `tensor_flops`, `promotions`, `long_integer`; `intensity` in FLOPs
      per moved byte; `barriers` that blocks passed; `divergence`, a share of executions.
    - `findings`: list of `Finding` (kind, message, lines, threads, block, count); `races`: those of
      kind "race". `remarks`: sentences on what costs time.
    - `lines`: line number -> `Line`, with the same fields; lines of functions in other files have
      keys such as "gelu:7".

    `str()` is a table, in a notebook it shows beside the source, `figure()` says where the bytes
    go, `roofline()` where the kernel stands on a GPU, `access_map()` who touched which element.
    """

    def __init__(self, trace: Trace):
        super().__init__()
        self.trace = trace
        self.kernel, self.grid, self.block = trace.kernel, trace.grid_shape, trace.block_shape
        self.shared_bytes, self.local_bytes = trace.shared_bytes, trace.local_bytes
        self.lines: dict[int | str, Line] = tally_lines(trace)
        for line in self.lines.values():
            self.add(line)
        self.footprint = footprint(trace)
        races, racing = find_races(trace)
        found = [*trace.findings, *races, *find_uninitialised(trace, racing)]
        self.findings: list[Finding] = _merge(found)
        self._mark_lines()
        self.remarks: list[str] = remark(self.lines, self)

    @property
    def races(self) -> list[Finding]:
        return [f for f in self.findings if f.kind == "race"]

    @property
    def barriers(self) -> int:
        """Barriers that blocks passed, all blocks together."""
        return -(-self.barrier_waits // self.trace.threads_per_block)

    def _mark_lines(self) -> None:
        others = {line.line: line for line in self.lines.values() if not line.own}
        for finding in self.findings:
            for number in finding.lines:
                line = self.lines.get(number) or others.get(number)
                if line is None:
                    text = self.trace.text(number)
                    line = self.lines[number] = Line(where=str(number), line=number, text=text)
                line.findings.append(finding)
        own = sorted((line for line in self.lines.values() if line.own), key=lambda li: li.line)
        others = [line for line in self.lines.values() if not line.own]
        self.lines = {line.key: line for line in (*own, *others)}

    # ---- presentation -------------------------------------------------------------------------

    def __str__(self) -> str:
        from .table import render

        return render(self)

    def __repr__(self) -> str:
        n = len(self.findings)
        return f"<Report of {self.kernel}: {n} finding{'s' * (n != 1)}, {self.moved:,} bytes moved>"

    def _repr_html_(self) -> str:
        from .html import render

        return render(self)

    def figure(self):
        """Where the bytes go: a matplotlib Figure, for each line what it moved and what it used."""
        from .figure import draw

        return draw(self)

    def roofline(self, gpu: str = "H100"):
        """A matplotlib Figure: the kernel under the roofline of a GPU of `roofline.GPUS`."""
        from .roofline import draw

        return draw(self, gpu)

    def access_map(self, array: str):
        """A matplotlib Figure: which thread first touched each element of the array, and when."""
        from .access_map import draw

        return draw(self.trace, array)

    def to_dict(self) -> dict[str, Any]:
        """Everything as numbers, strings, lists and dicts, for JSON. Keys do not change."""
        from .record import as_dict

        return as_dict(self)


def _merge(findings: list[Finding]) -> list[Finding]:
    """One finding for each kind, place and wording, the first with their count; mild ones last."""
    merged: dict[tuple, Finding] = {}
    for f in findings:
        key = f.kind, f.lines, re.sub(r"\d+", "0", f.message)  # whichever thread and address
        first = merged.get(key)
        merged[key] = replace(first, count=first.count + f.count) if first else f
    told = [
        replace(f, message=f"{f.message} ({f.count:,} times)")
        if f.count > 1 and not f.message.endswith("times)")
        else f
        for f in merged.values()
    ]
    return sorted(told, key=lambda f: f.kind in MILD)
