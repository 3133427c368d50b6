"""Where the host time of a launch goes: several ways to launch one kernel, timed side by side.

The kernel takes four float32 tensors and an int32, and does next to nothing. `time_launch_paths`
needs a GPU. `time_host_parts` does not: a function that returns at once stands for the driver, and
what is left is our own part.
"""

import ctypes
import statistics
import time
from collections.abc import Callable
from types import SimpleNamespace

from numba.core import types

from . import driver, native
from .arguments import parameters
from .configuration import launch_shape
from .namespace import cuda, float32, int32  # noqa: F401  the annotations name the last two
from .packing import arguments_of, generate, layout_of

TENSORS, N = 4, 4096
LAUNCHES = 200  # in one timed batch: fewer than the driver queues before it makes the host wait
BATCHES = 51
SIGNATURE = (types.CPointer(types.float32),) * TENSORS + (types.int32,)


def kernel_function() -> Callable:
    """A new function each time, so that nothing of it is compiled or loaded yet."""

    def four_tensors(a: "float32", b: "float32", c: "float32", out: "float32", n: "int32"):
        if cuda.threadIdx.x == n:  # never: 4096 is more than a block has threads
            out[0] = a[0] + b[0] + c[0]

    return four_tensors


def seconds_per_call(call: Callable, before: Callable = lambda: None) -> float:
    """The median over batches of the time of one call; `before` runs ahead of each batch."""
    call()
    times = []
    for _ in range(BATCHES):
        before()
        start = time.perf_counter()
        for _ in range(LAUNCHES):
            call()
        times.append((time.perf_counter() - start) / LAUNCHES)
    return statistics.median(times)


def time_launch_paths(device: int = 0) -> list[dict]:
    """Host seconds of a launch on the GPU, for each way: rows {"path", "checks", "seconds"}.

    checks: whether the arguments are checked. A way whose package is missing or that fails has
    "error" in the place of "seconds".
    """
    import torch

    from .launch import load

    tensors = [torch.zeros(N, device=f"cuda:{device}") for _ in range(TENSORS)]
    compiled = load(kernel_function(), SIGNATURE, device)
    ways = [
        ("kernel[grid, block](…)", True, lambda: _kernel(tensors)),
        ("compiled.launch", True, lambda: _whole(compiled, tensors)),
        ("compiled.bind", True, lambda: _bound(compiled, tensors)),
        ("native call", True, lambda: _native(compiled, tensors)),
        ("ctypes cuLaunchKernel", False, lambda: _ctypes(compiled, tensors)),
        ("cuda.bindings cuLaunchKernel", False, lambda: _bindings(compiled, tensors)),
        ("cuda.core launch", False, lambda: _core(compiled, tensors)),
        ("numba.cuda", True, lambda: _numba(tensors)),
        ("torch add", True, lambda: lambda: torch.add(tensors[0], tensors[1], out=tensors[3])),
    ]
    rows = []
    for path, checks, make in ways:
        row = {"path": path, "checks": checks}
        try:
            row["seconds"] = seconds_per_call(make(), torch.cuda.synchronize)
        except Exception as error:  # noqa: BLE001  each way stands for itself
            row["error"] = f"{type(error).__name__}: {error}"
        rows.append(row)
    rows.append(_graph(compiled, tensors))
    return rows


def _kernel(tensors):
    from .jit import jit

    kernel = jit(pointers=True)(kernel_function())
    return lambda: kernel[1, 32](*tensors, N)


def _whole(compiled, tensors):
    return lambda: compiled.launch(1, 32, (*tensors, N))


def _bound(compiled, tensors):
    launcher = compiled.bind(1, 32)
    return lambda: launcher(*tensors, N)


def _native(compiled, tensors):
    call, function = compiled.native, compiled.function
    a, b, c, out = tensors
    return lambda: call(function, 1, 1, 1, 32, 1, 1, 0, 0, 0, 0, a, b, c, out, N)


def _table(tensors):
    """Storage of the five parameters and the table of their addresses."""
    values = (ctypes.c_uint64 * (TENSORS + 1))(*[t.data_ptr() for t in tensors], N)
    start = ctypes.addressof(values)
    return values, (ctypes.c_void_p * (TENSORS + 1))(*range(start, start + 8 * (TENSORS + 1), 8))


