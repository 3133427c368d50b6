"""`python -m cuda_numba.sanitizer [tool…] [--json FILE]`: compute-sanitizer over every kernel.

    memcheck    accesses outside of an allocation, or misaligned
    racecheck   two threads at one word of shared memory, with nothing that orders them
    initcheck   reads of global memory that nobody has written
    synccheck   barriers that not all of their threads reach

Each tool watches `sanitizer_cases`, in a few processes that share the cases out, with PyTorch's
caching allocator off, so that an allocation ends where its tensor does. PyTorch's own kernels run
there too: a report in one of them is counted apart (`elsewhere`), but for initcheck, where what
they read is what our kernels ought to have written. Each tool then has to find a planted fault
(`sanitizer_faults`), its control. Of further faults, probes, it is recorded whether they are found,
and no more: the manual leaves it open.

All tools' rows are written to cuda_numba/results/tools/sanitizer-<device>.json. With some tools,
FILE says where to write; without it the rows are only shown.

A row: {"tool", "version", "check": "kernels", "control" or "probe", "fault", "complete", "errors",
"warnings", "elsewhere", "found", "kernels", "launches", "seconds", "message", "findings"}. errors
is null where the tool did not come to a summary, complete false where any of the cases did not
run; message says why. found: whether a fault was reported in its kernel.
"""

import argparse
import re
import sys
from dataclasses import asdict

from . import instrument, record
from .instrument import Done, Job
from .sanitizer_output import is_ours, last_words, read

CONTROLS = {
    "memcheck": "out_of_bounds",
    "racecheck": "race",
    "initcheck": "uninitialised",
    "synccheck": "divergent_barrier",
}
PROBES = {"synccheck": ("two_barriers", "early_exit", "wrong_mask")}
PROGRAM = "compute-sanitizer"
PARTS = 3  # processes of each tool: four tools fill 12 of an H100 machine's 16 processors
COMPILING = 12  # processes that compile the kernels first, and so also run them unwatched
LIMIT = 300.0  # seconds for one process; a third of it is expected
FAULT_LIMIT = 45.0  # for one that launches a fault, which may hang; about 15 are expected
OPTIONS = ("--show-backtrace", "no", "--print-limit", "1000")
EXACT = (("PYTORCH_NO_CUDA_MEMORY_CACHING", "1"),)
SHOWN = 20  # findings that a row holds
ROW_KEYS = (
    *("tool", "version", "check", "fault", "complete", "errors", "warnings", "elsewhere", "found"),
    *("kernels", "launches", "seconds", "message", "findings"),
)


# ---- from outputs to rows


def row(tool: str, version: str, done: list[Done], fault: str | None = None) -> dict:
    """The row of one tool over its processes, or over the one that launched a fault."""
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
        f"{d.name}: exit code {d.code}; {last_words(d.output, r)}"
        for d, r, well in zip(done, readings, ended, strict=True)
        if not fault and (not well or r.errors is None)
    ]
    if elsewhere:
        messages.append(f"{len(elsewhere)} reports elsewhere, the first: {elsewhere[0].text}")
    if unread:
        messages.append(f"{unread} errors of the summaries stand in no report that was read")
    if not summarised and not messages:
        messages.append(last_words(done[0].output, readings[0]))
    blamed = {f.kernel for f in findings}
    return {
        "tool": tool,
        "version": version,
        "check": _check(tool, fault),
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


def _check(tool: str, fault: str | None) -> str:
    if fault is None:
        return "kernels"
    return "control" if fault == CONTROLS[tool] else "probe"


def is_good(r: dict) -> bool:
    """Whether a row is as it must be: no error in a complete run, or a control's fault found.

    A probe may be found or not.
    """
    if r["check"] == "kernels":
        return r["complete"] and r["errors"] == 0
    return r["found"] or r["check"] == "probe"


def check_row(r: dict) -> None:
    """Raise ValueError saying what is not as it must be in a row."""
    record.check_keys(r, ROW_KEYS)
    if r["check"] != _check(r["tool"], r["fault"]):
        raise ValueError(f"check is {r['check']!r}, tool and fault say otherwise")
    if (r["found"] is None) != (r["fault"] is None):
        raise ValueError("found must be given where there is a fault, and there only")
    if r["complete"] and r["errors"] is None:
        raise ValueError("errors must be given where the run is complete")


def rows_of(done: list[Done], version: str) -> list[dict]:
    """All rows, from the outputs of processes called "tool i/n" and "tool fault"."""
    rows = []
    for tool in CONTROLS:
        parts = [d for d in done if re.fullmatch(rf"{tool} \d+/\d+", d.name)]
        rows += [row(tool, version, parts)] if parts else []
        for fault in faults_of(tool):
            launched = [d for d in done if d.name == f"{tool} {fault}"]
            rows += [row(tool, version, launched, fault)] if launched else []
    return rows


def faults_of(tool: str) -> tuple[str, ...]:
    """The faults that a tool is shown: its control, then its probes."""
    return (CONTROLS[tool], *PROBES.get(tool, ()))


def show(r: dict) -> str:
    """A row as one line for the terminal."""
    what = f"{r['check']} {r['fault']}" if r["fault"] else f"{len(r['kernels'])} kernels"
    errors = "no summary" if r["errors"] is None else f"{r['errors']} errors"
    verdict = "good" if is_good(r) else "NOT GOOD"
    if r["check"] == "probe":
        verdict = "found" if r["found"] else "not found"
    return (
        f"{r['tool']:<10} {what:<26} {errors}, {r['warnings']} warnings, "
        f"{r['elsewhere']} elsewhere, {r['seconds']:.0f} s  {verdict}  {r['message']}"
    ).rstrip()


# ---- running


def jobs_of(tools: list[str], program: str) -> list[Job]:
    """The processes of the tools: their parts first, which take longer, then their faults."""

    def watched(tool: str, option: str, name: str, limit: float) -> Job:
        command = (program, "--tool", tool, *OPTIONS)
        child = instrument.python("sanitizer_cases", option, name)
        return Job(f"{tool} {name}", (*command, *child), limit, EXACT)

    parts = [f"{i}/{PARTS}" for i in range(PARTS)]
    return [watched(tool, "--part", part, LIMIT) for part in parts for tool in tools] + [
        watched(tool, "--fault", fault, FAULT_LIMIT) for tool in tools for fault in faults_of(tool)
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
            print(
                f"{d.name}: exit code {d.code}; {last_words(d.output, read(d.output))}", flush=True
            )
    jobs = jobs_of(tools, program)
    return done + instrument.run_all(jobs, PARTS * len(tools))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m cuda_numba.sanitizer", description=__doc__)
    parser.add_argument("tool", nargs="*", help=f"of {', '.join(CONTROLS)}; all without")
    parser.add_argument("--json", help="the results file")
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
    if chosen.json or not chosen.tool:
        print(f"written: {instrument.write(chosen.json, results, rows, check_row)}")
    return 0 if rows and all(map(is_good, rows)) else 1


if __name__ == "__main__":
    sys.exit(main())
