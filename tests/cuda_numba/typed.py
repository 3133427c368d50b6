"""Functions made of text, as the emulator runs them for given types."""

import ast
import copy
import linecache
import math

import numpy as np
from numba.core import types

from cuda_numba.emulator.desugar import desugar
from cuda_numba.emulator.infer import infer
from cuda_numba.emulator.machine import Machine
from cuda_numba.emulator.program import Program
from cuda_numba.emulator.source import Source

NAMES = {"np": np, "math": math, **{n: getattr(types, n) for n in (
    "boolean int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64".split()
)}}  # fmt: skip
EDGES = {
    "float": [0.0, -0.0, 1.0, -1.0, 0.5, -2.5, 3.0, 7.25, 16777217.0, 1e10, -1e19, 1.8e19, 0.1,
              math.inf, -math.inf, math.nan],
    "int": [0, 1, 2, 3, 7, 63, (1 << 24) + 1, 1 << 53, (1 << 53) + 1, -1, -2, -7, -(1 << 24) - 1],
}  # fmt: skip
_count = iter(range(1 << 30))


def function(text, **names):
    """The function that `text` defines; its source can be read, as that of one in a file."""
    filename = f"<typed {next(_count)}>"
    linecache.cache[filename] = (len(text), None, text.splitlines(True), filename)
    space = {**NAMES, **names}
    exec(compile(text, filename, "exec"), space)
    return next(v for v in space.values() if getattr(v, "__code__", None)
                and v.__code__.co_filename == filename)  # fmt: skip


def emulated(fn, *kinds):
    """A function as the emulator runs it, for arguments of these types (None: not known)."""
    program = Program(fn, list(kinds), traced=False)
    machine = Machine((1, 1, 1), (1, 1, 1))
    return program.bind(machine), program


def inferred(fn, *kinds, **options):
    """The annotated tree of a function, and what is known of it."""
    source = Source(fn)
    tree = desugar(copy.deepcopy(source.tree), source)
    return tree, infer(tree, source, list(kinds), options.pop("resolve", None), **options)


def variables(tree, found):
    """Name → all the types that it is read with."""
    out = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            if node.id in found.source.locals and hasattr(node, "_value"):
                out.setdefault(node.id, set()).add(found.of(node))
    return out


def numba_type(name):
    return types.boolean if name == "bool" else getattr(types, name)


def edges(name):
    """Values of a dtype at which arithmetic goes wrong, as NumPy scalars."""
    if name == "bool":
        return [np.False_, np.True_]
    dtype = np.dtype(name)
    if dtype.kind == "f":
        info = np.finfo(dtype)
        more = [info.max, -info.max, info.tiny, info.smallest_subnormal]
        with np.errstate(all="ignore"):
            return [dtype.type(v) for v in (*EDGES["float"], *more)]
    info = np.iinfo(dtype)
    more = [info.min, info.min + 1, info.max, info.max - 1, info.max // 3, 1 << dtype.itemsize * 4]
    return [dtype.type(v) for v in sorted({*EDGES["int"], *more}) if info.min <= v <= info.max]


def held(value):
    """A NumPy scalar as the emulator holds it: integers and booleans are Python's."""
    return value if isinstance(value, np.floating) else value.item()


def is_of(value, kind):
    """Whether a number is of the class that the emulator uses for a Numba type, and inside it."""
    if isinstance(kind, types.Boolean):
        return isinstance(value, bool | np.bool_)
    if isinstance(kind, types.Integer):
        return type(value) is int and kind.minval <= value <= kind.maxval
    return type(value) is np.dtype(str(kind)).type


def same(got, want):
    """Equal bit for bit, but for the payload of a NaN."""
    if isinstance(want, float | np.floating):
        if want != want:
            return got != got
        return got == want and math.copysign(1, got) == math.copysign(1, want)
    return got == want
