"""Decode attention: a few query rows over a cache of keys and values, split over the sequence.

    o[b, h, i] = Σⱼ softmaxⱼ(scale · q[b, h, i] · k[b, h ÷ group, j]) · v[b, h ÷ group, j]

    query i of Tq stands at position p = lengths[b] − Tq + i and sees p − window < j ≤ p

One token is Tq = 1; up to 8 are the tokens that speculative decoding verifies. A query that sees
nothing (lengths[b] = 0, or p < 0) has o = 0. group = H / H_kv heads share a key/value head, whose
cache is read once for all of them and all their queries.

Bytes: 2 · Σ_b lengths[b] · H_kv · D · itemsize, K and V read once; q, o and the block table are
small beside them. FLOPs: 4 · D for each position and query row; with R = group · Tq rows, R FLOPs a
byte in 16 bits. So it is a matter of memory, until R comes near the 200 to 300 at which tensor
cores are busy. At the 3.0 TB/s of an H100, 8 sequences of 4096 positions, 8 heads of 128: 134 MB,
45 µs.

    naive        a block per query row, 128 positions after 128                  (decode_split)
    split        more blocks per query row, then a kernel that joins them        (decode_split)
    one launch   equal shares of the cache for all blocks, tensor cores, the last block of a row to
                 come joins its parts; every byte is read once                   (decode_stream)

The number of blocks is chosen on the host from sizes, never from `lengths`, which only kernels
read: a CUDA graph captures a launch and the lengths may change. Results are the same bit for bit on
every run. Sources: "Flash-Decoding" (Dao et al. 2023), paged caches: Kwon et al. 2023, "Efficient
Memory Management for Large Language Model Serving with PagedAttention", section 4.
"""

import torch

from .decode_arguments import Call, flat, look_at, strides_of
from .decode_split import THREADS, combine_kernel, naive_kernel, split_kernel
from .decode_stream import Shape, stream_kernel
from .decode_tile import columns_of
from .decode_work import STEP

FEW_LINES = 16  # rows of the line of work: sequences times heads of the cache
EMULATED_SMS = 2  # multiprocessors for which a launch on the emulator is divided


