"""`python -m cuda_numba.sanitizer [tool…] [--json FILE]`: compute-sanitizer over every kernel.

    memcheck    accesses outside of an allocation, or misaligned
    racecheck   two threads at one word of shared memory, with nothing that orders them
    initcheck   reads of global memory that nobody has written
    synccheck   barriers that not all of their threads reach

Each tool watches `sanitizer_cases`, in a few processes that share the cases out, with PyTorch's
caching allocator off, so that an allocation ends where its tensor does. PyTorch's own kernels run
there too: a report in one of them is counted apart (`elsewhere`), but for initcheck, where what
they read is what our kernels ought to have written. Each tool then has to find a planted fault
(`sanitizer_faults`), its control.

A row: {"tool", "version", "check": "kernels" or "control", "fault", "complete", "errors",
"warnings", "elsewhere", "found", "kernels", "launches", "seconds", "message", "findings"}. errors
is null where the tool did not come to a summary, complete false where any of the cases did not
run; message says why. found: whether a control's fault was reported in its kernel.
"""

import argparse
import json
import re
import sys
from dataclasses import asdict, dataclass

from . import instrument
from .instrument import Done, Job

CONTROLS = {
    "memcheck": "out_of_bounds",
    "racecheck": "race",
    "initcheck": "uninitialised",
    "synccheck": "divergent_barrier",
}
PROGRAM = "compute-sanitizer"
PARTS = 3  # processes of each tool: four tools fill 12 of an H100 machine's 16 processors
COMPILING = 12  # processes that compile the kernels first, and so also run them unwatched
LIMIT = 150.0  # seconds for one process; about 30 are expected
OPTIONS = ("--show-backtrace", "no", "--print-limit", "1000")
EXACT = (("PYTORCH_NO_CUDA_MEMORY_CACHING", "1"),)
SHOWN = 20  # findings that a row holds

