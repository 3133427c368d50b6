"""Fewer bits in training: autocast for the matrix products, and loss scaling for float16.

The weights, their gradients and the optimizer's state stay float32. Autocast casts the inputs of
each matrix product down, so the products run on the fast units, and keeps softmax, norms and losses
in float32 (Micikevicius et al. 2018, section 3).

    bfloat16   8 bits of exponent, as float32: nothing overflows, no scaling
    float16    5 bits of exponent: below 6e-8 a gradient becomes 0, above 65,504 infinite
"""

import math
from contextlib import AbstractContextManager, nullcontext

import torch


def autocast(device: torch.device | str, dtype: torch.dtype | str | None) -> AbstractContextManager:
    """A context in which matrix products on `device` run in `dtype`; float32 changes nothing.

    dtype: torch.bfloat16, torch.float16, or their names; None as float32. ValueError for another.
    """
    name = str(dtype).removeprefix("torch.")
    if dtype is None or name == "float32":
        return nullcontext()
    if name not in ("bfloat16", "float16"):
        raise ValueError(f"dtype: must be float32, bfloat16 or float16, got {name}")
    return torch.autocast(torch.device(device).type, dtype=getattr(torch, name))


class LossScaler:
    """Keeps float16 gradients inside float16's range (Micikevicius et al. 2018, section 3.2).

    The loss is multiplied by `scale` before backward, so every gradient is `scale` times as large
    on its way through float16, and divided by it before the optimizer sees it. The largest scale
    that does not overflow loses least: after an overflow the step is skipped and the scale halved,
    and after `patience` good steps in a row it is doubled.

        (loss * scaler.scale).backward()
        scale_grads(params, 1 / scaler.scale)
        if scaler.update(grad_norm(params)): …take the step
    """

    def __init__(self, scale: float = 2.0**16, patience: int = 2000):
        self.scale = scale
        self.patience = patience
        self.good_steps = 0

    def update(self, norm: float) -> bool:
        """Adapt the scale to a gradient norm; False when it overflowed: skip the step.

        Raises FloatingPointError when the scale falls below 1: the gradients themselves are at
        fault.
        """
        if math.isfinite(norm):
            self.good_steps += 1
            if self.good_steps == self.patience:
                self.scale, self.good_steps = self.scale * 2, 0
            return True
        self.scale, self.good_steps = self.scale / 2, 0
        if self.scale < 1:
            raise FloatingPointError(
                f"gradient: its norm is {norm} even without loss scaling; lower the learning rate"
            )
        return False

    def to_dict(self) -> dict:
        """The state, ready for JSON."""
        return {"scale": self.scale, "good_steps": self.good_steps}

    def restore(self, state: dict) -> None:
        """Go on from what `to_dict` gave."""
        self.scale, self.good_steps = float(state["scale"]), int(state["good_steps"])
