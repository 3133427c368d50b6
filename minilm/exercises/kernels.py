"""Exercises of notebook 08: the first kernels, launched on the emulator."""

from typing import TYPE_CHECKING

from .exercise import exercise, predict
from .launching import emulated, filled, launch, nan, wavy, within

if (
    TYPE_CHECKING
):  # Numba takes a second to import; `launching` hands these over with the first check
    from cuda_numba.namespace import cuda, float32

NOTEBOOK = "08_first_kernel"


@exercise(
    notebook=NOTEBOOK,
    minutes=5,
    difficulty=1,
    hints=(
        "i = cuda.grid(1) is the number of this thread among all threads of the launch.",
        "Only threads with i < out.size have an element; the others must not touch memory.",
    ),
)
def my_guard(a, b, out):
    """out[i] = a[i] + b[i], one thread for each element.

    a, b, out: (n,) float32. The launch has at least n threads, and often more.
    """
    # solution:
    i = cuda.grid(1)
    if i < out.size:
        out[i] = a[i] + b[i]
    # end


@my_guard.checked_by
def _(_, trial):
    every = "cuda.grid(1) counts through all blocks, cuda.threadIdx.x within one only."
    hints = {
        "uninitialised": "out holds anything at first: store the sum, do not add to it.",
        "race": f"several threads take one element: {every}",
    }
    for n, blocks, threads in ((64, 2, 32), (1, 1, 32), (33, 2, 32), (100, 4, 32), (257, 5, 64)):
        a, b = wavy(n), wavy(n, seed=1)
        ran = launch(trial, blocks, threads, a=a, b=b, out=nan(n), hints=hints)
        filled(trial, ran["out"], every)
        mistakes = [(a - b, "that is a - b."), (a, "that is a."), (b, "that is b.")]
        trial.close(
            ran["out"], a + b, f"{trial.last_call} is not a + b", "add a[i], b[i].", mistakes
        )
        hint = "each element is written by one thread, once."
        within(trial, "bytes written", ran.report.writes, 4 * n, hint)


@exercise(
    notebook=NOTEBOOK,
    minutes=6,
    difficulty=2,
    hints=(
        "Start at cuda.grid(1), and go on by the number of all threads, cuda.gridsize(1).",
        "for i in range(cuda.grid(1), out.size, cuda.gridsize(1)): then no guard is needed.",
    ),
)
def my_grid_stride(x, out):
    """out[i] = -x[i] for any n, however many threads there are.

    x, out: (n,) float32. Each element is done by one thread; neighbouring threads take
    neighbouring elements, so that a warp reads whole sectors.
    """
    # solution:
    for i in range(cuda.grid(1), out.size, cuda.gridsize(1)):
        out[i] = -x[i]
    # end


