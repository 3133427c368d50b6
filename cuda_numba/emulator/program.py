"""A kernel made ready to run: rewritten once for its argument types, bound anew for each launch."""

import ast
import math
from functools import partial
from types import FunctionType
from typing import Any

import numpy as np

from . import arithmetic
from .errors import UnsupportedSyntax
from .log import MAX_PLACES, PLACE
from .machine import Machine
from .memory import View
from .rewrite import Rewriter
from .rewrite_statements import WAITING
from .source import Source, python_function
from .tracer import Tracer


class Program:
    """The rewritten source of a kernel and of every device function that it calls.

    The tables say what the injected names stand for; `bind` gives them a machine.
    """

    def __init__(self, fn: Any, argument_types: list[Any], traced: bool):
        self.traced = traced
        self.switches = self.cooperative = self.spins = False
        self.chunks: list[Any] = []
        self.branch_sites: list[Any] = []
        self.loop_sites: list[Any] = []
        self.call_sites: list[tuple] = []
        self.values: dict[str, Any] = {}
        self.places: list[tuple[tuple, str]] = []
        self.twins: dict[str, tuple] = {}
        self.instructions: dict[str, tuple] = {}
        self.units: dict[tuple, str] = {}
        self.variables: dict[tuple, str] = {}  # place of a call → the variable that it is given to
        self.trees: list[tuple[ast.FunctionDef, str]] = []
        self.returns: dict[tuple, Any] = {}
        self.untyped: list[tuple[int, str]] = []
        self.source = Source(fn)
        self.entry = self.unit(fn, argument_types)
        self.codes = [compile_unit(tree, filename) for tree, filename in self.trees]

    # ---- what the rewriter asks for -----------------------------------------------------------

    def unit(self, fn: Any, types: list[Any]) -> str:
        """The injected name of a function rewritten for these argument types."""
        fn = python_function(fn)
        key = (fn, tuple(map(str, types)))
        found = self.units.get(key)
        if found is None:
            found = self.units[key] = f"_e_f{len(self.units)}_{fn.__name__.strip('<>')}"
            source = Source(fn)
            self.variables |= assigned(source)
            rewriter = Rewriter(self, source, types, found)
            self.trees.append((rewriter.function(), rewriter.source.filename))
            self.returns[key] = rewriter.types.result
            self.untyped += rewriter.types.untyped
        return found

    def resolve_call(self, fn: Any, types: list[Any]) -> Any:
        """The type that a device function returns for these argument types."""
        self.unit(fn, types)
        return self.returns.get((python_function(fn), tuple(map(str, types))))

    def bind_value(self, value: Any) -> str:
        key = f"_e_v{len(self.values)}"
        self.values[key] = value
        return key

    def bind_place(self, origin: tuple, kind: str) -> int:
        """The number of a load or store of an element, as the log has it."""
        if len(self.places) >= MAX_PLACES:
            raise UnsupportedSyntax(f"{origin[3]}: more than {MAX_PLACES} loads and stores")
        self.places.append((origin, kind))
        return (len(self.places) - 1) << PLACE

    def bind_call(self, origin: tuple) -> int:
        self.call_sites.append(origin)
        return -len(self.call_sites)  # loops count up from 0, calls down from −1

    def bind_twin(self, twin: Any, origin: tuple) -> str:
        self.switches |= twin.switches
        key = f"_e_t{len(self.twins)}"
        if twin.path in ARRAYS:
            line, column, text, *where = origin
            origin = (line, column, self.variables.get((line, column, *where), text), *where)
        self.twins[key] = (twin, origin)
        return key

    def bind_instruction(self, instruction: Any, origin: tuple) -> str:
        self.switches |= instruction.switches
        key = f"_e_i{len(self.instructions)}"
        self.instructions[key] = (instruction, origin)
        return key

    # ---- one launch ---------------------------------------------------------------------------

    def bind(self, machine: Machine) -> Any:
        """The kernel as a Python function of its parameters, running on `machine`."""
        names: dict[str, Any] = {"__builtins__": {}, "_e_m": machine, **arithmetic.namespace()}
        for base, dims in (("block", machine.block_dim), ("grid", machine.grid_dim)):
            names |= {f"_e_{base}_{axis}": n for axis, n in zip("xyz", dims, strict=True)}
        names |= {f"_e_{key}": Place(machine, key) for key in DIMENSIONS}
        names |= self.values
        names |= {k: bind_twin(machine, t, o, self.traced) for k, (t, o) in self.twins.items()}
        names |= {
            k: bind_instruction(machine, i, o, self.traced)
            for k, (i, o) in self.instructions.items()
        }
        machine.hits = [0] * len(self.chunks)
        names |= {"_e_item": item, "_e_assign": assign, "_e_hits": machine.hits}
        if self.traced:
            machine.tracer = Tracer(machine, self)
            names |= machine.tracer.hooks()
        functions = {}
        for code in self.codes:
            functions[code.co_name] = FunctionType(code, names, code.co_name)
            machine.codes.add(code)
        names.update(functions)
        return functions[self.entry]


