"""What pages take from the code: functions that return Markdown, by name for `{generated}`.

```{generated} results
```
"""

import importlib
import inspect
import os
import types
from collections.abc import Callable
from pathlib import Path

import course

from . import choices, course_map, drawing, graph, measured
from .docstrings import to_rst
from .project import ROOT, dependencies, raw_link, repository, source_link

STAGES = {  # title → what the stage is about; everything else is found from the imports
    "Text becomes ids": ("bpe", "tokenizer"),
    "Ids become batches": ("corpus", "data", "pairs", "corruption"),
    "The model": ("ops", "attention", "layers", "loss", "model"),
    "Training": ("optim", "train", "evaluate"),
    "Generation": ("generate", "text"),
    "Seeing": ("record", "plots"),
}
REST = "Around it"
KERNELS = {"Kernels": ()}  # of cuda_numba: one stage

TREE = {  # path → what is there; what does not exist (yet) is not shown
    "minilm": "the language model, plain PyTorch",
    "cuda_numba": "kernels in Python, their emulator and their benchmark",
    "notebooks": "the course: .ipynb with outputs",
    "book": "this book: pages, and what is generated for them",
    "book/results": "measurements, one JSON file for each command and device",
    "tests": "one file for each module, and test_claim*.py for what the course claims",
    "course.py": "set up, open, check, build; standard library only",
    "pyproject.toml": "dependencies, tools, and the address of the repository",
    "nbval.cfg": "what may differ when notebooks are checked",
    "README.md": "the two commands",
    "CONTRIBUTING.md": "how to change something",
    "CHANGELOG.md": "what has changed",
    "LICENSE": "MIT",
    ".ci": "what continuous integration runs",
    ".github": "the same, as a GitHub workflow",
}


def toc() -> str:
    return course_map.toc(course_map.notebooks())


def routes() -> str:
    return course_map.routes(course_map.notebooks())


def start() -> str:
    """The commands of the first minute, with the repository's address from pyproject.toml."""
    url = repository()
    folder = url.rsplit("/", 1)[-1]
    return f"""```bash
git clone {url}
cd {folder}
python3 course.py lab        # on Windows: py course.py lab
```

In Colab nothing needs to be set up; run this in a first cell:

```text
%pip install -q git+{url}
```
"""


# ---- for teachers ---------------------------------------------------------------------------


def nbval_options() -> str:
    """The options with which `course.py validate` calls nbval, paths as seen from the root."""
    options = (str(part) for part in course.nbval_command(False, []))
    return " ".join(o.replace(f"{ROOT}{os.sep}", "") for o in options if o.startswith("--nbval"))


def nbval() -> str:
    return f"```bash\npytest {nbval_options()} notebooks\n```\n"


def workflow() -> str:
    """A GitHub workflow of one job that checks the notebooks of a repository."""
    env = "\n".join(f'      {name}: "{value}"' for name, value in course.STEADY.items())
    return f"""```yaml
name: notebooks
on: [push, pull_request]
jobs:
  notebooks:
    runs-on: ubuntu-latest
    env:
{env}
    steps:
      - uses: actions/checkout@v4
      - uses: actions/setup-python@v5
        with:
          python-version: "3.12"
      - run: pip install {course.TORCH} --index-url {course.CPU_INDEX}
      - run: pip install "minilm[lab] @ git+{repository()}" pytest nbval
      - run: curl -sSfO {raw_link("nbval.cfg")}
      - run: pytest {nbval_options()} notebooks
```
"""


# ---- architecture ---------------------------------------------------------------------------


def order_of(package: str, modules: dict[str, graph.Module]) -> dict[str, list[str]]:
    """The reading order of one of the two packages, in stages."""
    stages, last = (STAGES, REST) if package == "minilm" else (KERNELS, "Kernels")
    return graph.reading_order(modules, stages, last)


def map_of(package: str) -> str:
    """The picture of a package's modules."""
    modules = graph.read_package(ROOT / package)
    if not modules:
        return f"`{package}` is not part of this version yet.\n"
    picture = drawing.draw(
        f"The modules of {package} and their imports",
        order_of(package, modules),
        graph.arrows(modules),
        lambda name: modules[name].summary,
        key=f"map-{package.replace('_', '-')}",
    )
    return f'<div class="module-map-frame">\n{picture}\n</div>\n'


def map_of_project() -> str:
    """The picture of the folders, the packages, and the libraries that they need."""
    imports = project_imports()
    stages = {
        "Libraries": sorted(n for n in imports if n not in ("cuda_numba", "minilm", *FOLDERS)),
        "Kernels": ["cuda_numba"],
        "Language model": ["minilm"],
        "Users": [name for name in FOLDERS if name in imports],
    }
    present = {t: [n for n in names if n in imports] for t, names in stages.items()}
    modules = {
        name: graph.Module(name, name, "", 0, frozenset(below), frozenset())
        for name, below in imports.items()
    }
    picture = drawing.draw(
        "What needs what",
        {title: names for title, names in present.items() if names},
        graph.arrows(modules),
        key="map-project",
    )
    return f'<div class="module-map-frame">\n{picture}\n</div>\n'


FOLDERS = ("notebooks", "book", "tests")


def project_imports(root: Path = ROOT) -> dict[str, set[str]]:
    """Folder, package or library → those among them that its code imports."""
    packages = {p: graph.read_package(root / p) for p in ("minilm", "cuda_numba")}
    found = {
        name: set().union(*(module.needs for module in modules.values()))
        for name, modules in packages.items()
        if modules
    }
    found |= {f: graph.outside_of_folder(root / f) for f in FOLDERS if (root / f).is_dir()}
    libraries = dependencies(root) & set().union(*found.values())
    known = libraries | set(found)
    return {n: (needs & known) - {n} for n, needs in found.items()} | {n: set() for n in libraries}


