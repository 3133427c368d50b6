"""Exercises of notebook 06: AdamW and Lion, one step each, and the learning rate."""

import math

import torch
from torch import nn

from .exercise import exercise, predict
from .trial import guarded

NOTEBOOK = "06_training_loop"
INSIDE = "write to the elements of the tensors only, not past their ends."


@exercise(
    notebook=NOTEBOOK,
    minutes=10,
    difficulty=2,
    forbidden=("torch.optim", "_fused_adamw_", "_fused_adam_"),
    in_place=("p", "m", "v"),
    hints=(
        "In place: m.mul_(beta1).add_(grad, alpha=1 - beta1) or m[:] = …; `m = …` is a new tensor.",
        "m and v start at 0 and are too small at first: divide by 1 - beta1**step, 1 - beta2**step",
        "The decay shrinks p itself, p.mul_(1 - lr * weight_decay), and never enters m and v.",
    ),
)
def my_adamw_step(p, grad, m, v, *, step, lr, betas, eps, weight_decay):
    """One step of AdamW, in place: p, m and v change, nothing is returned.

    p, grad, m, v: tensors of one shape; step counts from 1; betas: (beta1, beta2).
    m ← beta1 m + (1 - beta1) grad;  v ← beta2 v + (1 - beta2) grad²;
    p ← p - lr · weight_decay · p - lr · m̂ / (√v̂ + eps), where m̂ and v̂ are m and v, corrected
    for their start at 0.
    """
    # solution:
    beta1, beta2 = betas
    m.mul_(beta1).add_(grad, alpha=1 - beta1)
    v.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    m_hat = m / (1 - beta1**step)
    v_hat = v / (1 - beta2**step)
    p.mul_(1 - lr * weight_decay)
    p.sub_(lr * m_hat / (v_hat.sqrt() + eps))
    # end


def _adamw(p, grad, m, v, *, step, lr, betas, eps, weight_decay, slip=""):
    """AdamW with its usual slips as options. Returns new tensors."""
    if slip == "L2":
        grad = grad + weight_decay * p
    m = betas[0] * m + (1 - betas[0]) * grad
    v = betas[1] * v + (1 - betas[1]) * (grad if slip == "square" else grad * grad)
    n = {"from 0": step - 1, "from 2": step + 1}.get(slip, step)
    fix1, fix2 = (1.0, 1.0) if slip == "uncorrected" else (1 - betas[0] ** n, 1 - betas[1] ** n)
    m_hat, v_hat = (part / fix if fix else part / 0.0 for part, fix in ((m, fix1), (v, fix2)))
    root = (v_hat + eps).sqrt() if slip == "eps inside" else v_hat.sqrt() + eps
    decay = 0 if slip == "L2" else weight_decay * (1 if slip == "decay without lr" else lr)
    return p - decay * p - lr * m_hat / root, m, v


ADAMW_SLIPS = {
    "uncorrected": "m and v start at 0: divide by 1 - beta^step.",
    "from 0": "step counts from 1: use it as it is.",
    "from 2": "step counts from 1: use it as it is.",
    "eps inside": "eps is added to the root, not under it.",
    "square": "v is the mean of the squared gradient.",
    "L2": "the decay is decoupled: it shrinks p and does not go through m and v.",
    "decay without lr": "the decay is lr · weight_decay · p.",
}


@my_adamw_step.checked_by
def _(adamw_step, trial):
    trial.on_error = "all operations are element by element; step counts from 1."
    for shape, decay in (((3,), 0.0), ((2, 5), 0.0), ((4, 3), 0.1), ((1,), 0.3)):
        options = dict(lr=0.05, betas=(0.8, 0.95), eps=1e-3, weight_decay=decay)
        reference = nn.Parameter(_noise(shape, seed=1))
        optimizer = torch.optim.AdamW([reference], **options)
        zero = torch.zeros_like(reference)
        (p, m, v), guards = zip(*map(guarded, (reference.detach(), zero, zero)), strict=True)
        for step in range(1, 5):
            grad = _noise(shape, seed=10 + step) if step < 4 else torch.zeros_like(p)
            reference.grad = grad.clone()
            optimizer.step()
            before = p.clone(), grad, m.clone(), v.clone()
            adamw_step(p, grad, m, v, step=step, **options)
            _require_change(trial, {"p": (p, before[0]), "m": (m, before[2]), "v": (v, before[3])})
            hint = "1 - beta**0 is 0: step counts from 1, use it as it is."
            trial.require(not p.isnan().any(), f"p is NaN after step {step}", hint)
            want = reference.detach(), *_adamw(*before, step=step, **options)[1:]
            slips = {slip: _adamw(*before, step=step, **options, slip=slip) for slip in ADAMW_SLIPS}
            rules = {
                "m": "m ← beta1·m + (1 - beta1)·grad.",
                "v": "v ← beta2·v + (1 - beta2)·grad².",
                "p": "p - lr·weight_decay·p - lr·m̂ / (√v̂ + eps).",
            }
            for i, name, got in ((1, "m", m), (2, "v", v), (0, "p", p)):
                text = f"{name} is wrong after step {step} with weight_decay={decay}"
                mistakes = [(wrong[i], ADAMW_SLIPS[slip]) for slip, wrong in slips.items()]
                trial.close(got, want[i], text, rules[name], mistakes)
        trial.require(all(intact() for intact in guards), "memory beside p, m or v changed", INSIDE)


