"""Attention on `mma.sync`: FlashAttention-2 for GPUs from the T4 on, forward and backward.

    S = scale · Q Kᵀ      P = softmax of S over the keys that are seen      O = P V
    lse = log₂ Σ exp S    (base 2: the exponentials of the backward pass are powers of 2)
    δ = rowsum(dO ∘ O)    dP = dO Vᵀ    dS = P ∘ (dP − δ)
    dQ = scale · dS K     dK = scale · dSᵀ Q     dV = Pᵀ dO

q (B, H, Tq, D), k and v (B, Hk, Tk, D); query head h uses key head h // (H // Hk). The queries are
the last Tq of Tk positions: query t stands at p = t + Tk − Tq and sees key s where s ≤ p (causal)
and |p − s| < window.

    kernel                  a block owns   walks over          products of 2 Tq Tk D FLOPs
    attention_warp_forward  128 queries    their keys          2   S, O
    attention_warp_queries  128 queries    their keys          3   S, dP, dQ; also δ
    attention_warp_keys     64–128 keys    their queries       4   Sᵀ, dPᵀ, dV, dK

The backward pass forms S and dP twice, seven products where five would do, and in return every
number of dQ, dK and dV belongs to one block: no atomics, no workspace but δ, the same bits on every
run. S and P never leave the registers of a warp, but for the P that two warps of the keys' half
share. Bytes: forward q, k, v, o once, and k, v once more a block of queries, from L2. The formulas
in plain PyTorch: `attention.attention_reference`, whose lse is a natural logarithm.

Bound: the tensor cores by way of `mma.sync`, which on an H100 reach about 0.63 of what `wgmma`
does; `attention_hopper` is the rung above. What made a difference there: 32 rows a warp instead of
16 (1.15 at D 128), the next tile's copies behind one barrier, moving the softmax's peak only when
it must (1.05), all heads of the longest walks first (1.10), products without loops (1.05).
Skipping the tiles that a warp does not see cost more in registers than it saved (0.9 at D 128).
Source: Dao 2023, "FlashAttention-2".
"""

import functools
import math

import torch

from .attention_warp_forward import ForwardPlan, forward_kernel
from .attention_warp_keys import KeysPlan, keys_kernel
from .attention_warp_queries import QueriesPlan, queries_kernel
from .attention_warp_scores import Sight
from .attention_warp_tiles import Format
from .dtypes import dtype_name

LOG2E = 1.0 / math.log(2.0)
DIMS = (32, 64, 96, 128)  # what kernels are made for; other head sizes are padded with zeros
FORMATS = ("bfloat16", "float16")

# Sizes of the kernels by architecture, narrow (D ≤ 64) and wide. Those of sm_90 are the fastest
# measured on an H100. The others have not been measured: they are what a multiprocessor's shared
# memory (64 KB on sm_75, 164 on sm_80, 100 on sm_89) and its 65,536 registers leave room for.
#          strips, warps, keys of a tile, Q in registers, blocks
FORWARD = {
    (7, 5): ((1, 4, 32, True, 2), (1, 4, 16, True, 1)),
    (8, 0): ((2, 4, 64, True, 2), (2, 4, 32, False, 2)),
    (8, 9): ((2, 4, 64, True, 2), (1, 8, 32, True, 1)),
    (9, 0): ((2, 4, 64, True, 2), (2, 4, 48, False, 2)),
}
#          strips, warps, keys of a tile, Q and dO in registers, blocks, unrolled (by default)
QUERIES = {
    (7, 5): ((1, 4, 16, True, 2), (1, 4, 16, False, 1)),
    (8, 0): ((2, 4, 32, True, 2), (2, 4, 32, False, 1, False)),
    (8, 9): ((2, 4, 32, True, 2), (2, 4, 32, False, 1, False)),
    (9, 0): ((2, 4, 32, True, 2), (2, 4, 32, False, 2)),
}
#          strips, pairs of warps, queries of a tile, K or V in registers, blocks, parts of P
KEYS = {
    (7, 5): ((1, 4, 16, True, 1, 1), (1, 4, 16, False, 1, 1)),
    (8, 0): ((2, 2, 32, False, 3, 2), (2, 2, 32, False, 2, 2)),
    (8, 9): ((2, 2, 32, False, 2, 2), (2, 2, 32, False, 1, 2)),
    (9, 0): ((2, 2, 64, False, 3, 2), (2, 2, 64, False, 2, 2)),
}


