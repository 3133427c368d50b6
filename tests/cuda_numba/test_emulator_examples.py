"""Kernels as people write them for Numba, not for this package: they run, and nothing is found."""

import math

import numpy as np
import pytest

from cuda_numba import emulate, jit
from cuda_numba.namespace import HAS_NUMBA_CUDA, cuda, float32, float64, int32, uint32, uint64

needs_numba_cuda = pytest.mark.skipif(not HAS_NUMBA_CUDA, reason="needs numba-cuda")


def clean(kernel, grid, block, *args, **options):
    """Run with everything recorded, and expect that nothing is found."""
    report = emulate(kernel).report(grid, block, *args, **options)
    assert [f for f in report.findings if f.kind != "untyped"] == []
    return report


# ---- grids in one, two and three dimensions -----------------------------------------------------


def add_in_strides(a, b, out):
    start, step = cuda.grid(1), cuda.gridsize(1)
    for i in range(start, out.size, step):
        out[i] = a[i] + b[i]


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32, np.uint8])
def test_vector_add_with_a_grid_stride(dtype):
    a, b = (np.arange(1000) * k % 120 for k in (7, 5))
    a, b, out = a.astype(dtype), b.astype(dtype), np.zeros(1000, dtype)
    clean(add_in_strides, 3, 64, a, b, out)
    np.testing.assert_array_equal(out, a + b)


def increment_2d(an_array):
    x, y = cuda.grid(2)
    if x < an_array.shape[0] and y < an_array.shape[1]:
        an_array[x, y] += 1


def test_a_grid_in_two_dimensions():
    x = np.arange(35.0).reshape(5, 7)
    clean(increment_2d, (1, 2), (8, 4), x)
    np.testing.assert_array_equal(x, np.arange(35.0).reshape(5, 7) + 1)


def where_in_3d(out):
    x, y, z = cuda.grid(3)
    nx, ny, nz = cuda.gridsize(3)
    if x < out.shape[0] and y < out.shape[1] and z < out.shape[2]:
        out[x, y, z] = (x * ny + y) * nz + z


def test_a_grid_in_three_dimensions():
    out = np.zeros((6, 4, 4), np.int64)
    clean(where_in_3d, (3, 2, 1), (2, 2, 4), out)
    np.testing.assert_array_equal(out, np.arange(96).reshape(6, 4, 4))


def life(board, new):
    x, y = cuda.grid(2)
    h, w = board.shape
    if x >= h or y >= w:
        return
    alive = 0
    for dx in (-1, 0, 1):
        for dy in (-1, 0, 1):
            if dx != 0 or dy != 0:
                alive += board[(x + dx) % h, (y + dy) % w]
    new[x, y] = 1 if alive == 3 or (alive == 2 and board[x, y]) else 0


def test_the_game_of_life():
    board = np.zeros((8, 8), np.int32)
    board[[0, 1, 2, 2, 2], [1, 2, 0, 1, 2]] = 1  # a glider: after four steps one cell further
    expected = np.roll(board, (1, 1), (0, 1))
    new = np.zeros_like(board)
    for _ in range(4):
        clean(life, (2, 2), (4, 4), board, new)
        board, new = new, board
    np.testing.assert_array_equal(board, expected)


# ---- barriers and shared memory -----------------------------------------------------------------


def heat(now, new, steps, k):
    grid = cuda.cg.this_grid()
    i = cuda.grid(1)
    for step in range(steps):
        a, b = (now, new) if step % 2 == 0 else (new, now)
        if 0 < i < a.size - 1:
            b[i] = a[i] + k * (a[i - 1] - 2 * a[i] + a[i + 1])
        grid.sync()


def test_the_heat_equation_with_the_grid_in_step():
    now = np.zeros(40)
    now[20] = 1000.0
    expected = now.copy()
    for _ in range(10):
        expected[1:-1] += 0.25 * (expected[:-2] - 2 * expected[1:-1] + expected[2:])
    new = now.copy()
    clean(heat, 3, 16, now, new, 10, 0.25)
    np.testing.assert_allclose(now, expected, atol=1e-12)


def heat_out_of_step(now, new, steps, k):
    i = cuda.grid(1)
    for step in range(steps):
        a, b = (now, new) if step % 2 == 0 else (new, now)
        if 0 < i < a.size - 1:
            b[i] = a[i] + k * (a[i - 1] - 2 * a[i] + a[i + 1])
        cuda.syncthreads()


