"""`emulate`: any kernel, on the CPU, with the syntax of a launch."""

from typing import Any

import numpy as np

from ..arguments import Parameter, is_array, is_cuda, parameters, signature_of
from ..dtypes import dtype_name, kernel_dtype
from .errors import EmulatorError, OutOfBounds
from .log import numbers
from .machine import Dim, Machine
from .memory import ALLOCATION_BITS, View
from .program import Program
from .report import Report
from .source import python_function
from .trace import Trace

GRID_LIMITS = (2**31 - 1, 65535, 65535)
BLOCK_LIMITS = (1024, 1024, 64)


def three(value: Any, what: str, limits: Dim) -> Dim:
    """A launch dimension as three numbers."""
    given = tuple(value) if isinstance(value, tuple | list) else (value,)
    if not 1 <= len(given) <= 3 or not all(isinstance(n, int | np.integer) for n in given):
        raise TypeError(f"{what}: got {value!r}, expected one to three integers")
    out = tuple(int(n) for n in given) + (1,) * (3 - len(given))
    for n, limit in zip(out, limits, strict=True):
        if not 1 <= n <= limit:
            raise ValueError(f"{what}: got {value!r}, each may be 1 to {limits}")
    return out


class Emulation:
    """A kernel that runs on the emulator: `emulate(fn)[grid, block](…)`."""

    def __init__(self, fn: Any, pointers: bool = False):
        self.function = python_function(fn)
        self.name = self.function.__name__
        self.pointers = pointers
        self._parameters: tuple[Parameter, ...] | None = None
        self.programs: dict[tuple, Program] = {}

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        if self._parameters is None:
            self._parameters = parameters(self.function)
        return self._parameters

    def __getitem__(self, configuration: Any) -> "Launch":
        if not isinstance(configuration, tuple) or not 2 <= len(configuration) <= 4:
            raise ValueError(
                f"{self.name}: launched with [{configuration!r}], expected "
                f"[blocks, threads], [blocks, threads, stream] or [blocks, threads, stream, smem]"
            )
        grid, block, *rest = configuration
        return Launch(self, grid, block, smem=rest[1] if len(rest) > 1 else 0)

    def launch(self, grid: Any, block: Any, *args: Any, **options: Any) -> None:
        """Run the kernel. options: smem (bytes), cluster, cooperative, seed."""
        self.run(grid, block, args, tracing=False, **options)

    def report(
        self, grid: Any, block: Any, *args: Any, undefined: tuple[str, ...] = (), **options: Any
    ) -> Report:
        """Run the kernel with everything recorded; the arguments are written as by a launch.

        Lists every finding, and raises only where the kernel cannot go on (a deadlock). seed: the
        order of threads, and who goes first at memory accesses, drawn from it. undefined: names of
        the parameters whose arrays hold nothing yet; reading them is then found as "uninitialised".
        """
        names = [p.name for p in self.parameters]
        for name in undefined:
            if name not in names:
                raise ValueError(
                    f"undefined: {self.name} has no parameter {name!r}, it has {', '.join(names)}"
                )
        machine, program = self.run(grid, block, args, tracing=True, **options)
        given = dict(zip(names, args, strict=True))
        trace = self.trace(machine, program)
        trace.written = written(machine, [given[name] for name in undefined])
        return Report(trace)

    def program(self, signature: tuple, traced: bool) -> Program:
        key = (signature, traced)
        found = self.programs.get(key)
        if found is None:
            found = self.programs[key] = Program(self.function, list(signature), traced)
        return found

    def run(
        self,
        grid: Any,
        block: Any,
        args: tuple[Any, ...],
        *,
        tracing: bool,
        smem: int = 0,
        cluster: Any = None,
        cooperative: bool = False,
        seed: int | None = None,
    ) -> tuple[Machine, Program]:
        grid, block = three(grid, "grid", GRID_LIMITS), three(block, "block", BLOCK_LIMITS)
        if block[0] * block[1] * block[2] > 1024:
            raise ValueError(f"block: got {block}, a block may have at most 1024 threads")
        signature = signature_of(self.name, self.parameters, args, self.pointers)
        program = self.program(signature, tracing)
        machine = Machine(
            grid,
            block,
            shared=int(smem),
            seed=seed,
            tracing=tracing,
            cluster=three(cluster, "cluster", (8, 8, 8)) if cluster is not None else None,
            cooperative=cooperative or program.cooperative,
        )
        values = [
            kernel_value(machine, p.name, value, kind, self.pointers)
            for p, value, kind in zip(self.parameters, args, signature, strict=True)
        ]
        kernel = program.bind(machine)
        machine.spins = program.spins
        with np.errstate(all="ignore"):
            try:
                self.execute(machine, program, kernel, values)
                for action in machine.at_end:
                    action()
            except EmulatorError:
                raise
            except Exception as error:
                raise explain(self.name, machine, program, error) from error
        return machine, program

    def execute(self, machine: Machine, program: Program, kernel: Any, values: list) -> None:
        if program.switches or (machine.rng is not None and machine.tracing):
            machine.scheduler.run(machine.groups(), called_with(kernel, values))
            return
        # Threads that never wait for each other need no greenlets: plain calls, one by one.
        for group in machine.groups():
            for b in group:
                for t in b.threads:
                    machine.t = t
                    if machine.tracing:
                        machine.log.state(t)
                    kernel(*values)

    def trace(self, machine: Machine, program: Program) -> Trace:
        accesses, branches = machine.log.decode(program.places)
        loops = numbers(machine.loops).reshape(-1, 5)
        return Trace(
            kernel=self.name,
            filename=program.source.filename,
            source=program.source.lines,
            first_line=program.source.first_line,
            block_shape=machine.block_dim,
            grid_shape=machine.grid_dim,
            sites=machine.log.sites,
            accesses=accesses,
            clocks=machine.clocks,
            stamps=machine.stamps,
            paths=machine.paths,
            branch_sites=program.branch_sites,
            branches=branches,
            loop_sites=program.loop_sites,
            loops=loops,
            chunks=program.chunks,
            chunk_hits=machine.hits,
            findings=machine.findings,
            shared_bytes=machine.shared_bytes,
            local_bytes=machine.local_bytes,
            arrays=machine.arrays,
        )


