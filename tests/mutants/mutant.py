"""How wrong answers are registered."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    function: Callable
    fragment: str  # of the verdict's text or hint
    right_on_simplest: bool


MUTANTS: dict[str, list[Mutant]] = defaultdict(list)
SIMPLEST: dict[str, Callable] = {}


def wrong(name: str, fragment: str, right_on_simplest: bool = False) -> Callable:
    def add(function):
        MUTANTS[name].append(Mutant(function, fragment, right_on_simplest))
        return function

    return add


def simplest(name: str) -> Callable:
    """Decorator for a function that tries an answer on the simplest input; returns the result."""

    def add(run):
        SIMPLEST[name] = run
        return run

    return add
