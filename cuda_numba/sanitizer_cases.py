"""What `cuda_numba.sanitizer` watches: every kernel of every operation, launched once, small.

    python -m cuda_numba.sanitizer_cases [--device cpu] [--part 0/3] [--fault race]

Every rung, forward and backward, in float32 and bfloat16, over odd shapes and over a row that
16-byte accesses divide. The last line printed is CASES and JSON: the kernels that ran, and how many
launches there were. --part i/n takes every n-th case from the i-th on. --fault launches one of
`sanitizer_faults` instead, which must be found.
"""

import argparse
import itertools
import json
from collections.abc import Callable, Iterator
from importlib import import_module

import torch

from . import sanitizer_faults, sanitizer_ptx
from .jit import launches

SHAPES = ((1, 1), (1, 7), (7, 33), (3, 130), (2, 136))  # (rows, columns); 136: whole 16 bytes
NORM_SHAPES = ((7, 33), (2, 136))  # each is a kernel of its own
WIDE = (2, 2056)  # a row for several warps
DTYPES = (torch.float32, torch.bfloat16)
VECTOR_ONLY = ("vectorised", "staged")  # rungs of the norms that refuse rows of odd length


def module(name: str):
    return import_module(f"{__package__}.{name}")


def randn(*shape: int, dtype: torch.dtype, device: str, offset: int = 0) -> torch.Tensor:
    """Normal numbers; `offset` elements behind the start of their memory, and up to its end."""
    size = torch.Size(shape).numel()
    return torch.randn(size + offset).to(dtype).to(device)[offset:].view(shape)


def take(*results: torch.Tensor | None) -> None:
    """Copy results to the host: memory that a kernel ought to have written is read here."""
    for x in results:
        if x is not None and not torch.isfinite(x.detach().cpu().float()).all():
            raise ArithmeticError(f"a result of shape {tuple(x.shape)} is not finite")


def backward(y: torch.Tensor, *leaves: torch.Tensor) -> None:
    """Run y's backward pass with a gradient of ones, and take the gradients of the leaves."""
    y.backward(torch.ones_like(y))
    take(y, *(leaf.grad for leaf in leaves))


# ---- one function per operation; each is run for every dtype


def vector_add(dtype: torch.dtype, device: str) -> None:
    m = module("vector_add")
    for n, offset in itertools.product((1, 7, 33, 130, 4104), (0, 1)):
        a, b = (randn(n, dtype=dtype, device=device, offset=offset) for _ in range(2))
        for name, rung in m.RUNGS.items():
            if dtype == torch.float32 or name == "vectorised":
                take(rung(a, b))


def reduction(dtype: torch.dtype, device: str) -> None:
    m = module("reduction")
    for n in (1, 7, 33, 130, 600, 9000):
        x = randn(n, dtype=dtype, device=device)
        for rung in m.RUNGS.values():
            take(rung(x))
        take(m.reduce_max(x))
    for shape in (*SHAPES, WIDE):
        x = randn(*shape, dtype=dtype, device=device).requires_grad_()
        backward(m.row_sum(x), x)
        backward(m.reduce_sum(x), x)


def softmax(dtype: torch.dtype, device: str) -> None:
    m = module("softmax")
    for shape in (*SHAPES, WIDE):
        x = randn(*shape, dtype=dtype, device=device)
        for rung in m.RUNGS.values():
            take(rung(x))
        x.requires_grad_()
        backward(m.softmax(x), x)


