"""What LayerNorm and RMSNorm take, and what they say about anything else."""

import torch

from .dtypes import FLOATS, dtype_name
from .norm_access import access_width


def check_arguments(
    x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None = None, **like_x: torch.Tensor | None
) -> None:
    """Raise TypeError or ValueError that names the argument; like_x: tensors shaped as x is."""
    if dtype_name(x) not in FLOATS:
        raise TypeError(f"x: its dtype is {dtype_name(x)}, allowed are {', '.join(FLOATS)}.")
    if not x.dim() or not x.shape[-1]:
        raise ValueError(f"x: its shape is {tuple(x.shape)}, the last axis needs an element.")
    for name, t in (("w", w), ("b", b)):
        if t is None:
            continue
        if tuple(t.shape) != (x.shape[-1],):
            raise ValueError(f"{name}: its shape is {tuple(t.shape)}, it must be ({x.shape[-1]},).")
        if t.dtype not in (x.dtype, torch.float32):
            raise TypeError(
                f"{name}: its dtype is {dtype_name(t)}, "
                f"it must be {dtype_name(x)}, as x, or float32."
            )
    if b is not None and b.dtype != w.dtype:
        raise TypeError(f"b: its dtype is {dtype_name(b)}, it must be {dtype_name(w)}, as w.")
    for name, t in like_x.items():
        if t is not None and (t.shape, t.dtype) != (x.shape, x.dtype):
            raise ValueError(
                f"{name}: it is {dtype_name(t)} {tuple(t.shape)}, it must be "
                f"{dtype_name(x)} {tuple(x.shape)}, as x."
            )
    for name, t in {"w": w, "b": b, **like_x}.items():
        if t is not None and t.device != x.device:
            raise ValueError(f"{name}: it is on {t.device}, it must be on {x.device}, as x.")


def width_of(rung: str | None, n: int, dtype: str, *tensors: torch.Tensor | None) -> int:
    """Elements in one access for a rung. Raises ValueError where the rung needs aligned rows."""
    if rung in ("naive", "block"):
        return 1
    width = access_width(n, dtype, *tensors)
    if rung in ("vectorised", "staged") and width == 1:
        raise ValueError(
            f"x: rows of {n} {dtype} do not all start at multiples of 16 bytes, "
            f"which rung {rung!r} needs."
        )
    return width


def check_rung(rung: str | None, allowed: tuple[str, ...]) -> None:
    if rung is not None and rung not in allowed:
        raise ValueError(f"rung: got {rung!r}, allowed are {', '.join(map(repr, allowed))}.")


def too_wide(n: int, rung: str) -> ValueError:
    return ValueError(f"x: rows of {n} are too wide for rung {rung!r}; 'block' takes any width.")
