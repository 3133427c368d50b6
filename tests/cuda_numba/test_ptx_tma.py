"""TMA: boxes, edges and swizzles. Kernels move words; what a box holds is worked out with NumPy."""

import functools

import numpy as np
import pytest
import torch
from ptx_compiled import compiled
from ptx_tiles import boxes, devices, findings, on, swizzle

from cuda_numba import jit, ptx
from cuda_numba.namespace import cuda, uint16, uint32, uint64

THREADS = 64
RANKS = (1, 2, 3, 4, 5)
BOXES = {1: (64,), 2: (6, 16), 3: (3, 4, 16), 4: (2, 3, 2, 8), 5: (2, 2, 3, 2, 4)}
SHAPES = {1: (200,), 2: (10, 40), 3: (5, 7, 24), 4: (3, 5, 4, 12), 5: (3, 3, 4, 3, 8)}
PIECE = 4  # words in 16 bytes: a box begins at a multiple of it in the innermost dimension


def places(rank):
    """In the middle, over the end of every dimension, before the beginning, outside altogether."""
    outer = rank - 1
    over = tuple(n - 1 for n in SHAPES[rank][:-1]) + (SHAPES[rank][-1] - PIECE,)
    return {
        "inside": (1,) * outer + (PIECE,),
        "over": over,
        "before": (-1,) * outer + (-PIECE,),
        "outside": (99,) * outer + (400,),
    }


PLACES = {r: places(r) for r in RANKS}


def copy_out(tile, y, nwords):
    i = cuda.threadIdx.x
    while i < nwords:
        y[i] = tile[i]
        i += THREADS


copy_out_device = jit(device=True)(copy_out)


def issue_load(name, rank):
    """A device function that calls the instruction with the first `rank` numbers of `c`."""
    load = getattr(ptx, name)
    if rank == 1:

        def issue(s, m, c, b):
            load(s, m, c[0], b)

    elif rank == 2:

        def issue(s, m, c, b):
            load(s, m, c[0], c[1], b)

    elif rank == 3:

        def issue(s, m, c, b):
            load(s, m, c[0], c[1], c[2], b)

    elif rank == 4:

        def issue(s, m, c, b):
            load(s, m, c[0], c[1], c[2], c[3], b)

    else:

        def issue(s, m, c, b):
            load(s, m, c[0], c[1], c[2], c[3], c[4], b)

    return jit(device=True)(issue)


def issue_store(name, rank):
    """A device function that calls the instruction with the first `rank` numbers of `c`."""
    store = getattr(ptx, name)
    if rank == 1:

        def issue(m, c, s):
            store(m, c[0], s)

    elif rank == 2:

        def issue(m, c, s):
            store(m, c[0], c[1], s)

    elif rank == 3:

        def issue(m, c, s):
            store(m, c[0], c[1], c[2], s)

    elif rank == 4:

        def issue(m, c, s):
            store(m, c[0], c[1], c[2], c[3], s)

    else:

        def issue(m, c, s):
            store(m, c[0], c[1], c[2], c[3], c[4], s)

    return jit(device=True)(issue)


@functools.cache
def load_kernel(rank, nbytes):
    """Loads one box into shared memory and copies it out, as words."""
    issue, words = issue_load(f"tma_load_{rank}d", rank), nbytes // 4

    @jit
    def kernel(map: "uint64", place, y):
        tile = cuda.shared.array(words, uint32, alignment=1024)
        bars = cuda.shared.array(1, uint64)
        i = cuda.threadIdx.x
        bar = ptx.shared_address(bars)
        if i == 0:
            ptx.prefetch_tensormap(map)
            ptx.fence_tensormap_acquire(map)
            ptx.mbarrier_init(bar, 1)
            ptx.fence_mbarrier_init()
        cuda.syncthreads()
        if i == 0:
            ptx.mbarrier_arrive_expect_tx(bar, nbytes)
            issue(ptx.shared_address(tile), map, place, bar)
        ptx.mbarrier_wait(bar, 0)
        copy_out_device(tile, y, words)

    return kernel


@functools.cache
def store_kernel(rank, nbytes, how="store"):
    """Copies words into shared memory and stores or adds them as one box."""
    issue, words = issue_store(f"tma_{how}_{rank}d", rank), nbytes // 4

    @jit
    def kernel(map: "uint64", place, x):
        tile = cuda.shared.array(words, uint32, alignment=1024)
        i = cuda.threadIdx.x
        j = i
        while j < words:
            tile[j] = x[j]
            j += THREADS
        ptx.fence_proxy_async_shared()
        cuda.syncthreads()
        if i == 0:
            issue(map, place, ptx.shared_address(tile))
            ptx.bulk_commit()
            ptx.bulk_wait_read(0)
            ptx.bulk_wait(0)

    return kernel


