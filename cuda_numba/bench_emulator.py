"""`python -m cuda_numba.bench_emulator [case…] [--json FILE]`: the emulator against Numba's own.

Both run the same kernels, each in a process of its own (Numba's simulator must be chosen before
Numba is imported), turn by turn, so that what else the machine does falls on both. Results are
checked against float64 first. A row's value is the simulator's median time over the emulator's:
"plain" for a launch, "report" with every access recorded and the report made.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import record
from .namespace import cuda, float32

ROUNDS = 5
OWN_RUNS = 5  # the emulator's launches in each round: they are short, and the median steadier
UNIT = "x Numba's simulator"
# What runs between a launch and its report: the emulator, what it imports, and the kernels below.
SOURCES = (
    *("arguments.py", "bits.py", "dtypes.py", "namespace.py", "bench_emulator.py"),
    *(f"emulator/{path.name}" for path in sorted((record.PACKAGE / "emulator").glob("*.py"))),
)


# ---- the kernels --------------------------------------------------------------------------------


def vector_add(a, b, out):
    i = cuda.grid(1)
    if i < out.shape[0]:
        out[i] = a[i] + b[i]


def row_sum(x, out):
    """One block of 128 threads for each row: strided sums, then a tree in shared memory."""
    scratch = cuda.shared.array(128, float32)
    t = cuda.threadIdx.x
    total = float32(0)
    for j in range(t, x.shape[1], 128):
        total += x[cuda.blockIdx.x, j]
    scratch[t] = total
    cuda.syncthreads()
    half = 64
    while half > 0:
        if t < half:
            scratch[t] += scratch[t + half]
        cuda.syncthreads()
        half //= 2
    if t == 0:
        out[cuda.blockIdx.x] = scratch[0]


def tiled_product(a, b, c):
    """c = a b by tiles of 16 × 16; all sizes are multiples of 16."""
    sa = cuda.shared.array((16, 16), float32)
    sb = cuda.shared.array((16, 16), float32)
    tx, ty = cuda.threadIdx.x, cuda.threadIdx.y
    x, y = cuda.grid(2)
    total = float32(0)
    for k in range(a.shape[1] // 16):
        sa[ty, tx] = a[y, k * 16 + tx]
        sb[ty, tx] = b[k * 16 + ty, x]
        cuda.syncthreads()
        for j in range(16):
            total += sa[ty, j] * sb[j, tx]
        cuda.syncthreads()
    c[y, x] = total


@dataclass(frozen=True)
class Case:
    """A kernel and its launch. goals: by how much it is to be faster, plain and reported."""

    kernel: Callable
    grid: Any
    block: Any
    shape: dict[str, int]
    make: Callable[[np.random.Generator], tuple[np.ndarray, ...]]  # inputs, then the output
    expected: Callable[..., np.ndarray]  # of the inputs, in float64
    goals: tuple[float, float]


def _floats(generator: np.random.Generator, *shape: int) -> np.ndarray:
    return generator.standard_normal(shape, dtype=np.float32)


def _empty(*shape: int) -> np.ndarray:
    return np.full(shape, np.nan, np.float32)


CASES = {
    "vector_add": Case(
        vector_add, 64, 256, {"N": 16384},
        lambda g: (_floats(g, 16384), _floats(g, 16384), _empty(16384)),
        lambda a, b: a + b,
        (15, 5),
    ),
    "row_sum": Case(
        row_sum, 32, 128, {"M": 32, "N": 512},
        lambda g: (_floats(g, 32, 512), _empty(32)),
        lambda x: x.sum(1),
        (100, 30),
    ),
    "tiled_product": Case(
        tiled_product, (4, 4), (16, 16), {"M": 64, "N": 64, "K": 64},
        lambda g: (_floats(g, 64, 64), _floats(g, 64, 64), _empty(64, 64)),
        lambda a, b: a @ b,
        (50, 15),
    ),
}  # fmt: skip


# ---- one process of each ------------------------------------------------------------------------


def work(simulator: bool) -> None:
    """Answer each line "case mode" of the input with a line of JSON: seconds and error."""
    for line in sys.stdin:
        name, mode = line.split()
        case = CASES[name]
        arguments = case.make(np.random.default_rng(0))
        *inputs, out = arguments
        run = _simulated(case) if simulator else _emulated(case, mode)
        begin = time.perf_counter()
        run(*arguments)
        seconds = time.perf_counter() - begin
        expected = case.expected(*(x.astype(np.float64) for x in inputs))
        error = float(np.abs(out - expected).max() / np.abs(expected).max())
        print(json.dumps({"seconds": seconds, "error": error}), flush=True)


def _simulated(case: Case) -> Callable:
    from numba import cuda

    return cuda.jit(case.kernel)[case.grid, case.block]


_emulations: dict[Callable, Any] = {}


def _emulated(case: Case, mode: str) -> Callable:
    from .emulator import emulate

    emulation = _emulations.setdefault(case.kernel, emulate(case.kernel))
    run = emulation.report if mode == "report" else emulation.launch
    return lambda *arguments: run(case.grid, case.block, *arguments)


class Worker:
    """A process that runs cases on request."""

    def __init__(self, simulator: bool):
        environment = os.environ | {"NUMBA_ENABLE_CUDASIM": "1" if simulator else "0"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", __name__ if __name__ != "__main__" else __spec__.name,
             "--worker", "simulator" if simulator else "emulator"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
            cwd=Path(__file__).parent.parent,
        )  # fmt: skip

    def run(self, name: str, mode: str) -> dict[str, float]:
        self.process.stdin.write(f"{name} {mode}\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{name}: the process ended with code {self.process.wait()}")
        return json.loads(answer)

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *error: Any) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


# ---- rows ---------------------------------------------------------------------------------------


def measure(emulator: Worker, simulator: Worker, name: str, rounds: int = ROUNDS) -> list[dict]:
    """The two rows of a case. The first launch of each (compilation, checks) is not counted."""
    errors = {mode: emulator.run(name, mode)["error"] for mode in ("plain", "report")}
    errors["simulator"] = simulator.run(name, "plain")["error"]
    for who, error in errors.items():
        if not error < 1e-5:
            raise RuntimeError(
                f"{name}, {who}: error {error} against float64, at most 1e-5 is right"
            )
    times: dict[str, list[float]] = {"plain": [], "report": [], "simulator": []}
    for _ in range(rounds):
        times["simulator"].append(simulator.run(name, "plain")["seconds"])
        for mode in ("plain", "report"):
            times[mode] += (emulator.run(name, mode)["seconds"] for _ in range(OWN_RUNS))
    return [_row(name, mode, goal, times, errors[mode])
            for mode, goal in zip(("plain", "report"), CASES[name].goals, strict=True)]  # fmt: skip


def _row(name: str, mode: str, goal: float, times: dict, error: float) -> dict[str, Any]:
    seconds = statistics.median(times[mode])
    theirs = statistics.median(times["simulator"])
    return record.row(
        f"emulator_{name}",
        mode,
        theirs / seconds,
        UNIT,
        sources=SOURCES,
        shape=CASES[name].shape,
        dtype="float32",
        seconds=seconds,
        error=error,
        peers={"numba_simulator": {"value": 1.0, "seconds": theirs}},
        goal=goal,
    )


def processor() -> str:
    """The name of the CPU."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def show(row: dict[str, Any]) -> str:
    theirs = row["peers"]["numba_simulator"]["seconds"]
    return (
        f"{row['op']:24} {row['pass']:7} {row['seconds']:8.4f} s  simulator {theirs:7.3f} s  "
        f"{row['value']:6.1f}x  goal {row['goal']}x  {'met' if row['met'] else 'missed'}"
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m cuda_numba.bench_emulator", description=__doc__
    )
    parser.add_argument("case", nargs="*", help=f"of {', '.join(CASES)}; all without")
    parser.add_argument("--json", help="the results file; without, the one in cuda_numba/results")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--worker", choices=("emulator", "simulator"), help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.worker:
        work(chosen.worker == "simulator")
        return 0
    if unknown := [name for name in chosen.case if name not in CASES]:
        parser.error(f"case: got {unknown[0]!r}, allowed are {', '.join(CASES)}")
    rows = []
    with Worker(simulator=False) as emulator, Worker(simulator=True) as simulator:
        for name in chosen.case or CASES:
            rows += measure(emulator, simulator, name, chosen.rounds)
            print(*map(show, rows[-2:]), sep="\n", flush=True)
    path = chosen.json or record.default_path("emulator", processor())
    record.write(path, "emulator", processor(), rows, None)
    print(f"written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
