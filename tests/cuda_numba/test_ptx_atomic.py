"""What atomic operations and flags order between threads, as the emulator's report sees it."""

import numpy as np
import pytest
from ptx_cases_arithmetic import flag_at_kernel, flag_kernel, lock_kernel

from cuda_numba import ptx
from cuda_numba.emulator import Livelock, emulate
from cuda_numba.namespace import cuda, uint32


def loose_lock(x, out):
    """The lock without acquire and release: the GPU may move the sum out of it."""
    done = uint32(0)
    while done == uint32(0):
        if ptx.atomic_cas(out, 0, uint32(0), uint32(1)) == uint32(0):
            out[1] = out[1] + x[cuda.threadIdx.x]
            ptx.atomic_exchange(out, 0, uint32(0))
            done = uint32(1)


def flag(write, read, before, after):
    """Thread 0 of block 0 hands a word over to thread 0 of block 1."""

    def kernel(x, out):
        if cuda.threadIdx.x == 0:
            if cuda.blockIdx.x == 1:
                while read(out, 96) == uint32(0):
                    pass
                if after:
                    ptx.fence_acq_rel_gpu()
                out[32] = out[0]
            else:
                out[0] = x[1]
                if before:
                    ptx.fence_acq_rel_gpu()
                write(out, 96, uint32(1))

    return kernel


def races(kernel, grid=2, seed=None):
    out = np.zeros(97, np.uint32)
    report = emulate(kernel).report(grid, 32, np.arange(32, dtype=np.uint32), out, seed=seed)
    return report.races


@pytest.mark.parametrize("seed", [None, 1, 2])
def test_a_lock_orders_what_it_guards(seed):
    assert not races(lock_kernel, 1, seed)
    assert races(loose_lock, 1, seed)


@pytest.mark.parametrize(
    ("write", "read", "before", "after", "ordered"),
    [
        (ptx.store_release, ptx.load_acquire, False, False, True),
        (ptx.store_relaxed, ptx.load_relaxed, False, False, False),
        (ptx.store_release, ptx.load_relaxed, False, False, False),
        (ptx.store_relaxed, ptx.load_acquire, False, False, False),
        (ptx.store_relaxed, ptx.load_relaxed, True, True, True),
        (ptx.store_volatile, ptx.load_volatile, True, True, True),
        (ptx.store_relaxed, ptx.load_relaxed, True, False, False),
        (ptx.store_relaxed, ptx.load_relaxed, False, True, False),
        (ptx.store_relaxed, ptx.load_acquire, True, False, True),
        (ptx.store_release, ptx.load_relaxed, False, True, True),
    ],
)
def test_a_flag_needs_both_sides(write, read, before, after, ordered):
    assert (not races(flag(write, read, before, after))) is ordered


@pytest.mark.parametrize("kernel", [flag_kernel, flag_at_kernel])
def test_a_flag_hands_over_what_barriers_gathered(kernel):
    """All threads write, a barrier, one raises the flag; one waits, a barrier, all read."""
    assert not races(kernel)


def last_block(x, out):
    """Each block leaves its part; whoever draws the last ticket adds all up."""
    i = cuda.threadIdx.x
    ptx.store_32(out, 32 * cuda.blockIdx.x + i, x[i])
    ptx.fence_acq_rel_gpu()
    cuda.syncthreads()
    last = cuda.shared.array(1, uint32)
    if i == 0:
        last[0] = ptx.atomic_add(out, 96, uint32(1))
    cuda.syncthreads()
    if last[0] == uint32(1):
        ptx.fence_acq_rel_gpu()
        out[64 + i] = out[i] + out[32 + i]


def last_block_without_fences(x, out):
    i = cuda.threadIdx.x
    ptx.store_32(out, 32 * cuda.blockIdx.x + i, x[i])
    cuda.syncthreads()
    last = cuda.shared.array(1, uint32)
    if i == 0:
        last[0] = ptx.atomic_add(out, 96, uint32(1))
    cuda.syncthreads()
    if last[0] == uint32(1):
        out[64 + i] = out[i] + out[32 + i]


@pytest.mark.parametrize("seed", [None, 1, 2])
def test_the_last_block_needs_fences(seed):
    assert not races(last_block, 2, seed)
    assert races(last_block_without_fences, 2, seed)


def waits_for_a_flag(x, out):
    while ptx.load_acquire(out, 0) == uint32(0):
        pass


def waits_for_a_lock(x, out):
    while ptx.atomic_cas_acquire(out, 0, uint32(1), uint32(2)) != uint32(1):
        pass


@pytest.mark.parametrize("kernel", [waits_for_a_flag, waits_for_a_lock])
def test_waiting_for_nobody_is_a_livelock(kernel):
    with pytest.raises(Livelock, match="spins at line"):
        emulate(kernel)[1, 32](np.zeros(1, np.uint32), np.zeros(97, np.uint32))
