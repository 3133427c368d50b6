"""The committed notebooks are run, in order, in their one form, and small; nbval does the rest.

`problems` holds the rules; each has a fault planted against it, so that none can fall asleep.
"""

import base64
import copy
import re

import nbformat
import pytest

from tools.notebooks import WIDGET, normalise
from tools.project import ROOT

FILES = sorted((ROOT / "notebooks").glob("*.ipynb"))
MOST_CELLS, MOST_BYTES, MOST_FIGURE_BYTES = 39, 500_000, 100_000


def tags(cell) -> list[str]:
    return cell["metadata"].get("tags", [])


def in_committed_form(notebook, name: str) -> str:
    """The text of the notebook as `course.py run` would write it."""
    normal = normalise(copy.deepcopy(notebook), name)
    return nbformat.writes(nbformat.from_dict(normal)).rstrip("\n") + "\n"


def problems(text: str, name: str) -> list[str]:
    """What is wrong with the notebook `text`, one short sentence each."""
    notebook = nbformat.reads(text, as_version=4)
    found = []
    if len(text.encode()) >= MOST_BYTES:
        found.append(f"{len(text.encode())} bytes: too large")
    if len(notebook["cells"]) > MOST_CELLS:
        found.append(f"{len(notebook['cells'])} cells: too many")
    if text != in_committed_form(notebook, name):
        found.append("not in the form that `course.py run` writes")
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    ran = [cell["execution_count"] for cell in code if "nbval-skip" not in tags(cell)]
    if ran != list(range(1, len(ran) + 1)):
        found.append(f"not run in order from the top: {ran}")
    for number, cell in enumerate(code, 1):
        found += [f"code cell {number}: {problem}" for problem in cell_problems(cell)]
    return found


def cell_problems(cell) -> list[str]:
    found = []
    source = cell["source"]
    if not source.strip():
        found.append("empty")
    if source.rstrip().endswith(";"):
        found.append("ends in ;")
    if re.search(r"^\s*%%?time", source, re.M):
        found.append("uses %time")
    for output in cell["outputs"]:
        if output["output_type"] == "error" and "raises-exception" not in tags(cell):
            found.append("ends in an error")
        if output.get("name") == "stderr":
            found.append("writes on stderr")
        for kind, data in output.get("data", {}).items():
            if kind in ("image/png", "image/jpeg"):
                data = base64.b64decode(data)
            if kind.startswith("image/") and len(data) >= MOST_FIGURE_BYTES:
                found.append(f"a figure of {len(data)} bytes: too large")
    return found


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_notebook_is_committed_as_it_should_be(path):
    assert problems(path.read_bytes().decode("utf-8"), path.stem) == []


def test_the_course_has_notebooks_and_their_numbers_are_unique():
    assert "00_start" in [path.stem for path in FILES]
    numbers = [path.name[:2] for path in FILES]
    assert len(set(numbers)) == len(numbers)
    assert all(re.fullmatch(r"\d\d_[a-z0-9_]+", path.stem) for path in FILES)


def good():
    """A small notebook that breaks no rule."""
    png = base64.b64encode(b"not a picture, but small").decode()
    cells = [
        nbformat.v4.new_markdown_cell("# Title", id="a"),
        nbformat.v4.new_code_cell(
            "print(1)\n1",
            id="b",
            execution_count=1,
            outputs=[
                nbformat.v4.new_output("stream", name="stdout", text="1\n"),
                nbformat.v4.new_output(
                    "execute_result", data={"text/plain": "1"}, execution_count=1
                ),
            ],
        ),
        nbformat.v4.new_code_cell(
            "1 / 0",
            id="c",
            execution_count=2,
            metadata={"tags": ["raises-exception"]},
            outputs=[nbformat.v4.new_output("error", ename="E", evalue="", traceback=[])],
        ),
        nbformat.v4.new_code_cell("gpu()", id="d", metadata={"tags": ["nbval-skip"]}),
        nbformat.v4.new_code_cell(
            "figure()",
            id="e",
            execution_count=3,
            metadata={"minilm": {"exercise": "x"}},
            outputs=[nbformat.v4.new_output("display_data", data={"image/png": png})],
        ),
    ]
    notebook = nbformat.v4.new_notebook(cells=cells)
    return nbformat.from_dict(normalise(notebook, "good"))


def test_the_good_notebook_is_good():
    assert problems(in_committed_form(good(), "good"), "good") == []


def unrun(nb):
    nb.cells[1].execution_count = None


