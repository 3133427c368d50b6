"""Which Python runs the course, and what one that cannot is told."""

import shutil
import subprocess
import sys

import pytest

from tools import interpreter, project


@pytest.mark.parametrize("version", [(3, 11, 0), (3, 12, 1), (3, 13, 0), (3, 14, 2)])
def test_a_suitable_python_is_no_problem(version):
    assert interpreter.version_problem(version, "Linux") is None


@pytest.mark.parametrize(
    ("version", "system", "tools", "lines"),
    [
        ((3, 9, 6), "Darwin", [], ["brew install python@3.13", "python3.13 course.py test"]),
        ((3, 10, 4), "Linux", ["apt-get"], ["sudo apt install python3.11 python3.11-venv"]),
        ((3, 6, 8), "Linux", ["dnf"], ["sudo dnf install python3.13", "python3.13 course.py test"]),
        ((3, 8, 0), "Linux", [], ["uv python install 3.13", "python3.13 course.py test"]),
        (
            (3, 15, 0),
            "Windows",
            [],
            ["winget install Python.Python.3.13", "py -3.13 course.py test"],
        ),
    ],
)
def test_another_python_is_told_what_to_install(version, system, tools, lines):
    which = {tool: f"/usr/bin/{tool}" for tool in tools}.get
    message = interpreter.version_problem(version, system, which=which, arguments="test")
    assert ".".join(map(str, version)) in message and "3.11" in message
    for line in lines:
        assert f"    {line}\n" in message + "\n"


def test_a_suitable_python_that_is_installed_is_named():
    message = interpreter.version_problem((3, 9, 6), "Darwin", ["python3.12"], arguments="lab")
    assert message.endswith("    python3.12 course.py lab") and "brew" not in message


def test_only_a_python_that_starts_is_suggested():
    installed = [["python3.11"], ["python3.14"], ["py", "-3.12"]]
    assert interpreter.suitable_pythons("Linux", runs=installed.__contains__) == [
        "python3.11",
        "python3.14",
    ]
    assert interpreter.suitable_pythons("Windows", runs=installed.__contains__) == ["py -3.12"]
    assert interpreter.suitable_pythons("Darwin", runs=lambda command: False) == []


def test_the_gate_stops_an_old_interpreter_before_anything_else(tmp_path):
    shutil.copy(project.ROOT / "course.py", tmp_path)
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(project.ROOT / "tools", tmp_path / "tools", ignore=ignore)
    path = tmp_path / "tools" / "interpreter.py"
    source = path.read_text(encoding="utf-8")
    old = source.replace("OLDEST, NEWEST = (3, 11), (3, 14)", "OLDEST, NEWEST = (4, 0), (4, 1)")
    assert old != source
    path.write_text(old, encoding="utf-8")
    command = [sys.executable, "-S", tmp_path / "course.py", "doctor", "--not-a-flag"]
    result = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    assert result.returncode == 1 and result.stdout == ""
    assert result.stderr.startswith("The course needs Python 3.11")
    assert "course.py doctor" in result.stderr
