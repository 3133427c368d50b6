"""Four planted faults, one for each tool of compute-sanitizer: what a clean verdict is worth.

    out_of_bounds       memcheck    thread n writes behind the n elements of its array
    race                racecheck   a warp reads what the other one writes, with no barrier between
    uninitialised       initcheck   reads memory that nobody has written
    divergent_barrier   synccheck   three quarters of a block meet at a barrier

The emulator finds them as well (tested), but for the third: to it a tensor from outside is written.
"""

import torch

from .jit import jit
from .namespace import cuda, float32

THREADS = 64


@jit
def write_behind(out: "float32"):
    i = cuda.threadIdx.x
    if i <= out.size:  # one too many
        out[i] = float32(1)


@jit
def read_without_barrier(x: "float32", out: "float32"):
    tile = cuda.shared.array(THREADS, float32)
    i = cuda.threadIdx.x
    tile[i] = x[i]
    out[i] = tile[THREADS - 1 - i]


@jit
def copy_unwritten(x: "float32", out: "float32"):
    i = cuda.threadIdx.x
    if i < x.size:
        out[i] = x[i]


@jit
def meet_in_part(x: "float32", out: "float32"):
    tile = cuda.shared.array(THREADS, float32)
    i = cuda.threadIdx.x
    if i < x.size:
        tile[i] = x[i]
        cuda.syncthreads()
        out[i] = tile[x.size - 1 - i]


def out_of_bounds(device: str) -> None:
    write_behind[1, THREADS](torch.zeros(33, device=device))


def race(device: str) -> None:
    x = torch.ones(THREADS, device=device)
    read_without_barrier[1, THREADS](x, torch.zeros_like(x))


def uninitialised(device: str) -> None:
    x = torch.empty(33, device=device)
    copy_unwritten[1, THREADS](x, torch.zeros_like(x))


def divergent_barrier(device: str) -> None:
    x = torch.ones(3 * THREADS // 4, device=device)
    meet_in_part[1, THREADS](x, torch.zeros_like(x))


FAULTS = {f.__name__: f for f in (out_of_bounds, race, uninitialised, divergent_barrier)}
KERNELS = {  # which kernel it is that must be blamed
    "out_of_bounds": write_behind,
    "race": read_without_barrier,
    "uninitialised": copy_unwritten,
    "divergent_barrier": meet_in_part,
}
