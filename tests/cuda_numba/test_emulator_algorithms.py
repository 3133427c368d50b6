"""Kernels as people write them, against NumPy, in every order of threads, with nothing to report.

Beside some of them stands the same kernel with the usual mistake.
"""

import numpy as np
import pytest
from numba import njit

from cuda_numba import emulate, ptx
from cuda_numba.namespace import cuda, float32, int32, int64, uint32

FULL = 0xFFFFFFFF
SEEDS = (None, 0, 1, 2)


def run(kernel, grid, block, *arguments, found=(), **options):
    """The arguments as the kernel leaves them, which must be the same in every order of threads.

    found: the kinds of findings that there are, and no others.
    """
    results = []
    for seed in SEEDS:
        given = [a.copy() if isinstance(a, np.ndarray) else a for a in arguments]
        report = emulate(kernel).report(grid, block, *given, seed=seed, **options)
        assert {f.kind for f in report.findings} == set(found), report.findings
        results.append(given)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            if not found:
                np.testing.assert_array_equal(a, b)
    return results[0]


def whole(*shape, low=-50, high=50, dtype=np.float32):
    return np.random.randint(low, high, shape).astype(dtype)


# ---- shared memory ------------------------------------------------------------------------------


def histogram(x, out):
    bins = cuda.shared.array(64, int32)
    t = cuda.threadIdx.x
    for i in range(t, 64, cuda.blockDim.x):
        bins[i] = 0
    cuda.syncthreads()
    for i in range(cuda.grid(1), x.size, cuda.gridsize(1)):
        cuda.atomic.add(bins, x[i] & 63, 1)
    cuda.syncthreads()
    for i in range(t, 64, cuda.blockDim.x):
        if bins[i]:
            cuda.atomic.add(out, i, bins[i])


def test_a_histogram_in_shared_memory():
    x = whole(700, low=0, high=1000, dtype=np.int32)
    _, out = run(histogram, 3, 48, x, np.zeros(64, np.int32))
    assert (out == np.bincount(x & 63, minlength=64)).all()


def hillis_steele(x, out):
    s = cuda.shared.array((2, 128), float32)
    t, now = cuda.threadIdx.x, 0
    s[0, t] = x[t]
    cuda.syncthreads()
    d = 1
    while d < 128:
        s[1 - now, t] = s[now, t] + s[now, t - d] if t >= d else s[now, t]
        cuda.syncthreads()
        now = 1 - now
        d *= 2
    out[t] = s[now, t]


def hillis_steele_in_place(x, out):
    s = cuda.shared.array(128, float32)
    t = cuda.threadIdx.x
    s[t] = x[t]
    cuda.syncthreads()
    d = 1
    while d < 128:
        if t >= d:
            s[t] += s[t - d]
        cuda.syncthreads()
        d *= 2
    out[t] = s[t]


def blelloch(x, out):
    s = cuda.shared.array(128, int32)
    t = cuda.threadIdx.x
    s[2 * t], s[2 * t + 1] = x[2 * t], x[2 * t + 1]
    step, d = 1, 64
    while d > 0:
        cuda.syncthreads()
        if t < d:
            s[step * (2 * t + 2) - 1] += s[step * (2 * t + 1) - 1]
        step *= 2
        d >>= 1
    if t == 0:
        s[127] = 0
    d = 1
    while d < 128:
        step >>= 1
        cuda.syncthreads()
        if t < d:
            a, b = step * (2 * t + 1) - 1, step * (2 * t + 2) - 1
            s[a], s[b] = s[b], s[b] + s[a]
        d *= 2
    cuda.syncthreads()
    out[2 * t], out[2 * t + 1] = s[2 * t], s[2 * t + 1]


def test_scans():
    x = whole(128)
    assert (run(hillis_steele, 1, 128, x, np.zeros_like(x))[1] == np.cumsum(x)).all()
    run(hillis_steele_in_place, 1, 128, x, np.zeros_like(x), found={"race"})
    x = x.astype(np.int32)
    assert (run(blelloch, 1, 64, x, np.zeros_like(x))[1] == np.cumsum(x) - x).all()


REACH = 2
WIDTH = 64 + 2 * REACH


def stencil(x, out):
    s = cuda.shared.array(WIDTH, float32)
    t, i, n = cuda.threadIdx.x, cuda.grid(1), x.shape[0]
    s[t + REACH] = x[i] if i < n else float32(0)
    if t < REACH:
        s[t] = x[i - REACH] if i >= REACH else float32(0)
        s[t + 64 + REACH] = x[i + 64] if i + 64 < n else float32(0)
    cuda.syncthreads()
    if i < n:
        total = float32(0)
        for k in range(-REACH, REACH + 1):
            total += s[t + REACH + k]
        out[i] = total


