"""Bulk copies used wrongly."""

import functools
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from ptx_tiles import devices, findings, line_of

from cuda_numba import jit, ptx
from cuda_numba.emulator import Deadlock
from cuda_numba.emulator.errors import InvalidUse, Misaligned, OutOfBounds
from cuda_numba.namespace import cuda, uint8, uint32, uint64

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


@jit
def too_many_bytes(map: "uint64", y):
    tile, bars = cuda.shared.array(64, uint32, alignment=128), cuda.shared.array(1, uint64)
    bar = ptx.shared_address(bars)
    ptx.mbarrier_init(bar, 1)
    ptx.fence_mbarrier_init()
    ptx.mbarrier_arrive_expect_tx(bar, 260)
    ptx.tma_load_1d(ptx.shared_address(tile), map, 0, bar)
    ptx.mbarrier_wait(bar, 0)
    y[0] = tile[0]


@jit
def wrong_rank(map: "uint64", y):
    tile, bars = cuda.shared.array(64, uint32, alignment=128), cuda.shared.array(1, uint64)
    bar = ptx.shared_address(bars)
    ptx.mbarrier_init(bar, 1)
    ptx.fence_mbarrier_init()
    ptx.tma_load_2d(ptx.shared_address(tile), map, 0, 0, bar)


@jit
def no_map(map: "uint64", y):
    ptx.prefetch_tensormap(map + uint64(128 * 12345))


@jit
def too_big(map: "uint64", y):
    tile, bars = cuda.shared.array(32, uint32, alignment=128), cuda.shared.array(1, uint64)
    bar = ptx.shared_address(bars)
    ptx.mbarrier_init(bar, 1)
    ptx.fence_mbarrier_init()
    ptx.tma_load_1d(ptx.shared_address(tile), map, 0, bar)


@jit
def odd_bytes(map: "uint64", y):
    tile = cuda.shared.array(32, uint8, alignment=16)
    ptx.bulk_store(ptx.global_address(y), ptx.shared_address(tile), 24)


@pytest.mark.parametrize(
    ("kernel", "error", "message"),
    [
        (too_many_bytes, Deadlock, "misses 4 bytes of bulk copies"),
        (wrong_rank, InvalidUse, "tma_load_2d: the tensor map has 1 dimensions, not 2"),
        (no_map, InvalidUse, "is not the address of a tensor map"),
        (too_big, OutOfBounds, "256 bytes at shared address .* outside every array"),
        (odd_bytes, Misaligned, "the number of bytes is 0x18, it must be a multiple of 16"),
    ],
)
def test_wrong_uses_are_errors(kernel, error, message):
    x, y = np.arange(64, dtype=np.uint32), np.zeros(64, np.uint32)
    with pytest.raises(error, match=message):
        kernel[1, 1](ptx.tensor_map(x, (64,)), y)


# ---- boxes that cannot be copied


@jit(device=True)
def load(map, x, y, place, bar):
    ptx.mbarrier_arrive_expect_tx(bar, 256)
    ptx.tma_load_2d(place, map, x, y, bar)
    ptx.mbarrier_wait(bar, 0)


@jit(device=True)
def store(map, x, y, place, bar):
    ptx.tma_store_2d(map, x, y, place)
    ptx.bulk_commit()
    ptx.bulk_wait(0)


@jit(device=True)
def add(map, x, y, place, bar):
    ptx.tma_reduce_add_2d(map, x, y, place)
    ptx.bulk_commit()
    ptx.bulk_wait(0)


@jit(device=True)
def prefetch(map, x, y, place, bar):
    ptx.tma_prefetch_2d(map, x, y)


HOW = {f.function.__name__: f for f in (load, store, add, prefetch)}


