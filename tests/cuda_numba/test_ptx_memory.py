import numpy as np
import pytest
from ptx_cases import (
    HOPPER,
    assemble,
    check_compiled,
    check_emulated,
    check_gpu,
    ids,
    needs_compiler,
)
from ptx_cases_memory import CASES

from cuda_numba import ptx
from cuda_numba.namespace import cuda, float32, int32, types

cases = pytest.mark.parametrize("case", CASES, ids=ids)


@cases
def test_emulated(case):
    check_emulated(case)


@cases
def test_compiled_for_the_oldest_gpu(case):
    check_compiled(case, case.cc, pointers=False)


@cases
def test_compiled_for_hopper(case):
    check_compiled(case, HOPPER, pointers=True)


@pytest.mark.gpu
@cases
def test_gpu(case):
    check_gpu(case)


def misaligned(x, y):
    a, b, c, d = ptx.load_128(x, 1)
    ptx.store_32(y, 0, a)


def beyond(x, y):
    a, b, c, d = ptx.load_128(x, 8)
    ptx.store_32(y, 0, a)


def too_few_registers(x, y):
    values = cuda.local.array(4, float32)
    ptx.load_vector(x, 0, values, 1)


def hinted_shared(x, y):
    tile = cuda.shared.array(4, float32)
    tile[0] = 0
    ptx.load_128_nc(tile, 0)


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        (misaligned, "16-byte access.* not a multiple of 16"),
        (beyond, "outside"),
        (too_few_registers, "elements 1 to 4 of a local array of 4"),
        (hinted_shared, "load_128_nc reaches global memory; this address is shared memory"),
    ],
)
def test_wrong_accesses_are_errors(kernel, message):
    from cuda_numba.emulator import emulate

    x = np.arange(8, dtype=np.float32)
    with pytest.raises(Exception, match=message):
        emulate(kernel)[1, 1](x, np.zeros(4, np.float32))


def test_elements_of_other_types_are_errors():
    from cuda_numba.emulator import emulate

    def kernel(x, y):
        ptx.store(y, 0, ptx.load(x, 0))

    with pytest.raises(Exception, match="ptx.load takes arrays of float32, float16, uint16"):
        emulate(kernel)[1, 1](np.zeros(4, np.float64), np.zeros(4, np.float32))


def test_registers_stay_registers():
    """64 float32 in a local array, read and written in vectors, also around a loop."""
    needs_compiler()

    def kernel(x, y, n):
        values = cuda.local.array(64, float32)
        i = cuda.threadIdx.x * 64
        for k in range(16):
            ptx.load_vector_nc(x, i + 4 * k, values, 4 * k)
        while n > 0:
            n = int32(n - int32(1))
            for k in range(64):
                values[k] = values[k] * values[(k + 1) % 64]
        for k in range(16):
            ptx.store_vector_cs(y, i + 4 * k, values, 4 * k)

    array = types.CPointer(types.float32)
    signature = (array, array, types.int32)
    ptx_text, _ = cuda.compile(kernel, signature, cc=HOPPER, device=False, abi="numba")
    assert ptx_text.count("ld.global.nc.L1::no_allocate.v4.b32") == 16
    assert ptx_text.count("st.global.cs.v4.b32") == 16
    assert ".local" not in ptx_text
    assert "0 bytes stack frame, 0 bytes spill stores" in assemble(ptx_text, HOPPER)
