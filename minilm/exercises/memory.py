"""Exercises of notebook 09: kernels that are right and move no more bytes than they must."""

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from .exercise import exercise, predict
from .launching import emulated, filled, launch, nan, sectors_of, wavy, within

if TYPE_CHECKING:  # see kernels.py
    from cuda_numba.namespace import cuda, float32

NOTEBOOK = "09_memory"
WIDE = "float32(…) around a constant keeps the arithmetic in 32 bits."


@exercise(
    notebook=NOTEBOOK,
    minutes=12,
    difficulty=3,
    hints=(
        "Read rows and write rows: the turn happens in the tile. Thread (x, y) of a block of 32 × "
        "8 does rows y, y + 8, y + 16 and y + 24.",
        "tile[j][x] is stored along a row and tile[x][j] is read along a column: 32 lanes, one "
        "bank. How wide must a row of the tile be for a column to spread over all banks?",
        "cuda.shared.array((32, 33), float32); the block that reads tile (R, C) writes tile "
        "(C, R), and each side needs a guard of its own.",
    ),
)
def my_transpose(x, out):
    """out[c, r] = x[r, c], whole sectors on both sides and no bank conflict.

    x: (R, C) float32, out: (C, R) float32. The grid is (⌈C / 32⌉, ⌈R / 32⌉) blocks of (32, 8)
    threads, a block for each tile of 32 × 32.
    """
    # solution:
    tile = cuda.shared.array((32, 33), float32)
    across, down = cuda.blockIdx.x * 32, cuda.blockIdx.y * 32
    x_, y_ = cuda.threadIdx.x, cuda.threadIdx.y
    for j in range(y_, 32, 8):
        if down + j < x.shape[0] and across + x_ < x.shape[1]:
            tile[j, x_] = x[down + j, across + x_]
    cuda.syncthreads()
    for j in range(y_, 32, 8):
        if across + j < x.shape[1] and down + x_ < x.shape[0]:
            out[across + j, down + x_] = tile[x_, j]
    # end


