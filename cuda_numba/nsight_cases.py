"""Launches whose memory traffic is counted twice, by the emulator and by Nsight Compute.

    python -m cuda_numba.nsight_cases [--part 0/4]     what `cuda_numba.nsight` profiles

One kernel for each way in which requests become sectors and wavefronts, and kernels of the package.
Every launch is made once before cudaProfilerStart, which compiles and loads its kernel, and once
after it. With --part only every n-th one is, from the i-th on, and no profiler is asked for.
"""

import argparse
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from . import ptx
from .embedding import embedding_kernel
from .jit import Kernel, jit
from .namespace import cuda, float32, int32, uint32
from .reduction import reduce_kernel
from .reduction_tree import sum_atomic, sum_conflicts, sum_sequential, sum_shuffle
from .softmax_rows import FORWARD, forward_kernel, team_of

N = 512  # threads and elements of the copies: 16 warps
TILE = 32  # rows and columns of the transposed tile, lanes of a warp
WORDS = TILE * TILE  # Numba wants the size of a shared array by one name


# ---- global memory


@jit
def copy_apart(x: "float32", y: "float32", step: "int32", first: "int32"):
    i = cuda.grid(1)
    y[i] = x[i * step + first]


@jit
def multiply_add(a: "float32", x: "float32", y: "float32"):
    """y += a x for as many threads as there are elements: the last warp is not full."""
    i = cuda.grid(1)
    if i < y.size:
        y[i] = a * x[i] + y[i]


# ---- shared memory


@functools.cache
def transpose_kernel(padding: int):
    COLUMNS = TILE + padding

    @jit
    def transpose_tile(x: "float32", y: "float32"):
        tile = cuda.shared.array((TILE, COLUMNS), float32)
        column, row = cuda.threadIdx.x, cuda.threadIdx.y
        tile[row, column] = x[TILE * row + column]
        cuda.syncthreads()
        y[TILE * row + column] = tile[column, row]

    return transpose_tile


