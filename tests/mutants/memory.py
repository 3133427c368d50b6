"""Wrong answers to the exercises in minilm/exercises/memory.py."""

import math

import torch

from cuda_numba.namespace import cuda, float32
from minilm.exercises.launching import emulated

from .mutant import simplest, wrong


@simplest("memory.transpose")
def a_square(transpose):
    out = torch.zeros(32, 32)
    emulated(transpose, (1, 1), (32, 8), torch.arange(1024.0).view(32, 32), out)
    return out


@wrong("memory.transpose", "lanes of a warp must be neighbours", right_on_simplest=True)
def straight(x, out):
    c = cuda.blockIdx.x * 32 + cuda.threadIdx.x
    for j in range(cuda.threadIdx.y, 32, 8):
        r = cuda.blockIdx.y * 32 + j
        if r < x.shape[0] and c < x.shape[1]:
            out[c, r] = x[r, c]


@wrong("memory.transpose", "one element longer", right_on_simplest=True)
def one_bank(x, out):
    tile = cuda.shared.array((32, 32), float32)
    c, r = cuda.blockIdx.x * 32, cuda.blockIdx.y * 32
    i = cuda.threadIdx.x
    for j in range(cuda.threadIdx.y, 32, 8):
        if r + j < x.shape[0] and c + i < x.shape[1]:
            tile[j, i] = x[r + j, c + i]
    cuda.syncthreads()
    for j in range(cuda.threadIdx.y, 32, 8):
        if c + j < x.shape[1] and r + i < x.shape[0]:
            out[c + j, r + i] = tile[i, j]


@wrong("memory.transpose", "cuda.syncthreads() belongs between")
def without_a_barrier(x, out):
    tile = cuda.shared.array((32, 33), float32)
    c, r = cuda.blockIdx.x * 32, cuda.blockIdx.y * 32
    i = cuda.threadIdx.x
    for j in range(cuda.threadIdx.y, 32, 8):
        if r + j < x.shape[0] and c + i < x.shape[1]:
            tile[j, i] = x[r + j, c + i]
    for j in range(cuda.threadIdx.y, 32, 8):
        if c + j < x.shape[1] and r + i < x.shape[0]:
            out[c + j, r + i] = tile[i, j]


@wrong("memory.transpose", "the other way round", right_on_simplest=True)
def one_guard_for_both(x, out):
    tile = cuda.shared.array((32, 33), float32)
    c, r = cuda.blockIdx.x * 32, cuda.blockIdx.y * 32
    i = cuda.threadIdx.x
    for j in range(cuda.threadIdx.y, 32, 8):
        if r + j < x.shape[0] and c + i < x.shape[1]:
            tile[j, i] = x[r + j, c + i]
    cuda.syncthreads()
    for j in range(cuda.threadIdx.y, 32, 8):
        if r + j < x.shape[0] and c + i < x.shape[1]:
            out[c + j, r + i] = tile[i, j]


@wrong("memory.transpose", "the other way round", right_on_simplest=True)
def tile_stays_where_it_was(x, out):
    tile = cuda.shared.array((32, 33), float32)
    c, r = cuda.blockIdx.x * 32, cuda.blockIdx.y * 32
    i = cuda.threadIdx.x
    for j in range(cuda.threadIdx.y, 32, 8):
        if r + j < x.shape[0] and c + i < x.shape[1]:
            tile[j, i] = x[r + j, c + i]
    cuda.syncthreads()
    for j in range(cuda.threadIdx.y, 32, 8):
        if r + j < out.shape[0] and c + i < out.shape[1]:
            out[r + j, c + i] = tile[i, j]


@simplest("memory.online_softmax")
def one_value_a_lane(softmax):
    out = torch.zeros(1, 32)
    emulated(softmax, 1, 32, torch.zeros(1, 32), out)
    return out


@wrong("memory.online_softmax", "multiply the old sum", right_on_simplest=True)
def old_sum_stays(x, out):
    row, lane = cuda.blockIdx.x, cuda.threadIdx.x
    peak, total = float32(-math.inf), float32(0)
    for j in range(lane, x.shape[1], 32):
        value = x[row, j]
        if value > peak:
            total += float32(1)
            peak = value
        elif value > float32(-math.inf):
            total += math.exp(value - peak)
    distance = 16
    while distance > 0:
        other = cuda.shfl_xor_sync(0xFFFFFFFF, peak, distance)
        more = cuda.shfl_xor_sync(0xFFFFFFFF, total, distance)
        top = max(peak, other)
        if top > float32(-math.inf):
            total = total * math.exp(peak - top) + more * math.exp(other - top)
            peak = top
        distance //= 2
    for j in range(lane, x.shape[1], 32):
        out[row, j] = math.exp(x[row, j] - peak) / total


