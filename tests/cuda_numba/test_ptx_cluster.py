"""Clusters: the barrier, each other's shared memory and mbarriers; and the small instructions."""

import numpy as np
import pytest
from ptx_compiled import compiled
from ptx_tiles import devices, findings, line_of, on

from cuda_numba import jit, ptx
from cuda_numba.emulator import Deadlock, Livelock
from cuda_numba.namespace import cuda, int32, uint32, uint64


@jit
def places(y):
    """Rank, size, cluster and number of clusters of each block."""
    if cuda.threadIdx.x == 0:
        b = 4 * cuda.blockIdx.x
        y[b] = ptx.cluster_rank()
        y[b + 1] = ptx.cluster_size()
        y[b + 2] = ptx.cluster_id()
        y[b + 3] = ptx.cluster_count()


@devices
def test_places(device):
    (y,) = on(device, np.zeros(32, np.uint32))
    places.launch(8, 32, y, cluster=4)
    rows = y.cpu().numpy().reshape(8, 4)
    np.testing.assert_array_equal(rows, [[b % 4, 4, b // 4, 2] for b in range(8)])


def test_places_without_clusters():
    y = np.zeros(8, np.uint32)
    places.launch(2, 32, y)
    np.testing.assert_array_equal(y.reshape(2, 4), [[0, 1, b, 2] for b in range(2)])


@jit
def neighbours(x, y):
    """Reads words of the next block and writes into the block before."""
    mine, given = cuda.shared.array(128, uint32), cuda.shared.array(128, uint32)
    i = cuda.threadIdx.x
    rank, size = ptx.cluster_rank(), ptx.cluster_size()
    after = (rank + uint32(1)) % size
    before = (rank + size - uint32(1)) % size
    j = 128 * cuda.blockIdx.x + 4 * i
    for k in range(4):
        mine[4 * i + k] = x[j + k]
    ptx.cluster_arrive()
    ptx.cluster_wait()
    there = ptx.mapa(ptx.shared_address(mine), after) + uint32(16 * i)
    words = ptx.load_cluster_128(there)
    a, b = ptx.load_cluster_64(there)
    back = ptx.mapa(ptx.shared_address(given), before) + uint32(16 * i)
    ptx.store_cluster_128(back, words[3], words[2], b, a)
    ptx.cluster_sync()
    for k in range(4):
        y[j + k] = given[4 * i + k]


def turned(x):
    """Each block gets what the block after the next holds, four words turned round."""
    blocks = np.roll(x.reshape(-1, 32, 4), -2, axis=0)
    return np.ascontiguousarray(blocks[:, :, ::-1]).reshape(-1)


@devices
@pytest.mark.parametrize("size", [2, 4])
def test_neighbours(device, size):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 2**31, 128 * size).astype(np.uint32)
    source, y = on(device, x, np.zeros_like(x))
    neighbours.launch(size, 32, source, y, cluster=size)
    np.testing.assert_array_equal(y.cpu().numpy(), turned(x))


@pytest.mark.parametrize("seed", [None, 1, 2])
def test_neighbours_without_findings(seed):
    x, y = np.arange(256, dtype=np.uint32), np.zeros(256, np.uint32)
    assert findings(neighbours.report(2, 32, x, y, cluster=2, seed=seed)) == []
    np.testing.assert_array_equal(y, turned(x))


@jit
def small_words(x, y):
    """32- and 64-bit words, own block included."""
    tile = cuda.shared.array(64, uint32)
    i = cuda.threadIdx.x
    me = ptx.cluster_rank()
    own = ptx.mapa(ptx.shared_address(tile), me)
    other = ptx.mapa(ptx.shared_address(tile), me ^ uint32(1))
    ptx.cluster_sync()
    ptx.store_cluster_32(other + uint32(4 * i), x[i] + me)
    ptx.cluster_sync()
    y[32 * cuda.blockIdx.x + i] = ptx.load_cluster_32(own + uint32(4 * i))
    ptx.cluster_sync()
    if i < 16:
        ptx.store_cluster_64(other + uint32(8 * i), x[i], me)
    ptx.cluster_sync()
    y[64 + 32 * cuda.blockIdx.x + i] = tile[i]


@devices
def test_small_words(device):
    x = np.arange(10, 42, dtype=np.uint32)
    source, y = on(device, x, np.zeros(128, np.uint32))
    small_words.launch(2, 32, source, y, cluster=2)
    pairs = [np.stack([x[:16], np.full(16, 1 - b, np.uint32)], 1).reshape(-1) for b in range(2)]
    np.testing.assert_array_equal(y.cpu().numpy(), np.concatenate([x + 1, x, *pairs]))


@jit
def remote_arrivals(x, y):
    """Block 1 writes rows into block 0's shared memory; mbarriers in both say full and empty."""
    tile, bars = cuda.shared.array(32, uint32), cuda.shared.array(2, uint64)
    i = cuda.threadIdx.x
    rank, full = ptx.cluster_rank(), ptx.shared_address(bars)
    empty = uint32(full + uint32(8))
    if i == 0:
        ptx.mbarrier_init(full, 32)
        ptx.mbarrier_init(empty, 32)
        ptx.fence_mbarrier_init()
    ptx.cluster_sync()
    if rank == 0:
        total = uint32(0)
        for row in range(4):
            ptx.mbarrier_wait(full, row & 1)
            total = uint32(total + tile[31 - i])
            ptx.mbarrier_arrive_cluster(ptx.mapa(empty, 1))
        y[i] = total
    else:
        there = ptx.mapa(ptx.shared_address(tile), 0) + uint32(4 * i)
        for row in range(4):
            ptx.mbarrier_wait(empty, (row & 1) ^ 1)
            ptx.store_cluster_32(there, x[32 * row + i])
            ptx.mbarrier_arrive_cluster_release(ptx.mapa(full, 0))
    ptx.cluster_sync()


@devices
def test_remote_arrivals(device):
    x = np.arange(128, dtype=np.uint32)
    source, y = on(device, x, np.zeros(32, np.uint32))
    remote_arrivals.launch(2, 32, source, y, cluster=2)
    right = x.reshape(4, 32).sum(axis=0, dtype=np.uint32)[::-1]
    np.testing.assert_array_equal(y.cpu().numpy(), right)


@pytest.mark.parametrize("seed", [None, 1, 2])
def test_remote_arrivals_without_findings(seed):
    x, y = np.arange(128, dtype=np.uint32), np.zeros(32, np.uint32)
    assert findings(remote_arrivals.report(2, 32, x, y, cluster=2, seed=seed)) == []


# ---- planted faults


@jit
def no_cluster_barrier(x, y):
    tile = cuda.shared.array(32, uint32)
    i = cuda.threadIdx.x
    tile[i] = x[i]
    ptx.cluster_sync()
    tile[i] = x[i] + uint32(1)
    cuda.syncthreads()
    other = ptx.mapa(ptx.shared_address(tile), ptx.cluster_rank() ^ uint32(1))
    y[32 * cuda.blockIdx.x + i] = ptx.load_cluster_32(other + uint32(4 * i))
    ptx.cluster_sync()


def test_a_block_barrier_orders_no_other_block():
    x, y = np.arange(32, dtype=np.uint32), np.zeros(64, np.uint32)
    found = no_cluster_barrier.report(2, 32, x, y, cluster=2).races
    write = line_of(no_cluster_barrier.function, "tile[i] = x[i] + uint32(1)")
    read = line_of(no_cluster_barrier.function, "ptx.load_cluster_32(")
    assert {write, read} in [set(f.lines) for f in found]


@jit
def leaves_early(x, y):
    tile = cuda.shared.array(32, uint32)
    i = cuda.threadIdx.x
    tile[i] = x[i]
    ptx.cluster_sync()
    if ptx.cluster_rank() == 0:
        for _ in range(3):
            ptx.nanosleep(100)
        other = ptx.mapa(ptx.shared_address(tile), 1)
        y[i] = ptx.load_cluster_32(other + uint32(4 * i))


@jit
def arrives_twice(x, y):
    ptx.cluster_arrive()
    ptx.cluster_arrive()


@jit
def waits_only(x, y):
    ptx.cluster_wait()


@jit
def wrong_rank(x, y):
    y[0] = ptx.mapa(ptx.shared_address(cuda.shared.array(4, uint32)), 2)


@jit
def no_fence(x, y):
    bars = cuda.shared.array(1, uint64)
    bar = ptx.shared_address(bars)
    if cuda.threadIdx.x == 0:
        ptx.mbarrier_init(bar, 32)
    ptx.cluster_sync()
    ptx.mbarrier_arrive_cluster(ptx.mapa(bar, ptx.cluster_rank() ^ uint32(1)))
    ptx.cluster_sync()


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        (leaves_early, r"shared memory of block \(1, 0, 0\), which has ended"),
        (arrives_twice, "cluster_arrive twice without cluster_wait between"),
        (waits_only, "cluster_wait without cluster_arrive"),
        (wrong_rank, "mapa: rank is 2; the cluster has 2 blocks"),
    ],
)
def test_wrong_uses_are_errors(kernel, message):
    with pytest.raises(Exception, match=message):
        kernel.launch(2, 32, np.zeros(32, np.uint32), np.zeros(64, np.uint32), cluster=2)


