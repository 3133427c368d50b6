"""Typical wrong answers to the exercises, one file per topic.

    @simplest("heads.softmax")
    def _(softmax): return softmax(torch.zeros(2, 2))       # the input a reader would try first

    @wrong("heads.softmax", "maximum first", right_on_simplest=True)
    def without_maximum(x): ...

A wrong answer must fail with a verdict in which the fragment occurs. At least one of each exercise is
right on the simplest input, so that a check which tries no more than that would let it pass.
"""

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
    """Decorator for a function that tries an answer on the simplest input and returns the result."""

    def add(run):
        SIMPLEST[name] = run
        return run

    return add


from . import batches, heads, merges, optimizers, start, tokens, training  # noqa: E402, F401
