"""The Hopper attention backward pass for `sanitizer_cases`: every kernel, launched once, small."""

import torch

from .sanitizer_inputs import HALVES, module, randn, take

#         H  H_kv  Tq   Tk  D  causal window
SHAPES = (
    (1, 1, 1, 1, 8, True, None),
    (2, 1, 33, 130, 64, True, None),
    (1, 1, 65, 129, 96, False, 40),
)
FIRST_CC = (9, 0)  # TMA and wgmma


def _inputs(shape: tuple, dtype: torch.dtype, device: str) -> tuple:
    """(dO, q, k, v, o, lse) as a forward pass leaves them."""
    h, h_kv, tq, tk, d, causal, window = shape
    do, q = (randn(1, h, tq, d, dtype=dtype, device=device) for _ in range(2))
    k, v = (randn(1, h_kv, tk, d, dtype=dtype, device=device) for _ in range(2))
    reference = module("attention_backward_hopper").attention_backward_reference
    floats = (x.cpu().float() for x in (do, q, k, v))
    o, lse, *_ = reference(*floats, causal=causal, window=window)
    return do, q, k, v, o.to(dtype).to(device), lse.contiguous().to(device)


def attention_backward(dtype: torch.dtype, device: str) -> None:
    """Both rungs; in 16 bits, for GPUs from compute capability 9.0 on."""
    if device == "cuda" and torch.cuda.get_device_capability() < FIRST_CC:
        return
    m = module("attention_backward_hopper")
    for shape in SHAPES:
        args = _inputs(shape, dtype, device)
        for rung in m.RUNGS.values():
            take(*rung(*args, causal=shape[5], window=shape[6]))


OPERATIONS = (attention_backward,)
DTYPES_OF = {attention_backward: HALVES}
