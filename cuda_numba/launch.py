"""Launch a kernel on a GPU, with every argument checked, in a few microseconds of host time.

    compiled = load(fn, signature, device)             # once per signature: compile, load the cubin
    compiled.launch(grid, block, args, smem=…)         # checks, then cuLaunchKernel
    launcher = compiled.bind(grid, block); launcher(*args)

What is loaded is `compiled.code.cubin`, the machine code that the gates look at. The stream is
PyTorch's current one, looked up at each launch, so `torch.cuda.graph` captures launches; a launch
allocates nothing and waits for nothing. The kernel has to be loaded before a capture begins.
"""

import weakref
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

from . import driver, native
from .arguments import Parameter, is_cuda, parameters, signature_of
from .build import DEFAULT, Code, compile_kernel
from .compiler import Options
from .configuration import check_shape, launch_attributes, launch_shape, raw_stream
from .packing import arguments_of, generate, layout_of

PLAIN_SHARED = 48 * 1024  # bytes per block that need no permission
TRIED = 4  # signatures of a kernel that are tried before the arguments are looked at one by one
PORTABLE_CLUSTER = 8  # blocks per cluster that every architecture with clusters allows


class Compiled:
    """A kernel for one signature on one device.

    Attributes: `code` (see build.py), `name`, `signature`, `device` (its index), `cubin`, `ptx`,
    `ptx_sha256`, `resources`, `assembler`; `function`, the CUfunction.
    """

    def __init__(self, code: Code, declared: tuple[Parameter, ...], device: int):
        self.code, self.device = code, device
        self.name, self.signature = code.name, code.signature
        self.arguments = arguments_of(declared, code.signature)
        self.function = driver.load_function(code.cubin.code, code.cubin.entry, device)
        self.native = native.launcher(
            layout_of(self.arguments, device),
            driver.address("cuLaunchKernel"),
            driver.address("cuLaunchKernelEx"),
        )
        self._allowed = PLAIN_SHARED - code.resources.shared  # dynamic shared memory, so far
        self._any_cluster = False
        self._bind = generate(
            self.name, self.arguments, device, compiled=self, native=self.native,
            function=self.function, current_stream=_current_stream(),
            current_device=_current_device(), otherwise=self._otherwise,
        )  # fmt: skip

    cubin = property(lambda self: self.code.cubin)
    ptx = property(lambda self: self.code.ptx)
    ptx_sha256 = property(lambda self: self.code.ptx_sha256)
    resources = property(lambda self: self.code.resources)
    assembler = property(lambda self: self.code.cubin.assembler)

    def launch(self, grid, block, args: Sequence, *, stream=0, smem: int = 0, cluster=None,
               cooperative: bool = False, pdl: bool = False) -> None:  # fmt: skip
        """Check the arguments and launch.

        grid, block  blocks of the grid, threads of a block: an integer or up to three
        smem         bytes of dynamic shared memory
        stream       0 or None: PyTorch's current stream; else a stream of PyTorch, Numba or
                     cuda.core, or its address
        cluster      blocks of a cluster, as grid, which it must divide
        cooperative  all blocks run at the same time, for a barrier across the grid
        pdl          may start before the previous kernel of the stream has ended (programmatic
                     dependent launch, from compute capability 9.0)

        Raises TypeError or ValueError naming the argument that is not what the signature says, and
        DriverError for what the driver refuses.
        """
        self.bind(grid, block, stream, smem, cluster, cooperative, pdl)(*args)

    def bind(self, grid, block, stream=0, smem: int = 0, cluster=None, cooperative: bool = False,
             pdl: bool = False, otherwise: Callable | None = None,
             current: Sequence | None = None, logs: Sequence = ()) -> Callable:  # fmt: skip
        """A function of the kernel's arguments that launches it; the rest as in `launch`.

        otherwise      called with the arguments, instead of raising, when they are not what the
                       signature says: there may be another signature for them
        current, logs  at each launch it is called as well where current[0] is not this object, or
                       logs is not empty
        """
        try:
            shape = launch_shape(grid, block)
        except TypeError:  # a list has no hash, and what is neither gets its error here
            shape = check_shape(grid, block)
        if smem > self._allowed:
            self._allow(smem)
        attributes, count = 0, 0
        if cluster is not None or cooperative or pdl:
            cluster = tuple(cluster) if isinstance(cluster, list) else cluster
            _, attributes, count = launch_attributes(cluster, cooperative, pdl)
            if cluster is not None:
                self._check_cluster(shape, launch_shape(cluster, 1)[:3])
        if stream.__class__ is not int:
            stream = raw_stream(stream)
        current = (self,) if current is None else current
        return self._bind(*shape, smem, stream, attributes, count, otherwise, current, logs)

    def _allow(self, smem):
        """Ask the driver for more dynamic shared memory than 48 KB, once for each increase."""
        own, most = self.resources.shared, driver.device_attribute(self.device, driver.SHARED_OPTIN)
        if smem + own > most:
            raise ValueError(
                f"{self.name}: smem is {smem} bytes, a block has {most - own} on this GPU"
            )
        with driver.context(self.device):
            driver.set_attribute(self.function, driver.MAX_DYNAMIC_SHARED, smem)
        self._allowed = smem

    def _check_cluster(self, shape, cluster):
        if any(g % c for g, c in zip(shape, cluster, strict=False)):
            raise ValueError(
                f"{self.name}: the grid is {shape[:3]} blocks, which the cluster {cluster} does "
                "not divide"
            )
        if cluster[0] * cluster[1] * cluster[2] > PORTABLE_CLUSTER and not self._any_cluster:
            with driver.context(self.device):
                driver.set_attribute(self.function, driver.NON_PORTABLE_CLUSTER, 1)
            self._any_cluster = True

    def _otherwise(self, result, configuration, hook, args):
        """A launch that was not plainly right: another thread or device, wrong arguments, errors.

        result: a CUresult, a negative number or an exception for an argument that does not fit,
        None where a check failed.
        """
        if isinstance(result, int) and result > 0:
            if result == driver.INVALID_CONTEXT:  # this thread has not used the device yet
                driver.use_context(self.device)
                return self._again(configuration, args)
            raise self._error(result, configuration)
        if hook is not None:
            return hook(*args)
        problem = self.problem(args)
        if problem is None and result is None and _device_now() not in (None, self.device):
            with _on(self.device):
                return self._again(configuration, args)
        if problem is None:
            problem = result if isinstance(result, Exception) else _unexplained(self.name, result)
        raise problem

    def _again(self, configuration, args):
        return self._second(*configuration, None, (self,), ())(*args)

    @cached_property
    def _second(self):
        """As `_bind`, once the context is right: no further attempt."""

        def failed(result, configuration, hook, args):
            if isinstance(result, int) and result > 0:
                raise self._error(result, configuration)
            raise self.problem(args) or _unexplained(self.name, result)

        return generate(
            self.name, self.arguments, self.device, compiled=self, native=self.native,
            function=self.function, current_stream=_current_stream(), otherwise=failed,
        )  # fmt: skip

    def problem(self, args: Sequence) -> Exception | None:
        """What is wrong with the arguments of a launch: an error that names one; None: nothing."""
        for argument, value in zip(self.arguments, args, strict=True):
            if problem := argument.problem(self.name, value, self.device):
                return problem
        return None

    def _error(self, result, configuration):
        grid, block, shared = configuration[:3], configuration[3:6], configuration[6]
        return driver.DriverError(
            f"{self.name}: launch of {grid} blocks of {block} threads with {shared} bytes of "
            f"dynamic shared memory ({self.resources.registers} registers a thread, "
            f"launch_bounds {self.code.options.launch_bounds})",
            result,
        )