def modules_of(package: str) -> str:
    """A table of modules in reading order: what each says of itself, its length, its imports."""
    modules = graph.read_package(ROOT / package)
    if not modules:
        return f"`{package}` is not part of this version yet.\n"
    lines = []
    for title, names in order_of(package, modules).items():
        rows = [module_row(package, modules[name]) for name in names]
        lines += [f"**{title}**", "", measured.table(rows), ""]
    total = sum(module.lines for module in modules.values())
    return "\n".join(lines) + f"\n{len(modules)} modules, {measured.number(total)} lines.\n"


def module_row(package: str, module: graph.Module) -> dict[str, str]:
    link = source_link(f"{package}/{module.path}")
    return {
        "module": f"[`{module.path}`]({link})",
        "says of itself": measured.prose(module.summary),
        "lines": str(module.lines),
        "imports": ", ".join(f"`{name}`" for name in sorted(module.imports)),
    }


def tree() -> str:
    """The annotated tree of what exists."""
    shown = {path: note for path, note in TREE.items() if (ROOT / path).exists()}
    names = {p: "  " * p.count("/") + p.split("/")[-1] + "/" * (ROOT / p).is_dir() for p in shown}
    width = max(map(len, names.values())) + 2
    return "\n".join(
        ["```text", *(f"{names[p]:<{width}}{note}" for p, note in shown.items()), "```", ""]
    )


# ---- results --------------------------------------------------------------------------------


def results() -> str:
    return measured.page(measured.result_files(), measured.present_hashes())


def tiny_choices() -> str:
    return choices.report(choices.read())


# ---- exercises ------------------------------------------------------------------------------

KINDS = {"code": "write", "repair": "mend", "predict": "predict"}


def exercise_list() -> str:
    """All exercises, by notebook: name, kind, minutes, difficulty, statement."""
    from minilm import exercises

    entries = [exercises.get(name) for name in exercises.names()]
    known = {n.name: n for n in course_map.notebooks()}
    minutes = sum(entry.minutes for entry in entries)
    lines = [f"{len(entries)} exercises, about {minutes} minutes in all.", ""]
    for notebook in dict.fromkeys(entry.notebook for entry in entries):
        mine = [entry for entry in entries if entry.notebook == notebook]
        title = course_map.link(known[notebook]) if notebook in known else f"`{notebook}`"
        lines += [f"## {title}", ""]
        for entry in mine:
            level = "●" * entry.difficulty + "○" * (3 - entry.difficulty)
            lines += [
                f"**`{entry.name}`** · {KINDS[entry.kind]} · {entry.minutes} minutes · {level}",
                "",
                rst(to_rst(entry.statement)),
            ]
            answers = getattr(entry, "choices", None) or {}
            lines += [f"- `{key}`: {measured.prose(text)}" for key, text in answers.items()]
            lines.append("")
    return "\n".join(lines)


def rst(text: str) -> str:
    return f"````{{eval-rst}}\n{text}````\n"


# ---- api ------------------------------------------------------------------------------------


PUBLIC_MODULES = ("ops", "plots", "exercises")  # used as `from minilm import plots`


def api() -> str:
    """Every public name of the package, by module in reading order, documented by autodoc."""
    modules = graph.read_package(ROOT / "minilm")
    order = [name for names in order_of("minilm", modules).values() for name in names]
    members: dict[str, list[str]] = {name: [] for name in order}
    package = importlib.import_module("minilm")
    for name in package.__all__:
        item = getattr(package, name)
        if documented(item):
            members[home_of(item)].append(directive("minilm", name, item))
    for name in PUBLIC_MODULES:
        members[name] = module_members(importlib.import_module(f"minilm.{name}"))
    lines = []
    for name in order:
        if members[name]:
            title = f"minilm.{name}" if name in PUBLIC_MODULES else name
            lines += [f"## {title}", "", measured.prose(modules[name].summary), "", *members[name]]
    return "\n".join(lines)


def documented(item: object) -> bool:
    """Functions and classes have a docstring of their own; numbers and tables have none."""
    return inspect.isfunction(item) or inspect.isclass(item)


def home_of(item: object) -> str:
    """The module of the package, or the folder in it, that a function or class is defined in."""
    return item.__module__.split(".")[1]


def module_members(module: types.ModuleType) -> list[str]:
    """The functions and classes of a module that is public as a whole."""
    names = getattr(module, "__all__", None) or [
        name
        for name, item in vars(module).items()
        if documented(item) and name[0] != "_" and item.__module__ == module.__name__
    ]
    items = {name: getattr(module, name) for name in names}
    return [directive(module.__name__, n, item) for n, item in items.items() if documented(item)]


def directive(module: str, name: str, item: object) -> str:
    """autodoc's directive for one name; `::` says where the module's name ends."""
    if inspect.isclass(item):
        return rst(f".. autoclass:: {module}::{name}\n   :members:\n")
    return rst(f".. autofunction:: {module}::{name}\n")


GENERATED: dict[str, Callable[..., str]] = {
    "toc": toc,
    "routes": routes,
    "start": start,
    "nbval": nbval,
    "workflow": workflow,
    "map": map_of,
    "map-project": map_of_project,
    "modules": modules_of,
    "tree": tree,
    "results": results,
    "choices": tiny_choices,
    "exercises": exercise_list,
    "api": api,
}


def generate(call: str) -> str:
    """The Markdown of a call such as "map minilm"; ValueError for an unknown name."""
    name, *arguments = call.split()
    if name not in GENERATED:
        raise ValueError(f"generated: must be one of {', '.join(GENERATED)}, got {name!r}")
    return GENERATED[name](*arguments)
