"""Inputs of decode attention in which all that must not be read is NaN, or no page at all."""

from dataclasses import dataclass

import torch

NO_PAGE = -1  # as an unsigned number far outside every cache


@dataclass(frozen=True)
class Problem:
    """A batch: `lengths` has B entries; page: its size, None for a contiguous cache."""

    H: int
    H_kv: int
    Tq: int
    D: int
    lengths: tuple
    page: int | None = None
    window: int | None = None
    T_max: int | None = None  # by default the longest length

    def __str__(self):
        lengths = "_".join(map(str, self.lengths[:4])) + ("…" if len(self.lengths) > 4 else "")
        parts = [f"H{self.H}kv{self.H_kv}", f"q{self.Tq}", f"D{self.D}", f"T{lengths}"]
        parts += [f"page{self.page}"] * bool(self.page) + [f"win{self.window}"] * bool(self.window)
        return "-".join(parts)

    @property
    def room(self):
        return self.T_max or max(max(self.lengths), 1)

    def first(self, b):
        """The first position of sequence b that a query sees."""
        if self.window is None:
            return 0
        return max(0, self.lengths[b] - self.Tq - self.window + 1)


def paged(cache, problem, table):
    """(B, H_kv, T, D) → (pages, H_kv, page_size, D), NaN where no position lies."""
    B, H_kv, T, D = cache.shape
    size = problem.page
    out = cache.new_full((int(table.max()) + 2, H_kv, size, D), float("nan"))
    for b in range(B):
        for i in range(table.shape[1]):
            part = cache[b, :, i * size : (i + 1) * size]
            if table[b, i] != NO_PAGE:
                out[table[b, i], :, : part.shape[1]] = part
    return out


def make(problem, dtype, device="cpu", seed=0):
    """((q, k_cache, v_cache, lengths, block_table), the contiguous k and v in float64)."""
    generator = torch.Generator().manual_seed(seed)
    B, T = len(problem.lengths), problem.room

    def randn(*shape):
        return torch.randn(*shape, generator=generator).to(dtype)

    q = randn(B, problem.H, problem.Tq, problem.D)
    k, v = (randn(B, problem.H_kv, T, problem.D) for _ in range(2))
    for b, n in enumerate(problem.lengths):
        for cache in (k, v):
            cache[b, :, n:] = float("nan")
            cache[b, :, : problem.first(b)] = float("nan")
    lengths = torch.tensor(problem.lengths, dtype=torch.int32)
    table, caches = None, (k, v)
    if problem.page:
        columns = -(-T // problem.page)
        order = torch.randperm(B * columns + 3, generator=generator)[: B * columns]
        table = order.to(torch.int32).view(B, columns)
        for b, n in enumerate(problem.lengths):
            table[b, -(-n // problem.page) :] = NO_PAGE
            table[b, : problem.first(b) // problem.page] = NO_PAGE
        caches = tuple(paged(x, problem, table) for x in (k, v))
    given = [x if x is None else x.to(device) for x in (q, *caches, lengths, table)]
    return given, (k.double(), v.double())


def expected(problem, q, k64, v64):
    """o in float64, from what is seen alone."""
    from cuda_numba.decode import decode_attention_reference

    clean = [torch.nan_to_num(x, nan=0.0) for x in (k64, v64)]
    lengths = torch.tensor(problem.lengths, dtype=torch.int32)
    return decode_attention_reference(q.double().cpu(), *clean, lengths, window=problem.window)