@exercise(
    notebook=NOTEBOOK,
    minutes=8,
    difficulty=2,
    hints=(
        "Three parts: step ≤ warmup, step ≥ steps, and between them.",
        "Between them, progress = (step - warmup) / (steps - warmup) runs from 0 to 1.",
        "Half a cosine: (1 + cos(π · progress)) / 2 runs from 1 to 0.",
    ),
)
def my_warmup_cosine(step, *, steps, warmup, lr, min_lr):
    """The learning rate of update number `step`, counted from 1.

    It rises in a straight line to lr at step = warmup (update 1 gets lr / warmup), falls along half
    a cosine to min_lr at step = steps, and stays there. warmup may be 0. Return a number.
    """
    # solution:
    if step <= warmup:
        return lr * step / warmup
    if step >= steps:
        return min_lr
    progress = (step - warmup) / (steps - warmup)
    return min_lr + (lr - min_lr) * (1 + math.cos(math.pi * progress)) / 2
    # end


def _cosine(progress, lr, min_lr):
    return min_lr + (lr - min_lr) * 0.5 * (1.0 + math.cos(math.pi * progress))


@my_warmup_cosine.checked_by
def _(warmup_cosine, trial):
    trial.on_error = "warmup may be 0, and steps as small as warmup: do not divide by 0."
    for steps, warmup, lr, low in ((10, 0, 1.0, 0.0), (100, 10, 3e-3, 3e-4), (7, 3, 0.5, 0.1)):
        for step in range(steps + 3, 0, -1):  # the end first: slips differ most there
            rest = steps - warmup
            progress = (step - warmup) / rest
            want = lr * step / warmup if step <= warmup else _cosine(min(progress, 1), lr, low)
            part = "warm-up" if step <= warmup else "decay" if step <= steps else "end"
            mistakes = {
                "warm-up": [
                    (lr * (step - 1) / warmup if warmup else 0, "steps count from 1: the first "
                     "update must not have the rate 0."),
                    (_cosine(step / steps, lr, low), "up to step = warmup the rate rises."),
                    (low + (lr - low) * step / (warmup or 1), "the line rises from 0."),
                ],
                "decay": [
                    (_cosine(step / steps, lr, low), "the cosine starts where the warm-up ends: "
                     "(step - warmup) / (steps - warmup)."),
                    (_cosine(progress, lr, 0), "the cosine ends at min_lr, not at 0."),
                    (max(_cosine(progress, lr, 0), low), "the cosine spans lr to min_lr; do not "
                     "cut it off there."),
                    (lr + (low - lr) * progress, "that is a line: half a cosine is asked."),
                    (_cosine(2 * progress, lr, low), "half a cosine, from 0 to π."),
                    (_cosine((step - 1 - warmup) / rest, lr, low), "at step = steps it is min_lr."),
                ],
                "end": [
                    (_cosine(progress, lr, low), "after step = steps the rate stays at min_lr, "
                     "where a cosine would rise again."),
                    (_cosine(step / steps, lr, low), "after step = steps it stays at min_lr."),
                    (0.0, "the cosine ends at min_lr, not at 0."),
                ],
            }[part]  # fmt: skip
            wide = [(torch.tensor(value, dtype=torch.float64), hint) for value, hint in mistakes]
            got = warmup_cosine(step, steps=steps, warmup=warmup, lr=lr, min_lr=low)
            text = f"{trial.last_call} gave {float(got):.6g}, expected {want:.6g}"
            hint = "draw it: a line up, half a cosine down, then flat."
            trial.close(got, torch.tensor(want, dtype=torch.float64), text, hint, wide)
    got = warmup_cosine(3, steps=3, warmup=3, lr=1.0, min_lr=0.1)
    hint = "at step = warmup the rate is lr, even where nothing is left to decay."
    trial.require(got == 1, f"{trial.last_call} gave {float(got):.4g}, expected 1", hint)


