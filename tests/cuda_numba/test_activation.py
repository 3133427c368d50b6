"""GELU and SwiGLU against float64, forward and backward, on the emulator and on a GPU."""

import contextlib

import pytest
import torch
import torch.nn.functional as F
from tolerance import DTYPES, GPU_SHAPES, SHAPES, check, guarded, poisoned

from cuda_numba.activation import (
    RUNGS,
    SWIGLU_RUNGS,
    gelu,
    gelu_backward,
    gelu_forward,
    gelu_reference,
    row_step,
    swiglu,
    swiglu_backward,
    swiglu_forward,
    swiglu_reference,
)
from cuda_numba.jit import Kernel

FORMS = ["none", "tanh"]
BLOCKS = [(5003,)]  # more than one block of the vectorised kernel, with a rest
GPU = [*GPU_SHAPES, (2**22 + 5,)]
INFINITY = float("inf")


@pytest.fixture(autouse=True)
def poison():
    with poisoned():
        yield


def numbers(shape, dtype, device="cpu"):
    return (torch.randn(shape) * 2).to(device, dtype)


def gradients(reference, dy, *inputs):
    """The gradients of reference(*inputs) in float64."""
    inputs = [x.double().requires_grad_() for x in inputs]
    return torch.autograd.grad(reference(*inputs), inputs, dy.double())


def check_gelu(forward, shape, dtype, form, device="cpu"):
    x = numbers(shape, dtype, device)
    check("y", forward(x, form), gelu_reference(x.double(), form), dtype)


def check_gelu_gradient(shape, dtype, form, device="cpu"):
    x, dy = numbers(shape, dtype, device), numbers(shape, dtype, device)
    (dx,) = gradients(lambda x: gelu_reference(x, form), dy, x)
    # Φ(x) + x · φ(x) goes through 0 near −0.75: what is added up there is as large as ½ · dy.
    check("dx", gelu_backward(dy, x, form), dx, dtype, scale=dy.double().abs().max())


def check_swiglu(forward, shape, dtype, device="cpu"):
    gate, up = numbers(shape, dtype, device), numbers(shape, dtype, device)
    check("y", forward(gate, up), swiglu_reference(gate.double(), up.double()), dtype)


def check_swiglu_gradients(shape, dtype, device="cpu"):
    dy, gate, up = (numbers(shape, dtype, device) for _ in range(3))
    dgate, dup = gradients(swiglu_reference, dy, gate, up)
    got = swiglu_backward(dy, gate, up)
    check("dgate", got[0], dgate, dtype, scale=(dy.double() * up.double()).abs().max())
    check("dup", got[1], dup, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES + BLOCKS, ids=str)
