"""Linear layers whose weights have 8 or 4 bits: y = x wᵀ, w read as codes and scales.

    y[…, n] = Σ_k x[…, k] · scale[n, group of k] · code[n, k]

x (…, K) is bfloat16 or float16, 1 to 64 rows of it; the codes and scales are those of `quantize`.
A product with so few rows waits for its weights: 2 · rows FLOPs for each of them. Bytes, at the
3.0 TB/s that an H100 reads:

    8192 × 8192    bfloat16 134 MB, 45 µs    int8, fp8 67 MB, 22 µs    int4 34.6 MB, 12 µs

Codes are exact in bfloat16 and float16, products in float32; scales multiply the float32 sum of a
row or a group; y is rounded once. Sums are made in a fixed order: the same bits every time.

| rows            | kernel                               | from               |
|-----------------|--------------------------------------|--------------------|
| 1 to 8          | `quantized_few`, tensor cores        | sm_80              |
| 9 to 64         | `quantized_tiles`, x in shared memory| sm_80              |
| 1 to 64, by 4   | `quantized_rows`, FMA pipe           | sm_75, without them|

More rows are refused: from there on unpacking w once and a dense product are faster.
"""

import functools
import math

import torch
import torch.nn.functional as F

from .dtypes import dtype_name
from .quantize import GROUPS, PAD, TILE, Quantized, codes_of
from .quantized_few import few_kernel
from .quantized_rows import rows_kernel
from .quantized_tiles import COMBINE_THREADS, combine_kernel, shared_bytes, tiles_kernel

MOST_ROWS = 64
FEW_ROWS = 8  # of one mma
SLAB = 4  # rows that the kernel without tensor cores takes at once: more do not fit its registers
TENSOR_CORES = (8, 0)  # bfloat16 mma.sync, cp.async


