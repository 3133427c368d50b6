"""A kernel's own source: its syntax tree, its lines, and what its names refer to."""

import ast
import builtins
import inspect
import sys
import textwrap
from typing import Any

from .errors import UnsupportedSyntax
from .standin import StandIn

FORBIDDEN = {
    ast.Try: "try", ast.With: "with", ast.Lambda: "lambda", ast.ListComp: "a comprehension",
    ast.SetComp: "a comprehension", ast.DictComp: "a comprehension", ast.Yield: "yield",
    ast.GeneratorExp: "a generator", ast.Await: "await", ast.Global: "global",
    ast.Nonlocal: "nonlocal", ast.ClassDef: "class", ast.Import: "import", ast.Dict: "a dict",
    ast.ImportFrom: "import", ast.Delete: "del", ast.Set: "a set", ast.Match: "match",
    ast.AsyncFunctionDef: "async", ast.NamedExpr: ":=", ast.Starred: "*",
    ast.JoinedStr: "f-strings",
}  # fmt: skip


def python_function(fn: Any) -> Any:
    """The Python function of a kernel: of a dispatcher, of a jitted kernel, or the function."""
    for name in ("py_func", "function", "__wrapped__"):
        inner = getattr(fn, name, None)
        if inspect.isfunction(inner):
            return inner
    if not inspect.isfunction(fn):
        raise TypeError(f"kernel: got {fn!r}, expected a Python function or a compiled kernel")
    return fn


def is_instruction(value: Any) -> bool:
    """Whether a value is an instruction of `ptx`."""
    return hasattr(value, "meaning") and hasattr(value, "scope")


def is_device_function(value: Any) -> bool:
    """Whether a value is a compiled function that a kernel may call: ours, or one of Numba."""
    return inspect.isfunction(getattr(value, "py_func", None))


class Source:
    """The syntax tree of a function, with line numbers of its file, and its names."""

    def __init__(self, fn: Any):
        self.function = fn = python_function(fn)
        self.name = fn.__name__
        try:
            lines, self.first_line = inspect.getsourcelines(fn)
        except (OSError, TypeError) as error:
            raise UnsupportedSyntax(
                f"{self.name}: the emulator needs the kernel's source, which is in no file or cell"
            ) from error
        self.filename = fn.__code__.co_filename
        self.lines = [line.rstrip("\n") for line in lines]
        self.tree = definition(fn, textwrap.dedent("".join(lines)))
        ast.increment_lineno(self.tree, self.first_line - 1)
        self.tree.decorator_list = []
        self.parameters = [a.arg for a in self.tree.args.args]
        self.locals = set(self.parameters) | {
            node.id
            for node in ast.walk(self.tree)
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
        }
        free = fn.__code__.co_freevars
        cells = [c.cell_contents for c in fn.__closure__ or ()]
        self.names = {**vars(builtins), **fn.__globals__, **dict(zip(free, cells, strict=True))}
        self.check()

    def check(self) -> None:
        for node in ast.walk(self.tree):
            nested = isinstance(node, ast.FunctionDef) and node is not self.tree
            if nested or type(node) in FORBIDDEN:
                what = "a nested function" if nested else FORBIDDEN[type(node)]
                raise UnsupportedSyntax(
                    f"{self.name}, line {node.lineno}: {what} cannot be used in a kernel"
                )

    def line_text(self, line: int) -> str:
        index = line - self.first_line
        return self.lines[index].strip() if 0 <= index < len(self.lines) else ""

    def value(self, node: ast.expr) -> Any:
        """What an expression refers to before the kernel runs, or MISSING: a global, a constant
        of the closure, an attribute of a module."""
        if isinstance(node, ast.Name):
            return MISSING if node.id in self.locals else self.names.get(node.id, MISSING)
        if isinstance(node, ast.Attribute):
            base = self.value(node.value)
            if base is MISSING:
                return MISSING
            path = cuda_path(base)
            if path is not None:
                return CudaName(f"{path}.{node.attr}" if path else node.attr)
            return getattr(base, node.attr, MISSING)
        return MISSING


def definition(fn: Any, text: str) -> ast.FunctionDef:
    """The function that `text` defines; a lambda as the function that it is short for."""
    try:
        nodes = list(ast.walk(ast.parse(text)))
    except SyntaxError:  # a lambda in the middle of a call over several lines
        nodes = []
    if fn.__name__ != "<lambda>":
        found = [node for node in nodes if isinstance(node, ast.FunctionDef)]
    else:
        found = [as_function(node) for node in nodes if isinstance(node, ast.Lambda)]
    if not found or (fn.__name__ == "<lambda>" and len(found) > 1):
        where = f"line {fn.__code__.co_firstlineno} of {fn.__code__.co_filename}"
        raise UnsupportedSyntax(
            f"{fn.__name__} ({where}): its source cannot be told from what stands around it: "
            f"write the function with `def`"
        )
    return found[0]


def as_function(node: ast.Lambda) -> ast.FunctionDef:
    body = ast.copy_location(ast.Return(node.body), node.body)
    made = ast.FunctionDef("lambda_", node.args, [body], [], None)
    if hasattr(ast, "TypeVar"):  # Python 3.12 has type parameters
        made.type_params = []
    return ast.copy_location(made, node)


class CudaName(str):
    """A dotted path inside the `cuda` namespace, for example "shared.array"."""


class _Missing:
    def __repr__(self) -> str:
        return "MISSING"


MISSING = _Missing()
_paths: dict[int, tuple[Any, str]] = {}


def cuda_path(value: Any) -> str | None:
    """The dotted path of an object of the `cuda` namespace, "" for the namespace itself."""
    if isinstance(value, CudaName):
        return str(value)
    if isinstance(value, StandIn):
        return value._path
    module = sys.modules.get("numba.cuda")
    if module is None:
        return None
    if value is module:
        return ""
    if not _paths:
        index_namespace(module)
    found = _paths.get(id(value))
    return found[1] if found else None


def index_namespace(module: Any) -> None:
    """Find numba.cuda's objects by identity, for `from numba.cuda import syncthreads`."""
    from .twins import TWINS

    names = {*TWINS, "threadIdx", "blockIdx", "blockDim", "gridDim", "warpsize", "laneid"}
    prefixes = {path.rsplit(".", 1)[0] for path in names if "." in path}
    for path in sorted(names | prefixes):
        found = module
        for part in path.split("."):
            found = getattr(found, part, None)
        if found is not None and not isinstance(found, int | float):
            _paths.setdefault(id(found), (found, path))
