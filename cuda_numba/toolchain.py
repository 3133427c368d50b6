"""The tools between a Python function and machine code: where they are, and which version.

    Python ──numba-cuda──▶ LLVM IR ──libNVVM──▶ PTX ──ptxas──▶ cubin ──nvdisasm──▶ SASS
                                  └─libNVVM──▶ LTO-IR ──nvJitLink──▶ PTX (lto=True)

None of them needs a GPU. All come as wheels (`pip install 'minilm[ptx]'`) for Linux and Windows;
macOS has none. A tool is looked for in this order: the environment variable (CUDA_NUMBA_PTXAS,
CUDA_NUMBA_NVDISASM), the wheel, the CUDA toolkit, the PATH.
"""

import functools
import os
import re
import shutil
import subprocess
import sysconfig
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

INSTALL = "pip install 'minilm[ptx]' brings it, on Linux and Windows"
RELEASE = re.compile(r"V(\d+(?:\.\d+)+)")  # in "Cuda compilation tools, release 13.5, V13.5.37"


class MissingTool(RuntimeError):
    """A compiler, assembler or disassembler is not installed on this machine."""


@dataclass(frozen=True)
class Tool:
    """A command-line tool: its path, its version, and how it was found."""

    name: str
    path: str
    version: str
    origin: str  # "environment", "wheel", "toolkit" or "path"

    def __str__(self):
        return f"{self.name} {self.version} ({self.origin})"


@functools.cache
def has_compiler() -> bool:
    """Whether kernels can be compiled to PTX here: numba-cuda and its libNVVM are installed."""
    from .namespace import HAS_NUMBA_CUDA

    return HAS_NUMBA_CUDA and library("nvvm") is not None


def require_compiler() -> None:
    """Raises MissingTool where kernels cannot be compiled to PTX."""
    if not has_compiler():
        raise MissingTool(f"Compiling a kernel needs numba-cuda and libNVVM: {INSTALL}.")


@functools.cache
def library(name: str) -> str | None:
    """The file of a CUDA library ("nvvm", "nvJitLink") as numba-cuda loads it; None: there is none.

    It is loaded.
    """
    try:
        from cuda import pathfinder

        return pathfinder.load_nvidia_dynamic_lib(name).abs_path
    except (ImportError, OSError, RuntimeError):  # not found is a RuntimeError
        return None


def find_tools(name: str) -> list[Tool]:
    """Every `name` ("ptxas" or "nvdisasm") of this machine that runs, the preferred one first."""
    return list(
        _find_tools(name, os.environ.get(f"CUDA_NUMBA_{name.upper()}"), os.environ.get("PATH", ""))
    )


@functools.cache
def _find_tools(name, chosen, search):
    if chosen:
        version = _version(chosen)
        if version is None:
            raise MissingTool(f"CUDA_NUMBA_{name.upper()}: {chosen} is not a {name} that runs.")
        return (Tool(name, chosen, version, "environment"),)
    found, known = [], set()
    for path, origin in ((_packaged(name), None), (shutil.which(name, path=search), "path")):
        if path and (real := os.path.realpath(path)) not in known:
            known.add(real)
            if version := _version(path):
                found.append(Tool(name, path, version, origin or _origin(path)))
    return tuple(found)


def find_tool(name: str) -> Tool:
    """The preferred `name`; raises MissingTool where there is none."""
    if tools := find_tools(name):
        return tools[0]
    raise MissingTool(f"{name} is not installed: {INSTALL}, or set CUDA_NUMBA_{name.upper()}.")


def _packaged(name):
    try:
        from cuda import pathfinder

        return pathfinder.find_nvidia_binary_utility(name)
    except (ImportError, RuntimeError):
        return None


def _origin(path):
    purelib = Path(sysconfig.get_paths()["purelib"]).resolve()
    return "wheel" if purelib in Path(path).resolve().parents else "toolkit"


def _version(path):
    """The release, as "13.5.37"; None when the file does not run."""
    try:
        ran = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = RELEASE.search(ran.stdout)
    return match and match.group(1)


@functools.cache
def versions() -> dict[str, str]:
    """What decides the PTX of a kernel, by name; part of the key under which code is kept."""
    found = {}
    for package in ("numba", "numba-cuda", "llvmlite"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "none"
    for name in ("nvvm", "nvJitLink"):
        found[name] = _stamp(library(name))
    return found


def _stamp(path):
    """A library has no version that tells two builds apart, so its size and date stand for it."""
    if path is None:
        return "none"
    stat = os.stat(path)
    return f"{os.path.basename(path)} {stat.st_size} {stat.st_mtime_ns}"
