"""What `bench` measures of a training step's end: loss, optimizers, and what a launch costs.

A "step" row of an optimizer is the GPU's time: the host runs ahead while steps are in the queue.
Each step goes through gigabytes, so that nothing is left in the cache from the one before. What the
host needs to check the tensors and to launch is a row of its own, "host", in microseconds a step.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F

from . import record
from .bench_cases import Case, compiled, inputs, liger_module, module, over, randn, relative_error
from .sources import SOURCES

GPT2 = {"C": 768, "layers": 12, "V": 50257, "T": 1024}
TENSORS = 148  # of GPT-2, its head tied
BATCHES, CALLS = 11, 50  # of the host's time


def cross_entropy_cases() -> Iterator[Case]:
    m = module("cross_entropy")
    N, V = 8192, 50304
    nbytes = 2 * N * V * 2 + N * 8
    sets = inputs(nbytes, lambda: (randn(N, V), torch.randint(0, V, (N,), device="cuda")))

    def eager(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        leaf = logits.detach().requires_grad_()
        F.cross_entropy(leaf.float(), targets).backward()
        return leaf.grad

    def formula(logits: torch.Tensor, targets: torch.Tensor) -> tuple:
        x = logits.float()
        lse = x.logsumexp(-1, keepdim=True)
        loss = (lse - x.gather(1, targets[:, None])).mean()
        p = (x - lse).exp()
        hot = torch.arange(V, device=x.device) == targets[:, None]
        return loss, ((p - hot) / N).to(logits.dtype)

    def error() -> float:
        x, t = (a[:256].clone() for a in sets[0])
        leaf = x.double().requires_grad_()
        expected = F.cross_entropy(leaf, t)
        expected.backward()
        loss, dx = m.cross_entropy_forward_backward(x.clone(), t)
        return max(relative_error(loss, expected.detach()), relative_error(dx, leaf.grad))

    peers = {"torch": over(sets, eager), "torch.compile": over(sets, compiled(formula))}
    if liger := liger_module("cross_entropy"):
        peers["Liger"] = over(
            sets,
            lambda x, t: liger.cross_entropy_forward(
                x, t, None, -100, 0.0, 0.0, "mean", None, False
            ),
        )
    # In place: what the next call reads are this call's gradients, numbers of the same kind.
    yield Case(
        "cross_entropy", "forward+backward", {"N": N, "V": V}, "bfloat16", nbytes,
        over(sets, m.cross_entropy_forward_backward), error, len(sets), peers, goal=0.88,
    )  # fmt: skip


def gpt2_parameters() -> list[torch.Tensor]:
    """124 M numbers in 148 tensors: the shapes of GPT-2's parameters, its head tied."""
    C, V, T = GPT2["C"], GPT2["V"], GPT2["T"]
    block = [(C,), (C,), (3 * C, C), (3 * C,), (C, C), (C,), (C,), (C,)]
    block += [(4 * C, C), (4 * C,), (C, 4 * C), (C,)]
    shapes = [(V, C), (T, C), *(block * GPT2["layers"]), (C,), (C,)]
    return [torch.randn(shape, device="cuda") * 0.02 for shape in shapes]


