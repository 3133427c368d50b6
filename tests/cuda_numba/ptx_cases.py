"""One table of cases for the PTX instructions, run three ways: emulated, compiled, on a GPU.

A case is a kernel that uses some instructions, its inputs, and what NumPy or PyTorch say the
outputs must be. `test_ptx_*.py` run the cases of their topic.
"""

import functools
import importlib.metadata
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from numba.np.numpy_support import from_dtype

from cuda_numba.namespace import HAS_NUMBA_CUDA, cuda, types

OLDEST, HOPPER = (7, 5), (9, 0, "a")


@dataclass
class Case:
    """`kernel(*inputs, output)` by `grid` blocks of `block` threads.

    inputs(rng) → list of arrays; `expected(*inputs)` → the output array, whose shape and dtype the
    output has; it starts out filled with the byte 0xAB, or is `start(*inputs)`.
    Integers must agree bit for bit, floats within `ulp` units of the last place or `absolute`, NaN
    with NaN; `gpu_ulp` and `gpu_absolute` are the tolerances of the GPU against the emulator.
    """

    name: str
    instructions: tuple
    kernel: Callable
    inputs: Callable
    expected: Callable
    text: tuple = ()  # what the PTX must hold; (text, cc) where it does so from cc on
    block: int = 32
    grid: int = 1
    cc: tuple = OLDEST
    start: Callable | None = None
    pointers: bool = True  # the kernel can also be compiled for pointers
    ulp: float = 0
    absolute: float = 0
    gpu_ulp: float | None = None
    gpu_absolute: float | None = None

    def arguments(self):
        """The inputs, a fresh output, and the expected output."""
        inputs = self.inputs(np.random.default_rng(7))
        with np.errstate(all="ignore"):
            expected = np.asarray(self.expected(*inputs))
        output = np.empty(expected.shape, expected.dtype)
        output.view(np.uint8).fill(0xAB)
        if self.start is not None:
            output[...] = self.start(*inputs)
        return inputs, output, expected


def ids(case):
    return case.name


def assert_close(got, expected, ulp=0.0, absolute=0.0):
    """Arrays agree: integers exactly, floats within ulp or absolute, NaN with NaN, zeros' signs."""
    assert got.shape == expected.shape and got.dtype == expected.dtype
    if got.dtype.kind != "f":
        np.testing.assert_array_equal(got, expected)
        return
    with np.errstate(all="ignore"):
        wide, right = got.astype(np.float64), expected.astype(np.float64)
        unit = np.spacing(np.abs(expected)).astype(np.float64)
        allowed = np.maximum(ulp * np.where(np.isfinite(unit), unit, 0), absolute)
        good = (wide == right) | (np.isnan(wide) & np.isnan(right))
        good |= np.abs(wide - right) <= allowed
        good &= (np.signbit(wide) == np.signbit(right)) | np.isnan(wide) | (allowed > 0)
    bad = np.argwhere(~good)
    assert not len(bad), (
        f"{len(bad)} of {good.size} differ, first at {tuple(bad[0])}: "
        f"{got[tuple(bad[0])]!r}, expected {expected[tuple(bad[0])]!r}"
    )


def emulated(case):
    """The case's output from the emulator."""
    from cuda_numba.emulator import emulate

    inputs, output, _ = case.arguments()
    emulate(case.kernel)[case.grid, case.block](*inputs, output)
    return output


def check_emulated(case):
    *_, expected = case.arguments()
    assert_close(emulated(case), expected, case.ulp, case.absolute)


def check_compiled(case, cc, pointers):
    """The kernel compiles for `cc`, holds the instructions, and ptxas turns it into machine code
    without local memory, spills or float64."""
    ptx = compile_ptx(case, cc, pointers)
    for text in case.text:
        text, since = (text, case.cc) if isinstance(text, str) else text
        assert cc[:2] < since[:2] or text in ptx, f"{text!r} is not in the PTX:\n{ptx}"
    assert ".f64" not in ptx
    report = assemble(ptx, cc)
    assert "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in report, report


def needs_compiler():
    if not HAS_NUMBA_CUDA:
        pytest.skip("needs numba-cuda, which has no wheel for this system")


def compile_ptx(case, cc, pointers=False):
    needs_compiler()

    inputs, output, _ = case.arguments()
    signature = [
        types.CPointer(from_dtype(a.dtype))
        if pointers
        else types.Array(from_dtype(a.dtype), a.ndim, "C")
        for a in (*inputs, output)
    ]
    ptx, _ = cuda.compile(case.kernel, tuple(signature), cc=cc, device=False, abi="numba")
    return ptx


@functools.cache
def ptxas():
    """The assembler of the nvidia-cuda-nvcc wheel."""
    try:
        files = importlib.metadata.files("nvidia-cuda-nvcc") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    found = [f for f in files if f.name in ("ptxas", "ptxas.exe")]
    return str(found[0].locate()) if found else None


def assemble(ptx, cc):
    """What `ptxas -v` says about the PTX; an assertion fails if it does not assemble."""
    if ptxas() is None:
        pytest.skip("needs ptxas, from the wheel nvidia-cuda-nvcc")
    arch = "sm_" + "".join(map(str, cc))
    command = [ptxas(), f"-arch={arch}", "-v", "-", "-o", os.devnull]
    done = subprocess.run(command, input=ptx, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}\n{ptx}"
    assert "C75" not in done.stderr, done.stderr
    return done.stdout + done.stderr


def check_gpu(case):
    """Lane for lane, the GPU writes what the emulator writes."""
    if cuda.get_current_device().compute_capability < case.cc[:2]:
        pytest.skip(f"needs compute capability {case.cc}")
    inputs, output, _ = case.arguments()
    arrays = [cuda.to_device(a) for a in (*inputs, output)]
    cuda.jit(case.kernel)[case.grid, case.block](*arrays)
    ulp = case.ulp if case.gpu_ulp is None else case.gpu_ulp
    absolute = case.absolute if case.gpu_absolute is None else case.gpu_absolute
    assert_close(arrays[-1].copy_to_host(), emulated(case), ulp, absolute)


def hard_floats(rng, n):
    """float32 numbers of all sizes, with NaN, infinities, zeros, subnormals, and ties of bfloat16
    and float16."""
    special = [0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, -1.0, 3.4e38, 65504, 65519.996, 65520]
    special += [448, 464, 465, -480, 57344, 61440, 61441, 2.0**-149, 2.0**-126, 2.0**-24, 2.0**-25]
    special += [2.0**-9, 2.0**-10, 2.0**-16, 2.0**-17, 1.5 * 2.0**-17, 0.0029296875]
    any_bits = rng.integers(0, 2**32, n, dtype=np.uint64).astype(np.uint32)
    ties16 = (any_bits & np.uint32(0xFFFF0000)) | np.uint32(0x8000)  # halfway between two bfloat16
    ties13 = (any_bits & np.uint32(0xFFFFE000)) | np.uint32(0x1000)
    middle = (any_bits & np.uint32(0x87FFFFFF)) | np.uint32(0x38000000)  # 2**-15 … 2
    parts = [any_bits, ties16, ties13, middle, (middle & ~np.uint32(0xFFF)) | np.uint32(0x1000)]
    values = np.concatenate([p.view(np.float32) for p in parts])
    values = np.concatenate([np.array(special, np.float32), rng.permutation(values)])
    return values[:n].copy()
