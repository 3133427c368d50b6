"""Results files are checked, say when the kernel has changed since, and lose no row to another."""

import json

import pytest

from cuda_numba import bench, record
from cuda_numba.bench_cases import Case
from cuda_numba.sources import SOURCES

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


def test_rows_with_other_keys(tmp_path):
    """Another command's rows are checked by what it gives, and refused without."""

    def check(row):
        record.check_keys(row, ("kernel", "count"))

    path = tmp_path / "tools" / "counts-x.json"
    results = record.envelope("counts", "X", None) | {"rows": [{"kernel": "copy", "count": 3}]}
    record.save(path, results, check)
    assert record.read(path, check) == results
    with pytest.raises(ValueError, match=r"rows\[0\]: keys are"):
        record.read(path)
    with pytest.raises(ValueError, match=r"rows\[0\]: keys are"):
        record.save(path, results | {"rows": [{"kernel": "copy"}]}, check)
    assert record.read(path, check) == results


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


def test_every_operation_names_its_files():
    assert set(bench.CASES) == set(SOURCES)
    hashes = {record.source_sha256(*files) for files in SOURCES.values()}  # the files are there
    assert len(hashes) > len(SOURCES) / 2


def case(pass_, error=lambda: 1e-3, **options):
    ours = options.pop("ours", lambda i: None)
    return Case("softmax", pass_, {"rows": 4}, "float32", 4000, ours, error, 2, **options)


def fail(*_):
    raise ArithmeticError("one too many")


@pytest.fixture
def clock(monkeypatch):
    """No GPU: everything takes a nanosecond, a copy two."""

    def measure(contenders, sets):
        for call in contenders.values():
            call(0)
        return {name: 2e-9 if name == "copy" else 1e-9 for name in contenders}

    monkeypatch.setattr(bench.stopwatch, "measure", measure)
    monkeypatch.setattr(bench.stopwatch, "copy_contender", lambda nbytes, sets: lambda i: None)


class TestOneCaseFails:
    def test_the_others_go_on(self, clock, monkeypatch):
        """A wrong check, a kernel or peer that raises: each costs its own row only."""

        def cases():
            yield case("a")
            yield case("b", error=fail)
            yield case("c", ours=fail)
            yield case("d", peers={"torch": fail})
            yield case("e", goal=0.9)

        monkeypatch.setitem(bench.CASES, "softmax", cases)
        rows = list(bench.rows_of("softmax"))
        assert [row["pass"] for row in rows] == [*"abcde"]
        assert ["error_message" in row for row in rows] == [False, True, True, True, False]
        assert rows[1]["error_message"] == "ArithmeticError: one too many"
        assert rows[1]["shape"] == {"rows": 4}
        assert rows[4]["value"] == pytest.approx(4.0) and rows[4]["of_roof"] == pytest.approx(2)
        assert rows[4]["goal"] == pytest.approx(0.9 * 2.0)
        for row in rows:
            assert ("FAILED ArithmeticError" in bench.show(row)) == ("error_message" in row)

    def test_making_a_case_fails(self, clock, monkeypatch):
        """What came before it stays, and the operation is named."""

        def cases():
            yield case("a")
            fail()

        monkeypatch.setitem(bench.CASES, "softmax", cases)
        first, last = bench.rows_of("softmax")
        assert first["pass"] == "a" and (last["op"], last["pass"]) == ("softmax", None)
        assert last["error_message"] and "FAILED" in bench.show(last)

    def test_files(self, tmp_path, monkeypatch):
        """Failures are written beside the results until a run has none."""
        monkeypatch.setattr(bench, "driver_version", lambda: None)
        good = record.row("softmax", "forward", 2.9, "TB/s", **ROW)
        bad = bench.failed_row("softmax", case("b"), ArithmeticError("one too many"))
        path = tmp_path / "kernels-x.json"
        beside = tmp_path / "kernels-x.json.failed"
        assert bench.write(path, "X", [bad, good]) == 1
        assert record.read(path)["rows"] == [good]
        assert json.loads(beside.read_text(encoding="utf-8")) == [bad]
        assert bench.write(path, "X", [good]) == 0
        assert record.read(path)["rows"] == [good] and not beside.exists()

    def test_nothing_measured_leaves_the_old_results(self, tmp_path):
        path = tmp_path / "kernels-x.json"
        path.write_text("old", encoding="utf-8")
        assert bench.write(path, "X", [bench.failed_row("softmax", None, ValueError("no"))]) == 1
        assert path.read_text(encoding="utf-8") == "old"