@functools.cache
def asks_for_a_box(how):
    """Thread 7 asks for the box at (y, x), with its tile `shift` bytes from a multiple of 128."""
    copy = HOW[how]

    @jit
    def kernel(map: "uint64", x: "int32", y: "int32", shift: "uint32"):  # noqa: F821
        tile = cuda.shared.array(96, uint32, alignment=128)
        bars = cuda.shared.array(1, uint64)
        i, bar = cuda.threadIdx.x, ptx.shared_address(bars)
        if i == 7:
            for k in range(96):
                tile[k] = uint32(0)
            ptx.mbarrier_init(bar, 1)
            ptx.fence_proxy_async()
            copy(map, x, y, ptx.shared_address(tile) + shift, bar)

    return kernel


def ask(device, how, x=4, y=1, shift=0, dtype=torch.int32):
    """Ask for a box of 4 × 64 bytes of a tensor of 8 × 128; raises what goes wrong."""
    tensor = torch.zeros(8, 128 // dtype.itemsize, dtype=dtype, device=device)
    map = ptx.tensor_map(tensor, (4, 64 // dtype.itemsize))
    asks_for_a_box(how)[1, 32](map, x, y, shift)
    if device == "cuda":
        torch.cuda.synchronize()


@devices
@pytest.mark.parametrize("how", HOW)
def test_a_box_that_can_be_copied(device, how):
    ask(device, how)


# What a GPU answers with "illegal instruction" or "misaligned address": how, x, shift, our words.
BETWEEN = "the innermost coordinate must be a multiple of 4, for 16 bytes"
FATAL = [
    ("load", 1, 0, f"begins at element 1 of a row, 4 bytes each: {BETWEEN}"),
    ("load", -1, 0, f"begins at element -1 of a row, 4 bytes each: {BETWEEN}"),
    ("store", 2, 0, f"begins at element 2 of a row, 4 bytes each: {BETWEEN}"),
    ("add", 7, 0, f"begins at element 7 of a row, 4 bytes each: {BETWEEN}"),
    ("load", 4, 16, "the shared address is 0x.*, it must be a multiple of 128"),
    ("store", 4, 64, "the shared address is 0x.*, it must be a multiple of 128"),
]


@pytest.mark.parametrize(("how", "x", "shift", "message"), FATAL)
def test_a_box_that_is_not_aligned(how, x, shift, message):
    name = {"load": "tma_load_2d", "store": "tma_store_2d", "add": "tma_reduce_add_2d"}[how]
    with pytest.raises(Misaligned, match=f"{name}: .*{message}") as raised:
        ask("cpu", how, x, shift=shift)
    assert raised.value.thread == (7, 0, 0)
    assert raised.value.line == line_of(HOW[how].function, f"ptx.{name}(")


@pytest.mark.gpu
@pytest.mark.parametrize(("how", "x", "shift"), [row[:3] for row in FATAL])
def test_a_gpu_refuses_it_too(how, x, shift):
    """In a process of its own: after such an error nothing more runs on the GPU from there."""
    code = f"import test_ptx_tma_faults as t; t.ask('cuda', {how!r}, {x}, shift={shift})"
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert ran.returncode
    assert re.search("illegal instruction|misaligned address", ran.stderr), ran.stderr


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float64])
def test_pieces_are_counted_in_bytes(dtype):
    piece = 16 // dtype.itemsize
    ask("cpu", "load", x=piece, dtype=dtype)
    with pytest.raises(Misaligned, match=f"multiple of {piece}, for 16 bytes"):
        ask("cpu", "load", x=piece - 1, dtype=dtype)


@pytest.mark.parametrize("how", ["store", "add"])
@pytest.mark.parametrize(("x", "y"), [(-4, 0), (0, -1)])
def test_a_box_that_is_written_begins_inside(how, x, y):
    ask("cpu", "load", x, y)
    with pytest.raises(InvalidUse, match=re.escape(f"the box begins at ({x}, {y}), innermost")):
        ask("cpu", how, x, y)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.float64])
def test_numbers_that_bulk_copies_do_not_add(dtype):
    x = 16 // dtype.itemsize
    ask("cpu", "store", x, dtype=dtype)
    with pytest.raises(InvalidUse, match="bulk copies add uint32, int32, uint64, int64, float32"):
        ask("cpu", "add", x, dtype=dtype)
