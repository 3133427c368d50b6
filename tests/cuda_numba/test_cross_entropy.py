"""Cross-entropy against float64: loss, gradient, in place and not, on the emulator and on a GPU."""

import math

import pytest
import torch
from tolerance import DTYPES, GPU_SHAPES, SHAPES, check, guarded, poisoned

from cuda_numba import cross_entropy_launch as launching
from cuda_numba import cross_entropy_rungs
from cuda_numba.cross_entropy import (
    RUNGS,
    cross_entropy,
    cross_entropy_,
    cross_entropy_backward_reference,
    cross_entropy_reference,
)
from cuda_numba.cross_entropy_launch import (
    cross_entropy_backward,
    cross_entropy_forward,
    cross_entropy_forward_backward,
    plan_of,
    scale_gradient_,
)
from cuda_numba.jit import launches

# (rows, columns): more rows than blocks; several pieces a thread, aligned rows and others.
LONGER = [(9, 264), (3, 1160), (2, 1157)]
IGNORED = -100
INFINITY = float("inf")


@pytest.fixture(autouse=True)
def poison():
    with poisoned():
        yield


@pytest.fixture
def streamed(monkeypatch):
    """No shared memory: every row is read twice."""
    monkeypatch.setattr(launching, "EMULATED", (2, 0, 0))
    launching._machine.cache_clear()
    yield
    launching._machine.cache_clear()


@pytest.fixture
def one_block(monkeypatch):
    """One block of two warps takes all rows, one after the other."""
    monkeypatch.setattr(launching, "TEAMS", ((1 << 32, 64),))
    monkeypatch.setattr(launching, "RESIDENT_THREADS", 64)
    monkeypatch.setattr(launching, "EMULATED", (1, 1 << 17, 1 << 17))
    launching._machine.cache_clear()
    yield
    launching._machine.cache_clear()


def inputs(shape, dtype, device="cpu"):
    """Logits, and targets of which every third row, from the second on, is left out."""
    x = (torch.randn(shape) * 3).to(device, dtype)
    targets = torch.randint(0, shape[1], shape[:1])
    targets[1::3] = IGNORED
    return x, targets.to(device)


def check_both(loss, dx, x, targets, factor=1.0):
    """Against float64 on x, the logits before; dx for dy = factor."""
    x64 = x.double()
    losses = torch.logsumexp(x64, 1).abs() + x64.abs().amax(1)
    check("loss", loss, cross_entropy_reference(x64, targets), scale=losses.max())
    count = (targets != IGNORED).sum().clamp(min=1)
    expected = cross_entropy_backward_reference(x64, targets) * factor
    # p − 1 at the target: as exact as 1, and as lse where that is subtracted from x.
    scale = abs(factor) * (1 + x64.abs().amax()) / count
    check("dx", dx, expected, x.dtype, scale=scale)


def check_fused(x, targets, rung=cross_entropy_forward_backward):
    check_both(*rung(x.clone(), targets), x, targets)


def check_apart(x, targets, dy=-2.5):
    before = x.clone()
    loss, lse, count = cross_entropy_forward(x, targets)
    assert count == (targets != IGNORED).sum()
    check("lse", lse, torch.logsumexp(x.double(), 1), scale=1 + x.double().abs().max())
    dy = torch.tensor(dy, device=x.device)
    dx = cross_entropy_backward(dy, x, targets, lse, count)
    assert torch.equal(x, before)
    check_both(loss, dx, x, targets, float(dy))
    written = cross_entropy_backward(dy, x, targets, lse, count, inplace=True)
    assert written is x and torch.equal(x, dx)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES + LONGER, ids=str)
