"""What `import minilm` brings in, and what its names are after any order of imports."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Names of the package top that are functions where a module has the same name.
FUNCTIONS = ("generate", "train", "record", "evaluate", "doctor")


def run_python(code: str) -> str:
    """What a fresh interpreter prints; warnings are errors there too."""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=ROOT,
        env=dict(os.environ, PYTHONUTF8="1"),
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    return result.stdout.strip()


def test_import_is_light_and_silent():
    heavy = ("numba", "matplotlib", "tokenizers", "datasets", "IPython", "cuda_numba")
    code = f"import minilm, sys; print([name for name in {heavy} if name in sys.modules])"
    assert run_python(code) == "[]"
    # The control: the question does find a module that is there.
    assert (
        run_python(code.replace("import minilm", "import minilm, matplotlib")) == "['matplotlib']"
    )


SUBMODULES_FIRST = "; ".join(f"import minilm.{name}" for name in FUNCTIONS)
SUBMODULES_FROM = "; ".join(f"from minilm.{name} import {name}" for name in FUNCTIONS)
BY_NAME = f"import importlib; [importlib.import_module('minilm.' + n) for n in {FUNCTIONS}]"
TOP = "from minilm import " + ", ".join(FUNCTIONS)
TELL = "print([type(f).__name__ for f in (" + ", ".join(FUNCTIONS) + ")])"


@pytest.mark.parametrize(
    "code",
    [
        TOP,
        f"{SUBMODULES_FIRST}; {TOP}",
        f"{SUBMODULES_FROM}; {TOP}",
        f"{BY_NAME}; {TOP}",
        f"{TOP}; {SUBMODULES_FIRST}; {TOP}",
        "import minilm.bench, minilm.plots, minilm.exercises, minilm.__main__; " + TOP,
    ],
    ids=["top", "modules first", "names first", "import_module", "twice", "users of them first"],
)
def test_a_function_wins_over_the_module_of_its_name(code):
    assert run_python(f"{code}\n{TELL}") == str(["function"] * len(FUNCTIONS))


def test_the_modules_stay_reachable():
    code = "import minilm.train, sys; print(sys.modules['minilm.train'].TrainConfig.__name__)"
    assert run_python(code) == "TrainConfig"
