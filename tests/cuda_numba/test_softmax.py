"""Softmax against float64, forward and backward, on the emulator and on a GPU."""

import importlib
import math

import pytest
import torch
from tolerance import DTYPES, GPU_SHAPES, SHAPES, check, guarded, poisoned

from cuda_numba.softmax import (
    RUNGS,
    softmax,
    softmax_backward,
    softmax_backward_reference,
    softmax_forward,
    softmax_reference,
)
from cuda_numba.softmax_rows import BACKWARD, FORWARD, team_of

# One warp's rows, full and not; four warps' rows, aligned and not: (rows, columns).
TEAMS = [(9, 256), (2, 1160), (1, 1157)]
INFINITY = float("inf")
module = importlib.import_module("cuda_numba.softmax")  # the package's name for it is the function


@pytest.fixture(autouse=True)
def poison():
    with poisoned():
        yield


@pytest.fixture
def long_rows(monkeypatch):
    """No team is large enough: every row is streamed."""
    monkeypatch.setattr(module, "FORWARD", ())
    monkeypatch.setattr(module, "BACKWARD", ())


def inputs(shape, dtype, device="cpu"):
    return (torch.randn(shape) * 3).to(device, dtype)


def check_forward(x, forward=softmax_forward):
    check("y", forward(x), softmax_reference(x.double()), x.dtype)


def check_backward(x):
    y = softmax_forward(x)
    dy = torch.randn(x.shape, device=x.device).to(x.dtype)
    dx = softmax_backward_reference(dy.double(), y.double())
    # What is added up in dy − Σ dy · y is as large as the largest dy of the row.
    scale = 2 * y.double() * dy.double().abs().amax(-1, keepdim=True)
    check("dx", softmax_backward(dy, y), dx, x.dtype, scale=scale)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES + TEAMS, ids=str)
class TestAgainstFloat64:
    @pytest.mark.parametrize("rung", RUNGS)
    def test_forward(self, rung, shape, dtype):
        check_forward(inputs(shape, dtype), RUNGS[rung])

    def test_backward(self, shape, dtype):
        check_backward(inputs(shape, dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("columns", [33, 136, 2056])
def test_streamed_rows(long_rows, columns, dtype):
    x = inputs((2, columns), dtype)
    check_forward(x)
    check_backward(x)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
class TestOnGPU:
    @pytest.mark.parametrize("rung", RUNGS)
    @pytest.mark.parametrize("shape", GPU_SHAPES, ids=str)
    def test_forward(self, rung, shape, dtype):
        check_forward(inputs(shape, dtype, "cuda"), RUNGS[rung])

    @pytest.mark.parametrize(
        "columns", [4096, 8192, 16384, 25600, 32768, 50257, 50304, 51200, 51208, 128256]
    )
    def test_real_rows(self, columns, dtype):
        x = inputs((40, columns), dtype, "cuda")
        check_forward(x)
        check_backward(x)

    @pytest.mark.parametrize("shape", GPU_SHAPES, ids=str)
    def test_backward(self, shape, dtype):
        check_backward(inputs(shape, dtype, "cuda"))

    def test_deterministic(self, dtype):
        x, dy = inputs((1823, 781), dtype, "cuda"), inputs((1823, 781), dtype, "cuda")
        y = softmax_forward(x)
        assert torch.equal(y, softmax_forward(x))
        assert torch.equal(softmax_backward(dy, y), softmax_backward(dy, y))

    def test_like_the_emulator(self, dtype):
        """Within one unit in the last place: both are rounded, perhaps to different sides."""
        x = inputs((5, 264), dtype)
        check("y", softmax_forward(x.cuda()), softmax_forward(x).double(), dtype, factor=2)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore::numba.core.errors.NumbaPerformanceWarning")
def test_plain_numba():
    """The kernel's function under `numba.cuda.jit` itself: same instructions, same bits."""
    from numba import cuda

    x = torch.randn(33, 781, device="cuda")
    y = torch.empty_like(x)
    torch.cuda.synchronize()  # numba launches on a stream of its own
    cuda.jit(module.softmax_online.function)[33, module.THREADS](x, y)
    cuda.synchronize()
    assert torch.equal(y, RUNGS["online"](x))


class TestAutograd:
    def test_gradient(self):
        x = torch.randn(2, 3, 33, requires_grad=True)
        weight = torch.randn(2, 3, 33)
        (softmax(x) * weight).sum().backward()
        x64 = x.detach().double().requires_grad_()
        (softmax_reference(x64) * weight.double()).sum().backward()
        check("dx", x.grad, x64.grad, scale=1)

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_gradient_with_result_stored(self, dtype):
        """The backward pass reads y as it was stored: one rounding to the format in between."""
        x = inputs((3, 130), dtype).requires_grad_()
        weight = torch.randn(3, 130).clamp(-1, 1).to(dtype)
        softmax(x).backward(weight)
        x64 = x.detach().double().requires_grad_()
        softmax_reference(x64).backward(weight.double())
        scale = 2 * softmax_reference(x64.detach())
        check("dx", x.grad, x64.grad, scale=scale, stored=2)

    def test_once_differentiable(self):
        x = torch.randn(3, 33, requires_grad=True)
        y = softmax(x)
        (dx,) = torch.autograd.grad((y * y).sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            dx.sum().backward()

    def test_not_contiguous(self):
        x = torch.randn(33, 7).t().requires_grad_()
        dy = torch.randn(33, 7).t()
        y = softmax(x)
        y.backward(dy)
        check("y", y, softmax_reference(x.detach().double()))
        check("dx", x.grad, softmax_backward_reference(dy.double(), y.detach().double()), scale=1)


@pytest.mark.parametrize("rung", RUNGS)
class TestProperties:
    def test_rows_sum_to_one(self, rung):
        y = RUNGS[rung](torch.randn(5, 130) * 10)
        assert (y >= 0).all()
        check("sums", y.double().sum(-1).float(), torch.ones(5, dtype=torch.float64))

    def test_shift(self, rung):
        """Adding a constant changes nothing; 2¹⁴ keeps these inputs exact in float32."""
        x = torch.randint(-64, 64, (3, 130)) / 8.0
        assert torch.equal(RUNGS[rung](x), RUNGS[rung](x + 2.0**14))

    def test_masked_entries(self, rung):
        x = torch.randn(4, 130)
        x[0, :100] = x[1, 30:] = -INFINITY
        x[2, 1:] = -INFINITY
        y = RUNGS[rung](x)
        check("y", y, softmax_reference(x.double()))
        assert (y[x == -INFINITY] == 0).all() and y[2, 0] == 1

    def test_rows_with_nothing_left(self, rung):
        x = torch.randn(3, 130)
        x[1] = -INFINITY
        y = RUNGS[rung](x)
        assert y[1].isnan().all() and not y[[0, 2]].isnan().any()

    def test_masked_with_the_lowest_number(self, rung):
        """finfo.min instead of −∞, everywhere in a row: every entry is equally likely."""
        x = torch.full((2, 130), torch.finfo(torch.float32).min)
        x[0, 7] = 0
        y = RUNGS[rung](x)
        assert y[0, 7] == 1 and y[0].sum() == 1
        check("y", y[1], torch.full((130,), 1 / 130, dtype=torch.float64))

    @pytest.mark.parametrize("bad", [INFINITY, float("nan")])
    def test_bad_entries_spoil_their_row_only(self, rung, bad):
        x = torch.randn(3, 130)
        x[1, 77] = bad
        y = RUNGS[rung](x)
        assert y[1].isnan().all() and not y[[0, 2]].isnan().any()

    def test_large_numbers(self, rung):
        x = torch.randn(3, 130) * 1e4
        check("y", RUNGS[rung](x), softmax_reference(x.double()))


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0,)])
def test_empty(shape):
    assert softmax(torch.zeros(shape)).shape == shape


