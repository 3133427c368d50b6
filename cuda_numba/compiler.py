"""From the Python function of a kernel to PTX: all that is asked of Numba's compiler.

No GPU and no driver is needed, for any architecture that libNVVM knows. Numba names its functions
by a counter of the process; here they get plain names, so that one source gives one PTX text.
"""

import contextlib
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass

from .toolchain import MissingTool, library, require_compiler

NAME = re.compile(r"_ZN[\w$]+|_cudapy_smem_\d+")  # functions, as in C++, and shared arrays
PARAMETER = re.compile(r"_param_\d+$")
ENVIRONMENT = re.compile(r"^.*\b(_ZN08NumbaEnv[\w$]+);\n", re.MULTILINE)  # left over, never used


class CompilerWarning(RuntimeError):
    """libNVVM made code and warned of it: it may have dropped an instruction."""


@dataclass(frozen=True)
class Options:
    """How a kernel is compiled.

    launch_bounds  most threads a block, or (threads, least blocks on an SM, most blocks a cluster)
    max_registers  registers a thread at most (ptxas --maxrregcount); None: as many as it likes
    fastmath       flush subnormals, approximate division and square root, contract
    lto            optimise once more while linking (nvJitLink); the PTX is the linked one
    lineinfo       keep source lines in the machine code, for profilers
    """

    launch_bounds: int | tuple[int, ...] | None = None
    max_registers: int | None = None
    fastmath: bool = False
    lto: bool = False
    lineinfo: bool = False


def normal_cc(cc) -> tuple:
    """A compute capability as a tuple: (9, 0), "9.0", "sm_90", "sm_90a" → (9, 0, "a").

    From 9.0 on kernels are compiled for the architecture itself ("a"), as Numba does for the GPU
    that is there: wgmma and setmaxnreg exist only so. Raises ValueError for anything else.
    """
    if isinstance(cc, str):
        match = re.fullmatch(r"(?:sm_)?(\d+)\.?(\d)([af]?)", cc)
        cc = match and (int(match[1]), int(match[2]), match[3])
    if not (isinstance(cc, tuple) and len(cc) in (2, 3) and all(type(n) is int for n in cc[:2])):
        raise ValueError('cc: must be a compute capability such as (9, 0) or "sm_90a"')
    suffix = cc[2] if len(cc) == 3 and cc[2] else "a" if cc >= (9, 0) else ""
    return (*cc[:2], suffix) if suffix else cc[:2]


def architecture(cc) -> str:
    """(9, 0) → "sm_90a"."""
    return "sm_" + "".join(map(str, normal_cc(cc)))


def compile_ptx(fn: Callable, signature: tuple, cc, *, launch_bounds=None, max_registers=None,
                fastmath=False, lto=False, lineinfo=False, debug=False) -> str:  # fmt: skip
    """The PTX of a kernel.

    fn         a Python function, as `numba.cuda.jit` takes it
    signature  the Numba types of its arguments
    cc         (7, 5), (9, 0), "sm_90a", …
    debug      unoptimised, with bounds checks and line information; goes without lto
    The rest as in `Options` (max_registers changes nothing before the assembler).

    The kernel's entry has the name of the function. Raises MissingTool where numba-cuda is not
    installed, CompilerWarning, and whatever error Numba has with the function.
    """
    options = Options(launch_bounds, max_registers, fastmath, lto, lineinfo)
    if not lto:
        return plain_names(_numba(fn, signature, cc, options, "ptx", debug), fn.__name__)
    if debug:
        raise ValueError("debug: must be False where lto=True, for the linker optimises")
    return plain_names(link_ptx(compile_ltoir(fn, signature, cc, options), cc), fn.__name__)


def compile_ltoir(fn: Callable, signature: tuple, cc, options: Options) -> bytes:
    """libNVVM's intermediate code of a kernel, for nvJitLink."""
    return _numba(fn, signature, cc, options, "ltoir", False)


def _numba(fn, signature, cc, options, output, debug):
    require_compiler()
    from numba import cuda

    cc = normal_cc(cc)
    with _target(cc), _warnings_raised(fn.__name__):
        code, _ = cuda.compile(
            fn, tuple(signature), cc=cc, device=False, abi="numba", output=output, debug=debug,
            opt=not debug, lineinfo=options.lineinfo and not debug, fastmath=options.fastmath,
            launch_bounds=options.launch_bounds,
        )  # fmt: skip
    return code