@wrong("memory.online_softmax", "two lanes that merge", right_on_simplest=True)
def lanes_add_their_sums(x, out):
    row, lane = cuda.blockIdx.x, cuda.threadIdx.x
    peak, total = float32(-math.inf), float32(0)
    for j in range(lane, x.shape[1], 32):
        value = x[row, j]
        if value > peak:
            total = total * math.exp(peak - value) + float32(1)
            peak = value
        elif value > float32(-math.inf):
            total += math.exp(value - peak)
    distance = 16
    while distance > 0:
        total += cuda.shfl_xor_sync(0xFFFFFFFF, total, distance)
        peak = max(peak, cuda.shfl_xor_sync(0xFFFFFFFF, peak, distance))
        distance //= 2
    for j in range(lane, x.shape[1], 32):
        out[row, j] = math.exp(x[row, j] - peak) / total


@wrong("memory.online_softmax", "-inf - (-inf) is NaN", right_on_simplest=True)
def empty_lanes_are_nan(x, out):
    row, lane = cuda.blockIdx.x, cuda.threadIdx.x
    peak, total = float32(-math.inf), float32(0)
    for j in range(lane, x.shape[1], 32):
        value = x[row, j]
        top = max(peak, value)
        total = total * math.exp(peak - top) + math.exp(value - top)
        peak = top
    distance = 16
    while distance > 0:
        other = cuda.shfl_xor_sync(0xFFFFFFFF, peak, distance)
        more = cuda.shfl_xor_sync(0xFFFFFFFF, total, distance)
        top = max(peak, other)
        total = total * math.exp(peak - top) + more * math.exp(other - top)
        peak = top
        distance //= 2
    for j in range(lane, x.shape[1], 32):
        out[row, j] = math.exp(x[row, j] - peak) / total


@wrong("memory.online_softmax", "not three times", right_on_simplest=True)
def three_reads(x, out):
    row, lane = cuda.blockIdx.x, cuda.threadIdx.x
    peak, total = float32(-math.inf), float32(0)
    for j in range(lane, x.shape[1], 32):
        peak = max(peak, x[row, j])
    distance = 16
    while distance > 0:
        peak = max(peak, cuda.shfl_xor_sync(0xFFFFFFFF, peak, distance))
        distance //= 2
    for j in range(lane, x.shape[1], 32):
        total += math.exp(x[row, j] - peak)
    distance = 16
    while distance > 0:
        total += cuda.shfl_xor_sync(0xFFFFFFFF, total, distance)
        distance //= 2
    for j in range(lane, x.shape[1], 32):
        out[row, j] = math.exp(x[row, j] - peak) / total


@wrong("memory.online_softmax", "exp(1000) is infinite", right_on_simplest=True)
def no_peak(x, out):
    row, lane = cuda.blockIdx.x, cuda.threadIdx.x
    total = float32(0)
    for j in range(lane, x.shape[1], 32):
        total += math.exp(x[row, j])
    distance = 16
    while distance > 0:
        total += cuda.shfl_xor_sync(0xFFFFFFFF, total, distance)
        distance //= 2
    for j in range(lane, x.shape[1], 32):
        out[row, j] = math.exp(x[row, j]) / total


@wrong("memory.online_softmax", "merge with shfl_xor", right_on_simplest=False)
def each_lane_for_itself(x, out):
    row, lane = cuda.blockIdx.x, cuda.threadIdx.x
    peak, total = float32(-math.inf), float32(0)
    for j in range(lane, x.shape[1], 32):
        value = x[row, j]
        if value > peak:
            total = total * math.exp(peak - value) + float32(1)
            peak = value
        elif value > float32(-math.inf):
            total += math.exp(value - peak)
    for j in range(lane, x.shape[1], 32):
        out[row, j] = math.exp(x[row, j] - peak) / total


@simplest("memory.bias_gelu")
def one_row_of_ones(bias_gelu):
    out = torch.zeros(1, 64)
    emulated(bias_gelu, (1, 1), 64, torch.ones(1, 64), torch.zeros(64), out)
    return out


