"""Wrong answers to the exercises in minilm/exercises/kernels.py."""

import torch

from cuda_numba import jit
from cuda_numba.namespace import cuda, float32
from minilm.exercises.launching import emulated

from .mutant import simplest, wrong


def ramp(n):
    return torch.arange(1.0, n + 1)


@simplest("kernels.guard")
def a_full_block(guard):
    out = torch.zeros(32)  # as many elements as threads, and zeros in out
    emulated(guard, 1, 32, ramp(32), ramp(32), out)
    return out


@wrong("kernels.guard", "more threads than elements", right_on_simplest=True)
def no_guard(a, b, out):
    i = cuda.grid(1)
    out[i] = a[i] + b[i]


@wrong("kernels.guard", "more threads than elements")
def one_too_many(a, b, out):
    i = cuda.grid(1)
    if i <= out.size:
        out[i] = a[i] + b[i]


@wrong("kernels.guard", "counts through all blocks", right_on_simplest=True)
def first_block_only(a, b, out):
    i = cuda.threadIdx.x
    if i < out.size:
        out[i] = a[i] + b[i]


@wrong("kernels.guard", "store the sum, do not add to it", right_on_simplest=True)
def adds_to_what_is_there(a, b, out):
    i = cuda.grid(1)
    if i < out.size:
        out[i] += a[i] + b[i]


@wrong("kernels.guard", "counts through all blocks", right_on_simplest=True)
def whole_blocks_only(a, b, out):
    i = cuda.grid(1)
    if (cuda.blockIdx.x + 1) * cuda.blockDim.x <= out.size:
        out[i] = a[i] + b[i]


@wrong("kernels.guard", "changed a")
def writes_into_a(a, b, out):
    i = cuda.grid(1)
    if i < out.size:
        a[i] += b[i]
        out[i] = a[i]


@wrong("kernels.guard", "a kernel is made of numbers", right_on_simplest=False)
def calls_torch(a, b, out):
    torch.add(a, b, out=out)


@wrong("kernels.guard", "a kernel is made of numbers", right_on_simplest=False)
def whole_arrays(a, b, out):
    out[:] = a + b


@simplest("kernels.grid_stride")
def as_many_threads(grid_stride):
    out = torch.zeros(32)
    emulated(grid_stride, 1, 32, ramp(32), out)
    return out


@wrong("kernels.grid_stride", "until n is reached", right_on_simplest=True)
def no_loop(x, out):
    i = cuda.grid(1)
    if i < out.size:
        out[i] = -x[i]


@wrong("kernels.grid_stride", "step by cuda.gridsize(1)", right_on_simplest=True)
def stride_of_a_block(x, out):
    for i in range(cuda.grid(1), out.size, cuda.blockDim.x):
        out[i] = -x[i]


@wrong("kernels.grid_stride", "neighbouring elements", right_on_simplest=True)
def a_piece_each(x, out):
    piece = (out.size + cuda.gridsize(1) - 1) // cuda.gridsize(1)
    for k in range(piece):
        i = cuda.grid(1) * piece + k
        if i < out.size:
            out[i] = -x[i]


@wrong("kernels.grid_stride", "let only those that have one", right_on_simplest=False)
def one_element_more(x, out):
    for i in range(cuda.grid(1), out.size + 1, cuda.gridsize(1)):
        out[i] = -x[i]


@wrong("kernels.grid_stride", "step by cuda.gridsize(1)", right_on_simplest=True)
def every_thread_does_everything(x, out):
    for i in range(out.size):
        out[i] = -x[i]


@simplest("kernels.race")
def one_element(race):
    out = torch.zeros(1)
    emulated(race, 1, 64, ramp(1), out)
    return out


@wrong("kernels.race", "cuda.syncthreads() belongs between", right_on_simplest=True)
def a_barrier_before_the_tree_only(x, out):
    tile = cuda.shared.array(64, float32)
    t = cuda.threadIdx.x
    i = cuda.grid(1)
    tile[t] = x[i] if i < x.size else float32(0)
    cuda.syncthreads()
    step = 32
    while step > 0:
        if t < step:
            tile[t] += tile[t + step]
        step //= 2
    if t == 0:
        out[cuda.blockIdx.x] = tile[0]