def test_single_number():
    assert softmax(torch.tensor(3.0)) == 1


def test_deterministic():
    x, dy = torch.randn(3, 1157), torch.randn(3, 1157)
    y = softmax_forward(x)
    assert torch.equal(y, softmax_forward(x))
    assert torch.equal(softmax_backward(dy, y), softmax_backward(dy, y))


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("columns", [33, 136, 1160])
def test_writes_nothing_outside(monkeypatch, columns, offset):
    """Also where the tensors start in the middle of 16 bytes."""
    y, intact = guarded((3, columns), torch.float32, guard=64 + offset)
    monkeypatch.setattr(torch, "empty_like", lambda _: y)
    x = torch.randn(3 * columns + offset)[offset:].view(3, columns)
    check_forward(x)
    assert intact()


@pytest.mark.parametrize("table", [FORWARD, BACKWARD])
@pytest.mark.parametrize("width", [1, 4, 8])
def test_teams_hold_their_rows(table, width):
    for columns in (1, 7, 33, 512, 513, 1024, 1025, 4096, 5000, 8192, 16384, 20000, 25600, 50304):
        team = team_of(columns, width, table)
        if team is None:
            assert columns > table[-1][0]
            continue
        held = 32 * team.warps * team.width * team.accesses
        assert held - 32 * team.warps * team.width < columns <= held
        assert team.full == (held == columns)
        assert team.threads <= 1024 and (team.warps == 1 or team.rows == 1)
        registers = team.width * team.accesses * (1 if table is FORWARD else 2) + 16
        assert registers * team.threads <= 65536, "a row must fit the registers"
        assert math.ceil(registers / 8) * 8 <= 65536 // team.threads


def test_wrong_dtype():
    with pytest.raises(TypeError, match="^x: its dtype is int64, softmax takes float32, "):
        softmax(torch.arange(3))
