"""Launches of LayerNorm and RMSNorm: which rung, which kernel, how many blocks.

| rung       | forward            | backward           | file            | needs            |
|------------|--------------------|--------------------|-----------------|------------------|
| naive      | 3 reads, 1 write   | 4 reads, 1 write + | `norm_passes`   |                  |
| block      | the same, together | 2 reads for dw, db | `norm_passes`   |                  |
| vectorised | 16-byte accesses   | 16-byte accesses   | `norm_passes`   | aligned rows     |
| registers  | 1 read, 1 write    | 2 reads, 1 write   | `norm_forward`, | n ≤ 16,384 and   |
|            |                    |                    | `norm_backward` | some above       |
| staged     |                    | 2 reads, 1 write,  | `norm_staged`   | aligned rows,    |
|            |                    | rows ahead         |                 | sm_80            |

Without a wish the forward pass takes `registers`, the backward pass `staged`, else `registers`;
rows too wide for those take `vectorised`, or `block` where they are not aligned. Aligned means
that every row of every tensor starts at a multiple of 16 bytes.
"""

import functools

import torch

from .dtypes import FLOATS, dtype_name
from .norm_access import WARP, Variant, access_width
from .norm_backward import register_blocks, register_kernel, register_plan
from .norm_forward import forward_held, forward_kernel, forward_plan
from .norm_passes import (
    THREADS,
    block_backward_kernel,
    block_forward_kernel,
    naive_backward_kernel,
    naive_forward_kernel,
)
from .norm_staged import staged_bytes, staged_kernel, staged_plan, staging
from .norm_weights import (
    NAIVE_THREADS,
    PARTIAL_WARPS,
    column_sums,
    naive_weights_kernel,
    partial_sums_kernel,
)

FORWARD_RUNGS = ("naive", "block", "vectorised", "registers")
BACKWARD_RUNGS = (*FORWARD_RUNGS, "staged")
NAIVE_ROWS = 64  # threads of a block of the naive rungs: more blocks, more multiprocessors busy
# The emulator's device: two multiprocessors, so that persistent grids do go round; else as an H100.
EMULATED = (2, 227 * 1024, (9, 0))


# ---- what the device has


@functools.cache
def _device(device: torch.device) -> tuple[int, int, tuple[int, int]]:
    """Multiprocessors, bytes of shared memory in each, compute capability."""
    if device.type != "cuda":
        return EMULATED
    p = torch.cuda.get_device_properties(device)
    return p.multi_processor_count, p.shared_memory_per_multiprocessor, (p.major, p.minor)


