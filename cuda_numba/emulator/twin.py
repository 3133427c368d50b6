"""What a name of the `cuda` namespace is to the emulator, and the table of all of them.

A twin is called as twin(machine, *arguments), with the arguments that the kernel gave. `switches`
says that threads may wait in it, so that the kernel needs a greenlet for each; `memory` that it
touches memory and wants to know the place in the source that it is called from.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Twin:
    """One function of the namespace. bind(machine, place in the source), where it is worth a
    function of its own, gives what the kernel calls; `run` may be None then."""

    path: str
    run: Callable[..., Any] | None
    switches: bool = False
    memory: bool = False
    barrier: bool = False
    bind: Callable[[Any, tuple], Callable] | None = None


TWINS: dict[str, Twin] = {}


def twin(path: str, **options: Any) -> Callable:
    def define(run: Callable) -> Callable:
        TWINS[path] = Twin(path, run, **options)
        return run

    return define
