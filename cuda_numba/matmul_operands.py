"""The matrices of a product as kernels take them: not copied, with strides that say how they lie.

    out (…, M, N) = a (…, M, K) @ b (…, K, N)

An operand may lie with K along its rows in memory (K-major: `a` as it is, `b` a transposed view) or
across them (MN-major: `b` as it is, `a` a transposed view). BLAS calls the four cases by whether a
and b are transposed, with columns along memory; here, by what a row of memory runs along:

    a      b        a in memory     b in memory
    K      K        M × K           N × K           x @ w.T, the forward pass of a linear layer
    K      MN       M × K           K × N           x @ w, its gradient dx = dy @ w
    MN     MN       K × M           K × N           its gradient dw = dy.T @ x
    MN     K        K × M           N × K

Leading dimensions are one batch; they broadcast as in torch. Where b is one matrix, the leading
dimensions of a are rows of one larger matrix.
"""

import functools
from typing import NamedTuple

import torch

from .dtypes import dtype_name

MOST_BYTES = 1 << 24  # from one row in memory to the next: 256 of them are counted in 32 bits
MOST_BATCHES = 65535  # blocks of a grid along z


EMULATED = (9, 0), 8  # what the emulator stands for: an H100, but with few multiprocessors


@functools.cache
def _properties(index: int) -> tuple[tuple[int, int], int]:
    found = torch.cuda.get_device_properties(index)
    return (found.major, found.minor), found.multi_processor_count


def gpu_of(x: torch.Tensor) -> tuple[tuple[int, int], int]:
    """(compute capability, number of multiprocessors) of the machine that a kernel on x runs on."""
    return _properties(x.device.index) if x.is_cuda else EMULATED


class View(NamedTuple):
    """A matrix, or a batch of them, in memory."""

    tensor: torch.Tensor  # (batch, rows, columns)
    k_major: bool  # for out: whether its rows are contiguous, which they must be
    pitch: int  # elements from one row in memory to the next
    batch: int  # elements from one matrix to the next; 0 where all share one
    wide: bool  # every row begins at a multiple of 16 bytes (for out: of four elements)


class Product(NamedTuple):
    """What is to be multiplied: the views, the sizes, and the result as the caller wants it."""

    a: View
    b: View
    out: View
    batches: int
    M: int
    N: int
    K: int
    result: torch.Tensor


def product_of(
    a, b, out=None, out_dtype=None, *, dtypes, out_dtypes=None, any_strides=False
) -> Product:
    """Check the operands of out = a @ b, and make what a kernel's launcher needs of them.

    out: written if given, (…, M, N), rows contiguous; else allocated, of `out_dtype` or a's dtype.
    dtypes: the names of what a and b may be; out_dtypes: of what out may be, by default the same.
    any_strides: for kernels that take strides instead of a pitch.

    Raises TypeError for a dtype, ValueError for a shape or for strides that no kernel takes.
    """
    for name, x in (("a", a), ("b", b)):
        if dtype_name(x) not in dtypes:
            allowed = ", ".join(dtypes)
            raise TypeError(f"{name}: its dtype is {dtype_name(x)}, it may be {allowed}")
        if x.dim() < 2:
            raise ValueError(f"{name}: its shape is {tuple(x.shape)}, it must have two dimensions")
    if a.dtype != b.dtype or a.device != b.device:
        raise TypeError(f"b: it is {b.dtype} on {b.device}, and a is {a.dtype} on {a.device}")
    if a.shape[-1] != b.shape[-2]:
        raise ValueError(f"b: its shape is {tuple(b.shape)}, a's {tuple(a.shape)}: K differs")
    try:
        leading = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    except RuntimeError:
        shapes = f"{tuple(a.shape[:-2])} and {tuple(b.shape[:-2])}"
        raise ValueError(f"b: the leading dimensions {shapes} do not broadcast") from None
    shape = (*leading, a.shape[-2], b.shape[-1])
    out = _result(out, out_dtype, shape, a, out_dtypes or dtypes)
    flat_a, flat_b, flat = _flat(a, b, out, leading)
    (batches, M, N), K = flat.shape, a.shape[-1]
    if max(M, N, K) >= 1 << 30:
        raise ValueError(f"a, b: M, N, K are {M}, {N}, {K}, each must be less than 2³⁰")
    view_a = _view("a", flat_a, 2, any_strides)
    view_b = _view("b", flat_b, 1, any_strides)
    return Product(view_a, view_b, _out_view(flat), batches, M, N, K, out)


