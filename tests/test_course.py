"""course.py without a network: what it says, what it would install, when it makes `.venv` anew."""

import ast
import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile

import pytest

import course

SOURCE = (course.ROOT / "course.py").read_text(encoding="utf-8")
PROJECT = tomllib.loads((course.ROOT / "pyproject.toml").read_text(encoding="utf-8"))


# ---- the interpreter


@pytest.mark.parametrize("version", [(3, 11, 0), (3, 12, 1), (3, 13, 0), (3, 14, 2)])
def test_a_suitable_python_is_no_problem(version):
    assert course.version_problem(version, "Linux") is None


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
    message = course.version_problem(version, system, which=which, arguments="test")
    assert ".".join(map(str, version)) in message and "3.11" in message
    for line in lines:
        assert f"    {line}\n" in message + "\n"


def test_a_suitable_python_that_is_installed_is_named():
    message = course.version_problem((3, 9, 6), "Darwin", ["python3.12"], arguments="lab")
    assert message.endswith("    python3.12 course.py lab") and "brew" not in message


def test_only_a_python_that_starts_is_suggested():
    installed = [["python3.11"], ["python3.14"], ["py", "-3.12"]]
    assert course.suitable_pythons("Linux", runs=installed.__contains__) == [
        "python3.11",
        "python3.14",
    ]
    assert course.suitable_pythons("Windows", runs=installed.__contains__) == ["py -3.12"]
    assert course.suitable_pythons("Darwin", runs=lambda command: False) == []


def test_the_gate_stops_an_old_interpreter_before_anything_else():
    old = SOURCE.replace("OLDEST, NEWEST = (3, 11), (3, 14)", "OLDEST, NEWEST = (4, 0), (4, 1)")
    assert old != SOURCE
    command = [sys.executable, "-I", "-", "doctor"]
    result = subprocess.run(command, input=old, capture_output=True, text=True, encoding="utf-8")
    assert result.returncode == 1 and result.stdout == ""
    assert result.stderr.startswith("The course needs Python 3.11")
    assert "course.py doctor" in result.stderr


def too_new(source: str) -> list[str]:
    """What Python 3.6 could not parse. `feature_version` is best effort, hence the second look."""
    tree = ast.parse(source, feature_version=(3, 6))
    new = (ast.NamedExpr, ast.Match, ast.TryStar)
    found = [type(node).__name__ for node in ast.walk(tree) if isinstance(node, new)]
    for node in ast.walk(tree):
        if isinstance(node, ast.arguments) and node.posonlyargs:
            found.append("positional-only arguments")
    return found + re.findall(r"\{\w+=\}|^\s*with \($", source, re.M)


def test_python_3_6_can_parse_the_file():
    assert too_new(SOURCE) == []


@pytest.mark.parametrize(
    "line",
    ["(x := 1)", "def f(a, /): pass", "print(f'{x=}')", "match x:\n    case 1: pass"],
)
def test_what_python_3_6_cannot_parse_is_caught(line):
    try:
        assert too_new(line) != []
    except SyntaxError:
        pass


def test_only_the_standard_library_is_imported_at_the_top():
    names = {
        name.split(".")[0]
        for node in ast.parse(SOURCE).body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
        )
    }
    assert names <= set(sys.stdlib_module_names)


# ---- set-up


