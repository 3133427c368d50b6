"""Matrix products on the tensor cores of every GPU since Turing, by the warp's own `mma.sync`.

    out = a @ b + bias + beta · out,   a (…, M, K), b (…, K, N), of bfloat16 or float16

| GPU             | kernel                                   | mma, operands   | tile, stages      |
|-----------------|------------------------------------------|-----------------|-------------------|
| T4 (sm_75)      | `matmul_turing`, through registers       | m16n8k8, f16    | 128 × 64 × 32, 2  |
| A100 (sm_80)    | `matmul_warp_kernel`, a ring of cp.async | m16n8k16, f16   | 128 × 256 × 64, 3 |
| Ada (sm_86, 89) |                                          | and bf16        | 128 × 128 × 64, 3 |
| H100 (sm_90)    |                                          |                 | 128 × 256 × 64, 4 |

Where the large tiles would leave multiprocessors without work, tiles of 64 × 64 are taken. Sums are
float32 and are rounded once; the order of additions is fixed, so that results are the same bits on
every run. Operands are read as they lie (K-major or MN-major, see `matmul_operands`); rows that do
not begin at multiples of 16 bytes are copied element by element, by a kernel of its own, which is
slower.

On an H100 the instruction alone, all operands in registers, reaches 636 TFLOP/s, and this product
500 at 4096³; what is left of the tensor cores' 989 takes `wgmma`.
"""

import torch

from .dtypes import dtype_name
from .matmul_operands import Product, View, gpu_of, parts_of, product_of, whole
from .matmul_turing import turing_kernel
from .matmul_warp_epilogue import Epilogue
from .matmul_warp_kernel import Tile, shared_bytes, warp_kernel
from .matmul_warp_tiles import Operand

DTYPES = ("bfloat16", "float16")
OUT_DTYPES = ("bfloat16", "float16", "float32")

LARGE = {
    (7, 5): Tile(128, 64, 32, 32, 32, 2),  # 64 KB of shared memory, where the sums pass too
    (8, 0): Tile(128, 256, 64, 64, 64, 3),  # 163 KB
    (8, 6): Tile(128, 128, 64, 64, 32, 3),  # 99 KB
    (9, 0): Tile(128, 256, 64, 64, 64, 4),  # 227 KB
    (12, 0): Tile(128, 128, 64, 64, 32, 3),  # 99 KB
}
TURING_DEPTH = 32  # of the tiles that pass through registers
SMALL = {
    (7, 5): Tile(64, 64, 32, 32, 32, 2),
    (8, 0): Tile(64, 64, 64, 32, 32, 3, 2),
}


def matmul_warp_reference(a, b, bias=None, beta=0.0, out=None):
    y = a @ b
    y = y if bias is None else y + bias
    return y + beta * out if beta else y


def tile_of(cc: tuple[int, int], processors: int, tiles_of) -> Tile:
    """The tile for a GPU: small where large ones are fewer than its multiprocessors.

    tiles_of(tile): how many there are.
    """
    large = LARGE[max(known for known in LARGE if known <= cc)]
    small = SMALL[max(known for known in SMALL if known <= cc)]
    return large if tiles_of(large) >= processors else small


def _tiles(tile: Tile, M: int, N: int) -> int:
    return -(-M // tile.m) * -(-N // tile.n)


def _operand(view: View, first: bool, tile: Tile, size: int, K: int) -> Operand:
    extent, warp = (tile.m, tile.warp_m) if first else (tile.n, tile.warp_n)
    # The last tile of a matrix that tiles do not divide moves back until it is inside, if it still
    # begins where 16 bytes do; what it has in common with its neighbour is not written twice.
    exact = view.wide and size >= extent and K % tile.k == 0
    exact &= size % 8 == 0 or (first and view.k_major)
    return Operand(first, view.k_major, extent, tile.k, warp, exact, view.wide)


def kernel_of(p: Product, tile: Tile, bias=None, accumulate=False, swizzled=True):
    """(kernel, bytes of shared memory) for a product, by tiles of one kind."""
    a_form = _operand(p.a, True, tile, p.M, p.K)._replace(swizzled=swizzled)
    b_form = _operand(p.b, False, tile, p.N, p.K)._replace(swizzled=swizzled)
    bias_dtype = None if bias is None else dtype_name(bias)
    out = dtype_name(p.out.tensor)
    end = Epilogue(tile.warp_m, tile.warp_n, out, bias_dtype, accumulate, p.out.wide)
    make = turing_kernel if tile.k == TURING_DEPTH else warp_kernel
    return make(dtype_name(p.a.tensor), tile, a_form, b_form, end), shared_bytes(tile, end)


def launch(p: Product, tile: Tile, bias=None, beta: float = 0.0) -> None:
    """Write the product by tiles of one kind."""
    kernel, smem = kernel_of(p, tile, bias, beta != 0)
    for part in parts_of(p):
        a, b, out = whole(part.a), whole(part.b), whole(part.out)
        kernel[(_tiles(tile, p.M, p.N), 1, part.batches), tile.threads, 0, smem](
            a, b, out, out if bias is None else bias, p.M, p.N, p.K, p.a.pitch, p.b.pitch,
            p.out.pitch, p.a.batch, p.b.batch, p.out.batch, beta,
        )  # fmt: skip


def matmul_warp(
    a: torch.Tensor,
    b: torch.Tensor,
    out: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    *,
    bias: torch.Tensor | None = None,
    beta: float = 0.0,
) -> torch.Tensor:
    """out = a @ b + bias + beta · out by `mma.sync`.

    a (…, M, K), b (…, K, N)  both bfloat16 or both float16, K- or MN-major each
    out                       (…, M, N), float32, bfloat16 or float16; read only where beta is not 0
    bias                      (N,), float32 or of a's dtype, contiguous

    Raises TypeError and ValueError for what no kernel takes, naming the argument.
    """
    if beta and out is None:
        raise ValueError("out: got None, it must be given where beta is not 0")
    p = product_of(a, b, out, out_dtype, dtypes=DTYPES, out_dtypes=OUT_DTYPES)
    if bias is not None:
        _check_bias(bias, a, p.N)
    cc, processors = gpu_of(a)
    if cc < (8, 0) and a.dtype == torch.bfloat16:
        raise TypeError(
            f"a: it is bfloat16, before compute capability 8.0 (here {cc}) only float16"
        )
    if not p.result.numel():
        return p.result
    if not p.K:
        kept = p.result.float() * beta if beta else torch.zeros_like(p.result)
        return p.result.copy_(kept if bias is None else kept + bias)
    tile = tile_of(cc, processors, lambda tile: p.batches * _tiles(tile, p.M, p.N))
    launch(p, tile, bias, beta)
    return p.result


def _check_bias(bias, a, N):
    allowed = ("float32", dtype_name(a))
    if dtype_name(bias) not in allowed or bias.device != a.device:
        raise TypeError(
            f"bias: it is {dtype_name(bias)} on {bias.device}, it may be {' or '.join(allowed)} "
            f"on {a.device}"
        )
    if bias.shape != (N,) or not bias.is_contiguous():
        raise ValueError(f"bias: its shape is {tuple(bias.shape)}, expected ({N},), contiguous")


RUNGS = {"mma.sync": matmul_warp}