def decode_attention_reference(
    q, k_cache, v_cache, lengths, block_table=None, *, window=None, scale=None
):
    """The same in plain PyTorch, one sequence after the other, whole scores; any float dtype."""
    o = torch.zeros_like(q)
    group = q.shape[1] // k_cache.shape[1]
    for b, n in enumerate(lengths.tolist()):
        if block_table is None:
            k, v = k_cache[b, :, :n], v_cache[b, :, :n]
        else:
            pages = block_table[b, : -(-n // k_cache.shape[2])].long()
            k, v = (c[pages].transpose(0, 1).flatten(1, 2)[:, :n] for c in (k_cache, v_cache))
        k, v = k.repeat_interleave(group, 0), v.repeat_interleave(group, 0)
        at = torch.arange(n - q.shape[2], n, device=q.device)[:, None]
        key = torch.arange(n, device=q.device)
        seen = (key <= at) & (key > at - (window or n + 1))
        scores = q[b] @ k.transpose(-1, -2) * (q.shape[3] ** -0.5 if scale is None else scale)
        weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
        o[b] = torch.where(seen, weights, 0) @ v  # a query that sees nothing: NaN, then 0
    return o


# ---- launchers


def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return EMULATED_SMS
    return torch.cuda.get_device_properties(device).multi_processor_count


_counters: dict[tuple, torch.Tensor] = {}


def _arrivals(count: int, device: torch.device) -> torch.Tensor:
    """`count` zeros, which the kernel leaves as zeros: kept for each stream.

    While a CUDA graph is captured it gets its own, cleared at each replay: the graph may run on
    another stream, beside other calls.
    """
    stream = 0
    if device.type == "cuda":
        if torch.cuda.is_current_stream_capturing():
            return torch.zeros(count, dtype=torch.int32, device=device).view(torch.uint32)
        stream = torch.cuda.current_stream(device).cuda_stream
    found = _counters.get((device, stream))
    if found is None or found.numel() < count:
        found = torch.zeros(max(count, 4096), dtype=torch.int32, device=device).view(torch.uint32)
        _counters[device, stream] = found
    return found


def decode_naive(q, k_cache, v_cache, lengths, block_table=None, *, window=None, scale=None):
    call = look_at(q, k_cache, v_cache, lengths, block_table, window, scale)
    q, o = q.contiguous(), torch.empty(q.shape, dtype=q.dtype, device=q.device)
    table = lengths if block_table is None else block_table
    kernel = naive_kernel(call.dtype, call.D, call.paged)
    if o.numel():
        kernel[call.batch * call.heads * call.queries, THREADS](
            q, flat(k_cache), flat(v_cache), lengths, table, o, *_row_numbers(call),
            *strides_of(k_cache, v_cache),
        )  # fmt: skip
    return o


def decode_split(q, k_cache, v_cache, lengths, block_table=None, *, window=None, scale=None):
    """Two launches; splits so that there are eight blocks for every multiprocessor."""
    call = look_at(q, k_cache, v_cache, lengths, block_table, window, scale)
    q, o = q.contiguous(), torch.empty(q.shape, dtype=q.dtype, device=q.device)
    rows = call.batch * call.heads * call.queries
    if not rows:
        return o
    table = lengths if block_table is None else block_table
    splits = min(-(-8 * _multiprocessors(q.device) // rows), max(1, call.capacity // 64))
    partial = torch.empty(rows, splits, call.D, dtype=torch.float32, device=q.device)
    states = torch.empty(rows, splits, 2, dtype=torch.float32, device=q.device)
    split_kernel(call.dtype, call.D, call.paged)[(rows, splits), THREADS](
        q, flat(k_cache), flat(v_cache), lengths, table, partial, states, *_row_numbers(call),
        *strides_of(k_cache, v_cache),
    )  # fmt: skip
    combine_kernel(call.dtype, call.D)[rows, THREADS](partial, states, o, splits)
    return o


def _row_numbers(call: Call) -> tuple:
    return (
        call.heads, call.heads // call.kv_heads, call.queries, call.capacity, call.page_size,
        call.pages, call.window, call.scale,
    )  # fmt: skip


def shape_of(call: Call, device: torch.device) -> Shape:
    """The block for a call: as many warps with different rows as its query rows need.

    Four warps, and as many blocks in a multiprocessor as their registers allow, so that one reads
    while another ends a row. Where few rows are cut into many parts: fewer blocks of eight warps.
    """
    warps = 8 if call.batch * call.kv_heads < FEW_LINES else 4
    rows = 8 if call.rows <= 8 else 16
    groups = 1
    while groups < warps and groups * rows < call.rows:
        groups *= 2
    per_sm = 1 if warps == 8 else 3 if call.D <= 64 and rows == 8 else 2
    old = device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0)
    if not old:
        return Shape(call.D, rows, groups, warps, call.paged, per_sm)
    if call.dtype == "bfloat16":
        raise ValueError(
            "q: bfloat16 products need compute capability 8.0; this GPU is older, and "
            'RUNGS["split"] takes bfloat16 as well.'
        )
    return Shape(call.D, rows, min(groups, 4), 4, call.paged, 2, depth=8)


def stream_arguments(call: Call, shape: Shape, q, k_cache, v_cache, lengths, block_table=None):
    """(grid, arguments) of `decode_stream`: its o, and a workspace for two states a block."""
    row_blocks = -(-call.rows // shape.block_rows)
    lines = call.batch * call.kv_heads
    most = lines * (-(-max(call.capacity, 1) // STEP) + shape.margin)  # places of the line of work
    blocks = -(-shape.per_sm * _multiprocessors(q.device) // row_blocks)
    blocks = min(blocks, -(-most // shape.readers))
    slots = 2 * blocks * row_blocks * shape.block_rows
    o = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    partial = torch.empty(slots, columns_of(call.D), dtype=torch.float32, device=q.device)
    states = torch.empty(slots, 2, dtype=torch.float32, device=q.device)
    return (blocks, row_blocks), (
        q.contiguous(), flat(k_cache), flat(v_cache), lengths,
        lengths if block_table is None else block_table,
        o, partial, states, _arrivals(lines * row_blocks, q.device),
        call.batch, call.kv_heads, call.rows, call.queries, call.capacity, call.page_size,
        call.pages, shape.readers, shape.margin, call.window, call.scale,
        *strides_of(k_cache, v_cache),
    )  # fmt: skip


def launch_stream(call: Call, shape: Shape, q, k_cache, v_cache, lengths, block_table=None):
    if not q.numel():
        return torch.empty(q.shape, dtype=q.dtype, device=q.device)
    grid, arguments = stream_arguments(call, shape, q, k_cache, v_cache, lengths, block_table)
    stream_kernel(call.dtype, shape)[grid, shape.threads, 0, shape.shared](*arguments)
    return arguments[5]


def decode_one_launch(q, k_cache, v_cache, lengths, block_table=None, *, window=None, scale=None):
    call = look_at(q, k_cache, v_cache, lengths, block_table, window, scale)
    shape = shape_of(call, q.device)
    return launch_stream(call, shape, q, k_cache, v_cache, lengths, block_table)


RUNGS = {"naive": decode_naive, "split": decode_split, "one launch": decode_one_launch}


def decode_attention(
    q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, lengths: torch.Tensor,
    block_table: torch.Tensor | None = None, *, window: int | None = None,
    scale: float | None = None,
) -> torch.Tensor:  # fmt: skip
    """Attention of the last Tq positions of each sequence over its cache; o (B, H, Tq, D).

    q            (B, H, Tq, D), float16 or bfloat16; Tq 1 to 8, D a multiple of 8 from 32 to 128.
                 Copied first if it is not contiguous
    k_cache, v_cache
                 (B, H_kv, T_max, D), or with a block table (pages, H_kv, page_size, D), page_size a
                 multiple of 16; H a multiple of H_kv. Views are read where they are: the last
                 stride is 1, the others are multiples of 8
    lengths      (B,) int32 on the same device: filled positions, the queries' own included. Read by
                 the kernel only; 0 gives o = 0, more than there is room for counts as that much
    block_table  (B, max_pages) int32: entry i holds positions i · page_size and on. Entries beyond
                 a length, or before all windows, are not read
    window       positions that a query sees, its own included; None: all
    scale        of the scores, by default 1 / √D

    What lies past a length, in the cache or a page, is never used, NaN or not. There is no backward
    pass. Raises TypeError or ValueError naming the argument; page numbers are not checked.
    """
    if torch.is_grad_enabled() and any(x.requires_grad for x in (q, k_cache, v_cache)):
        raise ValueError(
            "q, k_cache or v_cache requires a gradient, and decode_attention has no backward pass; "
            "call it under torch.no_grad(), or use attention."
        )
    return decode_one_launch(q, k_cache, v_cache, lengths, block_table, window=window, scale=scale)
