"""A matrix, or a batch of them, as the tensor memory accelerator sees it.

TMA walks through memory by rows: the last dimension is contiguous, everything else is a multiple of
16 bytes away. A transposed view is the same memory with rows and columns exchanged, and wgmma reads
either, so an operand is looked at the way that its memory lies, and nothing is copied:

    x     (M, K), strides (K, 1)      rows of K          turned = False
    w.t() (K, N), strides (1, K)      rows of K, w's     turned = True

Dimensions of one element may have any stride. Leading dimensions are one batch dimension where one
stride describes them.
"""

from typing import NamedTuple

import torch

from .dtypes import dtype_name

DTYPES = ("bfloat16", "float16")
OUTPUTS = (*DTYPES, "float32")
ALIGNMENT = 16  # bytes


class Operand(NamedTuple):
    """view: (batches, rows, columns) as the memory lies; turned: the matrix that was given has them
    the other way round."""

    view: torch.Tensor
    turned: bool

    @property
    def shape(self) -> tuple[int, int, int]:
        """Batches, rows, columns of what was given."""
        batches, rows, columns = self.view.shape
        return (batches, columns, rows) if self.turned else (batches, rows, columns)


def batch_of(x: torch.Tensor) -> tuple[int, int] | None:
    """Number and stride of the matrices of x; None where their distances differ."""
    count, stride = 1, 0
    for size, step in zip(reversed(x.shape[:-2]), reversed(x.stride()[:-2]), strict=True):
        if size == 1:
            continue
        if count == 1:
            stride = step
        elif step != stride * count:
            return None
        count *= size
    return count, stride


def _pitch(x: torch.Tensor, row: int, column: int) -> int | None:
    """Elements from one row to the next, with dimension `row` as rows; None: rows do not fit."""
    rows, columns = x.shape[row], x.shape[column]
    if columns > 1 and x.stride(column) != 1:
        return None
    whole = ALIGNMENT // x.element_size()
    pitch = x.stride(row) if rows > 1 else -(-columns // whole) * whole
    return pitch if pitch > 0 and pitch % whole == 0 else None


def problem(x: torch.Tensor) -> str | None:
    """Why TMA cannot take a matrix or a batch of them; None where it can."""
    if x.dim() < 2:
        return f"it has {x.dim()} dimensions, a product takes 2 or more"
    if dtype_name(x) not in DTYPES:
        return f"its dtype is {dtype_name(x)}, tensor cores take {', '.join(DTYPES)}"
    size = x.element_size()
    if x.data_ptr() % ALIGNMENT:
        return f"it does not begin at a multiple of {ALIGNMENT} bytes"
    if _pitch(x, -2, -1) is None and _pitch(x, -1, -2) is None:
        return (
            f"its last two strides are {tuple(x.stride()[-2:])}; one must be 1, the other a "
            f"multiple of {ALIGNMENT // size}"
        )
    batch = batch_of(x)
    if batch is None:
        return f"its leading dimensions {tuple(x.shape[:-2])} are not one stride apart"
    if batch[1] * size % ALIGNMENT or batch[1] < 0:
        return f"its matrices are {batch[1] * size} bytes apart, not a multiple of {ALIGNMENT}"
    return None


def operand(name: str, x: torch.Tensor) -> Operand:
    """x as TMA sees it. Raises ValueError where it cannot be seen so."""
    if text := problem(x):
        raise ValueError(f"{name}: {text}")
    pitch, turned = _pitch(x, -2, -1), False
    rows, columns = x.shape[-2:]
    if pitch is None:
        pitch, turned = _pitch(x, -1, -2), True
        rows, columns = columns, rows
    count, stride = batch_of(x)
    # The stride of a batch of one, or of one matrix used many times, must still be a stride.
    view = x.as_strided((count if stride else 1, rows, columns), (stride or rows * pitch, pitch, 1))
    return Operand(view, turned)


class Target(NamedTuple):
    """A matrix that is written: view (batches, M, N), and how: "tma", "pairs" or "singles"."""

    view: torch.Tensor
    store: str

    @property
    def flat(self) -> torch.Tensor:
        """The same memory, from its first element to its last, in one dimension."""
        z, m, n = self.view.shape
        last = sum((k - 1) * s for k, s in zip((z, m, n), self.view.stride(), strict=True))
        return self.view.as_strided((last + 1,), (1,))


def target(name: str, x: torch.Tensor) -> Target:
    """x (…, M, N) as it is written: by TMA where it can be, float32 and odd rows from registers.

    Raises ValueError where its rows are not contiguous or its batch has no single stride.
    """
    if dtype_name(x) not in OUTPUTS:
        raise TypeError(f"{name}: its dtype is {dtype_name(x)}, it may be {', '.join(OUTPUTS)}")
    M, N = x.shape[-2:]
    batch = batch_of(x)
    if batch is None or (N > 1 and x.stride(-1) != 1):
        raise ValueError(f"{name}: its strides are {tuple(x.stride())}; rows must be contiguous")
    whole = ALIGNMENT // x.element_size()
    pitch = x.stride(-2) if M > 1 else -(-N // whole) * whole
    count, stride = batch
    view = x.as_strided((count, M, N), (stride or M * pitch, pitch, 1))
    address = x.data_ptr()
    aligned = pitch % whole == 0 and stride % whole == 0 and address % ALIGNMENT == 0
    if aligned:
        return Target(view, "tma")
    pairs = N % 2 == pitch % 2 == stride % 2 == 0 and address % (2 * x.element_size()) == 0
    return Target(view, "pairs" if pairs else "singles")
