"""What `bench` measures of layer norm and RMS norm."""

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


def layer_norm_cases() -> Iterator[Case]:
    m = module("layer_norm")
    liger = liger_module("layer_norm")
    C, eps = COLUMNS, 1e-5
    nbytes = 2 * ROWS * C * 2
    sets = inputs(nbytes, lambda: (randn(ROWS, C), randn(C), randn(C)))
    x, w, b = sets[0][0][:CHECKED_ROWS], *sets[0][1:]
    peers = {
        "torch": over(sets, lambda x, w, b: F.layer_norm(x, (C,), w, b, eps)),
        "torch.compile": over(sets, compiled(lambda x, w, b: F.layer_norm(x, (C,), w, b, eps))),
    }
    if liger:
        peers["Liger"] = over(sets, lambda x, w, b: liger.layer_norm_forward(x, w, b, eps))
    yield Case(
        "layer_norm", "forward", {"rows": ROWS, "C": C}, "bfloat16", nbytes,
        over(sets, lambda x, w, b: m.layer_norm_forward(x, w, b, eps)),
        lambda: relative_error(
            m.layer_norm_forward(x, w, b, eps)[0],
            F.layer_norm(x.double(), (C,), w.double(), b.double(), eps),
        ),
        len(sets), peers, goal=0.92,
    )  # fmt: skip

    def make() -> tuple:
        x, w, b = randn(ROWS, C), randn(C), randn(C)
        _, mean, rstd = torch.ops.aten.native_layer_norm(x, (C,), w, b, eps)
        return randn(ROWS, C), x, w, b, mean, rstd

    nbytes = 3 * ROWS * C * 2
    sets = inputs(nbytes, make)

    def native(dy, x, w, b, mean, rstd):
        return torch.ops.aten.native_layer_norm_backward(
            dy, x, (C,), mean, rstd, w, b, [True, True, True]
        )

    peers = {"torch": over(sets, native), "torch.compile": over(sets, compiled(native))}
    if liger:
        peers["Liger"] = over(
            sets,
            lambda dy, x, w, b, mean, rstd: liger.layer_norm_backward(
                dy, x, w, b, mean.flatten(), rstd.flatten(), True, True
            ),
        )

    def ours(dy, x, w, b, mean, rstd):
        return m.layer_norm_backward(dy, x, w, mean.flatten(), rstd.flatten())

    def error() -> float:
        x, w, b = (t[:CHECKED_ROWS] if t.ndim == 2 else t for t in sets[0][1:4])
        y, mean, rstd = m.layer_norm_forward(x, w, b, eps)
        dy = sets[0][0][:CHECKED_ROWS]
        leaves = [t.double().requires_grad_() for t in (x, w, b)]
        F.layer_norm(leaves[0], (C,), leaves[1], leaves[2], eps).backward(dy.double())
        got = m.layer_norm_backward(dy, x, w, mean, rstd)
        return max(relative_error(g, t.grad) for g, t in zip(got, leaves, strict=True))

    yield Case(
        "layer_norm", "backward", {"rows": ROWS, "C": C}, "bfloat16", nbytes, over(sets, ours),
        error, len(sets), peers, goal=0.80,
    )  # fmt: skip


def rms_norm_cases() -> Iterator[Case]:
    m = module("rms_norm")
    liger = liger_module("rms_norm")
    C, eps = COLUMNS, 1e-5
    nbytes = 2 * ROWS * C * 2
    sets = inputs(nbytes, lambda: (randn(ROWS, C), randn(C)))
    x, w = sets[0][0][:CHECKED_ROWS], sets[0][1]
    peers = {
        "torch": over(sets, lambda x, w: F.rms_norm(x, (C,), w, eps)),
        "torch.compile": over(sets, compiled(lambda x, w: F.rms_norm(x, (C,), w, eps))),
    }
    if liger:
        peers["Liger"] = over(
            sets, lambda x, w: liger.rms_norm_forward(x, w, eps, 0.0, "llama", None)
        )
    yield Case(
        "rms_norm", "forward", {"rows": ROWS, "C": C}, "bfloat16", nbytes,
        over(sets, lambda x, w: m.rms_norm_forward(x, w, eps)),
        lambda: relative_error(
            m.rms_norm_forward(x, w, eps)[0], F.rms_norm(x.double(), (C,), w.double(), eps)
        ),
        len(sets), peers, goal=0.92,
    )  # fmt: skip

    def make() -> tuple:
        x, w = randn(ROWS, C), randn(C)
        return randn(ROWS, C), x, w, (x.float().square().mean(-1) + eps).rsqrt()

    nbytes = 3 * ROWS * C * 2
    sets = inputs(nbytes, make)

    def formula(dy, x, w, rstd):
        x32, g = x.float() * rstd[:, None], dy.float() * w.float()
        dx = rstd[:, None] * (g - x32 * (g * x32).mean(-1, keepdim=True))
        return dx.to(x.dtype), (dy.float() * x32).sum(0).to(w.dtype)

    peers = {"torch.compile": over(sets, compiled(formula))}
    if liger:
        _, _, _, block, warps, mode = liger.rms_norm_forward(
            sets[0][1], sets[0][2], eps, 0.0, "llama", None
        )
        peers["Liger"] = over(
            sets,
            lambda dy, x, w, rstd: liger.rms_norm_backward(
                dy, x, w, rstd, 0.0, mode, block, warps, False, None, True
            ),
        )

    def error() -> float:
        dy, x, w = sets[0][0][:CHECKED_ROWS], sets[0][1][:CHECKED_ROWS], sets[0][2]
        leaves = [t.double().requires_grad_() for t in (x, w)]
        F.rms_norm(leaves[0], (C,), leaves[1], eps).backward(dy.double())
        got = m.rms_norm_backward(dy, x, w, m.rms_norm_forward(x, w, eps)[1])
        return max(relative_error(g, t.grad) for g, t in zip(got, leaves, strict=True))

    yield Case(
        "rms_norm", "backward", {"rows": ROWS, "C": C}, "bfloat16", nbytes,
        over(sets, m.rms_norm_backward), error, len(sets), peers,
        goal=0.80,
    )  # fmt: skip


CASES = {"layer_norm": layer_norm_cases, "rms_norm": rms_norm_cases}
