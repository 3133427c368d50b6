"""Optimizers written out, the learning-rate schedule, and gradient clipping.

The three rules are functions over lists of tensors (`sgd_step`, `adamw_step`, `lion_step`), nearly
one line of code for one line of the paper. A `torch._foreach_…_` call does one in-place operation
on every tensor of a list, which is a little faster than a Python loop on a CPU and takes far fewer
launches on a GPU. The classes around them keep the state and fit everything that expects a
`torch.optim.Optimizer`; on the numba backend AdamW and Lion take their step in one launch of a
kernel of the same rule (`ops.step_kernel`), while SGD has no kernel and stays with torch.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from . import ops


def sgd_step(
    params: list[Tensor],
    grads: list[Tensor],
    ms: list[Tensor],
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
) -> None:
    """θ ← θ − η m with m ← μ m + g + λ θ, in place; without momentum (ms empty) m is g + λ θ.

    The weight decay is the classic one: a part of the gradient, which goes through the momentum.
    """
    if weight_decay:
        grads = torch._foreach_add(grads, params, alpha=weight_decay)  # g + λ θ
    if ms:
        torch._foreach_mul_(ms, momentum)
        torch._foreach_add_(ms, grads)
        grads = ms
    torch._foreach_add_(params, grads, alpha=-lr)


def adamw_step(
    params: list[Tensor],
    grads: list[Tensor],
    ms: list[Tensor],
    vs: list[Tensor],
    *,
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    """One AdamW update in place (Loshchilov & Hutter 2019, algorithm 2); `step` counts from 1.

    m ← β₁ m + (1 − β₁) g            mean of the gradient
    v ← β₂ v + (1 − β₂) g²           mean of its square
    θ ← θ − η λ θ                    weight decay, decoupled from the gradient
    θ ← θ − η m̂ / (√v̂ + ε)          m̂ = m / (1 − β₁ᵗ), v̂ = v / (1 − β₂ᵗ): both means start at 0
    """
    beta1, beta2 = betas
    root = math.sqrt(1 - beta2**step)
    torch._foreach_lerp_(ms, grads, 1 - beta1)
    torch._foreach_mul_(vs, beta2)
    torch._foreach_addcmul_(vs, grads, grads, 1 - beta2)
    torch._foreach_mul_(params, 1 - lr * weight_decay)
    # √v̂ + ε = (√v + ε root) / root: the corrections go into two numbers, not into every element
    denominators = torch._foreach_sqrt(vs)
    torch._foreach_add_(denominators, eps * root)
    torch._foreach_addcdiv_(params, ms, denominators, -lr * root / (1 - beta1**step))


def lion_step(
    params: list[Tensor],
    grads: list[Tensor],
    ms: list[Tensor],
    *,
    lr: float,
    betas: tuple[float, float],
    weight_decay: float,
) -> None:
    """One Lion update in place (Chen et al. 2023, algorithm 2).

    u ← sign(β₁ m + (1 − β₁) g)     the direction, from the momentum before this step
    θ ← θ − η (u + λ θ)             every weight moves by η; a good η is 3 to 10 times below AdamW's
    m ← β₂ m + (1 − β₂) g           only then the momentum
    """
    beta1, beta2 = betas
    directions = torch._foreach_lerp(ms, grads, 1 - beta1)
    torch._foreach_sign_(directions)
    torch._foreach_mul_(params, 1 - lr * weight_decay)
    torch._foreach_add_(params, directions, alpha=-lr)
    torch._foreach_lerp_(ms, grads, 1 - beta2)


class _Optimizer(torch.optim.Optimizer):
    """Walks over the parameter groups. A subclass names its buffers and applies its rule."""

    def __init__(self, params: Iterable, **defaults: object):
        _check_number("lr", defaults["lr"], 0, math.inf)
        _check_number("weight_decay", defaults["weight_decay"], 0, math.inf)
        for i, beta in enumerate(defaults.get("betas", ())):
            _check_number(f"betas[{i}]", beta, 0, 1)
        super().__init__(params, defaults)

    def _buffers(self, group: dict) -> tuple[str, ...]:
        raise NotImplementedError

    def _update(self, group: dict, step: int, params, grads, *buffers) -> None:
        raise NotImplementedError

    @torch.no_grad()
    def step(self, closure=None):
        """One update of every parameter that has a gradient; returns the closure's loss, if any."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            names = self._buffers(group)
            by_step: dict[int, list[Tensor]] = {}  # one entry, unless a parameter missed a step
            for p in group["params"]:
                if p.grad is not None:
                    state = self.state[p]
                    if not state:
                        state["step"] = 0
                        state.update({name: torch.zeros_like(p) for name in names})
                    state["step"] += 1
                    by_step.setdefault(state["step"], []).append(p)
            for step, params in by_step.items():
                buffers = [[self.state[p][name] for p in params] for name in names]
                self._update(group, step, params, [p.grad for p in params], *buffers)
        return loss


