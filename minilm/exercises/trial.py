"""What happens to an answer while it is checked: it is called, watched and compared.

A `Trial` counts the checks that held and stops at the first that did not. `trial.call` runs the
answer, compares its arguments with copies made before, turns an exception into a verdict with the
line of the reader's own code, and notices calls of the function that the exercise is about.
"""

import contextlib
import inspect
import linecache
import sys
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

TOLERANCE = {torch.float32: (1e-4, 1e-6), torch.float64: (1e-9, 1e-12)}  # relative, absolute


class NotAttempted(Exception):
    """The answer is still the stub."""


class Wrong(Exception):
    """The answer fails: `text` says which property, `hint` where to look."""

    def __init__(self, text: str, hint: str):
        super().__init__(text)
        self.text, self.hint = text, hint


class Trial:
    """One answer under test. `function` is the solution, whose parameters the answer shares."""

    def __init__(
        self,
        function: Callable,
        answer: Callable,
        forbidden: tuple[str, ...] = (),
        in_place: tuple[str, ...] = (),
    ):
        self.answer, self.forbidden, self.in_place = answer, forbidden, in_place
        self.signature = inspect.signature(function)
        self.name = function.__name__
        self.passed = 0
        self.last_call, self.last_result = "", None  # for messages
        self.on_error = ""  # the hint if the answer raises

    def call(self, *args, **kwargs):
        """The answer's result, which is not None. Raises Wrong or NotAttempted."""
        result = self.call_or_none(*args, **kwargs)
        if result is None and not self.in_place:
            raise Wrong(f"{self.last_call} returned None", "is there a `return` on every path?")
        return result

    def call_or_none(self, *args, **kwargs):
        """As `call`, where None is a result like any other."""
        arguments = self.signature.bind(*args, **kwargs).arguments
        kept = {name: _copy(value) for name, value in arguments.items()}
        shown = [show(value) for value in args] + [f"{k}={show(v)}" for k, v in kwargs.items()]
        self.last_call = f"{self.name}({', '.join(shown)})"
        error = result = None
        with calls_to(self.forbidden) as called:
            try:
                result = self.answer(*args, **kwargs)
            except Exception as raised:  # anything the reader's code can do wrong
                error = raised
        if called:
            hint = "write it out: that function is the exercise itself."
            raise Wrong(f"it calls {called[0]}", hint)
        if error is not None:
            raise self._blame(error) from error
        for name, value in arguments.items():
            if name not in self.in_place and not _same(value, kept[name]):
                hint = "work on a copy, or make a new value: the caller still needs the old one."
                raise Wrong(f"{self.last_call} changed its argument {name}", hint)
        self.last_result = result
        return result

    def require(self, holds: bool, text: str, hint: str) -> None:
        """Count one check, or stop with the property that failed."""
        if not holds:
            raise Wrong(text, hint)
        self.passed += 1

    def equal(self, got: object, want: object, hint: str, mistakes: Iterable = ()) -> None:
        """got == want; `mistakes` are (value, hint) pairs: what well-known slips would give."""
        if got != want:
            hint = next((other for value, other in mistakes if got == value), hint)
        text = f"{self.last_call} gave {show(got)}, expected {show(want)}"
        self.require(got == want, text, hint)

    def close(
        self, got: object, want: Tensor, text: str, hint: str, mistakes: Iterable = ()
    ) -> None:
        """`got`, a tensor or number, has the shape and values of want; `mistakes` as in `equal`."""
        if not isinstance(got, Tensor):
            try:
                got = torch.as_tensor(got, dtype=want.dtype)
            except (TypeError, ValueError, RuntimeError):
                hint = f"the result must be {_shape(want)}."
                raise Wrong(f"{self.last_call} gave {show(got)}, not a tensor", hint) from None
        if got.shape != want.shape:
            shapes = f"a result of shape {tuple(got.shape)}, expected {tuple(want.shape)}"
            hint = next((h for v, h in mistakes if _close(got, v)), hint)
            raise Wrong(f"{self.last_call} gave {shapes}", hint)
        if not _close(got, want):
            hint = next((h for v, h in mistakes if _close(got, v)), hint)
            raise Wrong(text, hint)
        self.passed += 1

    def _blame(self, error: Exception) -> Exception:
        """The exception of an answer as a verdict, with the last line that is the reader's."""
        traceback, line, inside = error.__traceback__.tb_next, "", False
        code = getattr(inspect.unwrap(self.answer), "__code__", None)
        while traceback is not None:
            filename = traceback.tb_frame.f_code.co_filename
            if code is not None and filename == code.co_filename:
                text = linecache.getline(filename, traceback.tb_lineno).strip()
                line = f" in line {traceback.tb_lineno}" + (f" ({text})" if text else "")
                inside = traceback.tb_next is None
            traceback = traceback.tb_next
        if isinstance(error, NotImplementedError) and inside:
            return NotAttempted()
        message = (str(error).strip().splitlines() or [""])[0].rstrip(".")
        what = f"{type(error).__name__}: {message}" if message else type(error).__name__
        hint = self.on_error or "run this call in a cell of its own and look at each step."
        return Wrong(f"{self.last_call} raised {what}{line}", hint)


