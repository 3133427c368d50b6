"""What somebody waits for: commands, run in fresh processes and timed from outside.

`import` is the start of every program that uses the package. `tiny` is the five-minute run of the
course, `minilm train --preset tiny`, with all that counts: tokenizer, tokenising, training and
validation.
"""

import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from .bench import PACKAGE, cpu_cores, row

IMPORT_GOAL = 2.0  # s
TINY_GOAL = 1.60  # bits per byte on the held-out files
TINY_SECONDS = 300  # s, on two cores
ALL = tuple(sorted(path.name for path in PACKAGE.glob("*.py")))
SOURCES = {"import": ALL, "tiny": ALL}  # operation → the files that are measured
LAST_LINE = re.compile(r"validation: (\d+\.\d+) bits per byte")


def import_rows(peers: dict[str, Path] | None = None, *, rounds: int = 7) -> list[dict]:
    """One row: median seconds of `python -c "import minilm"`, the start of Python included.

    One more process runs first and is not counted: it fills the file cache and writes bytecode.
    """
    _no_peers("import", peers)
    seconds = [_timed([sys.executable, "-c", "import minilm"])[0] for _ in range(rounds + 1)]
    median = statistics.median(seconds[1:])
    shape = {"processes": rounds, "cores": cpu_cores()}
    return [
        row(
            "import",
            "fresh process",
            median,
            "s",
            shape=shape,
            seconds=median,
            goal=IMPORT_GOAL,
            sources=SOURCES["import"],
        )
    ]


def tiny_rows(peers: dict[str, Path] | None = None, *, options: tuple[str, ...] = ()) -> list[dict]:
    """Two rows of one run of `minilm train --preset tiny`: bits per byte, and seconds of wall time.

    options: further flags of `train`, which make it another run than the goals are for.
    """
    _no_peers("tiny", peers)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "minilm", "train", "--preset", "tiny", "--out"]
        command += [str(Path(folder) / "tiny"), *options]
        # An empty cache: tokenising counts, so tokens from an earlier run must not be found.
        seconds, output = _timed(command, MINILM_CACHE=str(Path(folder) / "cache"))
    last = output.strip().splitlines()[-1] if output.strip() else ""
    found = LAST_LINE.fullmatch(last)
    if found is None:
        raise ValueError(f"the last line of minilm train must be {LAST_LINE.pattern}, got {last!r}")
    common = {
        "shape": {"cores": cpu_cores()},
        "seconds": seconds,
        "sources": SOURCES["tiny"],
    }
    return [
        row("tiny", "validation", float(found[1]), "bits/byte", goal=TINY_GOAL, **common),
        row("tiny", "whole run", seconds, "s", goal=TINY_SECONDS, **common),
    ]


def _no_peers(name: str, peers: dict | None) -> None:
    if peers:
        raise ValueError(f"--peer: {name!r} has no peers, got {', '.join(peers)}")


def _timed(command: list[str], **environment: str) -> tuple[float, str]:
    """Seconds and standard output of a command; its standard error goes to ours."""
    env = os.environ | {"PYTHONUTF8": "1"} | environment
    start = time.perf_counter()
    done = subprocess.run(
        command, stdout=subprocess.PIPE, encoding="utf-8", cwd=PACKAGE.parent, env=env
    )
    seconds = time.perf_counter() - start
    if done.returncode:
        raise OSError(f"{' '.join(command[1:])} ended with exit code {done.returncode}")
    return seconds, done.stdout