def called_with(kernel: Any, values: list) -> Any:
    """A function that calls the kernel with these arguments.

    It names each: a call with `*values` would go through C, whose stack every switch of threads
    copies.
    """
    names = ", ".join(f"a{i}" for i in range(len(values)))
    return eval(f"lambda kernel, {names}: lambda: kernel({names})")(kernel, *values)


class Launch:
    """A kernel with its launch dimensions: call it with the arguments."""

    def __init__(self, emulation: Emulation, grid: Any, block: Any, smem: int = 0):
        self.emulation, self.grid, self.block, self.smem = emulation, grid, block, smem

    def __call__(self, *args: Any) -> None:
        self.emulation.launch(self.grid, self.block, *args, smem=self.smem)


def emulate(kernel: Any) -> Emulation:
    """Run a kernel on the CPU: a Python function, or one compiled by `numba.cuda.jit` or `jit`.

    >>> emulate(kernel)[blocks, threads](a, b, out)
    >>> emulate(kernel).report(blocks, threads, a, b, out).races
    """
    return Emulation(kernel, pointers=bool(getattr(kernel, "pointers", False)))


# ---- arguments ----------------------------------------------------------------------------------


def kernel_value(machine: Machine, name: str, value: Any, kind: Any, pointers: bool) -> Any:
    """What the kernel sees of an argument: an array, or a number of its type."""
    if not is_array(value):
        return number(value, kind)
    if is_cuda(value):
        raise ValueError(f"{name}: is on a GPU, the emulator takes CPU tensors and arrays")
    a, storage = as_numpy(value)
    if hasattr(value, "pointees"):
        a, storage = addresses(machine, name, a.shape, value.pointees), None
    if pointers:
        a = a.reshape(-1)
    base = machine.memory.add(a, name, storage)
    machine.add_array(name, "global", base, a)
    return View(a, "global", base, name, machine.log) if machine.tracing else a


def addresses(machine: Machine, name: str, shape: tuple, pointees: Any) -> np.ndarray:
    """A table of addresses, int64, as the kernel sees it: of every tensor that it points to.

    Such a table is a tensor with the attribute `pointees`, the tensors in the table's order.
    """
    table = []
    for i, tensor in enumerate(pointees):
        a, storage = as_numpy(tensor)
        table.append(machine.memory.add(a.reshape(-1), f"{name}[{i}]", storage))
    return np.array(table, np.int64).reshape(shape)


def as_numpy(value: Any) -> tuple[np.ndarray, tuple[int, int] | None]:
    """An array over the same memory, and the storage around it (machine address, bytes)."""
    if isinstance(value, np.ndarray):
        return value, None
    tensor = value.detach()
    bits = kernel_dtype(dtype_name(tensor))
    if bits != dtype_name(tensor):
        import torch

        tensor = tensor.view(getattr(torch, bits))
    storage = tensor.untyped_storage()
    return tensor.numpy(), (storage.data_ptr(), storage.nbytes())


def written(machine: Machine, undefined: list[Any]) -> dict[int, np.ndarray] | None:
    """For each allocation that these arrays lie in, which of its bytes have a value."""
    marks: dict[int, np.ndarray] = {}
    for value in undefined:
        a, _ = as_numpy(value)
        _, address, _ = machine.memory.lookup(a)
        index, offset = divmod(address, 1 << ALLOCATION_BITS)
        mask = marks.get(index - 1)
        if mask is None:
            nbytes = machine.memory.allocations[index - 1].nbytes
            mask = marks[index - 1] = np.ones(nbytes, bool)
        first = np.zeros(1, np.int64) + offset
        for n, stride in zip(a.shape, a.strides, strict=True):
            first = (first[:, None] + stride * np.arange(n)).reshape(-1)
        mask[(first[:, None] + np.arange(a.itemsize)).reshape(-1)] = False
    return marks or None


def number(value: Any, kind: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(number(v, k) for v, k in zip(value, kind, strict=True))
    text = str(kind)
    if text.startswith("float"):
        return np.dtype(text).type(value)
    return bool(value) if text == "bool" else int(value)


def explain(name: str, machine: Machine, program: Program, error: Exception) -> EmulatorError:
    """An exception inside a kernel, with its thread, block and line."""
    line, trace = None, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code in machine.codes:
            line = trace.tb_lineno
        trace = trace.tb_next
    t = machine.t
    where = {"thread": t.xyz, "block": t.block.xyz, "line": line} if t is not None else {}
    text = program.source.line_text(line) if line else ""
    kind = OutOfBounds if isinstance(error, IndexError) else EmulatorError
    at = f"thread {t.xyz} of block {t.block.xyz}, " if t is not None else ""
    what = str(error) if kind is OutOfBounds else f"{type(error).__name__}: {error}"
    return kind(f"{name}: {at}line {line}: `{text}`: {what}", **where)
