"""Cases of `sanitizer_cases`: the operations that go through memory row by row."""

import itertools

import torch

from .sanitizer_inputs import SHAPES, WIDE, backward, module, randn, take

NORM_SHAPES = ((7, 33), (2, 136))  # each is a kernel of its own
VECTOR_ONLY = ("vectorised", "staged")  # rungs of the norms that refuse rows of odd length


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
