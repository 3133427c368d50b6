"""What tests of TMA share: tensors of every rank, boxes of them, and kernels that copy one box."""

import functools

import numpy as np

from cuda_numba import jit, ptx
from cuda_numba.namespace import cuda, uint32, uint64

THREADS = 64
RANKS = (1, 2, 3, 4, 5)
BOXES = {1: (64,), 2: (6, 16), 3: (3, 4, 16), 4: (2, 3, 2, 8), 5: (2, 2, 3, 2, 4)}
SHAPES = {1: (200,), 2: (10, 40), 3: (5, 7, 24), 4: (3, 5, 4, 12), 5: (3, 3, 4, 3, 8)}
PIECE = 4  # words in 16 bytes: a box begins at a multiple of it in the innermost dimension
UNTOUCHED = 0x07070707  # what memory holds that no copy has written


def places(rank):
    """In the middle, over the end of every dimension, before the beginning, far outside."""
    outer = rank - 1
    over = tuple(n - 1 for n in SHAPES[rank][:-1]) + (SHAPES[rank][-1] - PIECE,)
    return {
        "inside": (1,) * outer + (PIECE,),
        "over": over,
        "before": (-1,) * outer + (-PIECE,),
        "outside": (99,) * outer + (400,),
    }


PLACES = {r: places(r) for r in RANKS}


def beside(rank, side):
    """Places just outside the tensor, each in one dimension: "after" its end or "before" it."""
    inside = PLACES[rank]["inside"]
    at = SHAPES[rank] if side == "after" else [-n for n in BOXES[rank]]
    return [inside[:d] + (at[d],) + inside[d + 1 :] for d in range(rank)]


def tensor_of(shape, dtype, seed=0):
    """Numbers of that format, none of them 0: a box that has not moved shows."""
    rng = np.random.default_rng(seed)
    if dtype.startswith("float"):
        return rng.standard_normal(shape).astype(dtype)
    return rng.integers(1, 200, shape).astype(dtype)


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
    """Loads one box over words that say `UNTOUCHED`, and copies it out, as words."""
    issue, words = issue_load(f"tma_load_{rank}d", rank), nbytes // 4

    @jit
    def kernel(map: "uint64", place, y):
        tile = cuda.shared.array(words, uint32, alignment=1024)
        bars = cuda.shared.array(1, uint64)
        i = cuda.threadIdx.x
        bar = ptx.shared_address(bars)
        j = i
        while j < words:
            tile[j] = uint32(UNTOUCHED)
            j += THREADS
        if i == 0:
            ptx.prefetch_tensormap(map)
            ptx.fence_tensormap_acquire(map)
            ptx.mbarrier_init(bar, 1)
            ptx.fence_mbarrier_init()
        ptx.fence_proxy_async_shared()
        cuda.syncthreads()
        if i == 0:
            ptx.mbarrier_arrive_expect_tx(bar, nbytes)
            issue(ptx.shared_address(tile), map, place, bar)
        ptx.mbarrier_wait(bar, 0)
        j = i
        while j < words:
            y[j] = tile[j]
            j += THREADS

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
