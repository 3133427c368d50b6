"""Wrong answers to the exercises in minilm/exercises/matmul.py."""

import torch

from cuda_numba.namespace import cuda, float32
from minilm.exercises.launching import emulated

from .mutant import simplest, wrong

EYE = torch.eye(8)


@simplest("matmul.tiled")
def one_tile(tiled):
    out = torch.zeros(8, 8)
    emulated(tiled, (1, 1), (8, 8), torch.arange(64.0).view(8, 8), EYE, out)
    return out


@wrong("matmul.tiled", "7 others need as well", right_on_simplest=True)
def without_a_tile(a, b, out):
    column, row = cuda.grid(2)
    if row < out.shape[0] and column < out.shape[1]:
        total = float32(0)
        for k in range(a.shape[1]):
            total += a[row, k] * b[k, column]
        out[row, column] = total


@wrong("matmul.tiled", "a barrier belongs between the two")
def multiplied_too_early(a, b, out):
    left = cuda.shared.array((8, 8), float32)
    right = cuda.shared.array((8, 8), float32)
    x, y = cuda.threadIdx.x, cuda.threadIdx.y
    column, row = cuda.grid(2)
    total = float32(0)
    for start in range(0, a.shape[1], 8):
        left[y, x] = a[row, start + x] if row < a.shape[0] and start + x < a.shape[1] else 0
        right[y, x] = b[start + y, column] if column < b.shape[1] and start + y < a.shape[1] else 0
        for k in range(8):
            total += left[y, k] * right[k, x]
        cuda.syncthreads()
    if row < out.shape[0] and column < out.shape[1]:
        out[row, column] = total


@wrong("matmul.tiled", "a barrier belongs between the two", right_on_simplest=True)
def loaded_too_early(a, b, out):
    left = cuda.shared.array((8, 8), float32)
    right = cuda.shared.array((8, 8), float32)
    x, y = cuda.threadIdx.x, cuda.threadIdx.y
    column, row = cuda.grid(2)
    total = float32(0)
    for start in range(0, a.shape[1], 8):
        left[y, x] = a[row, start + x] if row < a.shape[0] and start + x < a.shape[1] else 0
        right[y, x] = b[start + y, column] if column < b.shape[1] and start + y < a.shape[1] else 0
        cuda.syncthreads()
        for k in range(8):
            total += left[y, k] * right[k, x]
    if row < out.shape[0] and column < out.shape[1]:
        out[row, column] = total


@wrong("matmul.tiled", "the last tiles hang over", right_on_simplest=True)
def whole_tiles_only(a, b, out):
    left = cuda.shared.array((8, 8), float32)
    right = cuda.shared.array((8, 8), float32)
    x, y = cuda.threadIdx.x, cuda.threadIdx.y
    column, row = cuda.grid(2)
    total = float32(0)
    for start in range(0, a.shape[1], 8):
        left[y, x] = a[row, start + x]
        right[y, x] = b[start + y, column]
        cuda.syncthreads()
        for k in range(8):
            total += left[y, k] * right[k, x]
        cuda.syncthreads()
    out[row, column] = total


@wrong("matmul.tiled", "put 0 into the tile there", right_on_simplest=True)
def leftovers_of_the_tile_before(a, b, out):
    left = cuda.shared.array((8, 8), float32)
    right = cuda.shared.array((8, 8), float32)
    x, y = cuda.threadIdx.x, cuda.threadIdx.y
    column, row = cuda.grid(2)
    total = left[y, x] = right[y, x] = float32(0)
    for start in range(0, a.shape[1], 8):
        if row < a.shape[0] and start + x < a.shape[1]:
            left[y, x] = a[row, start + x]
        if column < b.shape[1] and start + y < a.shape[1]:
            right[y, x] = b[start + y, column]
        cuda.syncthreads()
        for k in range(8):
            total += left[y, k] * right[k, x]
        cuda.syncthreads()
    if row < out.shape[0] and column < out.shape[1]:
        out[row, column] = total


