"""Small inputs for `sanitizer_cases`, and results that are looked at on the host."""

from importlib import import_module

import torch

SHAPES = ((1, 1), (1, 7), (7, 33), (3, 130), (2, 136))  # (rows, columns); 136: whole 16 bytes
HALVES = (torch.float16, torch.bfloat16)  # what tensor cores multiply
WIDE = (2, 2056)  # a row for several warps


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
