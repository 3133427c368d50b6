"""Exercises inside notebooks.

A cell tagged `exercise`, with metadata {"minilm": {"exercise": NAME}}, holds the stub and a call
of `check`; nothing after it needs what it defines. Its text is `stub_cell(NAME)`. After an exercise
has changed,

    python -m minilm.exercises.notebook notebooks/*.ipynb

puts the new text into the cells. `run_solutions` proves that the exercises of a notebook can be
solved where they stand: solutions in place of stubs, one kernel, only the cells that are needed.
"""

import ast
import json
import re
import symtable
import sys
from collections.abc import Callable
from pathlib import Path

from . import get

WHAT = {"code": "Write", "repair": "Mend", "predict": "Predict"}
NEEDED = (
    "exercise-needs"  # the tag of a cell that exercises need for more than the names it defines
)


def stub_cell(name: str) -> str:
    """The exact text of an exercise's cell in a notebook."""
    return _cell(name, get(name).stub)


def solution_cell(name: str) -> str:
    """The same cell with a solution in place of the stub."""
    return _cell(name, get(name).answered)


def _cell(name: str, body: str) -> str:
    entry = get(name)
    level = "●" * entry.difficulty + "○" * (3 - entry.difficulty)
    head = f"# {WHAT[entry.kind]} · {entry.minutes} minutes · {level}"
    gap = "\n" if entry.kind == "predict" else "\n\n"
    call = f'_ = exercises.check("{name}", {entry.variable})'
    return f'{head} · stuck? exercises.hint("{name}")\n{body}{gap}{call}'


def new_cell(name: str) -> dict:
    """A notebook cell (nbformat 4.5) for an exercise, not yet run."""
    return {
        "cell_type": "code",
        "execution_count": None,
        "id": re.sub(r"[^a-zA-Z0-9-]", "-", f"exercise-{name}"),
        "metadata": {"minilm": {"exercise": name}, "tags": ["exercise"]},
        "outputs": [],
        "source": stub_cell(name).splitlines(keepends=True),
    }


