"""What pages take from the code: functions that return Markdown, by name for `{generated}`.

```{generated} results
```
"""

import os
from collections.abc import Callable

from tools.environment import CPU_INDEX, TORCH
from tools.notebooks import STEADY, nbval_command

from . import architecture, checked, choices, course_map, measured, reference
from .project import ROOT, raw_link, repository


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
"""


def colab() -> str:
    return f"```text\n%pip install -q git+{repository()}\n```\n"


def nbval_options() -> str:
    """The options with which `course.py validate` calls nbval, paths as seen from the root."""
    options = (str(part) for part in nbval_command(False, []))
    return " ".join(o.replace(f"{ROOT}{os.sep}", "") for o in options if o.startswith("--nbval"))


def nbval() -> str:
    """The commands that install the package from its repository and check notebooks."""
    options = nbval_options().replace(" --nbval-cell", " \\\n    --nbval-cell")
    return f"""```bash
pip install pytest nbval "minilm[lab] @ git+{repository()}"
pytest {options} \\
    notebooks
```
"""


def workflow() -> str:
    """A GitHub workflow of one job that checks the notebooks of a repository."""
    env = "\n".join(f'      {name}: "{value}"' for name, value in STEADY.items())
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
      - run: pip install {TORCH} --index-url {CPU_INDEX}
      - run: pip install "minilm[lab] @ git+{repository()}" pytest nbval
      - run: curl -sSfLO {raw_link("nbval.cfg")}
      - run: pytest {nbval_options()} notebooks
```
"""


def results() -> str:
    return measured.page(measured.result_files())


def tiny_choices() -> str:
    return choices.report(choices.read())


GENERATED: dict[str, Callable[..., str]] = {
    "toc": toc,
    "routes": routes,
    "start": start,
    "colab": colab,
    "nbval": nbval,
    "workflow": workflow,
    "map": architecture.map_of,
    "map-project": architecture.map_of_project,
    "modules": architecture.modules_of,
    "tree": architecture.tree,
    "results": results,
    "checked": checked.report,
    "choices": tiny_choices,
    "exercises": reference.exercise_list,
    "api": reference.api,
}


def generate(call: str) -> str:
    """The Markdown of a call such as "map minilm"; ValueError for an unknown name."""
    name, *arguments = call.split()
    if name not in GENERATED:
        raise ValueError(f"generated: must be one of {', '.join(GENERATED)}, got {name!r}")
    return GENERATED[name](*arguments)
