"""Results files as Markdown tables. The pages hold no numbers of their own: they come from here.

A row is marked "older source" where the files that it measured have changed since: the hash in the
row is no longer that of the present files. Which files an operation, or a pass of it, is measured
on, the benchmarks say themselves: `SOURCES` in `bench_model.py` and its like.
"""

import importlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from cuda_numba import bench_emulator, record
from cuda_numba.sources import SOURCES
from minilm import bench
from minilm.command_bench import BENCHMARKS

from .project import ROOT

FOLDERS = (ROOT / "book" / "results", ROOT / "cuda_numba" / "results")
OLDER = "older source"
# Commands that are modules of cuda_numba; all others are `minilm bench COMMAND`.
MODULES = {
    "kernels": "bench", "emulator": "bench_emulator", "sanitizer": "sanitizer", "nsight": "nsight"
}  # fmt: skip
# What `minilm bench train` measures where there is a GPU.
GPT2 = {"gpt2_training": ("bench_gpt2_rows", None)}


def result_files(folders: tuple[Path, ...] = FOLDERS) -> list[Path]:
    """All results files, by name."""
    return sorted((p for f in folders for p in f.glob("*.json")), key=lambda p: (p.name, p))


def present_hashes(command: str) -> dict[str, str]:
    """Operation or pass → hash, as they are now, of the files that `minilm bench COMMAND` measures.

    {} for a command that this version does not have.
    """
    if command == "kernels":
        return {op: record.source_sha256(*files) for op, files in SOURCES.items()}
    if command == "emulator":
        present = record.source_sha256(*bench_emulator.SOURCES)
        return {"plain": present, "report": present}
    module, _ = (BENCHMARKS | GPT2).get(command, ("bench", None))
    sources = getattr(importlib.import_module(f"minilm.{module}"), "SOURCES", {})
    return {name: bench.source_sha256(*files) for name, files in sources.items()}


def present_hash(row: dict, present: Mapping[str, str]) -> str | None:
    """The hash of what this row measured, as it is now; None where its benchmark does not say."""
    return present.get(row["op"], present.get(row["pass"]))


def older(row: dict, present: Mapping[str, str]) -> bool:
    """Have the files that this row measured changed since?"""
    return present_hash(row, present) not in (None, row["source_sha256"])


def page(paths: list[Path], present: Callable[[str], Mapping[str, str]] = present_hashes) -> str:
    """One section for each file; a sentence where there is none."""
    if not paths:
        return "No results file is there yet. `minilm bench` writes them to `book/results/`.\n"
    found = [(path, bench.read_results(path)) for path in paths]
    return "\n".join(section(path, r, present(r["command"])) for path, r in found)


def section(path: Path, results: dict, present: Mapping[str, str]) -> str:
    """A heading, a sentence on where the numbers are from, and a table of the rows."""
    lines = [f"## {escape(results['command'])}: {escape(results['device'])}", "", origin(results)]
    lines += [f"File: `{path.name}`.", ""]
    return "\n".join([*lines, table([cells(row, present) for row in results["rows"]])]) + "\n"


def origin(results: dict) -> str:
    """When, with what and from which state of the code."""
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    commit = f"commit `{results['commit'][:10]}`" if results["commit"] else "no commit known"
    changed = " with changes that it does not have" if results["dirty"] else ""
    driver = f" Driver {escape(results['driver'])}." if results["driver"] else ""
    return (
        f"Measured on {results['date'][:10]} by `{command_of(results)}`; "
        f"{commit}{changed}.{driver} {escape(versions)}."
    )


def command_of(results: dict) -> str:
    """What was typed to measure this."""
    if module := MODULES.get(results["command"]):
        return f"python -m cuda_numba.{module}"
    if results["command"] in GPT2:
        return "minilm bench train --peer nanogpt=PATH"
    return f"minilm bench {results['command']}"


def cells(row: dict, present: Mapping[str, str]) -> dict[str, str]:
    """What a table says about one row, by column."""
    what = escape(f"{row['op']}, {row['pass']}" if row["pass"] else row["op"])
    goal = "" if row["goal"] is None else f"{number(row['goal'])} {escape(row['unit'])}"
    return {
        "what": what + (f" *({OLDER})*" if older(row, present) else ""),
        "shape": escape(", ".join(f"{name} {number(v)}" for name, v in row["shape"].items())),
        "dtype": escape(row["dtype"]),
        "value": f"**{number(row['value'])}** {escape(row['unit'])}",
        "beside": "<br>".join(beside(row, name) for name in row["peers"]),
        "of roof": "" if row["of_roof"] is None else f"{100 * row['of_roof']:.0f} %",
        "error": "" if row["error"] is None else f"{row['error']:.1e}",
        "goal": goal,
        "met": {None: "", True: "✓ yes", False: "✗ no"}[row["met"]],
    }


def beside(row: dict, peer: str) -> str:
    """A peer's value, and how many times better ours is, whichever way the unit points."""
    theirs, ours = row["peers"][peer]["value"], row["value"]
    top, bottom = (theirs, ours) if row["unit"] in bench.SMALLER_IS_BETTER else (ours, theirs)
    ratio = f", ours {top / bottom:.2f}×" if bottom else ""
    return f"{escape(peer)}: {number(theirs)}{ratio}"


def table(rows: list[dict[str, str]]) -> str:
    """A Markdown table of rows with the same keys; columns that are empty are left out."""
    columns = [name for name in rows[0] if any(row[name] for row in rows)] if rows else []
    lines = [columns, ["---"] * len(columns), *([row[name] for name in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def number(value: object) -> str:
    """Four significant digits, thousands apart: 21800.4 → 21,800; 1.2862 → 1.286; text stays."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def prose(text: str) -> str:
    """A line of a docstring: `code` as code, everything else as it is."""
    parts = re.split(r"(`[^`|]+`)", text)
    parts[::2] = [escape(part) for part in parts[::2]]
    return "".join(parts)


def escape(text: str) -> str:
    """Text that Markdown, inside a table too, shows as it is."""
    for character in "\\`*_{}[]<>|$#":
        text = text.replace(character, f"\\{character}")
    return text
