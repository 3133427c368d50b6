"""What each kernel brings to GPT-2's step: operations switched to our kernels one at a time.

"with" rows go up from PyTorch, launched op by op: to the operations that are ours already, one more
is added, in the order of WITH. Then the same kernels run inside `StepGraph`, which keeps rounded
copies of the matrices, first launched one by one, then as a graph.

"without" rows go down from the whole graph: one operation, and what holds it inside a fused one, is
left to PyTorch. What the graph gains over that is what the kernel brings where all others are ours.
"""

from collections.abc import Iterator

import torch

from .backends import BACKEND_OPS
from .bench_gpt2_steps import (
    Job,
    Step,
    build,
    eager_step,
    free,
    graph_step,
    make_batches,
    make_model,
    make_optimizer,
    time_in_turns,
)

ALL = BACKEND_OPS["numba"]
WITH = (
    *("cross_entropy", "linear_cross_entropy", "layer_norm", "gelu", "attention", "embedding"),
    *("linear", "layer_norm_residual", "mlp", "packed_attention", "adamw_step"),
)
# name → the operations that PyTorch then has. Of a fused operation alone, its parts stay ours.
# AdamW is missing: a graph must read the learning rate and the step's number from device memory.
WITHOUT = {
    "cross_entropy": ("linear_cross_entropy", "cross_entropy"),
    "linear_cross_entropy": ("linear_cross_entropy",),
    "layer_norm": ("layer_norm", "layer_norm_residual"),
    "layer_norm_residual": ("layer_norm_residual",),
    "gelu": ("gelu", "mlp"),
    "mlp": ("mlp",),
    "attention": ("attention", "packed_attention"),
    "packed_attention": ("packed_attention",),
    "embedding": ("embedding",),
    "linear": ("linear", "mlp", "linear_cross_entropy"),  # all products
}
NO_GRAPH, GRAPH = "with StepGraph, no graph", "with StepGraph"


def jobs(batch: int) -> Iterator[Job]:
    """Everything that has to be compiled."""
    yield Job(batch)
    for n in range(len(WITH), 0, -1):
        yield Job(batch, frozenset(WITH[:n]), graph=False)
    for left in WITHOUT.values():
        yield Job(batch, ALL.difference(left))


def times_with(size: dict, device: str, rounds: int, count: int = 5) -> dict[str, float]:
    """Seconds of a step, by row: "torch", "with OP" in the order of WITH, then StepGraph's two."""
    model, batches = make_model(size, device), make_batches(size, device)
    optimizer = make_optimizer(model)
    steps = {"torch": eager_step(model, optimizer, batches)}
    for n, op in enumerate(WITH, start=1):
        steps[f"with {op}"] = eager_step(model, optimizer, batches, WITH[:n])
    steps[NO_GRAPH] = graph_step(model, optimizer, batches, capture=False)
    if torch.device(device).type == "cuda":
        steps[GRAPH] = graph_step(model, optimizer, batches)
    for step in steps.values():  # what is missing is compiled, and the graph recorded
        step()
    return time_in_turns(steps, rounds, count)


def times_without(
    size: dict, device: str, rounds: int, count: int = 5
) -> dict[str, tuple[float, float]]:
    """Seconds of a step (without, with) the kernel: "without OP" → beside the whole graph.

    Each is built, measured in turns with the whole graph, and dropped: a graph keeps its memory.
    """
    model, batches = make_model(size, device), make_batches(size, device)
    optimizer = make_optimizer(model)
    whole: Step = build(lambda: graph_step(model, optimizer, batches)).step
    found = {}
    for op, left in WITHOUT.items():
        only = ALL.difference(left)
        other = build(lambda only=only: graph_step(model, optimizer, batches, only), warm_up=2)
        seconds = time_in_turns({"whole": whole, "without": other.step}, rounds, count)
        found[f"without {op}"] = seconds["without"], seconds["whole"]
        del other
        free()
    return found
