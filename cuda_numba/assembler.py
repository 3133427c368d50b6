"""From PTX to machine code, and what the assembler said of it.

Candidates, in this order; the first that knows the PTX version does the work, and `Cubin.assembler`
names it:

1. `ptxas` of the environment variable, the wheel, or the toolkit beside it
2. nvJitLink, which comes with numba-cuda. Given PTX it makes relocatable code, which may take other
   registers than ptxas does; given LTO-IR it makes the same code
3. a `ptxas` found on the PATH: often older than libNVVM, and then it refuses the PTX version
4. the driver's own compiler, where there is a GPU

A kernel with a barrier across the grid is linked with the CUDA device runtime, by nvJitLink.
"""

import re
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from .compiler import architecture, find_entry, nvjitlink
from .toolchain import INSTALL, MissingTool, Tool, find_tools, library, versions

REFUSED = re.compile(r"Unsupported \.version|unsupported toolchain|Unsupported PTX version", re.I)
ADVICE = re.compile(r"\bC75\d\d\b")  # ptxas: "(C7510) Potential Performance Loss: wgmma …"
GRID_BARRIER = "cudaCGSynchronize"  # what cuda.cg.this_grid().sync() calls
TIME = re.compile(r"^.*Compile time = .*\n?", re.MULTILINE)  # the one thing that varies in a log
# What Numba CUDA leaves to code of its own, linked in later: `__half` + `__half`, hsin, …
HELPER = re.compile(r"Unresolved extern function '(\w*(?:half|bfloat16|bf16|fp16)\w*)'", re.I)
ENTRY = re.compile(r"Compiling entry function '([\w$]+)'")


class AssemblerError(RuntimeError):
    """The assembler refuses a kernel, or would slow it down (C75xx)."""


@dataclass(frozen=True)
class Resources:
    """What a kernel takes, as the assembler counts it."""

    registers: int  # per thread
    spill_stores: int  # bytes per thread, written to local memory for want of registers
    spill_loads: int  # bytes per thread
    stack: int  # bytes of local memory per thread, spills included
    shared: int  # bytes per block, without what is asked for at the launch
    barriers: int  # named barriers


@dataclass(frozen=True)
class Cubin:
    """Machine code of one kernel for one architecture."""

    code: bytes
    log: str  # what the assembler said, with -v
    assembler: str  # "ptxas 13.5.37 (wheel)"
    architecture: str  # "sm_90a"
    entry: str  # the kernel's name inside

    @cached_property
    def resources(self) -> Resources:
        return read_resources(self.log)

    @property
    def advice(self) -> list[str]:
        """The lines of the log with a C75xx: code that ptxas has made slower than was written."""
        return [line for line in self.log.splitlines() if ADVICE.search(line)]


def read_resources(log: str) -> Resources:
    """Registers, spills, stack, shared memory and barriers from the log of `ptxas -v`.

    Functions that were not inlined count as well. Raises ValueError when the log has no numbers.
    """

    def numbers(pattern):
        return [int(n) for n in re.findall(pattern, log)]

    registers = numbers(r"Used (\d+) registers")
    if not registers:
        raise ValueError("log: it does not say how many registers the kernel uses")
    return Resources(
        registers=max(registers),
        spill_stores=sum(numbers(r"(\d+) bytes spill stores")),
        spill_loads=sum(numbers(r"(\d+) bytes spill loads")),
        stack=max(numbers(r"(\d+) bytes (?:cumulative stack size|stack frame)"), default=0),
        shared=max(numbers(r"Used \d+ registers.*?(\d+) bytes smem"), default=_linked(log)),
        barriers=max(numbers(r"Used \d+ registers, used (\d+) barriers"), default=0),
    )


def _linked(log):
    """Shared memory as nvJitLink counts it: from sm_90 on with the system's own 1024 bytes."""
    if not (match := re.search(r"^info\s*: used \d+ registers.*?(\d+) bytes smem", log, re.M)):
        return 0
    system = 1024 if re.search(r"for 'sm_(9\d|\d{3})", log) else 0
    return max(0, int(match[1]) - system)


