"""Results files: what a kernel reached, on which device, against which peers and which goal.

    {"command", "device", "driver", "versions", "date", "commit", "dirty", "rows": [ROW, …]}
    ROW = {"op", "pass", "shape", "dtype", "value", "unit", "seconds", "of_roof", "peers",
           "error", "goal", "met", "source_sha256"}

README, book and notebooks read these files and copy no numbers. `is_current` says whether the
kernel is still what was measured; where it is not, they say "older kernel". What counts is the
program: a comment, a docstring or another layout of its files leaves it what it was.

Files of rows with other keys are written by `save` and read by `read` with a `check_row` of their
own, see `instrument`; they lie in `results/tools/`.
"""

import ast
import hashlib
import json
import math
import os
import platform
import re
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parent
RESULTS = PACKAGE / "results"
VERSIONS_OF = ("torch", "numpy", "numba", "numba-cuda", "llvmlite", "cuda-bindings", "triton")
SMALLER_IS_BETTER = ("s", "us", "bytes")
KEYS = ("command", "device", "driver", "versions", "date", "commit", "dirty", "rows")
ROW_KEYS = (
    *("op", "pass", "shape", "dtype", "value", "unit", "seconds", "of_roof", "peers", "error"),
    *("goal", "met", "source_sha256"),
)


def met(value: float, unit: str, goal: float | None) -> bool | None:
    """Whether `value` reaches `goal`; the unit says whether less or more is better."""
    if goal is None:
        return None
    return value <= goal if unit in SMALLER_IS_BETTER else value >= goal


def source_sha256(*names: str) -> str:
    """One hash over files of this package: of the programs in Python files, of others' bytes."""
    digest = hashlib.sha256()
    for name in names:
        data = (PACKAGE / name).read_bytes()
        data = program(data).encode() if name.endswith(".py") else data.replace(b"\r\n", b"\n")
        digest.update(hashlib.sha256(data).digest())
    return digest.hexdigest()


def program(source: bytes) -> str:
    """A Python file's syntax tree as text, without docstrings: the same text on every Python.

    Comments, blank lines, line breaks, redundant brackets and commas, the kind of quotes and the
    spelling of a number are not in the tree. (`ast.dump` writes one tree differently in different
    versions.) Raises SyntaxError where this Python does not understand the file.
    """
    return _text(ast.parse(source))


def _text(node: object) -> str:
    match node:
        case list():
            return f"[{', '.join(_text(item) for item in node if not _is_string_alone(item))}]"
        case ast.JoinedStr():
            return f"JoinedStr({_text(_joined(node.values))})"
        case ast.AST():
            # Newer versions have fields that older ones lack: None or [] where they are not used.
            # `kind` is the u of u"text".
            fields = ((name, x) for name, x in ast.iter_fields(node) if x is not None and x != [])
            texts = (f"{name}={_text(x)}" for name, x in fields if name != "kind")
            return f"{type(node).__name__}({', '.join(texts)})"
    return ascii(node)  # repr escapes what the version's Unicode tables do not call printable


def _is_string_alone(node: object) -> bool:
    """A statement that is a string: a docstring, or a comment in effect."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _joined(values: list[ast.expr]) -> list[ast.expr | str]:
    """The parts of an f-string; versions differ in where they cut its text, and in empty pieces."""
    parts: list = []
    for value in values:
        text = value.value if isinstance(value, ast.Constant) else None
        if text is not None and parts and isinstance(parts[-1], str):
            parts[-1] += text
        elif text != "":
            parts.append(value if text is None else text)
    return parts


def row(
    op: str,
    pass_: str,
    value: float,
    unit: str,
    *,
    sources: tuple[str, ...],
    shape: dict[str, Any],
    dtype: str,
    seconds: float | None,
    error: float,
    of_roof: float | None = None,
    peers: dict[str, dict] | None = None,
    goal: float | None = None,
) -> dict[str, Any]:
    """One row. error: the largest, against float64, relative to the largest expected number."""
    return {
        "op": op, "pass": pass_, "shape": shape, "dtype": dtype, "value": value, "unit": unit,
        "seconds": seconds, "of_roof": of_roof, "peers": peers or {}, "error": error, "goal": goal,
        "met": met(value, unit, goal), "source_sha256": source_sha256(*sources),
    }  # fmt: skip


def default_path(command: str, device: str, folder: Path = RESULTS) -> Path:
    """results/<command>-<device>.json of this package."""
    slug = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    return folder / f"{command}-{slug}.json"


def envelope(command: str, device: str, driver: str | None) -> dict[str, Any]:
    """A results file without rows, as of now."""
    commit = _git("rev-parse", "HEAD")
    changed = _git("status", "--porcelain", "--", ".", ":(exclude,glob)**/results/**/*.json")
    return {
        "command": command,
        "device": device,
        "driver": driver,
        "versions": {"python": platform.python_version(), "system": platform.system()}
        | {name: v for name in VERSIONS_OF if (v := _version(name)) is not None},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit,
        "dirty": None if commit is None else bool(changed),
        "rows": [],
    }


def write(
    path: str | Path, command: str, device: str, rows: list[dict], driver: str | None
) -> dict:
    """Write a results file of what was measured just now, and return what was written."""
    results = envelope(command, device, driver) | {"rows": rows}
    save(path, results)
    return results


def check_row(r: dict) -> None:
    """Raise ValueError saying what is not as it must be in a row of a benchmark."""
    check_keys(r, ROW_KEYS)
    for peer, found in r["peers"].items():
        if set(found) < {"value", "seconds"}:
            raise ValueError(f"peer {peer!r} must have value and seconds")
    numbers = [r[k] for k in ("value", "seconds", "of_roof", "error", "goal")]
    if r["error"] is None or not all(math.isfinite(x) for x in numbers if x is not None):
        raise ValueError(f"every number must be finite and error given: {numbers}")
    if r["met"] != met(r["value"], r["unit"], r["goal"]):
        raise ValueError(f"met is {r['met']}, value and goal say otherwise")


def check_keys(r: dict, keys: tuple[str, ...]) -> None:
    if set(r) != set(keys):
        raise ValueError(f"keys are {sorted(r)}, expected {sorted(keys)}")


Check = Callable[[dict], None]  # of one row; raises ValueError


def check(results: dict, check_row: Check = check_row) -> None:
    """Raise ValueError naming the first thing in a results file that is not as it must be."""
    if set(results) != set(KEYS):
        raise ValueError(f"results: keys are {sorted(results)}, expected {sorted(KEYS)}")
    for i, r in enumerate(results["rows"]):
        try:
            check_row(r)
        except ValueError as error:
            raise ValueError(f"rows[{i}]: {error}") from None


def save(path: str | Path, results: dict, check_row: Check = check_row) -> None:
    """Check a results file and write it, whole or not at all."""
    check(results, check_row)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(text, encoding="utf-8", newline="\n")
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def read(path: str | Path, check_row: Check = check_row) -> dict:
    """A results file, checked."""
    results = json.loads(Path(path).read_text(encoding="utf-8"))
    check(results, check_row)
    return results


def is_current(r: dict, sources: tuple[str, ...]) -> bool:
    """Whether the programs that a row measured are still the same."""
    return r["source_sha256"] == source_sha256(*sources)


def label(r: dict, sources: tuple[str, ...]) -> str:
    """What to write beside a number: "older kernel" where it is another program since, else ""."""
    return "" if is_current(r, sources) else "older kernel"


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    if not (PACKAGE.parent / ".git").exists():
        return None
    command = ("git", "-C", str(PACKAGE.parent), *arguments)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
