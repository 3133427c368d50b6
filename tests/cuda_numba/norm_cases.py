"""What LayerNorm and RMSNorm kernels are checked against, on the emulator and on a GPU."""

import contextlib

import pytest
import torch
from tolerance import check, guarded

from cuda_numba import norm, norm_passes, norm_weights
from cuda_numba.layer_norm import layer_norm_reference
from cuda_numba.norm_access import row_plan
from cuda_numba.rms_norm import rms_norm_reference

EPS = 1e-5
# (rows, n) for the small teams below: one warp per row, full and with a tail; two warps, full, with
# a tail, unaligned.
TEAMS = [(5, 256), (5, 136), (2, 512), (2, 392), (2, 389)]


def small_teams(monkeypatch):
    """Kernels for few threads, so that several warps, rounds and parts show up in small tensors.

    A warp takes 256 columns, blocks of the slower rungs have one or two warps. `test_norm_code`
    runs the sizes that are launched otherwise.
    """
    monkeypatch.setattr(norm, "forward_plan", lambda n, width: row_plan(n, width, 8))
    monkeypatch.setattr(norm, "register_plan", lambda n, width: row_plan(n, width, 8))
    monkeypatch.setattr(norm, "staged_plan", lambda n, width, wdtype: row_plan(n, width, 8))
    for module in (norm, norm_passes):
        monkeypatch.setattr(module, "THREADS", 64)
    monkeypatch.setattr(norm_weights, "PARTIAL_WARPS", 2)
    monkeypatch.setattr(norm_weights, "SUM_WARPS", 2)
    monkeypatch.setattr(norm_weights, "LOADS", 2)
    forget_kernels()


def forget_kernels():
    """Make kernels anew that hold one of those constants."""
    norm._forward_launch.cache_clear()
    norm._backward_launch.cache_clear()
    norm_passes.block_forward_kernel.cache_clear()
    norm_passes.block_backward_kernel.cache_clear()
    norm_weights.column_sums_kernel.cache_clear()
    norm_weights.partial_sums_kernel.cache_clear()


def inputs(shape, dtype, wdtype=None, device="cpu", bias=True):
    """x, w and b, or None."""
    n = shape[-1]
    x = (torch.randn(shape) * 2 + 0.5).to(device, dtype)
    w = (torch.randn(n) + 1).to(device, wdtype or dtype)
    return x, w, torch.randn(n).to(device, wdtype or dtype) if bias else None


def reference(x, w, b, centred):
    return layer_norm_reference(x, w, b, EPS) if centred else rms_norm_reference(x, w, EPS)


def statistics(x, centred):
    """mean and rstd in float64."""
    mean = x.double().mean(-1) if centred else torch.zeros(x.shape[:-1], dtype=torch.float64)
    mean = mean.to(x.device)
    square = ((x.double() - mean.unsqueeze(-1)) ** 2).mean(-1)
    return mean, 1 / torch.sqrt(square + EPS)


def check_forward(x, w, b, centred, rung=None, residual=None):
    y, total, mean, rstd = norm.forward(x, residual, w, b, EPS, centred, rung)
    if residual is None:
        assert total is x
    else:
        rounded = (x.float() + residual.float()).to(x.dtype)
        assert torch.equal(total, rounded)
    expected_mean, expected_rstd = statistics(total, centred)
    expected = reference(total.double(), w.double(), None if b is None else b.double(), centred)
    # y is a sum of two terms; where they cancel, their rounding in float32 remains.
    check("y", y, expected, scale=4 * w.double().abs() + (0 if b is None else b.double().abs()))
    spread = total.double().abs().amax(-1)
    if centred:
        check("mean", mean, expected_mean, scale=spread)
    else:
        assert mean is None
    check("rstd", rstd, expected_rstd)
    return y


def check_backward(x, w, b, centred, rung=None, dtotal=None):
    """dx, dw and db by name; statistics are float64's, rounded."""
    dy = torch.randn(x.shape, device=x.device).to(x.dtype)
    mean, rstd = (t.float() for t in statistics(x, centred))
    got = norm.backward(dy, x, w, mean if centred else None, rstd, dtotal, b is not None, rung)
    doubles = [None if t is None else t.double().requires_grad_() for t in (x, w, b)]
    reference(*doubles, centred).backward(dy.double())
    dx, dw, db = (None if t is None else t.grad for t in doubles)
    if dtotal is not None:
        dx = dx + dtotal.double()
    apart = (x.double() - mean.double().unsqueeze(-1)) * rstd.double().unsqueeze(-1)
    g = dy.double() * w.double()
    # What dx, dw and db are the small difference of.
    size = g.abs() + g.abs().mean(-1, keepdim=True) + apart.abs() * (g * apart).abs().mean(-1, True)
    check("dx", got[0], dx, scale=4 * rstd.double().unsqueeze(-1) * size)
    rows = tuple(range(x.dim() - 1))
    check("dw", got[1], dw, scale=2 * (dy.double() * apart).abs().sum(rows))
    if b is None:
        assert got[2] is None
    else:
        check("db", got[2], db, scale=dy.double().abs().sum(rows))
    return got


@contextlib.contextmanager
def guard_outputs(offset=0):
    """What norm allocates inside lies between guard zones; gives the list of their checks."""
    checks = []
    originals = torch.empty, torch.empty_like

    def allocate(shape, dtype):
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(torch, "empty", originals[0])
            inner.setattr(torch, "empty_like", originals[1])
            y, intact = guarded(shape, dtype, guard=64 + offset)
        checks.append(intact)
        return y

    with pytest.MonkeyPatch.context() as outer:
        outer.setattr(torch, "empty_like", lambda x: allocate(x.shape, x.dtype))
        outer.setattr(torch, "empty", lambda shape, dtype, device: allocate(shape, dtype))
        yield checks
