"""LayerNorm and RMSNorm over the last axis: the design, and which kernel runs when.

Both read rows of n elements, need a statistic of the whole row, and write a row. At two bytes an
element and about ten operations, bytes are all that counts, so each is moved once:

    forward    x ──► registers ──► y           one team of warps per row, then the next block
                     └─ mean, rstd ──►           `norm_forward`

    backward   x  ──► shared memory ──► dx     few blocks, each going round over many rows, the
               dy ──►    │                       next of them on their way: `norm_staged`
                         └─ dw, db in registers over all rows of a block
                              └─► partial ──► column sums ──► dw, db     `norm_weights`

Forward, rows have nothing in common: a block for each leaves it to the GPU to even out what some
multiprocessors get done faster. Backward, every row adds to dw and db. A block per row would have
to write its share of them, 8 bytes a column where x has 2 in bf16; a block that goes round writes
once for all its rows, and the sums of n columns stay in its registers. They leave no room there for
the next row, which therefore waits in shared memory. Every sum is taken in a fixed order, without
atomics: the same input gives the same bits.

R rows of n, s bytes an element, P blocks that go round:

|                | reads                 | writes                        | bf16 16384 × 4096   |
|----------------|-----------------------|-------------------------------|---------------------|
| forward        | R·n·s                 | R·n·s + 8·R                   | 268 MB              |
| with residual  | 2·R·n·s               | 2·R·n·s + 8·R                 | 537 MB              |
| backward       | 2·R·n·s + 8·R         | R·n·s + 8·P·n                 | 403 MB + 9 MB       |
| column sums    | 8·P·n                 | 2·n·s                         | 9 MB, through L2    |

(RMSNorm has no mean and no bias: 4 where this says 8. A gradient of the residual sum adds R·n·s to
what backward reads.) x and dy are needed twice in a backward row, before and after its two sums are
known; the second time they come from shared memory. w and b come from L1: forward once per row,
backward (w) once per block where a thread has registers for its part, else twice per row.

The rungs, from the naive one on, so that every step can be run and measured:

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
that every row of every tensor starts at a multiple of 16 bytes. Which thread owns what of a row:
`norm_access`. The public operations: `layer_norm` and `rms_norm`.
"""

import functools

import torch

from .dtypes import dtype_name
from .norm_access import Variant
from .norm_arguments import check_arguments, check_rung, too_wide, width_of
from .norm_backward import register_blocks, register_kernel, register_plan
from .norm_forward import forward_kernel, forward_plan
from .norm_passes import (
    THREADS,
    block_backward_kernel,
    block_forward_kernel,
    naive_backward_kernel,
    naive_forward_kernel,
)
from .norm_staged import staged_bytes, staged_kernel, staged_plan, staging
from .norm_weights import column_sums, weight_gradients

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
    check_rung(rung, FORWARD_RUNGS)
    n = x.shape[-1]
    rows = x.numel() // n
    variant = Variant(centred, b is not None, residual is not None)
    y = torch.empty_like(x)
    total = x if residual is None else torch.empty_like(x)
    rstd = torch.empty(x.shape[:-1], dtype=torch.float32, device=x.device)
    mean = torch.empty_like(rstd) if centred else None
    if rows:
        width = width_of(rung, n, dtype_name(x), x, residual, w, b, y, total)
        kernel, threads, per_block = _forward_launch(
            rung, n, dtype_name(x), dtype_name(w), width, variant
        )
        kernel[-(-rows // per_block), threads](
            x, x if residual is None else residual, w, w if b is None else b, y, total,
            rstd if mean is None else mean, rstd, rows, n, 1 / n, eps,
        )  # fmt: skip
    return y, total, mean, rstd


@functools.cache
def _forward_launch(rung, n, dtype, wdtype, width, variant):
    """(kernel, threads, rows per block)."""
    plan = forward_plan(n, width)
    passes = "vectorised" if width > 1 else "block"
    rung = rung or ("registers" if plan else passes)
    if rung == "naive":
        return naive_forward_kernel(dtype, wdtype, variant), NAIVE_ROWS, NAIVE_ROWS
    if rung == "registers":
        if plan is None:
            raise too_wide(n, rung)
        return forward_kernel(dtype, wdtype, plan, variant), plan.threads, plan.rows
    return block_forward_kernel(dtype, wdtype, width, variant), THREADS, 1


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
    check_rung(rung, BACKWARD_RUNGS)
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
    width = width_of(rung, n, dtype, x, dy, dtotal, w, dx)
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
        place = staging(staged, wdtype, variant, shared)
        staged = staged if place.stages else None
    if rung is None:
        rung = "registers" if kept else "vectorised" if width > 1 else "block"
        rung = "staged" if staged and capability >= (8, 0) else rung
    if rung == "registers" and not kept or rung == "staged" and not staged:
        raise too_wide(n, rung)
    if rung == "naive":
        return rung, None, naive_backward_kernel(dtype, wdtype, variant), 0, 0
    if rung == "staged":
        kernel = staged_kernel(dtype, wdtype, staged, variant, place)
        return rung, staged, kernel, place.blocks, staged_bytes(staged, variant, place.stages)
    if rung == "registers":
        blocks = register_blocks(kept, variant)[1]
        return rung, kept, register_kernel(dtype, wdtype, kept, variant), blocks, 0
    return rung, None, block_backward_kernel(dtype, wdtype, width, variant), 0, 0
