"""Exercises where they stand: the stubs in notebooks are current, solutions run in place."""

import json
import sys
from pathlib import Path

import pytest

from minilm import exercises
from minilm.exercises import notebook as book

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture(autouse=True)
def kernels_find_the_package(monkeypatch):
    """A kernel gets this checkout, installed or not."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PYDEVD_DISABLE_FILE_VALIDATION", "1")


def named(path):
    return path.stem


COMING: set[str] = set()  # exercises that wait for their notebook


def test_every_exercise_has_its_notebook():
    wanted = {exercises.get(name).notebook for name in exercises.names()}
    there = {path.stem for path in NOTEBOOKS}
    assert wanted - there == COMING  # nothing is missing, and nothing that has come is still here


@pytest.mark.parametrize("path", NOTEBOOKS, ids=named)
def test_stubs_are_current(path):
    for cell in book.read(path)["cells"]:
        name = book.exercise_of(cell)
        if name is not None:
            hint = f"run: python -m minilm.exercises.notebook {path.relative_to(ROOT).as_posix()}"
            assert book.source_of(cell) == book.stub_cell(name), hint


@pytest.mark.parametrize("path", NOTEBOOKS, ids=named)
def test_a_notebook_has_all_its_exercises_once(path):
    found = [book.exercise_of(cell) for cell in book.read(path)["cells"]]
    found = [name for name in found if name is not None]
    assert sorted(found) == sorted(exercises.names(path.stem))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=named)
def test_cells_after_a_stub_do_without_it(path):
    assert book.users_of_stubs(book.read(path)["cells"]) == []


@pytest.mark.parametrize("path", [p for p in NOTEBOOKS if exercises.names(p.stem)], ids=named)
def test_solutions_run_in_their_notebook(path):
    printed = book.run_solutions(path)
    assert sorted(printed) == sorted(exercises.names(path.stem))
    for name, line in printed.items():
        assert line.startswith(f"✓ {name}: ") and line.count("\n") == 1, line


# The machinery, on notebooks made here


def code(source, *tags):
    metadata = {"tags": list(tags)} if tags else {}
    return {"cell_type": "code", "metadata": metadata, "source": source, "outputs": [], "id": "x"}


def text(source):
    return {"cell_type": "markdown", "metadata": {}, "source": source, "id": "y"}


def write(path, *cells):
    content = {"cells": list(cells), "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def run_once(tmp_path_factory):
    """(folder, exercise → what it printed) of a notebook that has something of everything."""

    def cell_text(name):
        right = book.solution_cell(name)
        broken = {
            "heads.softmax": right.replace("amax(-1", "amax(0"),
            "start.surprisal": right + "\n1 / 0",
        }
        return broken.get(name, right)

    folder = tmp_path_factory.mktemp("made")
    path = write(
        folder / "made.ipynb",
        text("# Made"),
        code("import math\nimport torch\nfrom minilm import exercises"),
        code("open('never.txt', 'w').close()"),
        code("raise SystemError('not needed')"),
        book.new_cell("heads.softmax"),
        code("x = another_name = 3"),
        code("import sys\nopen('forced.txt', 'w').write(sys.executable)", "exercise-needs"),
        book.new_cell("batches.uniform_loss"),
        book.new_cell("heads.head"),
        book.new_cell("start.surprisal"),
        book.new_cell("training.loop_a"),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        return folder, book.run_solutions(path, cell_text)


def test_only_needed_cells_run_in_one_kernel_of_this_python(run_once):
    folder, printed = run_once
    for name in ("batches.uniform_loss", "heads.head"):
        assert printed[name].startswith(f"✓ {name}: ") and printed[name].count("\n") == 1
    assert not (folder / "never.txt").exists()
    kernel = Path((folder / "forced.txt").read_text(encoding="utf-8"))
    assert kernel.samefile(sys.executable)


def test_broken_solutions_and_missing_imports_are_seen(run_once):
    _, printed = run_once
    assert printed["heads.softmax"].startswith("✗ heads.softmax: ")
    assert printed["start.surprisal"].startswith("✓ start.surprisal: ")
    assert printed["start.surprisal"].endswith("ZeroDivisionError: division by zero")
    lines = book.solution_cell("training.loop_a").splitlines()
    number = next(n for n, line in enumerate(lines, 1) if "F." in line)
    missing = f"NameError: name 'F' is not defined in line {number} (loss = F.cross_entropy("
    assert missing in printed["training.loop_a"]  # the notebook does not import it


def test_a_failing_cell_is_an_error(tmp_path):
    path = write(
        tmp_path / "failing.ipynb",
        code("raise KeyError('no')\nfrom minilm import exercises"),
        book.new_cell("start.surprisal"),
    )
    with pytest.raises(RuntimeError, match=r"cell 0 of .*failing.ipynb: KeyError: 'no'"):
        book.run_solutions(path)


def test_a_notebook_without_exercises_needs_no_kernel(tmp_path):
    assert book.run_solutions(write(tmp_path / "made.ipynb", code("1 / 0"))) == {}


@pytest.mark.parametrize(
    ("source", "defined", "used"),
    [
        ("import torch.nn as nn, math", {"nn", "math"}, set()),
        ("import a.b\nfrom c import d as e", {"a", "e"}, set()),
        ("x, (y, *z) = f(w)", {"x", "y", "z"}, {"f", "w"}),
        ("def g(a, b=c):\n    return a + d", {"g"}, {"c", "d"}),
        ("def g():\n    h = k\n    return lambda q: q + h + m", {"g"}, {"k", "m"}),
        ("class A(B):\n    x = y\n    def f(self):\n        return z", {"A"}, {"B", "y", "z"}),
        ("for i in s:\n    with t as u:\n        v[i] = 1", {"i", "u"}, {"s", "t", "v", "i"}),
        ("[p * q for p in r]", set(), {"q", "r"}),
        ("n += 1", {"n"}, {"n"}),
        ("%matplotlib inline\n!pip list\nif a:\n    %timeit b\n    c = 1", {"c"}, {"a"}),
        ("print(f'{o:.2f}')", set(), {"print", "o"}),
    ],
)
def test_names_that_a_cell_defines_and_uses(source, defined, used):
    got = book.names_in(source)
    assert got[0] == defined
    assert used <= got[1] and not got[1] - used - defined


def test_cells_that_an_exercise_needs():
    cells = [
        code("import torch"),
        code("x = 1"),
        text("x = 5"),
        code("x = torch.ones(y)"),
        code("y = 2"),
        code("z = x"),
        code("_ = f(z)", "exercise"),
        code("x = 0"),
    ]
    assert book.needed_cells(cells, {6: "_ = f(z)"}) == [0, 3, 5, 6]
    assert book.needed_cells(cells, {6: "_ = f(y)"}) == [4, 6]
    cells[1]["metadata"] = {"tags": ["exercise-needs"]}
    assert book.needed_cells(cells, {6: "pass"}) == [1, 6]


def test_a_name_that_grows_needs_the_cell_before():
    cells = [code("n = 1"), code("n += 1"), code("print(n)", "exercise")]
    assert book.needed_cells(cells, {2: "print(n)"}) == [0, 1, 2]


def test_a_cell_that_uses_a_stub_is_found():
    stub = book.new_cell("heads.softmax")
    assert book.users_of_stubs([stub, code("my_softmax(x)")]) == [(1, "my_softmax")]
    assert book.users_of_stubs([stub, code("def f(x):\n    return my_softmax(x)")])
    assert book.users_of_stubs([code("my_softmax = 1\nprint(my_softmax)"), stub, stub]) == []
    assert book.users_of_stubs([stub, code("_ = 3"), code("print(_)")]) == []


def test_stubs_are_brought_up_to_date(tmp_path, capsys):
    old = book.new_cell("heads.softmax")
    old["source"] = ["def my_softmax(x):\n", "    ...\n"]
    old["outputs"], old["execution_count"] = [{"output_type": "stream"}], 7
    path = write(tmp_path / "made.ipynb", code("äöü = 1"), old, book.new_cell("heads.head"))
    before = path.read_bytes()
    book.main([str(path)])
    assert capsys.readouterr().out == f"{path}: heads.softmax\n"
    after = book.read(path)["cells"]
    assert book.source_of(after[1]) == book.stub_cell("heads.softmax")
    assert book.source_of(after[0]) == "äöü = 1" and after[1]["execution_count"] == 7
    assert "äöü" in path.read_text(encoding="utf-8") and path.read_bytes() != before
    written = path.read_bytes()
    book.main([str(path)])
    assert capsys.readouterr().out == f"{path}: up to date\n" and path.read_bytes() == written


def test_a_tag_without_a_name_is_an_error():
    for cell in (
        code("1", "exercise"),
        code("1") | {"metadata": {"minilm": {"exercise": "heads.softmax"}}},
        text("1") | {"metadata": book.new_cell("heads.softmax")["metadata"]},
    ):
        with pytest.raises(ValueError, match="an exercise is a code cell with the tag"):
            book.exercise_of(cell)
    assert book.exercise_of(code("1", "nbval-skip")) is None


def test_a_new_cell_is_valid(tmp_path):
    nbformat = pytest.importorskip("nbformat")
    cells = [book.new_cell(name) for name in exercises.names()]
    assert len({cell["id"] for cell in cells}) == len(cells)
    path = write(tmp_path / "all.ipynb", *cells)
    nbformat.validate(nbformat.read(path, as_version=4))
    assert [book.exercise_of(cell) for cell in cells] == exercises.names()


def test_stub_cells_are_formatted_python():
    for name in exercises.names():
        for source in (book.stub_cell(name), book.solution_cell(name)):
            compile(source, name, "exec")
            lines = source.splitlines()
            assert all(line == line.rstrip() and len(line) <= 100 for line in lines)
            assert lines[-1].startswith(f'_ = exercises.check("{name}", my_')