def assemble(ptx: str, cc, *, max_registers: int | None = None, lineinfo: bool = False,
             ltoir: bytes | None = None, strict: bool = True) -> Cubin:  # fmt: skip
    """Machine code for a PTX text with one kernel.

    cc      the architecture, as in `compile_ptx`
    ltoir   what the PTX was linked from (lto=True): nvJitLink then starts from there
    strict  raise on advice of the kind C75xx as well

    Raises AssemblerError with the assembler's words, MissingTool where there is none.
    """
    flags = [f"-arch={architecture(cc)}"]
    flags += [] if max_registers is None else [f"-maxrregcount={max_registers}"]
    flags += ["-lineinfo"] if lineinfo else []
    refusals = []
    for candidate in [NvJitLink(GRID_BARRIER)] if GRID_BARRIER in ptx else candidates():
        try:
            code, log = candidate.run(ptx, flags, ltoir)
        except MissingTool:
            raise
        except (RuntimeError, OSError) as error:
            if helper := HELPER.search(str(error)):
                raise AssemblerError(
                    f"{helper[1]}: {find_entry(ptx)} calculates with 16-bit floats, and Numba's "
                    "functions for that are not linked: convert with ptx.load and ptx.store, and "
                    "calculate in float32."
                ) from error
            if not REFUSED.search(str(error)):
                raise AssemblerError(f"{candidate}: {error}") from error
            refusals.append(str(candidate))
            continue
        log = TIME.sub("", log)
        entries, entry = ENTRY.findall(log), find_entry(ptx)
        if entries and entry not in entries:  # made of LTO-IR, which has Numba's own names
            entry = entries[0]
        cubin = Cubin(code, log, str(candidate), architecture(cc), entry)
        if strict and cubin.advice:
            raise AssemblerError(f"{candidate} has made {entry} slow: {' | '.join(cubin.advice)}")
        return cubin
    if refusals:
        version = re.search(r"\.version\s+([\d.]+)", ptx)
        raise MissingTool(
            f"No assembler here knows PTX {version and version[1]} (asked: {', '.join(refusals)}): "
            f"nvidia-cuda-nvcc holds one, {INSTALL}."
        )
    raise MissingTool(f"There is no assembler for PTX, ptxas or nvJitLink: {INSTALL}.")


def candidates() -> list:
    """The assemblers of this machine, in the order in which they are asked."""
    tools = [Ptxas(tool) for tool in find_tools("ptxas")]
    preferred = [t for t in tools if t.tool.origin != "path"]
    linker = [NvJitLink()] if library("nvJitLink") else []
    return preferred + linker + [t for t in tools if t not in preferred] + _driver()


@dataclass(frozen=True)
class Ptxas:
    tool: Tool

    def __str__(self):
        return str(self.tool)

    def run(self, ptx, flags, ltoir):
        with tempfile.TemporaryDirectory(prefix="cuda_numba-") as folder:
            source, target = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
            source.write_text(ptx, encoding="utf-8")
            command = [self.tool.path, "-v", *flags, "-o", str(target), str(source)]
            ran = subprocess.run(command, capture_output=True, text=True, errors="replace")
            log = (ran.stderr + ran.stdout).replace(str(source), "kernel.ptx").strip()
            if ran.returncode:
                raise RuntimeError(log)
            return target.read_bytes(), log


@dataclass(frozen=True)
class NvJitLink:
    calls: str = ""  # a function of the device runtime that the kernel calls: it is linked in

    def __str__(self):
        from cuda.bindings import nvjitlink as nv

        return "nvJitLink " + ".".join(map(str, nv.version()))

    def run(self, ptx, flags, ltoir):
        inputs = [("ptx", ptx.encode()) if ltoir is None else ("ltoir", ltoir)]
        inputs += [("library", _device_runtime())] if self.calls else []
        lto = [] if ltoir is None else ["-lto"]
        return nvjitlink(inputs, [*flags, *lto, "-verbose", "-Xptxas=-v"])


def _device_runtime():
    from cuda import pathfinder

    try:
        return Path(pathfinder.find_static_lib("cudadevrt")).read_bytes()
    except (OSError, RuntimeError) as error:
        raise MissingTool(f"A barrier across the grid needs libcudadevrt: {INSTALL}.") from error


@dataclass(frozen=True)
class DriverLinker:
    """The driver's compiler: cuLink* of the driver API, with a context of the current device."""

    version: int  # 13000 is CUDA 13.0

    def __str__(self):
        return f"driver {self.version // 1000}.{self.version % 1000 // 10}"

    def run(self, ptx, flags, ltoir):
        from .driver import compute_capability, link

        if f"-arch={architecture(compute_capability(0))}" not in flags:
            raise RuntimeError("unsupported toolchain: the driver compiles for its own GPU")
        registers = [int(f.split("=")[1]) for f in flags if f.startswith("-maxrregcount")]
        return link(ptx, *registers, lineinfo="-lineinfo" in flags)


def _driver():
    from .driver import driver_version

    version = driver_version()
    return [] if version is None else [DriverLinker(version)]


def identity() -> dict[str, str]:
    """What decides the machine code of a kernel, by name."""
    asked = candidates()
    named = [c for c in asked if not isinstance(c, DriverLinker)] or asked
    return versions() | {"assemblers": ", ".join(map(str, named))}
