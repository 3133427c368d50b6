"""Parameters in float32 beside a copy of them that is rounded to 16 bits.

    w         float32: what the optimizer steps, and the format of its gradient
    rounded   w.to(bfloat16) or w.to(float16): what the kernels read

A step of learning rate 3e-4 changes a number of about 1 by less than half the distance of two
bfloat16 numbers (2⁻⁹), so w itself must not be rounded; tensor cores want both operands in 16 bits
all the same (Micikevicius et al. 2018, "Mixed Precision Training", section 3.1). Who keeps copies
(an optimizer that writes them with every step) hands them over; else each call makes its own, 6
bytes for each number of w. The gradient of w is summed in float32 and never rounded, and belongs
to w alone: none goes to the copy.
"""

import torch

from .dtypes import FLOATS, dtype_name


def copy_for(
    dtype: torch.dtype, w: torch.Tensor, rounded: torch.Tensor | None, names: str = "x w rounded"
) -> torch.Tensor | None:
    """What a kernel reads in w's place beside an operand of `dtype`; None: w itself.

    rounded: a tensor of w's shape on its device and of `dtype`, or None: made where w is float32
    and `dtype` is not. names: of the operand, of w and of rounded, for the messages.

    Raises TypeError or ValueError that names the argument.
    """
    operand, name, copy = names.split()
    if w.dtype not in (dtype, torch.float32) or dtype_name(w) not in FLOATS:
        raise TypeError(
            f"{name}: it is {dtype_name(w)}, with {operand} in {dtype_name(dtype)} it must be "
            f"{dtype_name(dtype)} or float32."
        )
    if rounded is None:
        return None if w.dtype == dtype else w.detach().to(dtype)
    if rounded.dtype != dtype:
        raise TypeError(
            f"{copy}: it is {dtype_name(rounded)}, it must be {dtype_name(dtype)} as {operand} is."
        )
    if rounded.shape != w.shape or rounded.device != w.device:
        raise ValueError(
            f"{copy}: {tuple(rounded.shape)} on {rounded.device}, it must be {name}'s shape "
            f"{tuple(w.shape)} on {w.device}."
        )
    return rounded.detach()