def test_a_barrier_of_blocks_does_not_keep_a_grid_in_step():
    report = emulate(heat_out_of_step).report(3, 16, np.zeros(40), np.zeros(40), 4, 0.25)
    assert {f.kind for f in report.findings} == {"race"}


def array_sum(data):
    tid, size = cuda.threadIdx.x, cuda.blockDim.x
    i = cuda.grid(1)
    shared = cuda.shared.array(64, int32)
    shared[tid] = data[i]
    cuda.syncthreads()
    s = 1
    while s < size:
        if tid % (2 * s) == 0:
            shared[tid] += shared[tid + s]
        s *= 2
        cuda.syncthreads()
    if tid == 0:
        data[tid] = shared[0]


def test_a_sum_in_shared_memory():
    data = np.arange(64, dtype=np.int32)
    report = clean(array_sum, 1, 64, data)
    assert data[0] == 2016
    assert report.divergence > 0.3  # the form with the modulus: half of every warp is idle


def matmul(a, b, c):
    i, j = cuda.grid(2)
    if i < c.shape[0] and j < c.shape[1]:
        total = 0.0
        for k in range(a.shape[1]):
            total += a[i, k] * b[k, j]
        c[i, j] = total


TILE = 4


def matmul_tiled(a, b, c):
    sa = cuda.shared.array(shape=(TILE, TILE), dtype=float32)
    sb = cuda.shared.array(shape=(TILE, TILE), dtype=float32)
    x, y = cuda.grid(2)
    tx, ty = cuda.threadIdx.x, cuda.threadIdx.y
    total = float32(0.0)
    for i in range((a.shape[1] + TILE - 1) // TILE):
        sa[ty, tx] = 0
        sb[ty, tx] = 0
        if y < a.shape[0] and tx + i * TILE < a.shape[1]:
            sa[ty, tx] = a[y, tx + i * TILE]
        if x < b.shape[1] and ty + i * TILE < b.shape[0]:
            sb[ty, tx] = b[ty + i * TILE, x]
        cuda.syncthreads()
        for j in range(TILE):
            total += sa[ty, j] * sb[j, tx]
        cuda.syncthreads()
    if y < c.shape[0] and x < c.shape[1]:
        c[y, x] = total


@pytest.mark.parametrize("kernel", [matmul, matmul_tiled])
@pytest.mark.parametrize("m, k, n", [(5, 6, 7), (8, 8, 8), (1, 9, 3)])
def test_matrix_products(kernel, m, k, n):
    generator = np.random.default_rng(0)
    a, b = (generator.standard_normal(s, np.float32) for s in ((m, k), (k, n)))
    c = np.full((m, n), np.nan, np.float32)
    blocks = -(-max(m, n) // TILE)
    clean(kernel, (blocks, blocks), (TILE, TILE), a, b, c)
    np.testing.assert_allclose(c, a @ b, rtol=1e-5, atol=1e-5)


def laplace(grid, new, error):
    largest = cuda.shared.array(64, float64)
    x, y = cuda.grid(2)
    t = cuda.threadIdx.x + cuda.threadIdx.y * cuda.blockDim.x
    largest[t] = 0.0
    if 0 < y < grid.shape[0] - 1 and 0 < x < grid.shape[1] - 1:
        new[y, x] = 0.25 * (grid[y, x + 1] + grid[y, x - 1] + grid[y - 1, x] + grid[y + 1, x])
        largest[t] = abs(new[y, x] - grid[y, x])
    cuda.syncthreads()
    half = (cuda.blockDim.x * cuda.blockDim.y) // 2
    while half > 0:
        if t < half:
            largest[t] = max(largest[t], largest[t + half])
        half >>= 1
        cuda.syncthreads()
    if t == 0:
        error[cuda.blockIdx.y, cuda.blockIdx.x] = largest[0]


def test_laplace():
    grid = np.zeros((12, 12))
    grid[:, 0] = 1.0
    new, error = grid.copy(), np.zeros((2, 2))
    for _ in range(3):
        expected = grid.copy()
        expected[1:-1, 1:-1] = (
            grid[1:-1, 2:] + grid[1:-1, :-2] + grid[:-2, 1:-1] + grid[2:, 1:-1]
        ) / 4
        clean(laplace, (2, 2), (8, 8), grid, new, error)
        np.testing.assert_allclose(new, expected)
        assert error.max() == pytest.approx(np.abs(new - grid).max())
        grid, new = new, grid


def three_views(x, out):
    """Dynamic shared memory cut in three: floats, then 32-bit, then 64-bit integers."""
    n = cuda.blockDim.x
    floats = cuda.shared.array(0, dtype=float32)
    a = floats[:n]
    b = cuda.shared.array(0, dtype=int32)[n : 2 * n]
    c = cuda.shared.array(0, dtype=np.int64)[n : 2 * n]  # from byte 8 n on
    t = cuda.threadIdx.x
    a[t], b[t], c[t] = x[t], t, 2 * t
    cuda.syncthreads()
    back = n - 1 - t
    out[t] = a[back] + b[back] + c[back]


def test_several_views_of_dynamic_shared_memory():
    x, out = np.linspace(0, 1, 32, dtype=np.float32), np.zeros(32)
    clean(three_views, 1, 32, x, out, smem=16 * 32)
    np.testing.assert_allclose(out, (x + 3 * np.arange(32))[::-1], rtol=1e-6)


def overlapping_views(x, out):
    a = cuda.shared.array(0, dtype=float32)
    b = cuda.shared.array(0, dtype=int32)  # the same bytes
    t = cuda.threadIdx.x
    a[t] = x[t]
    out[t] = b[cuda.blockDim.x - 1 - t]


def test_views_of_the_same_bytes_race():
    report = emulate(overlapping_views).report(
        1, 8, np.ones(8, np.float32), np.zeros(8, np.int32), smem=32
    )
    assert {f.kind for f in report.findings} == {"race"}


# ---- atomics ------------------------------------------------------------------------------------


def sessions(user, time, first, timeout):
    """Give each click the number of its session's first: a new user or a long pause begins one."""
    grid = cuda.cg.this_grid()
    i = cuda.grid(1)
    n = user.shape[0]
    begins = False
    if i < n:
        begins = i == 0 or user[i] != user[i - 1] or time[i] - time[i - 1] > timeout
        first[i] = i if begins else -1
    grid.sync()
    j = i + 1
    if begins:
        while j < n and first[j] < 0:
            j += 1
    grid.sync()
    if begins:
        for k in range(i + 1, j):
            first[k] = i


def test_sessions_of_clicks():
    user = np.array([1, 1, 1, 2, 3, 3, 3, 3, 3, 4])
    time = np.array([0, 5, 50, 51, 3, 4, 30, 31, 60, 0])
    first = np.zeros(10, np.int64)
    clean(sessions, 3, 4, user, time, first, 10)
    assert first.tolist() == [0, 0, 2, 3, 4, 4, 6, 6, 8, 9]


def counting_sort(keys, counts, places, out):
    """One block: a histogram, its running sums, and each key to its place."""
    t = cuda.threadIdx.x
    if t < counts.size:
        counts[t] = 0
    cuda.syncthreads()
    if t < keys.size:
        cuda.atomic.add(counts, keys[t], 1)
    cuda.syncthreads()
    if t == 0:
        total = 0
        for k in range(counts.size):
            places[k] = total
            total += counts[k]
    cuda.syncthreads()
    if t < keys.size:
        out[cuda.atomic.add(places, keys[t], 1)] = keys[t]


@pytest.mark.parametrize("seed", [None, 3])
def test_a_counting_sort(seed):
    keys = np.random.default_rng(0).integers(0, 10, 100)
    counts, places, out = np.ones(10, np.int32), np.zeros(10, np.int32), np.zeros(100, np.int64)
    clean(counting_sort, 1, 128, keys, counts, places, out, seed=seed)
    np.testing.assert_array_equal(out, np.sort(keys))


def extremes(x, low, high):
    i = cuda.grid(1)
    if i < x.size:
        cuda.atomic.min(low, 0, x[i])
        cuda.atomic.max(high, 0, x[i])


def test_extremes():
    x = np.random.default_rng(1).standard_normal(200)
    low, high = np.array([math.inf]), np.array([-math.inf])
    clean(extremes, 4, 64, x, low, high)
    assert (low[0], high[0]) == (x.min(), x.max())


# ---- device functions ---------------------------------------------------------------------------


@jit(device=True)
def rotl(x, k):
    return (x << k) | (x >> (uint64(64) - k))


@jit(device=True)
def next_uniform(states, i):
    """xoroshiro128+: the next number of stream i, in [0, 1)."""
    s0, s1 = states[i, 0], states[i, 1]
    result = s0 + s1
    s1 ^= s0
    states[i, 0] = rotl(s0, uint64(55)) ^ s1 ^ (s1 << uint64(14))
    states[i, 1] = rotl(s1, uint64(36))
    return (result >> uint64(11)) * (1.0 / (1 << 53))


def monte_carlo_pi(states, out, draws):
    i = cuda.grid(1)
    inside = 0
    for _ in range(draws):
        x, y = next_uniform(states, i), next_uniform(states, i)
        if x**2 + y**2 <= 1.0:
            inside += 1
    out[i] = 4.0 * inside / draws


def test_monte_carlo():
    states = np.random.default_rng(0).integers(1, 2**63, (64, 2)).astype(np.uint64)
    mask = (1 << 64) - 1

    def left(v, k):
        return (v << k | v >> (64 - k)) & mask

    reference, inside = [[int(v) for v in row] for row in states], []
    for s in reference:
        hits = 0
        for _ in range(20):
            point = []
            for _ in range(2):
                point.append((sum(s) & mask) >> 11)
                s[1] ^= s[0]
                s[:] = left(s[0], 55) ^ s[1] ^ (s[1] << 14 & mask), left(s[1], 36)
            hits += sum((p / 2**53) ** 2 for p in point) <= 1
        inside.append(hits)
    out = np.zeros(64)
    clean(monte_carlo_pi, 2, 32, states, out, 20)
    np.testing.assert_allclose(out, 4.0 * np.array(inside) / 20)
    np.testing.assert_array_equal(states, np.array(reference, np.uint64))


@jit(device=True)
def wave(x, amplitude=2.0):
    return amplitude * math.sin(x) + math.exp(-x * x)


@jit(device=True)
def both(x, y):
    return wave(x) + wave(amplitude=0.5, x=y), x * y


def elementwise(x, y, out):
    i = cuda.grid(1)
    if i < out.shape[0]:
        total, product = both(x[i], y[i])
        out[i, 0], out[i, 1] = total, product


def test_functions_of_one_element():
    x, y = np.linspace(-2, 2, 50), np.linspace(0, 3, 50)
    out = np.zeros((50, 2))
    clean(elementwise, 2, 32, x, y, out)
    expected = 2 * np.sin(x) + np.exp(-x * x) + 0.5 * np.sin(y) + np.exp(-y * y)
    np.testing.assert_allclose(out, np.stack([expected, x * y], 1))


# ---- arrays of a kernel's own -------------------------------------------------------------------


WEIGHTS = np.array([1.0, 2.0, 4.0, 2.0, 1.0]) / 10


def smooth(x, out):
    weights = cuda.const.array_like(WEIGHTS)
    window = cuda.local.array(5, float64)
    i = cuda.grid(1)
    if i < x.size:
        for k in range(5):
            window[k] = x[min(max(i + k - 2, 0), x.size - 1)]
        total = 0.0
        for k in range(5):
            total += weights[k] * window[k]
        out[i] = total


def test_constant_and_local_arrays():
    x, out = np.random.default_rng(0).standard_normal(30), np.zeros(30)
    report = clean(smooth, 1, 32, x, out)
    padded = np.pad(x, 2, mode="edge")
    np.testing.assert_allclose(out, sum(WEIGHTS[k] * padded[k : k + 30] for k in range(5)))
    assert report.local_bytes == 40


def insertion_sort(x):
    """Each thread sorts a row of eight in an array of its own."""
    mine = cuda.local.array(8, int32)
    i = cuda.grid(1)
    row = x[i]
    for k in range(8):
        value, at = row[k], k
        while at > 0 and mine[at - 1] > value:
            mine[at] = mine[at - 1]
            at -= 1
        mine[at] = value
    for k in range(8):
        row[k] = mine[k]


def test_a_sort_in_local_memory():
    x = np.random.default_rng(0).integers(0, 99, (16, 8)).astype(np.int32)
    expected = np.sort(x, 1)
    clean(insertion_sort, 2, 8, x)
    np.testing.assert_array_equal(x, expected)


def rows_of_many_threads(x, out):
    i = cuda.grid(1)
    row = x[i]  # a view for each thread: more than the log has numbers for
    out[i] = row[0] + row[1]


def test_more_views_than_the_log_numbers():
    x, out = np.arange(10_000.0).reshape(5000, 2), np.zeros(5000)
    report = clean(rows_of_many_threads, 5, 1000, x, out)
    np.testing.assert_array_equal(out, x.sum(1))
    assert (report.reads, report.writes) == (10_000 * 8, 5000 * 8)


def affine(shape, factors, x, out):
    i, j = cuda.grid(2)
    if i < shape[0] and j < shape[1]:
        out[i, j] = factors[0] * x[i, j] + factors[1]


def test_tuples_as_arguments():
    x, out = np.arange(6.0).reshape(2, 3), np.zeros((2, 3))
    clean(affine, (1, 1), (4, 4), x.shape, (2.0, 0.5), x, out)
    np.testing.assert_array_equal(out, 2 * x + 0.5)


# ---- what Numba compiles ------------------------------------------------------------------------


if HAS_NUMBA_CUDA:
    from numba.cuda import blockDim, blockIdx, shared, syncthreads, threadIdx

    @cuda.jit
    def reverse_blocks(x, out):
        tile = shared.array(16, float32)
        i = threadIdx.x + blockIdx.x * blockDim.x
        tile[threadIdx.x] = x[i]
        syncthreads()
        out[i] = tile[blockDim.x - 1 - threadIdx.x]

    @cuda.jit
    def scale(x, by):
        i = cuda.grid(1)
        if i < x.size:
            x[i] = square(x[i]) * by

    @cuda.jit(device=True)
    def square(x):
        return x * x


@needs_numba_cuda
def test_names_imported_one_by_one():
    x, out = np.arange(32, dtype=np.float32), np.zeros(32, np.float32)
    clean(reverse_blocks, 2, 16, x, out)
    np.testing.assert_array_equal(out.reshape(2, 16), x.reshape(2, 16)[:, ::-1])


@needs_numba_cuda
def test_a_kernel_compiled_by_numba_with_its_device_functions():
    x = np.arange(8, dtype=np.float32)
    clean(scale, 1, 32, x, np.float32(3))
    np.testing.assert_array_equal(x, 3 * np.arange(8, dtype=np.float32) ** 2)


# ---- loops whose accesses are logged as a whole -------------------------------------------------


def strided(x, out):
    i = cuda.grid(1)
    total = 0.0
    for k in range(i, x.shape[0] - 1, 8):
        total += x[k, 1] * x[x.shape[0] - 1 - k, 0] + x[k + 1, i % 2]
    out[i] = total


def below_zero(x, out):
    i = cuda.grid(1)
    total = 0.0
    for k in range(10):
        total += x[k - 2, 0]
    out[i] = total


def backwards(x, out):
    """With uint32(−1) for a step: the sum wraps around in each trip."""
    i = cuda.grid(1)
    total = 0.0
    at = uint32(9)
    for k in range(6):
        total += x[uint32(at + uint32(0xFFFFFFFF) * uint32(k)), 0]
    out[i] = total


@pytest.mark.parametrize("kernel", [strided, below_zero, backwards])
@pytest.mark.parametrize("seed", [None, 1])
def test_a_loop_logged_as_a_whole_says_what_each_access_says(kernel, seed, monkeypatch):
    from cuda_numba.emulator import tracer

    x = np.random.default_rng(0).standard_normal((40, 2))
    reports, results = [], []
    for trips in (4, 10**9):  # the second: never as a whole
        monkeypatch.setattr(tracer, "BATCH_TRIPS", trips)
        out = np.zeros(8)
        reports.append(emulate(kernel).report(1, 8, x, out, seed=seed))
        results.append(out)
    np.testing.assert_array_equal(*results)
    assert reports[0].to_dict() == reports[1].to_dict()
    first, second = (r.trace for r in reports)
    np.testing.assert_array_equal(first.accesses, second.accesses)
    np.testing.assert_array_equal(first.loops, second.loops)


def past_the_end(x, out):
    i = cuda.grid(1)
    total = 0.0
    for k in range(10):
        total += x[i + k, 0]
    out[i] = total


def test_out_of_bounds_in_a_loop_logged_as_a_whole():
    report = emulate(past_the_end).report(1, 8, np.zeros((12, 2)), np.zeros(8))
    assert {f.kind for f in report.findings} == {"out_of_bounds"}
    assert sum(f.count for f in report.findings) == sum(max(i + 10 - 12, 0) for i in range(8))
