"""Who may import whom: notebooks, book, tests → minilm → cuda_numba → numba, torch."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# The modules of minilm that may reach down to the kernels.
DOORS = ("minilm/ops.py", "minilm/doctor.py", "minilm/exercises/")
ABOVE = {"notebooks", "book", "tests", "course", "tools"}


def imported(source: str, path: str) -> set[str]:
    """The top-level names of all imports in `source`, also those inside functions."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            # Past the top of the package an import names another one: `from ...cuda_numba import`.
            outside = node.level > path.count("/")
            names |= {alias.name for alias in node.names} if outside and not node.module else set()
            if node.module and (node.level == 0 or outside):
                names.add(node.module.split(".")[0])
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module":
            first = node.args[0] if node.args else None
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                names.add(first.value.split(".")[0])
    return names


def turned_round(path: str, source: str) -> set[str]:
    """The imports in the file at `path` (relative to the root) that point against the arrow."""
    names = imported(source, path)
    if path.startswith("cuda_numba/"):
        return names & ({"minilm"} | ABOVE)
    if path.startswith("minilm/"):
        kernels = set() if path.startswith(DOORS) else {"cuda_numba"}
        return names & (kernels | ABOVE)
    return set()


def files() -> list[str]:
    paths = [*(ROOT / "minilm").rglob("*.py"), *(ROOT / "cuda_numba").rglob("*.py")]
    return sorted(path.relative_to(ROOT).as_posix() for path in paths)


@pytest.mark.parametrize("path", files())
def test_no_import_points_against_the_arrow(path):
    assert turned_round(path, (ROOT / path).read_text(encoding="utf-8")) == set()


def test_the_files_are_found():
    assert {"minilm/model.py", "minilm/ops.py", "minilm/doctor.py"} <= set(files())


@pytest.mark.parametrize(
    ("path", "source", "caught"),
    [
        ("cuda_numba/softmax.py", "import minilm", {"minilm"}),
        ("cuda_numba/softmax.py", "from minilm.model import MiniLM", {"minilm"}),
        ("cuda_numba/emulator/run.py", "def f():\n    from ...minilm import ops", {"minilm"}),
        ("cuda_numba/emulator/run.py", "from ... import minilm", {"minilm"}),
        (
            "cuda_numba/bench.py",
            "import importlib\nimportlib.import_module('minilm.ops')",
            {"minilm"},
        ),
        ("minilm/model.py", "import cuda_numba", {"cuda_numba"}),
        ("minilm/model.py", "if True:\n    from cuda_numba import softmax as s", {"cuda_numba"}),
        ("minilm/model.py", "from tests.conftest import x", {"tests"}),
        ("minilm/ops.py", "import course", {"course"}),
        ("minilm/ops.py", "from cuda_numba import softmax", set()),
        ("minilm/exercises/softmax.py", "from cuda_numba import jit", set()),
        ("minilm/model.py", "from . import ops\nfrom .ops import linear\nimport torch", set()),
        ("minilm/exercises/head.py", "from ..attention import AttentionHead", set()),
        ("cuda_numba/emulator/run.py", "from ..jit import jit\nimport numba", set()),
        ("tests/test_ops.py", "import cuda_numba, minilm", set()),
    ],
)
def test_a_planted_import_is_caught_and_an_allowed_one_is_not(path, source, caught):
    assert turned_round(path, source) == caught


def siblings(source: str, modules: set[str]) -> set[str]:
    """The modules of its own flat package that `source` imports, by either form of `from`."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            names |= {node.module.split(".")[0]} if node.module else {a.name for a in node.names}
    return names & modules


def cycle(arrows: dict[str, set[str]]) -> list[str]:
    """One closed path of imports, or [] if there is a reading order."""
    done = set()

    def visit(name, path):
        if name in path:
            return path[path.index(name) :] + [name]
        if name not in done:
            for below in sorted(arrows[name]):
                if found := visit(below, path + [name]):
                    return found
            done.add(name)
        return []

    return next((found for name in sorted(arrows) if (found := visit(name, []))), [])


def test_minilm_has_a_reading_order():
    sources = {
        path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "minilm").glob("*.py")
    }
    sources.pop("__init__", None)
    arrows = {name: siblings(source, set(sources)) for name, source in sources.items()}
    assert "attention" in arrows["model"]
    assert cycle(arrows) == []


@pytest.mark.parametrize("folder", ["cuda_numba", "cuda_numba/emulator"])
def test_cuda_numba_has_a_reading_order(folder):
    sources = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / folder).glob("*.py")}
    sources.pop("__init__")
    arrows = {name: siblings(source, set(sources)) for name, source in sources.items()}
    assert sum(map(len, arrows.values())) > len(arrows)
    assert cycle(arrows) == []


def test_a_planted_cycle_is_found():
    arrows = {
        "model": siblings("from .loss import next_token_loss", {"model", "loss", "ops"}),
        "loss": siblings("def f():\n    from . import model, ops", {"model", "loss", "ops"}),
        "ops": set(),
    }
    assert cycle(arrows) == ["loss", "model", "loss"]
    arrows["loss"] = {"ops"}
    assert cycle(arrows) == []
