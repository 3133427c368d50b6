"""What each choice of the five-minute model did: `minilm bench choices` as a table.

A row of the file is one choice, trained from several seeds; its shape holds the value of each seed.
The spread of the seeds is the noise that a difference has to be read against.
"""

import statistics
from pathlib import Path

from minilm import bench

from .measured import FOLDERS, escape, number, origin, table

OP = "tiny_choice"
SEED = "seed "  # how the names of single values begin
CLEAR = 2  # times the deviation of a difference: what is smaller decides nothing


def read(folders: tuple[Path, ...] = FOLDERS) -> dict | None:
    """The newest results file with choices in it, or None."""
    found = [bench.read_results(path) for folder in folders for path in folder.glob("*.json")]
    found = [results for results in found if any(row["op"] == OP for row in results["rows"])]
    return max(found, key=lambda results: results["date"], default=None)


def seeds_of(row: dict) -> list[float]:
    return [value for name, value in row["shape"].items() if name.startswith(SEED)]


def deviation(rows: list[dict]) -> float | None:
    """Standard deviation between seeds, all choices together; None where there is one seed only."""
    groups = [values for values in map(seeds_of, rows) if len(values) > 1]
    if not groups:
        return None
    squares = sum(statistics.variance(values) * (len(values) - 1) for values in groups)
    return (squares / sum(len(values) - 1 for values in groups)) ** 0.5


def report(results: dict | None) -> str:
    """A sentence on where the numbers are from, and all choices, the first being the reference."""
    rows = [row for row in results["rows"] if row["op"] == OP] if results else []
    if not rows:
        return (
            "*These runs have no results file in this checkout, so there are no numbers here: "
            "`minilm bench choices` makes it.*\n"
        )
    noise = deviation(rows)
    lines = [f"On one {escape(results['device'])}. {origin(results)}"]
    if noise is not None:
        lines.append(f"Standard deviation between seeds: {noise:.3f} {escape(rows[0]['unit'])}.")
    return " ".join(lines) + "\n\n" + table([cells(row, rows[0], noise) for row in rows]) + "\n"


def cells(row: dict, reference: dict, noise: float | None) -> dict[str, str]:
    """One choice: its value, its distance from the reference, and whether that is clear."""
    seeds, difference = seeds_of(row), row["value"] - reference["value"]
    says = ""
    if row is not reference and noise is not None:
        clear = abs(difference) > CLEAR * noise * (2 / len(seeds)) ** 0.5
        says = ("worse" if difference > 0 else "better") if clear else "within the noise"
    return {
        "choice": escape(row["pass"]),
        escape(row["unit"]): f"{row['value']:.3f}",
        "difference": "" if row is reference else f"{difference:+.3f}",
        "which is": says,
        "seeds": ", ".join(f"{value:.3f}" for value in seeds),
        "parameters": number(row["shape"].get("parameters", "")),
    }
