"""Wrong answers to two more exercises in minilm/exercises/matmul.py: buffers and epilogue."""

import math

import torch

from cuda_numba.namespace import cuda, float32
from minilm.exercises.launching import emulated

from .mutant import simplest, wrong

EYE = torch.eye(8)


@simplest("matmul.double_buffer")
def one_step(double_buffer):
    out = torch.zeros(8, 8)
    emulated(double_buffer, (1, 1), (8, 8), torch.arange(64.0).view(8, 8), EYE, out)
    return out


@wrong("matmul.double_buffer", "one barrier per step is enough", right_on_simplest=True)
def one_buffer(a, b, out):
    left = cuda.shared.array((1, 8, 8), float32)
    right = cuda.shared.array((1, 8, 8), float32)
    x, y = cuda.threadIdx.x, cuda.threadIdx.y
    column, row = cuda.grid(2)
    M, N, K = a.shape[0], b.shape[1], a.shape[1]
    total = float32(0)
    now = 0
    for start in range(0, K, 8):
        left[now, y, x] = a[row, start + x] if row < M and start + x < K else 0
        right[now, y, x] = b[start + y, column] if start + y < K and column < N else 0
        cuda.syncthreads()
        for k in range(8):
            total += left[now, y, k] * right[now, k, x]
        cuda.syncthreads()
    if row < M and column < N:
        out[row, column] = total


@wrong("matmul.double_buffer", "ask for the next tile first", right_on_simplest=True)
def multiplied_first(a, b, out):
    left = cuda.shared.array((2, 8, 8), float32)
    right = cuda.shared.array((2, 8, 8), float32)
    x, y = cuda.threadIdx.x, cuda.threadIdx.y
    column, row = cuda.grid(2)
    M, N, K = a.shape[0], b.shape[1], a.shape[1]
    total = float32(0)
    left[0, y, x] = a[row, x] if row < M and x < K else 0
    right[0, y, x] = b[y, column] if y < K and column < N else 0
    cuda.syncthreads()
    now = 0
    for start in range(8, K + 8, 8):
        for k in range(8):
            total += left[now, y, k] * right[now, k, x]
        if start < K:
            left[1 - now, y, x] = a[row, start + x] if row < M and start + x < K else 0
            right[1 - now, y, x] = b[start + y, column] if start + y < K and column < N else 0
        cuda.syncthreads()
        now = 1 - now
    if row < M and column < N:
        out[row, column] = total


@wrong("matmul.double_buffer", "meet before you change over", right_on_simplest=True)
def never_meeting_again(a, b, out):
    left = cuda.shared.array((2, 8, 8), float32)
    right = cuda.shared.array((2, 8, 8), float32)
    x, y = cuda.threadIdx.x, cuda.threadIdx.y
    column, row = cuda.grid(2)
    M, N, K = a.shape[0], b.shape[1], a.shape[1]
    total = float32(0)
    left[0, y, x] = a[row, x] if row < M and x < K else 0
    right[0, y, x] = b[y, column] if y < K and column < N else 0
    cuda.syncthreads()
    now = 0
    for start in range(8, K + 8, 8):
        if start < K:
            left[1 - now, y, x] = a[row, start + x] if row < M and start + x < K else 0
            right[1 - now, y, x] = b[start + y, column] if start + y < K and column < N else 0
        for k in range(8):
            total += left[now, y, k] * right[now, k, x]
        now = 1 - now
    if row < M and column < N:
        out[row, column] = total


@wrong("matmul.double_buffer", "fill one buffer, read the other", right_on_simplest=True)
def filled_while_it_is_read(a, b, out):
    left = cuda.shared.array((2, 8, 8), float32)
    right = cuda.shared.array((2, 8, 8), float32)
    x, y = cuda.threadIdx.x, cuda.threadIdx.y
    column, row = cuda.grid(2)
    M, N, K = a.shape[0], b.shape[1], a.shape[1]
    total = float32(0)
    left[0, y, x] = a[row, x] if row < M and x < K else 0
    right[0, y, x] = b[y, column] if y < K and column < N else 0
    cuda.syncthreads()
    now = 0
    for start in range(8, K + 8, 8):
        if start < K:
            left[now, y, x] = a[row, start + x] if row < M and start + x < K else 0
            right[now, y, x] = b[start + y, column] if start + y < K and column < N else 0
        for k in range(8):
            total += left[now, y, k] * right[now, k, x]
        cuda.syncthreads()
    if row < M and column < N:
        out[row, column] = total


@wrong("matmul.double_buffer", "first tile along k in every step", right_on_simplest=True)
def never_changed_over(a, b, out):
    left = cuda.shared.array((2, 8, 8), float32)
    right = cuda.shared.array((2, 8, 8), float32)
    x, y = cuda.threadIdx.x, cuda.threadIdx.y
    column, row = cuda.grid(2)
    M, N, K = a.shape[0], b.shape[1], a.shape[1]
    total = float32(0)
    left[0, y, x] = a[row, x] if row < M and x < K else 0
    right[0, y, x] = b[y, column] if y < K and column < N else 0
    cuda.syncthreads()
    now = 0
    for start in range(8, K + 8, 8):
        if start < K:
            left[1 - now, y, x] = a[row, start + x] if row < M and start + x < K else 0
            right[1 - now, y, x] = b[start + y, column] if start + y < K and column < N else 0
        for k in range(8):
            total += left[now, y, k] * right[now, k, x]
        cuda.syncthreads()
    if row < M and column < N:
        out[row, column] = total


