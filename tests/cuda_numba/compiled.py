"""What every kernel's machine code is asked, on each architecture; no GPU is needed."""

import pytest

from cuda_numba.gates import check_gates
from cuda_numba.toolchain import has_compiler

# sm_75 is the T4, sm_80 the A100, sm_89 Ada, sm_90 (compiled as sm_90a) the H100.
ARCHITECTURES = [(7, 5), (8, 0), (8, 9), (9, 0)]
WIDE_LOAD, WIDE_STORE = "LDG.E.128", "STG.E.128"

needs_compiler = pytest.mark.skipif(not has_compiler(), reason="numba-cuda is not installed")


def assert_gates(kernel, cc, signature, expect=(), **limits):
    """The kernel compiles under Numba CUDA, spills nothing, has no float64 and no 64-bit division,
    and holds the instructions of `expect`.

    signature: as for `kernel.ptx`. limits: of `check_gates`.
    """
    problems = check_gates(kernel.code(cc, signature), expect=expect, **limits)
    assert not problems, "\n".join(problems)
