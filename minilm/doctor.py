"""What this machine has, what that means for the course, and what to do about it.

`machine.look()` collects the facts; `diagnose(facts)` judges them and looks at nothing itself, so
that the advice for a machine that is not at hand (a Mac, a T4 with an old driver) can be tested.
"""

import re
from collections.abc import Iterator
from dataclasses import asdict
from typing import NamedTuple, TextIO

from .backends import OPS, computed_by
from .machine import Facts, look

SELECTOR = "https://pytorch.org/get-started/locally"  # gives the install command for each build
CUDA_13_DRIVER = 580  # the first NVIDIA driver series that supports CUDA 13


class Finding(NamedTuple):
    """One line of the report. `level` is "ok", "note" or "problem"; only "ok" needs no remedy."""

    name: str
    value: str
    level: str = "ok"
    remedy: str = ""


def version_tuple(version: str) -> tuple[int, int]:
    """The first two numbers of a version: "13.0.88" and "13.0+cpu" are both (13, 0)."""
    major, minor = re.match(r"(\d+)(?:\.(\d+))?", version).groups(default="0")
    return int(major), int(minor)


def diagnose(facts: Facts) -> list[Finding]:
    """One finding for each thing that matters, in the order in which one would mend them."""
    rules = (_python, _torch, _gpu, _bf16, _numpy, _numba, _compiler, _kernels, _cache, _machine)
    return [finding for rule in rules for finding in rule(facts)]


def _python(facts: Facts) -> Iterator[Finding]:
    value = ".".join(map(str, facts.python)) + f" on {facts.system} {facts.machine}"
    if (3, 11) <= facts.python[:2] <= (3, 14):
        yield Finding("python", value)
    else:
        remedy = "Use Python 3.11 to 3.14, for which torch and numba have wheels."
        yield Finding("python", value, "problem", remedy)


def _torch(facts: Facts) -> Iterator[Finding]:
    value = f"{facts.torch}, " + (f"CUDA {facts.torch_cuda}" if facts.torch_cuda else "no CUDA")
    if facts.driver_cuda is None or facts.torch_sees_gpu:
        yield Finding("torch", value)
    elif facts.torch_cuda is None:
        remedy = f"Install a CUDA build of torch, for the driver is there: see {SELECTOR}."
        yield Finding("torch", value, "problem", remedy)
    elif version_tuple(facts.torch_cuda)[0] > facts.driver_cuda[0]:
        remedy = (
            f"The driver supports CUDA {_dotted(facts.driver_cuda)} only: update it to "
            f"{CUDA_13_DRIVER} or newer, or install torch for CUDA {facts.driver_cuda[0]} with the "
            f"line from {SELECTOR}."
        )
        yield Finding("torch", value, "problem", remedy)
    else:
        remedy = (
            "torch does not reach the GPU although the driver is there: look at `nvidia-smi`, at "
            "CUDA_VISIBLE_DEVICES, and whether a container was started with its GPUs."
        )
        yield Finding("torch", value, "problem", remedy)


def _gpu(facts: Facts) -> Iterator[Finding]:
    for name, capability in facts.gpus:
        value = f"{name}, compute capability {_dotted(capability)}, driver {facts.driver}"
        value += f" (CUDA {_dotted(facts.driver_cuda)})" if facts.driver_cuda else ""
        if capability < (7, 5):
            remedy = (
                "The kernels are written for 7.5 (T4) and newer; torch itself may still use it."
            )
            yield Finding("gpu", value, "note", remedy)
        else:
            yield Finding("gpu", value)
    if facts.gpus:
        return
    if facts.system == "Darwin":
        remedy = (
            "CUDA kernels run on NVIDIA GPUs only and macOS has no driver for those"
            + (": train on Apple's GPU with `--device mps`" if facts.mps else ": the CPU is used")
            + ", and use a Linux or Windows machine or Colab for kernels on a GPU."
        )
    elif facts.driver_cuda is None:
        remedy = (
            "Nothing to do: the course runs on the CPU. If there is an NVIDIA GPU in this machine, "
            "install its driver."
        )
    else:
        remedy = "The driver is there but shows no GPU: look at `nvidia-smi`, CUDA_VISIBLE_DEVICES."
    yield Finding("gpu", "no NVIDIA GPU", "note", remedy)


def _bf16(facts: Facts) -> Iterator[Finding]:
    if facts.torch_sees_gpu and facts.bf16:
        yield Finding("bfloat16", "in hardware")
    elif facts.torch_sees_gpu:
        remedy = "Train with `--dtype float16`, which scales the loss; bfloat16 would be slow here."
        yield Finding("bfloat16", "emulated on this GPU", "note", remedy)


def _numpy(facts: Facts) -> Iterator[Finding]:
    if version_tuple(facts.numpy) >= (2, 5):
        remedy = 'numba-cuda 0.30 fails with NumPy 2.5: `pip install "numpy>=2.0,<2.5"`.'
        yield Finding("numpy", facts.numpy, "problem", remedy)
    else:
        yield Finding("numpy", facts.numpy)