def _result(out, out_dtype, shape, a, allowed):
    wanted = out_dtype or (a.dtype if out is None else out.dtype)
    if dtype_name(wanted) not in allowed:
        name = "out_dtype" if out_dtype is not None else "out"
        raise TypeError(f"{name}: got {dtype_name(wanted)}, it may be {', '.join(allowed)}")
    if out is None:
        return torch.empty(shape, dtype=wanted, device=a.device)
    if out.shape != shape or out.dtype != wanted or out.device != a.device:
        raise ValueError(
            f"out: it is {out.dtype} {tuple(out.shape)} on {out.device}, "
            f"expected {wanted} {shape} on {a.device}"
        )
    return out


def _flat(a, b, out, leading):
    """The three with one leading dimension: a, b, out."""
    if not leading:
        return a[None], b[None], out[None]
    if b.dim() == 2:
        rows = _count(leading) * a.shape[-2]
        try:  # rows of one matrix: more and fuller tiles, and b is read once
            return a.view(1, rows, a.shape[-1]), b[None], out.view(1, rows, out.shape[-1])
        except RuntimeError:
            pass
    flat = []
    for name, x in (("a", a), ("b", b), ("out", out)):
        shape, strides = x.shape[-2:], x.stride()[-2:]
        steps = x.expand(*leading, *shape).stride()[:-2]
        if (step := _one_step(leading, steps)) is not None:
            flat.append(x.as_strided((_count(leading), *shape), (step, *strides)))
        else:
            raise ValueError(
                f"{name}: its leading dimensions {tuple(x.shape[:-2])} with strides "
                f"{x.stride()[:-2]} are not one batch of evenly spaced matrices"
            )
    return flat


def _one_step(sizes, steps):
    """The distance of neighbours where dimensions of these sizes and strides are one; else None."""
    kept = [(n, step) for n, step in zip(sizes, steps, strict=True) if n != 1]
    for (_, outer), (n, inner) in zip(kept, kept[1:], strict=False):
        if outer != n * inner:
            return None
    return kept[-1][1] if kept else 0


def _count(leading):
    count = 1
    for n in leading:
        count *= n
    return count


def _view(name, x, k_axis, any_strides):
    other = 3 - k_axis
    size_k, size = x.shape[k_axis], x.shape[other]
    along_k, along = x.stride(k_axis), x.stride(other)
    if along_k == 1 or (size_k == 1 and along != 1):
        k_major, pitch, lines = True, along, size
    elif along == 1 or size == 1:
        k_major, pitch, lines = False, along_k, size_k
    elif any_strides:
        k_major, pitch, lines = False, 0, 1
    else:
        raise ValueError(
            f"{name}: its strides are {x.stride()[1:]}, one of the last two must be 1; "
            f"{name}.contiguous() is a copy that has one"
        )
    pitch = pitch if lines > 1 else 0  # of a single line it says nothing
    if pitch * x.itemsize > MOST_BYTES and not any_strides:
        raise ValueError(
            f"{name}: its rows are {pitch * x.itemsize:,} bytes apart, at most {MOST_BYTES:,}"
        )
    return View(x, k_major, pitch, _batch(x), _aligned(x, pitch, 16))


def _out_view(x):
    if x.stride(2) != 1 and x.shape[2] > 1:
        raise ValueError(f"out: its strides are {x.stride()[1:]}, the last one must be 1")
    pitch = x.stride(1) if x.shape[1] > 1 else 0
    return View(x, True, pitch, _batch(x), _aligned(x, pitch, 4 * x.itemsize))


def _batch(x):
    return x.stride(0) if x.shape[0] > 1 else 0


def _aligned(x, pitch, nbytes):
    steps = (pitch, _batch(x))
    return x.data_ptr() % nbytes == 0 and not any(n * x.itemsize % nbytes for n in steps)


def whole(view: View) -> torch.Tensor:
    """All elements from a view's first to its last, as a row: what a bare pointer may be to."""
    x = view.tensor
    last = sum((n - 1) * step for n, step in zip(x.shape, x.stride(), strict=True))
    return x.as_strided((last + 1,), (1,))


def parts_of(p: Product) -> list[Product]:
    """The product in launches: a grid has only so many blocks along z."""
    if p.batches <= MOST_BATCHES:
        return [p]
    parts = []
    for z in range(0, p.batches, MOST_BATCHES):
        views = [v._replace(tensor=v.tensor[z : z + MOST_BATCHES]) for v in (p.a, p.b, p.out)]
        parts.append(Product(*views, min(p.batches - z, MOST_BATCHES), p.M, p.N, p.K, p.result))
    return parts