@exercise(
    notebook=NOTEBOOK,
    minutes=6,
    difficulty=2,
    forbidden=("torch.optim",),
    in_place=("p", "m"),
    hints=(
        "The direction is the sign of a mix of the momentum as it was and the new gradient.",
        "beta1 mixes the direction, beta2 the momentum; the momentum comes last.",
        "p ← p - lr · (sign(beta1 m + (1 - beta1) grad) + weight_decay · p)",
    ),
)
def my_lion_step(p, grad, m, *, lr, betas, weight_decay):
    """One step of Lion, in place: p and m change, nothing is returned.

    p, grad, m: tensors of one shape; betas: (beta1, beta2).
    u = sign(beta1 m + (1 - beta1) grad);  p ← p - lr · (u + weight_decay · p);
    only then m ← beta2 m + (1 - beta2) grad.
    """
    # solution:
    beta1, beta2 = betas
    u = (beta1 * m + (1 - beta1) * grad).sign()
    p.mul_(1 - lr * weight_decay).sub_(lr * u)
    m.mul_(beta2).add_(grad, alpha=1 - beta2)
    # end


def _lion(p, grad, m, *, lr, betas, weight_decay, slip=""):
    """Lion with its usual slips as options. Returns new tensors."""
    first, second = betas[::-1] if slip == "swapped" else betas
    new = second * m + (1 - second) * grad
    mix = first * (new if slip == "early" else m) + (1 - first) * grad
    if slip == "inside":
        mix = mix + weight_decay * p
    u = new.sign() if slip == "one mix" else mix if slip == "no sign" else mix.sign()
    decay = 0 if slip == "inside" else weight_decay * (1 if slip == "decay without lr" else lr)
    return p - decay * p - lr * u, new


LION_SLIPS = {
    "early": "the direction comes from the momentum before this step: change m last.",
    "one mix": "two mixes: beta1 for the direction, beta2 for the momentum.",
    "swapped": "beta1 mixes the direction, beta2 the momentum.",
    "no sign": "the direction is the sign: each weight moves by lr.",
    "inside": "the decay does not go into the sign: it shrinks p itself.",
    "decay without lr": "the decay is lr · weight_decay · p.",
}


@my_lion_step.checked_by
def _(lion_step, trial):
    trial.on_error = "all operations are element by element."
    for shape, decay in (((3,), 0.0), ((4, 5), 0.2), ((40,), 0.5)):
        options = dict(lr=0.02, betas=(0.6, 0.9), weight_decay=decay)
        start = _noise(shape, seed=1)
        (p, m), guards = zip(*map(guarded, (start, torch.zeros_like(start))), strict=True)
        for step in range(1, 6):
            grad = _noise(shape, seed=20 + step)
            before = p.clone(), grad, m.clone()
            lion_step(p, grad, m, **options)
            _require_change(trial, {"p": (p, before[0]), "m": (m, before[2])})
            want = _lion(*before, **options)
            slips = {slip: _lion(*before, **options, slip=slip) for slip in LION_SLIPS}
            rules = {"p": "p - lr·(u + weight_decay·p).", "m": "m ← beta2·m + (1 - beta2)·grad."}
            for i, name, got in ((0, "p", p), (1, "m", m)):
                text = f"{name} is wrong after step {step} with weight_decay={decay}"
                mistakes = [(wrong[i], LION_SLIPS[slip]) for slip, wrong in slips.items()]
                trial.close(got, want[i], text, rules[name], mistakes)
        trial.require(all(intact() for intact in guards), "memory beside p or m changed", INSIDE)


@predict(
    notebook=NOTEBOOK,
    minutes=3,
    difficulty=2,
    hints=(
        "At step 1, m̂ is the gradient itself. What is v̂?",
        "v̂ is the square of the gradient, and lr · g / √g² is …",
    ),
    mistakes={
        0.05: "that is SGD, lr times the gradient: Adam divides by the gradient's own size.",
        0.005: "m is 0.1 · gradient at first, but the correction divides it by 1 - beta1 = 0.1.",
        5.0: "the gradient says where to go, not how far.",
        0.001: "v is corrected there, and m is not: it is divided by 1 - beta1 = 0.1 as well.",
        0.01 * 0.1 / math.sqrt(0.001): "m and v start at 0: divide m by 0.1 and v by 0.001 first.",
        -0.01: "how far, not where to: a positive number.",
    },
    otherwise="what is m̂ / √v̂ when there has been one gradient only?",
    because="At its first step Adam moves each weight by lr, whatever the size of the gradient.",
)
def my_first_step():
    """A weight has the gradient 5.0. AdamW with lr = 0.01 and no weight decay makes its first step.
    How far does the weight move? (1 % is near enough.)
    """
    weight = torch.tensor([2.0], requires_grad=True)
    optimizer = torch.optim.AdamW([weight], lr=0.01, weight_decay=0.0)
    weight.grad = torch.tensor([5.0])
    optimizer.step()
    return abs(weight.item() - 2.0)


def _require_change(trial, tensors):
    """Each (tensor, its copy from before) differs: the answer wrote in place."""
    for name, (now, before) in tensors.items():
        hint = (
            f"write into the tensor: {name}.mul_(…), {name}[:] = …; `{name} = …` makes a new one."
        )
        trial.require(not torch.equal(now, before), f"{name} has not changed", hint)


def _noise(shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
