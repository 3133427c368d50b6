"""What NVIDIA's tools say of the kernels and of the emulator's counts, as Markdown tables.

The files are those of `cuda_numba.sanitizer` and `cuda_numba.nsight`, which have rows of their own
kinds, in `cuda_numba/results/tools/`.
"""

from collections.abc import Callable
from pathlib import Path

from cuda_numba import nsight, nsight_cases, record, sanitizer

from .measured import escape, number, origin, table
from .project import ROOT

FOLDER = ROOT / "cuda_numba" / "results" / "tools"
MISSING = "No results file is there yet. `python -m cuda_numba.{}` writes it, on a GPU.\n"


def report(tool: str, folder: Path = FOLDER) -> str:
    """What each results file of "sanitizer" or "nsight" says; a sentence where there is none.

    ValueError for another tool, and naming what is not as it must be in a file.
    """
    if tool not in TOOLS:
        raise ValueError(f"tool: must be one of {', '.join(TOOLS)}, got {tool!r}")
    check, body = TOOLS[tool]
    found = []
    for path in sorted(folder.glob(f"{tool}-*.json")):
        try:
            results = record.read(path, check)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        where = f"On one {escape(results['device'])}. {origin(results)} File: `tools/{path.name}`."
        found.append(f"{where}\n\n{body(results['rows'])}\n")
    return "\n".join(found) or MISSING.format(tool)


# ---- compute-sanitizer


def watched(rows: list[dict]) -> str:
    """A line for each tool: the kernels that it watched, and the faults that it was shown."""
    version = ", ".join(sorted({r["version"] for r in rows}))
    names = dict.fromkeys(r["tool"] for r in rows)
    lines = [verdict([r for r in rows if r["tool"] == name]) for name in names]
    return f"compute-sanitizer {escape(version)}.\n\n{table(lines)}"


def verdict(rows: list[dict]) -> dict[str, str]:
    """What one tool found, by column. Counts of all runs over kernels, if there are several."""
    runs = [r for r in rows if r["check"] == "kernels"]
    errors = number(sum(r["errors"] or 0 for r in runs))
    complete = bool(runs) and all(r["complete"] for r in runs)
    return {
        "tool": f"`{rows[0]['tool']}`",
        "kernels": number(len({kernel for r in runs for kernel in r["kernels"]})),
        "launches": number(sum(r["launches"] for r in runs)),
        "errors": errors if complete else f"{errors}, not complete",
        "warnings": number(sum(r["warnings"] for r in runs)),
        "planted fault": faults(rows, "control", ("✓ found", "✗ not found")),
        "further faults": faults(rows, "probe", ("found", "not found")),
    }


def faults(rows: list[dict], check: str, verdicts: tuple[str, str]) -> str:
    """Each fault of a kind, and whether it was found, with the reason where a run had no end."""
    return "<br>".join(
        f"`{r['fault']}`: {verdicts[not r['found']]}"
        + (f" ({escape(r['message'])})" if not r["complete"] and r["message"] else "")
        for r in rows
        if r["check"] == check
    )


# ---- Nsight Compute


def counts(rows: list[dict]) -> str:
    """How many counts there are and agree, a line for each kind, and a line for each difference."""
    names = dict.fromkeys([*(m.name for m in nsight.METRICS), *(r["metric"] for r in rows)])
    kinds = ([r for r in rows if r["metric"] == name] for name in names)
    lines = [kind(of) for of in kinds if of]
    launches = len({r["kernel"] for r in rows})
    given = [r for r in rows if r["nsight"] is not None]
    equal = sum(r["equal"] for r in given)
    summary = (
        f"{number(len(rows))} counts of {number(launches)} launches: {number(equal)} equal, "
        f"{number(len(given) - equal)} different, {number(len(rows) - len(given))} for which "
        "Nsight Compute has no number."
    )
    parts = [summary, table(lines), *differences(given), *left_out(rows)]
    return "\n\n".join(parts)


def kind(rows: list[dict]) -> dict[str, str]:
    """How often one kind of count was taken, by column; what there is none of is left empty."""
    given = [r for r in rows if r["nsight"] is not None]
    amounts = {
        "equal": sum(r["equal"] for r in given),
        "more": sum(r["met"] and not r["equal"] for r in given),
        "not as it must be": sum(not r["met"] for r in given),
        "no number": len(rows) - len(given),
    }
    relations = dict.fromkeys(r["relation"] for r in rows)
    return {
        "count of": escape(rows[0]["metric"]),
        "Nsight Compute's must be": " or ".join(relations),
    } | {name: number(amount) if amount else "" for name, amount in amounts.items()}


def differences(given: list[dict]) -> list[str]:
    """The counts that differ, each with what is known of why."""
    lines = [
        {
            "launch": escape(r["kernel"]),
            "count of": escape(r["metric"]),
            "emulator": number(r["emulator"]),
            "Nsight Compute": number(r["nsight"]),
            "why": escape(nsight.reason(r)) or "not known",
        }
        for r in given
        if not r["equal"]
    ]
    return ["Those that differ:", table(lines)] if lines else []


def left_out(rows: list[dict]) -> list[str]:
    """What is not compared although it could seem to be, unless these rows have it."""
    seen = {r["kernel"] for r in rows if r["metric"] == nsight.OPERATIONS}
    return [
        f"Not compared: {nsight.OPERATIONS} of {escape(case.name)}, for {escape(case.apart)}."
        for case in nsight_cases.CASES
        if case.apart and case.name not in seen
    ]


TOOLS: dict[str, tuple[record.Check, Callable[[list[dict]], str]]] = {
    "sanitizer": (sanitizer.check_row, watched),
    "nsight": (nsight.check_row, counts),
}
