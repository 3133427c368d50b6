"""What `bench` measures of linear + cross-entropy: time, and memory above what was allocated."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F

from . import record
from .bench_cases import Case, liger_module, module, relative_error
from .sources import SOURCES

N, C, V = 8192, 768, 50304
SHAPE = {"N": N, "C": C, "V": V}
GOAL_SECONDS, GOAL_BYTES = 3.7e-3, 0.6 * 2**30
CHECKED = 256  # rows of x and of w whose gradients are compared
FLOPS = 6 * N * C * V


def _inputs() -> tuple:
    x = torch.randn(N, C, device="cuda").bfloat16().requires_grad_()
    w = (torch.randn(V, C, device="cuda") / C**0.5).bfloat16().requires_grad_()
    targets = torch.randint(V, (N,), device="cuda")
    return x, w, targets


def _step(loss_of: Callable) -> Callable:
    """Forward and backward, with fresh gradients."""

    def step(x, w, targets) -> torch.Tensor:
        x.grad = w.grad = None
        loss = loss_of(x, w, targets)
        loss.backward()
        return loss

    return step


def _torch_loss(x, w, targets):
    return F.cross_entropy((x @ w.t()).float(), targets)


def _contenders() -> dict[str, Callable]:
    found = {
        "ours": module("linear_cross_entropy").linear_cross_entropy,
        "torch": _torch_loss,
        "torch.compile": torch.compile(_torch_loss, dynamic=False),
    }
    if liger := liger_module("fused_linear_cross_entropy"):
        fused = liger.LigerFusedLinearCrossEntropyFunction
        found["liger"] = lambda x, w, targets: fused.apply(x, w, targets)[0]
    return {name: _step(loss_of) for name, loss_of in found.items()}


def _error(step: Callable, x, w, targets) -> float:
    """Of the loss and of some rows of both gradients, against float64."""
    loss = step(x, w, targets)
    x64, w64 = x.detach().double(), w.detach().double()
    lse = torch.cat([torch.logsumexp(part @ w64.t(), 1) for part in x64.split(512)])
    aims = (x64 * w64[targets]).sum(1)
    rows = slice(0, CHECKED)
    p = torch.exp(x64[rows] @ w64.t() - lse[rows, None])
    p[torch.arange(CHECKED, device="cuda"), targets[rows]] -= 1
    columns = torch.exp(x64 @ w64[rows].t() - lse[:, None])
    columns -= (targets[:, None] == torch.arange(CHECKED, device="cuda")).double()
    return max(
        relative_error(loss.detach(), (lse - aims).mean()),
        relative_error(x.grad[rows], p @ w64 / N),
        relative_error(w.grad[rows], columns.t() @ x64 / N),
    )


def peak_bytes(step: Callable, *inputs: torch.Tensor) -> int:
    """The most memory that a step takes above what was allocated before it."""
    step(*inputs)
    inputs[0].grad = inputs[1].grad = None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step(*inputs)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def linear_cross_entropy_cases() -> Iterator[Case | dict[str, Any]]:
    sets, steps = [_inputs() for _ in range(2)], _contenders()
    ours = steps.pop("ours")
    error = _error(ours, *sets[0])
    yield Case(
        "linear_cross_entropy", "forward and backward", SHAPE, "bfloat16", 0,
        lambda i: ours(*sets[i]), lambda: error, len(sets),
        {name: lambda i, step=step: step(*sets[i]) for name, step in steps.items()},
        flops=FLOPS, goal_value=FLOPS / GOAL_SECONDS / 1e12,
    )  # fmt: skip
    peaks = {name: peak_bytes(step, *sets[0]) for name, step in {"ours": ours, **steps}.items()}
    yield record.row(
        "linear_cross_entropy", "memory", peaks.pop("ours"), "bytes",
        sources=SOURCES["linear_cross_entropy"], shape=SHAPE, dtype="bfloat16", seconds=None,
        error=error, goal=GOAL_BYTES,
        peers={name: {"value": value, "seconds": None} for name, value in peaks.items()},
    )  # fmt: skip


CASES = {"linear_cross_entropy": linear_cross_entropy_cases}
