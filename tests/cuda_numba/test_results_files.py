"""Results files are checked, and say when the kernel has changed since."""

import json

import pytest

from cuda_numba import record

ROW = {
    "sources": ("softmax.py",), "shape": {"rows": 4}, "dtype": "float32", "seconds": 1e-4,
    "error": 1e-7,
}  # fmt: skip


def test_goal_and_met():
    more = record.row("softmax", "forward", 2.9, "TB/s", goal=2.8, **ROW)
    less = record.row("launch", "launch", 9.0, "us", goal=6.0, **ROW)
    assert (more["met"], less["met"]) == (True, False)
    assert record.row("softmax", "forward", 2.9, "TB/s", **ROW)["met"] is None


def test_written_and_read(tmp_path):
    rows = [record.row("softmax", "forward", 2.9, "TB/s", goal=2.8, **ROW)]
    path = tmp_path / "new" / "kernels-x.json"
    written = record.write(path, "kernels", "X", rows, None)
    assert record.read(path) == written
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    "spoil",
    [
        {"met": False},
        {"error": None},
        {"value": float("inf")},
        {"peers": {"torch": {"value": 1.0}}},
        {"extra": 1},
    ],
)
def test_an_untrue_row_is_refused(tmp_path, spoil):
    row = record.row("softmax", "forward", 2.9, "TB/s", goal=2.8, **ROW) | spoil
    with pytest.raises(ValueError, match=r"rows\[0\]"):
        record.write(tmp_path / "x.json", "kernels", "X", [row], None)
    assert not list(tmp_path.iterdir())


def test_an_older_kernel_is_labelled():
    row = record.row("softmax", "forward", 2.9, "TB/s", **ROW)
    assert record.label(row, ROW["sources"]) == ""
    assert record.label(row, ("reduction.py",)) == "older kernel"


def test_the_committed_results_are_sound():
    paths = list(record.RESULTS.glob("kernels-*.json"))
    assert paths
    for path in paths:
        results = record.read(path)
        assert results["rows"]
        for row in results["rows"]:
            json.dumps(row, allow_nan=False)
            assert row["of_roof"] is None or 0 < row["of_roof"] < 1.2
