"""Commands that run in the project's folder."""

import sys

import pytest

from tools import project


def test_a_failed_step_shows_the_end_of_its_output_and_keeps_a_log(tmp_path, monkeypatch):
    monkeypatch.setattr(project, "VENV", tmp_path)
    code = "import sys; [print('line', i) for i in range(99)]; sys.exit('the disk is full')"
    with pytest.raises(project.CourseError, match=r"line 98\n.*the disk is full\n.*try this"):
        project.step("a step", [sys.executable, "-c", code], hint="try this\n")
    log = (tmp_path / "setup.log").read_text(encoding="utf-8")
    assert log.startswith("$ ") and "line 0\n" in log
