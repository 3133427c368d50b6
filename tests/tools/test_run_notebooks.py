"""Notebooks are found by their names, run, and written only where they run through."""

import json

import pytest

from tools import notebooks, project


def test_notebooks_are_found_by_the_start_of_their_name(tmp_path, monkeypatch):
    folder = tmp_path / "notebooks"
    folder.mkdir()
    for name in ("00_start", "03_attention_head", "01_bytes"):
        (folder / f"{name}.ipynb").write_text("{}", encoding="utf-8")
    monkeypatch.setattr(project, "ROOT", tmp_path)
    stems = [path.stem for path in notebooks.notebook_paths([])]
    assert stems == ["00_start", "01_bytes", "03_attention_head"]
    assert notebooks.notebook_paths(["03"]) == [folder / "03_attention_head.ipynb"]
    assert notebooks.notebook_paths([str(folder / "01_bytes.ipynb")]) == [folder / "01_bytes.ipynb"]
    with pytest.raises(project.CourseError, match="no notebook 7"):
        notebooks.notebook_paths(["7"])


NOTEBOOK = """{"cells": [
 {"cell_type": "code", "execution_count": null, "metadata": {"scrolled": true}, "outputs": [],
  "source": SOURCE, "id": "one"},
 {"cell_type": "code", "execution_count": null, "metadata": {"tags": ["nbval-skip"]},
  "outputs": [], "source": "raise SystemError", "id": "two"}],
 "metadata": {"language_info": {"version": "3"}}, "nbformat": 4, "nbformat_minor": 5}"""


def run_notebook(path, source):
    path.write_text(NOTEBOOK.replace("SOURCE", json.dumps(source)), encoding="utf-8")
    return notebooks.run_notebooks([str(path)])


@pytest.fixture
def steady(monkeypatch):
    """run_notebooks sets the environment for its kernels; give it back afterwards."""
    for name in (*notebooks.STEADY, "PYTHONUTF8"):
        monkeypatch.setenv(name, "")


def test_run_writes_outputs_in_committed_form(tmp_path, steady):
    path = tmp_path / "small.ipynb"
    source = "import os\nprint(os.environ['PYTHONHASHSEED'], os.environ['OMP_NUM_THREADS'])"
    assert run_notebook(path, source) == 0
    text = path.read_bytes().decode("utf-8")
    cell, skipped = json.loads(text)["cells"]
    assert cell["outputs"][0]["text"] == ["0 1\n"] and cell["execution_count"] == 1
    assert cell["metadata"] == {} and "language_info" not in text and "\r" not in text
    assert skipped["outputs"] == [] and skipped["execution_count"] is None


@pytest.mark.parametrize("source", ["1 / 0", "import sys\nprint('oops', file=sys.stderr)"])
def test_run_leaves_a_notebook_that_fails_as_it_was(tmp_path, steady, source, capsys):
    path = tmp_path / "small.ipynb"
    assert run_notebook(path, source) == 1
    assert path.read_text(encoding="utf-8") == NOTEBOOK.replace("SOURCE", json.dumps(source))
    out = capsys.readouterr().out
    assert "small.ipynb: failed" in out and ("ZeroDivisionError" in out or "oops" in out)
