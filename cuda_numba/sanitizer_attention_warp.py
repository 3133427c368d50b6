"""What `sanitizer` watches of attention on `mma.sync`: its three kernels, small."""

import torch

from .sanitizer_inputs import HALVES, module, randn, take

# (B, H, Hk, Tq, Tk, D, causal, window): one row, odd sizes, edges of tiles, padded heads, a window.
CASES = (
    (1, 1, 1, 1, 1, 32, True, None),
    (1, 4, 2, 33, 130, 64, True, None),
    (1, 2, 2, 65, 65, 128, True, 33),
    (2, 1, 1, 7, 129, 80, False, None),
)


def attention_warp(dtype: torch.dtype, device: str) -> None:
    m = module("attention_warp")
    for B, H, Hk, Tq, Tk, D, causal, window in CASES:
        q, do = (randn(B, H, Tq, D, dtype=dtype, device=device) for _ in range(2))
        k, v = (randn(B, Hk, Tk, D, dtype=dtype, device=device) for _ in range(2))
        options = {"causal": causal, "window": window, "scale": D**-0.5}
        o, lse = m.forward(q, k, v, **options)
        take(o, lse, *m.backward(do, q, k, v, o, lse, **options))


OPERATIONS = (attention_warp,)
DTYPES_OF = {attention_warp: HALVES}
