"""Answers that are kernels: launched on the emulator, where nothing that they do goes unseen.

    ran = launch(trial, blocks, threads, a=a, b=b, out=torch.empty(n))
    ran["out"], ran.report

The answer is an ordinary kernel function, with `@jit` or without. What it writes starts as NaN and
counts as undefined, what it reads must stay as it was, and every array lies between guard zones.
Races, accesses outside an array, reads of what nobody wrote and barriers that not all threads reach
are wrong answers, told with the line. `within` compares the traffic with par.
"""

import inspect
import math
import sys
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from .trial import NotAttempted, Trial, Wrong, guarded

GUARD = 8  # float32 elements: a whole sector, so that alignment is that of a fresh array
ROOM = 1.1  # traffic up to this multiple of the solution's is at par: another order of the same

HINTS = {
    "out_of_bounds": "there are more threads than elements: let only those that have one go on.",
    "negative_index": "a kernel has no index from the end: ask whether there is a left neighbour.",
    "misaligned": "an access of n bytes has to start at a multiple of n.",
    "race": "cuda.syncthreads() belongs between the write and the other thread's access.",
    "uninitialised": "memory holds anything at first: write an element before you read it.",
    "divergent_barrier": "all threads of a block must reach the same barrier: take it out of `if`.",
    "barrier_not_reached": "all threads of a block must reach each barrier, idle ones too.",
    "deadlock": "all threads of a block must reach each barrier, and take part in each shuffle.",
    "livelock": "a loop does not come to its end: does its variable change in every round?",
}
NO_KERNEL = (
    "a kernel is made of numbers, `if`, loops, elements such as x[i], and functions of cuda and "
    "math."
)


class Ran:
    """A launch that went well so far: what arrays hold now (by name), and its report."""

    def __init__(self, arrays: dict[str, Tensor], report):
        self.arrays, self.report = arrays, report

    def __getitem__(self, name: str) -> Tensor:
        return self.arrays[name]


@cache
def names() -> dict:
    """What a kernel of an exercise may call beside Python and math."""
    from cuda_numba import namespace

    return {name: getattr(namespace, name) for name in namespace.__all__}


def kernel_of(answer: Callable) -> Callable:
    """The Python function of an answer, with `jit` around it or not, ready to be emulated."""
    function = inspect.unwrap(answer)
    function = getattr(function, "py_func", function)
    if not inspect.isfunction(function):
        raise Wrong("it is not a kernel", "hand over the function that you wrote.")
    if function.__module__ in sys.modules and function.__module__.startswith("minilm.exercises."):
        for name, value in names().items():  # the solutions' files do not import Numba
            function.__globals__.setdefault(name, value)
    return function


def emulated(answer: Callable, grid, block, *arrays, undefined=()):
    """The emulator's report of one launch of an answer."""
    from cuda_numba import emulate

    return emulate(kernel_of(answer)).report(grid, block, *arrays, undefined=undefined)


def launch(trial: Trial, grid, block, *, hints: dict[str, str] | None = None, **arrays) -> Ran:
    """Launch the answer of a trial on arrays, in the order of its parameters.

    Arrays that are NaN throughout are what the kernel is to write. hints: kind of a finding → hint,
    before those of HINTS. Raises Wrong for every fault, NotAttempted for the stub.
    """
    function = kernel_of(trial.answer)
    if "NotImplementedError" in function.__code__.co_names:
        raise NotAttempted
    hints = HINTS | (hints or {})
    written = tuple(name for name, x in arrays.items() if bool(x.isnan().all()))
    placed = {name: guarded(x, GUARD) for name, x in arrays.items()}
    views = {name: view for name, (view, _) in placed.items()}
    sizes = ", ".join(f"{name} {tuple(x.shape)}" for name, x in arrays.items())
    trial.last_call = f"{trial.name}[{grid}, {block}] on {sizes}"
    _parameters(function, arrays)
    report = _report(trial, function, grid, block, views, written, hints)
    for finding in report.findings:
        if finding.kind in hints:
            raise Wrong(f"{trial.last_call}: {str(finding).rstrip('.')}", hints[finding.kind])
    for name, (view, intact) in placed.items():
        if not intact():
            raise Wrong(f"{trial.last_call} wrote beside {name}", hints["out_of_bounds"])
        if name not in written and not torch.equal(view, arrays[name]):
            raise Wrong(f"{trial.last_call} changed {name}", "write into the last array only.")
    trial.last_result = views[written[-1]]
    return Ran(views, report)


def _parameters(function: Callable, arrays: dict) -> None:
    code = function.__code__
    plain = not code.co_flags & (inspect.CO_VARARGS | inspect.CO_VARKEYWORDS)
    if code.co_argcount != len(arrays) or not plain:
        text = f"{function.__name__} does not take {len(arrays)} arrays"
        raise Wrong(text, f"its parameters are {', '.join(arrays)}.")


def _report(trial, function, grid, block, views, written, hints):
    names_of = tuple(inspect.signature(function).parameters)
    undefined = tuple(names_of[list(views).index(name)] for name in written)
    try:
        return emulated(function, grid, block, *views.values(), undefined=undefined)
    except Exception as error:  # whatever the reader's code can do wrong
        kind = "".join(f"_{c.lower()}" if c.isupper() else c for c in type(error).__name__)
        what = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        hint = hints.get(kind.removeprefix("_"), NO_KERNEL)
        raise Wrong(f"{trial.last_call}: {what}", hint) from error


def filled(trial: Trial, got: Tensor, hint: str) -> None:
    """Every element has been written."""
    missing = int(got.isnan().sum())
    whole = f"{missing} of {got.numel()} elements of the result were not written, or are NaN"
    trial.require(not missing, f"{trial.last_call}: {whole}", hint)


def within(trial: Trial, what: str, got: int, par: int, hint: str) -> None:
    """A count of the report is at par: at most as large."""
    trial.require(got <= par, f"{trial.last_call}: {got:,} {what}, par is {par:,}", hint)


def sectors_of(solution: Callable, grid, block, *arrays: Tensor) -> int:
    """The sectors that are par for a launch: those of the solution, and a little room."""
    placed = [guarded(x, GUARD)[0] for x in arrays]
    return math.floor(ROOM * emulated(solution, grid, block, *placed).sectors)


def nan(*shape: int) -> Tensor:
    """An array for the kernel to fill."""
    return torch.full(shape, math.nan)


def wavy(*shape: int, seed: int = 0) -> Tensor:
    """Numbers between -2 and 2 of which no two neighbours are alike."""
    return 4 * torch.rand(shape, generator=torch.Generator().manual_seed(seed)) - 2
