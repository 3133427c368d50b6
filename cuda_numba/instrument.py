"""Programs of the CUDA toolkit that watch a child process, and the results files they lead to.

`compute-sanitizer` and `ncu` are started over `python -m cuda_numba.…`, each with a time limit.
Their raw output is kept as it came (`--keep DIR`, one file), so that what was read out of it can be
read again where there is no GPU (`--from FILE`).
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from . import record

# Where installers put the programs when they are not on the PATH.
FOLDERS = ("/usr/local/cuda/bin", "/usr/local/cuda/compute-sanitizer", "/opt/nvidia/nsight-compute")
KEPT_ENDS = 2_000_000  # characters of one program's output that are kept from each end


@dataclass(frozen=True)
class Job:
    """A command to run: its name, what to execute, what to add to the environment."""

    name: str
    command: tuple[str, ...]
    timeout: float  # seconds
    environment: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Done:
    """What came of a job. code: the exit code, None where it ran out of time or did not start."""

    name: str
    command: tuple[str, ...]
    code: int | None
    seconds: float
    output: str  # standard output and error as they came


def find(program: str) -> str | None:
    """The path of a program of the toolkit, None where it is not installed."""
    if found := shutil.which(program):
        return found
    for folder in map(Path, FOLDERS):
        for path in (folder / program, *sorted(folder.glob(f"*/{program}"), reverse=True)):
            if path.is_file() and os.access(path, os.X_OK):
                return str(path)
    return None


def python(module: str, *arguments: str) -> tuple[str, ...]:
    """The command that runs a module of this package."""
    return (sys.executable, "-m", f"{__package__}.{module}", *arguments)


def run(job: Job) -> Done:
    """Run a job to its end or its time limit; it and its children are ended then."""
    begun = time.monotonic()
    try:
        process = subprocess.Popen(
            job.command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            errors="replace", stdin=subprocess.DEVNULL, start_new_session=True,
            cwd=record.PACKAGE.parent, env=os.environ | dict(job.environment),
        )  # fmt: skip
    except OSError as error:
        return Done(job.name, job.command, None, 0.0, f"{job.command[0]}: {error}")
    try:
        output, _ = process.communicate(timeout=job.timeout)
        code = process.returncode
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        code, output = None, f"{output}\nended after {job.timeout:.0f} s"
    if len(output) > 2 * KEPT_ENDS:
        output = f"{output[:KEPT_ENDS]}\n…\n{output[-KEPT_ENDS:]}"
    return Done(job.name, job.command, code, time.monotonic() - begun, output)


def run_all(jobs: list[Job], workers: int) -> list[Done]:
    """Run jobs, `workers` at a time, in the order given."""
    with ThreadPoolExecutor(max(1, workers)) as pool:
        return list(pool.map(run, jobs))


# ---- what is kept, and what is written


def envelope(command: str) -> dict[str, Any]:
    """A results file without rows (see `record`), for the GPU of this machine."""
    import torch

    from .bench import driver_version

    return record.envelope(command, torch.cuda.get_device_name(), driver_version())


def keep(folder: str, results: dict, done: list[Done]) -> Path:
    """Write the envelope and the raw outputs to <folder>/<command>-raw.json."""
    path = Path(folder) / f"{results['command']}-raw.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"results": results, "done": [asdict(d) for d in done]}, indent=1))
    return path


def kept(path: str) -> tuple[dict, list[Done]]:
    """The envelope and the raw outputs that `keep` wrote."""
    found = json.loads(Path(path).read_text())
    return found["results"], [Done(**d | {"command": tuple(d["command"])}) for d in found["done"]]


def write(path: str | Path | None, results: dict, rows: list[dict], check: record.Check) -> Path:
    """Write the envelope with these rows; without a path, into `results/tools/`."""
    folder = record.RESULTS / "tools"
    path = Path(path or record.default_path(results["command"], results["device"], folder))
    record.save(path, results | {"rows": rows}, check)
    return path


def missing(program: str, command: str) -> str | None:
    """Why `command` cannot run on this machine, None if it can."""
    import torch

    if not torch.cuda.is_available():
        return f"cuda_numba.{command} needs an NVIDIA GPU, and there is none here"
    if find(program) is None:
        return (
            f"cuda_numba.{command} needs {program}, which comes with the CUDA toolkit: "
            f"it is neither on the PATH nor in {', '.join(FOLDERS)}"
        )
    return None
