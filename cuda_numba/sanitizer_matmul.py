"""What `cuda_numba.sanitizer` watches of products: every Hopper kernel at small odd shapes.

Both ways of working (groups that share a tile, groups in turns), the four layouts, whole and split
tiles, every epilogue and every way out of the registers; the public operations on top.
"""

import itertools

import torch

from .sanitizer_inputs import HALVES, backward, module, randn, take

SMALL, LARGE = (33, 72, 40), (136, 136, 200)  # M, N, K: one tile, and four of several k steps
TURNS = (False, True)


def _tile(turns: bool, slots: int = 2):
    return module("hopper_tile").Tile(128, 3, slots, turns=turns)


def _operands(layout: str, M: int, N: int, K: int, dtype, device):
    """Views whose rows are padded to 16 bytes."""

    def matrix(rows, columns):
        return randn(rows, -(-columns // 8) * 8, dtype=dtype, device=device)[:, :columns]

    a = matrix(K, M).t() if layout[0] == "t" else matrix(M, K)
    b = matrix(K, N) if layout[1] == "n" else matrix(N, K).t()
    return a, b


def hopper_product(dtype: torch.dtype, device: str) -> None:
    m, choice = module("matmul_hopper"), module("hopper_choice").Choice
    for layout, turns in itertools.product(("nt", "nn", "tn", "tt"), TURNS):
        a, b = _operands(layout, *SMALL, dtype, device)
        take(m.product(a, b, chosen=choice(_tile(turns), 2), blocks=2))
    for turns, pair in ((False, False), (True, False), (False, True), (True, True)):
        a, b = _operands("tn", *LARGE, dtype, device)
        chosen = choice(_tile(turns)._replace(pair=pair), 2, not pair)
        take(m.product(a, b, out_dtype=torch.float32, chosen=chosen, blocks=6))
    a, b = _operands("tn", *LARGE, dtype, device)
    sums = torch.empty(LARGE[0], device=device)
    take(m.product(a, b, chosen=choice(_tile(False), 2, True), blocks=6, row_sums=sums), sums)


def hopper_epilogue(dtype: torch.dtype, device: str) -> None:
    m, choice = module("matmul_hopper"), module("hopper_choice").Choice
    M, N, K = SMALL
    for turns in TURNS:
        a, b = _operands("nt", M, N, K, dtype, device)
        chosen = choice(_tile(turns, 4), 2)
        like_c = [randn(M, N, dtype=dtype, device=device) for _ in range(2)]
        bias, sums = randn(N, dtype=dtype, device=device), torch.empty(N, device=device)
        c = m.product(a, b, bias=bias, activation="gelu", pre=like_c[0], chosen=chosen, blocks=3)
        take(c, like_c[0])
        take(m.product(a, b, slope_at=like_c[1], column_sums=sums, chosen=chosen, blocks=3), sums)
        take(m.product(a, b, residual=like_c[1], bias=bias.float(), chosen=chosen, blocks=3))
        total = torch.ones(M, N, device=device)
        take(m.product(a, b, total, accumulate=True, chosen=chosen, blocks=3))
        odd = b[:, : N - 1] if b.stride(0) == 1 else b
        take(m.product(a, odd, bias=bias[: odd.shape[1]], chosen=chosen, blocks=3))


def matmul(dtype: torch.dtype, device: str) -> None:
    m = module("matmul")
    for M, N, K in ((1, 1, 1), (7, 33, 5), (33, 24, 16)):
        a = randn(M, K, dtype=dtype, device=device).requires_grad_()
        b = randn(K, N, dtype=dtype, device=device).requires_grad_()
        backward(m.matmul(a, b), a, b)
        w = randn(N, K, dtype=dtype, device=device).requires_grad_()
        bias = randn(N, dtype=dtype, device=device).requires_grad_()
        for activation in (None, "gelu_tanh"):
            for leaf in (a, w, bias):
                leaf.grad = None
            backward(m.linear(a, w, bias, activation), a, w, bias)


OPERATIONS = (hopper_product, hopper_epilogue, matmul)
DTYPES_OF = {hopper_product: HALVES, hopper_epilogue: HALVES}
