"""The command line of course.py, what it must be readable by, and the files that it agrees with."""

import ast
import re
import subprocess
import sys
import tomllib
import zipfile

import pytest

import course
from tools import environment, interpreter, project

SOURCES = [project.ROOT / "course.py", *sorted((project.ROOT / "tools").glob("*.py"))]
PROJECT = tomllib.loads((project.ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def too_new(source: str) -> list[str]:
    """What Python 3.6 could not parse. `feature_version` is best effort, hence the second look."""
    tree = ast.parse(source, feature_version=(3, 6))
    new = (ast.NamedExpr, ast.Match, ast.TryStar)
    found = [type(node).__name__ for node in ast.walk(tree) if isinstance(node, new)]
    for node in ast.walk(tree):
        if isinstance(node, ast.arguments) and node.posonlyargs:
            found.append("positional-only arguments")
    return found + re.findall(r"\{\w+=\}|^\s*with \($", source, re.M)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_python_3_6_can_parse_the_files(path):
    assert too_new(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "line",
    ["(x := 1)", "def f(a, /): pass", "print(f'{x=}')", "match x:\n    case 1: pass"],
)
def test_what_python_3_6_cannot_parse_is_caught(line):
    try:
        assert too_new(line) != []
    except SyntaxError:
        pass


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_only_the_standard_library_is_imported_at_the_top(path):
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.split(".")[0])
    assert names <= set(sys.stdlib_module_names) | {"tools"}


def test_a_bare_python_runs_it_from_any_folder(tmp_path):
    """-S: no package of this environment is there, as before `.venv` is made."""
    command = [sys.executable, "-S", project.ROOT / "course.py", "--help"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, encoding="utf-8")
    assert result.returncode == 0 and "Set up, open, check and build" in result.stdout


def test_an_error_is_one_message_and_exit_code_1(monkeypatch, capsys):
    def fails(level):
        raise project.CourseError("the cause, and what to do")

    monkeypatch.setattr(environment, "setup", fails)
    assert course.main(["setup"]) == 1
    captured = capsys.readouterr()
    assert captured.err == "course.py: the cause, and what to do\n" and captured.out == ""
    with pytest.raises(SystemExit, match="2"):
        course.main(["nonsense"])


def test_ci_runs_the_readmes_test_command():
    readme = (project.ROOT / "README.md").read_text(encoding="utf-8")
    run = (project.ROOT / ".ci" / "run").read_text(encoding="utf-8")
    commands = [line for line in run.splitlines() if "course.py" in line]
    assert commands == ["python3 course.py test"]
    assert re.search(r"^python3 course\.py test\b", readme, re.M)
    assert re.search(r"^python3 course\.py lab\b", readme, re.M)
    assert re.search(r"^py course\.py lab\b", readme, re.M)  # Windows


def test_pyproject_agrees_with_course():
    settings = PROJECT["project"]
    assert settings["requires-python"] == f">={interpreter.OLDEST[0]}.{interpreter.OLDEST[1]}"
    for extras in environment.LEVELS.values():
        assert set(extras.split(",")) <= set(settings["optional-dependencies"])
    (torch,) = [line for line in settings["dependencies"] if line.startswith("torch")]
    oldest, newest = re.fullmatch(r"torch>=(\d+\.\d+),<(\d+)", torch).groups()
    pinned = [int(part) for part in environment.TORCH.removeprefix("torch==").split(".")]
    assert [int(part) for part in oldest.split(".")] <= pinned[:2] < [int(newest)]
    on_mac = [line for line in settings["dependencies"] if "numba-cuda" in line]
    assert all("sys_platform != 'darwin'" in line for line in on_mac) and on_mac


def test_the_repository_is_named_once():
    url = PROJECT["project"]["urls"]["Repository"]
    listed = subprocess.run(
        ["git", "ls-files", "*.py", "*.toml", "*.yml", "*.cfg"],
        cwd=project.ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode != 0:
        pytest.skip("not a git clone")
    owner = url.split("/")[-2]
    holding = [
        name
        for name in listed.stdout.split()
        if (project.ROOT / name).exists()
        and f"{owner}/" in (project.ROOT / name).read_text(encoding="utf-8")
    ]
    assert holding in ([], ["pyproject.toml"])


@pytest.mark.slow
def test_the_wheel_holds_the_models(tmp_path):
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=project.ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    models = [path for path in (project.ROOT / "minilm" / "models").rglob("*") if path.is_file()]
    assert {path.relative_to(project.ROOT).as_posix() for path in models} <= set(names)
    assert "minilm/__init__.py" in names and not any(name.startswith("tests/") for name in names)
