"""Measurements are files: what was measured, on which device, with which versions and which goal.

`minilm bench NAME` writes one JSON file per command and device. README, book and notebooks read
these files and hold no copies of their numbers:

    {"command", "device", "driver", "versions", "date", "commit", "dirty", "rows": [ROW, …]}
    ROW = {"op", "pass", "shape", "dtype", "value", "unit", "seconds", "of_roof", "peers",
           "error", "goal", "met", "source_sha256"} and, where there is more to say, "details"

`row` makes a row, `write_results` and `read_results` check every key of the file. Whether a goal is
met is computed from value and goal each time, never stored on trust. The benchmarks themselves are
in `bench_model`, `bench_command`, `bench_tokenizer`, `bench_choices` and, for the whole step on a
GPU, `bench_gpt2`.
"""

import hashlib
import json
import math
import os
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import torch

from .machine import look

PACKAGE = Path(__file__).resolve().parent
VERSIONS_OF = ("minilm", "torch", "numpy", "numba", "numba-cuda", "tokenizers")
# Units; of all others more is better. "relative": an error, as a share of what it is in.
SMALLER_IS_BETTER = ("s", "us", "bits/byte", "nats", "relative", "differences", "bytes")

NUMBER = (int, float)
NONE = type(None)
FILE_KEYS = {
    "command": str,
    "device": str,
    "driver": (str, NONE),  # of a GPU
    "versions": dict,
    "date": str,  # ISO 8601, UTC
    "commit": (str, NONE),  # None outside a checkout
    "dirty": (bool, NONE),  # were there changes that the commit does not have?
    "rows": list,
}
ROW_KEYS = {
    "op": str,
    "pass": str,
    "shape": dict,  # names as in the code (B, T, C, …) → numbers; choices → their names
    "dtype": str,
    "value": NUMBER,
    "unit": str,
    "seconds": (*NUMBER, NONE),  # of one repetition: a step, a call, a run; the median
    "of_roof": (*NUMBER, NONE),  # share of the bandwidth or matrix rate measured in the same run
    "peers": dict,  # name → {"value", "seconds"} and, for a peer given by path, "source_sha256"
    "error": (*NUMBER, NONE),  # against float64; never None for a kernel
    "goal": (*NUMBER, NONE),  # in `unit`; None where there is none
    "met": (bool, NONE),
    "source_sha256": str,  # of the source files that were measured
}
OPTIONAL_ROW_KEYS = {
    "details": dict,  # what else was found: bytes of memory, curves, an error for each tensor
}


def met(value: float, unit: str, goal: float | None) -> bool | None:
    """Does `value` reach `goal`? Both in `unit`, which says whether less or more is better."""
    if goal is None:
        return None
    return value <= goal if unit in SMALLER_IS_BETTER else value >= goal


def row(
    op: str,
    pass_: str,
    value: float,
    unit: str,
    *,
    sources: Iterable[str | Path],
    shape: dict | None = None,
    dtype: str = "float32",
    seconds: float | None = None,
    of_roof: float | None = None,
    peers: dict | None = None,
    error: float | None = None,
    goal: float | None = None,
    details: dict | None = None,
) -> dict:
    """One row of a results file.

    sources: the files that are measured, as paths or as names in this package. shape: what else the
    value depends on: sizes by the names that they have in the code, threads, choices.
    """
    return {
        "op": op,
        "pass": pass_,
        "shape": shape or {},
        "dtype": dtype,
        "value": value,
        "unit": unit,
        "seconds": seconds,
        "of_roof": of_roof,
        "peers": peers or {},
        "error": error,
        "goal": goal,
        "met": met(value, unit, goal),
        "source_sha256": source_sha256(*sources),
    } | ({} if details is None else {"details": details})


def source_sha256(*sources: str | Path) -> str:
    """One hash over source files, the same whatever the line ends of the checkout.

    A bare name is a file of this package: source_sha256("model.py", "ops.py").
    """
    digest = hashlib.sha256()
    for source in sources:
        data = (PACKAGE / source).read_bytes().replace(b"\r\n", b"\n")  # an absolute path stays one
        digest.update(hashlib.sha256(data).digest())
    return digest.hexdigest()