@wrong("matmul.double_buffer", "one barrier per step is enough", right_on_simplest=True)
def a_barrier_too_many(a, b, out):
    left = cuda.shared.array((2, 8, 8), float32)
    right = cuda.shared.array((2, 8, 8), float32)
    x, y = cuda.threadIdx.x, cuda.threadIdx.y
    column, row = cuda.grid(2)
    M, N, K = a.shape[0], b.shape[1], a.shape[1]
    total = float32(0)
    left[0, y, x] = a[row, x] if row < M and x < K else 0
    right[0, y, x] = b[y, column] if y < K and column < N else 0
    cuda.syncthreads()
    now = 0
    for start in range(8, K + 8, 8):
        if start < K:
            left[1 - now, y, x] = a[row, start + x] if row < M and start + x < K else 0
            right[1 - now, y, x] = b[start + y, column] if start + y < K and column < N else 0
        cuda.syncthreads()
        for k in range(8):
            total += left[now, y, k] * right[now, k, x]
        cuda.syncthreads()
        now = 1 - now
    if row < M and column < N:
        out[row, column] = total


@wrong("matmul.double_buffer", "put 0 into the tile there")
def one_step_too_few(a, b, out):
    left = cuda.shared.array((2, 8, 8), float32)
    right = cuda.shared.array((2, 8, 8), float32)
    x, y = cuda.threadIdx.x, cuda.threadIdx.y
    column, row = cuda.grid(2)
    M, N, K = a.shape[0], b.shape[1], a.shape[1]
    total = float32(0)
    left[0, y, x] = a[row, x] if row < M and x < K else 0
    right[0, y, x] = b[y, column] if y < K and column < N else 0
    cuda.syncthreads()
    now = 0
    for start in range(8, K, 8):
        left[1 - now, y, x] = a[row, start + x] if row < M and start + x < K else 0
        right[1 - now, y, x] = b[start + y, column] if start + y < K and column < N else 0
        for k in range(8):
            total += left[now, y, k] * right[now, k, x]
        cuda.syncthreads()
        now = 1 - now
    if row < M and column < N:
        out[row, column] = total


@simplest("matmul.epilogue")
def zeros(epilogue):
    z, out = torch.ones(8, 8), torch.ones(8, 8)
    zero = torch.zeros(8, 8)
    emulated(epilogue, (1, 1), (8, 8), zero, zero, zero[0], z, out)
    return z, out


HALF, ROOT = float32(0.5), float32(0.70710678)


@wrong("matmul.epilogue", "store a b + bias in z")
def z_is_not_kept(a, b, bias, z, out):
    left = cuda.shared.array((8, 8), float32)
    right = cuda.shared.array((8, 8), float32)
    x, y = cuda.threadIdx.x, cuda.threadIdx.y
    column, row = cuda.grid(2)
    M, N, K = a.shape[0], b.shape[1], a.shape[1]
    total = float32(0)
    for start in range(0, K, 8):
        left[y, x] = a[row, start + x] if row < M and start + x < K else 0
        right[y, x] = b[start + y, column] if start + y < K and column < N else 0
        cuda.syncthreads()
        for k in range(8):
            total += left[y, k] * right[k, x]
        cuda.syncthreads()
    if row < M and column < N:
        value = total + bias[column]
        out[row, column] = HALF * value * (float32(1) + math.erf(value * ROOT))


@wrong("matmul.epilogue", "the bias is in it", right_on_simplest=True)
def z_without_bias(a, b, bias, z, out):
    left = cuda.shared.array((8, 8), float32)
    right = cuda.shared.array((8, 8), float32)
    x, y = cuda.threadIdx.x, cuda.threadIdx.y
    column, row = cuda.grid(2)
    M, N, K = a.shape[0], b.shape[1], a.shape[1]
    total = float32(0)
    for start in range(0, K, 8):
        left[y, x] = a[row, start + x] if row < M and start + x < K else 0
        right[y, x] = b[start + y, column] if start + y < K and column < N else 0
        cuda.syncthreads()
        for k in range(8):
            total += left[y, k] * right[k, x]
        cuda.syncthreads()
    if row < M and column < N:
        z[row, column] = total
        value = total + bias[column]
        out[row, column] = HALF * value * (float32(1) + math.erf(value * ROOT))


@wrong("matmul.epilogue", "read nothing back", right_on_simplest=True)
def z_is_read_back(a, b, bias, z, out):
    left = cuda.shared.array((8, 8), float32)
    right = cuda.shared.array((8, 8), float32)
    x, y = cuda.threadIdx.x, cuda.threadIdx.y
    column, row = cuda.grid(2)
    M, N, K = a.shape[0], b.shape[1], a.shape[1]
    total = float32(0)
    for start in range(0, K, 8):
        left[y, x] = a[row, start + x] if row < M and start + x < K else 0
        right[y, x] = b[start + y, column] if start + y < K and column < N else 0
        cuda.syncthreads()
        for k in range(8):
            total += left[y, k] * right[k, x]
        cuda.syncthreads()
    if row < M and column < N:
        z[row, column] = total + bias[column]
        value = z[row, column]
        out[row, column] = HALF * value * (float32(1) + math.erf(value * ROOT))