@wrong("memory.bias_gelu", "before the loop over rows", right_on_simplest=True)
def bias_for_each_row(x, b, out):
    c = cuda.grid(1)
    if c < x.shape[1]:
        for r in range(cuda.blockIdx.y, x.shape[0], cuda.gridDim.y):
            z = x[r, c] + b[c]
            out[r, c] = float32(0.5) * z * (float32(1) + math.erf(z * float32(0.70710678)))


@wrong("memory.bias_gelu", "stays in a register", right_on_simplest=True)
def through_out(x, b, out):
    c = cuda.grid(1)
    if c < x.shape[1]:
        bias = b[c]
        for r in range(cuda.blockIdx.y, x.shape[0], cuda.gridDim.y):
            out[r, c] = x[r, c] + bias
            z = out[r, c]
            out[r, c] = float32(0.5) * z * (float32(1) + math.erf(z * float32(0.70710678)))


@wrong("memory.bias_gelu", "that is the tanh approximation")
def by_tanh(x, b, out):
    c = cuda.grid(1)
    if c < x.shape[1]:
        bias = b[c]
        for r in range(cuda.blockIdx.y, x.shape[0], cuda.gridDim.y):
            z = x[r, c] + bias
            u = float32(0.79788456) * (z + float32(0.044715) * z * z * z)
            out[r, c] = float32(0.5) * z * (float32(1) + math.tanh(u))


@wrong("memory.bias_gelu", "keeps the arithmetic in 32 bits", right_on_simplest=True)
def in_float64(x, b, out):
    c = cuda.grid(1)
    if c < x.shape[1]:
        bias = b[c]
        for r in range(cuda.blockIdx.y, x.shape[0], cuda.gridDim.y):
            z = x[r, c] + bias
            out[r, c] = 0.5 * z * (1.0 + math.erf(z * 0.7071067811865476))


@wrong("memory.bias_gelu", "blockIdx.y + gridDim.y", right_on_simplest=True)
def one_row_a_block(x, b, out):
    c, r = cuda.grid(1), cuda.blockIdx.y
    if c < x.shape[1]:
        z = x[r, c] + b[c]
        out[r, c] = float32(0.5) * z * (float32(1) + math.erf(z * float32(0.70710678)))


@wrong("memory.bias_gelu", "the bias is added before", right_on_simplest=True)
def bias_afterwards(x, b, out):
    c = cuda.grid(1)
    if c < x.shape[1]:
        bias = b[c]
        for r in range(cuda.blockIdx.y, x.shape[0], cuda.gridDim.y):
            z = x[r, c]
            y = float32(0.5) * z * (float32(1) + math.erf(z * float32(0.70710678)))
            out[r, c] = y + bias


@simplest("memory.rms_norm_backward_a")
def a_row_of_ones(backward):
    dx = torch.zeros(1, 64)  # the sum of dy · w · x is 0, and rstd is 1
    dy = torch.tensor([1.0, -1.0]).repeat(32)[None]
    emulated(backward, 1, 64, dy, torch.ones(1, 64), torch.ones(64), torch.ones(1), dx)
    return dx


@wrong("memory.rms_norm_backward_a", "rstd depends on x too", right_on_simplest=True)
def without_the_mean(dy, x, w, rstd, dx):
    row = cuda.blockIdx.x
    for j in range(cuda.threadIdx.x, x.shape[1], 64):
        dx[row, j] = rstd[row] * dy[row, j] * w[j]


@wrong("memory.rms_norm_backward_a", "not over 64 threads", right_on_simplest=True)
def mean_over_threads(dy, x, w, rstd, dx):
    tile = cuda.shared.array(64, float32)
    row, t, n = cuda.blockIdx.x, cuda.threadIdx.x, x.shape[1]
    part = float32(0)
    for j in range(t, n, 64):
        part += dy[row, j] * w[j] * x[row, j]
    tile[t] = part
    cuda.syncthreads()
    step = 32
    while step > 0:
        if t < step:
            tile[t] += tile[t + step]
        cuda.syncthreads()
        step //= 2
    r = rstd[row]
    mean = r * tile[0] / float32(64)
    for j in range(t, n, 64):
        dx[row, j] = r * (dy[row, j] * w[j] - x[row, j] * r * mean)


