"""Launch the Hopper product: operands as they lie in memory, plans, tensor maps, workspace.

    from cuda_numba.matmul_hopper import product

    c = product(a, b)                                   # (…, M, K) × (…, K, N) → (…, M, N)
    y = product(x, w.t(), bias=b, activation="gelu_tanh", pre=pre)
    dx = product(dy, w, slope_at=pre, slope="gelu_tanh", column_sums=db)
    product(dy.t(), x, out=w.grad, row_sums=db, accumulate=True)       # float32

A plan is all that does not change between two calls with the same tensors: the kernel, the tensor
maps, the work list on the device, the launcher. It is kept by the tensors' addresses, shapes and
strides, so that a call costs a look-up and a launch. The first call with new addresses encodes
tensor maps, and the first with a new shape uploads a list: warm up before a CUDA graph is captured.

The workspace of split tiles, partial sums and flags, belongs to a device and a stream; a kernel
clears the flags that it has used. (An aborted launch leaves them set: `forget()` starts afresh.) A
graph keeps the workspace of the stream that it was captured on: do not let it run beside products
of that stream.
"""

import functools
from collections.abc import Callable

import torch

from . import ptx
from .dtypes import dtype_name
from .hopper_choice import Choice, choice
from .hopper_epilogue import Epilogue, sum_rows_of
from .hopper_operand import Operand, Target, operand, target
from .hopper_product import THREADS, product_kernel
from .hopper_schedule import pieces_of, table_of
from .hopper_tile import DEPTH, ROWS, Kind
from .hopper_turns import turns_kernel
from .matmul_sums import sum_rows

H100_BLOCKS = 132  # multiprocessors; also what the emulator is taken to have
PLANS = 4096  # that are kept

_plans: dict[tuple, Callable[..., None]] = {}
_workspaces: dict[tuple, list] = {}


def forget() -> None:
    """Drop every plan and workspace."""
    _plans.clear()
    _workspaces.clear()


# ---- what a plan is made of


@functools.cache
def blocks_of(device: torch.device) -> int:
    """Blocks of the persistent grid, one for each multiprocessor."""
    if device.type != "cuda":
        return H100_BLOCKS
    return torch.cuda.get_device_properties(device).multi_processor_count


@functools.lru_cache(maxsize=PLANS)
def work_list(device: torch.device, *shape: int) -> tuple[torch.Tensor, int, int]:
    """The table on a device, its number of lists, and the slots; shape: of `pieces_of`."""
    lists, slots = pieces_of(*shape)
    table = torch.tensor(table_of(lists), dtype=torch.int64).to(torch.int32).view(torch.uint32)
    return table.to(device), len(lists), slots


