"""What `sanitizer` watches of decode attention: every kernel once, at small odd shapes."""

from collections.abc import Iterator

import torch

from .sanitizer_inputs import HALVES, module, randn, take

# H, H_kv, Tq, D, lengths, page size, window
SHAPES = (
    (4, 2, 1, 64, (33, 0, 7), None, None),
    (2, 1, 3, 40, (130, 5), 16, 30),
    (8, 1, 3, 128, (49,), 48, None),  # 24 query rows: two groups of warps
)


def problems(dtype: torch.dtype, device: str) -> Iterator[tuple[tuple, int | None]]:
    """(arguments, window); caches of exactly the longest length, their pages in reverse."""
    for H, H_kv, Tq, D, lengths, page, window in SHAPES:
        B, T = len(lengths), max(lengths)
        shape = (B, H_kv, T, D)
        table = None
        if page:
            columns = -(-T // page)
            shape = (B * columns, H_kv, page, D)
            table = torch.arange(B * columns, dtype=torch.int32).flip(0).view(B, columns).to(device)
        q = randn(B, H, Tq, D, dtype=dtype, device=device)
        k, v = (randn(*shape, dtype=dtype, device=device) for _ in range(2))
        yield (q, k, v, torch.tensor(lengths, dtype=torch.int32).to(device), table), window


def decode(dtype: torch.dtype, device: str) -> None:
    m = module("decode")
    for arguments, window in problems(dtype, device):
        for rung in m.RUNGS.values():
            take(rung(*arguments, window=window))


OPERATIONS = (decode,)
DTYPES_OF = {decode: HALVES}