def assigned(source: Source) -> dict[tuple, str]:
    """The variables that calls are assigned to: place of the call → name."""
    return {
        (node.value.lineno, node.value.col_offset, source.name, source.filename): target.id
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Call)
        for target in (node.targets[:1] if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name)
    }


ARRAYS = ("shared.array", "local.array")
DIMENSIONS = {
    "threadIdx": lambda m: m.t.xyz,
    "blockIdx": lambda m: m.t.block.xyz,
    "blockDim": lambda m: m.block_dim,
    "gridDim": lambda m: m.grid_dim,
}


class Place:
    """`cuda.threadIdx` and its kin, where a kernel passes the whole triple around."""

    def __init__(self, machine: Machine, key: str):
        self._read = partial(DIMENSIONS[key], machine)

    x = property(lambda self: self._read()[0])
    y = property(lambda self: self._read()[1])
    z = property(lambda self: self._read()[2])


def compile_unit(tree: ast.FunctionDef, filename: str) -> Any:
    module = compile(ast.Module([tree], []), filename, "exec")
    return next(c for c in module.co_consts if hasattr(c, "co_name") and c.co_name == tree.name)


def bind_twin(machine: Machine, twin: Any, origin: tuple, traced: bool) -> Any:
    if twin.bind is not None:
        return twin.bind(machine, origin)
    if not (twin.memory or twin.barrier):
        return partial(twin.run, machine)

    def run(*args: Any, **kwargs: Any) -> Any:
        machine.origin = origin
        return twin.run(machine, *args, **kwargs)

    return run


def bind_instruction(machine: Machine, ins: Any, origin: tuple, traced: bool) -> Any:
    """The meaning of an instruction, called with a kernel's arguments."""
    meaning, prepare, result = ins.meaning, ins.prepare, ins.cast_result
    if ins.scope == "pure":
        if result is None:
            return lambda *args: meaning(*prepare(args))
        return lambda *args: result(meaning(*prepare(args)))
    if ins.scope == "warp":
        full = 0xFFFFFFFF

        def compute(lanes: dict) -> Any:
            machine.origin = origin
            if len(lanes) < 32:
                raise machine.incomplete_warp(ins.name)
            return meaning(machine.t.warp, [lanes[i] for i in range(32)])

        def run_warp(*args: Any) -> Any:
            t = machine.t
            return t.collect(ins.name, full, prepare(args), compute)

        return run_warp

    waits = ins.name.startswith(WAITING)

    def run(*args: Any) -> Any:
        if waits:
            machine.scheduler.pause(machine)
        machine.origin = origin
        value = meaning(machine.t, *prepare(args))
        return value if result is None or value is None else result(value)

    return run


# ---- elements whose array's type was not inferred ---------------------------------------------


def item(x: Any, index: Any) -> Any:
    value = x[index]
    if isinstance(value, np.integer | np.bool_):
        return value.item()
    return value


def assign(x: np.ndarray, index: Any, value: Any) -> None:
    kind = x.dtype.kind
    if kind in "iu" and not isinstance(value, np.ndarray):
        bits = 8 * x.itemsize
        value = int(value) & ((1 << bits) - 1) if math.isfinite(value) else 0
        if kind == "i" and value >> (bits - 1):
            value -= 1 << bits
    x[index] = value


__all__ = ["Program", "View"]