def interleaved(contenders: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of one call of each contender, measured in turn in one process.

    The turns change direction from round to round, so that a machine that slows down, or a
    neighbour that comes and goes, meets all of them alike. A first round is not counted.
    """
    if rounds < 1:
        raise ValueError(f"rounds: must be at least 1, got {rounds}")
    seconds = {name: [] for name in contenders}
    for i in range(rounds + 1):
        order = list(contenders) if i % 2 else list(reversed(contenders))
        for name in order:
            start = _clock()
            contenders[name]()
            seconds[name].append(_clock() - start)
    return {name: statistics.median(times[1:]) for name, times in seconds.items()}


def _clock() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()  # a GPU's work is over only then
    return time.perf_counter()


def device_name(device: str = "cpu") -> str:
    """What the numbers were measured on: "AMD EPYC, 2 cores", or the name of the GPU."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_cpu_model()}, {cpu_cores()} cores"


def cpu_cores() -> int:
    """The cores that this process may use."""
    return look().cores


def _cpu_model() -> str:
    model = platform.processor()  # Windows; on Linux and macOS it is no more than the architecture
    if Path("/proc/cpuinfo").exists():
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
        model = found[1] if found else model
    elif platform.system() == "Darwin":
        model = _output_of("sysctl", "-n", "machdep.cpu.brand_string") or model
    model = re.sub(r"\((R|TM)\)|\bProcessor\b|\bCPU\b|@.*|\d+-Core", " ", model)
    return " ".join(model.split()) or platform.machine() or "CPU"


def slug(device: str) -> str:
    """A device's name as part of a file name: "AMD EPYC, 2 cores" → "amd-epyc-2-cores"."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def default_path(command: str, device: str) -> Path:
    """book/results/<command>-<device>.json of the checkout; in the current folder without one."""
    results = PACKAGE.parent / "book" / "results"
    folder = results if (PACKAGE.parent / "pyproject.toml").exists() else Path()
    return folder / f"{command}-{slug(device)}.json"


def describe_run(device: str = "cpu") -> dict:
    """Everything in a results file but command and rows: device, driver, versions, date, commit."""
    commit = _git("rev-parse", "HEAD")
    changed = None
    if commit is not None:  # results that were just written do not make the code another one
        changed = _git("status", "--porcelain", "--", ".", ":(exclude,glob)**/results/*.json")
    on_gpu = torch.device(device).type == "cuda"
    return {
        "device": device_name(device),
        "driver": look().driver if on_gpu else None,
        "versions": {"python": platform.python_version(), "system": platform.system()}
        | {name: v for name in VERSIONS_OF if (v := _version(name)) is not None},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit,
        "dirty": None if commit is None else bool(changed),
    }


def write_results(path: str | Path, command: str, rows: list[dict], device: str = "cpu") -> dict:
    """Write the results of `command` and return what was written.

    `rows` as `row` makes them. Written whole or not at all: the file is made beside and moved into
    place. Raises ValueError naming what is not as a results file must be.
    """
    results = {"command": command, **describe_run(device), "rows": rows}
    check_results(results)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(text, encoding="utf-8", newline="\n")
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    return results


def read_results(path: str | Path) -> dict:
    """A results file, checked: ValueError says what is wrong with it."""
    try:
        results = json.loads(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: is not JSON ({error})") from None
    try:
        check_results(results)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return results


def check_results(results: dict) -> None:
    """Raise ValueError naming the first key that is missing, unknown, of a wrong type or untrue."""
    _check_keys(results, FILE_KEYS, "results")
    for i, r in enumerate(results["rows"]):
        name = f"rows[{i}]"
        optional = {k: kind for k, kind in OPTIONAL_ROW_KEYS.items() if k in r}
        _check_keys(r, ROW_KEYS | optional, name)
        for peer, found in r["peers"].items():
            if not isinstance(found, dict) or not {"value", "seconds"} <= set(found):
                raise ValueError(f"{name}: peer {peer!r} must have value and seconds, got {found}")
        numbers = [r[k] for k in ("value", "seconds", "of_roof", "error", "goal")]
        if not all(math.isfinite(x) for x in numbers if x is not None):
            raise ValueError(f"{name}: every number must be finite, got {numbers}")
        if r["met"] != met(r["value"], r["unit"], r["goal"]):
            raise ValueError(
                f"{name}: met is {r['met']}, but {r['value']} {r['unit']} against the goal "
                f"{r['goal']} says otherwise"
            )


def _check_keys(found: object, keys: dict, name: str) -> None:
    if not isinstance(found, dict):
        raise ValueError(f"{name}: must be an object, got {type(found).__name__}")
    if missing := sorted(set(keys) - set(found)):
        raise ValueError(f"{name}: key {missing[0]!r} is missing")
    if unknown := sorted(set(found) - set(keys)):
        raise ValueError(f"{name}: unknown key {unknown[0]!r}, allowed are {sorted(keys)}")
    for key, kind in keys.items():
        value = found[key]
        allowed = kind if isinstance(kind, tuple) else (kind,)
        if type(value) not in allowed:  # not isinstance: True is an int to Python, not to us
            types = " or ".join(t.__name__ for t in allowed)
            raise ValueError(f"{name}: {key!r} must be of type {types}, got {value!r}")


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    """What git says about the checkout that this package is in, None where it is in none."""
    if not (PACKAGE.parent / ".git").exists():
        return None
    return _output_of("git", "-C", str(PACKAGE.parent), *arguments)


def _output_of(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