@wrong("matmul.epilogue", "the bias is added before", right_on_simplest=True)
def bias_after_the_gelu(a, b, bias, z, out):
    left = cuda.shared.array((8, 8), float32)
    right = cuda.shared.array((8, 8), float32)
    x, y = cuda.threadIdx.x, cuda.threadIdx.y
    column, row = cuda.grid(2)
    M, N, K = a.shape[0], b.shape[1], a.shape[1]
    total = float32(0)
    for start in range(0, K, 8):
        left[y, x] = a[row, start + x] if row < M and start + x < K else 0
        right[y, x] = b[start + y, column] if start + y < K and column < N else 0
        cuda.syncthreads()
        for k in range(8):
            total += left[y, k] * right[k, x]
        cuda.syncthreads()
    if row < M and column < N:
        z[row, column] = total + bias[column]
        gate = HALF * (float32(1) + math.erf(total * ROOT))
        out[row, column] = total * gate + bias[column]


@wrong("matmul.epilogue", "use math.erf", right_on_simplest=True)
def with_tanh(a, b, bias, z, out):
    left = cuda.shared.array((8, 8), float32)
    right = cuda.shared.array((8, 8), float32)
    x, y = cuda.threadIdx.x, cuda.threadIdx.y
    column, row = cuda.grid(2)
    M, N, K = a.shape[0], b.shape[1], a.shape[1]
    total = float32(0)
    for start in range(0, K, 8):
        left[y, x] = a[row, start + x] if row < M and start + x < K else 0
        right[y, x] = b[start + y, column] if start + y < K and column < N else 0
        cuda.syncthreads()
        for k in range(8):
            total += left[y, k] * right[k, x]
        cuda.syncthreads()
    if row < M and column < N:
        value = total + bias[column]
        z[row, column] = value
        inner = float32(0.7978846) * (value + float32(0.044715) * value * value * value)
        out[row, column] = HALF * value * (float32(1) + math.tanh(inner))


@wrong("matmul.epilogue", "z holds anything at first")
def added_to_what_is_there(a, b, bias, z, out):
    left = cuda.shared.array((8, 8), float32)
    right = cuda.shared.array((8, 8), float32)
    x, y = cuda.threadIdx.x, cuda.threadIdx.y
    column, row = cuda.grid(2)
    M, N, K = a.shape[0], b.shape[1], a.shape[1]
    total = float32(0)
    for start in range(0, K, 8):
        left[y, x] = a[row, start + x] if row < M and start + x < K else 0
        right[y, x] = b[start + y, column] if start + y < K and column < N else 0
        cuda.syncthreads()
        for k in range(8):
            total += left[y, k] * right[k, x]
        cuda.syncthreads()
    if row < M and column < N:
        z[row, column] += total + bias[column]
        value = total + bias[column]
        out[row, column] = HALF * value * (float32(1) + math.erf(value * ROOT))


@wrong("matmul.epilogue", "32 bits", right_on_simplest=True)
def a_constant_of_64_bits(a, b, bias, z, out):
    left = cuda.shared.array((8, 8), float32)
    right = cuda.shared.array((8, 8), float32)
    x, y = cuda.threadIdx.x, cuda.threadIdx.y
    column, row = cuda.grid(2)
    M, N, K = a.shape[0], b.shape[1], a.shape[1]
    total = float32(0)
    for start in range(0, K, 8):
        left[y, x] = a[row, start + x] if row < M and start + x < K else 0
        right[y, x] = b[start + y, column] if start + y < K and column < N else 0
        cuda.syncthreads()
        for k in range(8):
            total += left[y, k] * right[k, x]
        cuda.syncthreads()
    if row < M and column < N:
        value = total + bias[column]
        z[row, column] = value
        out[row, column] = 0.5 * value * (1 + math.erf(value * 0.70710678))


@wrong("matmul.epilogue", "the last tiles hang over", right_on_simplest=True)
def without_a_guard(a, b, bias, z, out):
    left = cuda.shared.array((8, 8), float32)
    right = cuda.shared.array((8, 8), float32)
    x, y = cuda.threadIdx.x, cuda.threadIdx.y
    column, row = cuda.grid(2)
    M, N, K = a.shape[0], b.shape[1], a.shape[1]
    total = float32(0)
    for start in range(0, K, 8):
        left[y, x] = a[row, start + x] if row < M and start + x < K else 0
        right[y, x] = b[start + y, column] if start + y < K and column < N else 0
        cuda.syncthreads()
        for k in range(8):
            total += left[y, k] * right[k, x]
        cuda.syncthreads()
    value = total + bias[column]
    z[row, column] = value
    out[row, column] = HALF * value * (float32(1) + math.erf(value * ROOT))
