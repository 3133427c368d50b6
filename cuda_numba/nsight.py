"""`python -m cuda_numba.nsight [--json FILE]`: the emulator's counts beside Nsight Compute's.

`ncu` profiles `nsight_cases` on a GPU; the emulator runs the same launches. What is compared, and
how the two must be to each other, is in `nsight_metrics`.

A row: {"kernel", "entry", "metric", "emulator", "nsight", "relation", "equal", "met"}, where nsight
is null if ncu gave no such number. Exit code 1 where a relation does not hold, 2 where none could
be looked at.
"""

import argparse
import csv
import re
import sys
from operator import mul
from typing import Any

from . import instrument, record
from .instrument import Done, Job
from .nsight_metrics import METRICS, OPERATIONS, TERMS, Metric

PROGRAM = "ncu"
COMPILING = 6  # processes that compile the kernels first
LIMIT = 240.0  # seconds for a process; about 30 are expected
TRIES = 6  # each without the metrics that the one before did not know
ROW_KEYS = ("kernel", "entry", "metric", "emulator", "nsight", "relation", "equal", "met")


# ---- what ncu prints


def parse(output: str) -> list[dict[str, Any]]:
    """The profiled launches in order: {"kernel": name, metric: number or None, …}.

    Reads both forms that --csv has: --page raw, with a column for each metric and a line of units
    under the header, and the long one, with a line for each metric.
    """
    lines = output.splitlines()
    begin = next((i for i, line in enumerate(lines) if line.startswith('"ID",')), None)
    if begin is None:
        return []
    reader = csv.DictReader(line for line in lines[begin:] if line.startswith('"'))
    launches: dict[str, dict[str, Any]] = {}
    for line in reader:
        if not (line["ID"] or "").strip().isdigit():
            continue  # the line of units
        launch = launches.setdefault(line["ID"], {"kernel": _entry(line["Kernel Name"])})
        if "Metric Name" in line:
            launch[line["Metric Name"]] = _number(line["Metric Value"])
        else:
            launch |= {name: _number(line[name]) for name in TERMS if name in line}
    return [launches[number] for number in sorted(launches, key=int)]


def _entry(name: str) -> str:
    """A kernel's name without its arguments."""
    return name.removeprefix("void ").split("(")[0].strip()


def _number(text: str | None) -> int | None:
    """A count as ncu prints it: "1,024" or "1024.00"; None for "n/a" and for what is no number."""
    try:
        return round(float((text or "").replace(",", "")))
    except ValueError:
        return None


def matched(launches: list[dict], entries: list[str]) -> list[dict | None]:
    """The launch of each case, from its entry: the last ones, in order; None where one is missing.

    Without the profiler's start and stop every launch would be there twice: the second counts.
    """
    known = set(entries)
    launches = [launch for launch in launches if launch["kernel"] in known]
    found: list[dict | None] = []
    for entry in reversed(entries):
        if launches and launches[-1]["kernel"] == entry:
            found.append(launches.pop())
        else:
            found.append(None)
    return found[::-1]


# ---- rows


def rows_of(launches: list[dict]) -> list[dict]:
    """The rows of all cases: the emulator runs here."""
    from .nsight_cases import CASES

    rows = []
    profiled = matched(launches, [case.kernel.name for case in CASES])
    for case, launch in zip(CASES, profiled, strict=True):
        report = case.report()
        for metric in METRICS:
            if metric.flops and not case.flops:
                continue
            parts = [(launch or {}).get(term) for term in metric.terms]
            nsight = None
            if None not in parts:
                nsight = sum(map(mul, parts, metric.terms.values()))
            counted = int(metric.emulator(report))
            if counted or nsight:
                rows.append(row(case, metric, counted, nsight))
    return rows


def row(case: Any, metric: Metric, counted: int, nsight: int | None) -> dict:
    return {
        "kernel": case.name,
        "entry": case.kernel.name,
        "metric": metric.name,
        "emulator": counted,
        "nsight": nsight,
        "relation": metric.relation,
        "equal": None if nsight is None else counted == nsight,
        "met": met(counted, nsight, metric.relation),
    }


