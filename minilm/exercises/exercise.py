"""An exercise, defined once: what the reader gets and the solution are cut from the same function.

    @exercise(notebook="03_attention_head", minutes=5, difficulty=2, hints=("…", "…"))
    def my_softmax(x):
        \"""The statement: what to write, with shapes.\"""
        # solution:
        e = (x - x.max(-1, keepdim=True).values).exp()
        return e / e.sum(-1, keepdim=True)
        # end

    @my_softmax.checked_by
    def _(softmax, trial): ...

In a file `heads.py` this is the exercise `heads.softmax`; the prefix `my_` keeps a stub in a
notebook from hiding a function of the package. Between `# solution:` and `# end` the reader finds
`raise NotImplementedError`. A repair exercise has `# given:` first, and behind it, as comments, the
broken lines that the reader finds instead. A solution may use torch, F and math, and nothing else
of its module: its text is all that a notebook gets.
"""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from types import CodeType

import torch

from .trial import NotAttempted, Trial, Wrong, show

REGISTRY: dict[str, "Exercise"] = {}  # in the order of the course


@dataclass(frozen=True)
class Verdict:
    """What `check` says about one answer. str(verdict) is one line, the same in every run."""

    name: str
    status: str  # "right", "wrong" or "not attempted"
    text: str = ""
    hint: str = ""

    @property
    def passed(self) -> bool:
        return self.status == "right"

    def __str__(self) -> str:
        if self.status == "not attempted":
            return f"… {self.name}: not attempted yet"
        if self.passed:
            return f"✓ {self.name}: {self.text}"
        return f"✗ {self.name}: {self.text}. Hint: {self.hint}"


@dataclass(eq=False)
class Exercise:
    """A function to write (kind "code") or to mend (kind "repair").

    function    the solution, with the markers in its source; its docstring is the statement
    forbidden   what the answer may not call because it is the exercise itself: names of torch
                operations ("softmax"), modules or functions of Python ("torch.optim",
                "torch.autograd.grad"); all of minilm is forbidden anyway
    in_place    parameters that the answer changes; all others must come back as they were
    """

    function: Callable
    notebook: str
    minutes: int
    difficulty: int  # 1 to 3
    hints: tuple[str, ...]
    kind: str = "code"
    forbidden: tuple[str, ...] = ()
    in_place: tuple[str, ...] = ()
    _check: Callable | None = field(default=None, init=False)

    @property
    def name(self) -> str:
        topic = self.function.__module__.rpartition(".")[2]
        return f"{topic}.{self.function.__name__.removeprefix('my_')}"

    @property
    def statement(self) -> str:
        return inspect.getdoc(self.function) or ""

    @cached_property
    def _cut(self) -> tuple[str, str]:
        return cut(definition(self.function))

    @property
    def stub(self) -> str:
        """What stands in the notebook, above the call of `check`."""
        return self._cut[0]

    @property
    def solution(self) -> str:
        """The same text with a solution in place."""
        return self._cut[1]

    @property
    def answered(self) -> str:
        """What stands in the place of the stub when the exercise is done."""
        return self.solution

    @property
    def variable(self) -> str:
        """The name that a cell hands to `check`."""
        return self.function.__name__

    def checked_by(self, check: Callable) -> Callable:
        """Decorator for the function (answer, trial) that tries an answer out."""
        self._check = check
        return check

    def grade(self, answer: object) -> Verdict:
        """Try an answer. Leaves the random state as it was; prints nothing."""
        if answer is None or answer is ... or self._is_given(answer):
            return Verdict(self.name, "not attempted")
        if not callable(answer):
            hint = f"hand over the function itself, without calling it: {self.variable}."
            return Verdict(self.name, "wrong", f"{show(answer)} is not a function", hint)
        trial = Trial(self.function, answer, self.forbidden, self.in_place)
        try:
            with torch.random.fork_rng(devices=[]), torch.enable_grad():
                self._check(trial.call, trial)
        except NotAttempted:
            return Verdict(self.name, "not attempted")
        except Wrong as wrong:
            return Verdict(self.name, "wrong", wrong.text, wrong.hint)
        except (TypeError, ValueError, AttributeError, LookupError, RuntimeError):
            # A check reads the result as what the statement asks for; this one is something else.
            text = f"{trial.last_call} gave {show(trial.last_result)}, which is of another kind"
            return Verdict(
                self.name, "wrong", text, "look at what the docstring says of the result."
            )
        return Verdict(self.name, "right", f"{trial.passed} checks passed")

    def _is_given(self, answer: object) -> bool:
        """Whether a repair exercise comes back as it was handed out, comments and layout apart."""
        code = getattr(inspect.unwrap(answer), "__code__", None)
        if self.kind != "repair" or code is None:
            return False
        constants = compile(self.stub, "<given>", "exec").co_consts
        given = next(c for c in constants if isinstance(c, CodeType))
        return _instructions(given) == _instructions(code)


