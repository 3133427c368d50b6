"""Planted faults for the tools of compute-sanitizer: what a clean verdict is worth.

    out_of_bounds       memcheck    thread n writes behind the n elements of its array
    race                racecheck   a warp reads what the other one writes, with no barrier between
    uninitialised       initcheck   reads memory that nobody has written
    divergent_barrier   synccheck   half of a warp comes to a barrier, the other half passes by

Each must be found. Of three more it is only recorded whether synccheck finds them:

    two_barriers        the halves of a warp meet, but at barriers in two places
    early_exit          the threads that do not come to a barrier have ended: a GPU counts those as
                        arrived, so that on an H100 nothing was reported
    wrong_mask          lane 16 calls syncwarp with a mask of lanes 0 to 15

The emulator finds all of them (tested), but for `uninitialised`: to it a tensor from outside is
written. Source: Compute Sanitizer, "Synccheck tool" ("Divergent thread(s) in warp", "Invalid
arguments").
"""

import torch

from .jit import jit
from .namespace import cuda, float32

THREADS = 64
MET = 3 * THREADS // 4  # threads that come to the barrier: a warp and a half


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
    """The threads that pass by have something to do afterwards: none has ended."""
    tile = cuda.shared.array(THREADS, float32)
    i = cuda.threadIdx.x
    tile[i] = float32(0)
    if i < MET:
        tile[i] = x[i]
        cuda.syncthreads()
    out[i] = tile[i]


@jit
def meet_apart(x: "float32", out: "float32"):
    """Each thread comes to one barrier; the stores around them keep the two apart."""
    tile = cuda.shared.array(THREADS, float32)
    i = cuda.threadIdx.x
    if i < MET:
        tile[i] = x[i]
        cuda.syncthreads()
        out[i] = tile[THREADS - 1 - i]
    else:
        tile[i] = float32(0)
        cuda.syncthreads()
        out[i] = tile[i - MET]


@jit
def leave_early(x: "float32", out: "float32"):
    tile = cuda.shared.array(THREADS, float32)
    i = cuda.threadIdx.x
    if i < MET:
        tile[i] = x[i]
        cuda.syncthreads()
        out[i] = tile[MET - 1 - i]


@jit
def sync_unnamed(x: "float32", out: "float32"):
    """One warp. The mask is known only when the kernel runs, and so in a register for the tool."""
    tile = cuda.shared.array(32, float32)
    i = cuda.threadIdx.x
    mask = cuda.ballot_sync(0xFFFFFFFF, x[i] < 16)
    if i <= 16:  # one too many
        tile[i] = x[i]
        cuda.syncwarp(mask)
        out[i] = tile[16 - i]


def out_of_bounds(device: str) -> None:
    write_behind[1, THREADS](torch.zeros(33, device=device))


def race(device: str) -> None:
    _launch(read_without_barrier, torch.ones(THREADS, device=device))


def uninitialised(device: str) -> None:
    _launch(copy_unwritten, torch.empty(33, device=device))


def divergent_barrier(device: str) -> None:
    _launch(meet_in_part, torch.ones(THREADS, device=device))


def two_barriers(device: str) -> None:
    _launch(meet_apart, torch.ones(THREADS, device=device))


def early_exit(device: str) -> None:
    _launch(leave_early, torch.ones(THREADS, device=device))


def wrong_mask(device: str) -> None:
    x = torch.arange(32.0, device=device)
    sync_unnamed[1, 32](x, torch.zeros_like(x))


def _launch(kernel, x: torch.Tensor) -> None:
    kernel[1, THREADS](x, torch.zeros_like(x))


FAULTS = {
    f.__name__: f
    for f in (
        *(out_of_bounds, race, uninitialised, divergent_barrier),
        *(two_barriers, early_exit, wrong_mask),
    )
}
KERNELS = {  # which kernel it is that must be blamed
    "out_of_bounds": write_behind,
    "race": read_without_barrier,
    "uninitialised": copy_unwritten,
    "divergent_barrier": meet_in_part,
    "two_barriers": meet_apart,
    "early_exit": leave_early,
    "wrong_mask": sync_unnamed,
}
