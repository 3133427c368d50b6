"""How exact are the gradients of GPT-2's step? One number for each parameter.

The reference is our model computed by PyTorch in float32, without TF32, from the same weights on
the same batch. Beside it stand the step of `StepGraph` in bfloat16, PyTorch's under autocast, and
our kernels in float32. An error is ‖g − g_ref‖₂ / ‖g_ref‖₂ of a whole tensor.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from .bench_gpt2_steps import make_batches, make_model, make_optimizer
from .model import MiniLM
from .precision import autocast
from .step_graph import StepGraph

Gradients = dict[str, Tensor]  # by the parameter's name


def torch_gradients(model: MiniLM, ids: Tensor, dtype: str) -> Gradients:
    """By PyTorch, under autocast where dtype is not float32."""
    model.zero_grad(set_to_none=True)
    with autocast(ids.device, dtype):
        loss = model.loss(ids)
    loss.backward()
    return _taken(model)


def our_gradients(model: MiniLM, ids: Tensor, dtype: str) -> Gradients:
    """By the step of StepGraph, at a learning rate of 0: the weights stay."""
    step = StepGraph(model, make_optimizer(model), dtype=dtype, capture=False)
    step.step(ids, 0.0)
    return _taken(model)


def _taken(model: MiniLM) -> Gradients:
    found = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    return found


def relative_errors(found: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> dict[str, float]:
    """‖found − right‖₂ / ‖right‖₂ by name; where the right one is 0, the norm of what was found."""
    if set(found) != set(right):
        raise ValueError(f"gradients: of {sorted(set(found) ^ set(right))} there is only one")
    errors = {}
    for name, want in right.items():
        want = want.double()
        norm = float(want.norm())
        errors[name] = float((found[name].double() - want).norm()) / (norm if norm else 1.0)
    return errors


def gradient_table(size: dict, device: str) -> list[dict]:
    """A row for each parameter: {name, shape, ours, torch, ours_float32}, errors as above."""
    model, ids = make_model(size, device), make_batches(size, device)[0]
    tf32 = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        right = torch_gradients(model, ids, "float32")
        errors = {
            "ours": relative_errors(our_gradients(model, ids, "bfloat16"), right),
            "torch": relative_errors(torch_gradients(model, ids, "bfloat16"), right),
            "ours_float32": relative_errors(our_gradients(model, ids, "float32"), right),
        }
    finally:
        torch.backends.cuda.matmul.allow_tf32 = tf32
    return [
        {"name": name, "shape": list(p.shape)} | {who: e[name] for who, e in errors.items()}
        for name, p in model.named_parameters()
    ]