def test_a_stencil_with_a_halo():
    x = whole(200)
    _, out = run(stencil, 4, 64, x, np.zeros_like(x))
    assert (out == np.convolve(x, np.ones(5), "same")).all()


def bitonic(x):
    s = cuda.shared.array(128, float32)
    t = cuda.threadIdx.x
    s[t] = x[t]
    cuda.syncthreads()
    k = 2
    while k <= 128:
        j = k // 2
        while j > 0:
            o = t ^ j
            if o > t and (s[t] > s[o]) == ((t & k) == 0):
                s[t], s[o] = s[o], s[t]
            cuda.syncthreads()
            j //= 2
        k *= 2
    x[t] = s[t]


def test_a_bitonic_sort():
    x = np.random.standard_normal(128).astype(np.float32)
    assert (run(bitonic, 1, 128, x)[0] == np.sort(x)).all()


def two_types(a, b, x, y):
    f = cuda.shared.array(0, float32)
    k = cuda.shared.array(0, int32)[64:]
    t = cuda.threadIdx.x
    f[t], k[t] = a[t], b[t]
    cuda.syncthreads()
    x[t], y[t] = f[63 - t], k[63 - t]


def two_types_that_overlap(a, b, x, y):
    f = cuda.shared.array(0, float32)
    k = cuda.shared.array(0, int32)[32:]
    t = cuda.threadIdx.x
    f[t], k[t] = a[t], b[t]
    cuda.syncthreads()
    x[t], y[t] = f[63 - t], k[63 - t]


def test_dynamic_memory_of_two_types():
    a, b = whole(64), whole(64, dtype=np.int32)
    *_, x, y = run(two_types, 1, 64, a, b, a * 0, b * 0, smem=512)
    assert (x == a[::-1]).all() and (y == b[::-1]).all()
    run(two_types_that_overlap, 1, 64, a, b, a * 0, b * 0, smem=512, found={"race"})


# ---- between blocks -----------------------------------------------------------------------------


def locked(enter, leave, release):
    def kernel(lock, total):
        if cuda.threadIdx.x == 0:
            while cuda.atomic.cas(lock, 0, 0, 1) != 0:
                pass
            if enter:
                cuda.threadfence()
            total[0] += cuda.blockIdx.x
            if leave:
                cuda.threadfence()
            if release:
                cuda.atomic.exch(lock, 0, 0)
            else:
                lock[0] = 0

    return kernel


def test_a_spin_lock():
    lock, total = np.zeros(1, np.int32), np.zeros(1, np.int64)
    assert run(locked(True, True, True), 7, 32, lock, total)[1] == sum(range(7))
    run(locked(False, False, True), 7, 32, lock, total, found={"race"})
    run(locked(True, False, True), 7, 32, lock, total, found={"race"})
    run(locked(True, True, False), 7, 32, lock, total, found={"race"})  # a store releases nothing


def relax(x, y, steps):
    grid = cuda.cg.this_grid()
    i = cuda.grid(1)
    for _ in range(steps):
        y[i] = x[(i + 1) % x.size] + 1
        grid.sync()
        x[i] = y[i]
        grid.sync()


def test_steps_of_the_whole_grid():
    x = np.arange(96, dtype=np.int64)
    x, *_ = run(relax, 3, 32, x, np.zeros_like(x), 3)
    assert (x == (np.arange(96) + 3) % 96 + 3).all()


def last_block(fence="before", reset="last", by=0):
    """Each block writes its part, the last one adds them up and puts the counter back.

    by: the thread of the last block that does both, behind a barrier.
    """

    def kernel(x, parts, counter, out):
        last = cuda.shared.array(1, int32)
        t, b = cuda.threadIdx.x, cuda.blockIdx.x
        if t == 0:
            if fence == "too early":
                cuda.threadfence()
            parts[b] = x[b]
            if fence == "before":
                cuda.threadfence()
            last[0] = cuda.atomic.inc(counter, 0, uint32(1000)) == cuda.gridDim.x - 1
        cuda.syncthreads()
        if last[0] and t == by:
            total = float32(0)
            for i in range(parts.shape[0]):
                total += parts[i]
            out[0] = total
        if (last[0] or reset == "all") and t == by:
            counter[0] = 0

    return kernel


