"""RMSNorm against float64, alone and with the residual addition: forward and every gradient."""

import pytest
import torch
from norm_cases import (
    TEAMS,
    check_backward,
    check_forward,
    forget_kernels,
    guard_outputs,
    inputs,
    small_teams,
)
from tolerance import DTYPES, GPU_SHAPES, SHAPES, check, poisoned

from cuda_numba import norm
from cuda_numba.rms_norm import (
    BACKWARD_RUNGS,
    RUNGS,
    rms_norm,
    rms_norm_backward,
    rms_norm_forward,
    rms_norm_reference,
    rms_norm_residual,
    rms_norm_residual_reference,
)

REAL = [(64, 768), (33, 1600), (130, 4096), (40, 8192), (20, 16384), (9, 16383), (5, 50304)]


@pytest.fixture(autouse=True)
def poison(request, monkeypatch):
    """Memory that a kernel forgets is NaN; on the emulator, small teams."""
    if not request.node.get_closest_marker("gpu"):
        small_teams(monkeypatch)
    with poisoned():
        yield
    monkeypatch.undo()
    forget_kernels()


def cases(shape, dtype, wdtype=None, device="cpu"):
    return (*inputs(shape, dtype, wdtype, device)[:2], None, False)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
class TestAgainstFloat64:
    @pytest.mark.parametrize("shape", SHAPES + TEAMS, ids=str)
    def test_forward(self, shape, dtype):
        check_forward(*cases(shape, dtype))

    @pytest.mark.parametrize("shape", SHAPES + TEAMS, ids=str)
    def test_backward(self, shape, dtype):
        check_backward(*cases(shape, dtype))

    def test_float32_weights(self, dtype):
        case = cases((2, 512), dtype, torch.float32)
        assert check_forward(*case).dtype == dtype
        dx, dw, _ = check_backward(*case)
        assert dx.dtype == dtype and dw.dtype == torch.float32

    @pytest.mark.parametrize("shape", [(5, 256), (2, 392), (3, 33)], ids=str)
    def test_residual(self, shape, dtype):
        case = cases(shape, dtype)
        check_forward(*case, residual=torch.randn(shape).to(dtype))
        check_backward(*case, dtotal=torch.randn(shape).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
class TestRungs:
    @pytest.mark.parametrize("rung", RUNGS)
    def test_forward(self, rung, dtype):
        for shape in ((7, 64), (2, 264)):
            check_forward(*cases(shape, dtype), rung)
            check_forward(*cases(shape, dtype), rung, residual=torch.randn(shape).to(dtype))

    @pytest.mark.parametrize("rung", BACKWARD_RUNGS)
    def test_backward(self, rung, dtype):
        for shape in ((7, 64), (2, 264)):
            check_backward(*cases(shape, dtype), rung)
            check_backward(*cases(shape, dtype), rung, dtotal=torch.randn(shape).to(dtype))


@pytest.mark.parametrize("shape", [(29, 64), (5, 392), (11, 33)], ids=str)
def test_blocks_go_round(monkeypatch, shape):
    monkeypatch.setattr(norm, "even_grid", lambda teams, most: min(2, teams))
    case = cases(shape, torch.float32)
    check_forward(*case, residual=torch.randn(shape))
    check_backward(*case, dtotal=torch.randn(shape))
    check_backward(*case, "registers", dtotal=torch.randn(shape))


@pytest.mark.parametrize("rung", RUNGS)
class TestProperties:
    def test_rows_have_mean_square_1(self, rung):
        y = RUNGS[rung](torch.randn(6, 136) * 5 + 3, torch.ones(136), 0.0)[0]
        check("mean of y²", (y.double() ** 2).mean(-1).float(), torch.ones(6).double())

    def test_scale(self, rung):
        """y(−8 x) = −y(x) without eps, to the bit: powers of two are exact throughout."""
        x, w = torch.randn(3, 136), torch.randn(136)
        assert torch.equal(RUNGS[rung](-8 * x, w, 0.0)[0], -RUNGS[rung](x, w, 0.0)[0])

    def test_shift_is_seen(self, rung):
        """The control for the centred sibling: RMSNorm keeps the mean."""
        x, ones = torch.randn(3, 136), torch.ones(136)
        assert not torch.allclose(RUNGS[rung](x + 1, ones)[0], RUNGS[rung](x, ones)[0], atol=0.1)

    def test_bad_entries_spoil_their_row_only(self, rung):
        x = torch.randn(3, 136)
        x[1, 77] = float("nan")
        y = RUNGS[rung](x, torch.ones(136))[0]
        assert y[1].isnan().all() and not y[[0, 2]].isnan().any()

    def test_zero_rows(self, rung):
        y, rstd = RUNGS[rung](torch.zeros(2, 136), torch.ones(136), 1e-6)
        assert torch.equal(y, torch.zeros(2, 136))
        check("rstd", rstd, torch.full((2,), 1e3, dtype=torch.float64))


@pytest.mark.parametrize("rung", BACKWARD_RUNGS)
def test_gradient_property(rung):
    """dx is orthogonal to x: y does not move with x's scale."""
    x, w = torch.randn(3, 136), torch.randn(136)
    rstd = rms_norm_forward(x, w, 0.0)[1]
    dx, _ = BACKWARD_RUNGS[rung](torch.randn(3, 136), x, w, rstd)
    check("Σ dx · x", (dx.double() * x.double()).sum(-1).float(), torch.zeros(3).double(), scale=30)


@pytest.mark.parametrize("rung", BACKWARD_RUNGS)
def test_deterministic(rung):
    x, w, dy = torch.randn(9, 64), torch.randn(64), torch.randn(9, 64)
    rstd = rms_norm_forward(x, w)[1]
    first, second = (BACKWARD_RUNGS[rung](dy, x, w, rstd) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("n", [33, 136, 392])
def test_writes_nothing_outside(n, offset):
    x = torch.randn(3 * n + offset)[offset:].view(3, n)
    w = torch.randn(n)
    with guard_outputs(offset) as checks:
        norm.forward(x, x + 1, w, None, 1e-6, False)
        norm.backward(x + 1, x, w, None, x.std(-1), x + 2, False)
    assert len(checks) == 6 and all(intact() for intact in checks)


class TestAutograd:
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_gradients(self, dtype):
        x, w = (t.requires_grad_() for t in inputs((2, 3, 33), dtype)[:2])
        dy = torch.randn(2, 3, 33).to(dtype)
        rms_norm(x, w).backward(dy)
        doubles = [t.detach().double().requires_grad_() for t in (x, w)]
        rms_norm_reference(*doubles).backward(dy.double())
        for name, got, expected in zip(("dx", "dw"), (x, w), doubles, strict=True):
            check(name, got.grad, expected.grad, scale=4 * expected.grad.abs().max())

    @pytest.mark.parametrize("used", ["both", "norm", "sum"])
    def test_residual(self, used):
        tensors = [*inputs((3, 33), torch.float32)[:2], torch.randn(3, 33)]
        tensors = [t.requires_grad_() for t in tensors]
        doubles = [t.detach().double().requires_grad_() for t in tensors]
        weights = torch.randn(2, 3, 33)
        for (x, w, r), op in (
            (tensors, rms_norm_residual),
            (doubles, rms_norm_residual_reference),
        ):
            y, total = op(x, r, w)
            loss = 0
            if used != "sum":
                loss = (y * weights[0].to(y.dtype)).sum()
            if used != "norm":
                loss = loss + (total * weights[1].to(y.dtype)).sum()
            loss.backward()
        for name, got, expected in zip(("dx", "dw", "dr"), tensors, doubles, strict=True):
            if used == "sum" and name == "dw":
                assert got.grad is None and expected.grad is None
            else:
                check(name, got.grad, expected.grad, scale=10)

    def test_once_differentiable(self):
        """The gradient is no function that autograd could differentiate: it says so."""
        x, w = (t.requires_grad_() for t in inputs((3, 33), torch.float32)[:2])
        for y in (rms_norm(x, w), rms_norm_residual(x, x, w)[0]):
            (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
            with pytest.raises(RuntimeError, match="marked with @once_differentiable"):
                dx.sum().backward()

    def test_not_contiguous(self):
        x, w = torch.randn(33, 7).t(), torch.randn(66)[::2]
        expected = rms_norm_reference(x.double(), w.double())
        check("y", rms_norm(x, w), expected)


def test_no_rows():
    x, w = torch.zeros(0, 5, requires_grad=True), torch.ones(5, requires_grad=True)
    rms_norm(x, w).sum().backward()
    assert x.grad.shape == (0, 5) and torch.equal(w.grad, torch.zeros(5))


def test_errors():
    x, w = torch.randn(3, 33), torch.randn(33)
    with pytest.raises(TypeError, match="^x: its dtype is float64, allowed are float32, "):
        rms_norm(x.double(), w)
    with pytest.raises(ValueError, match=r"^w: its shape is \(32,\), it must be \(33,\)"):
        rms_norm(x, w[:32])
    with pytest.raises(ValueError, match="^residual: it is float16 "):
        rms_norm_residual(x, x.half(), w)
    with pytest.raises(ValueError, match="^rung: got 'staged', allowed are 'naive', "):
        rms_norm_forward(x, w, rung="staged")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
class TestOnGPU:
    @pytest.mark.parametrize("shape", GPU_SHAPES + TEAMS + REAL, ids=str)
    def test_against_float64(self, shape, dtype):
        case = cases(shape, dtype, device="cuda")
        check_forward(*case, residual=torch.randn_like(case[0]))
        check_backward(*case, dtotal=torch.randn_like(case[0]))
        check_forward(*case)
        check_backward(*case)

    @pytest.mark.parametrize("shape", [(1823, 768), (130, 4096)], ids=str)
    def test_rungs(self, shape, dtype):
        case = cases(shape, dtype, torch.float32, "cuda")
        for rung in RUNGS:
            check_forward(*case, rung)
        for rung in BACKWARD_RUNGS:
            check_backward(*case, rung)

    def test_deterministic(self, dtype):
        x, w = inputs((4096, 4096), dtype, device="cuda")[:2]
        dy = torch.randn_like(x)
        rstd = rms_norm_forward(x, w)[1]
        first = rms_norm_backward(dy, x, w, rstd)
        for _ in range(5):
            again = rms_norm_backward(dy, x, w, rstd)
            assert all(torch.equal(a, c) for a, c in zip(first, again, strict=True))
