"""The facts of a machine that matter to the course: interpreter, torch, driver, GPUs, compiler.

Nothing is judged here (`doctor.py` does that), and nothing is installed, changed or downloaded.
"""

import ctypes
import os
import platform
import shutil
import sys
import tempfile
import warnings
from dataclasses import dataclass
from importlib import metadata

import torch

from .tokenfile import cache_folder


@dataclass(frozen=True)
class Facts:
    """What `look()` found. Versions are as the packages give them; None means absent.

    `driver_cuda` is the newest CUDA version that the NVIDIA driver supports, `torch_cuda` the one
    that torch was built for; `gpus` holds (name, compute capability); sizes are in 1e9 bytes.
    """

    python: tuple[int, int, int] = (3, 11, 0)
    system: str = "Linux"
    machine: str = "x86_64"
    torch: str = "2.13.0"
    torch_cuda: str | None = None
    torch_sees_gpu: bool = False
    bf16: bool | None = None
    mps: bool = False
    driver: str | None = None
    driver_cuda: tuple[int, int] | None = None
    gpus: tuple[tuple[str, tuple[int, int]], ...] = ()
    numpy: str = "2.4.0"
    numba: str | None = "0.68.1"
    numba_cuda: str | None = "0.30.4"
    nvrtc: str | None = "13.0.0"
    cache: str = ""
    cache_error: str | None = None
    cache_free: float = 100.0
    cores: int = 2
    memory: float | None = 8.0


def look() -> Facts:
    """The facts of this machine; nothing is installed, changed or downloaded."""
    nvidia = _nvidia()
    bindings = _installed("cuda-bindings")
    twelve = bindings is not None and bindings.startswith("12.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a driver too old for torch: the report says it better
        sees_gpu = torch.cuda.is_available()
    cache, cache_error, free = _cache_state()
    own_cores = getattr(os, "sched_getaffinity", None)  # fewer than cpu_count() in a container
    return Facts(
        python=sys.version_info[:3],
        system=platform.system(),
        machine=platform.machine(),
        torch=torch.__version__,
        torch_cuda=torch.version.cuda,
        torch_sees_gpu=sees_gpu,
        bf16=torch.cuda.is_bf16_supported(including_emulation=False) if sees_gpu else None,
        mps=torch.backends.mps.is_available(),
        **nvidia,
        numpy=_installed("numpy") or "0.0",
        numba=_installed("numba"),
        numba_cuda=_installed("numba-cuda"),
        nvrtc=_installed("nvidia-cuda-nvrtc-cu12" if twelve else "nvidia-cuda-nvrtc"),
        cache=cache,
        cache_error=cache_error,
        cache_free=free,
        cores=len(own_cores(0)) if own_cores else os.cpu_count() or 1,
        memory=_memory(),
    )


def _installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _nvidia() -> dict:
    """Asks the driver itself: torch's CPU build and old drivers must not hide a GPU."""
    windows = os.name == "nt"
    try:
        cuda = ctypes.CDLL("nvcuda.dll" if windows else "libcuda.so.1")
    except OSError:
        return {}
    version, count = ctypes.c_int(), ctypes.c_int()
    if cuda.cuDriverGetVersion(ctypes.byref(version)) != 0 or version.value == 0:
        return {}  # the library without a driver, as in some containers
    found = {"driver_cuda": (version.value // 1000, version.value % 1000 // 10)}
    try:
        nvml = ctypes.CDLL("nvml.dll" if windows else "libnvidia-ml.so.1")
        text = ctypes.create_string_buffer(80)
        if nvml.nvmlInit_v2() == 0 and nvml.nvmlSystemGetDriverVersion(text, 80) == 0:
            found["driver"] = text.value.decode()
    except OSError:
        pass  # the CUDA version above is what the advice depends on
    if cuda.cuInit(0) == 0:
        cuda.cuDeviceGetCount(ctypes.byref(count))
    gpus = []
    for device in range(count.value):
        name, part = ctypes.create_string_buffer(100), ctypes.c_int()
        cuda.cuDeviceGetName(name, 100, device)
        capability = []
        for attribute in (75, 76):  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
            cuda.cuDeviceGetAttribute(ctypes.byref(part), attribute, device)
            capability.append(part.value)
        gpus.append((name.value.decode(errors="replace"), tuple(capability)))
    return {**found, "gpus": tuple(gpus)}


def _cache_state() -> tuple[str, str | None, float]:
    """(folder, why it cannot be written, GB free). The folder is not made: its parent must do."""
    try:
        folder = cache_folder()
    except OSError as error:
        return "", str(error), 0.0
    there = folder
    while not there.exists():
        there = there.parent
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        return str(folder), error.strerror or str(error), 0.0
    return str(folder), None, shutil.disk_usage(there).free / 1e9


def _memory() -> float | None:
    """1e9 bytes of memory in this machine; None where it is not told."""
    if hasattr(os, "sysconf"):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9

    class Status(ctypes.Structure):  # MEMORYSTATUSEX of Windows
        _fields_ = [("length", ctypes.c_ulong), ("load", ctypes.c_ulong)]
        _fields_ += [(f"size{i}", ctypes.c_ulonglong) for i in range(7)]

    status = Status(length=ctypes.sizeof(Status))
    if not ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):
        return None
    return status.size0 / 1e9