def test_an_mbarrier_that_the_cluster_does_not_see():
    x, y = np.zeros(32, np.uint32), np.zeros(64, np.uint32)
    found = findings(no_fence.report(2, 32, x, y, cluster=2))
    lines = tuple(line_of(no_fence.function, t) for t in ("mbarrier_init(", "arrive_cluster("))
    assert {(f.kind, f.lines) for f in found} == {("missing_fence", lines)}


@jit
def half_arrive(x, y):
    if ptx.cluster_rank() == 0 or cuda.threadIdx.x < 16:
        ptx.cluster_sync()
    else:
        cuda.syncthreads()


def test_a_cluster_barrier_that_some_never_reach():
    with pytest.raises(Deadlock, match="the threads of its cluster"):
        half_arrive.launch(2, 32, np.zeros(1, np.uint32), np.zeros(1, np.uint32), cluster=2)


# ---- the rest


@jit
def elected(y):
    i = cuda.threadIdx.x
    y[i] = int32(ptx.elect())


@devices
def test_elect(device):
    (y,) = on(device, np.full(64, 7, np.int32))
    elected[1, 64](y)
    warps = y.cpu().numpy().reshape(2, 32)
    assert (warps.sum(axis=1) == 1).all() and (warps[0] == warps[1]).all()


