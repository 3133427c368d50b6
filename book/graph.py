"""Who imports whom, read from the source by `ast`: nothing is imported, so nothing can be hidden.

A package is a dict of `Module`s. A folder inside it (`exercises/`) is one module, its files taken
together. `__init__.py` of the package itself is left out: it imports everything, to re-export it.
"""

import ast
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Module:
    """One file of a package, or one folder in it."""

    name: str
    path: str  # relative to the package's folder, with forward slashes
    summary: str  # the first line of the docstring
    lines: int
    imports: frozenset[str]  # other modules of the package
    needs: frozenset[str]  # packages from outside, the standard library left out


def read_package(folder: Path) -> dict[str, Module]:
    """All modules of the package in `folder`, by name. {} where there is no such folder."""
    if not folder.is_dir():
        return {}
    found = {path.stem: path for path in sorted(folder.glob("*.py")) if path.stem != "__init__"}
    found |= {path.parent.name: path for path in sorted(folder.glob("*/__init__.py"))}
    return {name: _read_module(name, path, folder, set(found)) for name, path in found.items()}


def _read_module(name: str, path: Path, folder: Path, siblings: set[str]) -> Module:
    inside = path.name == "__init__.py"
    files = sorted(path.parent.rglob("*.py")) if inside else [path]
    imports, needs, lines = set(), set(), 0
    for file in files:
        source = file.read_text(encoding="utf-8")
        lines += len(source.splitlines())
        depth = len(file.relative_to(folder).parts) - 1
        imports |= imports_of(source, folder.name, siblings, depth)
        needs |= outside(source) - {folder.name}
    return Module(
        name,
        f"{name}/" if inside else path.name,
        first_line(path.read_text(encoding="utf-8")),
        lines,
        frozenset(imports - {name}),
        frozenset(needs),
    )


def imports_of(source: str, package: str, siblings: set[str], depth: int = 0) -> set[str]:
    """The `siblings` that a file of `package` imports, anywhere in it and in any form.

    depth: how many folders below the package's own the file lies.
    """
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for parts in (alias.name.split(".") for alias in node.names):
                found |= set(parts[1:2]) if parts[0] == package else set()
        elif isinstance(node, ast.ImportFrom):
            parts = node.module.split(".") if node.module else []
            if node.level == 0 and parts[0] == package:
                parts = parts[1:]
            elif node.level != depth + 1:
                continue
            found |= set(parts[:1]) or {alias.name for alias in node.names}
    return found & siblings


def outside(source: str) -> set[str]:
    """The top-level packages that `source` imports by name, the standard library left out."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names)


def outside_of_folder(folder: Path) -> set[str]:
    """`outside` of every .py file and every notebook's code under `folder`.

    Raises ValueError, naming the file, for one that is not Python.
    """
    found = set()
    for path in sorted([*folder.rglob("*.py"), *folder.rglob("*.ipynb")]):
        if ".ipynb_checkpoints" in path.parts:
            continue
        text = path.read_text(encoding="utf-8")
        try:
            found |= outside(text if path.suffix == ".py" else code_of(json.loads(text)))
        except SyntaxError as error:
            raise ValueError(f"{path}: is not Python ({error})") from None
    return found


def code_of(notebook: dict) -> str:
    """The Python of a notebook's code cells; lines for IPython (`%…`, `!…`) are left out."""
    cells = ("".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code")
    lines = (line for cell in cells for line in (*cell.splitlines(), ""))
    return "\n".join(line for line in lines if not line.lstrip().startswith(("%", "!")))


def first_line(source: str) -> str:
    """The first line of a module's docstring, "" where it has none."""
    text = ast.get_docstring(ast.parse(source)) or ""
    return text.splitlines()[0] if text else ""


def reading_order(
    modules: dict[str, Module], stages: dict[str, Iterable[str]], last: str
) -> dict[str, list[str]]:
    """Every module once, none before what it imports, in named stages.

    stages: title → the modules that the stage is about. What they import and has not been read yet
    comes just before them; what no stage names comes under the title `last`. Stages without a
    module are left out. Raises ValueError for a cycle.
    """
    done: set[str] = set()
    order = {}
    for title, names in [*stages.items(), (last, sorted(modules))]:
        part: list[str] = []
        for name in names:
            if name in modules:
                part += _unread(name, modules, done, ())
        if part:
            order.setdefault(title, []).extend(part)
    return order


def _unread(name: str, modules: dict[str, Module], done: set, path: tuple) -> Iterator[str]:
    if name in path:
        circle = " → ".join((*path[path.index(name) :], name))
        raise ValueError(f"modules: they import each other in a circle, {circle}")
    if name in done:
        return
    for below in sorted(modules[name].imports):
        yield from _unread(below, modules, done, (*path, name))
    done.add(name)
    yield name


def arrows(modules: dict[str, Module]) -> dict[tuple[str, str], bool]:
    """(importer, imported) → False where the arrow follows from others and need not be drawn."""
    reach: dict[str, set[str]] = {}

    def reachable(name: str) -> set[str]:
        if name not in reach:
            below = modules[name].imports
            reach[name] = set(below).union(*map(reachable, below))
        return reach[name]

    return {
        (name, below): not any(below in reachable(other) for other in module.imports - {below})
        for name, module in modules.items()
        for below in sorted(module.imports)
    }
