"""`jit`: one kernel object for both machines.

    @jit
    def add(a, b, out):
        i = cuda.grid(1)
        if i < out.shape[0]:
            out[i] = a[i] + b[i]

    add[blocks, threads](a, b, out)

CUDA tensors run on the GPU, on torch's current stream; CPU tensors and NumPy arrays on the
emulator. The function stays ordinary Numba CUDA: under plain `numba.cuda.jit` it compiles too.
"""

import functools
from collections.abc import Callable
from typing import Any

from .arguments import declared_type, is_cuda, parameters, signature_of
from .launch_log import LaunchRecord, launches, open_logs

__all__ = ["Kernel", "LaunchRecord", "jit", "launches"]

CONFIGURATIONS = 4096  # launchers that a kernel keeps


class Kernel:
    """A kernel, or with device=True a function that kernels call.

    Attributes: name, function (the Python function), pointers, device, parameters, options (of the
    compiler: see compiler.Options).
    """

    def __init__(
        self, function: Callable, *, pointers: bool = False, device: bool = False, **options: Any
    ):
        self.function = self.py_func = function
        self.name = function.__name__
        self.pointers, self.device, self._options = pointers, device, options
        self.parameters = parameters(function)
        self.known: list[Any] = []  # loaded for a GPU, the last used first: see launch.launch
        self._ready: dict[Any, Callable] = {}  # configuration → launcher of known[0]
        self._last: tuple[Any, ...] | None = None
        functools.update_wrapper(self, function)

    def __repr__(self) -> str:
        kind = "device function" if self.device else "kernel"
        return f"<{kind} {self.name}({', '.join(p.name for p in self.parameters)})>"

    def __deepcopy__(self, memo: Any) -> "Kernel":
        return self

    def __call__(self, *_args: Any, **_kwargs: Any) -> Any:
        if self.device:
            raise TypeError(f"{self.name} is a device function: it runs inside a kernel only")
        raise TypeError(f"{self.name} is a kernel: launch it with {self.name}[blocks, threads](…)")

    # ---- launching ----------------------------------------------------------------------------

    def __getitem__(self, configuration: Any) -> Callable[..., None]:
        """A function of the kernel's arguments that launches it.

        configuration: [blocks, threads], then perhaps a stream and bytes of shared memory; blocks
        and threads are an integer or up to three.
        """
        try:
            return self._ready[configuration]
        except (KeyError, TypeError):  # TypeError: a list has no hash
            return self._launcher(configuration)

    def _launcher(self, configuration: Any) -> Callable[..., None]:
        if not isinstance(configuration, tuple) or not 2 <= len(configuration) <= 4:
            raise ValueError(
                f"{self.name}: launched with [{configuration!r}], expected "
                f"[blocks, threads], [blocks, threads, stream] or [blocks, threads, stream, smem]"
            )
        grid, block, stream, smem = (*configuration, 0, 0)[:4]

        def looked_at(*args: Any) -> None:
            self.launch(grid, block, *args, smem=smem, stream=stream)

        def first(*args: Any) -> None:  # for who keeps it: quick once the kernel has been loaded
            (self[configuration] if self.known else looked_at)(*args)

        if not self.known:
            return first
        quick = self.known[0].bind(
            grid, block, stream, smem, otherwise=looked_at, current=self.known, logs=open_logs
        )
        if _is_lasting(configuration):
            if len(self._ready) >= CONFIGURATIONS:
                self._ready.clear()
            self._ready[configuration] = quick
        return quick

    def launch(
        self,
        grid: Any,
        block: Any,
        *args: Any,
        smem: int = 0,
        stream: Any = 0,
        cluster: Any = None,
        cooperative: bool = False,
        pdl: bool = False,
    ) -> None:
        """Run the kernel on the arguments' machine.

        smem: bytes of dynamic shared memory. cluster: blocks per cluster (sm_90). pdl: may begin
        before the kernel before it has ended (programmatic dependent launch, sm_90).
        """
        if self.device:
            raise TypeError(f"{self.name} is a device function: it runs inside a kernel only")
        reports, report = any(log.wants_reports for log in open_logs), None
        if any(map(is_cuda, args)):
            if reports:
                raise RuntimeError(
                    f"{self.name}: launches(report=True) takes its reports from the emulator, and "
                    "the arguments are on a GPU; pass CPU tensors, or record with launches()"
                )
            signature = self.launch_on_gpu(
                grid, block, args, smem=smem, stream=stream, cluster=cluster,
                cooperative=cooperative, pdl=pdl,
            )  # fmt: skip
            device = "cuda"
        else:
            signature = signature_of(self.name, self.parameters, args, self.pointers)
            run = self.emulation.report if reports else self.emulation.launch
            report = run(grid, block, *args, smem=smem, cluster=cluster, cooperative=cooperative)
            device = "emulator"
            self.known.clear()  # the next launch on a GPU is looked at from the start
        self._ready.clear()  # known[0] may be another one now
        self._last = signature
        for log in open_logs:
            log.append(LaunchRecord(self, signature, grid, block, device, report))

    def launch_on_gpu(self, grid: Any, block: Any, args: tuple, **options: Any) -> tuple:
        from .launch import launch

        return launch(self, grid, block, args, **options)

    # ---- the emulator -------------------------------------------------------------------------

    @functools.cached_property
    def emulation(self) -> Any:
        from .emulator import emulate

        return emulate(self)

    def report(self, grid: Any, block: Any, *args: Any, smem: int = 0, **options: Any) -> Any:
        """Run the kernel on the emulator with everything recorded: see emulator.Report.

        options: seed, cluster, cooperative. The arguments are CPU tensors or arrays, and are
        written as by a launch.
        """
        return self.emulation.report(grid, block, *args, smem=smem, **options)

    # ---- the compiler -------------------------------------------------------------------------

    @functools.cached_property
    def options(self) -> Any:
        """How the kernel is compiled: a compiler.Options."""
        from .compiler import Options

        return Options(**self._options)

    @functools.cached_property
    def _dispatcher(self) -> Any:
        from numba import cuda

        return cuda.jit(device=True)(self.function)

    @property
    def _numba_type_(self) -> Any:
        """What Numba sees when another kernel calls this one as a device function.

        The type refers to the dispatcher weakly: the kernel keeps it alive.
        """
        return self._dispatcher._numba_type_

    def signature(self, given: tuple | None = None) -> tuple:
        """The Numba types to compile for: given, of the last launch, or of the annotations.

        given: one entry for each parameter, a Numba type or a text such as "float32",
        "float32[:]" or "float32[:, :]".
        """
        if given is None and self._last is not None:
            return self._last
        given = given if given is not None else (None,) * len(self.parameters)
        if len(given) != len(self.parameters):
            raise TypeError(
                f"{self.name}: the signature has {len(given)} types, the kernel has "
                f"{len(self.parameters)} parameters"
            )
        return tuple(
            declared_type(self.name, p, g, self.pointers)
            for p, g in zip(self.parameters, given, strict=True)
        )

    def code(self, cc: Any = (9, 0), signature: tuple | None = None) -> Any:
        """The compiled code for one architecture (build.Code): no GPU is needed."""
        from .build import compile_kernel

        return compile_kernel(self.function, self.signature(signature), cc, self.options)

    def ptx(self, cc: Any = (9, 0), signature: tuple | None = None) -> str:
        """The kernel as PTX, the assembly language of the virtual machine."""
        return self.code(cc, signature).ptx

    def sass(self, cc: Any = (9, 0), signature: tuple | None = None) -> str:
        """The kernel as the machine code of one architecture."""
        return self.code(cc, signature).sass

    def resources(self, cc: Any = (9, 0), signature: tuple | None = None) -> Any:
        """Registers, spills and shared memory on one architecture."""
        return self.code(cc, signature).resources