class TestAgainstFloat64:
    @pytest.mark.parametrize("rung", RUNGS)
    def test_rung(self, rung, shape, dtype):
        check_fused(*inputs(shape, dtype), RUNGS[rung])

    def test_apart(self, shape, dtype):
        check_apart(*inputs(shape, dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("columns", [33, 136, 2065])
def test_streamed_rows(streamed, columns, dtype):
    check_fused(*inputs((5, columns), dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_counting_in_the_same_launch(monkeypatch, dtype):
    """As for long rows: every block counts the targets."""
    monkeypatch.setattr(launching, "COUNTED_BELOW", 0)
    x, targets = inputs((7, 136), dtype)
    with launches() as log:
        check_fused(x, targets)
    assert [launch.name for launch in log] == ["cross_entropy_fused"]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("columns", [1160, 1157])
def test_many_rows_of_a_block(one_block, columns, dtype):
    """Several pieces a thread, and rows between that do not count."""
    x, targets = inputs((5, columns), dtype)
    with launches() as log:
        check_fused(x, targets)
    assert log[-1].grid == 1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("columns", [33, 1160])
def test_parts_of_a_batch(one_block, columns, dtype):
    """The parts' losses add up to the batch's, and their gradients are its rows."""
    x, targets = inputs((7, columns), dtype)
    loss, dx = cross_entropy_forward_backward(x, targets, IGNORED, inplace=False)
    count = launching.count_of(targets, IGNORED)
    assert count == (targets != IGNORED).sum()
    total = 0.0
    for rows in (slice(0, 3), slice(3, 7)):
        part, written = cross_entropy_forward_backward(
            x[rows].clone(), targets[rows], IGNORED, count=count
        )
        assert torch.equal(written, dx[rows])
        total += part.double()
    assert abs(total - loss) <= 1e-6 * abs(loss)
    assert count == (targets != IGNORED).sum()  # still: the kernel leaves what it is given


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
class TestOnGPU:
    @pytest.mark.parametrize("shape", GPU_SHAPES, ids=str)
    def test_small(self, shape, dtype):
        x, targets = inputs(shape, dtype, "cuda")
        for rung in RUNGS.values():
            check_fused(x, targets, rung)
        check_apart(x, targets)

    @pytest.mark.parametrize("columns", [4096, 16384, 32768, 50257, 50304, 58111, 128256])
    def test_real_rows(self, columns, dtype):
        x, targets = inputs((600, columns), dtype, "cuda")
        with launches() as log:
            check_fused(x, targets)
        assert len(log) == 1 + (columns * x.itemsize < launching.COUNTED_BELOW)
        check_apart(x, targets)

    def test_deterministic(self, dtype):
        x, targets = inputs((1823, 50257), dtype, "cuda")
        loss, dx = cross_entropy_forward_backward(x.clone(), targets)
        for _ in range(5):
            again = cross_entropy_forward_backward(x.clone(), targets)
            assert torch.equal(again[0], loss) and torch.equal(again[1], dx)

    def test_in_a_graph(self, dtype):
        """Captured at the first call on a new stream, and replayed with other numbers."""
        x, targets = inputs((65, 50304), dtype, "cuda")
        static, graph = x.clone(), torch.cuda.CUDAGraph()
        cross_entropy_forward_backward(x.clone(), targets)  # compiles
        with torch.cuda.graph(graph):
            loss, _ = cross_entropy_forward_backward(static, targets)
        for _ in range(2):
            static.copy_(x)
            graph.replay()
            check_both(loss, static, x, targets)

    def test_like_torch(self, dtype):
        x, targets = inputs((130, 50257), dtype, "cuda")
        x.requires_grad_()
        loss = cross_entropy(x, targets)
        loss.backward()
        other = x.detach().float().requires_grad_()
        expected = torch.nn.functional.cross_entropy(other, targets)
        expected.backward()
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(x.grad.float(), other.grad, rtol=1e-2, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore::numba.core.errors.NumbaPerformanceWarning")
def test_plain_numba():
    """The kernel's function under `numba.cuda.jit` itself: same instructions, same bits."""
    from numba import cuda

    x, targets = inputs((33, 781), torch.float32, "cuda")
    losses, out = torch.empty(33, device="cuda"), torch.empty_like(x)
    kernel = cuda.jit(cross_entropy_rungs.cross_entropy_online.function)
    torch.cuda.synchronize()  # numba launches on a stream of its own
    scale = 1 / int((targets != IGNORED).sum())
    kernel[33, cross_entropy_rungs.THREADS](
        x, targets, losses, out, IGNORED, torch.tensor(scale).item()
    )
    cuda.synchronize()
    torch.testing.assert_close(out, RUNGS["online"](x, targets)[1])


class TestAutograd:
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_gradient(self, dtype):
        x, targets = inputs((5, 33), dtype)
        leaf = x.clone().requires_grad_()
        loss = cross_entropy(leaf, targets)
        (loss * 3).backward()
        assert torch.equal(leaf, x), "the logits are still there"
        check_both(loss.detach(), leaf.grad, x, targets, 3.0)

    def test_in_place(self):
        """The gradient goes on to what made the logits, for any dy."""
        hidden, weight = torch.randn(5, 4), torch.randn(33, 4, requires_grad=True)
        targets = inputs((5, 33), torch.float32)[1]
        (cross_entropy_(hidden @ weight.t(), targets) * 3).backward()
        weight64 = weight.detach().double().requires_grad_()
        (cross_entropy_reference(hidden.double() @ weight64.t(), targets) * 3).backward()
        check("dw", weight.grad, weight64.grad, scale=10)

    def test_in_place_overwrites_and_says_so(self):
        x, targets = inputs((5, 33), torch.float32)
        leaf = x.clone().requires_grad_()
        logits = leaf * 1
        squares = logits * logits  # needs the logits for its gradient
        loss = cross_entropy_(logits, targets)
        check_both(loss.detach(), logits.detach(), x, targets)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            squares.sum().backward()

    def test_in_place_goes_backward_once(self):
        leaf = torch.randn(5, 33, requires_grad=True)
        loss = cross_entropy_(leaf * 1, torch.zeros(5, dtype=torch.int64))
        loss.backward(retain_graph=True)
        with pytest.raises(RuntimeError, match="^cross_entropy_: its backward pass ran before"):
            loss.backward()

    @pytest.mark.parametrize("operation", [cross_entropy, cross_entropy_])
    def test_only_once_differentiable(self, operation):
        """The gradient of a gradient is refused, not silently left out."""
        x = torch.randn(5, 33, requires_grad=True)
        loss = operation(x * 1, torch.zeros(5, dtype=torch.int64))
        (dx,) = torch.autograd.grad(loss.square(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            dx.sum().backward()

    def test_not_contiguous(self):
        x = torch.randn(33, 5).t().requires_grad_()
        targets = torch.arange(10)[::2]
        loss = cross_entropy(x, targets)
        loss.backward()
        check_both(loss.detach(), x.grad, x.detach(), targets)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", [1, 63, 4097])
def test_scale_gradient(dtype, n):
    x, intact = guarded((n,), dtype)
    x.copy_(torch.randn(n))
    before = x.double()
    scale_gradient_(x, torch.tensor(1.0))
    assert torch.equal(x.double(), before)
    scale_gradient_(x, torch.tensor(-0.3))
    check("dx", x, before * torch.tensor(-0.3).double())
    assert intact()


@pytest.mark.parametrize("rung", RUNGS)
class TestProperties:
    def test_rows_of_the_gradient_sum_to_zero(self, rung):
        x, targets = inputs((5, 130), torch.float32)
        dx = RUNGS[rung](x, targets)[1]
        assert dx.sum(1).abs().max() < 1e-6
        assert (dx[targets == IGNORED] == 0).all()

    def test_uniform_logits(self, rung):
        loss, dx = RUNGS[rung](torch.full((3, 32), 7.0), torch.tensor([0, 5, 31]))
        assert math.isclose(loss, math.log(32), rel_tol=1e-6)
        check("dx", dx[1, :5], torch.full((5,), 1 / 96, dtype=torch.float64))

    def test_another_ignore_index(self, rung):
        x, _ = inputs((4, 33), torch.float32)
        loss, dx = RUNGS[rung](x.clone(), torch.tensor([3, 0, 7, 3]), 3)
        expected = cross_entropy_reference(x[1:3].double(), torch.tensor([0, 7]))
        check("loss", loss, expected, scale=10)
        assert (dx[[0, 3]] == 0).all() and (dx[[1, 2]] != 0).any(1).all()

    def test_all_ignored(self, rung):
        """0, and a gradient of zeros even from rows without a finite number."""
        x = torch.randn(3, 33)
        x[1] = float("nan")
        loss, dx = RUNGS[rung](x, torch.full((3,), IGNORED))
        assert loss == 0
        assert (dx[[0, 2]] == 0).all() and (rung != "fused" or (dx[1] == 0).all())

    def test_masked_logits(self, rung):
        x, targets = torch.randn(4, 130), torch.tensor([120, 7, 0, 0])
        x[0, :100] = x[1, 30:] = -INFINITY
        x[2, 1:] = -INFINITY  # nothing but the target: loss 0
        x[3, 1:] = torch.finfo(torch.float32).min
        loss, dx = RUNGS[rung](x.clone(), targets)
        x64 = x.double()
        check("loss", loss, cross_entropy_reference(x64, targets), scale=10)
        check("dx", dx, cross_entropy_backward_reference(x64, targets), scale=1)
        assert (dx[2:] == 0).all()

    def test_impossible_target(self, rung):
        """Its logit is −∞: the loss is infinite, the gradient is not."""
        x = torch.randn(2, 33)
        x[0, 5] = -INFINITY
        loss, dx = RUNGS[rung](x, torch.tensor([5, 6]))
        assert loss == INFINITY and dx.isfinite().all() and dx[0, 5] == -0.5

    @pytest.mark.parametrize("bad", [INFINITY, float("nan"), None])
    def test_bad_rows(self, rung, bad):
        """+∞ or NaN, or a row of −∞ alone (None): its loss and gradient are NaN, no others."""
        x = torch.randn(3, 130)
        x[1, 77 if bad else slice(None)] = bad or -INFINITY
        loss, dx = RUNGS[rung](x, torch.zeros(3, dtype=torch.int64))
        assert loss.isnan() and not dx[[0, 2]].isnan().any()
        assert dx[1].isnan().any()


@pytest.mark.parametrize("target", [33, -1, 2**40, -(2**40)])
def test_target_outside(target):
    x, targets = torch.randn(3, 33), torch.tensor([0, target, 32])
    first, lse, count = cross_entropy_forward(x, targets)
    apart = cross_entropy_backward(torch.ones(()), x, targets, lse, count)
    for loss, dx in ((first, apart), cross_entropy_forward_backward(x, targets)):
        assert loss.isnan() and dx[1].isnan().all() and not dx[[0, 2]].isnan().any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("columns", [3, 33, 136])
def test_writes_nothing_outside(dtype, columns, offset):
    """Also where the logits start in the middle of 16 bytes."""
    x, intact = guarded((3, columns), dtype, guard=64 + offset)
    values, targets = inputs((3, columns), dtype)
    x.copy_(values)
    check_both(*cross_entropy_forward_backward(x, targets), values, targets)
    assert intact()
    x.copy_(values)
    check_apart(x, targets)
    assert intact()


@pytest.mark.parametrize("inplace", [True, False])
def test_scale(inplace):
    """Half precision needs the loss scale before the gradient is rounded."""
    x, targets = inputs((5, 264), torch.float16)
    before = x.clone()
    loss, dx = cross_entropy_forward_backward(x, targets, scale=1024.0, inplace=inplace)
    check_both(loss, dx, before, targets, 1024.0)
    assert (dx is x) == inplace and (inplace or torch.equal(x, before))


def test_deterministic():
    x, targets = inputs((7, 1157), torch.float32)
    loss, dx = cross_entropy_forward_backward(x.clone(), targets)
    again = cross_entropy_forward_backward(x.clone(), targets)
    assert torch.equal(again[0], loss) and torch.equal(again[1], dx)
    assert torch.equal(
        cross_entropy_forward(x, targets).loss, cross_entropy_forward(x, targets).loss
    )


@pytest.mark.parametrize("shape", [(0, 5), (0, 0)])
def test_empty(shape):
    x = torch.zeros(shape, requires_grad=True)
    loss = cross_entropy(x, torch.zeros(0, dtype=torch.int64))
    loss.backward()
    assert loss == 0 and x.grad.shape == shape


H100, A100, T4 = (132, 232448, 233472), (108, 166912, 167936), (40, 0, 0)


def test_plans():
    """50,304 columns: one row to a multiprocessor, in shared memory where there is room for it."""
    assert plan_of(8192, 50304, "bfloat16", H100) == (1024, 132, 1, 100608)
    assert plan_of(8192, 50304, "bfloat16", A100) == (1024, 108, 1, 100608)
    assert plan_of(8192, 50304, "float32", H100) == (1024, 132, 1, 201216)
    assert plan_of(8192, 50304, "bfloat16", T4) == (1024, 40, 1, 0)
    assert plan_of(8192, 128256, "bfloat16", H100) == (1024, 132, 1, 0)
    assert plan_of(5, 50304, "bfloat16", H100).blocks == 5


@pytest.mark.parametrize("machine", [H100, A100, T4])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_plans_fit(machine, dtype):
    for columns in (1, 33, 512, 4096, 12289, 30000, 50257, 60000, 100000, 128256, 10**6):
        plan = plan_of(10**6, columns, dtype, machine)
        assert plan.threads & (plan.threads - 1) == 0 and 64 <= plan.threads <= 1024
        assert plan.threads * plan.resident <= 1024
        together = plan.blocks // machine[0]
        assert 1 <= together <= plan.resident
        if plan.smem:
            assert together * (plan.smem + 2048) <= machine[2] and plan.smem + 2048 <= machine[1]


class TestErrors:
    def test_messages(self):
        x, t = torch.zeros(3, 5), torch.zeros(3, dtype=torch.int64)
        for error, match, logits, targets in (
            (TypeError, "^logits: their dtype is int64, ", x.long(), t),
            (ValueError, r"^logits: their shape is \(3,\), it must be \(N, V\)", x[:, 0], t),
            (TypeError, "^targets: their dtype is float32, it must be int64", x, t.float()),
            (ValueError, r"^targets: their shape is \(2,\), it must be \(3,\)", x, t[:2]),
            (ValueError, "^targets: on meta, they must be on cpu", x, t.to("meta")),
        ):
            with pytest.raises(error, match=match):
                cross_entropy(logits, targets)

    def test_in_place(self):
        t = torch.zeros(3, dtype=torch.int64)
        with pytest.raises(ValueError, match="^logits: not contiguous"):
            cross_entropy_(torch.zeros(5, 3).t(), t)
        with pytest.raises(ValueError, match="^logits: a leaf that requires grad"):
            cross_entropy_(torch.zeros(3, 5, requires_grad=True), t)
