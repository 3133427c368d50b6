"""AdamW and Lion: one step for all parameters of a model in one launch.

AdamW (Loshchilov & Hutter 2019, algorithm 2), step t = 1, 2, …

    m ← β₁ m + (1 − β₁) g         v ← β₂ v + (1 − β₂) g²
    θ ← θ − η λ θ − η m̂ / (√v̂ + ε)          m̂ = m / (1 − β₁ᵗ),  v̂ = v / (1 − β₂ᵗ)

Lion (Chen et al. 2023, algorithm 2)

    θ ← θ − η (sign(β₁ m + (1 − β₁) g) + λ θ)          then m ← β₂ m + (1 − β₂) g

In float32 AdamW reads four numbers a parameter and writes three, 28 bytes, for about 15 operations;
Lion 20 bytes. 124 million parameters: 3.47 and 2.48 GB, 1.16 and 0.83 ms at the 3.0 TB/s of a copy
on an H100. The rungs:

    tensor       one launch for each tensor, one thread for each element
    vectorised   one launch for each tensor, 16 bytes an access, two of them on their way
    one_launch   the same kernel, with tables of addresses and of equal parts: see `optimizer_table`

148 launches of small tensors leave the GPU waiting for the host, and each its last blocks; one
launch has one end. Learning rate, step and a scale of the gradients (for clipping) may lie in
memory on the GPU, where a CUDA graph can find them changed.
"""

import math
from collections.abc import Sequence

import torch

from . import ptx
from .dtypes import dtype_name
from .jit import jit
from .namespace import cuda, float32
from .optimizer_kernel import TUNED, Form, update_kernel
from .optimizer_table import addresses_of, groups_of, layout_of
from .softmax_rows import exp_of

THREADS = 256  # of a block of the first rung
Tensors = Sequence[torch.Tensor]
Number = float | torch.Tensor


def adamw_step_reference(
    params: Tensors, grads: Tensors, ms: Tensors, vs: Tensors, *, lr: float,
    betas: tuple[float, float], eps: float, weight_decay: float, step: int, grad_scale: float = 1.0,
) -> None:  # fmt: skip
    beta1, beta2 = betas
    for p, g, m, v in zip(params, grads, ms, vs, strict=True):
        g = g.to(m.dtype) * grad_scale
        m.mul_(beta1).add_(g, alpha=1 - beta1)
        v.mul_(beta2).add_(g * g, alpha=1 - beta2)
        root = (v / (1 - beta2**step)).sqrt() + eps
        p.sub_(lr * weight_decay * p + lr * (m / (1 - beta1**step)) / root)


def lion_step_reference(
    params: Tensors, grads: Tensors, ms: Tensors, *, lr: float, betas: tuple[float, float],
    weight_decay: float, grad_scale: float = 1.0,
) -> None:  # fmt: skip
    beta1, beta2 = betas
    for p, g, m in zip(params, grads, ms, strict=True):
        g = g.to(m.dtype) * grad_scale
        direction = torch.sign(beta1 * m + (1 - beta1) * g)
        p.sub_(lr * (direction + weight_decay * p))
        m.mul_(beta2).add_(g, alpha=1 - beta2)


# ---- the rules, of one element


@jit(device=True)
def one_minus_exp(y):
    """1 − exp(y) for y ≤ 0. Near 0 by its series: 1 − 0.999 from float32 would keep four digits."""
    near = float32(1)
    for k in range(7, 1, -1):
        near = float32(1) + y * float32(1 / k) * near
    return -y * near if y > float32(-0.3) else float32(1) - exp_of(y)


@jit(device=True)
def adamw_prepare(lr, step, log1, log2, eps):
    """√v̂ + ε = (√v + ε root) / root with root = √(1 − β₂ᵗ): both corrections in two numbers."""
    root = ptx.sqrt(one_minus_exp(step * log2))
    return ptx.div(lr * root, one_minus_exp(step * log1)), eps * root


@jit(device=True)
def adamw_rule(p, g, m, v, shrink, size, small, b1, a1, b2, a2):
    m = b1 * m + a1 * g
    v = b2 * v + a2 * (g * g)
    return p - shrink * p - size * ptx.div(m, ptx.sqrt(v) + small), m, v


@jit(device=True)
def lion_prepare(lr, step, log1, log2, eps):
    return lr, float32(0)


@jit(device=True)
def lion_rule(p, g, m, v, shrink, size, small, b1, a1, b2, a2):
    u = b1 * m + a1 * g
    move = u  # NaN stays NaN, 0 stays 0
    if u > float32(0):
        move = size
    elif u < float32(0):
        move = -size
    return p - shrink * p - move, b2 * m + a2 * g, v


# ---- first rung: one thread per element, one launch per tensor


@jit
def adamw_elements(
    p, g, m, v, lr: "float32", step: "float32", scale: "float32", decay: "float32", b1: "float32",
    a1: "float32", b2: "float32", a2: "float32", log1: "float32", log2: "float32", eps: "float32",
):  # fmt: skip
    i = cuda.grid(1)
    if i < p.size:
        size, small = adamw_prepare(lr, step, log1, log2, eps)
        value, mean, square = adamw_rule(
            ptx.load(p, i), ptx.load(g, i) * scale, ptx.load(m, i), ptx.load(v, i), lr * decay,
            size, small, b1, a1, b2, a2,
        )  # fmt: skip
        ptx.store(p, i, value)
        ptx.store(m, i, mean)
        ptx.store(v, i, square)


