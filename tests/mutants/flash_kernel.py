"""Wrong answers to the kernel in minilm/exercises/flash.py."""

import math

import torch

from cuda_numba.namespace import cuda, float32
from minilm.exercises.launching import emulated

from .mutant import simplest, wrong

SCALE, NOTHING = float32(0.35355339), float32(-math.inf)


@simplest("flash.forward")
def one_tile_of_zeros(flash):
    """With queries of zeros every key that is seen counts alike."""
    T = 16
    out, lse = torch.zeros(T, 8), torch.zeros(T)
    keys, values = torch.ones(T, 8), torch.arange(8.0 * T).view(T, 8)
    emulated(flash, 1, 32, torch.zeros(T, 8), keys, values, out, lse)
    return out, lse


@wrong("flash.forward", "total and acc are both", right_on_simplest=True)
def total_stays(q, k, v, out, lse):
    keys = cuda.shared.array((16, 8), float32)
    values = cuda.shared.array((16, 8), float32)
    query, acc = cuda.local.array(8, float32), cuda.local.array(8, float32)
    t = cuda.threadIdx.x
    i, T = cuda.blockIdx.x * 32 + t, q.shape[0]
    peak, total = NOTHING, float32(0)
    for d in range(8):
        query[d] = q[i, d] * SCALE if i < T else float32(0)
        acc[d] = float32(0)
    end = min(T, cuda.blockIdx.x * 32 + 32)
    for start in range(0, end, 16):
        cuda.syncthreads()
        for e in range(t, 128, 32):
            if start + e // 8 < end:
                keys[e // 8, e % 8] = k[start + e // 8, e % 8]
                values[e // 8, e % 8] = v[start + e // 8, e % 8]
        cuda.syncthreads()
        for j in range(min(16, i + 1 - start, T - start)):
            score = float32(0)
            for d in range(8):
                score += query[d] * keys[j, d]
            top = max(peak, score)
            shrink, p = math.exp(peak - top), math.exp(score - top)
            peak, total = top, total + p
            for d in range(8):
                acc[d] = acc[d] * shrink + p * values[j, d]
    if i < T:
        lse[i] = peak + math.log(total)
        for d in range(8):
            out[i, d] = acc[d] / total


@wrong("flash.forward", "total and acc are both", right_on_simplest=True)
def acc_stays(q, k, v, out, lse):
    keys = cuda.shared.array((16, 8), float32)
    values = cuda.shared.array((16, 8), float32)
    query, acc = cuda.local.array(8, float32), cuda.local.array(8, float32)
    t = cuda.threadIdx.x
    i, T = cuda.blockIdx.x * 32 + t, q.shape[0]
    peak, total = NOTHING, float32(0)
    for d in range(8):
        query[d] = q[i, d] * SCALE if i < T else float32(0)
        acc[d] = float32(0)
    end = min(T, cuda.blockIdx.x * 32 + 32)
    for start in range(0, end, 16):
        cuda.syncthreads()
        for e in range(t, 128, 32):
            if start + e // 8 < end:
                keys[e // 8, e % 8] = k[start + e // 8, e % 8]
                values[e // 8, e % 8] = v[start + e // 8, e % 8]
        cuda.syncthreads()
        for j in range(min(16, i + 1 - start, T - start)):
            score = float32(0)
            for d in range(8):
                score += query[d] * keys[j, d]
            top = max(peak, score)
            shrink, p = math.exp(peak - top), math.exp(score - top)
            peak, total = top, total * shrink + p
            for d in range(8):
                acc[d] = acc[d] + p * values[j, d]
    if i < T:
        lse[i] = peak + math.log(total)
        for d in range(8):
            out[i, d] = acc[d] / total


@wrong("flash.forward", "must not overflow", right_on_simplest=True)
def no_peak(q, k, v, out, lse):
    keys = cuda.shared.array((16, 8), float32)
    values = cuda.shared.array((16, 8), float32)
    query, acc = cuda.local.array(8, float32), cuda.local.array(8, float32)
    t = cuda.threadIdx.x
    i, T = cuda.blockIdx.x * 32 + t, q.shape[0]
    peak, total = NOTHING, float32(0)
    for d in range(8):
        query[d] = q[i, d] * SCALE if i < T else float32(0)
        acc[d] = float32(0)
    end = min(T, cuda.blockIdx.x * 32 + 32)
    for start in range(0, end, 16):
        cuda.syncthreads()
        for e in range(t, 128, 32):
            if start + e // 8 < end:
                keys[e // 8, e % 8] = k[start + e // 8, e % 8]
                values[e // 8, e % 8] = v[start + e // 8, e % 8]
        cuda.syncthreads()
        for j in range(min(16, i + 1 - start, T - start)):
            score = float32(0)
            for d in range(8):
                score += query[d] * keys[j, d]
            p = math.exp(score)
            peak, total = float32(0), total + p
            for d in range(8):
                acc[d] = acc[d] + p * values[j, d]
    if i < T:
        lse[i] = peak + math.log(total)
        for d in range(8):
            out[i, d] = acc[d] / total


@wrong("flash.forward", "keys j ≤ i only")
def every_key_is_seen(q, k, v, out, lse):
    keys = cuda.shared.array((16, 8), float32)
    values = cuda.shared.array((16, 8), float32)
    query, acc = cuda.local.array(8, float32), cuda.local.array(8, float32)
    t = cuda.threadIdx.x
    i, T = cuda.blockIdx.x * 32 + t, q.shape[0]
    peak, total = NOTHING, float32(0)
    for d in range(8):
        query[d] = q[i, d] * SCALE if i < T else float32(0)
        acc[d] = float32(0)
    end = min(T, cuda.blockIdx.x * 32 + 32)
    for start in range(0, end, 16):
        cuda.syncthreads()
        for e in range(t, 128, 32):
            if start + e // 8 < end:
                keys[e // 8, e % 8] = k[start + e // 8, e % 8]
                values[e // 8, e % 8] = v[start + e // 8, e % 8]
        cuda.syncthreads()
        for j in range(min(16, end - start)):
            score = float32(0)
            for d in range(8):
                score += query[d] * keys[j, d]
            top = max(peak, score)
            shrink, p = math.exp(peak - top), math.exp(score - top)
            peak, total = top, total * shrink + p
            for d in range(8):
                acc[d] = acc[d] * shrink + p * values[j, d]
    if i < T:
        lse[i] = peak + math.log(total)
        for d in range(8):
            out[i, d] = acc[d] / total


@wrong("flash.forward", "no tile after it", right_on_simplest=True)
def no_tile_is_skipped(q, k, v, out, lse):
    keys = cuda.shared.array((16, 8), float32)
    values = cuda.shared.array((16, 8), float32)
    query, acc = cuda.local.array(8, float32), cuda.local.array(8, float32)
    t = cuda.threadIdx.x
    i, T = cuda.blockIdx.x * 32 + t, q.shape[0]
    peak, total = NOTHING, float32(0)
    for d in range(8):
        query[d] = q[i, d] * SCALE if i < T else float32(0)
        acc[d] = float32(0)
    end = T
    for start in range(0, end, 16):
        cuda.syncthreads()
        for e in range(t, 128, 32):
            if start + e // 8 < end:
                keys[e // 8, e % 8] = k[start + e // 8, e % 8]
                values[e // 8, e % 8] = v[start + e // 8, e % 8]
        cuda.syncthreads()
        for j in range(min(16, i + 1 - start, T - start)):
            score = float32(0)
            for d in range(8):
                score += query[d] * keys[j, d]
            top = max(peak, score)
            shrink, p = math.exp(peak - top), math.exp(score - top)
            peak, total = top, total * shrink + p
            for d in range(8):
                acc[d] = acc[d] * shrink + p * values[j, d]
    if i < T:
        lse[i] = peak + math.log(total)
        for d in range(8):
            out[i, d] = acc[d] / total


@wrong("flash.forward", "a barrier belongs after", right_on_simplest=True)
def one_barrier(q, k, v, out, lse):
    keys = cuda.shared.array((16, 8), float32)
    values = cuda.shared.array((16, 8), float32)
    query, acc = cuda.local.array(8, float32), cuda.local.array(8, float32)
    t = cuda.threadIdx.x
    i, T = cuda.blockIdx.x * 32 + t, q.shape[0]
    peak, total = NOTHING, float32(0)
    for d in range(8):
        query[d] = q[i, d] * SCALE if i < T else float32(0)
        acc[d] = float32(0)
    end = min(T, cuda.blockIdx.x * 32 + 32)
    for start in range(0, end, 16):
        for e in range(t, 128, 32):
            if start + e // 8 < end:
                keys[e // 8, e % 8] = k[start + e // 8, e % 8]
                values[e // 8, e % 8] = v[start + e // 8, e % 8]
        cuda.syncthreads()
        for j in range(min(16, i + 1 - start, T - start)):
            score = float32(0)
            for d in range(8):
                score += query[d] * keys[j, d]
            top = max(peak, score)
            shrink, p = math.exp(peak - top), math.exp(score - top)
            peak, total = top, total * shrink + p
            for d in range(8):
                acc[d] = acc[d] * shrink + p * values[j, d]
    if i < T:
        lse[i] = peak + math.log(total)
        for d in range(8):
            out[i, d] = acc[d] / total


@wrong("flash.forward", "use those that were loaded", right_on_simplest=True)
def keys_that_no_one_loaded(q, k, v, out, lse):
    keys = cuda.shared.array((16, 8), float32)
    values = cuda.shared.array((16, 8), float32)
    query, acc = cuda.local.array(8, float32), cuda.local.array(8, float32)
    t = cuda.threadIdx.x
    i, T = cuda.blockIdx.x * 32 + t, q.shape[0]
    peak, total = NOTHING, float32(0)
    for d in range(8):
        query[d] = q[i, d] * SCALE if i < T else float32(0)
        acc[d] = float32(0)
    end = min(T, cuda.blockIdx.x * 32 + 32)
    for start in range(0, end, 16):
        cuda.syncthreads()
        for e in range(t, 128, 32):
            if start + e // 8 < end:
                keys[e // 8, e % 8] = k[start + e // 8, e % 8]
                values[e // 8, e % 8] = v[start + e // 8, e % 8]
        cuda.syncthreads()
        for j in range(min(16, i + 1 - start)):
            score = float32(0)
            for d in range(8):
                score += query[d] * keys[j, d]
            top = max(peak, score)
            shrink, p = math.exp(peak - top), math.exp(score - top)
            peak, total = top, total * shrink + p
            for d in range(8):
                acc[d] = acc[d] * shrink + p * values[j, d]
    if i < T:
        lse[i] = peak + math.log(total)
        for d in range(8):
            out[i, d] = acc[d] / total


@wrong("flash.forward", "threads without a query load")
def idle_threads_wait_elsewhere(q, k, v, out, lse):
    keys = cuda.shared.array((16, 8), float32)
    values = cuda.shared.array((16, 8), float32)
    query, acc = cuda.local.array(8, float32), cuda.local.array(8, float32)
    t = cuda.threadIdx.x
    i, T = cuda.blockIdx.x * 32 + t, q.shape[0]
    peak, total = NOTHING, float32(0)
    for d in range(8):
        query[d] = q[i, d] * SCALE if i < T else float32(0)
        acc[d] = float32(0)
    end = min(T, cuda.blockIdx.x * 32 + 32)
    for start in range(0, end if i < T else 0, 16):
        cuda.syncthreads()
        for e in range(t, 128, 32):
            if start + e // 8 < end:
                keys[e // 8, e % 8] = k[start + e // 8, e % 8]
                values[e // 8, e % 8] = v[start + e // 8, e % 8]
        cuda.syncthreads()
        for j in range(min(16, i + 1 - start, T - start)):
            score = float32(0)
            for d in range(8):
                score += query[d] * keys[j, d]
            top = max(peak, score)
            shrink, p = math.exp(peak - top), math.exp(score - top)
            peak, total = top, total * shrink + p
            for d in range(8):
                acc[d] = acc[d] * shrink + p * values[j, d]
    if i < T:
        lse[i] = peak + math.log(total)
        for d in range(8):
            out[i, d] = acc[d] / total


@wrong("flash.forward", "peak + log(total)")
def lse_is_the_peak(q, k, v, out, lse):
    keys = cuda.shared.array((16, 8), float32)
    values = cuda.shared.array((16, 8), float32)
    query, acc = cuda.local.array(8, float32), cuda.local.array(8, float32)
    t = cuda.threadIdx.x
    i, T = cuda.blockIdx.x * 32 + t, q.shape[0]
    peak, total = NOTHING, float32(0)
    for d in range(8):
        query[d] = q[i, d] * SCALE if i < T else float32(0)
        acc[d] = float32(0)
    end = min(T, cuda.blockIdx.x * 32 + 32)
    for start in range(0, end, 16):
        cuda.syncthreads()
        for e in range(t, 128, 32):
            if start + e // 8 < end:
                keys[e // 8, e % 8] = k[start + e // 8, e % 8]
                values[e // 8, e % 8] = v[start + e // 8, e % 8]
        cuda.syncthreads()
        for j in range(min(16, i + 1 - start, T - start)):
            score = float32(0)
            for d in range(8):
                score += query[d] * keys[j, d]
            top = max(peak, score)
            shrink, p = math.exp(peak - top), math.exp(score - top)
            peak, total = top, total * shrink + p
            for d in range(8):
                acc[d] = acc[d] * shrink + p * values[j, d]
    if i < T:
        lse[i] = peak
        for d in range(8):
            out[i, d] = acc[d] / total


@wrong("flash.forward", "all that is kept of it", right_on_simplest=True)
def scores_of_a_whole_row(q, k, v, out, lse):
    keys = cuda.shared.array((16, 8), float32)
    values = cuda.shared.array((16, 8), float32)
    query, acc = cuda.local.array(8, float32), cuda.local.array(8, float32)
    t = cuda.threadIdx.x
    i, T = cuda.blockIdx.x * 32 + t, q.shape[0]
    peak, total = NOTHING, float32(0)
    for d in range(8):
        query[d] = q[i, d] * SCALE if i < T else float32(0)
        acc[d] = float32(0)
    scores = cuda.local.array(128, float32)
    end = min(T, cuda.blockIdx.x * 32 + 32)
    for start in range(0, end, 16):
        cuda.syncthreads()
        for e in range(t, 128, 32):
            if start + e // 8 < end:
                keys[e // 8, e % 8] = k[start + e // 8, e % 8]
                values[e // 8, e % 8] = v[start + e // 8, e % 8]
        cuda.syncthreads()
        for j in range(min(16, i + 1 - start, T - start)):
            score = float32(0)
            for d in range(8):
                score += query[d] * keys[j, d]
            scores[start + j] = score
            top = max(peak, score)
            shrink, p = math.exp(peak - top), math.exp(score - top)
            peak, total = top, total * shrink + p
            for d in range(8):
                acc[d] = acc[d] * shrink + p * values[j, d]
    if i < T:
        lse[i] = peak + math.log(total)
        for d in range(8):
            out[i, d] = acc[d] / total