@functools.cache
def load_kernel(nbytes: int, step: int, share: int = 1):
    """A warp loads `nbytes` a lane; lane i those from word (i // share) · step on."""

    @jit
    def load_shared(x: "uint32", y: "uint32"):
        tile = cuda.shared.array(WORDS, uint32, alignment=16)
        lane = cuda.threadIdx.x
        for k in range(TILE):
            tile[TILE * k + lane] = x[TILE * k + lane]
        cuda.syncwarp()
        place = int32((lane // share) * step)
        if nbytes == 16:
            a, b, c, d = ptx.load_128(tile, place)
            y[lane] = a ^ b ^ c ^ d
        elif nbytes == 8:
            a, b = ptx.load_64(tile, place)
            y[lane] = a ^ b
        else:
            y[lane] = tile[place]

    return load_shared


@functools.cache
def store_kernel(nbytes: int, step: int):
    """A warp stores `nbytes` a lane, lane i from word i · step on, and reads one word a lane."""

    @jit
    def store_shared(x: "uint32", y: "uint32"):
        tile = cuda.shared.array(WORDS, uint32, alignment=16)
        lane = cuda.threadIdx.x
        word = x[lane]
        place = int32(lane * step)
        if nbytes == 16:
            ptx.store_128(tile, place, word, word, word, word)
        elif nbytes == 8:
            ptx.store_64(tile, place, word, word)
        else:
            tile[place] = word
        cuda.syncwarp()
        y[lane] = tile[place]

    return store_shared


@functools.cache
def matrix_kernel(swizzled: bool):
    """ldmatrix of four 8 × 8 matrices of 16-bit numbers, out of rows of 128 bytes.

    Row r of a matrix lies in row r of the tile; swizzled: its 16-byte piece p is at p ^ (r mod 8).
    """

    @jit
    def load_matrices(x: "uint32", y: "uint32"):
        tile = cuda.shared.array(WORDS, uint32, alignment=128)
        lane = cuda.threadIdx.x
        for k in range(TILE):
            tile[TILE * k + lane] = x[TILE * k + lane]
        cuda.syncwarp()
        piece = lane & 7 if swizzled else 0
        at = ptx.shared_address(tile) + uint32(128 * lane + 16 * piece)
        a, b, c, d = ptx.ldmatrix_x4(uint32(at))
        y[lane] = a ^ b ^ c ^ d

    return load_matrices


# ---- the cases


@dataclass(frozen=True)
class Case:
    """A launch. make(device) gives its arguments; flops: float32 operations can be compared.

    apart: why they cannot, although the kernel does nothing but add and multiply.
    """

    name: str
    kernel: Kernel
    grid: int
    block: Any
    make: Callable[[str], tuple]
    flops: bool = False
    apart: str = ""

    def launch(self, device: str) -> Callable[[], None]:
        """The launch, ready to be made: its arguments stay alive."""
        arguments = self.make(device)
        return lambda: self.kernel[self.grid, self.block](*arguments)

    def report(self) -> Any:
        """What the emulator counts."""
        return self.kernel.report(self.grid, self.block, *self.make("cpu"))


def _floats(*sizes: int) -> Callable[[str], tuple]:
    return lambda device: tuple(torch.ones(n, device=device) for n in sizes)


def _words(*sizes: int) -> Callable[[str], tuple]:
    return lambda device: tuple(
        torch.ones(n, dtype=torch.int32).to(device).view(torch.uint32) for n in sizes
    )


def _copy(name: str, step: int, first: int) -> Case:
    def make(device: str) -> tuple:
        return *_floats(N * step + first, N)(device), step, first

    return Case(name, copy_apart, N // 128, 128, make)


def _multiply_add(device: str) -> tuple:
    return 2.0, *_floats(1000, 1000)(device)


def _softmax(device: str) -> tuple:
    x = torch.ones(4, 1024, device=device)
    return x, torch.empty_like(x), 4, 1024


def _gather(device: str) -> tuple:
    ids = (torch.arange(64) * 37 % 50).to(device)
    w = torch.ones(50, 96, device=device)
    return ids, w, torch.empty(64, 96, device=device), 64 * 24, 50


def _reduce(device: str) -> tuple:
    n = 4 * 256 * 4 * 2 + 3
    return torch.ones(n, device=device), torch.empty(2, device=device), n, n // 4


def _shared(bytes_: int, step: int, share: int = 1) -> Case:
    kernel = load_kernel(bytes_, step, share)
    shared = f", {share} lanes each" if share > 1 else ""
    name = f"shared load {bytes_} bytes, {4 * step} apart{shared}"
    return Case(name, kernel, 1, TILE, _words(WORDS, TILE))


def _stored(bytes_: int, step: int) -> Case:
    name = f"shared store {bytes_} bytes, {4 * step} apart"
    return Case(name, store_kernel(bytes_, step), 1, TILE, _words(TILE, TILE))


LAST_SUM = (
    "ptxas moves the addition behind the last shuffle into the branch of thread 0, which alone "
    "uses it"
)
TREE = _floats(500, 2)  # two blocks, of which the second is not full
CASES = [
    _copy("copy", 1, 0),
    _copy("copy, every 2nd", 2, 0),
    _copy("copy, every 33rd", 33, 0),
    _copy("copy, offset by one", 1, 1),
    Case("multiply-add, masked tail", multiply_add, 4, 256, _multiply_add, flops=True),
    Case("transpose", transpose_kernel(0), 1, (32, 32), _floats(1024, 1024)),
    Case("transpose, padded", transpose_kernel(1), 1, (32, 32), _floats(1024, 1024)),
    *(_shared(4, step) for step in (1, 2)),
    *(_shared(8, step) for step in (2, 4)),
    *(_shared(16, step) for step in (4, 8, 32)),
    _shared(16, 4, share=2),
    *(_stored(8, step) for step in (2, 4)),
    *(_stored(16, step) for step in (4, 8)),
    Case("ldmatrix", matrix_kernel(False), 1, TILE, _words(WORDS, TILE)),
    Case("ldmatrix, swizzled", matrix_kernel(True), 1, TILE, _words(WORDS, TILE)),
    Case("sum by atomics", sum_atomic, 2, 256, _floats(500, 1)),
    Case("sum by a tree with conflicts", sum_conflicts, 2, 256, TREE, flops=True),
    Case("sum by a tree", sum_sequential, 2, 256, TREE, flops=True),
    # 5120 operations in the source, 5120 - 512 + 2 on the GPU: of 512 threads two are thread 0.
    Case("sum by shuffles", sum_shuffle, 2, 256, TREE, flops=False, apart=LAST_SUM),
    Case("sum by 16-byte loads", reduce_kernel("float32", 4, "sum"), 2, 256, _reduce),
    Case(
        "softmax by 16-byte accesses",
        forward_kernel("float32", team_of(1024, 4, FORWARD)), 1, 128, _softmax,
    ),
    Case("embedding by 16-byte accesses", embedding_kernel("float32", 24, 4, 4), 2, 256, _gather),
]  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m cuda_numba.nsight_cases")
    parser.add_argument("--part", help="i/n: every n-th launch, from the i-th on, not profiled")
    chosen = parser.parse_args(arguments)
    part, parts = map(int, (chosen.part or "0/1").split("/"))
    made = [case.launch("cuda") for case in CASES[part::parts]]
    for launch in made:
        launch()
    torch.cuda.synchronize()
    if chosen.part:
        return
    torch.cuda.cudart().cudaProfilerStart()
    for launch in made:
        launch()
    torch.cuda.synchronize()
    torch.cuda.cudart().cudaProfilerStop()


if __name__ == "__main__":
    main()
