"""Backward pass of attention on Hopper: deterministic, five products, two launches.

    S = scale · Q Kᵀ, P = exp2(S · log2 e − lse)     recomputed from the forward pass's lse
    dV = Pᵀ dO       dP = dO Vᵀ       dS = P ∘ (dP − D), D = rowsum(dO ∘ O)
    dK = scale · dSᵀ Q                dQ = scale · dS K

    attention_delta (B · H · T rows)      D and lse in blocks, counters cleared; 47 µs at the
                                          speed of a copy for B · H · T · D = 33.5 million
    attention_backward (132 blocks)       everything else; see attention_backward_products

FLOPs: 5 products of 2 · T² · D for each head, half of that under a causal mask; and one tile's dQ
more for each block of keys, whose result nobody takes, while there is no dS yet.

Grouped queries: H is a multiple of H_kv; a block of keys walks over the query heads of its group
one by one, so that dK and dV are sums in a fixed order, without atomics. dQ is summed in the
order of the blocks of keys: every run gives the same bits.

Sources: Dao 2023, "FlashAttention-2", algorithm 2; Shah et al. 2024, "FlashAttention-3" (warp
specialisation, transposed scores); Qiang et al. 2026, "DASH" (the order of dQ).
"""

import functools
import math

import torch

from . import ptx
from .attention_backward_convert import THREADS as CONVERT_THREADS
from .attention_backward_convert import convert_kernel
from .attention_backward_delta import THREADS as DELTA_THREADS
from .attention_backward_delta import delta_kernel, lanes_of
from .attention_backward_layout import Layout
from .attention_backward_products import THREADS, backward_kernel
from .attention_backward_schedule import KEYS, band
from .dtypes import dtype_name

LOG2E = 1.4426950408889634
DTYPES = ("bfloat16", "float16")
EMULATED_BLOCKS = 3  # where no GPU says how many multiprocessors there are
# Up to 64 columns: 128 queries a block; more: 64, or the registers do not suffice. dV is started
# early where registers are left for it. Three stages of Q and dO and two of dS were 1 to 5 % faster
# than two and three at D 64.
LAYOUTS = {
    32: Layout(32, 128, 3, 2, False),
    64: Layout(64, 128, 3, 2, False),
    96: Layout(96, 64, 3, 4, True),
    128: Layout(128, 64, 3, 4, True),
}
# How many heads are worked on at a time. The more, the later a block starts after the one of its
# head that adds to dQ before it, and the less it waits for its turn; the fewer, the more of Q, dO
# and the sums of dQ is found in L2. Measured at D 64 | 128, T 4096, rows of Q in all such heads:
# 16,384 292 | 333, 32,768 322 | 366, 65,536 349 | 397, 131,072 445 | 459 TFLOP/s.
ROWS = 131072
FEWEST, MOST = 16, {1: 64, 2: 32}  # heads, the most by tiles of 64 columns


