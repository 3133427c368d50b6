"""What there is to look up: all exercises, and the public names of the package."""

import importlib
import inspect
import types

from minilm import exercises

from . import course_map, graph, measured
from .architecture import order_of
from .docstrings import to_rst
from .project import ROOT

KINDS = {"code": "write", "repair": "mend", "predict": "predict"}


def exercise_list() -> str:
    """All exercises, by notebook: name, kind, minutes, difficulty, statement."""
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