@wrong("kernels.race", "cuda.syncthreads() belongs between", right_on_simplest=False)
def a_warp_is_not_a_block(x, out):
    tile = cuda.shared.array(64, float32)
    t = cuda.threadIdx.x
    i = cuda.grid(1)
    tile[t] = x[i] if i < x.size else float32(0)
    cuda.syncwarp()
    step = 32
    while step > 0:
        if t < step:
            tile[t] += tile[t + step]
        cuda.syncwarp()
        step //= 2
    if t == 0:
        out[cuda.blockIdx.x] = tile[0]


@wrong("kernels.race", "must reach each barrier", right_on_simplest=False)
def a_barrier_for_some(x, out):
    tile = cuda.shared.array(64, float32)
    t = cuda.threadIdx.x
    i = cuda.grid(1)
    tile[t] = x[i] if i < x.size else float32(0)
    cuda.syncthreads()
    step = 32
    while step > 0:
        if t < step:
            tile[t] += tile[t + step]
            cuda.syncthreads()
        step //= 2
    if t == 0:
        out[cuda.blockIdx.x] = tile[0]


@wrong("kernels.race", "keep the tree", right_on_simplest=True)
@jit
def one_thread_adds_all(x, out):
    t = cuda.threadIdx.x
    if t == 0:
        total = float32(0)
        first = cuda.blockIdx.x * 64
        for i in range(first, min(first + 64, x.size)):
            total += x[i]
        out[cuda.blockIdx.x] = total


@wrong("kernels.race", "let only those that have one", right_on_simplest=False)
def no_guard_in_the_last_block(x, out):
    tile = cuda.shared.array(64, float32)
    t = cuda.threadIdx.x
    tile[t] = x[cuda.grid(1)]
    cuda.syncthreads()
    step = 32
    while step > 0:
        if t < step:
            tile[t] += tile[t + step]
        cuda.syncthreads()
        step //= 2
    if t == 0:
        out[cuda.blockIdx.x] = tile[0]


@simplest("kernels.reverse")
def a_block_of_equal_numbers(reverse):
    out = torch.zeros(64)
    emulated(reverse, 1, 64, torch.ones(64), out)
    return out


@wrong("kernels.reverse", "cuda.syncthreads() belongs between")
def no_barrier(x, out):
    tile = cuda.shared.array(64, float32)
    t = cuda.threadIdx.x
    start = cuda.blockIdx.x * 64
    count = min(64, x.size - start)
    if t < count:
        tile[t] = x[start + t]
        out[start + t] = tile[count - 1 - t]


@wrong("kernels.reverse", "must reach", right_on_simplest=True)
def idle_threads_do_not_wait(x, out):
    tile = cuda.shared.array(64, float32)
    t = cuda.threadIdx.x
    start = cuda.blockIdx.x * 64
    count = min(64, x.size - start)
    if t < count:
        tile[t] = x[start + t]
        cuda.syncthreads()
        out[start + t] = tile[count - 1 - t]


@wrong("kernels.reverse", "the last block has fewer elements", right_on_simplest=True)
def always_63(x, out):
    tile = cuda.shared.array(64, float32)
    t = cuda.threadIdx.x
    i = cuda.grid(1)
    if i < x.size:
        tile[t] = x[i]
    cuda.syncthreads()
    if i < x.size:
        out[i] = tile[63 - t]


@wrong("kernels.reverse", "go through the tile", right_on_simplest=True)
def without_the_tile(x, out):
    t = cuda.threadIdx.x
    start = cuda.blockIdx.x * 64
    count = min(64, x.size - start)
    if t < count:
        out[start + t] = x[start + count - 1 - t]


@wrong("kernels.reverse", "turns round its own 64", right_on_simplest=True)
def the_whole_array(x, out):
    tile = cuda.shared.array(64, float32)
    t = cuda.threadIdx.x
    i = cuda.grid(1)
    if i < x.size:
        tile[t] = x[x.size - 1 - i]
    cuda.syncthreads()
    if i < x.size:
        out[i] = tile[t]


@wrong("kernels.reverse", "turns round its own 64", right_on_simplest=True)
def a_copy(x, out):
    tile = cuda.shared.array(64, float32)
    t = cuda.threadIdx.x
    i = cuda.grid(1)
    if i < x.size:
        tile[t] = x[i]
        out[i] = tile[t]