# ---- which kernel


@functools.cache
def architecture(device: torch.device) -> tuple[int, int]:
    """The row of the tables for a device; the emulator runs the code for sm_90."""
    cc = torch.cuda.get_device_capability(device) if device.type == "cuda" else (9, 0)
    if cc[0] in (9, 10):
        return (9, 0)
    return (7, 5) if cc < (8, 0) else (8, 0) if cc in ((8, 0), (8, 7)) else (8, 9)


@functools.cache
def form_of(dtype: str, width: int, cc: tuple[int, int]) -> Format:
    D = next(d for d in DIMS if d >= width)
    return Format(dtype, D, D == width, cc < (8, 0))


@functools.cache
def forward_plan(dtype: str, width: int, cc: tuple[int, int]) -> ForwardPlan:
    return ForwardPlan(form_of(dtype, width, cc), *FORWARD[cc][width > 64])


@functools.cache
def backward_plans(dtype: str, width: int, cc: tuple[int, int]) -> tuple[QueriesPlan, KeysPlan]:
    form = form_of(dtype, width, cc)
    return QueriesPlan(form, *QUERIES[cc][width > 64]), KeysPlan(form, *KEYS[cc][width > 64])


# ---- what kernels are given


def _check(q, k, v, window, scale):
    if dtype_name(q) not in FORMATS or (q.is_cuda and architecture(q.device) == (7, 5)):
        if q.dtype != torch.float16:
            allowed = "float16 on sm_75" if dtype_name(q) in FORMATS else " and ".join(FORMATS)
            raise TypeError(f"q: its dtype is {dtype_name(q)}, attention_warp takes {allowed}.")
    B, H, Tq, D = q.shape
    Hk, Tk = k.shape[1:3]
    for name, x in (("k", k), ("v", v)):
        if x.dtype != q.dtype:
            raise TypeError(f"{name}: its dtype is {dtype_name(x)}, q's is {dtype_name(q)}.")
        if x.shape != (B, Hk, Tk, D):
            raise ValueError(f"{name}: its shape is {tuple(x.shape)}, not {(B, Hk, Tk, D)}.")
    if D % 8 or not 8 <= D <= DIMS[-1]:
        raise ValueError(f"q: heads of {D} numbers; a multiple of 8 up to {DIMS[-1]} is possible.")
    if not Hk or H % Hk:
        raise ValueError(f"q: {H} heads of queries, not a multiple of the {Hk} heads of keys.")
    if Tq > Tk:
        raise ValueError(f"q: {Tq} queries are more than the {Tk} keys, whose last they are.")
    if window is not None and window < 1:
        raise ValueError(f"window: {window}, must be at least 1 or None.")
    if not 0 < scale < math.inf:
        raise ValueError(f"scale: {scale}, must be positive and finite.")
    for name, x in (("q", q), ("k", k), ("v", v)):
        _check_strides(name, x)


def _check_strides(name, x):
    odd = any(s % 8 and n > 1 for n, s in zip(x.shape[:3], x.stride()[:3], strict=True))
    if odd or x.stride(3) != 1 or x.data_ptr() % 16:
        raise ValueError(
            f"{name}: its strides are {x.stride()}; the last must be 1, the others multiples of 8 "
            "(16 bytes), from an address that is a multiple of 16; .contiguous() makes it so."
        )


def _strides(x):
    """Bytes from one batch, head and row to the next."""
    a, b, c, _ = x.stride()
    return 2 * a, 2 * b, 2 * c


def _flat(x):
    """The memory from x's first element to its last: contiguous, as bare pointers must be."""
    if x.is_contiguous():
        return x
    last = sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True))
    return x.as_strided((last + 1,), (1,))


def _empty_like(x):
    """(B, H, T, D) as a view of (B, T, H, D): heads side by side, as the next layer reads them."""
    B, H, T, D = x.shape
    return torch.empty(B, T, H, D, dtype=x.dtype, device=x.device).transpose(1, 2)


