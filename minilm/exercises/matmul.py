"""Exercises of notebook 10: matrix products in tiles of 8 × 8, whose rows are whole sectors."""

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from .exercise import exercise, predict
from .launching import emulated, filled, launch, nan, sectors_of, wavy, within
from .memory import WIDE
from .trial import Trial

if TYPE_CHECKING:  # see kernels.py
    from cuda_numba.namespace import cuda, float32

NOTEBOOK = "10_matmul"
RAGGED = "what lies past the end of a row or column counts as 0: put 0 into the tile there."
GUARDS = {
    "out_of_bounds": "the last tiles hang over: guard rows by M, columns by N, and k by K.",
    "uninitialised": RAGGED,
    "race": "a tile is filled by all and read by all: a barrier belongs between the two, each way.",
    "divergent_barrier": "all threads fill the tile, also those without an element of out.",
    "barrier_not_reached": "all threads fill the tile, also those without an element of out.",
}


def _shapes(M, N, K):
    """(a, b, grid) of a product with tiles of 8 × 8."""
    return wavy(M, K), wavy(K, N, seed=1), (-(-N // 8), -(-M // 8))


def _product(trial: Trial, got, a, b) -> None:
    """`got` is a b, or the slip is named."""
    steps, whole = -(-a.shape[1] // 8), a.shape[1] // 8 * 8
    mistakes = [
        (a[:, :whole] @ b[:whole], "the last tile along k has fewer than 8 columns, not none."),
        (a[:, :8] @ b[:8], "that is the first tile along k alone: walk over all of them."),
        (steps * a[:, :8] @ b[:8], "that is the first tile along k in every step: change over."),
    ]
    trial.close(got, a @ b, f"{trial.last_call} is not a b", RAGGED, mistakes)


def _tile_bytes(M, N, K) -> int:
    """The bytes that tiles of 8 × 8 read: a once per tile column of out, b once per tile row."""
    return 4 * (M * K * -(-N // 8) + K * N * -(-M // 8))


@predict(
    notebook=NOTEBOOK,
    minutes=3,
    difficulty=2,
    hints=(
        "One block makes an 8 × 8 tile of the product. Which part of a and of b does it need?",
        "A strip of 8 rows of a and a strip of 8 columns of b: 2 · 8 · 32 numbers a block.",
    ),
    mistakes={
        8192: "that would be each matrix once; but each strip is read by several blocks.",
        262144: "that is without tiles, 2 · N³ · 4: here 8 threads share what one has loaded.",
        4096: "each number of a serves 8 columns, each of b 8 rows: an eighth, not a 64th.",
    },
    otherwise="each of the (N / T)² blocks reads 2 · N · T numbers of 4 bytes.",
    because="2 N³ · 4 / T: 2 N³ FLOPs make T / 4 per byte, 2 here and 32 with T = 128.",
)
def my_tile_bytes():
    """The product of two 32 × 32 matrices of float32 is made in tiles of 8 × 8: a block loads 8 × 8
    tiles of a and of b into shared memory, one pair after the other, and each of its 64 threads
    sums one element. How many bytes does the launch read from global memory?
    """
    a, b, grid = _shapes(32, 32, 32)
    return emulated(my_tiled.function, grid, (8, 8), a, b, nan(32, 32)).reads


@exercise(
    notebook=NOTEBOOK,
    minutes=15,
    difficulty=2,
    hints=(
        "For each step along k: all 64 threads load one number of a and one of b, wait, add up 8 "
        "products from the tiles, wait.",
        "Thread (x, y) loads a[row, start + x] and b[start + y, column]; where one of these does "
        "not exist, the tile gets 0.",
        "Two barriers a step: no one multiplies before all have loaded, no one loads the next "
        "tile before all have multiplied.",
    ),
)
def my_tiled(a, b, out):
    """out = a b through shared memory: every number that a block loads serves 8 threads.

    a: (M, K), b: (K, N), out: (M, N), all float32, any sizes. The grid is (⌈N / 8⌉, ⌈M / 8⌉) blocks
    of (8, 8) threads, a thread for each element of out. Par: M K ⌈N / 8⌉ + K N ⌈M / 8⌉ numbers.
    """
    left = cuda.shared.array((8, 8), float32)  # of a
    right = cuda.shared.array((8, 8), float32)  # of b
    x, y = cuda.threadIdx.x, cuda.threadIdx.y
    row, column = cuda.blockIdx.y * 8 + y, cuda.blockIdx.x * 8 + x
    # solution:
    total = float32(0)
    for start in range(0, a.shape[1], 8):
        left[y, x] = float32(0)
        right[y, x] = float32(0)
        if row < a.shape[0] and start + x < a.shape[1]:
            left[y, x] = a[row, start + x]
        if start + y < b.shape[0] and column < b.shape[1]:
            right[y, x] = b[start + y, column]
        cuda.syncthreads()
        for k in range(8):
            total += left[y, k] * right[k, x]
        cuda.syncthreads()
    if row < out.shape[0] and column < out.shape[1]:
        out[row, column] = total
    # end


@my_tiled.checked_by
def _(_, trial):
    for M, N, K in ((8, 8, 8), (3, 17, 8), (9, 5, 20), (18, 11, 7)):
        a, b, grid = _shapes(M, N, K)
        ran = launch(trial, grid, (8, 8), a=a, b=b, out=nan(M, N), hints=GUARDS)
        filled(trial, ran["out"], "thread (x, y) stores out[row, column], if there is one.")
        _product(trial, ran["out"], a, b)
        shared = "multiply from the tiles: what a thread loads, 7 others need as well."
        within(trial, "bytes read", ran.report.reads, _tile_bytes(M, N, K), shared)
        within(trial, "bytes written", ran.report.writes, 4 * M * N, "sum in a register.")
        beside = "neighbours in x load neighbours in a row, of a and of b."
        par = sectors_of(my_tiled.function, grid, (8, 8), a, b, nan(M, N))
        within(trial, "sectors", ran.report.sectors, par, beside)


@exercise(
    notebook=NOTEBOOK,
    minutes=15,
    difficulty=3,
    hints=(
        "Lane i multiplies with row i of the tile: in step k the 32 lanes read a column of it.",
        "Keep tile[n, k] in another place of its row n, in a place that depends on n as well.",
        "Column k ^ n (exclusive or) is a place of its own for each k, and for fixed k the 32 rows "
        "use 32 different columns. Write there and read there.",
    ),
)
def my_swizzle(x, w, out):
    """out = x wᵀ, a linear layer, without a bank conflict and without a byte of padding.

    x: (M, K), w: (N, K), out: (M, N), all float32. The grid is (⌈N / 32⌉, ⌈M / 4⌉) blocks of
    (32, 4) threads, a thread for each element of out. What is missing in each step: fill `tile`,
    meet, add up 32 products. w is read along its rows, and neither array of shared memory grows.
    """
    tile = cuda.shared.array((32, 32), float32)  # 32 rows of w, 32 columns
    some = cuda.shared.array((4, 32), float32)  # of x
    i, j = cuda.threadIdx.x, cuda.threadIdx.y
    row, column = cuda.blockIdx.y * 4 + j, cuda.blockIdx.x * 32 + i
    total = float32(0)
    for start in range(0, x.shape[1], 32):
        inside = start + i < x.shape[1]
        some[j, i] = x[row, start + i] if inside and row < x.shape[0] else float32(0)
        # solution:
        for r in range(j, 32, 4):
            n = cuda.blockIdx.x * 32 + r
            tile[r, i ^ r] = w[n, start + i] if inside and n < w.shape[0] else float32(0)
        cuda.syncthreads()
        for k in range(32):
            total += some[j, k] * tile[i, k ^ i]
        # end
        cuda.syncthreads()
    if row < out.shape[0] and column < out.shape[1]:
        out[row, column] = total


@my_swizzle.checked_by
def _(_, trial):
    for M, N, K in ((4, 32, 32), (3, 37, 33), (5, 7, 50)):
        x, w, grid = wavy(M, K), wavy(N, K, seed=1), (-(-N // 32), -(-M // 4))
        ran = launch(trial, grid, (32, 4), x=x, w=w, out=nan(M, N), hints=GUARDS)
        same = (
            "what is stored in place p(r, k) of row r must be read from p(r, k); past the end: 0."
        )
        filled(trial, ran["out"], same)
        trial.close(ran["out"], x @ w.T, f"{trial.last_call} is not x wᵀ", same)
        longer = "no padding: permute within a row of 32 instead."
        within(trial, "bytes of shared memory", ran.report.shared_bytes, 4 * 36 * 32, longer)
        par = sectors_of(my_swizzle.function, grid, (32, 4), x, w, nan(M, N))
        along = "the lanes of a warp load neighbours in a row of w; only the tile is permuted."
        within(trial, "sectors", ran.report.sectors, par, along)
        bank = "lane i reads row i: where must element k of row i be, so that all banks differ?"
        within(trial, "bank conflicts", ran.report.conflicts, 0, bank)


@exercise(
    notebook=NOTEBOOK,
    minutes=18,
    difficulty=3,
    hints=(
        "The first tile is loaded before the loop. In the loop: load the next tile into the buffer "
        "that is not in use, multiply from the other, one barrier, change over.",
        "Why is one barrier enough? The buffer that is filled in this step was last read in the "
        "step before, and between the two all have met.",
        "left[1 - now, y, x] = … for start + 8, if there is one; then the 8 products from "
        "left[now] and right[now]; cuda.syncthreads(); now = 1 - now.",
    ),
)
def my_double_buffer(a, b, out):
    """out = a b with two tiles each: the next is on its way while this one is multiplied.

    a: (M, K), b: (K, N), out: (M, N), all float32. The grid is (⌈N / 8⌉, ⌈M / 8⌉) blocks of (8, 8)
    threads. In every step the threads first ask for the next tile, then multiply, then meet at
    the only barrier of the step; one more barrier stands before the first step.
    """
    left = cuda.shared.array((2, 8, 8), float32)  # of a
    right = cuda.shared.array((2, 8, 8), float32)  # of b
    x, y = cuda.threadIdx.x, cuda.threadIdx.y
    row, column = cuda.blockIdx.y * 8 + y, cuda.blockIdx.x * 8 + x
    M, N, K = a.shape[0], b.shape[1], a.shape[1]
    total = float32(0)
    # solution:
    left[0, y, x] = a[row, x] if row < M and x < K else float32(0)
    right[0, y, x] = b[y, column] if y < K and column < N else float32(0)
    cuda.syncthreads()
    now = 0
    for start in range(8, K + 8, 8):
        if start < K:
            k = start + x
            left[1 - now, y, x] = a[row, k] if row < M and k < K else float32(0)
            k = start + y
            right[1 - now, y, x] = b[k, column] if k < K and column < N else float32(0)
        for k in range(8):
            total += left[now, y, k] * right[now, k, x]
        cuda.syncthreads()
        now = 1 - now
    # end
    if row < M and column < N:
        out[row, column] = total


@my_double_buffer.checked_by
def _(_, trial):
    hints = GUARDS | {"race": "fill one buffer, read the other, and meet before you change over."}
    for M, N, K in ((8, 8, 8), (5, 9, 24), (9, 7, 19), (3, 8, 33)):
        a, b, grid = _shapes(M, N, K)
        ran = launch(trial, grid, (8, 8), a=a, b=b, out=nan(M, N), hints=hints)
        filled(trial, ran["out"], "leave the last lines as they are: they store the sum.")
        _product(trial, ran["out"], a, b)
        within(trial, "bytes read", ran.report.reads, _tile_bytes(M, N, K), "load a tile once.")
        within(trial, "bytes of shared memory", ran.report.shared_bytes, 1024, "two buffers do.")
        meet = "with two buffers one barrier per step is enough, and one before the first step."
        par = grid[0] * grid[1] * (-(-K // 8) + 1)
        within(trial, "barriers", ran.report.barriers, par, meet)
        late = f"{trial.last_call} loads the next tile when it has multiplied this one"
        early = "ask for the next tile first: its numbers need time to arrive."
        trial.require(_asks_first(ran.report.trace), late, early)


def _asks_first(trace) -> bool:
    """Whether, between two barriers, the first load from global memory is before the products."""
    spaces = {}  # between which barriers → the spaces that thread 0 loads from, in order
    for block, thread, epoch, _, _, site, *_ in trace.accesses.tolist():
        if block == thread == 0 and trace.sites[site].kind == "load":
            spaces.setdefault(epoch, []).append(trace.sites[site].space)
    return not any(s[0] == "shared" and "global" in s for s in spaces.values())


@exercise(
    notebook=NOTEBOOK,
    minutes=8,
    difficulty=2,
    hints=(
        "`total` is still in a register: add the bias, store z, and make the GELU of the register.",
        "value = total + bias[column]; z[row, column] = value; then float32(0.5) * value * "
        "(float32(1) + math.erf(value * float32(0.70710678))).",
    ),
)
def my_epilogue(a, b, bias, z, out):
    """out = gelu(z), z = a b + bias, in the kernel of the product: z is stored, never read back.

    a: (M, K), b: (K, N), bias: (N,), z, out: (M, N), all float32. The backward pass will want z.
    gelu(z) = z / 2 · (1 + erf(z / √2)). Blocks of (8, 8) threads, as before; the product is done.
    Par: to the bytes of the product, each thread with an element adds one number read, two written.
    """
    left = cuda.shared.array((8, 8), float32)
    right = cuda.shared.array((8, 8), float32)
    x, y = cuda.threadIdx.x, cuda.threadIdx.y
    row, column = cuda.blockIdx.y * 8 + y, cuda.blockIdx.x * 8 + x
    M, N, K = a.shape[0], b.shape[1], a.shape[1]
    total = float32(0)
    for start in range(0, K, 8):
        left[y, x] = a[row, start + x] if row < M and start + x < K else float32(0)
        right[y, x] = b[start + y, column] if start + y < K and column < N else float32(0)
        cuda.syncthreads()
        for k in range(8):
            total += left[y, k] * right[k, x]
        cuda.syncthreads()
    # solution:
    if row < M and column < N:
        value = total + bias[column]
        z[row, column] = value
        gate = float32(0.5) * (float32(1) + math.erf(value * float32(0.70710678)))
        out[row, column] = value * gate
    # end


@my_epilogue.checked_by
def _(_, trial):
    for M, N, K in ((8, 8, 8), (3, 17, 9), (10, 5, 16)):
        a, b, grid = _shapes(M, N, K)
        bias, product, back = wavy(N, seed=2), a @ b, "store the value: z holds anything at first."
        arrays = dict(a=a, b=b, bias=bias, z=nan(M, N), out=nan(M, N))
        ran = launch(trial, grid, (8, 8), **arrays, hints=GUARDS | {"uninitialised": back})
        filled(trial, ran["z"], "z is a result as well: store a b + bias in z.")
        filled(trial, ran["out"], "store gelu(a b + bias) in out.")
        want = product + bias
        mistakes = [(product, "z is what goes into the GELU, so the bias is in it.")]
        trial.close(ran["z"], want, f"{trial.last_call}: z is not a b + bias", "add it.", mistakes)
        mistakes = [
            (F.gelu(want, approximate="tanh"), "that is the tanh approximation: use math.erf."),
            (F.gelu(product) + bias, "the bias is added before the GELU."),
            (F.gelu(product), "the bias is missing."),
            (want, "the GELU is missing."),
        ]
        text, hint = f"{trial.last_call}: out is not gelu(z)", "z / 2 · (1 + erf(z / √2))."
        trial.close(ran["out"], F.gelu(want), text, hint, mistakes)
        register = "z is in a register: read nothing back, and the bias once."
        within(trial, "bytes read", ran.report.reads, _tile_bytes(M, N, K) + 4 * M * N, register)
        within(trial, "bytes written", ran.report.writes, 8 * M * N, "store z and out once each.")
        within(trial, "float64 operations", ran.report.promotions, 0, WIDE)


@predict(
    notebook=NOTEBOOK,
    minutes=3,
    difficulty=3,
    hints=(
        "lane = 4 · g + t. Rows g and g + 8 belong to the same lanes, in other registers.",
        "In a row, four lanes hold two neighbours each of columns 0 to 7, and again of 8 to 15.",
    ),
    mistakes={
        46: "there are 32 lanes: row g + 8 is with the lanes of row g.",
        17: "a register holds two neighbours: columns 4 and 5 are with t = 2.",
        18: "columns 8 to 15 are with the same four lanes as columns 0 to 7.",
        29: "four lanes share a row, not eight: lane = 4 · g + t.",
    },
    otherwise="lane = 4 · (row mod 8) + (column mod 8) // 2.",
    because="Row 11 is g = 3, column 13 is t = 2: lane 4 · 3 + 2, register 3, its high half.",
)
def my_fragment():
    """The tensor-core instruction mma m16n8k16 takes A, 16 × 16 bf16 numbers, from the registers of
    a warp: 8 numbers a lane. Which lane (0 to 31) must hold A[11, 13], rows and columns from 0?
    """
    from cuda_numba import ptx

    places = torch.tensor(ptx.mma_layout("m16n8k16_bf16")["a"])  # lane, register, half, (row, col)
    return int((places == torch.tensor([11, 13])).all(-1).nonzero()[0, 0])