@pytest.mark.parametrize("by", [0, 33])
def test_the_last_block_resets_the_counter(by):
    x = whole(6)
    arguments = x, np.zeros_like(x), np.zeros(1, np.uint32), np.zeros(1, np.float32)
    *_, counter, out = run(last_block(by=by), 6, 64, *arguments)
    assert counter == 0 and out == x.sum()
    for fence in ("none", "too early"):
        run(last_block(fence, by=by), 6, 64, *arguments, found={"race"})
    kernel = last_block(reset="all", by=by)  # also by blocks after which others come
    report = emulate(kernel).report(6, 64, *(a.copy() for a in arguments))
    assert any("counter[0] = 0" in str(race) for race in report.races)


def tickets(counter, out):
    """No other word is handed over, so no fence is needed."""
    if cuda.threadIdx.x == 0:
        mine = cuda.atomic.add(counter, 0, 1)
        out[mine] = 1
        if mine == cuda.gridDim.x - 1:
            counter[0] = 0


def test_a_counter_alone_needs_no_fence():
    counter, out = run(tickets, 5, 32, np.zeros(1, np.int32), np.zeros(5, np.int32))
    assert counter == 0 and (out == 1).all()


def pieces(semantics):
    """Each warp adds up one piece of a row; the last warp of the row adds up the pieces."""
    arrive = getattr(ptx, f"atomic_add{semantics}")

    def kernel(x, partial, arrived, out):
        t, lane = cuda.grid(1), int32(cuda.threadIdx.x & 31)
        piece = t // 32
        row, parts = piece // 3, 3
        partial[piece, lane] = x[piece, lane] + x[piece, lane + 32]
        cuda.syncwarp()  # lane 0 answers for the stores of all lanes
        came = int32(0)
        if lane == 0:
            came = arrive(arrived, row, int32(1))
        cuda.syncwarp()
        if int32(cuda.shfl_sync(FULL, came, 0)) == parts - 1:
            total = float32(0)
            for i in range(parts):
                total += partial[row * parts + i, lane]
            out[row, lane] = total
            if lane == 0:
                arrived[row] = 0

    return kernel


def test_the_last_warp_of_a_row_adds_up_its_pieces():
    x = whole(12, 64)
    arguments = (
        x,
        np.zeros((12, 32), np.float32),
        np.zeros(4, np.int32),
        np.zeros((4, 32), np.float32),
    )
    *_, arrived, out = run(pieces("_acq_rel"), 3, 128, *arguments)
    assert (out == x.reshape(4, 3, 2, 32).sum((1, 2))).all() and (arrived == 0).all()
    run(pieces(""), 3, 128, *arguments, found={"race"})  # relaxed


# ---- warps --------------------------------------------------------------------------------------


def by_ballot(x, out, counter):
    i = cuda.grid(1)
    wanted = i < x.size and x[i] > 0
    lanes = cuda.ballot_sync(FULL, wanted)
    if wanted:
        leader, base = cuda.ffs(lanes) - 1, int32(0)
        if cuda.laneid == leader:
            base = cuda.atomic.add(counter, 0, cuda.popc(lanes))
        base = cuda.shfl_sync(lanes, base, leader)
        out[base + cuda.popc(lanes & cuda.lanemask_lt())] = x[i]


def by_activemask(x, out, counter):
    i = cuda.grid(1)
    if i < x.size and x[i] > 0:
        lanes = cuda.activemask()
        leader, base = cuda.ffs(lanes) - 1, int32(0)
        if cuda.laneid == leader:
            base = cuda.atomic.add(counter, 0, cuda.popc(lanes))
        base = cuda.shfl_sync(lanes, base, leader)
        out[base + cuda.popc(lanes & cuda.lanemask_lt())] = x[i]


@pytest.mark.parametrize("kernel", [by_ballot, by_activemask])
@pytest.mark.parametrize("seed", SEEDS)
def test_one_atomic_for_a_warp(kernel, seed):
    x = whole(100, low=-3, high=4, dtype=np.int32)
    out, counter = np.zeros(100, np.int32), np.zeros(1, np.int32)
    report = emulate(kernel).report(4, 32, x, out, counter, seed=seed)
    assert report.findings == []
    assert counter == (x > 0).sum()
    assert (np.sort(out[: counter[0]]) == np.sort(x[x > 0])).all()


def by_value(x, bins):
    v = x[cuda.grid(1)]
    lanes = cuda.match_any_sync(FULL, v)
    if cuda.laneid == cuda.ffs(lanes) - 1:
        cuda.atomic.add(bins, v, cuda.popc(lanes))


