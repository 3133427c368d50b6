"""Everything that pages take from the code: each function returns Markdown, by name for `{generated}`.

    ```{generated} results
    ```
"""

import html
import inspect
import types
from collections.abc import Callable
from pathlib import Path

from . import course_map, drawing, graph, measured, sweep
from .docstrings import to_rst
from .project import ROOT, dependencies, source_link

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
        "says of itself": measured.escape(module.summary),
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


def sweep_summary(op: str) -> str:
    return sweep.summary(op)


def sweep_tables(op: str, *settings: str) -> str:
    return sweep.tables(op, list(settings))


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
            choices = getattr(entry, "choices", None) or {}
            lines += [f"- `{key}`: {measured.escape(text)}" for key, text in choices.items()]
            lines.append("")
    return "\n".join(lines)


def rst(text: str) -> str:
    return f"````{{eval-rst}}\n{text}````\n"


# ---- api ------------------------------------------------------------------------------------


def api() -> str:
    """Every public name of the package, by module in reading order, documented by autodoc."""
    import minilm

    modules = graph.read_package(ROOT / "minilm")
    order = [name for names in order_of("minilm", modules).values() for name in names]
    homes = {f"minilm.{name}": [] for name in order}
    for name in public_names(minilm):
        item = getattr(minilm, name)
        if isinstance(item, types.ModuleType):
            homes[item.__name__] += module_members(item, homes)
        elif home_of(item) in homes:
            homes[home_of(item)].append(("minilm", name))
    lines = []
    for home, members in homes.items():
        if members:
            summary = modules[home.split(".")[1]].summary
            lines += [f"## {home}", "", measured.escape(summary), ""]
            lines += [rst(directive(*member)) for member in members]
    return "\n".join(lines)


def public_names(package: types.ModuleType) -> list[str]:
    """What `from package import …` is meant for."""
    return list(getattr(package, "__all__", None) or (n for n in vars(package) if n[0] != "_"))


def home_of(item: object) -> str:
    """The module of the package, or the folder in it, that a function or class is defined in."""
    return ".".join(str(getattr(item, "__module__", "")).split(".")[:2])


def module_members(module: types.ModuleType, homes: dict) -> list[tuple[str, str]]:
    """The functions and classes of a module that is public as a whole, such as `plots`."""
    return [
        (module.__name__, name)
        for name in public_names(module)
        if inspect.isfunction(item := getattr(module, name)) or inspect.isclass(item)
        if home_of(item).startswith("minilm")
        if hasattr(module, "__all__") or home_of(item) == module.__name__
    ]


def directive(module: str, name: str) -> str:
    """autodoc's directive for one name; `::` says where the module's name ends."""
    __import__(module)
    import sys

    item = getattr(sys.modules[module], name)
    if inspect.isclass(item):
        return f".. autoclass:: {module}::{name}\n   :members:\n"
    return f".. autofunction:: {module}::{name}\n"


def folded(title: str, text: str) -> str:
    return f"<details><summary>{html.escape(title)}</summary>\n\n{text}\n\n</details>\n"


GENERATED: dict[str, Callable[..., str]] = {
    "toc": toc,
    "routes": routes,
    "map": map_of,
    "map-project": map_of_project,
    "modules": modules_of,
    "tree": tree,
    "results": results,
    "sweep-summary": sweep_summary,
    "sweep": sweep_tables,
    "exercises": exercise_list,
    "api": api,
}


def generate(call: str) -> str:
    """The Markdown of a call such as "map minilm"; ValueError for an unknown name."""
    name, *arguments = call.split()
    if name not in GENERATED:
        raise ValueError(f"generated: must be one of {', '.join(GENERATED)}, got {name!r}")
    return GENERATED[name](*arguments)