@wrong("memory.rms_norm_backward_a", "multiplied by x̂ = x · rstd", right_on_simplest=True)
def x_for_x_hat(dy, x, w, rstd, dx):
    tile = cuda.shared.array(64, float32)
    row, t, n = cuda.blockIdx.x, cuda.threadIdx.x, x.shape[1]
    part = float32(0)
    for j in range(t, n, 64):
        part += dy[row, j] * w[j] * x[row, j]
    tile[t] = part
    cuda.syncthreads()
    step = 32
    while step > 0:
        if t < step:
            tile[t] += tile[t + step]
        cuda.syncthreads()
        step //= 2
    r = rstd[row]
    mean = r * tile[0] / float32(n)
    for j in range(t, n, 64):
        dx[row, j] = r * (dy[row, j] * w[j] - x[row, j] * mean)


@wrong("memory.rms_norm_backward_a", "cuda.syncthreads() belongs between")
def read_too_early(dy, x, w, rstd, dx):
    tile = cuda.shared.array(64, float32)
    row, t, n = cuda.blockIdx.x, cuda.threadIdx.x, x.shape[1]
    part = float32(0)
    for j in range(t, n, 64):
        part += dy[row, j] * w[j] * x[row, j]
    tile[t] = part
    step = 32
    while step > 0:
        cuda.syncthreads()
        if t < step:
            tile[t] += tile[t + step]
        step //= 2
    r = rstd[row]
    mean = r * tile[0] / float32(n)
    for j in range(t, n, 64):
        dx[row, j] = r * (dy[row, j] * w[j] - x[row, j] * r * mean)


@wrong("memory.rms_norm_backward_a", "the columns t, t + 64", right_on_simplest=True)
def one_column_a_thread(dy, x, w, rstd, dx):
    tile = cuda.shared.array(64, float32)
    row, t, n = cuda.blockIdx.x, cuda.threadIdx.x, x.shape[1]
    tile[t] = dy[row, t] * w[t] * x[row, t] if t < n else float32(0)
    cuda.syncthreads()
    total = float32(0)
    for k in range(64):
        total += tile[k]
    r = rstd[row]
    if t < n:
        dx[row, t] = r * (dy[row, t] * w[t] - x[row, t] * r * r * total / float32(n))


@simplest("memory.rms_norm_backward_b")
def one_row(backward):
    dw = torch.zeros(64)
    emulated(backward, 1, 64, torch.ones(1, 64), torch.ones(1, 64), torch.ones(1), dw)
    return dw


@wrong("memory.rms_norm_backward_b", "that is the last one alone", right_on_simplest=True)
def the_last_row(dy, x, rstd, dw):
    c = cuda.grid(1)
    if c < dw.size:
        value = float32(0)
        for r in range(x.shape[0]):
            value = dy[r, c] * x[r, c] * rstd[r]
        dw[c] = value


@wrong("memory.rms_norm_backward_b", "rstd is missing", right_on_simplest=True)
def without_rstd(dy, x, rstd, dw):
    c = cuda.grid(1)
    if c < dw.size:
        total = float32(0)
        for r in range(x.shape[0]):
            total += dy[r, c] * x[r, c]
        dw[c] = total


@wrong("memory.rms_norm_backward_b", "add in a register, then store", right_on_simplest=True)
def an_atomic_for_each(dy, x, rstd, dw):
    c = cuda.grid(1)
    if c < dw.size:
        for r in range(x.shape[0]):
            cuda.atomic.add(dw, c, dy[r, c] * x[r, c] * rstd[r])


@wrong("memory.rms_norm_backward_b", "store once, after the loop", right_on_simplest=True)
def the_sum_lives_in_dw(dy, x, rstd, dw):
    c = cuda.grid(1)
    if c < dw.size:
        dw[c] = float32(0)
        for r in range(x.shape[0]):
            dw[c] += dy[r, c] * x[r, c] * rstd[r]


@wrong("memory.rms_norm_backward_b", "their sum", right_on_simplest=True)
def the_mean(dy, x, rstd, dw):
    c = cuda.grid(1)
    if c < dw.size:
        total = float32(0)
        for r in range(x.shape[0]):
            total += dy[r, c] * x[r, c] * rstd[r]
        dw[c] = total / float32(x.shape[0])


@wrong("memory.rms_norm_backward_b", "more threads than elements", right_on_simplest=True)
def every_thread_has_a_column(dy, x, rstd, dw):
    c = cuda.grid(1)
    total = float32(0)
    for r in range(x.shape[0]):
        total += dy[r, c] * x[r, c] * rstd[r]
    dw[c] = total
