"""A name for what a function compiles to: a hash of its code and of everything it refers to.

Two functions with the same fingerprint compile to the same kernel, in this process or another: same
bytecode, same constants, same closure values, and so on through every function they call. What
Numba itself brings (cuda.grid, math.exp) counts by its name; its version is part of the cache key.
"""

import dis
import enum
import functools
import hashlib
import types
from collections.abc import Iterator
from importlib.util import MAGIC_NUMBER
from pathlib import Path

import numpy as np

PLAIN = (type(None), bool, int, float, complex, str, bytes, type(...), range, slice)
BY_NAME = {"builtins", "math", "cmath", "operator", "numpy", "numba", "llvmlite", "torch", "cuda"}
BETWEEN = {"EXTENDED_ARG", "PUSH_NULL", "CACHE"}  # may stand between a module and its attribute
MISSING = object()


class Unknown(Exception):
    """The function refers to something whose value cannot be told; its code is not kept on disk."""


def fingerprint(fn, *, lines: bool = False) -> str:
    """64 hexadecimal digits for a kernel's function.

    lines: source positions count too (they end up in the code when it has line information).
    Raises Unknown where the function refers to an object that has no lasting description.
    """
    walk = _Walk(lines)
    walk.add("python", MAGIC_NUMBER)
    walk.value(fn)
    return walk.digest.hexdigest()


def references(fn: types.FunctionType) -> Iterator[tuple[str, object]]:
    """(dotted name, value) of every global and closure variable in a function's code.

    An attribute of a module is resolved: `ptx.load` gives the instruction, not the module.
    """
    cells = dict(zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True))
    for code in _codes(fn.__code__):
        name, value = "", MISSING
        for step in dis.get_instructions(code):
            if step.opname in BETWEEN:
                continue
            attribute = step.opname in ("LOAD_ATTR", "LOAD_METHOD")
            if attribute and isinstance(value, types.ModuleType):
                name, value = f"{name}.{step.argval}", getattr(value, step.argval, MISSING)
                continue
            if value is not MISSING:
                yield name, value
            name, value = str(step.argval), MISSING
            if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
                value = fn.__globals__.get(name, MISSING)
            elif step.opname in ("LOAD_DEREF", "LOAD_CLASSDEREF") and name in cells:
                value = _content(cells[name])


def _codes(code):
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _content(cell):
    try:
        return cell.cell_contents
    except ValueError:  # assigned later
        return MISSING


class _Walk:
    def __init__(self, lines):
        self.lines = lines
        self.digest = hashlib.sha256()
        self.seen = {}  # id → (number, object): a second meeting is a reference to the first

    def add(self, *tokens):
        for token in tokens:
            data = token if isinstance(token, bytes) else str(token).encode("utf-8", "replace")
            self.digest.update(len(data).to_bytes(8, "little") + data)

    def value(self, x):
        if isinstance(x, PLAIN) and type(x) in PLAIN:
            return self.add(type(x).__name__, repr(x))
        if id(x) in self.seen:
            return self.add("again", self.seen[id(x)][0])
        self.seen[id(x)] = (len(self.seen), x)
        self._object(x)

    def _object(self, x):
        if isinstance(x, np.ndarray | np.generic):
            self.add("array", np.asarray(x).dtype.str, np.shape(x), np.asarray(x).tobytes())
        elif isinstance(x, enum.Enum):
            self.add("enum", type(x).__qualname__, x.name)
            self.value(x.value)
        elif isinstance(x, tuple | list):
            self.add(type(x).__qualname__, len(x))
            for item in x:
                self.value(item)
        elif isinstance(x, dict):
            self.add("dict", len(x))
            for key, item in x.items():
                self.value(key)
                self.value(item)
        elif isinstance(x, frozenset):
            self.add("frozenset", sorted(map(repr, x)))
        elif isinstance(x, types.CodeType):
            self._code(x)
        elif isinstance(x, types.ModuleType):
            self.add("module", x.__name__, getattr(x, "__version__", ""))
        else:
            self._named(x)

    def _named(self, x):
        """Functions, and objects that stand for one."""
        module = getattr(x, "__module__", None) or type(x).__module__
        inner = getattr(x, "py_func", None) or getattr(x, "_defn", None)  # a dispatcher, intrinsic
        if callable(inner):
            options = getattr(x, "targetoptions", None) or getattr(x, "_options", {})
            options = repr(sorted(options.items()))
            if " at 0x" in options:
                raise Unknown(f"{x!r} has options without a lasting name")
            self.add("compiled", options)
            self.value(inner)
        elif _is_instruction(x):
            self.add("ptx", x.name, x.signature, x.cc, _package_hash())
            self._text(x.text)
        elif isinstance(x, types.FunctionType) and _top(module) not in BY_NAME - {"builtins"}:
            self._function(x)  # one made by exec counts among the builtins
        elif _top(module) in BY_NAME or _top(type(x).__module__) in BY_NAME - {"builtins"}:
            self._external(x, module)
        else:
            raise Unknown(f"{x!r} is an object of {type(x).__qualname__}")

    def _text(self, text):
        """An instruction's PTX, or its generator: the package's hash covers all but closures."""
        if callable(text) and text.__module__.startswith(f"{__package__}.ptx."):
            self.add(text.__qualname__)
            for cell in text.__closure__ or ():
                if isinstance(content := _content(cell), PLAIN):
                    self.value(content)
        else:
            self.value(text)

    def _external(self, x, module):
        name = getattr(x, "__qualname__", None) or getattr(x, "__name__", None) or repr(x)
        if " at 0x" in name or "<locals>" in name:
            raise Unknown(f"{name} of {module} has no lasting name")
        self.add("external", module, name, type(x).__qualname__)

    def _function(self, fn):
        self.add("function", fn.__name__)
        self.value(fn.__code__)
        self.value(fn.__defaults__)
        self.value(fn.__kwdefaults__)
        for name, value in references(fn):
            self.add(name)
            if not (_top(name) != name and _is_external(fn.__globals__.get(_top(name)))):
                self.value(value)

    def _code(self, code):
        self.add("code", code.co_name, code.co_code, code.co_names, code.co_varnames)
        self.add(code.co_freevars, code.co_cellvars, code.co_argcount, code.co_flags)
        if self.lines:
            self.add(code.co_filename, code.co_firstlineno, code.co_linetable)
        for constant in code.co_consts:
            self.value(constant)


def _top(name):
    return name.partition(".")[0]


def _is_external(module):
    return isinstance(module, types.ModuleType) and _top(module.__name__) in BY_NAME


def _is_instruction(x):
    from .ptx.instruction import Instruction

    return isinstance(x, Instruction)


@functools.cache
def _package_hash():
    """Of the sources that turn instructions into code."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).with_name("ptx").glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
