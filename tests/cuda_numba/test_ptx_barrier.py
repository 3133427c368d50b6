"""Named barriers, mbarriers and fences: who waits for whom, and what is wrong where they do not."""

import numpy as np
import pytest
from ptx_cases import Case, check_compiled, check_emulated, check_gpu, ids
from ptx_compiled import compiled
from ptx_tiles import findings, line_of

from cuda_numba import ptx
from cuda_numba.emulator import Deadlock, emulate
from cuda_numba.namespace import cuda, int32, uint32, uint64

ANY, AMPERE, HOPPER = (7, 5), (8, 0), (9, 0, "a")


def numbers(count):
    return lambda rng: [rng.integers(0, 2**31, count, dtype=np.int64).astype(np.int32)]


def pairs(x, y):
    """Two groups of two warps, each with a barrier of its own, turn their part of x round."""
    tile = cuda.shared.array(128, int32)
    i = cuda.threadIdx.x
    tile[i] = x[i]
    if i < 64:
        ptx.barrier_sync(1, 64)
        y[i] = tile[63 - i]
    else:
        ptx.barrier_sync(2, 64)
        y[i] = tile[191 - i]


def pairs_by_number(x, y):
    tile = cuda.shared.array(128, int32)
    i = cuda.threadIdx.x
    tile[i] = x[i]
    group = uint32(i >> 6)
    ptx.barrier_sync_any(group + uint32(1), 64)
    y[i] = tile[(i & 64) + 63 - (i & 63)]


def hand_over(x, y):
    """Warp 0 produces eight rows, warp 1 adds them up: barrier 1 says full, barrier 2 empty."""
    tile = cuda.shared.array(32, int32)
    i = cuda.threadIdx.x
    lane = i & 31
    if i < 32:
        for row in range(8):
            if row > 0:
                ptx.barrier_sync(2, 64)
            tile[lane] = x[32 * row + lane]
            ptx.barrier_arrive(1, 64)
    else:
        total = int32(0)
        for row in range(8):
            ptx.barrier_sync(1, 64)
            total = int32(total + tile[31 - lane])
            if row < 7:
                ptx.barrier_arrive(2, 64)
        y[lane] = total


def column_sums(x):
    return x.reshape(8, 32).sum(axis=0, dtype=np.int64).astype(np.int32)[::-1].copy()


def votes(x, y):
    i = cuda.threadIdx.x
    y[i] = int32(ptx.barrier_and(1, 64, x[i] > 3))
    y[64 + i] = int32(ptx.barrier_or(2, 64, x[i] > 3))
    y[128 + i] = int32(ptx.barrier_count(3, 64, x[i] > 3))


def counted(x):
    big = x > 3
    out = [big.all(), big.any(), big.sum()]
    return np.repeat(np.array(out, np.int32), 64)


def phases(x, y):
    """Two warps pass a tile to and fro, one mbarrier each way, through eight phases."""
    tile, bars = cuda.shared.array(32, int32), cuda.shared.array(2, uint64)
    i = cuda.threadIdx.x
    lane = i & 31
    full = ptx.shared_address(bars)
    empty = uint32(full + uint32(8))
    if i == 0:
        ptx.mbarrier_init(full, 32)
        ptx.mbarrier_init(empty, 32)
    cuda.syncthreads()
    total, phase = int32(0), uint32(0)
    if i < 32:
        for row in range(8):
            ptx.mbarrier_wait(empty, phase ^ uint32(1))
            tile[lane] = x[32 * row + lane]
            ptx.mbarrier_arrive(full)
            phase = uint32(phase ^ uint32(1))
    else:
        for _ in range(8):
            ptx.mbarrier_wait(full, phase)
            total = int32(total + tile[31 - lane])
            ptx.mbarrier_arrive(empty)
            phase = uint32(phase ^ uint32(1))
        y[lane] = total
    cuda.syncthreads()
    if i == 0:
        ptx.mbarrier_inval(full)
        ptx.mbarrier_inval(empty)