def tensor_of(shape, dtype, seed=0):
    rng = np.random.default_rng(seed)
    if dtype.startswith("float"):
        return rng.standard_normal(shape).astype(dtype)
    return rng.integers(0, 200, shape).astype(dtype)


def run_load(device, rank, place, dtype="float32", span=0, box=None, seed=None):
    """The words in shared memory after the load, and the tensor."""
    x = tensor_of(SHAPES[rank] if box is None else (40, 144), dtype)
    box = box or BOXES[rank]
    (tensor,) = on(device, x)
    map = ptx.tensor_map(tensor, box, swizzle=span)
    kernel = load_kernel(rank, map.nbytes)
    y = torch.zeros(map.nbytes // 4, dtype=torch.uint32, device=device)
    at = torch.tensor(place[::-1], dtype=torch.int32, device=device)
    if seed is None:
        kernel[1, THREADS](map, at, y)
    else:
        report = kernel.report(1, THREADS, map, at, y, seed=seed)
        assert findings(report) == []
    return y.cpu().numpy(), x


def check_load(device, rank, place):
    got, x = run_load(device, rank, place)
    right = boxes(x, BOXES[rank], place)
    np.testing.assert_array_equal(got, right.reshape(-1).view(np.uint32))


ranks = pytest.mark.parametrize("rank", RANKS)


@devices
@ranks
@pytest.mark.parametrize("place", ["inside", "over", "before", "outside"])
def test_load(device, rank, place):
    check_load(device, rank, PLACES[rank][place])


@devices
@pytest.mark.parametrize("span", [32, 64, 128])
@pytest.mark.parametrize("dtype", ["uint8", "float16", "float32"])
def test_load_swizzled(device, span, dtype):
    size = np.dtype(dtype).itemsize
    box = (24, span // size)
    got, x = run_load(device, 2, (30, 16), dtype, span, box)
    right = swizzle(boxes(x, box, (30, 16)), span)
    np.testing.assert_array_equal(got.view(np.uint8), right)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_load_without_findings(seed):
    """Also where the copy lands early and shared memory begins at another multiple of 16."""
    box = (24, 32)
    got, x = run_load("cpu", 2, (3, 8), "float32", 128, box, seed)
    np.testing.assert_array_equal(got.view(np.uint8), swizzle(boxes(x, box, (3, 8)), 128))


@jit
def shifted_load(map: "uint64", y):
    """A box that does not begin where the pattern of its swizzle does."""
    tile = cuda.shared.array(512, uint32, alignment=1024)
    bars = cuda.shared.array(1, uint64)
    i = cuda.threadIdx.x
    bar = ptx.shared_address(bars)
    if i == 0:
        ptx.mbarrier_init(bar, 1)
        ptx.fence_mbarrier_init()
    cuda.syncthreads()
    if i == 0:
        ptx.mbarrier_arrive_expect_tx(bar, 1024)
        ptx.tma_load_2d(ptx.shared_address(tile) + uint32(384), map, 0, 0, bar)
    ptx.mbarrier_wait(bar, 0)
    for k in range(4):
        y[64 * k + i] = tile[96 + 64 * k + i]


@devices
def test_swizzles_go_by_the_address(device):
    """Three lines further on, the pieces are exchanged as lines 3, 4, … are."""
    x = tensor_of((8, 32), "float32")
    source, y = on(device, x, np.zeros(256, np.uint32))
    shifted_load[1, 64](ptx.tensor_map(source, (8, 32), swizzle=128), y)
    lines = np.concatenate([np.zeros((3, 32), np.float32), x])
    right = swizzle(lines, 128)[3 * 128 :]
    np.testing.assert_array_equal(y.cpu().numpy().view(np.uint8), right)


def check_store(device, rank, place, how="store", dtype="float32", seed=None):
    x = tensor_of(SHAPES[rank], dtype)
    box = BOXES[rank]
    new = tensor_of(box, dtype, seed=1)
    tensor, words = on(device, x, new.reshape(-1).view(np.uint32))
    map = ptx.tensor_map(tensor, box)
    kernel = store_kernel(rank, map.nbytes, how)
    at = torch.tensor(place[::-1], dtype=torch.int32, device=device)
    if seed is None:
        kernel[1, THREADS](map, at, words)
    else:
        report = kernel.report(1, THREADS, map, at, words, seed=seed)
        assert findings(report) == []
    right = x.copy()
    inside = tuple(slice(max(p, 0), max(p + b, 0)) for p, b in zip(place, box, strict=True))
    cut = tuple(
        slice(max(-p, 0), max(-p, 0) + n) for p, n in zip(place, right[inside].shape, strict=True)
    )
    if right[inside].size:
        right[inside] = right[inside] + new[cut] if how == "reduce_add" else new[cut]
    np.testing.assert_array_equal(tensor.cpu().numpy(), right)


@devices
@ranks
@pytest.mark.parametrize("place", ["inside", "over", "outside"])
def test_store(device, rank, place):
    check_store(device, rank, PLACES[rank][place])


@devices
@ranks
@pytest.mark.parametrize("dtype", ["float32", "int32"])
def test_reduce_add(device, rank, dtype):
    check_store(device, rank, PLACES[rank]["over"], "reduce_add", dtype)


@devices
@pytest.mark.parametrize("dtype", ["uint32", "uint64", "int64", "float16"])
def test_reduce_add_of_other_formats(device, dtype):
    check_store(device, 2, (2, 8), "reduce_add", dtype)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_store_without_findings(seed):
    check_store("cpu", 2, (2, 8), seed=seed)
    check_store("cpu", 2, (2, 8), "reduce_add", seed=seed)


@jit
def swizzled_store(map: "uint64", x):
    """Writes a box the way the 128-byte swizzle wants it; the copy puts it in order."""
    tile = cuda.shared.array(8 * 64, uint16, alignment=1024)
    i = cuda.threadIdx.x
    for row in range(8):
        piece, within = i >> 3, i & 7
        tile[row * 64 + ((piece ^ row) << 3) + within] = x[row * 64 + i]
    ptx.fence_proxy_async_shared()
    cuda.syncthreads()
    if i == 0:
        ptx.tma_store_2d(map, 0, 0, ptx.shared_address(tile))
        ptx.bulk_commit()
        ptx.bulk_wait(0)


@devices
def test_store_swizzled(device):
    x = np.arange(8 * 64, dtype=np.uint16).reshape(8, 64)
    target, source = on(device, np.zeros_like(x), x.reshape(-1))
    swizzled_store[1, 64](ptx.tensor_map(target, (8, 64), swizzle=128), source)
    np.testing.assert_array_equal(target.cpu().numpy(), x)


# ---- the text


TO_SHARED = "shared::cluster.global.mbarrier::complete_tx::bytes"
TEXTS = {
    **{f"tma_load_{r}d": f"cp.async.bulk.tensor.{r}d.{TO_SHARED} [" for r in RANKS},
    **{
        f"tma_load_{r}d_multicast": f"cp.async.bulk.tensor.{r}d.{TO_SHARED}.multicast::cluster ["
        for r in RANKS
    },
    **{
        f"tma_store_{r}d": f"cp.async.bulk.tensor.{r}d.global.shared::cta.bulk_group ["
        for r in RANKS
    },
    **{
        f"tma_reduce_add_{r}d": f"cp.reduce.async.bulk.tensor.{r}d.global.shared::cta.add"
        for r in RANKS
    },
    **{f"tma_prefetch_{r}d": f"cp.async.bulk.prefetch.tensor.{r}d.L2.global [" for r in RANKS},
    "prefetch_tensormap": "prefetch.tensormap [",
    "bulk_load": f"cp.async.bulk.{TO_SHARED} [",
    "bulk_send": "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [",
    "bulk_store": "cp.async.bulk.global.shared::cta.bulk_group [",
    "bulk_reduce_add_f32": "cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [",
    "bulk_reduce_add_f16": "cp.reduce.async.bulk.global.shared::cta.bulk_group.add.noftz.f16 [",
    "bulk_reduce_add_bf16": "cp.reduce.async.bulk.global.shared::cta.bulk_group.add.noftz.bf16 [",
    "bulk_prefetch": "cp.async.bulk.prefetch.L2.global [",
    "bulk_commit": "cp.async.bulk.commit_group;",
    "bulk_wait": "cp.async.bulk.wait_group 1;",
    "bulk_wait_read": "cp.async.bulk.wait_group.read 1;",
}


@pytest.mark.parametrize("name", TEXTS)
def test_assembles(name):
    ins = getattr(ptx, name)
    literals = [1 for scalar, _ in ins.parameters if scalar == "literal"]
    assert TEXTS[name] in compiled(ins, *literals)
