"""Bulk copies that are not waited for, not fenced, or not committed."""

import functools

import numpy as np
from ptx_tiles import findings, line_of

from cuda_numba import jit, ptx
from cuda_numba.namespace import cuda, uint32, uint64

FENCED, WAITED, READ, COMMITTED = 1, 2, 4, 8


@functools.cache
def faulty_load(steps):
    """A load by thread 0 that all threads read; `steps` are what it does not forget."""

    @jit
    def kernel(map: "uint64", y):
        tile = cuda.shared.array(64, uint32, alignment=128)
        bars = cuda.shared.array(1, uint64)
        i = cuda.threadIdx.x
        bar = ptx.shared_address(bars)
        if i == 0:
            ptx.mbarrier_init(bar, 1)
            if steps & FENCED:
                ptx.fence_mbarrier_init()
        cuda.syncthreads()
        if i == 0:
            ptx.mbarrier_arrive_expect_tx(bar, 256)
            ptx.tma_load_1d(ptx.shared_address(tile), map, 0, bar)
        if steps & WAITED:
            ptx.mbarrier_wait(bar, 0)
        else:
            cuda.syncthreads()
        y[i] = tile[i]

    return kernel


def report_of(kernel, seed=None):
    x, y = np.arange(64, dtype=np.uint32), np.zeros(64, np.uint32)
    map = ptx.tensor_map(x, (64,))
    report = kernel.report(1, 64, map, y, seed=seed)
    return findings(report), y


def test_a_load_that_is_waited_for():
    for seed in (None, 0, 1):
        findings, y = report_of(faulty_load(FENCED | WAITED), seed)
        assert findings == [] and (y == np.arange(64)).all()


def test_a_load_that_is_not_waited_for():
    kernel = faulty_load(FENCED)
    for seed in (None, 0, 1):
        findings, y = report_of(kernel, seed)
        (finding,) = [f for f in findings if f.kind == "missing_wait"]
        lines = line_of(kernel.function, "tma_load_1d("), line_of(kernel.function, "y[i] = tile")
        assert finding.lines == lines
        if seed is None:
            assert (y == 0xFFFFFFFF).all()


def test_an_mbarrier_that_the_copy_does_not_see():
    kernel = faulty_load(WAITED)
    (finding,), _ = report_of(kernel)
    assert finding.kind == "missing_fence" and "fence_mbarrier_init" in finding.message
    lines = line_of(kernel.function, "mbarrier_init(bar"), line_of(kernel.function, "tma_load_1d(")
    assert finding.lines == lines


@functools.cache
def faulty_store(steps):
    """A store of words that all threads have written, then written over."""

    @jit
    def kernel(map: "uint64", y):
        tile = cuda.shared.array(64, uint32, alignment=128)
        i = cuda.threadIdx.x
        tile[i] = uint32(i)
        if steps & FENCED:
            ptx.fence_proxy_async_shared()
        cuda.syncthreads()
        if i == 0:
            ptx.tma_store_1d(map, 0, ptx.shared_address(tile))
            if steps & COMMITTED:
                ptx.bulk_commit()
            if steps & READ:
                ptx.bulk_wait_read(0)
        cuda.syncthreads()
        tile[i] = uint32(7)
        if steps & WAITED:
            ptx.bulk_wait(0)

    return kernel


def stored(steps, seed=None):
    x = np.zeros(64, np.uint32)
    report = faulty_store(steps).report(1, 64, ptx.tensor_map(x, (64,)), x, seed=seed)
    return findings(report), x


def test_a_store_that_is_waited_for():
    for seed in (None, 0, 1):
        findings, x = stored(FENCED | COMMITTED | READ | WAITED, seed)
        assert findings == [] and (x == np.arange(64)).all()


def test_a_store_without_the_fence_of_its_writers():
    kernel = faulty_store(COMMITTED | READ | WAITED)
    findings, _ = stored(COMMITTED | READ | WAITED)
    (finding,) = [f for f in findings if f.kind == "missing_fence"]
    assert finding.lines == (
        line_of(kernel.function, "tile[i] = uint32(i)"),
        line_of(kernel.function, "tma_store_1d("),
    )
    assert "fence_proxy_async_shared" in finding.message


@jit
def fenced_by_another(map: "uint64", y):
    """Thread 32 + i writes last, thread i is the one that fences."""
    tile = cuda.shared.array(32, uint32, alignment=128)
    i = cuda.threadIdx.x
    if i < 32:
        tile[i] = uint32(i)
    cuda.syncthreads()
    if i >= 32:
        tile[i - 32] = uint32(i)
    cuda.syncthreads()
    if i < 32:
        ptx.fence_proxy_async_shared()
    cuda.syncthreads()
    if i == 0:
        ptx.tma_store_1d(map, 0, ptx.shared_address(tile))
        ptx.bulk_commit()
        ptx.bulk_wait(0)


def test_the_fence_must_be_by_the_writer():
    x = np.zeros(32, np.uint32)
    report = fenced_by_another.report(1, 64, ptx.tensor_map(x, (32,)), x)
    (finding,) = findings(report)
    assert finding.kind == "missing_fence" and (x == np.arange(32, 64)).all()
    assert finding.lines[0] == line_of(fenced_by_another.function, "tile[i - 32] =")


def test_a_source_that_is_written_over():
    kernel = faulty_store(FENCED | COMMITTED | WAITED)
    for seed in (None, 0, 1):
        findings, _ = stored(FENCED | COMMITTED | WAITED, seed)
        lines = {line for f in findings if f.kind == "race" for line in f.lines}
        assert line_of(kernel.function, "tma_store_1d(") in lines


def test_a_store_that_nobody_waits_for():
    for steps in (FENCED | COMMITTED, FENCED | WAITED):
        findings, _ = stored(steps)
        kernel = faulty_store(steps)
        found = [f for f in findings if f.kind == "missing_wait"]
        assert found[0].lines == (line_of(kernel.function, "tma_store_1d("),)