def _is_lasting(configuration: tuple) -> bool:
    """Whether it is all integers: a stream may be closed, a tensor may change its value."""
    parts = (part if type(part) is tuple else (part,) for part in configuration)
    return all(type(n) is int for part in parts for n in part)


def jit(
    function: Callable | None = None,
    *,
    launch_bounds: int | tuple[int, ...] | None = None,
    max_registers: int | None = None,
    fastmath: bool = False,
    pointers: bool = False,
    device: bool = False,
    lto: bool = False,
    lineinfo: bool = False,
) -> Any:
    """Make a kernel of a function, alone or with options.

    launch_bounds  most threads a block, or (threads, least blocks on an SM, most blocks a cluster)
    max_registers  registers a thread at most
    fastmath       flush subnormals, approximate division and square root, contract
    pointers       tensors arrive as bare pointers, which know `x[i]` and no shape: the fast launch
    device         a function that kernels call
    lto            optimise once more while linking
    lineinfo       keep source lines in the machine code, for profilers
    """
    options = {
        "launch_bounds": launch_bounds, "max_registers": max_registers, "fastmath": fastmath,
        "lto": lto, "lineinfo": lineinfo,
    }  # fmt: skip

    def make(fn: Callable) -> Kernel:
        return Kernel(fn, pointers=pointers, device=device, **options)

    return make if function is None else make(function)
