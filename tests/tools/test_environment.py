"""`.venv` without a network: what would be installed, and when it is made anew."""

import json
import shutil
import sys

import pytest

from tools import environment, project


def test_torch_plan():
    pin = ["torch==2.13.0"]

    def from_index(index):
        return ["--index-url", index, "--no-deps", "--retries", "0", "--timeout", "5", *pin]

    cpu = from_index("https://download.pytorch.org/whl/cpu")
    own = {"MINILM_TORCH_INDEX": "https://example.org/torch"}
    none = {"MINILM_TORCH_INDEX": ""}
    assert environment.torch_plan("Linux", False, {}) == [cpu, pin]
    assert environment.torch_plan("Linux", True, {}) == [pin]
    assert environment.torch_plan("Darwin", False, {}) == [pin]
    assert environment.torch_plan("Windows", False, {}) == [pin]
    assert environment.torch_plan("Linux", False, none) == [pin]
    for system, driver in (("Linux", False), ("Linux", True), ("Windows", True)):
        plan = environment.torch_plan(system, driver, own)
        assert plan == [from_index("https://example.org/torch"), pin]


NEEDS = """[build-system]
requires = ["hatchling"]
[project]
name = "x"
"""


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A project folder in which set-up only notes what it would run, and makes a fake .venv."""
    (tmp_path / "pyproject.toml").write_text(NEEDS, encoding="utf-8")
    ran, state = [], {"starts": True, "fails": ""}

    def step(title, command, hint=""):
        line = " ".join(str(part) for part in command)
        ran.append(line)
        if state["fails"] and state["fails"] in line:
            raise project.CourseError(f"{title} failed")
        if " -m venv" in line:
            (tmp_path / ".venv").mkdir()

    monkeypatch.setattr(project, "ROOT", tmp_path)
    monkeypatch.setattr(project, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(project, "step", step)
    monkeypatch.setattr(environment, "starts", lambda interpreter: state["starts"])
    monkeypatch.setattr(environment, "has_nvidia_driver", lambda: True)

    def setup(level="lab"):
        ran.clear()
        environment.setup(level)
        return ["venv" if " -m venv" in line else line.split()[-1] for line in ran]

    setup.state, setup.folder, setup.ran = state, tmp_path, ran
    return setup


ALL = ["venv", "torch==2.13.0", ".[lab,ptx]", "import minilm, matplotlib.font_manager"]
FRESH = [line.split()[-1] for line in ALL]


def test_a_finished_venv_is_left_alone(machine):
    assert machine() == FRESH
    assert machine() == []


def test_a_half_made_venv_is_made_anew(machine):
    (machine.folder / ".venv").mkdir()
    (machine.folder / ".venv" / "left-over").write_text("", encoding="utf-8")
    assert machine() == FRESH
    assert not (machine.folder / ".venv" / "left-over").exists()


@pytest.mark.parametrize("fails", ["-m venv", "torch==2.13.0", ".[lab,ptx]", "import minilm"])
def test_a_set_up_that_stops_half_way_is_begun_again(machine, fails):
    machine.state["fails"] = fails
    with pytest.raises(project.CourseError):
        machine()
    machine.state["fails"] = ""
    assert machine() == FRESH
    assert machine() == []


def change_stamp(machine, **changes):
    path = machine.folder / ".venv" / "minilm-stamp.json"
    stamp = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(dict(stamp, **changes)), encoding="utf-8")


@pytest.mark.parametrize(
    "changes", [{"python": "cpython-310-x86_64"}, {"folder": "/somewhere/else"}]
)
def test_after_a_change_of_interpreter_or_folder_it_is_made_anew(machine, changes):
    machine("dev")
    change_stamp(machine, **changes)
    assert machine() == FRESH


@pytest.mark.parametrize("text", ["{", "[]", '{"python": "cpython-311-x86_64"}'])
def test_a_damaged_stamp_counts_as_none(machine, text):
    machine()
    (machine.folder / ".venv" / "minilm-stamp.json").write_text(text, encoding="utf-8")
    assert machine() == FRESH


def test_when_its_python_no_longer_starts_it_is_made_anew(machine):
    machine()
    machine.state["starts"] = False
    assert machine() == FRESH


def test_after_a_change_of_pyproject_it_is_added_to(machine):
    machine("dev")
    settings = machine.folder / "pyproject.toml"
    settings.write_text(NEEDS + "# a remark\n[tool.ruff]\n", encoding="utf-8")
    assert machine("lab") == []
    settings.write_text(NEEDS + 'version = "2"\n', encoding="utf-8")
    assert machine("lab") == [".[dev]", FRESH[-1]]
    assert machine("dev") == []


def test_after_a_change_of_the_torch_pin_torch_is_installed_again(machine, monkeypatch):
    machine()
    monkeypatch.setattr(environment, "TORCH", "torch==2.14.0")
    assert machine() == ["torch==2.14.0", ".[lab,ptx]", FRESH[-1]]


def test_without_room_nothing_is_installed(machine, monkeypatch):
    usage = shutil.disk_usage(machine.folder)._replace(free=10**9)
    monkeypatch.setattr(environment.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(project.CourseError, match=r"only 1\.0 GB are free"):
        machine()
    assert machine.ran == [] and not (machine.folder / ".venv").exists()


def test_dev_is_added_to_lab_and_not_taken_away(machine):
    machine("lab")
    assert machine("dev") == [".[dev]", FRESH[-1]]
    assert machine("lab") == machine("dev") == []


def test_torch_from_pypi_when_the_cpu_index_does_not_answer(machine, monkeypatch, capsys):
    monkeypatch.setattr(environment, "has_nvidia_driver", lambda: False)
    monkeypatch.setattr(environment.platform, "system", lambda: "Linux")
    monkeypatch.delenv("MINILM_TORCH_INDEX", raising=False)
    machine.state["fails"] = "download.pytorch.org"
    assert machine() == ["venv", "torch==2.13.0", "torch==2.13.0", *FRESH[2:]]
    assert "--retries 0 --timeout 5" in machine.ran[1] and "index" not in machine.ran[2]
    assert "GB to download" in capsys.readouterr().out.splitlines()[0]


def test_starts_tells_a_python_from_none(tmp_path):
    assert environment.starts(sys.executable)
    assert not environment.starts(tmp_path / "gone")


def test_doctor_installs_nothing(machine, capsys):
    assert environment.doctor() == 0
    assert "none yet" in capsys.readouterr().out
    (machine.folder / ".venv").mkdir()
    assert environment.doctor() == 0
    assert "half-made" in capsys.readouterr().out
    assert machine.ran == [] and list((machine.folder / ".venv").iterdir()) == []
