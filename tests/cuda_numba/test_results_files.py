"""Results files are checked, say when the kernel has changed since, and lose no row to another."""

import hashlib
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


# ---- what is hashed is the program

KERNEL = '''
"""A kernel."""

def kernel(x, n, out):
    """Adds n numbers."""
    total, names = 0.5, {"a": x, "b": n}
    for i in range(n):
        if i != 3:
            total += x[i] * names["b"]
        total -= 1
    out[0, 1] = f"{total:{n}.2f} of {n}", (n,), "of it"
'''


def changed(tmp_path, monkeypatch, old="", new=""):
    """The hash of KERNEL with `old` replaced."""
    assert old in KERNEL
    monkeypatch.setattr(record, "PACKAGE", tmp_path)
    (tmp_path / "kernel.py").write_bytes(KERNEL.replace(old, new).encode())
    return record.source_sha256("kernel.py")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("    total -= 1", "    # one less\n        total -= 1  # than before"),
        ('"""Adds n numbers."""', '"""Subtracts n numbers.\n\n    In turn.\n    """'),
        ('    """Adds n numbers."""\n', ""),
        ('"""A kernel."""', ""),
        ("total -= 1", '"a comment in effect"\n        total -= 1'),
        ("    for i", "\n\t\n    for i"),
        ("(x, n, out)", "(\n    x,\n    n,\n    out,\n)"),
        ("x[i] * names", "x[i] * \\\n  names"),
        (
            'x[i] * names["b"]',
            '(\n                x[i]\n                * names["b"]\n            )',
        ),
        ('{"a": x, "b": n}', '{\n        "a": x,\n        "b": n,\n    }'),
        ("    ", "  "),
        ('"of it"', "('of '\n        'it')"),
        ("\n", "\r\n"),
    ],
)
def test_comments_docstrings_and_layout_do_not_count(tmp_path, monkeypatch, old, new):
    assert changed(tmp_path, monkeypatch, old, new) == changed(tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("0.5", "0.25"),
        ("0.5", "5"),
        ("total -= 1", "total -= True"),
        ("total -= 1", "total += 1"),
        ("!= 3", "== 3"),
        ("x[i] *", "x[n] *"),
        ("(x, n, out)", "(n, x, out)"),
        ("        total -= 1", "    total -= 1"),
        ("        total -= 1", "            total -= 1"),
        ("        total -= 1\n", ""),
        ("(n,)", "(n)"),
        (":{n}.2f}", ":{n}.3f}"),
        ("{total:", "{total!r:"),
        ("} of {", "}  of {"),
        ('"of it"', '"of  it"'),
        ('"of it"', 'b"of it"'),
        ('"of it"', "of_it"),
        ('f"', '"'),
        ("out[0, 1]", "out[0][1]"),
    ],
)
def test_every_change_of_the_code_counts(tmp_path, monkeypatch, old, new):
    assert changed(tmp_path, monkeypatch, old, new) != changed(tmp_path, monkeypatch)


# What versions of Python read or write down in different ways, f-strings above all.
TRAPS = r"""
@decorate(1_000, 0x10, 1e3, 2j, u"u", b"\x00", ..., None, -1)
class Trap(Base, key=lambda *a, b=1, **c: (yield)):
    text: str = f"a{{b" "c" f"{x!r:>{width}.{1}f}{x = }}}" f"" "d", f"{x:{y}}", f"", f'''{
        x}\N{EM DASH}'''
    async def go(self, a, /, b, *, c=None) -> None:
        match a:
            case {"k": [None, *rest], **more} | Point(x=0) if rest:
                del a[1:2, ..., ::3]
        try:
            print("\U0001faea", "🫪", "é", *a, **{**b})
        except* ValueError as error:
            global z
        return [i async for i in a if not i], {*b}, a < b <= c, (w := 1)
"""


PROGRAM = "2f5ba640a8984d93c04e088c68e9f25f4d380c8971c7319d462e78f4b6c808e1"


def test_the_program_is_the_same_on_every_python():
    text = record.program(TRAPS.encode())
    assert hashlib.sha256(text.encode()).hexdigest() == PROGRAM


def test_other_files_are_hashed_as_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "PACKAGE", tmp_path)
    hashes = []
    for data in (b"a = 1\n", b"a = 1\r\n", b"a = 1  # one\n"):
        (tmp_path / "kernel.ptx").write_bytes(data)
        hashes.append(record.source_sha256("kernel.ptx"))
    assert hashes[0] == hashes[1] != hashes[2]


def test_every_file_counts_in_its_place(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "PACKAGE", tmp_path)
    for name in "ab":
        (tmp_path / f"{name}.py").write_text(f"{name} = 1\n")
    names = [("a.py",), ("b.py",), ("a.py", "b.py"), ("b.py", "a.py")]
    assert len({record.source_sha256(*n) for n in names}) == 4


# ---- the committed files


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


class TestUnits:
    """A row counts FLOPs where a case has them, else bytes."""

    def test_bytes(self, clock):
        row = bench.run_case(case("a", goal=0.9))
        assert row["unit"] == "TB/s" and row["value"] == pytest.approx(4.0)
        assert row["of_roof"] == pytest.approx(2) and row["goal"] == pytest.approx(0.9 * 2.0)

    def test_flops(self, clock, monkeypatch):
        monkeypatch.setattr(bench.stopwatch, "matrix_rate", lambda: 12.0)
        options = {"flops": 6000, "peers": {"torch": lambda i: None}}
        row = bench.run_case(case("a", **options, beats={"torch": 1.05}, goal_value=5.0))
        assert row["unit"] == "TFLOP/s" and row["value"] == pytest.approx(6.0)
        assert row["of_roof"] == pytest.approx(0.5) and set(row["peers"]) == {"torch"}
        assert row["goal"] == pytest.approx(1.05 * 6.0) and not row["met"]
        assert bench.run_case(case("a", **options, goal_value=5.0))["met"]


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