class SGD(_Optimizer):
    """Stochastic gradient descent with momentum and classic (L2) weight decay, as torch.optim.SGD.

    params: tensors or parameter groups; lr ≥ 0, momentum in [0, 1), weight_decay ≥ 0, else
    ValueError.
    """

    def __init__(
        self, params: Iterable, lr: float, momentum: float = 0.0, weight_decay: float = 0.0
    ):
        _check_number("momentum", momentum, 0, 1)
        super().__init__(params, lr=lr, momentum=momentum, weight_decay=weight_decay)

    def _buffers(self, group):
        return ("m",) if group["momentum"] else ()

    def _update(self, group, step, params, grads, ms=()):
        sgd_step(params, grads, ms, **_options(group, "lr", "momentum", "weight_decay"))


class AdamW(_Optimizer):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019); equal to torch.optim.AdamW.

    params: tensors or parameter groups; lr ≥ 0, betas in [0, 1), eps ≥ 0, weight_decay ≥ 0, else
    ValueError.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ):
        _check_number("eps", eps, 0, math.inf)
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)

    def _buffers(self, group):
        return ("m", "v")

    def _update(self, group, step, params, grads, ms, vs):
        options = _options(group, "lr", "betas", "eps", "weight_decay")
        rule = ops.step_kernel("adamw_step", params) or adamw_step
        rule(params, grads, ms, vs, step=step, **options)


class Lion(_Optimizer):
    """Lion (Chen et al. 2023): the sign of the momentum; one buffer where AdamW has two.

    params: tensors or parameter groups; lr ≥ 0, betas in [0, 1), weight_decay ≥ 0 (decoupled; 3 to
    10 times AdamW's, as lr is that much smaller), else ValueError.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ):
        super().__init__(params, lr=lr, betas=betas, weight_decay=weight_decay)

    def _buffers(self, group):
        return ("m",)

    def _update(self, group, step, params, grads, ms):
        rule = ops.step_kernel("lion_step", params) or lion_step
        rule(params, grads, ms, **_options(group, "lr", "betas", "weight_decay"))


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Two groups for an optimizer: matrices (ndim ≥ 2) decay, biases and norm weights do not.

    Weights in front of a norm can grow without changing the output, and decay keeps them in bounds;
    a bias or a norm's own weight would only be pulled towards 0. Tied parameters come once.
    """
    params = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in params if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in params if p.ndim < 2], "weight_decay": 0.0},
    ]


def warmup_cosine(
    step: int, *, steps: int, warmup: int = 0, lr: float, min_lr: float = 0.0
) -> float:
    """The learning rate of update number `step`, counted from 1.

    It rises in a line to lr at step = warmup, then falls along half a cosine to min_lr at
    step = steps (Loshchilov & Hutter 2017, eq. 5, without restarts) and stays there.
    """
    if step <= warmup:
        return lr * step / warmup
    if step >= steps:
        return min_lr
    progress = (step - warmup) / (steps - warmup)  # 0 … 1
    return min_lr + (lr - min_lr) * (1 + math.cos(math.pi * progress)) / 2


def grad_norm(params: Iterable[Tensor]) -> Tensor:
    """√(sum of all squared gradients), a scalar on the gradients' device: no wait for a GPU."""
    grads = [p.grad for p in params if p.grad is not None]
    if not grads:
        return torch.zeros(())
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))


def clip_grad_norm(params: Iterable[Tensor], max_norm: float) -> float:
    """Scale all gradients by one factor so that their joint norm is at most `max_norm`, in place.

    Returns the norm before (Pascanu et al. 2013, section 3.2): the direction stays, only the length
    changes. A norm that is not finite leaves the gradients as they are: the caller must look.
    """
    if not max_norm > 0:
        raise ValueError(f"max_norm: must be above 0, got {max_norm!r}")
    params = list(params)
    norm = float(grad_norm(params))
    if math.isfinite(norm) and norm > max_norm:
        scale_grads(params, max_norm / norm)
    return norm


def scale_grads(params: Iterable[Tensor], factor: float | Tensor) -> None:
    """Multiply every gradient by a number or by a 0-dimensional tensor, in place."""
    grads = [p.grad for p in params if p.grad is not None]
    if grads:
        torch._foreach_mul_(grads, factor)


def _options(group: dict, *names: str) -> dict:
    return {name: group[name] for name in names}


def _check_number(name: str, value: object, low: float, high: float) -> None:
    """low ≤ value < high, or a ValueError that says so."""
    if not isinstance(value, int | float) or not low <= value < high:
        limit = f"at least {low}" + ("" if high == math.inf else f" and below {high}")
        raise ValueError(f"{name}: must be {limit}, got {value!r}")
