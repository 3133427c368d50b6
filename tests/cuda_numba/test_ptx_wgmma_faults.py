"""wgmma used wrongly: fences, waits, operands and warpgroups."""

import functools

import numpy as np
import pytest
from ptx_tiles import findings, line_of

from cuda_numba import jit, ptx
from cuda_numba.emulator import Deadlock
from cuda_numba.namespace import cuda, float32, uint32

PROXY, FENCE, SECOND, KEPT, WAITED, GOOD = 1, 2, 4, 8, 16, 31


@functools.cache
def faulty(steps, threads=128):
    """Two products; `steps` are what it does not forget."""
    multiply, zeros, wait = ptx.wgmma(8), ptx.wgmma_zeros(8), ptx.wgmma_wait(8, 0)
    load, store = ptx.wgmma_load(8), ptx.wgmma_store(8)

    @jit
    def kernel(y):
        tile = cuda.shared.array(512, uint32, alignment=1024)
        values = cuda.local.array(4, float32)
        i = cuda.threadIdx.x
        j = i
        while j < 512:
            tile[j] = uint32(0x3F803F80)
            j += threads
        if steps & PROXY:
            ptx.fence_proxy_async_shared()
        cuda.syncthreads()
        d = ptx.wgmma_descriptor(ptx.shared_address(tile), 0, 256, 32)
        acc = zeros()
        if steps & FENCE:
            ptx.wgmma_fence()
        acc = multiply(acc, d, d, False)  # the first
        ptx.wgmma_commit()
        store(wait(acc), values)
        for k in range(4):
            values[k] = values[k] + float32(1)
        acc = load(values)
        if steps & SECOND:
            ptx.wgmma_fence()
        acc = multiply(acc, d, d, True)  # the second
        ptx.wgmma_commit()
        if not steps & KEPT:
            tile[i] = 0
        if steps & WAITED:
            acc = wait(acc)
        for k in range(4):
            y[4 * i + k] = acc[k]

    return kernel


def report_of(steps, threads=128, seed=None):
    kernel = faulty(steps, threads)
    y = np.zeros(512, np.float32)
    report = kernel.report(1, threads, y, seed=seed)
    return findings(report), y, kernel.function


def test_the_right_program():
    for seed in (None, 0, 1):
        findings, y, _ = report_of(GOOD, seed=seed)
        assert findings == [] and (y == 33).all()


def test_missing_proxy_fence():
    findings, _, kernel = report_of(GOOD & ~PROXY)
    found = [f for f in findings if f.kind == "missing_fence"]
    store = line_of(kernel, "tile[j] =")
    assert [f.lines for f in found] == [
        (store, line_of(kernel, "# the first")),
        (store, line_of(kernel, "# the second")),
    ]


def test_missing_wgmma_fence():
    findings, _, kernel = report_of(GOOD & ~FENCE)
    found = {f.lines for f in findings if f.kind == "missing_wgmma_fence"}
    assert found == {(line_of(kernel, "# the first"),)}
    findings, _, kernel = report_of(GOOD & ~SECOND)
    (finding,) = findings
    assert finding.kind == "missing_wgmma_fence"
    assert finding.lines == (line_of(kernel, "# the second"),)
    assert "registers that other instructions have written" in finding.message


@functools.cache
def registers_changed(fenced):
    """Operand A in registers, other words in the second product than in the first."""
    multiply, zeros, wait = ptx.wgmma(8, a="registers"), ptx.wgmma_zeros(8), ptx.wgmma_wait(8, 0)

    @jit
    def kernel(y):
        tile = cuda.shared.array(64, uint32, alignment=1024)
        i = cuda.threadIdx.x
        if i < 64:
            tile[i] = uint32(0x3F803F80)
        ptx.fence_proxy_async_shared()
        cuda.syncthreads()
        d = ptx.wgmma_descriptor(ptx.shared_address(tile), 0, 256, 32)
        one, two = uint32(0x3F803F80), uint32(0x40004000)
        acc = zeros()
        ptx.wgmma_fence()
        acc = multiply(acc, (one, one, one, one), d, False)
        ptx.wgmma_commit()
        acc = wait(acc)
        acc = multiply(acc, (one, one, one, one), d, True)  # the same registers again
        ptx.wgmma_commit()
        acc = wait(acc)
        if fenced:
            ptx.wgmma_fence()
        acc = multiply(acc, (two, two, two, two), d, True)  # others
        ptx.wgmma_commit()
        acc = wait(acc)
        y[i] = acc[0]

    return kernel


def test_registers_written_before_a_product():
    for fenced in (True, False):
        kernel, y = registers_changed(fenced), np.zeros(128, np.float32)
        found = findings(kernel.report(1, 128, y))
        assert (y == 64).all()
        assert [f.kind for f in found] == ([] if fenced else ["missing_wgmma_fence"])
        if not fenced:
            assert found[0].lines == (line_of(kernel.function, "# others"),)
            assert "operand A" in found[0].message


def test_operands_written_before_the_wait():
    for seed in (None, 0, 1):
        findings, _, kernel = report_of(GOOD & ~KEPT, seed=seed)
        lines = {line for f in findings if f.kind == "race" for line in f.lines}
        assert line_of(kernel, "# the second") in lines


def test_accumulators_used_before_the_wait():
    findings, y, kernel = report_of(GOOD & ~WAITED)
    (finding,) = findings
    assert finding.kind == "missing_wait" and np.isnan(y).all()
    assert finding.lines == (line_of(kernel, "# the second"), line_of(kernel, "y[4 * i + k] ="))


def test_a_warpgroup_is_four_warps():
    with pytest.raises(Exception, match="a warpgroup is four whole warps"):
        faulty(GOOD, 96)[1, 96](np.zeros(512, np.float32))


@functools.cache
def diverged(how):
    multiply, zeros, wait = ptx.wgmma(8), ptx.wgmma_zeros(8), ptx.wgmma_wait(8, 0)

    @jit
    def kernel(y):
        tile = cuda.shared.array(1024, uint32, alignment=1024)
        i = cuda.threadIdx.x
        address = ptx.shared_address(tile)
        if how == "descriptors":
            address = uint32(address + uint32(1024) * uint32(i >> 6))
        d = ptx.wgmma_descriptor(address, 0, 256, 32)
        acc = zeros()
        if how == "descriptors" or i < 64:
            ptx.wgmma_fence()
            acc = multiply(acc, d, d, False)
            ptx.wgmma_commit()
            acc = wait(acc)
        y[i] = acc[0]

    return kernel


def test_a_warpgroup_that_parts():
    with pytest.raises(Deadlock, match="the other threads of its warpgroup"):
        diverged("threads")[1, 128](np.zeros(128, np.float32))


def test_descriptors_that_differ():
    with pytest.raises(Exception, match="the descriptors or the scale of .* differ"):
        diverged("descriptors")[1, 128](np.zeros(128, np.float32))
