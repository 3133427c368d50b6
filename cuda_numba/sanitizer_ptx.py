"""Small kernels with the asynchronous instructions that no operation uses yet, for the sanitizer.

    copy_async       cp.async, two stages of shared memory by turns
    matrix_product   ldmatrix and mma.sync, one warp
    copy_boxes       TMA: a box loaded behind an mbarrier, and stored, over the end of the tensor
    warpgroup        wgmma: 64 × 8 of bfloat16, operands in shared memory
    exchange         a cluster of two blocks that write into each other's shared memory

Each case returns what the kernel made, for `sanitizer_cases` to copy to the host.
"""

import torch

from . import ptx
from .jit import jit
from .namespace import cuda, float32, int32, uint32, uint64

THREADS = 64
ROUNDS = 5
BOX = (4, 16)  # of float32: 64 bytes to a row
DEPTH = 64  # of the wgmma product: rows of 128 bytes
# Numba wants the size of a shared array by one name.
STAGES_WORDS = 2 * 4 * THREADS
A_WORDS, B_WORDS = 64 * DEPTH // 2, 8 * DEPTH // 2
MULTIPLY = ptx.wgmma(8, "bfloat16", "shared", DEPTH // 16)
ZEROS, WAIT = ptx.wgmma_zeros(8, "f32"), ptx.wgmma_wait(8, 0, "f32")


@jit
def copy_async(x: "uint32", y: "uint32"):
    """ROUNDS tiles of 16 bytes a thread; every thread reads the next thread's piece."""
    tile = cuda.shared.array(STAGES_WORDS, uint32, alignment=16)
    i = cuda.threadIdx.x
    there = uint32(ptx.shared_address(tile) + uint32(16 * i))
    source = ptx.global_address(x) + uint64(16 * i)
    ptx.cp_async_16(there, source)
    ptx.cp_async_commit()
    for r in range(ROUNDS):
        if r + 1 < ROUNDS:
            stage = uint32(((r + 1) % 2) * 16 * THREADS)
            ptx.cp_async_16(there + stage, source + uint64((r + 1) * 16 * THREADS))
        ptx.cp_async_commit()
        ptx.cp_async_wait(1)
        cuda.syncthreads()
        for k in range(4):
            piece = (r % 2) * 4 * THREADS + 4 * ((i + 1) % THREADS) + k
            y[(r * THREADS + i) * 4 + k] = tile[piece]
        cuda.syncthreads()


@jit
def matrix_product(a: "uint32", b: "uint32", y: "float32"):
    """y (16, 8) = a (16, 16) bᵀ (8, 16), both bfloat16, by words; one warp."""
    tile_a = cuda.shared.array(128, uint32, alignment=16)
    tile_b = cuda.shared.array(64, uint32, alignment=16)
    lane = cuda.threadIdx.x
    for k in range(4):
        tile_a[lane + 32 * k] = a[lane + 32 * k]
    for k in range(2):
        tile_b[lane + 32 * k] = b[lane + 32 * k]
    cuda.syncwarp()
    at_a = ptx.shared_address(tile_a) + uint32((lane % 16) * 32 + (lane // 16) * 16)
    at_b = ptx.shared_address(tile_b) + uint32((lane % 8) * 32 + (lane // 8 % 2) * 16)
    a0, a1, a2, a3 = ptx.ldmatrix_x4(uint32(at_a))
    b0, b1 = ptx.ldmatrix_x2(uint32(at_b))
    zero = float32(0)
    c = ptx.mma_m16n8k16_bf16(a0, a1, a2, a3, b0, b1, zero, zero, zero, zero)
    for k in range(4):
        y[(lane // 4 + 8 * (k // 2)) * 8 + 2 * (lane % 4) + k % 2] = c[k]


@jit
def copy_boxes(source: "uint64", target: "uint64", y, row: "int32", column: "int32"):
    """The box at (row, column) of one tensor → the same box of another, and to y, by words."""
    tile = cuda.shared.array(64, uint32, alignment=128)
    bars = cuda.shared.array(1, uint64)
    i = cuda.threadIdx.x
    bar = ptx.shared_address(bars)
    if i == 0:
        ptx.mbarrier_init(bar, 1)
        ptx.fence_mbarrier_init()
    cuda.syncthreads()
    if i == 0:
        ptx.mbarrier_arrive_expect_tx(bar, 256)
        ptx.tma_load_2d(ptx.shared_address(tile), source, column, row, bar)
    ptx.mbarrier_wait(bar, 0)
    y[i] = tile[i]
    if i == 0:
        ptx.tma_store_2d(target, column, row, ptx.shared_address(tile))
        ptx.bulk_commit()
        ptx.bulk_wait(0)


@jit(launch_bounds=(128, 1))
def warpgroup(a: "uint32", b: "uint32", y: "float32"):
    """y: each thread's four numbers of a (64, DEPTH) bᵀ (8, DEPTH); operands swizzled by 128."""
    tile_a = cuda.shared.array(A_WORDS, uint32, alignment=1024)
    tile_b = cuda.shared.array(B_WORDS, uint32, alignment=1024)
    i = cuda.threadIdx.x
    for k in range(16):
        tile_a[i + 128 * k] = a[i + 128 * k]
    for k in range(2):
        tile_b[i + 128 * k] = b[i + 128 * k]
    ptx.fence_proxy_async_shared()
    cuda.syncthreads()
    at_a = ptx.wgmma_descriptor(ptx.shared_address(tile_a), 0, 1024, 128)
    at_b = ptx.wgmma_descriptor(ptx.shared_address(tile_b), 0, 1024, 128)
    sums = ZEROS()
    ptx.wgmma_fence()
    sums = MULTIPLY(sums, at_a, at_b, False)
    ptx.wgmma_commit()
    sums = WAIT(sums)
    for k in range(4):
        y[4 * i + k] = sums[k]


@jit
def exchange(x: "uint32", y: "uint32"):
    """Two blocks of a cluster: y holds what the other one read."""
    given = cuda.shared.array(THREADS, uint32)
    i = cuda.threadIdx.x
    at = THREADS * cuda.blockIdx.x + i
    other = ptx.cluster_rank() ^ uint32(1)
    there = ptx.mapa(ptx.shared_address(given), other) + uint32(4 * i)
    ptx.cluster_sync()
    ptx.store_cluster_32(there, x[at])
    ptx.cluster_sync()
    y[at] = given[i]


def _words(n: int, device: str) -> torch.Tensor:
    """n words that hold bfloat16 numbers between 1 and 2, two each."""
    return torch.rand(2 * n).add(1).bfloat16().view(torch.int32).to(device).view(torch.uint32)


def run_copy_async(device: str) -> torch.Tensor:
    x = _words(ROUNDS * 4 * THREADS, device)
    y = torch.empty_like(x)
    copy_async[1, THREADS](x, y)
    return y


def run_matrix_product(device: str) -> torch.Tensor:
    y = torch.empty(16, 8, device=device)
    matrix_product[1, 32](_words(128, device), _words(64, device), y.view(-1))
    return y


def run_copy_boxes(device: str) -> torch.Tensor:
    x = torch.rand(7, 24).to(device)
    target, y = torch.zeros_like(x), torch.empty(64, dtype=torch.uint32, device=device)
    maps = ptx.tensor_map(x, BOX), ptx.tensor_map(target, BOX)
    copy_boxes[1, THREADS](*maps, y, 5, 16)
    return target


def run_warpgroup(device: str) -> torch.Tensor:
    y = torch.empty(4 * 128, device=device)
    warpgroup[1, 128](_words(A_WORDS, device), _words(B_WORDS, device), y)
    return y


def run_exchange(device: str) -> torch.Tensor:
    x = _words(2 * THREADS, device)
    y = torch.empty_like(x)
    exchange.launch(2, THREADS, x, y, cluster=2)
    return y


CASES = {
    "copy_async": run_copy_async,
    "matrix_product": run_matrix_product,
    "copy_boxes": run_copy_boxes,
    "warpgroup": run_warpgroup,
    "exchange": run_exchange,
}