@dataclass(eq=False)
class Prediction(Exercise):
    """A question to answer before running anything: a choice or a number.

    function    the demonstration: it returns the answer, so the answer is never typed in
    choices     key → what it says; None where a number is asked
    mistakes    wrong key or number → its hint; every wrong choice must have one
    otherwise   the hint for any other number
    because     the reason, shown with a right answer
    """

    choices: dict[str, str] | None = None
    mistakes: dict = field(default_factory=dict)
    otherwise: str = ""
    because: str = ""

    variable = "my_answer"

    @cached_property
    def answer(self) -> object:
        with torch.random.fork_rng(devices=[]):
            return self.function()

    @property
    def stub(self) -> str:
        lines = [f"# {line}".rstrip() for line in self.statement.splitlines()]
        lines += [f'#   "{key}": {text}' for key, text in (self.choices or {}).items()]
        return "\n".join([*lines, "my_answer = None  # put your answer here", ""])

    @property
    def solution(self) -> str:
        return f"{cut(definition(self.function))[1]}\n\nmy_answer = {self.function.__name__}()\n"

    @property
    def answered(self) -> str:
        return f"my_answer = {self.answer!r}\n"

    def grade(self, answer: object) -> Verdict:
        if answer is None or answer is ...:
            return Verdict(self.name, "not attempted")
        if self._matches(answer, self.answer):
            return Verdict(self.name, "right", f"1 check passed. {self.because}")
        for value, hint in self.mistakes.items():
            if self._matches(answer, value):
                return Verdict(self.name, "wrong", f"{show(answer)} is not it", hint)
        if self.choices is not None:
            hint = f"answer with one of {', '.join(show(key) for key in self.choices)}."
            return Verdict(self.name, "wrong", f"{show(answer)} is none of the choices", hint)
        return Verdict(self.name, "wrong", f"{show(answer)} is not it", self.otherwise)

    def _matches(self, answer: object, value: object) -> bool:
        if self.choices is not None:
            return isinstance(answer, str) and answer.strip().lower() == value
        try:
            return math.isclose(float(answer), value, rel_tol=0.01, abs_tol=1e-6)
        except (TypeError, ValueError, RuntimeError):
            return False


def exercise(**options) -> Callable[[Callable], Exercise]:
    """Decorator that turns a solution into an Exercise; the options are its fields."""
    return lambda function: _register(Exercise(function, **options))


def predict(**options) -> Callable[[Callable], Prediction]:
    """Decorator that turns a demonstration into a Prediction; the options are its fields."""
    return lambda function: _register(Prediction(function, kind="predict", **options))


def _register(entry: Exercise) -> Exercise:
    if entry.name in REGISTRY:
        raise ValueError(f"exercise: there is one with the name {entry.name!r} already")
    REGISTRY[entry.name] = entry
    return entry


def definition(function: Callable) -> str:
    """The source of a function without its decorators."""
    lines = inspect.getsource(function).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("def "))
    return "\n".join(lines[start:]) + "\n"


def cut(source: str) -> tuple[str, str]:
    """(what the reader gets, the solution) out of a source with the three markers."""
    given, solution = [], []
    part, seen_given = "both", False
    for line in source.splitlines():
        indent, text = line[: len(line) - len(line.lstrip())], line.strip()
        if text == "# given:":
            part, seen_given, margin = "given", True, indent
        elif text == "# solution:":
            if not seen_given:
                given.append(f"{indent}raise NotImplementedError")
            part, seen_given = "solution", False
        elif text == "# end":
            part = "both"
        elif part == "given":
            given.append(margin + line.removeprefix(margin).removeprefix("#").removeprefix(" "))
        else:
            solution.append(line)
            if part == "both":
                given.append(line)
    return "\n".join(given) + "\n", "\n".join(solution) + "\n"


def _instructions(code: CodeType) -> tuple:
    constants = (_instructions(c) if isinstance(c, CodeType) else c for c in code.co_consts)
    return code.co_code, code.co_names, code.co_varnames, tuple(constants)