def optimizer_case(op: str, per_parameter: int) -> Iterator[Case]:
    m, moments = module("optimizer"), 2 if op == "adamw" else 1
    step = m.adamw_step if op == "adamw" else m.lion_step
    reference = m.adamw_step_reference if op == "adamw" else m.lion_step_reference
    params = gpt2_parameters()
    grads = [torch.randn_like(p) * 1e-3 for p in params]
    states = [[torch.rand_like(p) * 1e-6 for p in params] for _ in range(moments)]
    count = sum(p.numel() for p in params)
    rates: dict[str, Any] = {"lr": 1e-4, "weight_decay": 0.1, "betas": (0.9, 0.99)}
    if op == "adamw":
        rates |= {"eps": 1e-8, "step": 10}

    def ours(i: int) -> None:
        step(params, grads, *states, **rates)

    def error() -> float:
        small = [torch.randn(n, device="cuda") for n in (1, 33, 1000)]
        g = [torch.randn_like(p) for p in small]
        s = [[torch.rand_like(p) for p in small] for _ in range(moments)]
        wide = [[t.double() for t in ts] for ts in (small, g, *s)]
        step(small, g, *s, **rates)
        reference(*wide, **rates)
        return max(relative_error(p, e) for p, e in zip(small, wide[0], strict=True))

    peers = {}
    if op == "adamw":
        leaves = [p.clone().requires_grad_() for p in params]
        for leaf, g in zip(leaves, grads, strict=True):
            leaf.grad = g
        fused = torch.optim.AdamW(leaves, lr=1e-4, weight_decay=0.1, fused=True)
        peers["torch fused"] = lambda i: fused.step()
    shape = {"parameters": count, "tensors": len(params)}
    yield Case(
        op, "step", shape, "float32", per_parameter * count, ours, error, 2,
        peers, goal=0.95,
    )  # fmt: skip


def optimizer_host_row(op: str) -> dict[str, Any]:
    """Host time of a step of 148 tensors, so small that the GPU never makes the host wait."""
    m, peers = module("optimizer"), {}
    tensors = [[torch.zeros(8, device="cuda") for _ in range(TENSORS)] for _ in range(4)]
    rates: dict[str, Any] = {"lr": 1e-4, "weight_decay": 0.1, "betas": (0.9, 0.99)}
    if op == "adamw":
        seconds = host_seconds(lambda: m.adamw_step(*tensors, **rates, eps=1e-8, step=10))
        leaves = [torch.zeros(8, device="cuda", requires_grad=True) for _ in range(TENSORS)]
        for leaf in leaves:
            leaf.grad = torch.zeros_like(leaf)
        fused = host_seconds(torch.optim.AdamW(leaves, fused=True).step)
        peers["torch fused"] = {"value": fused * 1e6, "seconds": fused}
    else:
        seconds = host_seconds(lambda: m.lion_step(*tensors[:3], **rates))
    return record.row(
        op, "host", seconds * 1e6, "us", sources=SOURCES[op], shape={"tensors": TENSORS},
        dtype="float32", seconds=seconds, error=0.0, peers=peers,
    )  # fmt: skip


def host_seconds(call: Callable[[], object]) -> float:
    """The median over batches of the host's time for one call; the queue is empty before each."""
    call()
    times = []
    for _ in range(BATCHES):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(CALLS):
            call()
        times.append((time.perf_counter() - start) / CALLS)
    return statistics.median(times)


def adamw_cases() -> Iterator[Case | dict[str, Any]]:
    yield from optimizer_case("adamw", 28)
    yield optimizer_host_row("adamw")


def lion_cases() -> Iterator[Case | dict[str, Any]]:
    yield from optimizer_case("lion", 20)
    yield optimizer_host_row("lion")


def launch_cases() -> Iterator[dict[str, Any]]:
    """Host time of a launch with 4 tensors and a number."""
    from .launch_paths import time_launch_paths

    found = {path["path"]: path["seconds"] for path in time_launch_paths()}
    peers = {name: {"value": s * 1e6, "seconds": s} for name, s in found.items()}
    for name, pass_, goal in (
        ("kernel[grid, block](…)", "launch", 10.0),
        ("CUDA graph replay", "graph", 1.0),
    ):
        yield record.row(
            "launch", pass_, found[name] * 1e6, "us", sources=SOURCES["launch"],
            shape={"tensors": 4},
            dtype="float32", seconds=found[name], error=0.0, goal=goal,
            peers={n: p for n, p in peers.items() if n != name},
        )  # fmt: skip


CASES = {
    "cross_entropy": cross_entropy_cases,
    "adamw": adamw_cases,
    "lion": lion_cases,
    "launch": launch_cases,
}
