"""Notebooks: found by name, run, brought into the one form that is committed, and checked."""

import hashlib
import os
import time
from pathlib import Path

from . import project
from .project import CourseError

# What a notebook is run and checked under, here and in CI: sums in one order, hashes in one order.
STEADY = {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
WIDGET = "application/vnd.jupyter.widget-view+json"


def notebook_paths(names):
    """The notebooks meant: files, or starts of names such as `03`; all where none is named."""
    if not names:
        return sorted((project.ROOT / "notebooks").glob("*.ipynb"))
    paths = []
    for name in names:
        found = [Path(name).resolve()] if Path(name).is_file() else []
        found = found or sorted((project.ROOT / "notebooks").glob(f"{name}*.ipynb"))
        if not found:
            raise CourseError(
                f"no notebook {name}: give a file, or the start of a name, such as 03"
            )
        paths += found
    return paths


def normalise(notebook, name):
    """Bring a notebook (nested dicts, changed in place) into the one form that is committed.

    Sources, outputs, counts, tags and our own cell metadata stay; time stamps, widget ids, the
    interpreter's version and all else that differs from run to run goes. `name` seeds cell ids.
    """
    notebook["nbformat"], notebook["nbformat_minor"] = 4, 5
    kept = {key: value for key, value in notebook["metadata"].items() if key == "minilm"}
    notebook["metadata"] = dict(kept, kernelspec=dict(KERNEL))
    ids = set()
    for number, cell in enumerate(notebook["cells"]):
        while cell.get("id", "") in ids | {""}:
            seed = f"{name} {number} {len(ids)} {cell.get('id', '')}"
            cell["id"] = hashlib.sha256(seed.encode()).hexdigest()[:8]
        ids.add(cell["id"])
        metadata = cell["metadata"]
        for key in [k for k in metadata if k not in ("tags", "minilm") or not metadata[k]]:
            del metadata[key]
        if cell["cell_type"] == "code":
            cell["outputs"] = normalise_outputs(cell["outputs"])
            if "nbval-skip" in metadata.get("tags", []):
                cell["execution_count"] = None
    return notebook


def normalise_outputs(outputs):
    """One stream where several of the same name follow each other; no widget's random id."""
    kept = []
    for output in outputs:
        if output["output_type"] == "stream":
            output["text"] = "".join(output["text"])
            if kept and kept[-1].get("name") == output["name"]:
                kept[-1]["text"] += output["text"]
                continue
        elif output["output_type"] == "error":  # where the course is installed is nobody's business
            root, lines = str(project.ROOT), output["traceback"]
            output["traceback"] = [line.replace(root, ".") for line in lines]
        elif "data" in output:
            output["data"].pop(WIDGET, None)
            output["metadata"].pop(WIDGET, None)
        kept.append(output)
    return kept


def run_notebooks(names):
    """Execute notebooks in place, from top to bottom, and write them in their committed form.

    A notebook that fails, or writes on stderr, stays as it was.
    """
    import nbclient
    import nbformat

    os.environ.update(STEADY, PYTHONUTF8="1")
    failed = []
    for path in notebook_paths(names):
        print(f"{path.name}: ", end="", flush=True)
        began = time.monotonic()
        notebook = nbformat.read(str(path), as_version=4)
        client = nbclient.NotebookClient(
            notebook,
            timeout=600,
            kernel_name="python3",
            resources={"metadata": {"path": str(path.parent)}},
            skip_cells_with_tag="nbval-skip",
            extra_arguments=["--log-level=40"],  # the kernel's own warnings are not the notebook's
        )
        try:
            client.execute()
            problem = stderr_problem(notebook)
        except (nbclient.exceptions.CellExecutionError, nbclient.exceptions.CellTimeoutError) as e:
            problem = str(e)
        if problem:
            failed.append(path.name)
            print(f"failed, and left as it was\n{problem}")
            continue
        normalise(notebook, path.stem)
        with open(str(path), "w", encoding="utf-8", newline="\n") as file:
            file.write(nbformat.writes(notebook).rstrip("\n") + "\n")
        print(f"{time.monotonic() - began:.0f} s, {path.stat().st_size / 1000:.0f} kB")
    return 1 if failed else 0


def stderr_problem(notebook):
    for number, cell in enumerate(notebook["cells"]):
        for output in cell.get("outputs", []):
            if output.get("name") == "stderr":
                return f"cell {number} writes on stderr: {''.join(output['text'])[:500]}"
    return None


def nbval_command(lax, paths):
    command = [project.python(), "-m", "pytest", "-p", "no:cacheprovider"]
    command += ["-n", "2", "--dist", "loadfile"]
    command += ["--nbval-lax" if lax else "--nbval", "--nbval-current-env"]
    command += ["--nbval-cell-timeout=120", f"--nbval-sanitize-with={project.ROOT / 'nbval.cfg'}"]
    return command + list(paths)
