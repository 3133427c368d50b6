"""The pictures and tables of the architecture page, all made from the source."""

from pathlib import Path

from . import drawing, graph, measured
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
    "tests": "one file for each module, and test_claims.py for what the course claims",
    "course.py": "set up, open, check, build; standard library only",
    "tools": "what its commands do",
    "pyproject.toml": "dependencies, tools, and the address of the repository",
    "nbval.cfg": "what may differ when notebooks are checked",
    "README.md": "the two commands",
    "CONTRIBUTING.md": "how to change something",
    "CHANGELOG.md": "what has changed",
    "LICENSE": "MIT",
    ".ci": "what continuous integration runs",
    ".github": "the same, as a GitHub workflow",
}
FOLDERS = ("notebooks", "book", "tests")  # what uses the packages


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