@my_transpose.checked_by
def _(_, trial):
    for rows, columns in ((32, 32), (5, 40), (33, 64), (70, 31)):
        x = wavy(rows, columns)
        grid = (-(-columns // 32), -(-rows // 32))
        own = "reading is guarded by R and C as x has them, writing the other way round."
        hints = {"uninitialised": own, "out_of_bounds": own}
        ran = launch(trial, grid, (32, 8), x=x, out=nan(columns, rows), hints=hints)
        filled(trial, ran["out"], f"{own} A thread has four elements.")
        turned = "the block that reads tile (R, C) writes tile (C, R)."
        trial.close(ran["out"], x.T, f"{trial.last_call} is not the transpose", turned)
        par = sectors_of(my_transpose.function, grid, (32, 8), x, nan(columns, rows))
        rowwise = "lanes of a warp must be neighbours in a row of x, and in a row of out."
        within(trial, "sectors", ran.report.sectors, par, rowwise)
        padded = "a column of the tile lies in one bank: make its rows one element longer."
        within(trial, "bank conflicts", ran.report.conflicts, 0, padded)


@exercise(
    notebook=NOTEBOOK,
    minutes=15,
    difficulty=3,
    hints=(
        "When a larger value comes, the sum so far was made with another peak: multiply it by "
        "exp(old peak - new peak), then add 1.",
        "Two lanes with (peak, total) merge in the same way: top is the larger peak, and each "
        "total is multiplied by exp(its peak - top). cuda.shfl_xor_sync(0xFFFFFFFF, value, 16) is "
        "the value of the lane 16 away; then 8, 4, 2, 1.",
        "A lane that has seen nothing has peak -inf, and -inf - (-inf) is NaN: when both peaks are "
        "-inf, leave the total as it is.",
    ),
)
def my_online_softmax(x, out):
    """Softmax of each row, with two reads of x: one for maximum and sum together, one at the end.

    x, out: (rows, columns) float32. A block of 32 threads takes the row cuda.blockIdx.x. Entries
    may be -inf, though not a whole row, and a row may be shorter than 32.
    """
    row, lane = cuda.blockIdx.x, cuda.threadIdx.x
    peak = float32(-math.inf)  # the largest value that this lane has seen
    total = float32(0)  # the sum of exp(value - peak) over these
    # solution:
    for j in range(lane, x.shape[1], 32):
        value = x[row, j]
        if value > peak:
            total = total * math.exp(peak - value) + float32(1)
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
    # end
    for j in range(lane, x.shape[1], 32):
        out[row, j] = math.exp(x[row, j] - peak) / total


@my_online_softmax.checked_by
def _(_, trial):
    plain = ((2, 64, ""), (1, 3, ""), (3, 100, ""))
    for rows, columns, kind in (*plain, (2, 65, "up"), (3, 70, "inf"), (2, 40, "large")):
        x = wavy(rows, columns)
        x = x.sort(1).values if kind == "up" else x + 1000 * (kind == "large")
        if kind == "inf":
            x[:, :37] = -math.inf
        ran = launch(trial, rows, 32, x=x, out=nan(rows, columns))
        got, want = ran["out"], F.softmax(x, 1)
        few = "a lane without a value has the peak -inf, and -inf - (-inf) is NaN."
        few = "exp(1000) is infinite: subtract the peak." if kind == "large" else few
        filled(trial, got, few)
        right = torch.allclose(got, want, 1e-4, 1e-6)
        trial.require(right, f"{trial.last_call} is not the softmax", _why(x, got))
        twice = "one loop finds maximum and sum together: x is read twice, not three times."
        within(trial, "bytes read", ran.report.reads, 8 * x.numel(), twice)
        within(trial, "float64 operations", ran.report.promotions, 0, WIDE)


def _why(x, got):
    """The hint for a wrong softmax: have all elements of a row been divided by the same sum?"""
    for row, result in zip(x, got, strict=True):
        seen = row > -math.inf
        divisor = (row[seen] - row.max()).exp() / result[seen]
        if bool((divisor - divisor[0]).abs().max() > 1e-3 * divisor.abs().max()):
            return "every lane needs the peak and the sum of the whole row: merge with shfl_xor."
    return (
        "when the peak grows, multiply the old sum by exp(old peak - new peak). That goes for two "
        "lanes that merge, too."
    )


@exercise(
    notebook=NOTEBOOK,
    minutes=8,
    difficulty=2,
    hints=(
        "x + b is never stored: it lives in a register between the addition and the GELU.",
        "The thread stays in its column, so the bias can be read once, before the loop over rows.",
        "for r in range(cuda.blockIdx.y, x.shape[0], cuda.gridDim.y): z = x[r, c] + bias; then "
        "float32(0.5) * z * (float32(1) + math.erf(z * float32(1 / √2))).",
    ),
)
def my_bias_gelu(x, b, out):
    """out = gelu(x + b), to a byte: x read once, b once by each thread, out written once.

    x, out: (rows, columns) float32; b: (columns,) float32. gelu(z) = z / 2 · (1 + erf(z / √2)).
    Thread c = cuda.grid(1) owns column c (if there is one), and in it the rows cuda.blockIdx.y,
    then every cuda.gridDim.y-th.
    """
    # solution:
    c = cuda.grid(1)
    if c < x.shape[1]:
        bias = b[c]
        for r in range(cuda.blockIdx.y, x.shape[0], cuda.gridDim.y):
            z = x[r, c] + bias
            out[r, c] = float32(0.5) * z * (float32(1) + math.erf(z * float32(0.70710678)))
    # end


@my_bias_gelu.checked_by
def _(_, trial):
    for rows, columns, high in ((1, 64, 1), (7, 96, 2), (9, 33, 4), (13, 70, 3)):
        x, b = wavy(rows, columns), wavy(columns, seed=1)
        grid = (-(-columns // 64), high)
        ran = launch(trial, grid, 64, x=x, b=b, out=nan(rows, columns))
        filled(trial, ran["out"], "each thread does the rows blockIdx.y, blockIdx.y + gridDim.y, …")
        mistakes = [
            (F.gelu(x + b, approximate="tanh"), "that is the tanh approximation: use math.erf."),
            (F.gelu(x) + b, "the bias is added before the GELU."),
            (F.gelu(x), "the bias is missing."),
            (x + b, "the GELU is missing."),
        ]
        text, hint = f"{trial.last_call} is not gelu(x + b)", "z / 2 · (1 + erf(z / √2))."
        trial.close(ran["out"], F.gelu(x + b), text, hint, mistakes)
        n, seen = 4 * rows * columns, 4 * columns * min(rows, high)
        once = "store only the result, once: x + b stays in a register."
        within(trial, "bytes written", ran.report.writes, n, once)
        register = "read b once, before the loop over rows, and nothing back from out."
        within(trial, "bytes read", ran.report.reads, n + seen, register)
        beside = "neighbouring threads take neighbouring columns."
        par = sectors_of(my_bias_gelu.function, grid, 64, x, b, nan(rows, columns))
        within(trial, "sectors", ran.report.sectors, par, beside)
        within(trial, "float64 operations", ran.report.promotions, 0, WIDE)


@exercise(
    notebook=NOTEBOOK,
    minutes=15,
    difficulty=3,
    hints=(
        "The sum over the row is one number for all: each thread adds its share, the tree adds the "
        "64 shares, and after a barrier all read tile[0].",
        "With x̂ = x · rstd: dx = rstd · (dy · w - x̂ · mean(dy · w · x̂)). The mean is over the n "
        "columns, not over the 64 threads.",
        "The factors rstd can wait: mean(dy · w · x̂) = rstd · sum(dy · w · x) / n.",
    ),
)
def my_rms_norm_backward_a(dy, x, w, rstd, dx):
    """The gradient of x through y = x · rstd · w, with rstd = 1 / √(mean(x²) + ε).

    dx = rstd · (dy · w - x̂ · mean(dy · w · x̂)), x̂ = x · rstd, the mean over the row. dy, x, dx:
    (rows, n); w: (n,); rstd: (rows,); all float32. A block of 64 threads takes the row blockIdx.x.
    """
    tile = cuda.shared.array(64, float32)
    row, t, n = cuda.blockIdx.x, cuda.threadIdx.x, x.shape[1]
    # solution:
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
        dx[row, j] = r * (dy[row, j] * w[j] - x[row, j] * r * mean)
    # end


def _norm_case(rows, n):
    dy, x, w = wavy(rows, n), wavy(rows, n, seed=1), wavy(n, seed=2)
    return dy, x, w, (x.square().mean(1) + 1e-6).rsqrt()


@my_rms_norm_backward_a.checked_by
def _(_, trial):
    for rows, n in ((2, 64), (1, 5), (3, 100), (2, 130)):
        dy, x, w, r = _norm_case(rows, n)
        arrays = dict(dy=dy, x=x, w=w, rstd=r, dx=nan(rows, n))
        ran = launch(trial, rows, 64, **arrays)
        filled(trial, ran["dx"], "each thread does the columns t, t + 64, …")
        hat, g, r = x * r[:, None], dy * w, r[:, None]
        mean = (g * hat).mean(1, keepdim=True)
        mistakes = [
            (r * g, "the mean term is missing: rstd depends on x too."),
            (r * (g - hat * mean * n / 64), "the mean is over n columns, not over 64 threads."),
            (r * (g - hat * mean * n), "divide the sum by n."),
            (g - hat * mean, "the factor rstd in front is missing."),
            (r * (g - x * mean), "the mean is multiplied by x̂ = x · rstd."),
            (r * (dy - hat * (dy * hat).mean(1, keepdim=True)), "dy is multiplied by w first."),
        ]
        text = f"{trial.last_call} is not the gradient"
        hint = "dx = rstd · (dy · w - x̂ · mean(dy · w · x̂)), every factor of it."
        trial.close(ran["dx"], r * (g - hat * mean), text, hint, mistakes)
        par = sectors_of(my_rms_norm_backward_a.function, rows, 64, *arrays.values())
        twice = "two passes over dy, x and w are enough, with neighbours in neighbouring threads."
        within(trial, "sectors", ran.report.sectors, par, twice)


@exercise(
    notebook=NOTEBOOK,
    minutes=6,
    difficulty=2,
    hints=(
        "Every row has used the same w[c], so its gradient is a sum over rows.",
        "Add in a register, total = float32(0), and store once at the end.",
    ),
)
def my_rms_norm_backward_b(dy, x, rstd, dw):
    """The gradient of w: dw[c] = sum over rows of dy[r, c] · x[r, c] · rstd[r].

    dy, x: (rows, n); rstd: (rows,); dw: (n,); all float32. Thread c = cuda.grid(1) owns column c,
    if there is one. Par: dy and x are read once, dw is written once.
    """
    # solution:
    c = cuda.grid(1)
    if c < dw.size:
        total = float32(0)
        for r in range(x.shape[0]):
            total += dy[r, c] * x[r, c] * rstd[r]
        dw[c] = total
    # end


@my_rms_norm_backward_b.checked_by
def _(_, trial):
    for rows, n in ((1, 64), (7, 5), (9, 100), (4, 64)):
        dy, x, _, r = _norm_case(rows, n)
        hints = {"uninitialised": "dw holds anything at first: add in a register, then store."}
        ran = launch(trial, -(-n // 64), 64, dy=dy, x=x, rstd=r, dw=nan(n), hints=hints)
        filled(trial, ran["dw"], "thread c stores dw[c], for every column.")
        rows_of = dy * x * r[:, None]
        mistakes = [
            (rows_of[-1], "sum over all rows: that is the last one alone."),
            (rows_of[0], "sum over all rows: that is the first one alone."),
            (rows_of.mean(0), "that is the mean over the rows: a gradient is their sum."),
            ((dy * x).sum(0), "w was multiplied by x · rstd: rstd is missing."),
            (dy.sum(0), "that would be the gradient of a bias."),
        ]
        text = f"{trial.last_call} is not the gradient"
        trial.close(ran["dw"], rows_of.sum(0), text, "sum dy · x · rstd over rows.", mistakes)
        once = "add in a register and store once, after the loop."
        within(trial, "bytes written", ran.report.writes, 4 * n, once)
        within(trial, "bytes read", ran.report.reads, 12 * rows * n, "read dy, x and rstd once.")


@predict(
    notebook=NOTEBOOK,
    minutes=2,
    difficulty=2,
    hints=(
        "Memory moves in sectors of 32 bytes. How far apart are two lanes, in bytes?",
        "Two lanes are one row apart, 4,096 bytes: no two share a sector.",
    ),
    mistakes={
        128: "that is what the lanes ask for, 32 · 4 bytes; what has to move with it?",
        32: "that is the number of sectors.",
        4096: "a cache line is 128 bytes, but what moves is its sectors, 32 bytes each.",
        131072: "whole rows do not move, only the sectors that a lane touches.",
    },
    otherwise="each lane is in a sector of its own; a sector is 32 bytes.",
    because="Each lane uses 4 of the 32 bytes that move for it: 12.5 %.",
)
def my_column():
    """A float32 matrix has 1,024 columns, row after row. The 32 lanes of a warp read one column:
    lane i reads row i. How many bytes move for this one request?
    """
    return emulated(_column, 1, 32, torch.zeros(32, 1024), nan(32)).of("global", "load").moved


def _column(x, out):
    lane = cuda.threadIdx.x
    out[lane] = x[lane, 7]
