"""LayerNorm against float64, alone and with the residual addition: forward and every gradient."""

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
from cuda_numba.jit import launches
from cuda_numba.layer_norm import (
    BACKWARD_RUNGS,
    RUNGS,
    layer_norm,
    layer_norm_backward,
    layer_norm_forward,
    layer_norm_reference,
    layer_norm_residual,
    layer_norm_residual_reference,
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


@pytest.fixture
def few_blocks(monkeypatch):
    """Two blocks for all rows: every block goes round several times."""
    monkeypatch.setattr(norm, "even_grid", lambda teams, most: min(2, teams))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
class TestAgainstFloat64:
    @pytest.mark.parametrize("shape", SHAPES + TEAMS, ids=str)
    def test_forward(self, shape, dtype):
        check_forward(*inputs(shape, dtype), True)

    @pytest.mark.parametrize("shape", SHAPES + TEAMS, ids=str)
    def test_backward(self, shape, dtype):
        check_backward(*inputs(shape, dtype), True)

    def test_float32_weights(self, dtype):
        for shape in [(2, 512), (3, 33)]:
            x, w, b = inputs(shape, dtype, torch.float32)
            y = check_forward(x, w, b, True)
            dx, dw, db = check_backward(x, w, b, True)
            assert y.dtype == dx.dtype == dtype and dw.dtype == db.dtype == torch.float32

    def test_without_bias(self, dtype):
        x, w, _ = inputs((2, 512), dtype, bias=False)
        check_forward(x, w, None, True)
        check_backward(x, w, None, True)

    @pytest.mark.parametrize("shape", [(5, 256), (2, 392), (3, 33)], ids=str)
    def test_residual(self, shape, dtype):
        x, w, b = inputs(shape, dtype)
        check_forward(x, w, b, True, residual=torch.randn(shape).to(dtype))
        check_backward(x, w, b, True, dtotal=torch.randn(shape).to(dtype))


@pytest.mark.parametrize("shape", [(7, 64), (2, 264)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
class TestRungs:
    @pytest.mark.parametrize("rung", RUNGS)
    def test_forward(self, rung, shape, dtype):
        x, w, b = inputs(shape, dtype)
        check_forward(x, w, b, True, rung)
        check_forward(x, w, b, True, rung, residual=torch.randn(shape).to(dtype))

    @pytest.mark.parametrize("rung", BACKWARD_RUNGS)
    def test_backward(self, rung, shape, dtype):
        x, w, b = inputs(shape, dtype)
        check_backward(x, w, b, True, rung)
        check_backward(x, w, b, True, rung, dtotal=torch.randn(shape).to(dtype))


class TestManyRows:
    @pytest.mark.parametrize("shape", [(29, 64), (5, 392), (11, 33)], ids=str)
    def test_blocks_go_round(self, few_blocks, shape):
        x, w, b = inputs(shape, torch.float32)
        check_forward(x, w, b, True, residual=torch.randn(shape))
        check_backward(x, w, b, True, dtotal=torch.randn(shape))
        check_backward(x, w, b, True, "registers", dtotal=torch.randn(shape))

    def test_row_that_a_thread_cannot_keep(self, few_blocks, monkeypatch):
        """In the registers rung: both rows are loaded a second time."""
        from cuda_numba import norm_backward

        monkeypatch.setattr(norm_backward, "register_blocks", lambda *_: (False, 1))
        norm_backward.register_kernel.cache_clear()
        norm._backward_launch.cache_clear()
        check_backward(*inputs((3, 392), torch.bfloat16), True, "registers")
        norm_backward.register_kernel.cache_clear()
        norm._backward_launch.cache_clear()

    @pytest.mark.parametrize("shape", [(29, 64), (5, 392)], ids=str)
    def test_weights_that_a_thread_cannot_keep(self, few_blocks, monkeypatch, shape):
        """In the staged rung: loaded for both halves of every row, to the same bits."""
        x, w, b = inputs(shape, torch.bfloat16)
        mean, rstd = layer_norm_forward(x, w, b)[1:]
        dy = torch.randn(shape).bfloat16()
        kept = layer_norm_backward(dy, x, w, mean, rstd, rung="staged")
        own = norm.staging
        monkeypatch.setattr(norm, "staging", lambda *args: own(*args)._replace(kept=False))
        norm._backward_launch.cache_clear()
        with launches() as log:
            loaded = layer_norm_backward(dy, x, w, mean, rstd, rung="staged")
        assert log[0].name == "norm_backward_staged"
        assert all(torch.equal(a, c) for a, c in zip(kept, loaded, strict=True))
        check_backward(x, w, b, True, "staged")

    def test_many_rows_for_few_columns(self):
        """Chunks of rows in the rungs that add up dw and db in a pass of their own."""
        x, w, b = inputs((70, 24), torch.bfloat16)
        for rung in ("naive", "block", "vectorised"):
            check_backward(x, w, b, True, rung)

    def test_even_grid(self):
        for teams in (1, 7, 33, 1000, 16384):
            for most in (1, 2, 132, 528):
                blocks = norm.even_grid(teams, most)
                rounds = -(-teams // blocks)
                assert 1 <= blocks <= min(most, teams)
                assert rounds == -(-teams // most), "no more rounds than with the largest grid"
                assert blocks * rounds - teams < rounds, "no block is idle for a round too many"


@pytest.mark.parametrize("rung", RUNGS)
class TestProperties:
    def test_rows_have_mean_0_and_variance_1(self, rung):
        x = torch.randn(6, 136) * 5 + 3
        y, mean, rstd = RUNGS[rung](x, torch.ones(136), torch.zeros(136), 0.0)
        check("mean of y", y.double().mean(-1).float(), torch.zeros(6).double(), scale=1)
        check("variance of y", y.double().var(-1, correction=0).float(), torch.ones(6).double())

    @pytest.mark.parametrize("n", [136, 392])
    def test_large_mean(self, rung, n):
        """Mean 1e4, spread 1: E[x²] − E[x]² would lose the variance altogether in float32.

        What remains is the rounding of the sum for the mean: a few units in its last place, 1e-3.
        """
        x = torch.randn(2, n) + 1e4
        y, mean, rstd = RUNGS[rung](x, torch.ones(n), torch.zeros(n), 0.0)
        expected = layer_norm_reference(x.double(), 1.0, 0.0, 0.0)
        assert (y.double() - expected).abs().max() < 5e-3
        expected = 1 / x.double().var(-1, correction=0).sqrt()
        assert (rstd / expected - 1).abs().max() < 2e-5

    def test_shift_and_scale(self, rung):
        """y(2 x + 64) = y(x) without eps; these inputs are exact."""
        x = torch.randint(-64, 64, (3, 136)) / 8.0
        ones = torch.ones(136)
        y = RUNGS[rung](x, ones, None, 0.0)[0]
        moved = RUNGS[rung](2 * x + 64, ones, None, 0.0)[0]
        check("y", moved, y.double(), scale=4)

    def test_bad_entries_spoil_their_row_only(self, rung):
        x = torch.randn(3, 136)
        x[1, 77] = float("nan")
        y = RUNGS[rung](x, torch.ones(136), torch.zeros(136))[0]
        assert y[1].isnan().all() and not y[[0, 2]].isnan().any()

    def test_constant_rows(self, rung):
        """No spread: eps alone is under the root, and y is the bias."""
        b = torch.randn(136)
        y = RUNGS[rung](torch.full((2, 136), 3.0), torch.ones(136), b)[0]
        assert torch.equal(y, b.expand(2, 136))


@pytest.mark.parametrize("rung", BACKWARD_RUNGS)
def test_gradient_properties(rung):
    """dx sums to 0 and is orthogonal to x̂: y neither moves with x's mean nor with its scale."""
    x, w, b = inputs((3, 136), torch.float32)
    y, mean, rstd = layer_norm_forward(x, torch.ones_like(w), None, 0.0)
    dx = BACKWARD_RUNGS[rung](torch.randn(3, 136), x, w, mean, rstd)[0]
    zero = torch.zeros(3).double()
    check("Σ dx", dx.double().sum(-1).float(), zero, scale=30)
    check("Σ dx · x̂", (dx.double() * y.double()).sum(-1).float(), zero, scale=30)


@pytest.mark.parametrize("rung", BACKWARD_RUNGS)
@pytest.mark.parametrize("shape", [(9, 64), (2, 392)], ids=str)
def test_deterministic(rung, shape):
    x, w, b = inputs(shape, torch.float32)
    y, mean, rstd = layer_norm_forward(x, w, b)
    dy = torch.randn(shape)
    first, second = (BACKWARD_RUNGS[rung](dy, x, w, mean, rstd) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("n", [33, 136, 392])
def test_writes_nothing_outside(n, offset):
    """Also where the tensors start in the middle of 16 bytes."""
    x = torch.randn(3 * n + offset)[offset:].view(3, n)
    w, b = torch.randn(n), torch.randn(n)
    with guard_outputs(offset) as checks:
        norm.forward(x, x + 1, w, b, 1e-5, True)
        norm.backward(x + 1, x, w, x.mean(-1), x.std(-1), x + 2, True)
    assert len(checks) == 8 and all(intact() for intact in checks)


class TestAutograd:
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_gradients(self, dtype):
        x, w, b = (t.requires_grad_() for t in inputs((2, 3, 33), dtype))
        dy = torch.randn(2, 3, 33).to(dtype)
        layer_norm(x, w, b).backward(dy)
        doubles = [t.detach().double().requires_grad_() for t in (x, w, b)]
        layer_norm_reference(*doubles).backward(dy.double())
        for name, got, expected in zip(("dx", "dw", "db"), (x, w, b), doubles, strict=True):
            check(name, got.grad, expected.grad, scale=4 * expected.grad.abs().max())

    def test_without_bias(self):
        x, w, _ = inputs((3, 33), torch.float32, bias=False)
        x.requires_grad_()
        (layer_norm(x, w) ** 2).sum().backward()
        x64 = x.detach().double().requires_grad_()
        (layer_norm_reference(x64, w.double()) ** 2).sum().backward()
        check("dx", x.grad, x64.grad, scale=50)

    @pytest.mark.parametrize("used", ["both", "norm", "sum"])
    def test_residual(self, used):
        """The gradient of the sum reaches both addends, once, whichever result is used."""
        tensors = [*inputs((3, 33), torch.float32), torch.randn(3, 33)]
        tensors = [t.requires_grad_() for t in tensors]
        doubles = [t.detach().double().requires_grad_() for t in tensors]
        weights = torch.randn(2, 3, 33)
        for (x, w, b, r), op in (
            (tensors, layer_norm_residual),
            (doubles, layer_norm_residual_reference),
        ):
            y, total = op(x, r, w, b)
            loss = 0
            if used != "sum":
                loss = (y * weights[0].to(y.dtype)).sum()
            if used != "norm":
                loss = loss + (total * weights[1].to(y.dtype)).sum()
            loss.backward()
        for name, got, expected in zip(("dx", "dw", "db", "dr"), tensors, doubles, strict=True):
            if used == "sum" and name in ("dw", "db"):
                assert got.grad is None and expected.grad is None
            else:
                check(name, got.grad, expected.grad, scale=10)

    def test_once_differentiable(self):
        """The gradient is no function that autograd could differentiate: it says so."""
        x, w, b = (t.requires_grad_() for t in inputs((3, 33), torch.float32))
        for y in (layer_norm(x, w, b), layer_norm_residual(x, x, w, b)[0]):
            (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
            with pytest.raises(RuntimeError, match="marked with @once_differentiable"):
                dx.sum().backward()

    def test_not_contiguous(self):
        x = torch.randn(33, 7).t().requires_grad_()
        w, b = torch.randn(66)[::2], torch.randn(66)[::2]
        dy = torch.randn(33, 7).t()
        y = layer_norm(x, w, b)
        y.backward(dy)
        x64 = x.detach().double().requires_grad_()
        expected = layer_norm_reference(x64, w.double(), b.double())
        expected.backward(dy.double())
        check("y", y, expected)
        check("dx", x.grad, x64.grad, scale=20)


@pytest.mark.parametrize("shape", [(0, 5), (2, 0, 5)], ids=str)
def test_no_rows(shape):
    x, w, b = (t.requires_grad_() for t in inputs(shape, torch.float32))
    y = layer_norm(x, w, b)
    y.sum().backward()
    assert y.shape == x.grad.shape == shape
    assert torch.equal(w.grad, torch.zeros(5)) and torch.equal(b.grad, torch.zeros(5))


class TestErrors:
    x, w, b = torch.randn(3, 33), torch.randn(33), torch.randn(33)

    def test_dtypes(self):
        with pytest.raises(TypeError, match="^x: its dtype is int64, allowed are float32, "):
            layer_norm(torch.zeros(3, 33, dtype=torch.int64), self.w)
        with pytest.raises(TypeError, match="^w: its dtype is float16, it must be float32"):
            layer_norm(self.x, self.w.half(), self.b)
        with pytest.raises(TypeError, match="^b: its dtype is float32, it must be bfloat16, as w"):
            layer_norm(self.x.bfloat16(), self.w.bfloat16(), self.b)

    def test_shapes(self):
        with pytest.raises(ValueError, match=r"^w: its shape is \(32,\), it must be \(33,\)"):
            layer_norm(self.x, self.w[:32], self.b)
        with pytest.raises(ValueError, match=r"^b: its shape is \(1, 33\)"):
            layer_norm(self.x, self.w, self.b[None])
        with pytest.raises(ValueError, match=r"^x: its shape is \(3, 0\), the last axis needs"):
            layer_norm(torch.zeros(3, 0), torch.zeros(0))
        with pytest.raises(ValueError, match=r"^residual: it is float32 \(33,\), it must be "):
            layer_norm_residual(self.x, self.x[0], self.w, self.b)
        with pytest.raises(ValueError, match=r"^dy: it is float32 \(33,\), it must be float32 "):
            layer_norm_backward(self.b, self.x, self.w, self.x[:, 0], self.x[:, 0])

    def test_rungs(self):
        with pytest.raises(ValueError, match="^rung: got 'fast', allowed are 'naive', 'block'"):
            layer_norm_forward(self.x, self.w, self.b, rung="fast")
        with pytest.raises(ValueError, match="^x: rows of 33 float32 do not all start at multipl"):
            layer_norm_forward(self.x, self.w, self.b, rung="vectorised")
        wide = torch.zeros(1, 70000)
        with pytest.raises(ValueError, match="^x: rows of 70000 are too wide for rung 'registers'"):
            layer_norm_forward(wide, wide[0], rung="registers")

    def test_contiguity_of_plain_functions(self):
        with pytest.raises(ValueError, match="x is not contiguous"):
            layer_norm_forward(torch.randn(33, 3).t(), self.w, self.b)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
class TestOnGPU:
    @pytest.mark.parametrize("shape", GPU_SHAPES + TEAMS + REAL, ids=str)
    def test_against_float64(self, shape, dtype):
        x, w, b = inputs(shape, dtype, device="cuda")
        check_forward(x, w, b, True, residual=torch.randn_like(x))
        check_backward(x, w, b, True, dtotal=torch.randn_like(x))
        check_forward(x, w, b, True)
        check_backward(x, w, b, True)

    @pytest.mark.parametrize("shape", [(1823, 768), (130, 4096)], ids=str)
    def test_rungs(self, shape, dtype):
        x, w, b = inputs(shape, dtype, torch.float32, "cuda")
        for rung in RUNGS:
            check_forward(x, w, b, True, rung)
        for rung in BACKWARD_RUNGS:
            check_backward(x, w, b, True, rung)

    def test_deterministic(self, dtype):
        x, w, b = inputs((4096, 4096), dtype, device="cuda")
        dy = torch.randn_like(x)
        y, mean, rstd = layer_norm_forward(x, w, b)
        first = layer_norm_backward(dy, x, w, mean, rstd)
        for _ in range(5):
            again = layer_norm_backward(dy, x, w, mean, rstd)
            assert all(torch.equal(a, c) for a, c in zip(first, again, strict=True))

    def test_like_torch(self, dtype):
        x, w, b = (t.requires_grad_() for t in inputs((64, 768), dtype, device="cuda"))
        dy = torch.randn_like(x)
        layer_norm(x, w, b).backward(dy)
        got = [t.grad.double() for t in (x, w, b)]
        doubles = [t.detach().double().requires_grad_() for t in (x, w, b)]
        torch.nn.functional.layer_norm(doubles[0], (768,), *doubles[1:]).backward(dy.double())
        for name, mine, expected in zip(("dx", "dw", "db"), got, doubles, strict=True):
            check(name, mine, expected.grad, dtype, scale=4 * expected.grad.abs().max())