@jit
def timed(y):
    ptx.grid_wait()
    first, begin = ptx.clock(), ptx.globaltimer()
    ptx.nanosleep(1000)
    y[0] = uint32(ptx.clock() > first)
    y[1] = uint32(ptx.globaltimer() >= begin)
    ptx.grid_launch_dependents()


@devices
def test_time_goes_on(device):
    (y,) = on(device, np.zeros(2, np.uint32))
    timed[1, 1](y)
    assert y.cpu().numpy().tolist() == [1, 1]


def test_sleeping_for_ever_is_a_livelock():
    @jit
    def kernel(y):
        while y[0] == 0:
            ptx.nanosleep(100)

    with pytest.raises(Livelock):
        kernel[1, 1](np.zeros(1, np.int32))


def test_register_counts():
    @jit
    def kernel(y):
        ptx.setmaxnreg_inc(36)

    with pytest.raises(Exception, match="setmaxnreg_inc: count is 36; it must be a multiple of 8"):
        kernel[1, 128](np.zeros(1, np.int32))


TEXTS = {
    "cluster_arrive": ("barrier.cluster.arrive.release.aligned;", ()),
    "cluster_arrive_relaxed": ("barrier.cluster.arrive.relaxed.aligned;", ()),
    "cluster_wait": ("barrier.cluster.wait.acquire.aligned;", ()),
    "cluster_sync": ("barrier.cluster.wait.acquire.aligned;", ()),
    "cluster_rank": ("%cluster_ctarank;", ()),
    "cluster_size": ("%cluster_nctarank;", ()),
    "cluster_id": ("%clusterid.x;", ()),
    "cluster_count": ("%nclusterid.x;", ()),
    "mapa": ("mapa.shared::cluster.u32", ()),
    **{f"load_cluster_{n}": ("ld.shared::cluster", ()) for n in (32, 64, 128)},
    **{f"store_cluster_{n}": ("st.shared::cluster", ()) for n in (32, 64, 128)},
    "mbarrier_arrive_cluster": ("mbarrier.arrive.shared::cluster.b64 _", ()),
    "mbarrier_arrive_cluster_release": ("mbarrier.arrive.release.cluster.shared::cluster", ()),
    "elect": ("elect.sync", ()),
    "setmaxnreg_inc": ("setmaxnreg.inc.sync.aligned.u32 232;", (232,)),
    "setmaxnreg_dec": ("setmaxnreg.dec.sync.aligned.u32 40;", (40,)),
    "grid_wait": ("griddepcontrol.wait;", ()),
    "grid_launch_dependents": ("griddepcontrol.launch_dependents;", ()),
    "nanosleep": ("nanosleep.u32", ()),
    "clock": ("%clock64;", ()),
    "globaltimer": ("%globaltimer;", ()),
}


@pytest.mark.parametrize("name", TEXTS)
def test_assembles(name):
    text, literals = TEXTS[name]
    assert text in compiled(getattr(ptx, name), *literals)


def test_every_instruction_is_tested():
    """Each instruction of these files occurs in a test of them."""
    import pathlib

    files = ("copy", "barrier", "fence", "cluster", "tma", "wgmma")
    source = "".join(
        (pathlib.Path(__file__).parent / f"test_ptx_{f}.py").read_text(encoding="utf-8")
        for f in files
        if f != "fence"
    )
    families = ("tma_", "cp_async_4", "cp_async_8", "cp_async_16", "load_cluster", "store_cluster")
    families += ("fence_acq_rel", "fence_sc", "bulk_reduce_add")  # named by the tests in loops
    for name, ins in ptx.instructions().items():
        if ins.meaning.__module__.rsplit(".", 1)[1] in files:
            assert name in source or name.startswith(families), name