def int8_linear_reference(x: torch.Tensor, q: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """x wᵀ with w[n, k] = scales[n] · code[n, k], in x's format."""
    codes = codes_of(q)[: len(scales), : x.shape[-1]].to(x.dtype)
    return x @ (codes * scales.to(x.dtype)[:, None]).T


fp8_linear_reference = int8_linear_reference


def int4_linear_reference(x: torch.Tensor, q: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """x wᵀ with w[n, k] = scales[k // group, n] · code[n, k], in x's format."""
    groups, N = scales.shape
    codes = codes_of(q)[:N].to(x.dtype)
    factors = scales.T.to(x.dtype).repeat_interleave(group_of(codes.shape[1], groups), 1)
    return x @ (codes * factors[:, : codes.shape[1]])[:, : x.shape[-1]].T


# ---- launchers: x (M, padded K) contiguous, y (M, N)


@functools.cache
def _has_tensor_cores(device: torch.device) -> bool:
    """Also true of the emulator, which has every instruction."""
    return device.type == "cpu" or torch.cuda.get_device_capability(device) >= TENSOR_CORES


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    if device.type == "cpu":
        return 2  # the emulator has none; tests want to see several blocks
    return torch.cuda.get_device_properties(device).multi_processor_count


@functools.cache
def _shared_memory(device: torch.device) -> int:
    if device.type == "cpu":
        return 232448  # an H100's
    return torch.cuda.get_device_properties(device).shared_memory_per_block_optin


def _few(kind, x, q, scales, y, group):
    (M, K), N = x.shape, y.shape[1]
    tiles, warps, depth, blocks, ahead = few_settings(kind, N)
    full = N % (16 * tiles) == 0
    kernel = few_kernel(kind, dtype_name(x), tiles, warps, depth, blocks, ahead, full, group)
    kernel[-(-N // (16 * tiles)), 32 * warps](x, q, scales, y, M, N, K)


# Columns up to which a setting is the fastest, and (tiles, warps, depth, blocks, ahead) of
# quantized_few: all blocks ought to be on the GPU at once.
FEW = {
    "int4": ((6144, (1, 16, 1, 2, 2)), (9216, (2, 12, 1, 1, 4)), (math.inf, (2, 8, 1, 2, 2))),
    "8 bits": ((9216, (2, 16, 1, 1, 2)), (math.inf, (2, 8, 1, 2, 2))),
}
# Rows → (tiles, across, deep, stages, blocks) of quantized_tiles, the fastest on an H100. A GPU
# with less shared memory has fewer stages; where two do not fit, as on sm_89, SMALL is taken.
TILES = {
    "int4": {16: (2, 2, 8, 3, 1), 32: (1, 4, 4, 4, 1), 64: (1, 4, 2, 4, 1)},
    "8 bits": {16: (1, 4, 2, 4, 2), 32: (1, 4, 4, 3, 1), 64: (2, 4, 2, 3, 1)},
}
SMALL = (1, 4, 2, 4, 1)


def few_settings(kind: str, N: int) -> tuple:
    """(tiles, warps, depth, blocks, ahead) for N columns."""
    return next(s for columns, s in FEW[_width(kind)] if columns >= N)


def tiles_settings(kind: str, rows: int, memory: int) -> tuple:
    """(tiles, across, deep, stages, blocks) for a GPU with so much shared memory for a block."""
    for tiles, across, deep, most, blocks in (TILES[_width(kind)][rows], SMALL):
        for stages in range(most, 1, -1):
            if shared_bytes(kind, rows, tiles, across, deep, stages) <= memory:
                return tiles, across, deep, stages, blocks
    raise ValueError(f"x: {rows} rows need more than the {memory} bytes of shared memory here.")


def _width(kind):
    return "int4" if kind == "int4" else "8 bits"


WARPS = 8  # of a block of quantized_rows


def depth_of(rows: int) -> int:
    """Chunks on their way in quantized_rows: two, if their code and x of the rows fit registers."""
    return 2 if rows <= 2 else 1


def _tiles(kind, x, q, scales, y, group):
    (M, K), N = x.shape, y.shape[1]
    rows = next(r for r in (16, 32, 64) if M <= r)
    tiles, across, deep, stages, blocks = tiles_settings(kind, rows, _shared_memory(x.device))
    grid, steps = -(-N // (16 * tiles * across)), K // 128
    parts = max(1, min(4, _multiprocessors(x.device) // grid, steps // (2 * deep)))
    share = -(-steps // parts)
    kernel = tiles_kernel(
        kind, dtype_name(x), rows, tiles, across, deep, stages, blocks, group, min(parts, 2)
    )
    threads, smem = 32 * across * deep, shared_bytes(kind, rows, tiles, across, deep, stages)
    if parts == 1:
        kernel[grid, threads, 0, smem](x, q, scales, y, M, N, K, share)
        return
    sums = torch.empty(parts, M, N, dtype=torch.float32, device=x.device)
    kernel[(grid, parts), threads, 0, smem](x, q, scales, sums, M, N, K, share)
    combine = combine_kernel(dtype_name(x), parts, kind != "int4")
    combine[(-(-N // COMBINE_THREADS), M), COMBINE_THREADS](
        sums, sums if kind == "int4" else scales, y, M, N
    )


def _slabs(kind, x, q, scales, y, group):
    (M, K), N = x.shape, y.shape[1]
    for first in range(0, M, SLAB):
        rows = min(SLAB, M - first)
        kernel = rows_kernel(kind, dtype_name(x), rows, WARPS, depth_of(rows), group)
        part = slice(first, first + rows)
        kernel[-(-N // 16), 32 * WARPS](x[part], q, scales, y[part], N, K)


RUNGS = {"rows": _slabs, "few": _few, "tiles": _tiles}


def rung_for(rows: int, device: torch.device) -> str:
    """Which kernel takes so many rows on a device: see the table above."""
    if not _has_tensor_cores(device):
        return "rows"
    return "few" if rows <= FEW_ROWS else "tiles"


def group_of(K: int, groups: int) -> int:
    """The k of a scale where padded K is shared by so many; 0 where no group size fits."""
    return next((g for g in GROUPS if -(-K // g) == groups), 0)


def _linear(op, kind, x, q, scales, group=0, rung=None):
    N, padded = scales.shape[-1], len(q) * (128 if kind == "int4" else 64)
    _check_x(op, x, q, scales, padded)
    shape = x.shape
    rows = math.prod(shape[:-1])
    if rows > MOST_ROWS:
        raise ValueError(
            f"x: it has {rows} rows, {op} takes up to {MOST_ROWS}. For more, unpack w once: "
            "F.linear(x, quantized.dequantize(x.dtype)) is faster from there on."
        )
    y = torch.empty(*shape[:-1], N, dtype=x.dtype, device=x.device)
    if rows:
        x = x.reshape(rows, shape[-1]).contiguous()
        if shape[-1] != padded:
            x = F.pad(x, (0, padded - shape[-1]))
        elif x.data_ptr() % 16:
            x = x.clone()
        codes = q.view(torch.uint8)
        RUNGS[rung or rung_for(rows, x.device)](kind, x, codes, scales, y.view(rows, N), group)
    return y


def _check_x(op, x, q, scales, padded):
    if dtype_name(x) not in ("bfloat16", "float16"):
        raise TypeError(f"x: its dtype is {dtype_name(x)}, {op} takes bfloat16 and float16.")
    if x.dim() < 1 or -(-x.shape[-1] // PAD) * PAD != padded:
        raise ValueError(
            f"x: its shape is {tuple(x.shape)}; the codes are of rows of {padded - PAD + 1} to "
            f"{padded} numbers, and so long must x's last axis be."
        )
    if x.requires_grad and torch.is_grad_enabled():
        raise ValueError(f"x: it requires a gradient, and {op} has no backward pass; detach it.")
    for name, tensor in (("q", q), ("scales", scales)):
        if tensor.device != x.device:
            raise ValueError(f"{name}: it is on {tensor.device}, x on {x.device}.")
        if not tensor.is_contiguous() or tensor.data_ptr() % 16:
            raise ValueError(f"{name}: it must be contiguous and begin at a multiple of 16 bytes.")


def _check_codes(op, q, dtypes, scales, by_row):
    if q.dtype not in dtypes or q.dim() != 6 or q.shape[2:] != (2, 8, 4, 16):
        names = " or ".join(map(dtype_name, dtypes))
        raise TypeError(
            f"q: it is {dtype_name(q)} {tuple(q.shape)}, {op} takes {names} codes in the order of "
            f"{op.replace('_linear', '')}'s quantiser, (chunks, tiles, 2, 8, 4, 16)."
        )
    if q.nbytes >= 2**32:
        raise ValueError(f"q: it has {q.nbytes} bytes, {op} counts up to {2**32 - 1}.")
    wanted, dims = (torch.float32, 1) if by_row else (torch.bfloat16, 2)
    if scales.dtype != wanted or scales.dim() != dims or -(-scales.shape[-1] // TILE) != q.shape[1]:
        rows = f"{TILE * q.shape[1] - TILE + 1} to {TILE * q.shape[1]}"
        raise TypeError(
            f"scales: they are {dtype_name(scales)} {tuple(scales.shape)}, {op} takes "
            f"{dtype_name(wanted)} {'(N,)' if by_row else '(groups, N)'}, N from {rows}."
        )


def linear_by(rung: str, x: torch.Tensor, quantized: Quantized) -> torch.Tensor:
    """x wᵀ by one of RUNGS: "rows", "few" (up to 8 rows) or "tiles"."""
    kind, group = quantized.kind, quantized.group or 0
    return _linear(f"{kind}_linear", kind, x, quantized.q, quantized.scales, group, rung)


def int8_linear(x: torch.Tensor, q: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """x wᵀ with int8 weights: x (…, K) → y (…, N) of x's dtype, bfloat16 or float16.

    q: int8 codes in stored order, scales: float32 (N,), as from `quantize_int8`. 1 to 64 rows of x,
    more raise ValueError. x is copied first where it is not contiguous, not at a multiple of 16
    bytes, or K is not a multiple of 128. No backward pass.
    """
    _check_codes("int8_linear", q, (torch.int8,), scales, True)
    return _linear("int8_linear", "int8", x, q, scales)


def int4_linear(x: torch.Tensor, q: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """x wᵀ with int4 weights: x (…, K) → y (…, N) of x's dtype, bfloat16 or float16.

    q: uint8, two codes each, in stored order, scales: bfloat16 (groups, N), as from
    `quantize_int4`; the group is known from their shapes. The rest as in `int8_linear`.
    """
    _check_codes("int4_linear", q, (torch.uint8,), scales, False)
    group = group_of(PAD * len(q), len(scales))
    if not group:
        raise ValueError(
            f"scales: their shape is {tuple(scales.shape)}; int4_linear knows no groups of which "
            f"{len(scales)} make {PAD * len(q)} k: {', '.join(map(str, GROUPS))}."
        )
    return _linear("int4_linear", "int4", x, q, scales, group)


def fp8_linear(x: torch.Tensor, q: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """x wᵀ with 8-bit float weights: x (…, K) → y (…, N) of x's dtype, bfloat16 or float16.

    q: float8_e4m3fn or float8_e5m2 in stored order, scales: float32 (N,), as from `quantize_fp8`.
    Codes that are NaN or infinite are read as numbers. The rest as in `int8_linear`.
    """
    dtypes = (torch.float8_e4m3fn, torch.float8_e5m2)
    _check_codes("fp8_linear", q, dtypes, scales, True)
    return _linear("fp8_linear", "e4m3" if q.dtype == dtypes[0] else "e5m2", x, q, scales)