def polls(x, y):
    """One arrival for all, and waiting by tests in a loop."""
    tile, bars = cuda.shared.array(32, int32), cuda.shared.array(1, uint64)
    i = cuda.threadIdx.x
    bar = ptx.shared_address(bars)
    if i == 0:
        ptx.mbarrier_init(bar, 33)
    cuda.syncthreads()
    if i < 32:
        tile[i] = x[i]
        if i == 0:
            ptx.mbarrier_arrive_many(bar, 2)
        else:
            ptx.mbarrier_arrive(bar)
    else:
        done = ptx.mbarrier_test_wait(bar, 0)
        while not done:
            done = ptx.mbarrier_try_wait(bar, 0)
        y[i - 32] = tile[63 - i]


CASES = [
    Case("pairs", ("barrier_sync",), pairs, numbers(128),
         lambda x: x.reshape(2, 64)[:, ::-1].reshape(-1).copy(), ("bar.sync 1, 64",), block=128),
    Case("pairs_by_number", ("barrier_sync_any",), pairs_by_number, numbers(128),
         lambda x: x.reshape(2, 64)[:, ::-1].reshape(-1).copy(), ("bar.sync %r",), block=128),
    Case("hand_over", ("barrier_arrive",), hand_over, numbers(256), column_sums,
         ("bar.arrive 1, 64", "bar.sync 2, 64"), block=64),
    *(
        Case(f"votes_{k}", ("barrier_and", "barrier_or", "barrier_count"), votes,
             lambda rng, k=k: [np.array([5] * k + [0] * (64 - k), np.int32)], counted,
             ("bar.red.and.pred", "bar.red.or.pred", "bar.red.popc.u32"), block=64)
        for k in (0, 1, 64)
    ),
    Case("phases", ("mbarrier_init", "mbarrier_wait", "mbarrier_arrive", "mbarrier_inval"), phases,
         numbers(256), column_sums,
         ("mbarrier.init", "mbarrier.arrive", "mbarrier.inval", ("mbarrier.try_wait", (9, 0)),
          "_wait.parity"), block=64, cc=AMPERE),
    Case("polls", ("mbarrier_test_wait", "mbarrier_try_wait", "mbarrier_arrive_many"), polls,
         numbers(32), lambda x: x[::-1].copy(),
         ("mbarrier.test_wait.parity", "mbarrier.try_wait.parity"), block=64, cc=(9, 0)),
]  # fmt: skip
cases = pytest.mark.parametrize("case", CASES, ids=ids)


@cases
def test_emulated(case):
    check_emulated(case)


@cases
def test_no_findings(case):
    for seed in (None, 1, 2):
        inputs, output, expected = case.arguments()
        report = emulate(case.kernel).report(case.grid, case.block, *inputs, output, seed=seed)
        assert findings(report) == []
        np.testing.assert_array_equal(output, expected)


@cases
def test_compiled(case):
    check_compiled(case, case.cc, pointers=False)
    check_compiled(case, HOPPER, pointers=True)


@pytest.mark.gpu
@cases
def test_gpu(case):
    check_gpu(case)


TEXTS = {
    "mbarrier_arrive_expect_tx": "mbarrier.arrive.expect_tx.shared::cta.b64 _,",
    "mbarrier_expect_tx": "mbarrier.expect_tx.relaxed.cta.shared::cta.b64",
    "fence_proxy_async": "fence.proxy.async;",
    "fence_proxy_async_shared": "fence.proxy.async.shared::cta;",
    "fence_proxy_async_global": "fence.proxy.async.global;",
    "fence_mbarrier_init": "fence.mbarrier_init.release.cluster;",
    "fence_tensormap_acquire": "fence.proxy.tensormap::generic.acquire.gpu [",
    "fence_tensormap_release": "fence.proxy.tensormap::generic.release.gpu;",
    **{
        f"fence_{kind}_{scope}": f"fence.{kind}.{scope};"
        for kind in ("acq_rel", "sc")
        for scope in ("cta", "cluster", "gpu", "sys")
    },
}