class TestAgainstFloat64:
    @pytest.mark.parametrize("rung", RUNGS)
    @pytest.mark.parametrize("form", FORMS)
    def test_gelu(self, shape, dtype, form, rung):
        check_gelu(RUNGS[rung], shape, dtype, form)

    @pytest.mark.parametrize("form", FORMS)
    def test_gelu_backward(self, shape, dtype, form):
        check_gelu_gradient(shape, dtype, form)

    @pytest.mark.parametrize("rung", SWIGLU_RUNGS)
    def test_swiglu(self, shape, dtype, rung):
        check_swiglu(SWIGLU_RUNGS[rung], shape, dtype)

    def test_swiglu_backward(self, shape, dtype):
        check_swiglu_gradients(shape, dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
class TestOnGPU:
    @pytest.mark.parametrize("rung", RUNGS)
    @pytest.mark.parametrize("shape", GPU, ids=str)
    def test_forward(self, shape, dtype, rung):
        for form in FORMS:
            check_gelu(RUNGS[rung], shape, dtype, form, "cuda")

    @pytest.mark.parametrize("rung", SWIGLU_RUNGS)
    @pytest.mark.parametrize("shape", GPU, ids=str)
    def test_swiglu_forward(self, shape, dtype, rung):
        check_swiglu(SWIGLU_RUNGS[rung], shape, dtype, "cuda")

    @pytest.mark.parametrize("shape", GPU, ids=str)
    def test_backward(self, shape, dtype):
        for form in FORMS:
            check_gelu_gradient(shape, dtype, form, "cuda")
        check_swiglu_gradients(shape, dtype, "cuda")

    @pytest.mark.parametrize("form", FORMS)
    def test_every_number(self, dtype, form):
        """All 65,536 patterns of a 16-bit format; as many float32 from −20 to 20."""
        if dtype == torch.float32:
            x = torch.linspace(-20, 20, 2**16, device="cuda")
        else:
            x = torch.arange(-(2**15), 2**15, dtype=torch.int16, device="cuda").view(dtype)
        expected = gelu_reference(x.double(), form)
        expected = torch.where(x == -INFINITY, 0.0, expected)
        finite = expected[torch.isfinite(expected)].abs()
        check("y", gelu_forward(x, form), expected, dtype, scale=finite.clamp(max=1).max())

    def test_like_the_emulator(self, dtype):
        x, up = numbers((5, 264), dtype), numbers((5, 264), dtype)
        for form in FORMS:
            check("y", gelu_forward(x.cuda(), form), gelu_forward(x, form).double(), dtype)
        y = swiglu_forward(x.cuda(), up.cuda())
        check("y", y, swiglu_forward(x, up).double(), dtype)


class TestAutograd:
    @pytest.mark.parametrize("form", FORMS)
    def test_gelu(self, form):
        x = torch.randn(3, 33, requires_grad=True)
        dy = torch.randn(3, 33)
        gelu(x, form).backward(dy)
        (dx,) = gradients(lambda x: gelu_reference(x, form), dy, x.detach())
        check("dx", x.grad, dx, scale=dy.abs().max())

    def test_swiglu(self):
        gate, up = (torch.randn(3, 33, requires_grad=True) for _ in range(2))
        dy = torch.randn(3, 33)
        swiglu(gate, up).backward(dy)
        dgate, dup = gradients(swiglu_reference, dy, gate.detach(), up.detach())
        check("dgate", gate.grad, dgate, scale=2 * dy.abs().max())
        check("dup", up.grad, dup)

    def test_once_differentiable(self):
        x, up = (torch.randn(3, 33, requires_grad=True) for _ in range(2))
        gate_up = torch.randn(3, 66, requires_grad=True)
        for y, leaf in ((gelu(x), x), (swiglu(x, up), x), (swiglu(gate_up), gate_up)):
            (dx,) = torch.autograd.grad((y * y).sum(), leaf, create_graph=True)
            with pytest.raises(RuntimeError, match="once_differentiable"):
                dx.sum().backward()

    def test_not_contiguous(self):
        x = torch.randn(33, 7).t().requires_grad_()
        up = torch.randn(7, 66)[:, ::2].requires_grad_()
        dy = torch.randn(33, 7).t()
        check("y", gelu(x), gelu_reference(x.detach().double()))
        swiglu(x, up).backward(dy)
        dgate, dup = gradients(swiglu_reference, dy, x.detach(), up.detach())
        check("dgate", x.grad, dgate, scale=2 * dy.abs().max())
        check("dup", up.grad, dup)


@pytest.mark.parametrize("form", FORMS)
class TestGELU:
    def test_as_torch(self, form):
        x = torch.randn(3, 130)
        check("y", gelu(x, form), F.gelu(x.double(), approximate=form))

    def test_ends(self, form):
        """The limits: the line y = x on the right, 0 on the left; slope 1 and 0."""
        x = torch.tensor([INFINITY, -INFINITY, 3e38, -3e38, 30.0, -30.0, 0.0, -0.0])
        y = gelu(x, form)
        assert torch.equal(y, x.clamp(min=0))
        dx = gelu_backward(torch.ones(8), x, form)
        expected = torch.tensor([1, 0, 1, 0, 1, 0, 0.5, 0.5])
        assert torch.equal(dx, expected), dx

    def test_nan(self, form):
        x = torch.tensor([1.0, float("nan"), -1.0])
        assert gelu(x, form).isnan().tolist() == [False, True, False]
        assert gelu_backward(torch.ones(3), x, form).isnan().tolist() == [False, True, False]

    def test_left_tail_keeps_its_digits(self, form):
        """1 + erf(x/√2) in float32 has none left at −5.5, where Φ is 2e-8."""
        x = -torch.arange(1, 45) / 8
        expected = gelu_reference(x.double(), form)
        error = (gelu(x, form).double() / expected - 1).abs()
        # σ's exponent 2u is rounded at 4.5 · x there, half a unit of which is 1e-6 of the result
        assert error.max() < 5e-6, error.max()

    def test_falls_only_once(self, form):
        """Down to about −0.75, then up for ever."""
        y = gelu(torch.arange(-240, 240) / 40, form)
        turn = int(y.argmin())
        assert abs(-6 + turn / 40 + 0.7518) < 0.02
        assert (y[turn:].diff() > 0).all() and (y[: turn + 1].diff() <= 0).all()

    def test_sum_of_both_sides(self, form):
        """gelu(x) − gelu(−x) = x."""
        x = torch.randn(130)
        check("x", gelu(x, form) - gelu(-x, form), x.double(), factor=2)


class TestSwiGLU:
    def test_as_torch(self):
        gate, up = torch.randn(3, 130) * 5, torch.randn(3, 130)
        check("y", swiglu(gate, up), F.silu(gate.double()) * up.double())

    def test_ends(self):
        gate = torch.tensor([INFINITY, -INFINITY, 1e30, -1e30, -100.0, 0.0])
        up = torch.full((6,), 2.0)
        assert torch.equal(swiglu(gate, up), gate.clamp(min=0) * 2)
        dgate, dup = swiglu_backward(torch.ones(6), gate, up)
        assert torch.equal(dgate, torch.tensor([2.0, 0, 2, 0, 0, 1]))
        assert torch.equal(dup, gate.clamp(min=0))

    def test_nan(self):
        gate = torch.tensor([1.0, float("nan"), 1.0])
        up = torch.tensor([1.0, 1.0, float("nan")])
        dgate, dup = swiglu_backward(torch.ones(3), gate, up)
        assert swiglu(gate, up).isnan().tolist() == [False, True, True]
        assert dgate.isnan().tolist() == [False, True, True]
        assert dup.isnan().tolist() == [False, True, False]

    def test_linear_in_up(self):
        gate, up = torch.randn(130), torch.randn(130)
        assert torch.equal(swiglu(gate, 2 * up), 2 * swiglu(gate, up))


def halves_of(x):
    return swiglu_reference(*x.chunk(2, dim=-1))


@contextlib.contextmanager
def traffic():
    """[bytes read, bytes written, launches] of all kernels inside; copies by torch do not count."""
    total, launch = [0, 0, 0], Kernel.launch

    def report(self, grid, block, *args, **_):
        found = self.report(grid, block, *args)
        assert found.findings == [] and found.efficiency == 1
        total[0] += found.reads
        total[1] += found.writes
        total[2] += 1

    Kernel.launch = report
    try:
        yield total
    finally:
        Kernel.launch = launch


class TestHalves:
    """Gate and up in one tensor, as one product with both matrices leaves them."""

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("shape", [(6,), (1, 2), (3, 14), (2, 3, 48), (5, 2 * 2056)], ids=str)
    def test_against_float64(self, shape, dtype, device="cpu"):
        x = numbers(shape, dtype, device).requires_grad_()
        dy = numbers((*shape[:-1], shape[-1] // 2), dtype, device)
        y = swiglu(x)
        y.backward(dy)
        check("y", y, halves_of(x.detach().double()), dtype)
        (dx,) = gradients(halves_of, dy, x.detach())
        assert x.grad.is_contiguous()
        check("dx", x.grad, dx, dtype, scale=4 * dy.double().abs().max())

    @pytest.mark.gpu
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("shape", [(33, 14), (3, 781, 1040), (131, 2 * 2816)], ids=str)
    def test_on_gpu(self, shape, dtype):
        self.test_against_float64(shape, dtype, "cuda")

    @pytest.mark.parametrize("columns", [7, 48])
    def test_two_views_are_read_where_they_lie(self, columns, monkeypatch):
        """Of one tensor or of two, and contiguous beside not: nothing is copied."""
        both, other = torch.randn(2, 4, 3 * columns), torch.randn(8, columns)
        gate, up = both[..., :columns], both[..., columns : 2 * columns]
        dy = torch.randn(2, 4, 2 * columns)[..., columns:]
        monkeypatch.setattr(torch.Tensor, "contiguous", lambda _: pytest.fail("a copy"))
        for second in (up, other.view(2, 4, columns)):
            a, b = (t.clone(memory_format=torch.contiguous_format) for t in (gate, second))
            assert torch.equal(swiglu(gate, second), swiglu_forward(a, b))
            leaves = [t.detach().requires_grad_() for t in (gate, second)]
            got = torch.autograd.grad(swiglu(*leaves), leaves, dy)
            expected = swiglu_backward(dy.clone(memory_format=torch.contiguous_format), a, b)
            assert all(map(torch.equal, got, expected))

    def test_one_row_for_all(self):
        """Rows 0 elements apart."""
        gate, up = torch.randn(1, 16).expand(3, 16), torch.randn(3, 16)
        assert torch.equal(swiglu(gate, up), swiglu(gate.contiguous(), up))

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_traffic(self, dtype):
        """Forward both halves and y; backward both, dy and both gradients: nothing twice."""
        x = numbers((4, 64), dtype).requires_grad_()
        half = x.nbytes // 2
        with traffic() as forward:
            y = swiglu(x)
        with traffic() as backward:
            y.backward(torch.ones_like(y))
        assert forward == [2 * half, half, 1]
        assert backward == [3 * half, 2 * half, 1]

    def test_writes_nothing_outside(self):
        """Nor between: the third part of every row stays as it is."""
        for columns in (7, 48):
            x, dy = torch.randn(3, 2 * columns), torch.randn(3, columns)
            whole, intact = guarded((3, 3 * columns), torch.float32)
            out = whole[:, :columns], whole[:, columns : 2 * columns]
            swiglu_backward(dy, *x.chunk(2, dim=-1), out=out)
            assert intact() and whole[:, 2 * columns :].isnan().all()
            assert not any(part.isnan().any() for part in out)

    def test_wrong_arguments(self):
        with pytest.raises(ValueError, match=r"^gate: its shape is \(2, 7\), without up the last "):
            swiglu(torch.zeros(2, 7))
        with pytest.raises(ValueError, match=r"^gate: its shape is \(\), without up"):
            swiglu(torch.tensor(1.0))
        with pytest.raises(TypeError, match="^gate: its dtype is float64, swiglu takes float32, "):
            swiglu(torch.zeros(2, 6).double())


@pytest.mark.parametrize(
    ("x", "step"),
    [
        (torch.zeros(3, 8), 8),
        (torch.zeros(3, 8)[:, 4:], 8),
        (torch.zeros(2, 3, 8)[..., :4], 8),
        (torch.zeros(2, 3, 8)[:, :2], None),  # further apart from the second to the third row
        (torch.zeros(3, 8)[:, ::2], None),
        (torch.zeros(8, 3).t(), None),
        (torch.zeros(()), 1),
    ],
)
def test_row_step(x, step):
    assert row_step(x) == step


@pytest.mark.parametrize("shape", [(0,), (0, 5), (5, 0)])
def test_empty(shape):
    x = torch.zeros(shape)
    assert swiglu(torch.zeros(*shape[:-1], 0)).shape == (*shape[:-1], 0)
    assert gelu(x).shape == swiglu(x, x).shape == gelu_backward(x, x).shape == shape
    assert [g.shape for g in swiglu_backward(x, x, x)] == [shape, shape]


def test_single_number():
    assert gelu(torch.tensor(0.0)) == 0 and swiglu(torch.tensor(0.0), torch.tensor(1.0)) == 0


@pytest.mark.parametrize("offset", [0, 1, 3])
@pytest.mark.parametrize("n", [1, 33, 1027])
def test_writes_nothing_outside(monkeypatch, n, offset):
    """Also where the tensors start in the middle of 16 bytes."""
    outs = [guarded((n,), torch.float16, guard=64 + offset) for _ in range(6)]
    left = iter(outs)
    monkeypatch.setattr(torch, "empty_like", lambda _: next(left)[0])
    monkeypatch.setattr(torch, "empty", lambda *_, **__: next(left)[0])
    dy, x, up = (torch.randn(n + offset).half()[offset:] for _ in range(3))
    check("y", gelu_forward(x), gelu_reference(x.double()))
    check("y", swiglu_forward(x, up), swiglu_reference(x.double(), up.double()))
    gelu_backward(dy, x)
    swiglu_backward(dy, x, up)
    assert next(left, None) is outs[-1]
    assert all(intact() for _, intact in outs)
    assert not any(out.isnan().any() for out, _ in outs[:-1])


def test_deterministic():
    x, up = torch.randn(1031), torch.randn(1031)
    assert torch.equal(gelu(x), gelu(x)) and torch.equal(swiglu(x, up), swiglu(x, up))


def test_wrong_arguments():
    x = torch.zeros(3)
    with pytest.raises(ValueError, match="^approximate: got 'erf', allowed are 'none' and 'tanh'"):
        gelu(x, "erf")
    with pytest.raises(TypeError, match="^x: its dtype is int64, gelu takes float32, "):
        gelu(x.long())
    with pytest.raises(ValueError, match=r"^up: its shape is \(4,\), it must be gate's, \(3,\)\.$"):
        swiglu(x, torch.zeros(4))
    with pytest.raises(TypeError, match="^gate, up: their dtypes are float32 and float16, "):
        swiglu(x, x.half())
