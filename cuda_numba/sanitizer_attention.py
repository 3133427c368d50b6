"""What `cuda_numba.sanitizer` watches of attention: every kernel, at small odd shapes.

The rung for any dtype and the naive one in every format, the Hopper kernel for each width of a
head, with and without turns, on views that begin in the middle of their memory.
"""

import torch

from .sanitizer_inputs import HALVES, backward, module, randn, take

# H, H_kv, Tq, Tk, D, causal, window
SHAPES = ((1, 1, 1, 1, 8, True, None), (2, 1, 7, 33, 24, True, 5), (2, 2, 33, 33, 40, False, 9))
HOPPER_SHAPES = (
    (1, 1, 1, 1, 32, True, None),
    (2, 1, 65, 130, 64, True, None),
    (1, 1, 130, 300, 72, True, 100),
    (2, 2, 33, 129, 128, False, 40),
)


def _operands(H: int, H_kv: int, Tq: int, Tk: int, D: int, dtype, device, offset=0):
    return (
        randn(1, h, t, D, dtype=dtype, device=device, offset=offset)
        for h, t in ((H, Tq), (H_kv, Tk), (H_kv, Tk))
    )


def attention_slow(dtype: torch.dtype, device: str) -> None:
    m, rows = module("attention"), module("attention_rows")
    for *sizes, causal, window in SHAPES:
        q, k, v = _operands(*sizes, dtype, device)
        options = {"causal": causal, "window": window, "scale": 0.2}
        for name in ("naive", "online"):
            o, lse = m.RUNGS[name](q, k, v, **options)
            take(o, lse)
        take(*rows.backward(torch.ones_like(o), q, k, v, o, lse, **options))


def attention_hopper(dtype: torch.dtype, device: str) -> None:
    m = module("attention_hopper")
    for *sizes, causal, window in HOPPER_SHAPES:
        plan = m.PLANS[-(-sizes[-1] // 32) * 32]
        for turns in (False, True):
            q, k, v = _operands(*sizes, dtype, device, offset=8)
            options = {"causal": causal, "window": window, "scale": 0.2}
            take(*m.forward(q, k, v, **options, plan=plan._replace(turns=turns), blocks=3))


def attention(dtype: torch.dtype, device: str) -> None:
    m = module("attention")
    for *sizes, causal, window in SHAPES[1:]:
        leaves = [x.requires_grad_() for x in _operands(*sizes, dtype, device)]
        backward(m.attention(*leaves, causal=causal, window=window), *leaves)


OPERATIONS = (attention_slow, attention_hopper, attention)
DTYPES_OF = {attention_hopper: HALVES}
