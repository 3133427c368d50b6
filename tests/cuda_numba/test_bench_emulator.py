"""The benchmark of the emulator: both sides run, are checked, and give rows as they should be."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cuda_numba import bench_emulator, record
from cuda_numba.bench_emulator import CASES, SOURCES, UNIT, Worker, main, measure
from cuda_numba.namespace import HAS_NUMBA_CUDA

RESULTS = sorted(record.RESULTS.glob("emulator-*.json"))
needs_numba_cuda = pytest.mark.skipif(not HAS_NUMBA_CUDA, reason="needs numba-cuda")


class Scripted:
    """A worker that answers what it is told to."""

    def __init__(self, seconds, error=1e-7):
        self.seconds, self.error, self.asked = seconds, error, []

    def run(self, name, mode):
        self.asked.append(mode)
        return {"seconds": self.seconds[mode], "error": self.error}


def test_rows_are_ratios_of_medians():
    ours, theirs = Scripted({"plain": 0.05, "report": 0.25}), Scripted({"plain": 5.0})
    plain, report = measure(ours, theirs, "row_sum", rounds=3)
    assert (plain["op"], plain["pass"], plain["unit"]) == ("emulator_row_sum", "plain", UNIT)
    assert plain["value"] == pytest.approx(100) and report["value"] == pytest.approx(20)
    assert (plain["goal"], report["goal"]) == CASES["row_sum"].goals
    assert plain["met"] and not report["met"]
    assert plain["peers"]["numba_simulator"]["seconds"] == 5.0
    assert len(theirs.asked) == 4  # once to check, once for each round


def test_a_wrong_result_is_not_timed():
    ours, theirs = Scripted({"plain": 1.0, "report": 1.0}, error=0.1), Scripted({"plain": 5.0})
    with pytest.raises(RuntimeError, match="row_sum, plain: error 0.1 against float64"):
        measure(ours, theirs, "row_sum")
    ours.error = float("nan")
    with pytest.raises(RuntimeError, match="error nan"):
        measure(ours, theirs, "row_sum")


def test_an_unknown_case(capsys):
    with pytest.raises(SystemExit):
        main(["nonesuch"])
    assert "case: got 'nonesuch', allowed are vector_add, row_sum, tiled_product" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize("name", CASES)
def test_the_emulator_runs_each_case(name):
    with Worker(simulator=False) as worker:
        for mode in ("plain", "report"):
            assert worker.run(name, mode)["error"] < 1e-5


RUN_AND_LIST = """
import sys
from pathlib import Path

import numpy as np

from cuda_numba import bench_emulator, record

for case in bench_emulator.CASES.values():
    bench_emulator._emulated(case, "report")(*case.make(np.random.default_rng(0)))
files = (Path(m.__file__) for m in list(sys.modules.values()) if getattr(m, "__file__", None))
print(*(f.relative_to(record.PACKAGE).as_posix() for f in files if record.PACKAGE in f.parents))
"""


def test_the_sources_are_all_that_a_run_loads():
    """But for the package's list of names and the results files themselves."""
    done = subprocess.run(
        [sys.executable, "-c", RUN_AND_LIST],
        capture_output=True,
        text=True,
        cwd=record.PACKAGE.parent,
    )
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert "emulator/run.py" in loaded
    assert loaded - set(SOURCES) == {"__init__.py", "record.py"}


@needs_numba_cuda
def test_the_whole_command(tmp_path):
    path = tmp_path / "found.json"
    done = subprocess.run(
        [sys.executable, "-m", "cuda_numba.bench_emulator", "vector_add", "--rounds", "1",
         "--json", str(path)],
        capture_output=True, text=True, cwd=Path(bench_emulator.__file__).parent.parent,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results = record.read(path)
    assert results["command"] == "emulator" and results["device"] == bench_emulator.processor()
    assert [row["pass"] for row in results["rows"]] == ["plain", "report"]
    assert all(record.is_current(row, SOURCES) for row in results["rows"])
    assert results["rows"][0]["value"] > 5  # far below the goal: the machine may be busy


def test_the_recorded_results():
    assert RESULTS, "cuda_numba/results holds no emulator-*.json"
    for path in RESULTS:
        rows = record.read(path)["rows"]
        assert {(r["op"], r["pass"]) for r in rows} == {
            (f"emulator_{name}", mode) for name in CASES for mode in ("plain", "report")
        }
        for row in rows:
            assert row["goal"] in CASES[row["op"].removeprefix("emulator_")].goals
            assert record.label(row, SOURCES) in ("", "older kernel")
