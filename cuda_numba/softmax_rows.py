"""Softmax with the row in registers: one read, one write. Forward and backward.

A row belongs to a team of warps. Thread t owns 16 bytes, then the 16 bytes one team further, and so
on; all its loads are on their way before the first value is used:

    access 0                       access 1                       access 2
    |t0 |t1 |t2 | … |t127         |t0 |t1 |t2 | … |t127          |t0 | …     |    one row

Forward, every warp takes its own maximum m_w and its own sum s_w of exp(x − m_w), with no barrier.
Then each leaves the pair in shared memory, and after the one barrier of the row every warp has all
pairs: m = max m_w, s = Σ s_w · exp(m_w − m), and its values only lack the factor exp(m_w − m) / s.
Backward, Σ dy · y takes the same one barrier.

Bytes: forward 2, backward 3 times rows · columns · itemsize. Per element one exponential and about
six operations: at the speed of the memory an H100 is busy with them for a third of the time.
"""

import functools
from typing import NamedTuple

from . import ptx
from .jit import jit
from .namespace import cuda, float32, uint32, uint64
from .warp import LOWEST, block_sum, warp_max, warp_sum

# exp(v) = 2^(v · log2 e). The maximum is subtracted before the product, not folded into one fused
# multiply-add: with masks of finfo.min the folded product overflows, and exp(0) would not be 1.
LOG2E = 1.4426950408889634


class Team(NamedTuple):
    """Who holds a row: compile-time constants of a kernel that keeps rows in registers."""

    width: int  # elements in one access: 16 bytes of them, or 1
    accesses: int  # of one thread; it holds width · accesses elements
    warps: int  # that share a row
    rows: int  # that a block holds: several where one warp takes a row alone
    full: bool  # the row fills the team: not even the last access needs a guard

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return 32 * self.warps * self.rows


# Columns up to which so many warps hold a row: (columns, warps, rows per block). Forward, a thread
# holds up to 32 elements in about 48 registers, so that ten rows of 4096 are on their way in a
# multiprocessor; past 32,768 columns one row needs most of the registers: 20 warps with 80 elements
# per thread, in 96.
FORWARD = ((1024, 1, 4), (4096, 4, 1), (8192, 8, 1), (16384, 16, 1), (32768, 32, 1), (51200, 20, 1))
# The backward pass holds two rows, dy and y; 4096 columns are one access of each in sixteen warps.
BACKWARD = ((512, 1, 4), (2048, 4, 1), (8192, 16, 1), (16384, 32, 1), (25600, 20, 1))