def test_lanes_of_equal_value():
    x = whole(128, low=0, high=7, dtype=np.int32)
    _, bins = run(by_value, 2, 64, x, np.zeros(7, np.int32))
    assert (bins == np.bincount(x, minlength=7)).all()


def halves_of_a_warp(x, y):
    t = cuda.laneid
    v = x[t]
    if t < 16:
        for k in range(4):
            v += cuda.shfl_xor_sync(0xFFFF, v, 1 << k)
    else:
        v = cuda.shfl_down_sync(0xFFFF0000, v, 1)
    x[t] = v
    y[t] = cuda.shfl_up_sync(FULL, t, 33)  # PTX takes the distance modulo 32


def test_shuffles_of_some_lanes():
    x, y = run(halves_of_a_warp, 1, 32, np.arange(32, dtype=np.float32), np.zeros(32, np.int32))
    assert (x[:16] == 120).all() and x[16:].tolist() == [*range(17, 32), 31]
    assert y.tolist() == [0, *range(31)]


def leaves_early(x, out, n):
    s = cuda.shared.array(64, float32)
    t = cuda.threadIdx.x
    if t >= n:
        return
    s[t] = x[t]
    cuda.syncthreads()
    out[t] = s[n - 1 - t]


def test_threads_that_leave_before_a_barrier_are_named():
    x = whole(64)
    _, out, _ = run(leaves_early, 1, 64, x, np.zeros_like(x), 40, found={"barrier_not_reached"})
    assert (out[:40] == x[:40][::-1]).all()


# ---- numbers ------------------------------------------------------------------------------------


def local_product(x, out):
    m, v = cuda.local.array((3, 3), float32), cuda.local.array(3, float32)
    i = cuda.grid(1)
    for r in range(3):
        v[r] = float32(r + 1)
        for c in range(3):
            m[r, c] = x[i, r, c]
    for r in range(3):
        total = float32(0)
        for c in range(3):
            total += m[r, c] * v[c]
        out[i, r] = total


def test_local_arrays():
    x = whole(20, 3, 3)
    _, out = run(local_product, 1, 20, x, np.zeros((20, 3), np.float32))
    assert (out == x @ np.float32([1, 2, 3])).all()


def half(a, b, out):
    i = cuda.grid(1)
    out[i] = a[i] * b[i] + a[i] - b[i] / a[i]


def test_half_precision_rounds_each_result():
    a, b = (np.random.uniform(1, 3, 64).astype(np.float16) for _ in range(2))
    *_, out = run(half, 1, 64, a, b, np.zeros_like(a))
    assert (out == (a * b) + a - (b / a)).all()


def divisions(a, b, out):
    out[0], out[1] = a // b, a % b
    out[2], out[3] = a & b, a ^ b


def shifts(a, b, out):
    out[0], out[1] = a << int32(3), a >> int32(3)
    out[2], out[3] = int32(a) << int32(1), uint32(a) >> uint32(1)


def wraps(a, b, out):
    out[0], out[1] = a * b, a + b
    out[2], out[3] = int32(a * b), uint32(a - b)


def mixed(a, b, out):
    c = uint32(a) + uint32(b)
    d = int64(c) - int64(uint32(a) * uint32(3))
    out[0], out[1] = c, d
    out[2], out[3] = int32(c) * 2, (a < 0) + (b < 0)


def mixed_floats(a, b, out):
    out[0], out[1] = a + np.uint64(b), a / b
    out[2], out[3] = a * 0.5, float32(a) * b


@pytest.mark.parametrize("fn, out", [(divisions, np.int64), (shifts, np.int64), (wraps, np.int64),
                                     (mixed, np.int64), (mixed_floats, np.float64)])  # fmt: skip
@pytest.mark.parametrize("kinds", ["int32 int32", "int64 int32", "uint32 int32", "int32 int64"])
def test_integers_compute_as_compiled_by_numba(fn, out, kinds):
    a, b = (np.dtype(k) for k in kinds.split())
    compiled = njit(fn)
    for x in (7, -7, 1, -1, 2**31 - 1, -(2**31), 123456789):
        for y in (2, -2, 3, -3, 31, 2**31 - 1):
            x_, y_ = (np.int64(v).astype(k) for v, k in ((x, a), (y, b)))
            got, want = np.zeros(4, out), np.zeros(4, out)
            emulate(fn)[1, 1](x_, y_, got)
            compiled(x_, y_, want)
            np.testing.assert_array_equal(got, want, err_msg=f"{x_!r}, {y_!r}")