def met(counted: int, nsight: int | None, relation: str) -> bool | None:
    """Whether Nsight Compute's count is to the emulator's as it must be; None without one."""
    if nsight is None:
        return None
    return nsight == counted if relation == "equal" else nsight >= counted


def reason(r: dict) -> str:
    """Why Nsight Compute counts something else in this row; "" where that is not known."""
    from .nsight_cases import CASES

    if r["metric"] == OPERATIONS:
        return next((case.apart for case in CASES if case.name == r["kernel"]), "")
    return next((metric.more for metric in METRICS if metric.name == r["metric"]), "")


def check_row(r: dict) -> None:
    """Raise ValueError saying what is not as it must be in a row."""
    record.check_keys(r, ROW_KEYS)
    if r["met"] != met(r["emulator"], r["nsight"], r["relation"]):
        raise ValueError(f"met is {r['met']}, the counts say otherwise")


def show(r: dict) -> str:
    """A row as one line for the terminal."""
    verdict = {True: "", False: "NOT MET", None: "not measured"}[r["met"]]
    verdict = verdict or ("" if r["equal"] else "more")
    return (
        f"{r['kernel']:<46} {r['metric']:<36} {r['emulator']:>8} "
        f"{'–' if r['nsight'] is None else r['nsight']:>8}  {verdict}"
    ).rstrip()


# ---- running


def command(program: str, terms: list[str]) -> tuple[str, ...]:
    """ncu over the cases. The clocks stay as they are: counts do not depend on them."""
    return (
        program, "--csv", "--page", "raw", "--print-units", "base", "--clock-control", "none",
        "--profile-from-start", "off", "--metrics", ",".join(terms),
        *instrument.python("nsight_cases"),
    )  # fmt: skip


def refused(output: str, terms: list[str]) -> list[str]:
    """Those of the metrics that an error or warning of ncu names."""
    said = " ".join(re.findall(r"^==(?:ERROR|WARNING)==.*$", output, re.MULTILINE))
    return [term for term in terms if re.search(rf"{term.removesuffix('.sum')}(?!\w)", said)]


def run() -> list[Done]:
    """Compile the kernels, then profile; again without what ncu does not know. The last counts."""
    program = instrument.find(PROGRAM)
    parts = [f"{i}/{COMPILING}" for i in range(COMPILING)]
    compiling = [
        Job(f"compiling {p}", instrument.python("nsight_cases", "--part", p), LIMIT) for p in parts
    ]
    done = instrument.run_all(compiling, COMPILING)
    terms = TERMS
    for attempt in range(TRIES):
        done.append(instrument.run(Job(f"ncu {attempt}", command(program, terms), LIMIT)))
        unknown = refused(done[-1].output, terms)
        if parse(done[-1].output) or not unknown:
            break
        print(f"ncu does not know {', '.join(unknown)}", flush=True)
        terms = [term for term in terms if term not in unknown]
    return done


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m cuda_numba.nsight", description=__doc__)
    parser.add_argument(
        "--json", help="the results file; without, the one in cuda_numba/results/tools"
    )
    parser.add_argument("--keep", metavar="DIR", help="keep what ncu prints, in one file")
    parser.add_argument("--from", dest="kept", metavar="FILE", help="read such a file, run nothing")
    chosen = parser.parse_args(arguments)
    if chosen.kept:
        results, done = instrument.kept(chosen.kept)
    else:
        if why := instrument.missing(PROGRAM, "nsight"):
            print(why, file=sys.stderr)
            return 2
        results = instrument.envelope("nsight")
        done = run()
        if chosen.keep:
            print(f"kept: {instrument.keep(chosen.keep, results, done)}")
    launches = parse(done[-1].output)
    if not launches:
        end = " / ".join(done[-1].output.strip().splitlines()[-5:])
        print(f"ncu profiled nothing; exit code {done[-1].code}: {end}", file=sys.stderr)
        return 2
    rows = rows_of(launches)
    for r in rows:
        print(show(r))
    print(f"written: {instrument.write(chosen.json, results, rows, check_row)}")
    return 1 if any(r["met"] is False for r in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