class _SeenOperations(TorchFunctionMode):
    """Notes the torch functions and methods with one of `names`, however they were reached."""

    def __init__(self, names: tuple[str, ...], called: list[str]):
        super().__init__()
        self.names, self.called = names, called

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "").removeprefix("special_")
        if name in self.names:
            self.called.append(f"torch's {name}")
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def calls_to(forbidden: tuple[str, ...]):
    """The list of forbidden calls made inside the block: torch operations, paths, minilm itself.

    minilm.exercises does not count: a check hands models of its own to an answer.
    """
    called: list[str] = []
    paths = tuple(f"{name}." for name in ("minilm", *forbidden) if name == "minilm" or "." in name)

    def profile(frame, event, _):
        if event == "call":
            name = f"{frame.f_globals.get('__name__')}.{frame.f_code.co_qualname}"
            if f"{name}.".startswith(paths) and not name.startswith("minilm.exercises."):
                called.append(name)

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        with _SeenOperations(forbidden, called):
            yield called
    finally:
        sys.setprofile(before)


def guarded(values: Tensor, width: int = 5) -> tuple[Tensor, Callable[[], bool]]:
    """(a view with `values` inside a larger buffer, a function: is the rest of it intact?).

    For answers that write in place: memory before and after the view must stay what it was.
    """
    guard = torch.linspace(-7.0, 7.0, width, dtype=values.dtype)
    buffer = torch.cat([guard, values.flatten(), guard])
    view = buffer[width : width + values.numel()].view(values.shape)
    return view, lambda: bool((buffer[:width] == guard).all() and (buffer[-width:] == guard).all())


def show(value: object, limit: int = 70) -> str:
    """A value in a message: short, and the same in every run."""
    if isinstance(value, Tensor):
        return f"{value.item():.4g}" if value.ndim == 0 else _shape(value)
    if isinstance(value, nn.Module | torch.optim.Optimizer):
        return type(value).__name__.lstrip("_")
    if callable(value):
        return getattr(value, "__name__", type(value).__name__)
    if isinstance(value, list | tuple) and any(isinstance(item, Tensor) for item in value):
        text = f"({', '.join(show(item) for item in value)})"
    elif isinstance(value, float):
        text = f"{value:.4g}"
    else:
        text = repr(value)
    if " at 0x" in text:
        text = type(value).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _shape(x: Tensor) -> str:
    return f"a tensor {tuple(x.shape)}"


def _close(got: Tensor, want: Tensor) -> bool:
    want = torch.as_tensor(want)
    if got.shape != want.shape:
        return False
    rtol, atol = TOLERANCE.get(want.dtype, (0, 0))
    return torch.allclose(got.detach().to(want.dtype), want, rtol, atol)


def _copy(value: object) -> object:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if type(value) in (list, tuple):
        return type(value)(_copy(item) for item in value)
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    return value


def _same(a: object, b: object) -> bool:
    if isinstance(a, Tensor):
        return a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())
    if type(a) in (list, tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    return a is b or a == b