@wrong("matmul.tiled", "fewer than 8 columns, not none", right_on_simplest=True)
def no_last_tile(a, b, out):
    left = cuda.shared.array((8, 8), float32)
    right = cuda.shared.array((8, 8), float32)
    x, y = cuda.threadIdx.x, cuda.threadIdx.y
    column, row = cuda.grid(2)
    total = float32(0)
    for step in range(a.shape[1] // 8):
        left[y, x] = a[row, step * 8 + x] if row < a.shape[0] else 0
        right[y, x] = b[step * 8 + y, column] if column < b.shape[1] else 0
        cuda.syncthreads()
        for k in range(8):
            total += left[y, k] * right[k, x]
        cuda.syncthreads()
    if row < out.shape[0] and column < out.shape[1]:
        out[row, column] = total


@wrong("matmul.tiled", "all threads fill the tile", right_on_simplest=True)
def idle_threads_leave(a, b, out):
    left = cuda.shared.array((8, 8), float32)
    right = cuda.shared.array((8, 8), float32)
    x, y = cuda.threadIdx.x, cuda.threadIdx.y
    column, row = cuda.grid(2)
    if row < out.shape[0] and column < out.shape[1]:
        total = float32(0)
        for start in range(0, a.shape[1], 8):
            left[y, x] = a[row, start + x] if start + x < a.shape[1] else 0
            right[y, x] = b[start + y, column] if start + y < a.shape[1] else 0
            cuda.syncthreads()
            for k in range(8):
                total += left[y, k] * right[k, x]
            cuda.syncthreads()
        out[row, column] = total


@wrong("matmul.tiled", "neighbours in a row, of a and of b", right_on_simplest=True)
def loads_down_the_columns(a, b, out):
    left = cuda.shared.array((8, 8), float32)
    right = cuda.shared.array((8, 8), float32)
    x, y = cuda.threadIdx.x, cuda.threadIdx.y
    column, row = cuda.grid(2)
    top, side = cuda.blockIdx.y * 8, cuda.blockIdx.x * 8
    total = float32(0)
    for start in range(0, a.shape[1], 8):
        inside = top + x < a.shape[0] and start + y < a.shape[1]
        left[x, y] = a[top + x, start + y] if inside else 0
        inside = side + y < b.shape[1] and start + x < a.shape[1]
        right[x, y] = b[start + x, side + y] if inside else 0
        cuda.syncthreads()
        for k in range(8):
            total += left[y, k] * right[k, x]
        cuda.syncthreads()
    if row < out.shape[0] and column < out.shape[1]:
        out[row, column] = total


@simplest("matmul.swizzle")
def one_tile_of_a_layer(swizzle):
    out = torch.zeros(4, 32)
    emulated(swizzle, (1, 1), (32, 4), torch.ones(4, 32), torch.arange(1024.0).view(32, 32), out)
    return out


@wrong("matmul.swizzle", "so that all banks differ", right_on_simplest=True)
def as_it_lies(x, w, out):
    tile = cuda.shared.array((32, 32), float32)
    some = cuda.shared.array((4, 32), float32)
    i, j = cuda.threadIdx.x, cuda.threadIdx.y
    column, row = cuda.grid(2)
    total = float32(0)
    for start in range(0, x.shape[1], 32):
        inside = start + i < x.shape[1]
        some[j, i] = x[row, start + i] if inside and row < x.shape[0] else 0
        for r in range(j, 32, 4):
            n = cuda.blockIdx.x * 32 + r
            tile[r, i] = w[n, start + i] if inside and n < w.shape[0] else 0
        cuda.syncthreads()
        for k in range(32):
            total += some[j, k] * tile[i, k]
        cuda.syncthreads()
    if row < out.shape[0] and column < out.shape[1]:
        out[row, column] = total


@wrong("matmul.swizzle", "no padding", right_on_simplest=True)
def padded(x, w, out):
    tile = cuda.shared.array((32, 33), float32)
    some = cuda.shared.array((4, 32), float32)
    i, j = cuda.threadIdx.x, cuda.threadIdx.y
    column, row = cuda.grid(2)
    total = float32(0)
    for start in range(0, x.shape[1], 32):
        inside = start + i < x.shape[1]
        some[j, i] = x[row, start + i] if inside and row < x.shape[0] else 0
        for r in range(j, 32, 4):
            n = cuda.blockIdx.x * 32 + r
            tile[r, i] = w[n, start + i] if inside and n < w.shape[0] else 0
        cuda.syncthreads()
        for k in range(32):
            total += some[j, k] * tile[i, k]
        cuda.syncthreads()
    if row < out.shape[0] and column < out.shape[1]:
        out[row, column] = total


@wrong("matmul.swizzle", "read from p(r, k)", right_on_simplest=True)
def swizzled_on_one_side(x, w, out):  # a row of ones in x does not notice
    tile = cuda.shared.array((32, 32), float32)
    some = cuda.shared.array((4, 32), float32)
    i, j = cuda.threadIdx.x, cuda.threadIdx.y
    column, row = cuda.grid(2)
    total = float32(0)
    for start in range(0, x.shape[1], 32):
        inside = start + i < x.shape[1]
        some[j, i] = x[row, start + i] if inside and row < x.shape[0] else 0
        for r in range(j, 32, 4):
            n = cuda.blockIdx.x * 32 + r
            tile[r, i ^ r] = w[n, start + i] if inside and n < w.shape[0] else 0
        cuda.syncthreads()
        for k in range(32):
            total += some[j, k] * tile[i, k]
        cuda.syncthreads()
    if row < out.shape[0] and column < out.shape[1]:
        out[row, column] = total


@wrong("matmul.swizzle", "only the tile is permuted", right_on_simplest=True)
def loads_down_the_rows(x, w, out):
    tile = cuda.shared.array((32, 32), float32)
    some = cuda.shared.array((4, 32), float32)
    i, j = cuda.threadIdx.x, cuda.threadIdx.y
    column, row = cuda.grid(2)
    total = float32(0)
    for start in range(0, x.shape[1], 32):
        inside = start + i < x.shape[1] and row < x.shape[0]
        some[j, i] = x[row, start + i] if inside else 0
        for k in range(j, 32, 4):
            inside = start + k < x.shape[1] and column < w.shape[0]
            tile[k, i] = w[column, start + k] if inside else 0
        cuda.syncthreads()
        for k in range(32):
            total += some[j, k] * tile[k, i]
        cuda.syncthreads()
    if row < out.shape[0] and column < out.shape[1]:
        out[row, column] = total


@wrong("matmul.swizzle", "so that all banks differ", right_on_simplest=True)
def turned_while_it_is_stored(x, w, out):
    tile = cuda.shared.array((32, 32), float32)
    some = cuda.shared.array((4, 32), float32)
    i, j = cuda.threadIdx.x, cuda.threadIdx.y
    column, row = cuda.grid(2)
    total = float32(0)
    for start in range(0, x.shape[1], 32):
        inside = start + i < x.shape[1]
        some[j, i] = x[row, start + i] if inside and row < x.shape[0] else 0
        for r in range(j, 32, 4):
            n = cuda.blockIdx.x * 32 + r
            tile[i, r] = w[n, start + i] if inside and n < w.shape[0] else 0
        cuda.syncthreads()
        for k in range(32):
            total += some[j, k] * tile[k, i]
        cuda.syncthreads()
    if row < out.shape[0] and column < out.shape[1]:
        out[row, column] = total