@pytest.mark.parametrize("name", TEXTS)
def test_assembles(name):
    ins = getattr(ptx, name)
    assert TEXTS[name] in compiled(ins)


# ---- planted faults


def report_of(kernel, threads, seed=None, n=256):
    x, y = np.arange(n, dtype=np.int32), np.zeros(n, np.int32)
    return emulate(kernel).report(1, threads, x, y, seed=seed)


def kinds(report):
    return {f.kind for f in report.findings} - {"untyped"}


def no_arrival(x, y):
    """The consumer reads without waiting for the producer."""
    tile = cuda.shared.array(32, int32)
    i = cuda.threadIdx.x
    if i < 32:
        tile[i] = x[i]
        ptx.barrier_arrive(1, 64)
    else:
        y[i - 32] = tile[i - 32]
        ptx.barrier_sync(1, 64)


def test_a_race_past_a_named_barrier():
    (finding,) = report_of(no_arrival, 64).races
    assert set(finding.lines) == {
        line_of(no_arrival, "tile[i] ="),
        line_of(no_arrival, "y[i - 32]"),
    }


def written_too_soon(x, y):
    """The producer writes the second row without knowing that the first was read."""
    tile, bars = cuda.shared.array(32, int32), cuda.shared.array(1, uint64)
    i = cuda.threadIdx.x
    full = ptx.shared_address(bars)
    if i == 0:
        ptx.mbarrier_init(full, 32)
    cuda.syncthreads()
    for row in range(2):
        if i < 32:
            tile[i] = x[32 * row + i]
            ptx.mbarrier_arrive(full)
        else:
            ptx.mbarrier_wait(full, row)
            y[i - 32] = tile[63 - i]


def test_a_race_past_an_mbarrier():
    lines = {line_of(written_too_soon, "tile[i] ="), line_of(written_too_soon, "y[i - 32]")}
    found = [report_of(written_too_soon, 64, seed) for seed in range(3)]
    assert any(set(f.lines) == lines for r in found for f in r.findings if f.kind == "race")


def too_few(x, y):
    i = cuda.threadIdx.x
    if i < 32:
        ptx.barrier_sync(3, 64)
    y[i] = x[i]


def test_a_barrier_that_others_never_reach():
    with pytest.raises(Deadlock, match=r"32 threads .* named barrier 3, 64 threads") as caught:
        report_of(too_few, 64)
    assert caught.value.line == line_of(too_few, "barrier_sync(3")


def two_counts(x, y):
    i = cuda.threadIdx.x
    if i < 32:
        ptx.barrier_sync(1, 64)
    else:
        ptx.barrier_sync(1, 32)


def test_one_barrier_two_counts():
    with pytest.raises(Exception, match="count is 32 at line .* but 64 at line .* barrier 1"):
        emulate(two_counts)[1, 64](np.zeros(64, np.int32), np.zeros(64, np.int32))


def wrong_number(x, y):
    ptx.barrier_sync(16, 64)


def wrong_count(x, y):
    ptx.barrier_sync(1, 40)


def no_init(x, y):
    bars = cuda.shared.array(1, uint64)
    ptx.mbarrier_arrive(ptx.shared_address(bars))


def no_arrivals(x, y):
    bars = cuda.shared.array(1, uint64)
    ptx.mbarrier_init(ptx.shared_address(bars), 0)


def odd_address(x, y):
    bars = cuda.shared.array(4, uint32)
    ptx.mbarrier_init(ptx.shared_address(bars) + uint32(4), 1)


def overwritten(x, y):
    bars = cuda.shared.array(1, uint64)
    if cuda.threadIdx.x == 0:
        ptx.mbarrier_init(ptx.shared_address(bars), 64)
        bars[0] = 0
    cuda.syncthreads()
    ptx.mbarrier_arrive(ptx.shared_address(bars))