def team_of(columns: int, width: int, table: tuple) -> Team | None:
    """The team for rows of so many columns, None where a row is too long for every team."""
    for limit, warps, rows in table:
        if columns <= limit:
            step = 32 * warps * width
            return Team(width, -(-columns // step), warps, rows, columns % step == 0)
    return None


@jit(device=True)
def exp_of(difference):
    return ptx.ex2(difference * float32(LOG2E))


@jit(device=True)
def shift_of(peak):
    """What to subtract: the maximum, or 0 where every entry is −∞ and −∞ − (−∞) would be NaN."""
    return peak if peak != float32(LOWEST) else float32(0)


@functools.cache
def forward_kernel(dtype: str, team: Team):
    """y = softmax(x), a row per team. Registers: the row, and about 16."""
    width, accesses, warps, rows_per_block, full = team
    STEP = 32 * warps * width  # elements between two accesses of a thread
    SURE = accesses if full else accesses - 1  # accesses that are inside the row for every thread
    HELD = accesses * width

    @jit(pointers=True, launch_bounds=(32 * warps * rows_per_block, 1))
    def softmax_forward(x: dtype, y: dtype, rows: "uint32", columns: "uint32"):
        scratch = cuda.shared.array(64, float32)
        values = cuda.local.array(HELD, float32)
        thread = uint32(cuda.threadIdx.x)
        lane = thread & uint32(31)
        warp = thread >> uint32(5)
        if warps == 1:
            row = uint32(cuda.blockIdx.x) * uint32(rows_per_block) + warp
            place = lane * uint32(width)
            if row >= rows:  # a whole warp leaves, and there is no barrier ahead
                return
        else:
            row = uint32(cuda.blockIdx.x)
            place = thread * uint32(width)
        start = uint64(row) * uint64(columns) + uint64(place)
        for k in range(accesses):
            if k < SURE or place + uint32(k * STEP) < columns:
                if width > 1:
                    ptx.load_vector(x, start + uint64(k * STEP), values, k * width)
                else:
                    values[k] = ptx.load(x, start + uint64(k * STEP))
            else:
                for j in range(width):
                    values[k * width + j] = float32(LOWEST)

        peak = values[0]
        for j in range(1, HELD):
            peak = max(peak, values[j])
        peak = warp_max(peak)
        shift = shift_of(peak)
        total = float32(0)
        for j in range(HELD):
            values[j] = exp_of(values[j] - shift)
            total += values[j]
        total = warp_sum(total)
        factor = ptx.rcp(total)
        if warps > 1:
            if lane == 0:
                scratch[warp] = peak
                scratch[uint32(32) + warp] = total
            cuda.syncthreads()
            other = float32(LOWEST)
            total = float32(0)
            if lane < uint32(warps):
                other = scratch[lane]
                total = scratch[uint32(32) + lane]
            top = warp_max(other)
            total = warp_sum(total * exp_of(other - top))
            factor = exp_of(peak - top) * ptx.rcp(total)

        for k in range(accesses):
            if k < SURE or place + uint32(k * STEP) < columns:
                for j in range(width):
                    values[k * width + j] *= factor
                if width > 1:
                    ptx.store_vector(y, start + uint64(k * STEP), values, k * width)
                else:
                    ptx.store(y, start + uint64(k * STEP), values[k])

    return softmax_forward


@functools.cache
def backward_kernel(dtype: str, team: Team):
    """dx = y · (dy − Σ dy · y), a row per team. Registers: two rows, and about 16."""
    width, accesses, warps, rows_per_block, full = team
    STEP = 32 * warps * width
    SURE = accesses if full else accesses - 1
    HELD = accesses * width

    @jit(pointers=True, launch_bounds=(32 * warps * rows_per_block, 1))
    def softmax_backward(dy: dtype, y: dtype, dx: dtype, rows: "uint32", columns: "uint32"):
        scratch = cuda.shared.array(32, float32)
        grads = cuda.local.array(HELD, float32)
        values = cuda.local.array(HELD, float32)
        thread = uint32(cuda.threadIdx.x)
        if warps == 1:
            row = uint32(cuda.blockIdx.x) * uint32(rows_per_block) + (thread >> uint32(5))
            place = (thread & uint32(31)) * uint32(width)
            if row >= rows:
                return
        else:
            row = uint32(cuda.blockIdx.x)
            place = thread * uint32(width)
        start = uint64(row) * uint64(columns) + uint64(place)
        for k in range(accesses):
            if k < SURE or place + uint32(k * STEP) < columns:
                if width > 1:
                    ptx.load_vector(dy, start + uint64(k * STEP), grads, k * width)
                    ptx.load_vector(y, start + uint64(k * STEP), values, k * width)
                else:
                    grads[k] = ptx.load(dy, start + uint64(k * STEP))
                    values[k] = ptx.load(y, start + uint64(k * STEP))
            else:
                for j in range(width):
                    grads[k * width + j] = float32(0)
                    values[k * width + j] = float32(0)

        total = float32(0)
        for j in range(HELD):
            total += grads[j] * values[j]
        total = warp_sum(total) if warps == 1 else block_sum(total, scratch, 0)

        for k in range(accesses):
            if k < SURE or place + uint32(k * STEP) < columns:
                for j in range(k * width, (k + 1) * width):
                    values[j] *= grads[j] - total
                if width > 1:
                    ptx.store_vector(dx, start + uint64(k * STEP), values, k * width)
                else:
                    ptx.store(dx, start + uint64(k * STEP), values[k])

    return softmax_backward