def even_grid(teams: int, most: int) -> int:
    """Blocks for so many rounds of rows, at most `most`, every block with as many as it can be."""
    rounds = -(-teams // most)
    return -(-teams // rounds)


# ---- arguments


def check_arguments(
    x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None = None, **like_x: torch.Tensor | None
) -> None:
    """Raise TypeError or ValueError that names the argument; like_x: tensors shaped as x is."""
    if dtype_name(x) not in FLOATS:
        raise TypeError(f"x: its dtype is {dtype_name(x)}, allowed are {', '.join(FLOATS)}.")
    if not x.dim() or not x.shape[-1]:
        raise ValueError(f"x: its shape is {tuple(x.shape)}, the last axis needs an element.")
    for name, t in (("w", w), ("b", b)):
        if t is None:
            continue
        if tuple(t.shape) != (x.shape[-1],):
            raise ValueError(f"{name}: its shape is {tuple(t.shape)}, it must be ({x.shape[-1]},).")
        if t.dtype not in (x.dtype, torch.float32):
            raise TypeError(
                f"{name}: its dtype is {dtype_name(t)}, "
                f"it must be {dtype_name(x)}, as x, or float32."
            )
    if b is not None and b.dtype != w.dtype:
        raise TypeError(f"b: its dtype is {dtype_name(b)}, it must be {dtype_name(w)}, as w.")
    for name, t in like_x.items():
        if t is not None and (t.shape, t.dtype) != (x.shape, x.dtype):
            raise ValueError(
                f"{name}: it is {dtype_name(t)} {tuple(t.shape)}, it must be "
                f"{dtype_name(x)} {tuple(x.shape)}, as x."
            )
    for name, t in {"w": w, "b": b, **like_x}.items():
        if t is not None and t.device != x.device:
            raise ValueError(f"{name}: it is on {t.device}, it must be on {x.device}, as x.")


def _width_of(rung: str | None, n: int, dtype: str, *tensors: torch.Tensor | None) -> int:
    """Elements in one access for a rung. Raises ValueError where the rung needs aligned rows."""
    if rung in ("naive", "block"):
        return 1
    width = access_width(n, dtype, *tensors)
    if rung in ("vectorised", "staged") and width == 1:
        raise ValueError(
            f"x: rows of {n} {dtype} do not all start at multiples of 16 bytes, "
            f"which rung {rung!r} needs."
        )
    return width


def _check_rung(rung: str | None, allowed: tuple[str, ...]) -> None:
    if rung is not None and rung not in allowed:
        raise ValueError(f"rung: got {rung!r}, allowed are {', '.join(map(repr, allowed))}.")


def _too_wide(n: int, rung: str) -> ValueError:
    return ValueError(f"x: rows of {n} are too wide for rung {rung!r}; 'block' takes any width.")


# ---- forward


def forward(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    w: torch.Tensor,
    b: torch.Tensor | None,
    eps: float,
    centred: bool,
    rung: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """(y, total, mean, rstd) of contiguous tensors; total is x where there is no residual.

    x, residual, y, total (…, n); w, b (n,); mean (None where not centred) and rstd float32 (…,).
    """
    check_arguments(x, w, b, residual=residual)
    _check_rung(rung, FORWARD_RUNGS)
    n = x.shape[-1]
    rows = x.numel() // n
    variant = Variant(centred, b is not None, residual is not None)
    y = torch.empty_like(x)
    total = x if residual is None else torch.empty_like(x)
    rstd = torch.empty(x.shape[:-1], dtype=torch.float32, device=x.device)
    mean = torch.empty_like(rstd) if centred else None
    if rows:
        width = _width_of(rung, n, dtype_name(x), x, residual, w, b, y, total)
        kernel, blocks, threads, per_block = _forward_launch(
            rung, n, dtype_name(x), dtype_name(w), width, variant, _device(x.device)[0]
        )
        grid = even_grid(-(-rows // per_block), blocks) if blocks else -(-rows // per_block)
        kernel[grid, threads](
            x, x if residual is None else residual, w, w if b is None else b, y, total,
            rstd if mean is None else mean, rstd, rows, n, 1 / n, eps,
        )  # fmt: skip
    return y, total, mean, rstd


@functools.cache
def _forward_launch(rung, n, dtype, wdtype, width, variant, multiprocessors):
    """(kernel, blocks at most or 0 for one per team, threads, rows per block)."""
    plan = forward_plan(n, width)
    passes = "vectorised" if width > 1 else "block"
    rung = rung or ("registers" if plan else passes)
    if rung == "naive":
        return naive_forward_kernel(dtype, wdtype, variant), 0, NAIVE_ROWS, NAIVE_ROWS
    if rung == "registers":
        if plan is None:
            raise _too_wide(n, rung)
        blocks = multiprocessors * forward_held(dtype, wdtype, plan, variant).blocks
        return forward_kernel(dtype, wdtype, plan, variant), blocks, plan.threads, plan.rows
    return block_forward_kernel(dtype, wdtype, width, variant), 0, THREADS, 1


# ---- backward


def backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    w: torch.Tensor,
    mean: torch.Tensor | None,
    rstd: torch.Tensor,
    dtotal: torch.Tensor | None,
    bias: bool,
    rung: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """(dx, dw, db) of contiguous tensors; db is None without a bias.

    x is what was normalised: x + residual in the fused form, whose own gradient dtotal (or None) is
    added to dx. mean is None for RMSNorm. dw and db have w's dtype and are deterministic.
    """
    check_arguments(x, w, dy=dy, dtotal=dtotal)
    _check_rung(rung, BACKWARD_RUNGS)
    n = x.shape[-1]
    rows = x.numel() // n
    variant = Variant(mean is not None, bias, dtotal is not None)
    dx = torch.empty_like(x)
    dw = torch.empty_like(w)
    db = torch.empty_like(w) if bias else None
    if not rows:
        return dx, dw.zero_(), None if db is None else db.zero_()
    middle = rstd if mean is None else mean
    dtype, wdtype = dtype_name(x), dtype_name(w)
    multiprocessors, shared, capability = _device(x.device)
    width = _width_of(rung, n, dtype, x, dy, dtotal, w, dx)
    rung, plan, kernel, blocks, smem = _backward_launch(
        rung, n, dtype, wdtype, width, variant, shared, capability
    )
    rest = (rows, n, 1 / n)
    extra = dy if dtotal is None else dtotal
    if plan is None:
        grid, threads = (-(-rows // NAIVE_ROWS), NAIVE_ROWS) if rung == "naive" else (rows, THREADS)
        kernel[grid, threads](dy, x, w, middle, rstd, extra, dx, *rest)
        weight_gradients(rung, dy, x, middle, rstd, dw, db, variant, width, multiprocessors)
        return dx, dw, db
    grid = even_grid(-(-rows // plan.rows), multiprocessors * blocks)
    partial = torch.empty((1 + bias, grid, n), dtype=torch.float32, device=x.device)
    kernel[grid, plan.threads, 0, smem](dy, x, w, middle, rstd, extra, dx, partial, *rest)
    column_sums(partial, dw, *([] if db is None else [db]))
    return dx, dw, db


@functools.cache
def _backward_launch(rung, n, dtype, wdtype, width, variant, shared, capability):
    """(rung, plan or None, kernel, blocks per multiprocessor, bytes of dynamic shared memory)."""
    kept, staged = register_plan(n, width), None
    if width > 1 and (staged := staged_plan(n, width, wdtype)):
        stages, blocks = staging(staged, variant, shared)
        staged = staged if stages else None
    if rung is None:
        rung = "registers" if kept else "vectorised" if width > 1 else "block"
        rung = "staged" if staged and capability >= (8, 0) else rung
    if rung == "registers" and not kept or rung == "staged" and not staged:
        raise _too_wide(n, rung)
    if rung == "naive":
        return rung, None, naive_backward_kernel(dtype, wdtype, variant), 0, 0
    if rung == "staged":
        kernel = staged_kernel(dtype, wdtype, staged, variant, stages, blocks)
        return rung, staged, kernel, blocks, staged_bytes(staged, variant, stages)
    if rung == "registers":
        blocks = register_blocks(kept, variant)[1]
        return rung, kept, register_kernel(dtype, wdtype, kept, variant), blocks, 0
    return rung, None, block_backward_kernel(dtype, wdtype, width, variant), 0, 0


def weight_gradients(rung, dy, x, mean, rstd, dw, db, variant, width, multiprocessors) -> None:
    """Fill dw and db for the rungs whose kernel does not: two more reads."""
    n = x.shape[-1]
    rows = x.numel() // n
    if rung == "naive":
        kernel = naive_weights_kernel(dtype_name(x), dtype_name(dw), variant)
        grid = -(-n // NAIVE_THREADS)
        kernel[grid, NAIVE_THREADS](dy, x, mean, rstd, dw, dw if db is None else db, rows, n)
        return
    groups = -(-n // (WARP * width))
    chunks = max(1, min(rows // PARTIAL_WARPS, 4 * multiprocessors // groups))
    chunk = -(-rows // chunks)
    chunks = -(-rows // chunk)
    partial = torch.empty((1 + variant.bias, chunks, n), dtype=torch.float32, device=x.device)
    kernel = partial_sums_kernel(dtype_name(x), width, variant)
    kernel[(groups, chunks), WARP * PARTIAL_WARPS](dy, x, mean, rstd, partial, rows, n, chunk)
    column_sums(partial, dw, *([] if db is None else [db]))