@jit
def lion_elements(
    p, g, m, lr: "float32", scale: "float32", decay: "float32", b1: "float32", a1: "float32",
    b2: "float32", a2: "float32",
):  # fmt: skip
    i = cuda.grid(1)
    if i < p.size:
        value, mean, _ = lion_rule(
            ptx.load(p, i), ptx.load(g, i) * scale, ptx.load(m, i), float32(0), lr * decay, lr,
            float32(0), b1, a1, b2, a2,
        )  # fmt: skip
        ptx.store(p, i, value)
        ptx.store(m, i, mean)


# ---- launchers


def _logarithm(beta: float) -> float:
    return math.log(beta) if beta else -math.inf


def _in_memory(name: str, value: Number, device: torch.device) -> bool:
    """Whether a number lies in memory; raises where a kernel could not read it there."""
    if not isinstance(value, torch.Tensor):
        return False
    if value.dtype != torch.float32 or value.numel() != 1 or value.device != device:
        raise ValueError(
            f"{name}: a {dtype_name(value)} tensor of shape {tuple(value.shape)} on "
            f"{value.device}, it must be a number, or one float32 on {device}."
        )
    return True


def _check_betas(betas: tuple[float, float]) -> None:
    for i, beta in enumerate(betas):
        if not 0 <= beta < 1:
            raise ValueError(f"betas[{i}]: got {beta!r}, it must be at least 0 and below 1.")


def _update(prepare, rule, columns, moments, copies, weight_decay, lr, step, scale, betas, eps):
    _check_betas(betas)
    if copies is not None:
        columns["copies"] = copies
    (b1, b2), numbers = betas, {"lr": lr, "step": step, "grad_scale": scale}
    for group in groups_of(columns, weight_decay):
        there = tuple(_in_memory(name, value, group.device) for name, value in numbers.items())
        if moments == 2 and group.formats[2] != group.formats[3]:
            raise TypeError(
                f"vs: a tensor is {group.formats[3]}, it must be {group.formats[2]}, as in ms."
            )
        copy = group.formats[-1] if copies is not None else None
        form = Form(*group.formats[:3], moments, copy, there)
        kernel, layout = update_kernel(prepare, rule, form, TUNED), layout_of(group, TUNED.chunk)
        kernel[len(layout.chunks), TUNED.threads](
            addresses_of(group, columns), *layout,
            *(v.view(1) if there else v for v, there in zip(numbers.values(), there, strict=True)),
            b1, 1 - b1, b2, 1 - b2, _logarithm(b1), _logarithm(b2), eps,
        )  # fmt: skip


@torch.no_grad()
def adamw_step(
    params: Tensors,
    grads: Tensors,
    ms: Tensors,
    vs: Tensors,
    *,
    lr: Number,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float | Sequence[float],
    step: int | torch.Tensor,
    grad_scale: Number = 1.0,
    copies: Tensors | None = None,
) -> None:
    """One AdamW update of params, ms and vs in place; `step` counts from 1.

    params, grads, ms, vs: lists of equal length, tensor i of each of one shape and device,
    contiguous, float32, float16 or bfloat16; ms and vs of one format. Computed in float32 and
    rounded once. weight_decay: one number, or one for each tensor. grad_scale multiplies the
    gradients first (clipping). copies: tensors that the new parameters are written to as well, in
    their format. lr, step and grad_scale may be tensors of one float32 on the GPU: read there at
    run time. One launch for all tensors of the same formats. v below 1e-38 counts as 0.
    """
    columns = {"params": params, "grads": grads, "ms": ms, "vs": vs}
    _update(
        adamw_prepare, adamw_rule, columns, 2, copies, weight_decay, lr, step, grad_scale, betas,
        eps,
    )  # fmt: skip


@torch.no_grad()
def lion_step(
    params: Tensors,
    grads: Tensors,
    ms: Tensors,
    *,
    lr: Number,
    betas: tuple[float, float],
    weight_decay: float | Sequence[float],
    grad_scale: Number = 1.0,
    copies: Tensors | None = None,
) -> None:
    """One Lion update of params and ms in place; arguments as for `adamw_step`."""
    columns = {"params": params, "grads": grads, "ms": ms}
    _update(lion_prepare, lion_rule, columns, 1, copies, weight_decay, lr, 1, grad_scale, betas, 0)


@torch.no_grad()
def adamw_by_element(
    params, grads, ms, vs, *, lr, betas, eps, weight_decay, step, grad_scale=1.0
) -> None:
    b1, b2 = betas
    for p, g, m, v in zip(params, grads, ms, vs, strict=True):
        if p.numel():
            adamw_elements[-(-p.numel() // THREADS), THREADS](
                p.view(-1), g.view(-1), m.view(-1), v.view(-1), lr, step, grad_scale, weight_decay,
                b1, 1 - b1, b2, 1 - b2, _logarithm(b1), _logarithm(b2), eps,
            )  # fmt: skip


@torch.no_grad()
def lion_by_element(params, grads, ms, *, lr, betas, weight_decay, grad_scale=1.0) -> None:
    b1, b2 = betas
    for p, g, m in zip(params, grads, ms, strict=True):
        if p.numel():
            lion_elements[-(-p.numel() // THREADS), THREADS](
                p.view(-1), g.view(-1), m.view(-1), lr, grad_scale, weight_decay, b1, 1 - b1, b2,
                1 - b2,
            )  # fmt: skip


def _one_by_one(step_of_all):
    def steps(*columns, **options):
        for row in zip(*columns, strict=True):
            step_of_all(*([t] for t in row), **options)

    return steps


RUNGS = {  # of adamw_step
    "tensor": adamw_by_element,
    "vectorised": _one_by_one(adamw_step),
    "one_launch": adamw_step,
}
LION_RUNGS = {
    "tensor": lion_by_element,
    "vectorised": _one_by_one(lion_step),
    "one_launch": lion_step,
}