def _ctypes(compiled, tensors):
    call = ctypes.PyDLL(driver.library()._name).cuLaunchKernel
    call.argtypes = [ctypes.c_void_p, *[ctypes.c_uint] * 7, *[ctypes.c_void_p] * 3]
    values, table = _table(tensors)

    def launch():
        for i, tensor in enumerate(tensors):
            values[i] = tensor.data_ptr()
        if code := call(compiled.function, 1, 1, 1, 32, 1, 1, 0, 0, table, None):
            raise driver.DriverError("cuLaunchKernel", code)

    return launch


def _bindings(compiled, tensors):
    from cuda.bindings import driver as cu

    function, stream = cu.CUfunction(compiled.function), cu.CUstream(0)
    values, table = _table(tensors)
    address = ctypes.addressof(table)

    def launch():
        for i, tensor in enumerate(tensors):
            values[i] = tensor.data_ptr()
        cu.cuLaunchKernel(function, 1, 1, 1, 32, 1, 1, 0, stream, address, 0)

    launch.kept = table
    return launch


def _core(compiled, tensors):
    import torch
    from cuda.core import Device, LaunchConfig, ObjectCode, Stream, launch

    Device(compiled.device).set_current()
    kernel = ObjectCode.from_cubin(compiled.cubin.code).get_kernel(compiled.cubin.entry)
    stream = Stream.from_handle(torch.cuda.current_stream().cuda_stream)
    config, n = LaunchConfig(grid=1, block=32), ctypes.c_int32(N)
    return lambda: launch(stream, config, kernel, *[t.data_ptr() for t in tensors], n)


def _numba(tensors):
    kernel = cuda.jit(kernel_function())
    return lambda: kernel[1, 32](*tensors, N)


def _graph(compiled, tensors):
    """A launch as part of a CUDA graph: the replay of 200, kernels included, divided by 200."""
    import torch

    row = {"path": "CUDA graph replay", "checks": False}
    try:
        graph, launcher = torch.cuda.CUDAGraph(), compiled.bind(1, 32)
        with torch.cuda.graph(graph):
            for _ in range(LAUNCHES):
                launcher(*tensors, N)
        torch.cuda.synchronize()
        times = []
        for _ in range(BATCHES):
            start = time.perf_counter()
            graph.replay()
            torch.cuda.synchronize()  # to its end: what a launch in a graph costs altogether
            times.append((time.perf_counter() - start) / LAUNCHES)
        row["seconds"] = statistics.median(times)
    except Exception as error:  # noqa: BLE001
        row["error"] = f"{type(error).__name__}: {error}"
    return row


def time_host_parts() -> list[dict]:
    """Our own part of a launch, on CPU tensors, without a driver: rows {"part", "seconds"}.

    kernel[grid, block](…): all of it. launcher: what kernel[grid, block] gives, with the checks of
    numbers. native call: the function in it, with the checks of tensors, that ends in the driver.
    """
    import torch

    from .jit import jit

    tensors = [torch.zeros(N) for _ in range(TENSORS)]
    arguments = arguments_of(parameters(kernel_function()), SIGNATURE)
    call = native.launcher(layout_of(arguments, -1), _nothing(), _nothing())
    loaded, kernel = SimpleNamespace(), jit(pointers=True)(kernel_function())
    bind = generate(
        "four_tensors", arguments, -1, compiled=loaded, native=call, function=1,
        current_stream=lambda device: 0, otherwise=_unexpected,
    )  # fmt: skip
    loaded.bind = lambda grid, block, stream, smem, otherwise, current, logs: bind(
        *launch_shape(grid, block), smem, stream, 0, 0, otherwise, current, logs
    )
    kernel.known.append(loaded)
    launcher, (a, b, c, out) = kernel[1, 32], tensors
    parts = {
        "kernel[grid, block](…)": lambda: kernel[1, 32](a, b, c, out, N),
        "launcher": lambda: launcher(a, b, c, out, N),
        "native call": lambda: call(1, 1, 1, 1, 32, 1, 1, 0, 0, 0, 0, a, b, c, out, N),
        "empty Python function": lambda: None,
    }
    return [{"part": name, "seconds": seconds_per_call(f)} for name, f in parts.items()]


def _unexpected(result, *_):
    raise RuntimeError(f"the launch did not take the short way: {result!r}")


def _nothing() -> int:
    """The address of a native function that returns 0, whatever it is given."""
    if not _engines:
        import llvmlite.binding as llvm

        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        module = llvm.parse_assembly("define i32 @nothing() { ret i32 0 }")
        machine = llvm.Target.from_default_triple().create_target_machine()
        _engines.append(llvm.create_mcjit_compiler(module, machine))
        _engines[0].finalize_object()
    return _engines[0].get_function_address("nothing")


_engines: list = []
