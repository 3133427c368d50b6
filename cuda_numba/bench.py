"""`python -m cuda_numba.bench [op…] [--json FILE]`: every kernel against its peers, on a GPU.

Each case is checked against float64 first, and then timed together with PyTorch (eager and
compiled), the named peers, and a copy of the same number of bytes, in one process. A row's value is
the bytes that the operation must move, over the median time, and `of_roof` its share of the copy's;
where arithmetic is the limit, FLOPs, and the share of the rate of cuBLAS on a large bf16 product.

Without an op everything is measured, and written to cuda_numba/results/kernels-<device>.json. With
some, FILE says where to write; without it the rows are only shown. A case that fails does not stop
the others: it goes to FILE.failed, as a row with an `error_message`, and the command ends with 1.
What the kernels are as machine code goes to tools/machine-code-<device>.json beside FILE.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from . import (
    bench_attention,
    bench_attention_warp,
    bench_decode,
    bench_elementwise,
    bench_embedding,
    bench_linear_cross_entropy,
    bench_matmul,
    bench_matmul_ladder,
    bench_norms,
    bench_quantized,
    bench_softmax,
    bench_training,
    machine_code,
    record,
    stopwatch,
)
from .bench_cases import Case
from .sources import SOURCES

MODULES = (
    *(bench_softmax, bench_norms, bench_elementwise, bench_embedding, bench_training),
    *(bench_matmul_ladder, bench_matmul, bench_attention_warp, bench_attention),
    *(bench_linear_cross_entropy, bench_decode, bench_quantized),
)


def _together(modules: tuple) -> dict[str, Callable[[], Iterator[Any]]]:
    """The cases of each operation, of all modules that have some, one after the other."""
    makers: dict[str, list] = {}
    for module in modules:
        for op, make in module.CASES.items():
            makers.setdefault(op, []).append(make)
    return {
        op: lambda found=tuple(found): itertools.chain.from_iterable(make() for make in found)
        for op, found in makers.items()
    }


CASES = _together(MODULES)


def run_case(case: Case) -> dict[str, Any]:
    """Check a case, time it, and make its row."""
    error = case.error()
    contenders = {"ours": case.ours} | case.peers | case.rungs
    if not case.flops:
        contenders = {"copy": stopwatch.copy_contender(case.nbytes, case.sets)} | contenders
    found = stopwatch.measure(contenders, case.sets)
    rate = {name: case.amount / seconds / 1e12 for name, seconds in found.items()}
    goals = [case.goal * rate["copy"]] if case.goal else []
    goals += [share * rate[peer] for peer, share in case.beats.items() if peer in rate]
    goals += [case.goal_value] if case.goal_value else []
    return record.row(
        case.op,
        case.pass_,
        rate["ours"],
        case.unit,
        sources=SOURCES[case.op],
        shape=case.shape,
        dtype=case.dtype,
        seconds=found["ours"],
        error=error,
        of_roof=rate["ours"] / (stopwatch.matrix_rate() if case.flops else rate["copy"]),
        peers={
            name: {"value": rate[name], "seconds": found[name]} for name in found if name != "ours"
        },
        goal=max(goals) if goals else None,
    )


def failed_row(op: str, case: Any, error: Exception) -> dict[str, Any]:
    """What is known of a case that could not be measured; case: None where not even that was made.

    It has no value, so it is no row of a results file.
    """
    known = case if isinstance(case, Case) else None
    return {
        "op": op,
        "pass": known and known.pass_,
        "shape": known.shape if known else {},
        "dtype": known and known.dtype,
        "error_message": f"{type(error).__name__}: {error}",
    }


def rows_of(op: str, code: list[dict[str, Any]] | None = None) -> Iterator[dict[str, Any]]:
    """The rows of an operation, measured one after the other; failed ones have an error_message.

    code: a list to which the rows of the kernels' machine code are added.
    """
    cases = CASES[op]()
    while True:
        case = None
        try:
            case = next(cases)
            row = case if isinstance(case, dict) else run_case(case)
            if code is not None and isinstance(case, Case):
                code.extend(machine_code.rows_of(case, torch.cuda.get_device_capability()))
            yield row
        except StopIteration:
            return
        except Exception as error:
            yield failed_row(op, case, error)
            if case is None:  # a generator that has raised has ended
                return


# ---- compiling ahead


def compile_ahead(op: str) -> None:
    """Launch our kernels of an operation once: their machine code is then on disk.

    What fails here fails again where it is measured, and is reported there. Peers are left out:
    they choose their kernels by time, which must be taken on a GPU that does nothing else.
    """
    for case in CASES[op]():
        if isinstance(case, Case):
            case.error()
            for call in (case.ours, *case.rungs.values()):
                call(0)
    torch.cuda.synchronize()


def compile_all_ahead(ops: list[str]) -> None:
    """`compile_ahead` for each operation, each in a process of its own, side by side."""
    ops = [op for op in ops if op != "launch"]  # its rows are host times and take a moment
    workers = max(1, min(len(ops), os.cpu_count() or 1))
    with ProcessPoolExecutor(workers, get_context("spawn"), max_tasks_per_child=1) as pool:
        jobs = {op: pool.submit(compile_ahead, op) for op in ops}
        for op, job in jobs.items():
            if error := job.exception():
                print(f"{op}: not compiled ahead ({type(error).__name__}: {error})", flush=True)


# ---- the command


def show(row: dict[str, Any]) -> str:
    """A row as one line for the terminal."""
    shape = "×".join(str(n) for n in row["shape"].values())
    name = f"{row['op']:>14} {row['pass'] or '':<9} {shape:>14} {row['dtype'] or '':<9}"
    if "error_message" in row:
        return f"{name} FAILED {row['error_message']}"
    peers = "  ".join(f"{name} {p['value']:.3g}" for name, p in row["peers"].items())
    verdict = {True: "met", False: "missed", None: ""}[row["met"]]
    goal = f"goal {row['goal']:.3g} {verdict}" if row["goal"] is not None else ""
    roof = "copy" if row["unit"] == "TB/s" else "the matrix rate"
    roof = f"{100 * row['of_roof']:.1f} % of {roof}" if row["of_roof"] is not None else ""
    return (
        f"{name} {row['value']:.3g} {row['unit']} {roof}  {goal}  "
        f"error {row['error']:.1e}  [{peers}]"
    )


def write(path: Path, device: str, rows: list[dict[str, Any]]) -> int:
    """Write what was measured to `path`, what failed beside it; 1 where something failed, else 0.

    A list of failures from an earlier run is removed.
    """
    failed = [row for row in rows if "error_message" in row]
    measured = [row for row in rows if "error_message" not in row]
    beside = path.with_name(f"{path.name}.failed")
    beside.unlink(missing_ok=True)
    if measured:
        record.write(path, "kernels", device, measured, driver_version())
        print(f"written: {path}")
    if failed:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(json.dumps(failed, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"failed: {len(failed)} of {len(rows)} rows, see {beside}", file=sys.stderr)
    return 1 if failed else 0


def write_code(folder: Path, device: str, rows: list[dict[str, Any]]) -> None:
    """Write what the measured kernels are as machine code to `folder`/tools."""
    if rows:
        path = record.default_path(machine_code.COMMAND, device, folder / "tools")
        results = record.envelope(machine_code.COMMAND, device, driver_version()) | {"rows": rows}
        record.save(path, results, machine_code.check_row)
        print(f"written: {path}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m cuda_numba.bench", description=__doc__)
    parser.add_argument("op", nargs="*", help=f"operations, of {', '.join(CASES)}; all without")
    parser.add_argument("--json", metavar="FILE", help="the results file")
    chosen = parser.parse_args(arguments)
    if unknown := [op for op in chosen.op if op not in CASES]:
        parser.error(f"op: got {unknown[0]!r}, allowed are {', '.join(CASES)}")
    if not torch.cuda.is_available():
        print("cuda_numba.bench needs an NVIDIA GPU, and there is none here", file=sys.stderr)
        return 2
    ops = chosen.op or list(CASES)
    compile_all_ahead(ops)
    rows = []
    code: list[dict[str, Any]] = []
    for op in ops:
        for row in rows_of(op, code):
            rows.append(row)
            print(show(row), flush=True)
        torch.cuda.empty_cache()
    device = torch.cuda.get_device_name()
    if chosen.json or not chosen.op:
        path = Path(chosen.json or record.default_path("kernels", device))
        write_code(path.parent, device, code)
        return write(path, device, rows)
    return int(any("error_message" in row for row in rows))


def driver_version() -> str | None:
    """The version of the GPU's driver, as nvidia-smi has it."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip().splitlines()[0] if done.returncode == 0 else None


if __name__ == "__main__":
    sys.exit(main())