def out_of_order(nb):
    nb.cells[1].execution_count, nb.cells[4].execution_count = 3, 1


def run_twice(nb):
    for cell in nb.cells:
        if cell.get("execution_count"):
            cell["execution_count"] += 5


def untagged_error(nb):
    nb.cells[2].metadata.tags = ["nbval-ignore-output"]


def stderr(nb):
    nb.cells[1].outputs[0].name = "stderr"


def semicolon(nb):
    nb.cells[1].source += ";\n"


def timed(nb):
    nb.cells[1].source = "%%time\n" + nb.cells[1].source


def empty_cell(nb):
    nb.cells[3].source = " \n"


def many_cells(nb):
    for i in range(40):
        nb.cells.append(nbformat.v4.new_markdown_cell("more", id=f"more{i}"))


def large_figure(nb):
    nb.cells[4].outputs[0].data["image/png"] = base64.b64encode(bytes(100_000)).decode()


def large_svg(nb):
    nb.cells[4].outputs[0].data = {"image/svg+xml": "x" * 100_000}


def large_notebook(nb):
    nb.cells[0].source = "x" * 500_000


@pytest.mark.parametrize(
    ("plant", "expected"),
    [
        (unrun, "not run in order"),
        (out_of_order, "not run in order"),
        (run_twice, "not run in order"),
        (untagged_error, "code cell 2: ends in an error"),
        (stderr, "code cell 1: writes on stderr"),
        (semicolon, "code cell 1: ends in ;"),
        (timed, "code cell 1: uses %time"),
        (empty_cell, "code cell 3: empty"),
        (many_cells, "too many"),
        (large_figure, "a figure of 100000 bytes: too large"),
        (large_svg, "a figure of 100000 bytes: too large"),
        (large_notebook, "bytes: too large"),
    ],
)
def test_a_planted_fault_is_the_one_that_is_found(plant, expected):
    notebook = good()
    plant(notebook)
    (problem,) = problems(in_committed_form(notebook, "good"), "good")
    assert expected in problem


def time_stamps(nb):
    nb.cells[1].metadata["execution"] = {"iopub.execute_input": "2026-11-24T10:00:00Z"}


def interpreter(nb):
    nb.metadata["language_info"] = {"name": "python", "version": "3.11.7"}


def widget_state(nb):
    nb.metadata["widgets"] = {"application/vnd.jupyter.widget-state+json": {}}


def other_kernel(nb):
    nb.metadata.kernelspec["display_name"] = "minilm (.venv)"


def widget_view(nb):
    nb.cells[4].outputs[0].data[WIDGET] = {"model_id": "5f1c"}


def split_stream(nb):
    nb.cells[1].outputs.insert(1, nbformat.v4.new_output("stream", name="stdout", text="2\n"))


def count_on_a_skipped_cell(nb):
    nb.cells[3].execution_count = 7


@pytest.mark.parametrize(
    "plant",
    [
        time_stamps,
        interpreter,
        widget_state,
        other_kernel,
        widget_view,
        split_stream,
        count_on_a_skipped_cell,
    ],
)
def test_another_form_is_found_and_made_normal(plant):
    notebook = good()
    plant(notebook)
    text = nbformat.writes(notebook).rstrip("\n") + "\n"
    assert problems(text, "good") == ["not in the form that `course.py run` writes"]
    assert problems(in_committed_form(notebook, "good"), "good") == []


def test_each_cell_gets_an_id_of_its_own_and_keeps_it():
    notebook = {"metadata": {}, "cells": []}
    for given in ("a", "a", None, ""):
        cell = {"cell_type": "markdown", "metadata": {}, "source": ""}
        notebook["cells"].append(cell if given is None else dict(cell, id=given))
    normalise(notebook, "x")
    first = [cell["id"] for cell in notebook["cells"]]
    assert first[0] == "a" and len(set(first)) == 4 and all(first)
    normalise(notebook, "another name")
    assert [cell["id"] for cell in notebook["cells"]] == first


def test_what_a_reader_needs_is_kept():
    notebook = good()
    before = copy.deepcopy(notebook)
    normalise(notebook, "good")
    assert notebook == before  # and so a second time changes nothing
    assert notebook.cells[2].metadata.tags == ["raises-exception"]
    assert notebook.cells[4].metadata.minilm == {"exercise": "x"}
    assert [cell.get("execution_count") for cell in notebook.cells] == [None, 1, 2, None, 3]
    assert notebook.cells[1].outputs[0].text == "1\n"
