"""What a call of decode attention is given, checked once, and the numbers that kernels want.

q             (B, H, Tq, D)                float16 or bfloat16, D a multiple of 8 from 32 to 128
k_cache, v_cache
  contiguous  (B, H_kv, T_max, D)          any strides that are multiples of 8, the last one 1
  paged       (pages, H_kv, page_size, D)  likewise; page_size a multiple of 16
lengths       (B,) int32                   positions that are filled, the queries' own included
block_table   (B, max_pages) int32         page of positions i · page_size …, None: contiguous
"""

from typing import NamedTuple

import torch

from .dtypes import dtype_name

FORMATS = ("float16", "bfloat16")
MOST_QUERIES = 8
LEAST_D, MOST_D = 32, 128
WHOLE_PAGE = 16  # page sizes are multiples of it: the positions of one step of a kernel
NO_WINDOW = 1 << 31  # positions: more than there are
LOG2E = 1.4426950408889634


class Call(NamedTuple):
    """The numbers of a call. Strides count elements."""

    batch: int
    heads: int
    kv_heads: int
    queries: int
    D: int
    capacity: int  # positions that a sequence has room for
    page_size: int  # 0: contiguous
    pages: int  # a row of the block table; 0: contiguous
    window: int
    scale: float  # with log2 e in it
    dtype: str

    @property
    def rows(self) -> int:
        """Query rows of a key/value head."""
        return self.heads // self.kv_heads * self.queries

    @property
    def paged(self) -> bool:
        return self.page_size > 0


def look_at(q, k_cache, v_cache, lengths, block_table=None, window=None, scale=None) -> Call:
    """The numbers of a call; raises TypeError or ValueError naming the argument that is wrong."""
    dtype = dtype_name(q)
    if dtype not in FORMATS:
        raise TypeError(f"q: its dtype is {dtype}, decode_attention takes {', '.join(FORMATS)}.")
    if q.dim() != 4:
        raise ValueError(f"q: its shape is {tuple(q.shape)}, expected (B, H, Tq, D).")
    B, H, queries, D = q.shape
    if not LEAST_D <= D <= MOST_D or D % 8:
        raise ValueError(f"q: D is {D}, it may be a multiple of 8 from {LEAST_D} to {MOST_D}.")
    if not 1 <= queries <= MOST_QUERIES:
        raise ValueError(f"q: Tq is {queries}, it may be 1 to {MOST_QUERIES}.")
    for name, cache in (("k_cache", k_cache), ("v_cache", v_cache)):
        _look_at_cache(name, cache, q, None if block_table is not None else B)
    if v_cache.shape != k_cache.shape:
        raise ValueError(
            f"v_cache: its shape is {tuple(v_cache.shape)}, k_cache's {tuple(k_cache.shape)}."
        )
    kv_heads, room = k_cache.shape[1:3]
    if H % kv_heads:
        raise ValueError(f"q: {H} heads are no multiple of the cache's {kv_heads}.")
    _look_at_index("lengths", lengths, q, (B,))
    page_size = pages = 0
    if block_table is not None:
        _look_at_index("block_table", block_table, q, (B, block_table.shape[-1]))
        page_size, pages = room, block_table.shape[1]
        if page_size % WHOLE_PAGE:
            raise ValueError(
                f"k_cache: its page size is {page_size}, it may be a multiple of {WHOLE_PAGE}."
            )
    if window is not None and window < 1:
        raise ValueError(f"window: got {window}, it may be None or at least 1.")
    return Call(
        B, H, kv_heads, queries, D, pages * page_size or room, page_size, pages,
        NO_WINDOW if window is None else min(window, NO_WINDOW),
        (D**-0.5 if scale is None else scale) * LOG2E, dtype,
    )  # fmt: skip


def _look_at_cache(name, cache, q, batch):
    if cache.dtype != q.dtype:
        raise TypeError(f"{name}: its dtype is {dtype_name(cache)}, q's is {dtype_name(q)}.")
    if cache.device != q.device:
        raise ValueError(f"{name}: it is on {cache.device}, q is on {q.device}.")
    D = q.shape[-1]
    if cache.dim() != 4 or cache.shape[3] != D or (batch is not None and cache.shape[0] != batch):
        first = "pages, H_kv, page_size" if batch is None else f"{batch}, H_kv, T_max"
        raise ValueError(f"{name}: its shape is {tuple(cache.shape)}, expected ({first}, {D}).")
    strides = [s for s, n in zip(cache.stride()[:3], cache.shape[:3], strict=True) if n > 1]
    if cache.stride(3) != 1 or any(s % 8 for s in strides) or cache.data_ptr() % 16:
        raise ValueError(
            f"{name}: its strides are {cache.stride()} and it starts at byte {cache.data_ptr()} "
            "of memory; the last stride may be 1, the others multiples of 8, the start of 16."
        )


def _look_at_index(name, index, q, shape):
    if index.dtype != torch.int32:
        raise TypeError(f"{name}: its dtype is {dtype_name(index)}, it may be int32.")
    if index.device != q.device:
        raise ValueError(f"{name}: it is on {index.device}, q is on {q.device}.")
    if tuple(index.shape) != shape:
        raise ValueError(f"{name}: its shape is {tuple(index.shape)}, expected {shape}.")


def flat(cache: torch.Tensor) -> torch.Tensor:
    """A cache as a bare run of memory, from its first element to its last: no copy."""
    if cache.is_contiguous():
        return cache
    span = 1 + sum((n - 1) * s for n, s in zip(cache.shape, cache.stride(), strict=True))
    return cache.as_strided((span,), (1,))


def strides_of(*caches: torch.Tensor) -> tuple[int, ...]:
    """Elements from page (or sequence) to page, head to head, row to row, for each cache."""
    return tuple(s for cache in caches for s in cache.stride()[:3])