@my_grid_stride.checked_by
def _(_, trial):
    for n, blocks, threads in ((64, 2, 32), (7, 1, 32), (33, 1, 32), (517, 3, 32), (1000, 2, 64)):
        x = wavy(n)
        hints = {"race": "two threads take the same element: step by cuda.gridsize(1)."}
        ran = launch(trial, blocks, threads, x=x, out=nan(n), hints=hints)
        filled(trial, ran["out"], "go on by the number of all threads until n is reached.")
        trial.close(ran["out"], -x, f"{trial.last_call} is not -x", "store -x[i] in out[i].")
        once = "several threads do the same element: step by cuda.gridsize(1)."
        within(trial, "bytes written", ran.report.writes, 4 * n, once)
        side = "neighbouring threads take neighbouring elements: a step is the whole grid."
        within(trial, "sectors", ran.report.sectors, 2 * -(-n // 8), side)


@exercise(
    notebook=NOTEBOOK,
    kind="repair",
    minutes=8,
    difficulty=2,
    hints=(
        "Take two threads of different warps: what does one read that the other has written?",
        "tile[t + step] was written by another thread, in the line before or in the last round.",
        "A barrier after the first store, and one at the end of each round, outside the `if`.",
    ),
)
def my_race(x, out):
    """Each block of 64 threads adds its 64 elements (the last block: what is left) into out[block].

    x: (n,) float32, out: (blocks,) float32. The sum is a tree: 32 threads add what the other half
    holds, then 16, 8, … It has a race, and on some GPUs it works nearly always.
    """
    tile = cuda.shared.array(64, float32)
    t = cuda.threadIdx.x
    i = cuda.grid(1)
    tile[t] = x[i] if i < x.size else float32(0)
    # given:
    # step = 32
    # while step > 0:
    #     if t < step:
    #         tile[t] += tile[t + step]
    #     step //= 2
    # solution:
    cuda.syncthreads()
    step = 32
    while step > 0:
        if t < step:
            tile[t] += tile[t + step]
        cuda.syncthreads()
        step //= 2
    # end
    if t == 0:
        out[cuda.blockIdx.x] = tile[0]


@my_race.checked_by
def _(_, trial):
    for n in (64, 1, 33, 100, 300):
        x, blocks = wavy(n), -(-n // 64)
        ran = launch(trial, blocks, 64, x=x, out=nan(blocks))
        filled(trial, ran["out"], "thread 0 of each block stores its sum.")
        padded = x.new_zeros(64 * blocks)
        padded[:n] = x
        want = padded.view(blocks, 64).sum(1)
        trial.close(ran["out"], want, f"{trial.last_call} is not the sum", "add all 64 elements.")
        shared = ran.report.of("shared").requests > 0
        tree = "keep the tree: the point is to add in shared memory, in step."
        trial.require(shared, f"{trial.last_call} does not use its tile", tree)


@exercise(
    notebook=NOTEBOOK,
    minutes=8,
    difficulty=2,
    hints=(
        "Each thread puts its element into the tile; when all have done so, each takes another.",
        "The last block may have fewer elements: count = min(64, x.size - start).",
        "tile[t] = x[start + t] if t < count, then the barrier, then out[start + t] = "
        "tile[count - 1 - t] if t < count.",
    ),
)
def my_reverse(x, out):
    """Each block of 64 threads turns its 64 elements round, through a tile of shared memory.

    x, out: (n,) float32. Block b owns x[64 b] to x[64 b + 63]; the last block owns what is left,
    and turns that round.
    """
    tile = cuda.shared.array(64, float32)
    # solution:
    t = cuda.threadIdx.x
    start = cuda.blockIdx.x * 64
    count = min(64, x.size - start)
    if t < count:
        tile[t] = x[start + t]
    cuda.syncthreads()
    if t < count:
        out[start + t] = tile[count - 1 - t]
    # end


@my_reverse.checked_by
def _(_, trial):
    for n in (64, 128, 1, 33, 100, 257):
        x = wavy(n)
        hints = {"uninitialised": "the last block has fewer elements: turn round only those."}
        ran = launch(trial, -(-n // 64), 64, x=x, out=nan(n), hints=hints)
        parts = x.split(64)
        want = x.new_empty(0).new_tensor([v for part in parts for v in part.flip(0).tolist()])
        filled(trial, ran["out"], "each thread with an element stores one.")
        own = "block b turns round its own 64 elements, from 64 b on."
        trial.close(ran["out"], want, f"{trial.last_call} is not turned round", own)
        used = ran.report.of("shared", "store").requests and ran.report.of("shared").requests > 1
        through = "this time take the way through `tile`: it is what the next notebook builds on."
        trial.require(bool(used), f"{trial.last_call} does not go through the tile", through)


@predict(
    notebook=NOTEBOOK,
    minutes=2,
    difficulty=2,
    hints=(
        "1,000 is not a multiple of 256: 4 blocks, 1,024 threads. Which have no element?",
        "A warp is 32 neighbouring threads; threads 992 to 1,023 are the last.",
    ),
    mistakes={
        24: "that is how many threads have no element; how many warps are they in?",
        4: "that is the number of blocks.",
        8: "that is the warps of the last block; in most of them all 32 threads have an element.",
        32: "that is all warps; where all 32 answer the guard alike, nothing parts.",
    },
    otherwise="which warps hold both threads with an element and threads without?",
    because="Only the warp across the end takes both ways: the guard costs next to nothing.",
)
def my_parted():
    """A vector add of 1,000 elements in blocks of 256 threads, guarded by `if i < out.size`.
    In how many warps do the threads not agree about the guard?
    """
    a, b, out = (wavy(1000, seed=seed) for seed in range(3))
    report = emulated(my_guard.function, 4, 256, a, b, out)
    return report.parting.divergent
