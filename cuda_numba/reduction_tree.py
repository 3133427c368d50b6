"""The rungs of the sum that teach: an atomic per element, trees in shared memory, shuffles.

`reduction` tells the whole ladder; here every thread owns one element and every block leaves one
partial sum, so that the rungs differ in one thing each.

                    who works in step s = 1, 2, 4, …            what it costs
    divergent       threads 0, 2s, 4s, …                        every warp stays busy to the end
    conflicts       threads 0 … 128/s, at words 0, 2s, 4s, …    up to 32 lanes want one bank
    sequential      threads 0 … 128/s, at words 0, 1, 2, …      half the threads idle after loading
    shuffle         all, in registers                           one barrier, two times five shuffles

Bytes from global memory: n · itemsize, plus 4 per block for the partial sums of all but the atomic.
"""

from . import ptx
from .jit import jit
from .namespace import cuda, float32
from .warp import block_sum

THREADS = 256  # of a block, and elements of a tile


@jit
def sum_atomic(x, out: "float32"):
    i = cuda.grid(1)
    if i < x.size:
        cuda.atomic.add(out, 0, ptx.load(x, i))


@jit
def sum_divergent(x, out: "float32"):
    tile = cuda.shared.array(THREADS, float32)
    t = cuda.threadIdx.x
    i = cuda.grid(1)
    tile[t] = ptx.load(x, i) if i < x.size else float32(0)
    cuda.syncthreads()
    step = 1
    while step < THREADS:
        if t & (2 * step - 1) == 0:
            tile[t] += tile[t + step]
        cuda.syncthreads()
        step *= 2
    if t == 0:
        out[cuda.blockIdx.x] = tile[0]


@jit
def sum_conflicts(x, out: "float32"):
    tile = cuda.shared.array(THREADS, float32)
    t = cuda.threadIdx.x
    i = cuda.grid(1)
    tile[t] = ptx.load(x, i) if i < x.size else float32(0)
    cuda.syncthreads()
    step = 1
    while step < THREADS:
        left = 2 * step * t
        if left < THREADS:
            tile[left] += tile[left + step]
        cuda.syncthreads()
        step *= 2
    if t == 0:
        out[cuda.blockIdx.x] = tile[0]


@jit
def sum_sequential(x, out: "float32"):
    tile = cuda.shared.array(THREADS, float32)
    t = cuda.threadIdx.x
    i = cuda.grid(1)
    tile[t] = ptx.load(x, i) if i < x.size else float32(0)
    cuda.syncthreads()
    step = THREADS // 2
    while step > 0:
        if t < step:
            tile[t] += tile[t + step]
        cuda.syncthreads()
        step >>= 1
    if t == 0:
        out[cuda.blockIdx.x] = tile[0]


@jit
def sum_shuffle(x, out: "float32"):
    scratch = cuda.shared.array(32, float32)
    i = cuda.grid(1)
    value = ptx.load(x, i) if i < x.size else float32(0)
    value = block_sum(value, scratch, 0)
    if cuda.threadIdx.x == 0:
        out[cuda.blockIdx.x] = value


TREES = {
    "atomic": sum_atomic,
    "divergent": sum_divergent,
    "conflicts": sum_conflicts,
    "sequential": sum_sequential,
    "shuffle": sum_shuffle,
}