LINE = re.compile(r"^=========(?: (.*))?$")
WHERE = (
    re.compile(r"\bat (?:0x[0-9a-f]+ in )?(?P<kernel>.+?)\+0x[0-9a-f]+"),
    re.compile(r"\bat 0x[0-9a-f]+ in (?P<kernel>.+?)(?: in \S+:\d+)?$"),
    re.compile(r"\bin kernel (?P<kernel>\S+)"),
)
SUMMARY = re.compile(r"ERROR SUMMARY: (\d+) error")
RACE_SUMMARY = re.compile(r"RACECHECK SUMMARY: .*?\((\d+) errors?, (\d+) warnings?\)")
# Unindented lines that report nothing about a kernel.
OTHER = re.compile(
    r"COMPUTE-SANITIZER|(ERROR|RACECHECK|LEAK) SUMMARY|Target application|"
    r"(Error|Warning|WARNING|Info): (?!Race|Potential)|\d+ .*(not|were) (printed|displayed|shown)"
)
TROUBLE = re.compile(
    r"internal .*error|Target application|^(Error|Warning|WARNING): (?!Race|Potential)|"
    r"unrecogni[sz]ed|not supported|failed to|unable to|^ended after",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Finding:
    """One report of a tool. kernel: the name in the report, "" where it names none."""

    level: str  # "error" or "warning"
    kernel: str
    text: str  # its first line
    detail: str  # its second


@dataclass(frozen=True)
class Reading:
    """What one process's output says; errors is None where there is no summary."""

    errors: int | None
    warnings: int
    findings: list[Finding]
    trouble: list[str]
    kernels: list[str]
    launches: int | None  # None where the cases did not come to their end


# ---- reading the text


def read(output: str) -> Reading:
    """The reports, the summary and the child's last line in the output of one process."""
    blocks: list[list[str]] = []
    trouble = []
    for line in output.splitlines():
        found = LINE.match(line)
        text = (found[1] or "") if found else line
        if TROUBLE.search(text):
            trouble.append(text.strip())
        if not found or not text.strip():
            continue
        if not text.startswith(" "):
            blocks.append([text])
        elif blocks:
            blocks[-1].append(text.strip())
    findings = [_finding(block) for block in blocks if not OTHER.match(block[0])]
    errors, warnings = None, 0
    if races := RACE_SUMMARY.findall(output):
        errors, warnings = (sum(map(int, column)) for column in zip(*races, strict=True))
    elif totals := SUMMARY.findall(output):
        errors = sum(map(int, totals))
    kernels, launches = [], None
    for found in re.finditer(r"^CASES (\{.*\})", output, re.MULTILINE):
        cases = json.loads(found[1])
        kernels, launches = cases["kernels"], cases["launches"]
    return Reading(errors, warnings, findings, trouble, kernels, launches)


def _finding(block: list[str]) -> Finding:
    level = "warning" if block[0].startswith("Warning") else "error"
    kernel = next((name for line in block if (name := _kernel(line))), "")
    return Finding(level, kernel, block[0].strip(), block[1] if len(block) > 1 else "")


def _kernel(line: str) -> str:
    """The kernel that a line of a report names: without its return type, arguments, template."""
    for pattern in WHERE:
        if found := pattern.search(line):
            return re.split(r"[(<]", found["kernel"].removeprefix("void "))[0].strip()
    return ""


def is_ours(finding: Finding) -> bool:
    """Whether a report counts as one about this package: all but C++ kernels and API calls.

    Kernels of PyTorch and of the libraries under it have C++ names with a namespace; ours are
    plain, and a name that is neither counts as ours.
    """
    return bool(finding.kernel) and "::" not in finding.kernel


# ---- from outputs to rows


def row(tool: str, version: str, done: list[Done], fault: str | None = None) -> dict:
    """The row of one tool over its processes, or with a fault of its control."""
    from .sanitizer_faults import KERNELS

    readings = [read(d.output) for d in done]
    summarised = [r for r in readings if r.errors is not None]
    findings = [f for r in readings for f in r.findings]
    counted = [f for f in findings if is_ours(f) or (tool == "initcheck" and f.kernel)]
    elsewhere = [f for f in findings if f not in counted]
    # What a summary counts beyond the reports that were understood is taken for ours.
    unread = sum(max(0, r.errors - sum(f.level == "error" for f in r.findings)) for r in summarised)
    ended = [r.launches is not None and d.code == 0 for r, d in zip(readings, done, strict=True)]
    messages = [
        f"{d.name}: exit code {d.code}; {_last(d.output, r)}"
        for d, r, well in zip(done, readings, ended, strict=True)
        if not fault and (not well or r.errors is None)
    ]
    if elsewhere:
        messages.append(f"{len(elsewhere)} reports elsewhere, the first: {elsewhere[0].text}")
    if unread:
        messages.append(f"{unread} errors of the summaries stand in no report that was read")
    if not summarised and not messages:
        messages.append(_last(done[0].output, readings[0]))
    blamed = {f.kernel for f in findings}
    return {
        "tool": tool,
        "version": version,
        "check": "control" if fault else "kernels",
        "fault": fault,
        "complete": bool(done) and len(summarised) == len(done) and (bool(fault) or all(ended)),
        "errors": sum(f.level == "error" for f in counted) + unread if summarised else None,
        "warnings": sum(f.level == "warning" for f in counted),
        "elsewhere": len(elsewhere),
        "found": KERNELS[fault].name in blamed if fault else None,
        "kernels": sorted({k for r in readings for k in r.kernels}),
        "launches": sum(r.launches or 0 for r in readings),
        "seconds": round(max(d.seconds for d in done), 1),
        "message": " | ".join(messages),
        "findings": [asdict(f) for f in (counted + elsewhere)[:SHOWN]],
    }


def _last(output: str, reading: Reading) -> str:
    """What says best why a process did not come to its end: its troubles, else its last lines."""
    lines = reading.trouble or [line for line in output.splitlines() if line.strip()]
    return " / ".join(lines[-3:])[:600]


def is_good(r: dict) -> bool:
    """Whether a row is as it must be: no error in a complete run, or a control's fault found."""
    return r["found"] if r["check"] == "control" else r["complete"] and r["errors"] == 0


def rows_of(done: list[Done], version: str) -> list[dict]:
    """All rows, from the outputs of processes called "tool i/n" and "tool control"."""
    rows = []
    for tool, fault in CONTROLS.items():
        parts = [d for d in done if re.fullmatch(rf"{tool} \d+/\d+", d.name)]
        control = [d for d in done if d.name == f"{tool} control"]
        rows += [row(tool, version, parts)] if parts else []
        rows += [row(tool, version, control, fault)] if control else []
    return rows


def show(r: dict) -> str:
    """A row as one line for the terminal."""
    what = f"control {r['fault']}" if r["fault"] else f"{len(r['kernels'])} kernels"
    errors = "no summary" if r["errors"] is None else f"{r['errors']} errors"
    verdict = "good" if is_good(r) else "NOT GOOD"
    return (
        f"{r['tool']:<10} {what:<26} {errors}, {r['warnings']} warnings, "
        f"{r['elsewhere']} elsewhere, {r['seconds']:.0f} s  {verdict}  {r['message']}"
    ).rstrip()


# ---- running


def jobs_of(tools: list[str], program: str) -> list[Job]:
    """The processes of the tools: their parts first, which take longer, then their controls."""

    def watched(tool: str, name: str, *arguments: str) -> Job:
        command = (program, "--tool", tool, *OPTIONS)
        child = instrument.python("sanitizer_cases", *arguments)
        return Job(f"{tool} {name}", (*command, *child), LIMIT, EXACT)

    parts = [f"{i}/{PARTS}" for i in range(PARTS)]
    return [watched(tool, part, "--part", part) for part in parts for tool in tools] + [
        watched(tool, "control", "--fault", CONTROLS[tool]) for tool in tools
    ]


def run(tools: list[str]) -> list[Done]:
    """Compile the kernels, running them unwatched, and then run all tools side by side."""
    program = instrument.find(PROGRAM)
    asked = Job("version", (program, "--version"), LIMIT)
    parts = [f"{i}/{COMPILING}" for i in range(COMPILING)]
    compiling = [
        Job(f"unwatched {p}", instrument.python("sanitizer_cases", "--part", p), LIMIT)
        for p in parts
    ]
    done = instrument.run_all([asked, *compiling], COMPILING)
    for d in done[1:]:
        if d.code:
            print(f"{d.name}: exit code {d.code}; {_last(d.output, read(d.output))}", flush=True)
    jobs = jobs_of(tools, program)
    return done + instrument.run_all(jobs, PARTS * len(tools))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m cuda_numba.sanitizer", description=__doc__)
    parser.add_argument("tool", nargs="*", help=f"of {', '.join(CONTROLS)}; all without")
    parser.add_argument("--json", help="the results file; without, the one in cuda_numba/results")
    parser.add_argument("--keep", metavar="DIR", help="keep what the tools print, in one file")
    parser.add_argument("--from", dest="kept", metavar="FILE", help="read such a file, run nothing")
    chosen = parser.parse_args(arguments)
    if unknown := [tool for tool in chosen.tool if tool not in CONTROLS]:
        parser.error(f"tool: got {unknown[0]!r}, allowed are {', '.join(CONTROLS)}")
    if chosen.kept:
        results, done = instrument.kept(chosen.kept)
    else:
        if why := instrument.missing(PROGRAM, "sanitizer"):
            print(why, file=sys.stderr)
            return 2
        results = instrument.envelope("sanitizer")
        done = run(chosen.tool or list(CONTROLS))
        if chosen.keep:
            print(f"kept: {instrument.keep(chosen.keep, results, done)}")
    version = re.search(r"[Vv]ersion (\d[\w.]*)", done[0].output)
    rows = rows_of(done, version[1] if version else "")
    for r in rows:
        print(show(r))
    print(f"written: {instrument.write(chosen.json, results, rows)}")
    return 0 if rows and all(map(is_good, rows)) else 1


if __name__ == "__main__":
    sys.exit(main())
