"""What `bench` measures of GELU, SwiGLU and rotary positions."""

import functools
from collections.abc import Iterator

import torch
import torch.nn.functional as F

from .bench_cases import (
    CHECKED_ROWS,
    COLUMNS,
    ROWS,
    Case,
    compiled,
    inputs,
    liger_module,
    module,
    over,
    randn,
    relative_error,
)


def gelu_cases() -> Iterator[Case]:
    m = module("activation")
    for form in ("none", "tanh"):
        shape = {"rows": ROWS, "columns": COLUMNS, "approximate": form}
        nbytes = 2 * ROWS * COLUMNS * 2
        sets = inputs(nbytes, lambda: (randn(ROWS, COLUMNS),))
        torch_gelu = functools.partial(F.gelu, approximate=form)
        ours = functools.partial(m.gelu_forward, approximate=form)
        x = sets[0][0][:CHECKED_ROWS]
        yield Case(
            "gelu", "forward", shape, "bfloat16", nbytes, over(sets, ours),
            lambda x=x, f=ours, g=torch_gelu: relative_error(f(x), g(x.double())),
            len(sets), 
            {"torch": over(sets, torch_gelu), "torch.compile": over(sets, compiled(torch_gelu))},
            goal=0.95,
        )  # fmt: skip
        nbytes = 3 * ROWS * COLUMNS * 2
        sets = inputs(nbytes, lambda: (randn(ROWS, COLUMNS), randn(ROWS, COLUMNS)))
        native = functools.partial(torch.ops.aten.gelu_backward, approximate=form)
        back = functools.partial(m.gelu_backward, approximate=form)
        dy, x = (t[:CHECKED_ROWS] for t in sets[0])
        yield Case(
            "gelu", "backward", shape, "bfloat16", nbytes, over(sets, back),
            lambda dy=dy, x=x, f=back, g=native: relative_error(
                f(dy, x), g(dy.double(), x.double())
            ),
            len(sets), 
            {"torch": over(sets, native), "torch.compile": over(sets, compiled(native))}, goal=0.95,
        )  # fmt: skip


def swiglu_cases() -> Iterator[Case]:
    m = module("activation")
    liger = liger_module("swiglu")
    shape = {"rows": ROWS, "columns": COLUMNS}

    def formula(gate, up):
        return F.silu(gate) * up

    nbytes = 3 * ROWS * COLUMNS * 2
    sets = inputs(nbytes, lambda: (randn(ROWS, COLUMNS), randn(ROWS, COLUMNS)))
    gate, up = (t[:CHECKED_ROWS] for t in sets[0])
    peers = {"torch": over(sets, formula), "torch.compile": over(sets, compiled(formula))}
    if liger:
        peers["Liger"] = over(sets, liger.swiglu_forward)
    yield Case(
        "swiglu", "forward", shape, "bfloat16", nbytes, over(sets, m.swiglu_forward),
        lambda: relative_error(m.swiglu_forward(gate, up), formula(gate.double(), up.double())),
        len(sets), peers, goal=0.95,
    )  # fmt: skip

    def backward(dy, gate, up):
        g, d = gate.float(), dy.float()
        s = torch.sigmoid(g)
        dgate = d * up.float() * s * (1 + g * (1 - s))
        return dgate.to(gate.dtype), (d * g * s).to(up.dtype)

    nbytes = 5 * ROWS * COLUMNS * 2
    sets = inputs(nbytes, lambda: tuple(randn(ROWS, COLUMNS) for _ in range(3)))

    def error() -> float:
        dy, gate, up = (t[:CHECKED_ROWS] for t in sets[0])
        leaves = [t.double().requires_grad_() for t in (gate, up)]
        formula(*leaves).backward(dy.double())
        got = m.swiglu_backward(dy, gate, up)
        return max(relative_error(g, t.grad) for g, t in zip(got, leaves, strict=True))

    yield Case(
        "swiglu", "backward", shape, "bfloat16", nbytes, over(sets, m.swiglu_backward), error,
        len(sets), {"torch.compile": over(sets, compiled(backward))}, goal=0.95,
    )  # fmt: skip


def rope_cases() -> Iterator[Case]:
    m = module("rope")
    B, H, T, D = 16, 32, 2048, 64
    angles = torch.arange(T, device="cuda")[:, None] * 1e4 ** -(
        torch.arange(D // 2, device="cuda") / (D // 2)
    )
    cos, sin = angles.cos(), angles.sin()
    nbytes = 2 * B * H * T * D * 2 + 2 * T * D // 2 * 4
    sets = inputs(nbytes, lambda: (randn(B, H, T, D), cos, sin))

    def eager(x, cos, sin):
        return m.rope_reference(x.float(), cos, sin).to(x.dtype)

    for pass_, ours in (("forward", m.rope_forward), ("backward", m.rope_backward)):
        sign = 1 if pass_ == "forward" else -1
        x = sets[0][0][:1]
        yield Case(
            "rope", pass_, {"B": B, "H": H, "T": T, "D": D}, "bfloat16", nbytes, over(sets, ours),
            lambda f=ours, s=sign, x=x: relative_error(
                f(x, cos, sin), m.rope_reference(x.double(), cos.double(), s * sin.double())
            ),
            len(sets), 
            {
                "torch": over(sets, lambda x, c, s, sign=sign: eager(x, c, sign * s)),
                "torch.compile": over(
                    sets, compiled(lambda x, c, s, sign=sign: eager(x, c, sign * s))
                ),
            },
            goal=0.95,
        )  # fmt: skip


CASES = {"gelu": gelu_cases, "swiglu": swiglu_cases, "rope": rope_cases}