def read(path: str | Path) -> dict:
    """A notebook as its JSON."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def exercise_of(cell: dict) -> str | None:
    """The name of the exercise in a cell; None for any other cell.

    Raises ValueError where the tag and the metadata disagree.
    """
    name = cell["metadata"].get("minilm", {}).get("exercise")
    tagged = "exercise" in cell["metadata"].get("tags", [])
    if tagged != (name is not None) or (tagged and cell["cell_type"] != "code"):
        raise ValueError(
            'cell: an exercise is a code cell with the tag "exercise" and the metadata '
            f'{{"minilm": {{"exercise": NAME}}}}, got {cell["cell_type"]} with {cell["metadata"]}'
        )
    return name


def source_of(cell: dict) -> str:
    return "".join(cell["source"])


def update_stubs(path: str | Path) -> list[str]:
    """Write the current stubs into a notebook; returns the names of those that were not current.

    The cells have to be run again afterwards.
    """
    notebook, changed = read(path), []
    for cell in notebook["cells"]:
        name = exercise_of(cell)
        if name is not None and source_of(cell) != stub_cell(name):
            cell["source"] = stub_cell(name).splitlines(keepends=True)
            changed.append(name)
    if changed:
        text = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
        Path(path).write_text(text, encoding="utf-8", newline="\n")
    return changed


class _PlainScopes(ast.NodeTransformer):
    """Rewrites what a symbol table does not tell apart.

    It counts `n += 1` as an assignment only, and from Python 3.12 on it gives the variables of a
    comprehension to the scope around it, those of a generator expression not.
    """

    def visit_ListComp(self, node):
        self.generic_visit(node)
        return ast.GeneratorExp(node.elt, node.generators)

    visit_SetComp = visit_ListComp

    def visit_DictComp(self, node):
        self.generic_visit(node)
        return ast.GeneratorExp(ast.Tuple([node.key, node.value], ast.Load()), node.generators)

    def visit_AugAssign(self, node):
        self.generic_visit(node)
        before = ast.parse(ast.unparse(node.target), mode="eval").body
        return ast.Assign([node.target], ast.BinOp(before, node.op, node.value))


def names_in(source: str) -> tuple[set[str], set[str]]:
    """(names that a cell defines, names that it uses and may have from an earlier cell)."""
    code = re.sub(r"^(\s*)[%!?].*$", r"\1pass", source, flags=re.MULTILINE)  # IPython's commands
    defined, used = set(), set()

    def visit(table, top):
        for symbol in table.get_symbols():
            if top and (symbol.is_assigned() or symbol.is_imported()):
                defined.add(symbol.get_name())
            if symbol.is_referenced() and (top or symbol.is_global()):
                used.add(symbol.get_name())
        for child in table.get_children():
            visit(child, False)

    tree = ast.fix_missing_locations(_PlainScopes().visit(ast.parse(code)))
    visit(symtable.symtable(ast.unparse(tree), "cell", "exec"), True)
    return defined, used


def needed_cells(cells: list[dict], sources: dict[int, str]) -> list[int]:
    """Which cells to run so that the exercise cells can: their indices, in order.

    sources: cell index → the text to run there. A cell is needed when it is the last one before to
    define a name that is used, and so on from there, or when it has the tag `exercise-needs`.
    """
    text = {
        i: sources.get(i, source_of(cell))
        for i, cell in enumerate(cells)
        if cell["cell_type"] == "code"
    }
    names = {i: names_in(source) for i, source in text.items()}
    forced = {i for i in text if NEEDED in cells[i]["metadata"].get("tags", [])}
    needed, open_cells = set(), [*sources, *forced]
    while open_cells:
        i = open_cells.pop()
        if i not in needed:
            needed.add(i)
            for name in names[i][1]:
                before = [j for j in names if j < i and name in names[j][0]]
                open_cells += before[-1:]
    return sorted(needed)


def users_of_stubs(cells: list[dict]) -> list[tuple[int, str]]:
    """(cell index, name) wherever a cell that is no exercise uses what an exercise cell defines."""
    defined, found = set(), []
    for i, cell in enumerate(cells):
        if cell["cell_type"] == "code":
            here, used = names_in(source_of(cell))
            if exercise_of(cell) is None:
                found += [(i, name) for name in sorted(used & defined)]
                defined -= here
            else:
                defined |= here - {"_"}
    return found


def run_solutions(
    path: str | Path, cell_text: Callable[[str], str] = solution_cell, timeout: int = 120
) -> dict[str, str]:
    """Run the exercise cells of a notebook with solutions in place: name → what was printed.

    One kernel of this Python, in the notebook's folder, and only the cells that are needed. An
    exception in an exercise cell is in its text; in another cell it is a RuntimeError.
    cell_text: exercise name → the text of its cell. timeout: seconds for each cell.
    """
    import nbformat

    notebook = read(path)
    found = {i: exercise_of(cell) for i, cell in enumerate(notebook["cells"])}
    sources = {i: cell_text(name) for i, name in found.items() if name is not None}
    if not sources:
        return {}
    needed = needed_cells(notebook["cells"], sources)
    cells = [
        nbformat.v4.new_code_cell(sources.get(i, source_of(notebook["cells"][i]))) for i in needed
    ]
    _execute(nbformat.v4.new_notebook(cells=cells), Path(path).resolve().parent, timeout)
    printed = {}
    for i, cell in zip(needed, cells, strict=True):
        errors = [out for out in cell.outputs if out.output_type == "error"]
        if i not in sources and errors:
            raise RuntimeError(f"cell {i} of {path}: {errors[0].ename}: {errors[0].evalue}")
        if i in sources:
            text = [out.text for out in cell.outputs if out.output_type == "stream"]
            printed[found[i]] = "".join([*text, *(f"{e.ename}: {e.evalue}" for e in errors)])
    return printed


def _execute(notebook, folder: Path, timeout: int) -> None:
    from ipykernel.kernelspec import make_ipkernel_cmd
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient

    kernel = AsyncKernelManager(kernel_name="python3")
    kernel.kernel_spec.argv[:] = make_ipkernel_cmd()  # this Python, whatever "python3" is here
    NotebookClient(
        notebook,
        km=kernel,
        timeout=timeout,
        allow_errors=True,
        resources={"metadata": {"path": str(folder)}},
    ).execute(cleanup_kc=True)


def main(paths: list[str]) -> None:
    for path in paths:
        print(f"{path}: {', '.join(update_stubs(path)) or 'up to date'}")


if __name__ == "__main__":
    main(sys.argv[1:])
