"""The gradient of an embedding: rows of dy added up by their number, always in the same order.

    dw[v, :] = Σ dy[n, :] over all n with ids[n] = v, n rising        dy (N, C), dw (V, C)

It reads N · C · itemsize bytes and writes V · C · itemsize. bf16, N = 65,536, V = 50,304, C = 768:
101 MB and 77 MB, 60 µs at the 3.0 TB/s of a copy on an H100. Atomic additions would be simple, but
their order, and so the last digits, would change from run to run.

Words are distributed as Zipf says: a few ids own a great part of all tokens, most own one or none.

    embedding_plan      the tokens in the order of their ids: two launches, which set the last rows
                        of dw to zero meanwhile
    embedding_gather    one launch: every row of dw is the sum of its rows of dy
"""

import torch

from .dtypes import dtype_name, vector_width
from .embedding_gather import THREADS, WARPS, gather_kernel
from .embedding_plan import overlaps, plan

STRETCH = 4  # accesses of a lane to one row of dy at most: a warp covers 2 KB of it
PIECE = 32  # tokens that a warp adds up; four times as many, and as few partial sums, from
MANY_TOKENS = 2**17  # tokens on, where there are pieces enough to share out


def embedding_backward_reference(dy: torch.Tensor, ids: torch.Tensor, rows: int) -> torch.Tensor:
    dy, ids = dy.reshape(-1, dy.shape[-1]), ids.reshape(-1)
    inside = (ids >= 0) & (ids < rows)
    dw = torch.zeros(rows, dy.shape[-1], dtype=dy.dtype, device=dy.device)
    return dw.index_add_(0, ids[inside], dy[inside])


# ---- launcher


def embedding_backward(dy: torch.Tensor, ids: torch.Tensor, rows: int) -> torch.Tensor:
    """dw (rows, C) from dy (…, C), of dy's dtype, and ids (…), both contiguous; deterministic.

    Rows of dw that no id names are zero; ids outside 0 … rows − 1 are left out.
    """
    columns, n, device = dy.shape[-1], ids.numel(), dy.device
    dw = torch.empty(rows, columns, dtype=dy.dtype, device=device)
    if not dw.numel() or not n:
        return dw.zero_()
    dtype = dtype_name(dy)
    width = vector_width(dtype)
    if columns % width or dy.data_ptr() % 16 or dw.data_ptr() % 16:
        width = 1
    accesses = min(STRETCH, -(-columns // (32 * width)))
    stretches = -(-columns // (32 * width * accesses))
    piece = PIECE if n < MANY_TOKENS else 4 * PIECE
    tokens, spans, pieces, found, arrived, groups, kept = plan(ids, dw, width, piece, stretches)
    partial = torch.empty(len(pieces), columns, dtype=torch.float32, device=device)
    piece_blocks = -(-len(pieces) * stretches // WARPS) if n > piece else 0
    blocks = piece_blocks - (-rows * stretches // WARPS)
    overlap = overlaps(device)
    kernel = gather_kernel(dtype, columns, width, accesses, piece, stretches, groups, overlap)
    kernel.launch(
        blocks, THREADS, dy, tokens, spans, pieces, found, arrived, partial, dw, piece_blocks, rows,
        len(spans) // groups, kept, pdl=overlap,
    )  # fmt: skip
    return dw