def launch(kernel: Any, grid, block, args: Sequence, *, stream=0, smem: int = 0, cluster=None,
           cooperative: bool = False, pdl: bool = False) -> tuple:  # fmt: skip
    """Launch a `Kernel` (jit.py) on the GPU where its arguments are; returns the signature.

    The first launch with a signature compiles and loads. `kernel.known` then holds what was loaded,
    the latest first: a caller may `bind` known[0] and come here when it does not fit.
    """
    known = vars(kernel).setdefault("known", [])
    options = (stream, smem, cluster, cooperative, pdl)
    for place, compiled in enumerate(known[:TRIED]):
        if compiled.bind(grid, block, *options, _does_not_fit)(*args) is None:
            known.insert(0, known.pop(place))
            return compiled.signature
    signature = signature_of(kernel.name, kernel.parameters, args, kernel.pointers)
    device = device_of(kernel.name, kernel.parameters, args)
    compiled = load(kernel.function, signature, device, kernel.options, kernel.parameters)
    compiled.bind(grid, block, *options)(*args)
    if compiled in known:
        known.remove(compiled)
    known.insert(0, compiled)
    return signature


def _does_not_fit(*_args):
    return True


def device_of(kernel: str, declared: tuple[Parameter, ...], args: Sequence) -> int:
    """The index of the GPU that holds the first tensor.

    Raises TypeError for what is on a GPU and no tensor, ValueError when nothing is on one.
    """
    for parameter, value in zip(declared, args, strict=True):
        if is_cuda(value):
            if hasattr(value, "get_device"):
                return value.get_device()
            raise TypeError(
                f"{kernel}: {parameter.name} is {type(value).__name__}, expected a tensor; "
                "torch.as_tensor(x, device='cuda') makes one of the same memory"
            )
    raise ValueError(f"{kernel}: no argument is a tensor on a GPU")


_loaded: "weakref.WeakKeyDictionary" = weakref.WeakKeyDictionary()


def load(fn: Callable, signature: tuple, device: int, options: Options = DEFAULT,
         declared: tuple[Parameter, ...] | None = None) -> Compiled:  # fmt: skip
    """A kernel ready to run: compiled (or found on disk) and loaded; the same object next time.

    fn         the Python function of the kernel
    signature  Numba types of its arguments
    device     index of the CUDA device
    declared   its parameters, by default `arguments.parameters(fn)`

    Raises what `compile_kernel` raises, and RuntimeError while a CUDA graph is being captured.
    """
    kept = _loaded.setdefault(fn, {})
    key = (tuple(signature), device, options)
    if key not in kept:
        if _capturing():
            raise RuntimeError(
                f"{fn.__name__}: a kernel cannot be loaded while a CUDA graph is captured; launch "
                "it once before"
            )
        cc = driver.compute_capability(device)
        code = compile_kernel(fn, signature, cc, options)
        kept[key] = Compiled(code, declared or parameters(fn), device)
    return kept[key]


# ---- PyTorch


def _current_stream():
    from torch._C import _cuda_getCurrentRawStream

    return _cuda_getCurrentRawStream


def _current_device():
    """A function for generated code, or None where there is only one device."""
    import torch

    return torch._C._cuda_getDevice if torch.cuda.device_count() > 1 else None


def _device_now():
    current = _current_device()
    return None if current is None else current()


def _on(device):
    import torch

    return torch.cuda.device(device)


def _capturing():
    import torch

    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def _unexplained(kernel, result):
    return RuntimeError(f"{kernel}: the launch failed ({result!r}) although every argument fits")