@contextlib.contextmanager
def _warnings_raised(kernel):
    """A warning of libNVVM is an error: the code it warns of is not what was written."""
    from numba.cuda.cudadrv.nvvm import NvvmWarning

    with warnings.catch_warnings():
        warnings.simplefilter("error", NvvmWarning)
        try:
            yield
        except NvvmWarning as warning:
            raise CompilerWarning(f"{kernel}: libNVVM warns: {str(warning).strip()}") from warning


@contextlib.contextmanager
def _target(cc):
    """Compile device functions for `cc` as well.

    Numba compiles them for the current GPU, which there need not be, and once for all
    architectures; here each architecture has its own.
    """
    from numba.cuda import dispatcher
    from numba.cuda.core.compiler_lock import global_compiler_lock

    class Device:
        compute_capability = cc

    kind = dispatcher.CUDADispatcher
    current, compile_device = dispatcher.get_current_device, kind.compile_device

    def compile_for_target(self, args, return_type=None):
        if self.__dict__.get("_compiled_for", cc) != cc:
            self.overloads.clear()
        self._compiled_for = cc
        return compile_device(self, args, return_type)

    with global_compiler_lock:
        dispatcher.get_current_device, kind.compile_device = Device, compile_for_target
        try:
            yield
        finally:
            dispatcher.get_current_device, kind.compile_device = current, compile_device


def link_ptx(ltoir: bytes, cc) -> str:
    """The PTX after link-time optimisation.

    `ptxas` makes of it, instruction for instruction, the code that nvJitLink itself would.
    """
    flags = [f"-arch={architecture(cc)}", "-lto", "-ptx"]
    return nvjitlink([("ltoir", ltoir)], flags)[0].decode()


def nvjitlink(inputs: list[tuple[str, bytes]], flags: list[str]) -> tuple[bytes, str]:
    """(result, log) of nvJitLink. With "-ptx" the result is PTX.

    inputs: (kind, data), the kinds being "ltoir", "ptx" and "library".

    Raises MissingTool, or RuntimeError with the linker's words.
    """
    if library("nvJitLink") is None:
        raise MissingTool("lto=True needs nvJitLink: pip install 'numba-cuda[cu13]' brings it.")
    from cuda.bindings import nvjitlink as nv

    def text(which):
        size = getattr(nv, f"get_{which}_log_size")(handle)
        buffer = bytearray(size)
        getattr(nv, f"get_{which}_log")(handle, buffer)
        return buffer.rstrip(b"\0 \n").decode(errors="replace")

    out = "ptx" if "-ptx" in flags else "cubin"
    handle = nv.create(len(flags), flags)
    try:
        try:
            for kind, data in inputs:
                nv.add_data(handle, getattr(nv.InputType, kind.upper()), data, len(data), kind)
            nv.complete(handle)
        except nv.nvJitLinkError as error:
            raise RuntimeError(f"nvJitLink: {text('error') or error}") from error
        result = bytearray(getattr(nv, f"get_linked_{out}_size")(handle))
        getattr(nv, f"get_linked_{out}")(handle, result)
        log = "\n".join(filter(None, (text("info"), text("error"))))
    finally:
        nv.destroy(handle)
    return bytes(result.rstrip(b"\0") if out == "ptx" else result), log


def plain_names(ptx: str, entry: str) -> str:
    """PTX with the kernel called `entry`, and other functions by their own names and a number."""
    for name in ENVIRONMENT.findall(ptx):
        if len(re.findall(re.escape(name) + r"(?![\w$])", ptx)) == 1:
            ptx = re.sub(rf"^.*\b{re.escape(name)};\n", "", ptx, flags=re.MULTILINE)
    entry = re.sub(r"\W", "_", entry.strip("<>"), flags=re.ASCII)
    entry = entry if entry.strip("_") else "kernel"  # PTX knows no "_"
    names = {find_entry(ptx): entry}

    def plain(match):
        name = PARAMETER.sub("", match[0])
        if name not in names:
            names[name] = f"{_last_part(name)}_{len(names)}"
        return names[name] + match[0][len(name) :]

    return NAME.sub(plain, ptx)


def _last_part(name):
    """The function's own name in "_ZN6module8functionB2v1…": each part follows its length."""
    at, part = 3, "shared"
    while match := re.match(r"\d+", name[at:]):
        at += match.end()
        part = name[at : at + int(match[0])]
        at += int(match[0])
    return re.sub(r"\W", "_", part, flags=re.ASCII)


def find_entry(ptx: str) -> str:
    """The name of the kernel in a PTX text."""
    match = re.search(r"\.entry\s+([\w$]+)", ptx)
    if not match:
        raise ValueError("ptx: it holds no kernel (.entry)")
    return match[1]
