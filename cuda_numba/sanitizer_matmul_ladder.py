"""What the sanitizer watches of the products below Hopper: every kernel, at small odd sizes."""

import itertools

import torch

from .matmul_operands import product_of
from .matmul_warp_kernel import Tile
from .sanitizer_inputs import HALVES, module, randn, take

FORMS = tuple(itertools.product((True, False), repeat=2))  # K runs along the rows of a, of b
# M, N, K and elements that come before the data: one element, edges, whole tiles, unaligned rows.
SIZES = ((1, 1, 1, 0), (7, 33, 130, 0), (72, 136, 128, 0), (65, 66, 64, 1))


def operands(M, N, K, offset, forms, dtype, device):
    def matrix(rows, columns, straight):
        shape = (rows, columns) if straight else (columns, rows)
        x = randn(*shape, dtype=dtype, device=device, offset=offset)
        return x if straight else x.mT

    return matrix(M, K, forms[0]), matrix(K, N, not forms[1])


def matmul_simt(dtype: torch.dtype, device: str) -> None:
    m = module("matmul_simt")
    for size in SIZES[:2]:
        for name in ("naive", "coalesced", "shared tile"):
            take(m.RUNGS[name](*operands(*size, FORMS[1], dtype, device)))


def matmul_register_tile(dtype: torch.dtype, device: str) -> None:
    m = module("matmul_simt")
    for size, forms in (*itertools.product(SIZES[1:2], FORMS), *zip(SIZES, FORMS, strict=True)):
        take(m.RUNGS["register tile"](*operands(*size, forms, dtype, device)))
    a, b = operands(*SIZES[2], FORMS[1], dtype, device)
    for grid in (m.GRID, m.SMALL_GRID):
        take(m.run(product_of(a, b, dtypes=("float32",)), grid))


def matmul_warp(dtype: torch.dtype, device: str) -> None:
    m = module("matmul_warp")
    for size, forms in itertools.product(SIZES, FORMS):
        a, b = operands(*size, forms, dtype, device)
        take(m.matmul_warp(a, b))
    bias = randn(SIZES[1][1], dtype=torch.float32, device=device)
    a, b = operands(*SIZES[1], FORMS[0], dtype, device)
    out = m.matmul_warp(a, b, out_dtype=torch.float32, bias=bias)
    take(m.matmul_warp(a, b, out, beta=0.5))


def matmul_tiles(dtype: torch.dtype, device: str) -> None:
    """Each tile, Turing's too."""
    m = module("matmul_warp")
    a, b = operands(*SIZES[2], FORMS[1], dtype, device)
    tiles: list[Tile] = sorted({*m.LARGE.values(), *m.SMALL.values()})
    for tile in tiles:
        p = product_of(a, b, dtypes=m.DTYPES)
        m.launch(p, tile)
        take(p.result)


OPERATIONS = (matmul_simt, matmul_register_tile, matmul_warp, matmul_tiles)
DTYPES_OF = {
    matmul_register_tile: (torch.float32,), matmul_warp: HALVES, matmul_tiles: (torch.float16,)
}  # fmt: skip