def test_torch_plan():
    pin = ["torch==2.13.0"]

    def from_index(index):
        return ["--index-url", index, "--no-deps", "--retries", "0", "--timeout", "5", *pin]

    cpu = from_index("https://download.pytorch.org/whl/cpu")
    own = {"MINILM_TORCH_INDEX": "https://example.org/torch"}
    none = {"MINILM_TORCH_INDEX": ""}
    assert course.torch_plan("Linux", False, {}) == [cpu, pin]
    assert course.torch_plan("Linux", True, {}) == [pin]
    assert course.torch_plan("Darwin", False, {}) == [pin]
    assert course.torch_plan("Windows", False, {}) == [pin]
    assert course.torch_plan("Linux", False, none) == [pin]
    for system, driver in (("Linux", False), ("Linux", True), ("Windows", True)):
        plan = course.torch_plan(system, driver, own)
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
            raise course.CourseError(f"{title} failed")
        if " -m venv" in line:
            (tmp_path / ".venv").mkdir()

    monkeypatch.setattr(course, "ROOT", tmp_path)
    monkeypatch.setattr(course, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(course, "step", step)
    monkeypatch.setattr(course, "starts", lambda interpreter: state["starts"])
    monkeypatch.setattr(course, "has_nvidia_driver", lambda: True)

    def setup(level="lab"):
        ran.clear()
        course.setup(level)
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
    with pytest.raises(course.CourseError):
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
    monkeypatch.setattr(course, "TORCH", "torch==2.14.0")
    assert machine() == ["torch==2.14.0", ".[lab,ptx]", FRESH[-1]]


def test_without_room_nothing_is_installed(machine, monkeypatch):
    usage = shutil.disk_usage(machine.folder)._replace(free=10**9)
    monkeypatch.setattr(course.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(course.CourseError, match=r"only 1\.0 GB are free"):
        machine()
    assert machine.ran == [] and not (machine.folder / ".venv").exists()


def test_dev_is_added_to_lab_and_not_taken_away(machine):
    machine("lab")
    assert machine("dev") == [".[dev]", FRESH[-1]]
    assert machine("lab") == machine("dev") == []


def test_torch_from_pypi_when_the_cpu_index_does_not_answer(machine, monkeypatch, capsys):
    monkeypatch.setattr(course, "has_nvidia_driver", lambda: False)
    monkeypatch.setattr(course.platform, "system", lambda: "Linux")
    monkeypatch.delenv("MINILM_TORCH_INDEX", raising=False)
    machine.state["fails"] = "download.pytorch.org"
    assert machine() == ["venv", "torch==2.13.0", "torch==2.13.0", *FRESH[2:]]
    assert "--retries 0 --timeout 5" in machine.ran[1] and "index" not in machine.ran[2]
    assert "GB to download" in capsys.readouterr().out.splitlines()[0]


def test_a_failed_step_shows_the_end_of_its_output_and_keeps_a_log(tmp_path, monkeypatch):
    monkeypatch.setattr(course, "VENV", tmp_path)
    code = "import sys; [print('line', i) for i in range(99)]; sys.exit('the disk is full')"
    with pytest.raises(course.CourseError, match=r"line 98\n.*the disk is full\n.*try this"):
        course.step("a step", [sys.executable, "-c", code], hint="try this\n")
    log = (tmp_path / "setup.log").read_text(encoding="utf-8")
    assert log.startswith("$ ") and "line 0\n" in log


def test_starts_tells_a_python_from_none(tmp_path):
    assert course.starts(sys.executable)
    assert not course.starts(tmp_path / "gone")


# ---- the other commands


@pytest.mark.parametrize(
    ("system", "env", "screen"),
    [
        ("Linux", {}, False),
        ("Linux", {"DISPLAY": ":0"}, True),
        ("Linux", {"WAYLAND_DISPLAY": "wayland-0"}, True),
        ("Linux", {"DISPLAY": ":0", "SSH_CONNECTION": "1 2 3 4"}, False),
        ("Darwin", {}, True),
        ("Darwin", {"SSH_CONNECTION": "1 2 3 4"}, False),
        ("Windows", {}, True),
    ],
)
def test_a_browser_only_where_there_is_a_screen(system, env, screen):
    assert course.has_screen(system, env) is screen


def test_free_port_passes_over_one_that_is_taken():
    with course.socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert course.free_port(port) > port
        with pytest.raises(course.CourseError, match="--port"):
            course.free_port(port, tries=1)


def test_notebooks_are_found_by_the_start_of_their_name(tmp_path, monkeypatch):
    folder = tmp_path / "notebooks"
    folder.mkdir()
    for name in ("00_start", "03_attention_head", "01_bytes"):
        (folder / f"{name}.ipynb").write_text("{}", encoding="utf-8")
    monkeypatch.setattr(course, "ROOT", tmp_path)
    stems = [path.stem for path in course.notebook_paths([])]
    assert stems == ["00_start", "01_bytes", "03_attention_head"]
    assert course.notebook_paths(["03"]) == [folder / "03_attention_head.ipynb"]
    assert course.notebook_paths([str(folder / "01_bytes.ipynb")]) == [folder / "01_bytes.ipynb"]
    with pytest.raises(course.CourseError, match="no notebook 7"):
        course.notebook_paths(["7"])


NOTEBOOK = """{"cells": [
 {"cell_type": "code", "execution_count": null, "metadata": {"scrolled": true}, "outputs": [],
  "source": SOURCE, "id": "one"},
 {"cell_type": "code", "execution_count": null, "metadata": {"tags": ["nbval-skip"]},
  "outputs": [], "source": "raise SystemError", "id": "two"}],
 "metadata": {"language_info": {"version": "3"}}, "nbformat": 4, "nbformat_minor": 5}"""


def run_notebook(path, source):
    path.write_text(NOTEBOOK.replace("SOURCE", json.dumps(source)), encoding="utf-8")
    return course.run_notebooks([str(path)])


@pytest.fixture
def steady(monkeypatch):
    """run_notebooks sets the environment for its kernels; give it back afterwards."""
    for name in (*course.STEADY, "PYTHONUTF8"):
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


def test_doctor_installs_nothing(machine, capsys):
    assert course.doctor() == 0
    assert "none yet" in capsys.readouterr().out
    (machine.folder / ".venv").mkdir()
    assert course.doctor() == 0
    assert "half-made" in capsys.readouterr().out
    assert machine.ran == [] and list((machine.folder / ".venv").iterdir()) == []


def test_the_result_of_test_is_that_of_its_stages(monkeypatch, capsys):
    def start(command, **options):
        code = codes.get(command[-2], 0)
        lines = f"print('first'); print('=== 3 passed in 1.00s ==='); exit({code})"
        return subprocess.Popen([sys.executable, "-c", lines], stdout=subprocess.PIPE, text=True)

    codes = {}
    monkeypatch.setattr(course, "setup", lambda level: None)
    monkeypatch.setattr(course, "start", start)
    assert course.test() == 0
    out = capsys.readouterr().out
    assert (
        out.count("passed  ") == 5 and "3 passed in 1.00s" in out and out.endswith("all passed\n")
    )
    codes["--check"] = 1  # of `ruff format --check .`
    assert course.test() == 1
    assert "format     FAILED" in (out := capsys.readouterr().out)
    assert out.endswith("failed: format\n") and out.count("== ") >= 5


def test_an_error_is_one_message_and_exit_code_1(monkeypatch, capsys):
    def fails(level):
        raise course.CourseError("the cause, and what to do")

    monkeypatch.setattr(course, "setup", fails)
    assert course.main(["setup"]) == 1
    captured = capsys.readouterr()
    assert captured.err == "course.py: the cause, and what to do\n" and captured.out == ""
    with pytest.raises(SystemExit, match="2"):
        course.main(["nonsense"])


# ---- files that must agree


def test_ci_runs_the_readmes_test_command():
    readme = (course.ROOT / "README.md").read_text(encoding="utf-8")
    run = (course.ROOT / ".ci" / "run").read_text(encoding="utf-8")
    commands = [line for line in run.splitlines() if "course.py" in line]
    assert commands == ["python3 course.py test"]
    assert re.search(r"^python3 course\.py test\b", readme, re.M)
    assert re.search(r"^python3 course\.py lab\b", readme, re.M)
    assert re.search(r"^py course\.py lab\b", readme, re.M)  # Windows


def test_pyproject_agrees_with_course():
    project = PROJECT["project"]
    assert project["requires-python"] == f">={course.OLDEST[0]}.{course.OLDEST[1]}"
    for extras in course.LEVELS.values():
        assert set(extras.split(",")) <= set(project["optional-dependencies"])
    (torch,) = [line for line in project["dependencies"] if line.startswith("torch")]
    oldest, newest = re.fullmatch(r"torch>=(\d+\.\d+),<(\d+)", torch).groups()
    pinned = [int(part) for part in course.TORCH.removeprefix("torch==").split(".")]
    assert [int(part) for part in oldest.split(".")] <= pinned[:2] < [int(newest)]
    on_mac = [line for line in project["dependencies"] if "numba-cuda" in line]
    assert all("sys_platform != 'darwin'" in line for line in on_mac) and on_mac


def test_the_repository_is_named_once():
    url = PROJECT["project"]["urls"]["Repository"]
    listed = subprocess.run(
        ["git", "ls-files", "*.py", "*.toml", "*.yml", "*.cfg"],
        cwd=course.ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode != 0:
        pytest.skip("not a git clone")
    owner = url.split("/")[-2]
    holding = [
        name
        for name in listed.stdout.split()
        if (course.ROOT / name).exists()
        and f"{owner}/" in (course.ROOT / name).read_text(encoding="utf-8")
    ]
    assert holding in ([], ["pyproject.toml"])


@pytest.mark.slow
def test_the_wheel_holds_the_models(tmp_path):
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=course.ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    models = [path for path in (course.ROOT / "minilm" / "models").rglob("*") if path.is_file()]
    assert {path.relative_to(course.ROOT).as_posix() for path in models} <= set(names)
    assert "minilm/__init__.py" in names and not any(name.startswith("tests/") for name in names)
