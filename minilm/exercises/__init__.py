"""The exercises of the course.

    from minilm import exercises
    exercises.names()                          # all, in the order of the course
    exercises.check("heads.softmax", my_softmax)
    exercises.hint("heads.softmax")            # one hint more at each call
    print(exercises.solution("heads.softmax"))

One file per topic, one function per exercise: exercise.py says how. Notebooks hold the stubs
(notebook.py).
"""

import difflib  # isort: skip_file
import sys

# Not sorted: importing a topic registers its exercises, and this is the order of the course.
from . import start, merges, tokens, batches, heads, training, optimizers, kernels, memory  # noqa: F401
from . import matmul, flash, flash_backward, training_fast  # noqa: F401
from .exercise import REGISTRY, Exercise, Verdict

__all__ = ["check", "get", "grade", "hint", "names", "solution"]

_hints_shown: dict[str, int] = {}


def names(notebook: str | None = None) -> list[str]:
    """The names of all exercises, or of those that belong to a notebook ("03_attention_head")."""
    return [name for name, entry in REGISTRY.items() if notebook in (None, entry.notebook)]


def get(name: str) -> Exercise:
    """The exercise with this name; ValueError for an unknown one."""
    if name not in REGISTRY:
        near = difflib.get_close_matches(str(name), REGISTRY, n=1)
        known = f"did you mean {near[0]!r}" if near else f"one of {', '.join(REGISTRY)}"
        raise ValueError(f"name: there is no exercise {name!r}, {known}")
    return REGISTRY[name]


def grade(name: str, answer: object) -> Verdict:
    """What `check` prints, as a value: status "right", "wrong" or "not attempted"."""
    return get(name).grade(answer)


def check(name: str, answer: object) -> bool:
    """Try an answer and print one line of verdict; True if it is right.

    answer: the function that the exercise asks for, or the predicted value; None: not attempted.
    """
    verdict = grade(name, answer)
    _print(str(verdict))
    return verdict.passed


def hint(name: str, n: int | None = None) -> None:
    """Print the next hint, each time a more telling one, or hint number `n`, counted from 1."""
    hints = get(name).hints
    if n is None:
        n = _hints_shown.get(name, 0) + 1
        _hints_shown[name] = min(n, len(hints))
        if n > len(hints):
            _print(f'That was the last hint. A solution: print(exercises.solution("{name}"))')
            return
    if not 1 <= n <= len(hints):
        raise ValueError(f"n: {name} has hints 1 to {len(hints)}, got {n}")
    _print(f"Hint {n} of {len(hints)}: {hints[n - 1]}")


def solution(name: str) -> str:
    """The source of a solution, to print."""
    return get(name).solution


def _print(text: str) -> None:
    """print, also on a console that has no ✓."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    print(text.encode(encoding, "replace").decode(encoding))
