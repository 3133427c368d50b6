"""The gradient of an embedding: rows of dy added up by their number, always in the same order.

    dw[v, :] = Σ dy[n, :] over all n with ids[n] = v, n rising        dy (N, C), dw (V, C)

It reads N · C · itemsize bytes and writes V · C · itemsize. bf16, N = 65,536, V = 50,304, C = 768:
101 MB and 77 MB, 60 µs at the 3.0 TB/s of a copy on an H100. Atomic additions would be simple, but
their order, and so the last digits, would change from run to run.

Words are distributed as Zipf says: a few ids own a great part of all tokens, most own one or none.

    embedding_plan      the tokens in the order of their ids: two launches, which set the last rows
                        of dw to zero meanwhile
    embedding_gather    one launch: warps with as many tokens each add up the rows of dy
"""

import torch

from .dtypes import dtype_name, vector_width
from .embedding_gather import THREADS, WARPS, gather_kernel
from .embedding_plan import overlaps, plan, power_of_two

STRETCH = 1  # accesses of a lane to one row of dy at most: a warp covers 512 bytes of it
PIECES = 1024  # about as many, of SHORTEST to LONGEST tokens each: as many warps as fit at a time
SHORTEST, LONGEST = 32, 128


def embedding_backward_reference(dy: torch.Tensor, ids: torch.Tensor, rows: int) -> torch.Tensor:
    dy, ids = dy.reshape(-1, dy.shape[-1]), ids.reshape(-1)
    inside = (ids >= 0) & (ids < rows)
    dw = torch.zeros(rows, dy.shape[-1], dtype=dy.dtype, device=dy.device)
    return dw.index_add_(0, ids[inside], dy[inside])


# ---- launcher


def embedding_backward(
    dy: torch.Tensor, ids: torch.Tensor, rows: int, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """dw (rows, C) from dy (…, C) and ids (…), both contiguous; deterministic.

    dtype: of dw, dy's (None) or float32, which is what is added up in any case.

    Rows of dw that no id names are zero; ids outside 0 … rows − 1 are left out.
    """
    columns, n, device = dy.shape[-1], ids.numel(), dy.device
    dw = torch.empty(rows, columns, dtype=dtype or dy.dtype, device=device)
    if not dw.numel() or not n:
        return dw.zero_()
    width = vector_width(dtype_name(dy))
    if columns % width or dy.data_ptr() % 16 or dw.data_ptr() % 16:
        width = 1
    accesses = min(STRETCH, -(-columns // (32 * width)))
    stretches = -(-columns // (32 * width * accesses))
    piece = min(LONGEST, max(SHORTEST, power_of_two(n // PIECES)))
    pieces = -(-n // piece)
    order, spans, found, arrived, groups, kept = plan(
        ids, dw, min(width, vector_width(dtype_name(dw))), pieces * stretches
    )
    # What a piece has of an id that began before it, and of one that goes on behind it.
    partial = torch.empty(2 * pieces, columns, dtype=torch.float32, device=device)
    piece_blocks = -(-pieces * stretches // WARPS)
    blocks = piece_blocks - (-kept // THREADS)
    overlap = overlaps(device)
    kernel = gather_kernel(
        dtype_name(dy), columns, width, accesses, piece, stretches, groups, overlap, dtype_name(dw)
    )
    kernel.launch(
        blocks, THREADS, dy, order, spans, found, arrived, partial, dw, piece_blocks,
        len(spans) // groups, kept, pdl=overlap,
    )  # fmt: skip
    return dw
