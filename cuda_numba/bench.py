"""`python -m cuda_numba.bench [op…] [--json FILE]`: every kernel against its peers, on a GPU.

Each case is checked against float64 first, and then timed together with PyTorch (eager and
compiled), the named peers, and a copy of the same number of bytes, in one process. A row's value is
the bytes that the operation must move, over the median time; `of_roof` is its share of the copy's.
"""

import argparse
import sys
from typing import Any

import torch

from . import record, stopwatch
from .sources import SOURCES


def run_case(case: Any) -> dict[str, Any]:
    """Check a case, time it, and make its row."""
    error = case.error()
    copy = stopwatch.copy_contender(case.nbytes, case.sets)
    found = stopwatch.measure(
        {"copy": copy, "ours": case.ours} | case.peers | case.rungs, case.sets
    )
    rate = {name: case.nbytes / seconds / 1e12 for name, seconds in found.items()}
    goals = [case.goal * rate["copy"]] if case.goal else []
    goals += [share * rate[peer] for peer, share in case.beats.items() if peer in rate]
    return record.row(
        case.op,
        case.pass_,
        rate["ours"],
        "TB/s",
        sources=SOURCES[case.op],
        shape=case.shape,
        dtype=case.dtype,
        seconds=found["ours"],
        error=error,
        of_roof=rate["ours"] / rate["copy"],
        peers={
            name: {"value": rate[name], "seconds": found[name]} for name in found if name != "ours"
        },
        goal=max(goals) if goals else None,
    )


def show(row: dict[str, Any]) -> str:
    """A row as one line for the terminal."""
    shape = "×".join(str(n) for n in row["shape"].values())
    peers = "  ".join(f"{name} {p['value']:.3g}" for name, p in row["peers"].items())
    verdict = {True: "met", False: "missed", None: ""}[row["met"]]
    goal = f"goal {row['goal']:.3g} {verdict}" if row["goal"] is not None else ""
    roof = f"{100 * row['of_roof']:.1f} % of copy" if row["of_roof"] is not None else ""
    return (
        f"{row['op']:>14} {row['pass']:<9} {shape:>14} {row['dtype']:<9} "
        f"{row['value']:.3g} {row['unit']} {roof}  {goal}  error {row['error']:.1e}  [{peers}]"
    )


def main(arguments: list[str] | None = None) -> int:
    from . import bench_cases, bench_training

    CASES = bench_cases.CASES | bench_training.CASES

    parser = argparse.ArgumentParser(prog="python -m cuda_numba.bench", description=__doc__)
    parser.add_argument("op", nargs="*", help=f"operations, of {', '.join(CASES)}; all without")
    parser.add_argument("--json", help="the results file; without, the one in cuda_numba/results")
    chosen = parser.parse_args(arguments)
    if unknown := [op for op in chosen.op if op not in CASES]:
        parser.error(f"op: got {unknown[0]!r}, allowed are {', '.join(CASES)}")
    if not torch.cuda.is_available():
        print("cuda_numba.bench needs an NVIDIA GPU, and there is none here", file=sys.stderr)
        return 2
    rows = []
    for op in chosen.op or CASES:
        for found in CASES[op]():
            rows.append(found if isinstance(found, dict) else run_case(found))
            print(show(rows[-1]), flush=True)
        torch.cuda.empty_cache()
    device = torch.cuda.get_device_name()
    path = chosen.json or record.default_path("kernels", device)
    record.write(path, "kernels", device, rows, driver_version())
    print(f"written: {path}")
    return 0


def driver_version() -> str | None:
    """The version of the GPU's driver, as nvidia-smi has it."""
    import subprocess

    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip().splitlines()[0] if done.returncode == 0 else None


if __name__ == "__main__":
    sys.exit(main())
