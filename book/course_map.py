"""What the course holds today: its notebooks by part and by route, read from the folder.

A notebook that does not exist is not mentioned, so no page can have a dead entry.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from .project import ROOT

PARTS = {  # title → numbers; a number that is in none belongs to the last
    "A language model": range(0, 8),
    "Kernels": range(8, 14),
    "Together": range(14, 18),
}
ROUTES = {  # title → (for whom, numbers)
    "The language model": (
        "from bytes to a model that writes Python. A laptop, no GPU, some Python and no more",
        (*range(0, 8), 15, 16, 17),
    ),
    "The kernels": (
        "what runs underneath, from a first kernel to tensor cores",
        (0, *range(8, 14)),
    ),
    "Everything": ("in the order of the numbers", (*range(0, 18),)),
}


@dataclass(frozen=True)
class Notebook:
    name: str  # "03_attention_head"
    title: str
    minutes: int | None  # as the notebook says at its top

    @property
    def number(self) -> int:
        return int(self.name[:2])


def notebooks(folder: Path = ROOT / "notebooks") -> list[Notebook]:
    """All notebooks whose name starts with two digits, in their order."""
    return [read(path) for path in sorted(folder.glob("[0-9][0-9]_*.ipynb"))]


def read(path: Path) -> Notebook:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    text = "".join("".join(cells[0]["source"])) if cells else ""
    title = re.search(r"^# +(.+)$", text, re.MULTILINE)
    minutes = re.search(r"(\d+) min", text)
    return Notebook(
        path.stem, title[1].strip() if title else path.stem, int(minutes[1]) if minutes else None
    )


def part_of(number: int) -> str:
    """The title of the part that a notebook belongs to."""
    return next((title for title, numbers in PARTS.items() if number in numbers), [*PARTS][-1])


def toc(found: list[Notebook]) -> str:
    """One table of contents per part that has notebooks, for the side of every page."""
    lines = []
    for part in PARTS:
        names = [f"/notebooks/{n.name}" for n in found if part_of(n.number) == part]
        if names:
            lines += ["```{toctree}", ":hidden:", f":caption: {part}", "", *names, "```", ""]
    return "\n".join(lines)


def routes(found: list[Notebook]) -> str:
    """Each route with its notebooks that exist, as links; the same list is not shown twice."""
    lines, shown = [], []
    for title, (whom, numbers) in ROUTES.items():
        own = [n for n in found if n.number in numbers]
        links = [link(n) + duration(n) for n in own]
        lines += [f"**{title}**: {whom}.", ""]
        if not any(n.number for n in own):  # 00 alone, where all routes begin, is none
            lines += ["None of its notebooks is written yet.", ""]
            continue
        if links in shown:
            lines += ["So far these are the same notebooks.", ""]
            continue
        lines += [*(f"1. {text}" for text in links), ""]
        shown.append(links)
    return "\n".join(lines)


def link(notebook: Notebook) -> str:
    return f"[{notebook.title}](/notebooks/{notebook.name}.ipynb)"


def duration(notebook: Notebook) -> str:
    return f", about {notebook.minutes} minutes" if notebook.minutes else ""