def invalidated(x, y):
    bars = cuda.shared.array(1, uint64)
    if cuda.threadIdx.x == 0:
        ptx.mbarrier_init(ptx.shared_address(bars), 64)
        ptx.mbarrier_inval(ptx.shared_address(bars))
    cuda.syncthreads()
    ptx.mbarrier_arrive(ptx.shared_address(bars))


def surplus(x, y):
    """64 arrivals where 32 are due, and bytes that never come."""
    bars = cuda.shared.array(1, uint64)
    if cuda.threadIdx.x == 0:
        ptx.mbarrier_init(ptx.shared_address(bars), 32)
        ptx.mbarrier_expect_tx(ptx.shared_address(bars), 16)
    cuda.syncthreads()
    ptx.mbarrier_arrive(ptx.shared_address(bars))


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        (wrong_number, "barrier_sync: number is 16; it must be from 0 to 15"),
        (wrong_count, "barrier_sync: count is 40; it must be a multiple of 32, and at most the 64"),
        (no_init, "mbarrier_arrive: no mbarrier was initialised at shared address 0x"),
        (no_arrivals, "mbarrier_init: count is 0; it must be from 1 to 1048575"),
        (odd_address, "8-byte access .* not a multiple of 8"),
        (overwritten, "the mbarrier initialised at line .*: its 8 bytes were overwritten"),
        (invalidated, "no mbarrier was initialised"),
        (
            surplus,
            "an arrival too many in phase 0, where 32 are due and 16 bytes are still missing",
        ),
    ],
)
def test_wrong_uses_are_errors(kernel, message):
    with pytest.raises(Exception, match=message):
        emulate(kernel)[1, 64](np.zeros(64, np.int32), np.zeros(64, np.int32))


def never_comes(x, y):
    bars = cuda.shared.array(1, uint64)
    i = cuda.threadIdx.x
    bar = ptx.shared_address(bars)
    if i == 0:
        ptx.mbarrier_init(bar, 2)
        ptx.mbarrier_arrive_expect_tx(bar, 128)
    cuda.syncthreads()
    ptx.mbarrier_wait(bar, 0)


def test_what_a_barrier_still_misses():
    with pytest.raises(Deadlock, match="misses 1 of 2 arrivals and 128 bytes of bulk copies"):
        report_of(never_comes, 32)


def left_behind(x, y):
    """Warp 1 is not among those that the barrier waits for: two phases pass it by."""
    bars = cuda.shared.array(1, uint64)
    i = cuda.threadIdx.x
    bar = ptx.shared_address(bars)
    if i == 0:
        ptx.mbarrier_init(bar, 32)
    cuda.syncthreads()
    if i < 32:
        ptx.barrier_sync(1, 64)
        ptx.mbarrier_arrive(bar)
        ptx.mbarrier_arrive(bar)
    else:
        ptx.barrier_arrive(1, 64)
        ptx.mbarrier_wait(bar, 0)


def test_a_waiter_two_phases_behind():
    messages = [f.message for f in report_of(left_behind, 64).findings]
    assert any("waits at line" in m and "but the barrier is in phase 2" in m for m in messages)


def uninitialised_for_others(x, y):
    """No barrier between the thread that makes the mbarrier and those that use it."""
    bars = cuda.shared.array(1, uint64)
    if cuda.threadIdx.x == 0:
        ptx.mbarrier_init(ptx.shared_address(bars), 64)
    ptx.mbarrier_arrive(ptx.shared_address(bars))


def test_using_an_mbarrier_before_others_know_of_it():
    found = [f for f in report_of(uninitialised_for_others, 64).findings if f.kind == "race"]
    init = line_of(uninitialised_for_others, "mbarrier_init")
    assert found and all(f.lines == (init, init + 1) for f in found)