# ---- launchers


def forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, causal: bool, window: int | None,
    scale: float, plan: ForwardPlan | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """o (B, H, Tq, D), a view of (B, T, H, D) memory, and lse (B, H, Tq), float32, base 2.

    q, k, v: bfloat16 or float16 (sm_75: float16), D a multiple of 8 up to 128, Tq ≤ Tk; views whose
    last axis is contiguous and whose other strides are multiples of 16 bytes. A query that sees no
    key has o = 0 and lse = −∞. plan: sizes other than the table's.
    """
    _check(q, k, v, window, scale)
    (B, H, Tq, D), (Hk, Tk) = q.shape, k.shape[1:3]
    o = _empty_like(q)
    lse = torch.empty(B, H, Tq, dtype=torch.float32, device=q.device)
    if not lse.numel():
        return o, lse
    plan = plan or forward_plan(dtype_name(q), D, architecture(q.device))
    kernel = forward_kernel(plan, Sight(causal, window is not None))
    kernel[(B * H, -(-Tq // plan.M)), plan.threads, 0, plan.shared](
        _flat(q), _flat(k), _flat(v), _flat(o), lse,
        *_strides(q), *_strides(k), *_strides(v), *_strides(o),
        H, H // Hk, Tq, Tk, 2 * D, min(window or 0, Tk), scale * LOG2E,
    )  # fmt: skip
    return o, lse


def backward(
    do: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, o: torch.Tensor,
    lse: torch.Tensor, *, causal: bool, window: int | None, scale: float,
    out: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None,
    plans: tuple[QueriesPlan, KeysPlan] | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """(dq, dk, dv) of q's dtype, from do and from what the forward pass took and returned.

    out: where to write them, tensors of the shapes of q, k, v and strides as in `forward`; by
    default new ones, views of (B, T, H, D) memory. dk and dv are summed over the query heads of
    their key head in float32, in order. The same bits on every run.
    """
    _check(q, k, v, window, scale)
    (B, H, Tq, D), (Hk, Tk) = q.shape, k.shape[1:3]
    dq, dk, dv = out or (_empty_like(q), _empty_like(k), _empty_like(v))
    for name, x, like in (
        ("do", do, q), ("o", o, q), ("dq", dq, q), ("dk", dk, k), ("dv", dv, v)
    ):  # fmt: skip
        if x.shape != like.shape or x.dtype != q.dtype:
            raise ValueError(
                f"{name}: {dtype_name(x)} {tuple(x.shape)}, must be {dtype_name(q)} "
                f"{tuple(like.shape)}."
            )
        _check_strides(name, x)
    if lse.shape != (B, H, Tq) or lse.dtype != torch.float32 or not lse.is_contiguous():
        raise ValueError(f"lse: must be contiguous float32 {(B, H, Tq)}, as `forward` returns it.")
    if not B * Hk * Tk:
        return dq, dk, dv
    if not Tq:
        return dq, dk.zero_(), dv.zero_()
    delta = torch.empty_like(lse)
    queries, keys = plans or backward_plans(dtype_name(q), D, architecture(q.device))
    sight = Sight(causal, window is not None)
    sizes = (H // Hk, Tq, Tk, 2 * D, min(window or 0, Tk), scale * LOG2E, scale)
    queries_kernel(queries, sight)[
        (B * H, -(-Tq // queries.M)), queries.threads, 0, queries.shared
    ](
        _flat(q), _flat(k), _flat(v), _flat(o), _flat(do), lse, delta, _flat(dq),
        *_strides(q), *_strides(k), *_strides(v), *_strides(o), *_strides(do), *_strides(dq),
        H, *sizes,
    )  # fmt: skip
    keys_kernel(keys, sight)[(B * Hk, -(-Tk // keys.N)), keys.threads, 0, keys.shared](
        _flat(q), _flat(k), _flat(v), _flat(do), lse, delta, _flat(dk), _flat(dv),
        *_strides(q), *_strides(k), *_strides(v), *_strides(do), *_strides(dk), *_strides(dv),
        Hk, *sizes,
    )  # fmt: skip
    return dq, dk, dv