@functools.cache
def nothing(device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Stands for a tensor that a kernel does not use."""
    return torch.zeros(4, dtype=dtype, device=device)


def workspace(device: torch.device, slots: int, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Partial tiles and flags for this device and its current stream; they only grow.

    What was handed out before is kept: a captured graph may still use it.
    """
    if not slots:
        return nothing(device, torch.float32), nothing(device, torch.uint32)
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    kept = _workspaces.setdefault((device, stream), [])
    size, flags = slots * ROWS * n, 2 * slots
    if not kept or kept[-1][0].numel() < size or kept[-1][1].numel() < flags:
        size = max([size, *(p.numel() for p, _ in kept)])
        flags = max([flags, *(f.numel() for _, f in kept)])
        partials = torch.empty(size, dtype=torch.float32, device=device)
        cleared = torch.zeros(flags, dtype=torch.int32, device=device).view(torch.uint32)
        kept.append((partials, cleared))
    return kept[-1]


def tensor_map(x: torch.Tensor, rows: int) -> int:
    """The map of (batches, rows, columns) for boxes of so many rows and 128 bytes.

    On a GPU as a plain number: a `TensorMap` would keep the tensor's memory from being freed, and
    the descriptor of an address stays right whatever tensor lies there.
    """
    made = ptx.tensor_map(x, (1, rows, 128 // x.element_size()), swizzle=128, l2_promotion=256)
    return int(made) if x.is_cuda else made


# ---- plans


def plan(a: Operand, b: Operand, c: Target, kind: Kind, chosen: Choice,
         beside: Target | None = None, blocks: int | None = None) -> Callable:  # fmt: skip
    """A function of (c, bias, sums) that launches one product; everything is checked already.

    It holds none of these tensors. beside: the matrix that is read or written beside C.
    """
    tile, device = chosen.tile, a.view.device
    if tile.pair and chosen.split:
        raise ValueError("chosen: pairs of blocks do not split tiles")
    (batches, M, K), N = a.shape, b.shape[2]
    batches = max(batches, b.shape[0])
    tiles = -(-M // tile.rows), -(-N // tile.n), batches
    blocks = (blocks or blocks_of(device)) // (1 + tile.pair)
    if not chosen.split:
        blocks = min(blocks, tiles[0] * tiles[1] * tiles[2])
    table, blocks, slots = work_list(
        device, *tiles, -(-K // DEPTH), blocks, chosen.group, chosen.split, chosen.adjust
    )
    maps = (
        tensor_map(a.view, DEPTH if kind.a_along_m else ROWS),
        tensor_map(b.view, (DEPTH if kind.b_along_n else tile.n) // (1 + tile.pair)),
        tensor_map(c.view, 64) if kind.store == "tma" else 0,
        tensor_map(beside.view, 64) if beside is not None else 0,
    )
    head = (*maps, table, *workspace(device, slots, tile.n))
    tail = (M, N, c.view.stride(1), c.view.stride(0), int(a.shape[0] > 1), int(b.shape[0] > 1))
    no_c, unused = nothing(device, c.view.dtype), nothing(device, torch.float32)
    make, smem = turns_kernel if tile.turns else product_kernel, tile.shared
    kernel = make(kind, tile, chosen.lto)
    by_tma = kind.store == "tma"

    def arguments(c, bias, sums) -> tuple:
        c = no_c if by_tma else c
        bias, sums = unused if bias is None else bias, unused if sums is None else sums
        return *head, c, bias, sums, *tail

    def launch(c, bias, sums) -> None:
        kernel[blocks, THREADS, 0, smem](*arguments(c, bias, sums))

    def launch_pairs(c, bias, sums) -> None:
        kernel.launch(2 * blocks, THREADS, *arguments(c, bias, sums), smem=smem, cluster=2)

    run = launch_pairs if tile.pair else launch
    if not (kind.epilogue.sums or kind.row_sums):
        return run
    shape = -(-K // DEPTH), M + M % 2
    if kind.epilogue.sums:
        shape = sum_rows_of(M, tile.turns), N + N % 2

    def launch_and_sum(c, bias, sums) -> None:
        partial = torch.empty(shape, dtype=torch.float32, device=device)
        run(c, bias, partial)
        sum_rows(partial, sums)

    return launch_and_sum


def _key(x: torch.Tensor | None):
    return None if x is None else (x.data_ptr(), x.shape, x.stride(), x.dtype)


def product(
    a: torch.Tensor,
    b: torch.Tensor,
    out: torch.Tensor | None = None,
    *,
    out_dtype: torch.dtype | None = None,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
    pre: torch.Tensor | None = None,
    slope_at: torch.Tensor | None = None,
    slope: str = "gelu_tanh",
    residual: torch.Tensor | None = None,
    column_sums: torch.Tensor | None = None,
    row_sums: torch.Tensor | None = None,
    accumulate: bool = False,
    chosen: Choice | None = None,
    blocks: int | None = None,
) -> torch.Tensor:
    """C = A B with float32 sums, then the epilogue (`hopper_epilogue`); no autograd.

    a (…, M, K), b (…, K, N): bfloat16 or float16 views, contiguous along one of the last two
        dimensions, the other stride and the start a multiple of 16 bytes. One of them may be a
        single matrix where the other is a batch.
    out: (…, M, N), bfloat16, float16 or float32, rows contiguous; made where None, of `out_dtype`,
        by default a's.
    bias: (N,), contiguous, any of these formats, added to every row.
    activation: "gelu" or "gelu_tanh", of the sum with the bias. pre: like C, of a's dtype, gets the
        argument of the activation.
    slope_at: like C, of a's dtype: the result is multiplied by slope'(slope_at).
    residual: like C, of a's dtype, is added at the end.
    column_sums: (N,) float32, gets the sum of each column of the result (before it is rounded).
    row_sums: (M,) float32, gets the sum of each row of a, which lies along M as dyᵀ does: a bias's
        gradient without a pass of its own. Not together with column_sums.
    accumulate: out += the result; float32.
    chosen, blocks: instead of `hopper_choice.choice` and of the number of multiprocessors.

    Deterministic. Raises ValueError or TypeError that names the argument.
    """
    key = None
    if a.is_cuda:
        if out is None:
            out = _output(a, b, out_dtype)
        stream = torch._C._cuda_getCurrentRawStream(a.get_device())
        key = (
            _key(a), _key(b), _key(out), _key(bias), activation, _key(pre), _key(slope_at), slope,
            _key(residual), _key(column_sums), _key(row_sums), accumulate, chosen, blocks, stream,
        )  # fmt: skip
        launch = _plans.get(key)
    else:
        launch = None
        out = _output(a, b, out_dtype) if out is None else out
    if not out.numel():
        if column_sums is not None:
            column_sums.zero_()
        if row_sums is not None:
            torch.sum(a, -1, dtype=torch.float32, out=row_sums)
        return out
    if launch is None:
        launch = _planned(
            a, b, out, bias, activation, pre, slope_at, slope, residual, column_sums, row_sums,
            accumulate, chosen, blocks,
        )  # fmt: skip
        if key is not None:
            if len(_plans) >= PLANS:
                _plans.clear()
            _plans[key] = launch
    sums = row_sums if column_sums is None else column_sums
    launch(out if out.is_contiguous() else target("out", out).flat, bias, sums)
    return out


def _output(a, b, out_dtype):
    if a.dim() < 2 or b.dim() < 2 or a.shape[-1] != b.shape[-2]:
        raise ValueError(f"b: its shape is {tuple(b.shape)}, a's {tuple(a.shape)}: no product")
    batch = a.shape[:-2] if a.dim() >= b.dim() else b.shape[:-2]
    return torch.empty(
        *batch, a.shape[-2], b.shape[-1], dtype=out_dtype or a.dtype, device=a.device
    )


def _planned(a, b, out, bias, activation, pre, slope_at, slope, residual, column_sums, row_sums,
             accumulate, chosen, blocks):  # fmt: skip
    """Check everything and make the plan."""
    A, B, C = operand("a", a), operand("b", b), target("out", out)
    (za, M, K), (zb, depth, N) = A.shape, B.shape
    if depth != K or a.dtype != b.dtype or a.device != b.device:
        raise ValueError(
            f"b: {tuple(b.shape)} {dtype_name(b)} on {b.device} does not go with a, "
            f"{tuple(a.shape)} {dtype_name(a)} on {a.device}"
        )
    if not K:
        raise ValueError("a: it has no columns, and tensor cores add nothing")
    shape = (*(a.shape if a.dim() >= b.dim() else b.shape)[:-2], M, N)
    if za > 1 and zb > 1 and a.shape[:-2] != b.shape[:-2]:
        raise ValueError(
            f"b: its batch is {tuple(b.shape[:-2])}, a's is {tuple(a.shape[:-2])}; they must be "
            "equal, or one of them a single matrix"
        )
    if tuple(out.shape) != shape:
        raise ValueError(f"out: its shape is {tuple(out.shape)}, the product's {shape}")
    given = {"pre": pre, "slope_at": slope_at, "residual": residual}
    for name, x in given.items():
        if x is not None and (x.shape != out.shape or x.dtype != a.dtype):
            raise ValueError(
                f"{name}: {tuple(x.shape)} {dtype_name(x)}, it must be {shape} {dtype_name(a)}"
            )
        if x is not None and target(name, x).store != "tma":
            raise ValueError(f"{name}: its rows must be multiples of 16 bytes apart")
    if bias is not None and (tuple(bias.shape) != (N,) or not bias.is_contiguous()):
        raise ValueError(f"bias: its shape is {tuple(bias.shape)}, it must be ({N},) contiguous")
    if accumulate and out.dtype != torch.float32:
        raise TypeError(f"out: it is {dtype_name(out)}; what is added to must be float32")
    if column_sums is not None and (
        tuple(column_sums.shape) != (N,) or column_sums.dtype != torch.float32
        or not column_sums.is_contiguous() or C.view.shape[0] > 1
    ):  # fmt: skip
        raise ValueError(f"column_sums: it must be ({N},) float32, of a single product")
    if row_sums is not None and (
        tuple(row_sums.shape) != (M,) or row_sums.dtype != torch.float32
        or not row_sums.is_contiguous() or C.view.shape[0] > 1
    ):  # fmt: skip
        raise ValueError(f"row_sums: it must be ({M},) float32, of a single product")
    if row_sums is not None and (column_sums is not None or not A.turned):
        raise ValueError("row_sums: a must lie along M, as dy.t() does, and column_sums be None")
    store = C.store
    if (
        store == "tma"
        and out.dtype == torch.float32
        and (residual is not None or slope_at is not None)
    ):
        store = "pairs" if N % 2 == 0 else "singles"
    kind = Kind(
        dtype_name(a), dtype_name(out), A.turned, not B.turned, store,
        Epilogue(
            bias=None if bias is None else dtype_name(bias), keep_pre=pre is not None,
            activation=activation, slope=slope if slope_at is not None else None,
            residual=residual is not None, sums=column_sums is not None, accumulate=accumulate,
        ),
        bias_pairs=bias is None or (N % 2 == 0 and bias.data_ptr() % 8 == 0),
        row_sums=row_sums is not None,
    )  # fmt: skip
    chosen = chosen or choice(M, N, K, C.view.shape[0], kind, blocks or blocks_of(a.device))
    if store == "tma" and not chosen.tile.slots and pre is None:
        kind = kind._replace(store="pairs" if N % 2 == 0 else "singles")
    beside = next((target(n, x) for n, x in given.items() if x is not None), None)
    return plan(A, B, C, kind, chosen, beside, blocks)