def attention_backward_reference(do, q, k, v, *, causal=True, window=None, scale=None):
    """(o, lse, dq, dk, dv) in the dtype of q, plainly; lse in base 2, −∞ where no key is seen."""
    (H, Tq, D), (Hkv, Tk) = q.shape[1:], k.shape[1:3]
    scale = 1 / math.sqrt(D) if scale is None else scale
    distance = torch.arange(Tq, device=q.device)[:, None] + (Tk - Tq)
    distance = distance - torch.arange(Tk, device=q.device)
    seen = distance.abs() < (Tk + 1 if window is None else window)
    if causal:
        seen &= distance >= 0
    keys, values = (x.repeat_interleave(H // Hkv, 1) for x in (k, v))
    s = (q @ keys.mT * scale).masked_fill(~seen, -math.inf)
    lse = s.logsumexp(-1, keepdim=True)
    p = (s - lse.clamp_min(-1e30)).exp()
    o = p @ values
    ds = p * (do @ values.mT - (do * o).sum(-1, keepdim=True)) * scale
    dk, dv = (
        x.unflatten(1, (Hkv, H // Hkv)).sum(2) for x in (ds.mT @ q, p.mT @ do)
    )  # fmt: skip
    return o, lse.squeeze(-1) * LOG2E, ds @ keys, dk, dv


def padded(d: int) -> int:
    """The columns that a head of d is computed with."""
    return next(n for n in LAYOUTS if d <= n)


def _check(do, q, k, v, o, lse, window, out):
    if q.dim() != 4 or dtype_name(q) not in DTYPES:
        raise ValueError(
            f"q: got {dtype_name(q)} {tuple(q.shape)}, it must be (B, H, Tq, D) in "
            f"{' or '.join(DTYPES)}"
        )
    B, H, Tq, D = q.shape
    if not 8 <= D <= 128 or D % 8:
        raise ValueError(f"q: D is {D}, it must be a multiple of 8 from 8 to 128")
    if k.dim() != 4 or k.shape[0] != B or k.shape[3] != D or H % k.shape[1] or k.shape[2] < Tq:
        raise ValueError(
            f"k: shape {tuple(k.shape)}, it must be (B, H_kv, Tk, D) like q {tuple(q.shape)}, H a "
            "multiple of H_kv, Tk at least Tq"
        )
    if window is not None and window < 1:
        raise ValueError(f"window: got {window}, it must be at least 1, or None")
    expected = {"do": (do, q), "v": (v, k), "o": (o, q), "k": (k, k), "q": (q, q)}
    if out is not None:
        expected |= {"dq": (out[0], q), "dk": (out[1], k), "dv": (out[2], k)}
    for name, (x, like) in expected.items():
        if x.shape != like.shape or x.dtype != q.dtype or x.device != q.device:
            raise ValueError(
                f"{name}: got {dtype_name(x)} {tuple(x.shape)} on {x.device}, it must be "
                f"{dtype_name(q)} {tuple(like.shape)} on {q.device}"
            )
        if x.stride(3) != 1 or any(s % 8 for s in x.stride()[:3]) or x.data_ptr() % 16:
            raise ValueError(
                f"{name}: strides {x.stride()}, the last must be 1, the others multiples of 16 "
                "bytes, as must the address"
            )
    if lse.dtype != torch.float32 or lse.shape != q.shape[:3] or not lse.is_contiguous():
        raise ValueError(
            f"lse: got {dtype_name(lse)} {tuple(lse.shape)}, it must be contiguous float32 "
            f"{tuple(q.shape[:3])}"
        )


def flat(x: torch.Tensor) -> torch.Tensor:
    """The memory of a strided tensor, from its first element to its last, as one dimension."""
    size = 1 + sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True))
    return x.as_strided((size,), (1,))


def _strides(x):
    """Of (T, H, B), as the kernels take them."""
    return x.stride(2), x.stride(1), x.stride(0)


@functools.cache
def _multiprocessors(device):
    return torch.cuda.get_device_properties(device).multi_processor_count


def heads_together(Tq: int, group: int, heads: int, halves: int, rows: int | None = None) -> int:
    """How many of the key heads, each with `group` query heads, are worked on at a time.

    rows: how many rows of Q they have together, None for what is usually best.
    """
    most = (rows or ROWS) // (Tq * group)
    if rows is None:
        most = min(max(most, FEWEST), MOST[halves])
    most = max(most, 1)
    return -(-heads // -(-heads // most))


def launches(do, q, k, v, o, lse, out, *, causal, window, scale, layout, grid=None, rows=None):
    """The launches of a backward pass in order: (kernel, grid, block, bytes, arguments)."""
    (B, H, Tq, D), (Hkv, Tk) = q.shape, k.shape[1:3]
    dq, dk, dv = out
    dtype, bq = dtype_name(q), layout.bq
    blocks, key_blocks = -(-Tq // bq), -(-Tk // KEYS)
    tiles = B * Hkv * key_blocks
    width = heads_together(Tq, H // Hkv, B * Hkv, layout.halves, rows)
    stats = torch.empty(B * H * blocks * 2 * bq, dtype=torch.float32, device=q.device)
    make = torch.empty if layout.ordered else torch.zeros  # the first part of dQ is stored
    part = make(B * H * blocks * 128 * layout.part_columns, dtype=torch.float32, device=q.device)
    counters = torch.empty(1 + B * H * blocks, dtype=torch.uint32, device=q.device)
    if grid is None:
        grid = _multiprocessors(q.device) if q.is_cuda else EMULATED_BLOCKS
    delta_blocks = -(-blocks * bq * lanes_of(D) // DELTA_THREADS)
    yield (
        delta_kernel(dtype, D, bq), (delta_blocks, H, B), DELTA_THREADS, 0,
        (flat(o), flat(do), lse, stats, counters, *_strides(o), *_strides(do), Tq, blocks),
    )  # fmt: skip
    boxes = ((q, bq), (k, KEYS), (v, KEYS), (do, bq), (dk, 64), (dv, 64))
    maps = [ptx.tensor_map(x, (1, 1, box, 64), 128) for x, box in boxes]
    yield (
        backward_kernel(dtype, layout), min(grid, tiles), THREADS, layout.nbytes,
        (*maps, stats, part, counters, flat(dq), *_strides(dq), H, Hkv, H // Hkv, blocks,
         key_blocks, tiles, width, Tq, Tk, D, *band(causal, window), scale * LOG2E, scale),
    )  # fmt: skip
    if not layout.ordered:
        groups = layout.part_columns // 8
        yield (
            convert_kernel(dtype, layout), (-(-blocks * 64 * groups // CONVERT_THREADS), H, B),
            CONVERT_THREADS, 0, (part, flat(dq), *_strides(dq), blocks, Tq, D, scale),
        )  # fmt: skip


def backward(do, q, k, v, o, lse, *, causal=True, window=None, scale=None, out=None, layout=None,
             grid=None, rows=None):  # fmt: skip
    """(dq, dk, dv) of attention, from dO, the operands, O and the log-sum-exp of the forward pass.

    q, do, o: (B, H, Tq, D); k, v: (B, H_kv, Tk, D), H a multiple of H_kv, Tq ≤ Tk; bfloat16 or
        float16, D a multiple of 8 up to 128. Views are taken as they are if the last axis is
        contiguous and the other strides are multiples of 16 bytes (packed qkv, say).
    lse: (B, H, Tq) float32, base 2: log2 Σ exp(scale · s); −∞ for a query that sees no key, whose
        gradients are 0.
    causal, window, scale: query t is the position t + Tk − Tq; it sees key s where s ≤ its position
        (causal) and their distance is below window; scale is 1 / √D by default.
    out: (dq, dk, dv) to write into, views as above. layout, grid, rows: for measurements.

    Raises ValueError naming the argument that is not so.
    """
    _check(do, q, k, v, o, lse, window, out)
    dq, dk, dv = out or (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    if not q.numel() or not k.numel():
        dk.zero_(), dv.zero_()
        return dq, dk, dv
    scale = 1 / math.sqrt(q.shape[3]) if scale is None else scale
    layout = layout or LAYOUTS[padded(q.shape[3])]
    options = dict(causal=causal, window=window, scale=scale, layout=layout, grid=grid, rows=rows)
    for kernel, blocks, threads, smem, args in launches(
        do, q, k, v, o, lse, (dq, dk, dv), **options
    ):
        kernel[blocks, threads, 0, smem](*args)
    return dq, dk, dv


UNORDERED = {d: layout._replace(ordered=False) for d, layout in LAYOUTS.items()}


def backward_unordered(do, q, k, v, o, lse, **options):
    """The rung before: parts of dQ added by plain atomics, then converted. dq differs from run to
    run in its last bits, by the order in which the blocks come."""
    return backward(do, q, k, v, o, lse, layout=UNORDERED[padded(q.shape[3])], **options)


RUNGS = {"unordered": backward_unordered, "ordered": backward}