def _numba(facts: Facts) -> Iterator[Finding]:
    value = f"numba {facts.numba or 'missing'}, numba-cuda {facts.numba_cuda or 'missing'}"
    if facts.numba is None:
        yield Finding("numba", value, "problem", "Install it: `pip install numba==0.68.*`.")
    elif facts.numba_cuda is not None:
        yield Finding("numba", value)
    elif facts.system == "Darwin":
        remedy = "numba-cuda has no macOS wheel: PTX and SASS can be compiled on Linux and Windows."
        yield Finding("numba", value, "note", remedy)
    else:
        remedy = "Install it for kernels on a GPU: `pip install numba-cuda==0.30.*`."
        yield Finding("numba", value, "note", remedy)


def _compiler(facts: Facts) -> Iterator[Finding]:
    """The wheels that compile PTX have to fit the driver (not newer) and the GPU (not older)."""
    if facts.numba_cuda is None:
        return
    driver = facts.driver_cuda[0] if facts.driver_cuda else None
    if facts.nvrtc is None:
        extra = 'pip install "numba-cuda[cu12]"' if driver == 12 else 'pip install "minilm[ptx]"'
        remedy = f"To compile kernels to PTX, with or without a GPU: `{extra}`."
        yield Finding("compiler", "none", "note" if driver is None else "problem", remedy)
        return
    major = version_tuple(facts.nvrtc)[0]
    value = f"CUDA {_dotted(version_tuple(facts.nvrtc))} wheels"
    too_old = [name for name, capability in facts.gpus if capability < (7, 5)]
    if driver is not None and major > driver:
        remedy = (
            f"The driver supports CUDA {_dotted(facts.driver_cuda)}: "
            f'`pip install "numba-cuda[cu{driver}]"`, or update the driver to '
            f"{CUDA_13_DRIVER} or newer."
        )
        yield Finding("compiler", value, "problem", remedy)
    elif too_old and major >= 13:
        remedy = f'CUDA 13 compiles nothing for {too_old[0]}: `pip install "numba-cuda[cu12]"`.'
        yield Finding("compiler", value, "problem", remedy)
    else:
        yield Finding("compiler", value)


def _kernels(facts: Facts) -> Iterator[Finding]:
    """Who computes what with `--backend numba`, and where."""
    if facts.numba is None:
        return
    on_gpu = facts.torch_sees_gpu and facts.numba_cuda is not None
    where = "on the GPU" if on_gpu else "on the emulator (--emulate)"
    ours = [op for op in OPS if computed_by(op, "numba") == "numba"]
    rest = [op for op in OPS if computed_by(op, "numba") == "torch"]
    stay = "stays" if len(rest) == 1 else "stay"
    yield Finding("kernels", f"{', '.join(ours)} {where}; {', '.join(rest)} {stay} with torch")


def _cache(facts: Facts) -> Iterator[Finding]:
    value = f"{facts.cache or 'none'}, {facts.cache_free:.0f} GB free"
    if facts.cache_error:
        remedy = (
            f"It cannot be written ({facts.cache_error}): set MINILM_CACHE to a folder that can."
        )
        yield Finding("cache", facts.cache or "none", "problem", remedy)
    elif facts.cache_free < 1:
        remedy = "Make room there, or set MINILM_CACHE to a folder on another disk."
        yield Finding("cache", value, "problem", remedy)
    else:
        yield Finding("cache", value)


def _machine(facts: Facts) -> Iterator[Finding]:
    memory = "unknown" if facts.memory is None else f"{facts.memory:.0f} GB"
    value = f"{facts.cores} cores, {memory} of memory"
    if facts.memory is not None and facts.memory < 3.5:
        remedy = "The notebooks want 4 GB: close other programs, keep one notebook open at a time."
        yield Finding("machine", value, "note", remedy)
    elif facts.cores < 2:
        remedy = "Training times in the course are for two cores: expect about twice as long."
        yield Finding("machine", value, "note", remedy)
    else:
        yield Finding("machine", value)


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


def doctor(file: TextIO | None = None, facts: Facts | None = None) -> dict:
    """Print the report to `file` (default: stdout) and return it.

    The dict has "ok" (no problem among the findings), "findings" (a list of dicts with name,
    value, level, remedy) and "facts". `facts` are those of this machine if not given.
    """
    facts = facts or look()
    findings = diagnose(facts)
    for finding in findings:
        print(f"{finding.name:<9} {finding.level:<8} {finding.value}", file=file)
        if finding.remedy:
            print(f"{'':<18} → {finding.remedy}", file=file)
    problems = sum(finding.level == "problem" for finding in findings)
    print(f"{problems} to mend" if problems else "nothing to mend", file=file)
    return {
        "ok": problems == 0,
        "findings": [finding._asdict() for finding in findings],
        "facts": asdict(facts),
    }