def softmax_long(dtype: torch.dtype, device: str) -> None:
    """The kernels for rows that no team holds, on short rows."""
    m = module("softmax_long")
    for (rows, columns), vector in ((SHAPES[3], False), (SHAPES[4], True), (WIDE, True)):
        x, dy = (randn(rows, columns, dtype=dtype, device=device) for _ in range(2))
        y, dx = torch.empty_like(x), torch.empty_like(x)
        width = 16 // x.itemsize if vector else 1
        name = str(dtype).removeprefix("torch.")
        sizes = (columns, columns // width)
        m.long_forward_kernel(name, width)[rows, m.LONG_THREADS](x, y, *sizes)
        m.long_backward_kernel(name, width)[rows, m.LONG_THREADS](dy, y, dx, *sizes)
        take(y, dx)


def layer_norm(dtype: torch.dtype, device: str) -> None:
    m = module("layer_norm")
    for shape in NORM_SHAPES:
        x, dy = (randn(*shape, dtype=dtype, device=device) for _ in range(2))
        w, b = (randn(shape[1], dtype=dtype, device=device) for _ in range(2))
        for name, rung in m.RUNGS.items():
            if shape == NORM_SHAPES[1] or name not in VECTOR_ONLY:
                y, mean, rstd = rung(x, w, b)
                take(y, mean, rstd)
        for name, rung in m.BACKWARD_RUNGS.items():
            if shape == NORM_SHAPES[1] or name not in VECTOR_ONLY:
                take(*rung(dy, x, w, mean, rstd))
    for shape in (*NORM_SHAPES, WIDE):
        leaves = [randn(*shape, dtype=dtype, device=device) for _ in range(2)]
        leaves += [randn(shape[1], dtype=dtype, device=device) for _ in range(2)]
        x, residual, w, b = (leaf.requires_grad_() for leaf in leaves)
        backward(m.layer_norm(x, w, b), x, w, b)
        y, total = m.layer_norm_residual(x, residual, w, b)
        backward(y + total, x, residual, w, b)


def rms_norm(dtype: torch.dtype, device: str) -> None:
    m = module("rms_norm")
    for shape in NORM_SHAPES:
        x, dy = (randn(*shape, dtype=dtype, device=device) for _ in range(2))
        w = randn(shape[1], dtype=dtype, device=device)
        for name, rung in m.RUNGS.items():
            if shape == NORM_SHAPES[1] or name not in VECTOR_ONLY:
                y, rstd = rung(x, w)
                take(y, rstd)
        for name, rung in m.BACKWARD_RUNGS.items():
            if shape == NORM_SHAPES[1] or name not in VECTOR_ONLY:
                take(*rung(dy, x, w, rstd))
    for shape in (*NORM_SHAPES, WIDE):
        leaves = [randn(*shape, dtype=dtype, device=device) for _ in range(2)]
        leaves += [randn(shape[1], dtype=dtype, device=device)]
        x, residual, w = (leaf.requires_grad_() for leaf in leaves)
        backward(m.rms_norm(x, w), x, w)
        y, total = m.rms_norm_residual(x, residual, w)
        backward(y + total, x, residual, w)


def activation(dtype: torch.dtype, device: str) -> None:
    m = module("activation")
    for n, offset in itertools.product((1, 7, 33, 130, 4104), (0, 1)):
        x, up = (randn(n, dtype=dtype, device=device, offset=offset) for _ in range(2))
        for form, rung in itertools.product(m.GELU, m.RUNGS):
            take(m.gelu_forward(x, form, rung))
        for rung in m.SWIGLU_RUNGS.values():
            take(rung(x, up))
        x.requires_grad_(), up.requires_grad_()
        for form in m.GELU:
            backward(m.gelu(x, form), x)
        backward(m.swiglu(x, up), x, up)


def rope(dtype: torch.dtype, device: str) -> None:
    m = module("rope")
    for B, H, T, D in ((1, 1, 1, 2), (2, 3, 7, 6), (1, 4, 33, 32)):
        angles = torch.rand(T, D // 2)
        cos, sin = angles.cos().to(device), angles.sin().to(device)
        x = randn(B, H, T, D, dtype=dtype, device=device)
        for rung in m.RUNGS.values():
            take(rung(x, cos, sin))
        strided = randn(B, T, H, D, dtype=dtype, device=device).requires_grad_()
        backward(m.rope(strided.transpose(1, 2), cos, sin), strided)


def embedding(dtype: torch.dtype, device: str) -> None:
    m = module("embedding")
    # 300 tokens of few ids: more than one group to sort into, and ids that are cut into pieces.
    # 256: 32 lanes share a row of either format evenly.
    for n, V, C in ((1, 1, 1), (7, 33, 7), (300, 5, 136), (7, 5, 256)):
        ids = torch.randint(V, (n,)).to(device)
        ids = ids.int() if n == 7 else ids
        w = randn(V, C, dtype=dtype, device=device)
        for rung in m.RUNGS.values():
            take(rung(ids, w))
        w.requires_grad_()
        backward(m.embedding(ids, w), w)


def cross_entropy(dtype: torch.dtype, device: str) -> None:
    m = module("cross_entropy")
    for rows, columns in (*SHAPES, WIDE):
        targets = torch.randint(columns, (rows,))
        targets[rows // 2 :][:1] = -100 if rows > 1 else targets[0]
        targets = targets.to(device)
        x = randn(rows, columns, dtype=dtype, device=device)
        for rung in m.RUNGS.values():
            take(*rung(x.clone(), targets))
        x.requires_grad_()
        backward(m.cross_entropy(x, targets), x)
        loss = m.cross_entropy_(x * 2, targets)
        (loss * 3).backward()
        take(loss, x.grad)


def fused_cross_entropy(dtype: torch.dtype, device: str) -> None:
    """Rows so long that the kernel counts the targets itself, and one that it streams."""
    m = module("cross_entropy")
    for columns in (16392, 200_000 if device == "cuda" else 16393):
        x = randn(2, columns, dtype=dtype, device=device)
        take(*m.cross_entropy_forward_backward(x, torch.tensor([3, -100]).to(device)))


def optimizer(dtype: torch.dtype, device: str) -> None:
    m = module("optimizer")
    rates = {"lr": 1e-3, "betas": (0.9, 0.99), "weight_decay": 0.1}
    adamw = rates | {"eps": 1e-8, "step": 3}

    def tensors() -> list[torch.Tensor]:
        return [randn(n, dtype=dtype, device=device).abs() for n in (1, 7, 33, 130, 5000)]

    for rung in m.RUNGS.values():
        state = [tensors() for _ in range(4)]
        rung(*state, **adamw)
        take(*itertools.chain(*state))
    for rung in m.LION_RUNGS.values():
        state = [tensors() for _ in range(3)]
        rung(*state, **rates)
        take(*itertools.chain(*state))
    state, copies = [tensors() for _ in range(4)], [t.bfloat16() for t in tensors()]
    lr = torch.full((1,), 1e-3, device=device)
    m.adamw_step(*state, **adamw | {"lr": lr}, copies=copies)
    take(*itertools.chain(*state, copies))


OPERATIONS = (
    *(vector_add, reduction, softmax, softmax_long, layer_norm, rms_norm, activation, rope),
    *(embedding, cross_entropy, fused_cross_entropy, optimizer),
)


def cases(device: str) -> Iterator[tuple[str, Callable[[], None]]]:
    """(name, function) of everything there is to run on a device."""
    for operation, dtype in itertools.product(OPERATIONS, DTYPES):
        name = f"{operation.__name__} {str(dtype).removeprefix('torch.')}"
        yield name, lambda operation=operation, dtype=dtype: operation(dtype, device)
    for name, case in sanitizer_ptx.CASES.items():
        yield name, lambda case=case: take(case(device))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m cuda_numba.sanitizer_cases")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--part", default="0/1", help="i/n: every n-th case, from the i-th on")
    parser.add_argument("--fault", choices=sanitizer_faults.FAULTS, help="launch this fault only")
    chosen = parser.parse_args(arguments)
    torch.manual_seed(0)
    part, parts = map(int, chosen.part.split("/"))
    with launches() as log:
        if chosen.fault:
            sanitizer_faults.FAULTS[chosen.fault](chosen.device)
        else:
            for name, case in list(cases(chosen.device))[part::parts]:
                print(name, flush=True)
                case()
        if chosen.device == "cuda":
            torch.cuda.synchronize()
    kernels = sorted({launch.name for launch in log})
    print(f"\nCASES {json.dumps({'kernels': kernels, 'launches': len(log)})}", flush=True)


if __name__ == "__main__":
    main()
