"""Rotary embedding against float64, forward and backward, on the emulator and on a GPU."""

import pytest
import torch
from tolerance import DTYPES, check, guarded, poisoned

from cuda_numba.rope import (
    HEADS,
    RUNGS,
    rope,
    rope_backward,
    rope_forward,
    rope_reference,
)

# (B, H, T, D): halves that are no multiple of 16 bytes, odd everything, groups of 1 to 4 heads.
SHAPES = [(1, 1, 1, 2), (2, 3, 5, 6), (1, 7, 3, 16), (2, 4, 5, 32), (1, 6, 3, 66), (3, 2, 1, 64)]
GPU_SHAPES = SHAPES + [(1, 1, 1823, 130), (3, 9, 257, 96), (16, 12, 1024, 64), (2, 32, 1031, 128)]


@pytest.fixture(autouse=True)
def poison():
    with poisoned():
        yield


def angles(T, D, device="cpu", start=0):
    """cos and sin (T, D/2) of the positions start, start + 1, …"""
    frequency = 10000.0 ** (-torch.arange(0, D, 2, device=device) / D)
    angle = torch.arange(start, start + T, device=device)[:, None] * frequency
    return angle.cos(), angle.sin()


def numbers(shape, dtype, device="cpu"):
    return torch.randn(shape).to(device, dtype)


def transposed(shape, dtype, device="cpu"):
    """(B, H, T, D) as the transpose of a contiguous (B, T, H, D)."""
    B, H, T, D = shape
    return numbers((B, T, H, D), dtype, device).transpose(1, 2)


def packed(shape, dtype, device="cpu"):
    """(B, H, T, D) as the middle third of a packed (B, T, 3, H, D)."""
    B, H, T, D = shape
    return numbers((B, T, 3, H, D), dtype, device)[:, :, 1].transpose(1, 2)


LAYOUTS = {"contiguous": numbers, "transposed": transposed, "packed": packed}


def check_both(x, forward=rope_forward):
    """One direction and the other, of which the second is the gradient."""
    cos, sin = angles(x.shape[2], x.shape[3], x.device)
    scale = x.double().abs().max()
    y = forward(x, cos, sin)
    check("y", y, rope_reference(x.double(), cos.double(), sin.double()), x.dtype, scale=scale)
    x64 = torch.zeros(x.shape, dtype=torch.float64, device=x.device, requires_grad=True)
    y64 = rope_reference(x64, cos.double(), sin.double())
    (dx,) = torch.autograd.grad(y64, x64, x.double())
    check("dx", rope_backward(x, cos, sin), dx, x.dtype, scale=scale)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
class TestAgainstFloat64:
    @pytest.mark.parametrize("rung", RUNGS)
    def test_rungs(self, shape, dtype, rung):
        check_both(numbers(shape, dtype), RUNGS[rung])

    @pytest.mark.parametrize("layout", ["transposed", "packed"])
    def test_layouts(self, shape, dtype, layout):
        check_both(LAYOUTS[layout](shape, dtype))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
class TestOnGPU:
    @pytest.mark.parametrize("layout", LAYOUTS)
    @pytest.mark.parametrize("shape", GPU_SHAPES, ids=str)
    def test_layouts(self, shape, dtype, layout):
        check_both(LAYOUTS[layout](shape, dtype, "cuda"))

    @pytest.mark.parametrize("rung", RUNGS)
    def test_rungs(self, dtype, rung):
        check_both(numbers((3, 9, 257, 96), dtype, "cuda"), RUNGS[rung])

    def test_like_the_emulator(self, dtype):
        x = numbers((2, 4, 5, 32), dtype)
        cos, sin = angles(5, 32)
        y = rope_forward(x.cuda(), cos.cuda(), sin.cuda())
        check("y", y, rope_forward(x, cos, sin).double(), dtype, scale=x.double().abs().max())

    def test_deterministic(self, dtype):
        x = numbers((3, 9, 257, 96), dtype, "cuda")
        cos, sin = angles(257, 96, "cuda")
        assert torch.equal(rope(x, cos, sin), rope(x, cos, sin))


class TestAutograd:
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_gradient(self, layout):
        x = LAYOUTS[layout]((2, 3, 5, 16), torch.float32).requires_grad_()
        cos, sin = angles(5, 16)
        dy = torch.randn(2, 3, 5, 16)
        rope(x, cos, sin).backward(dy)
        x64 = x.detach().double().requires_grad_()
        rope_reference(x64, cos.double(), sin.double()).backward(dy.double())
        check("dx", x.grad, x64.grad, scale=dy.abs().max())

    def test_once_differentiable(self):
        x = torch.randn(1, 2, 5, 16, requires_grad=True)
        y = rope(x, *angles(5, 16))
        (dx,) = torch.autograd.grad((y * y).sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            dx.sum().backward()

    def test_last_axis_not_contiguous(self):
        """Copied first, in both directions."""
        x = torch.randn(2, 3, 16, 5).transpose(2, 3).requires_grad_()
        cos, sin = angles(5, 16)
        dy = torch.randn(2, 3, 16, 5).transpose(2, 3)
        y = rope(x, cos, sin)
        y.backward(dy)
        check("y", y, rope_reference(x.detach().double(), cos.double(), sin.double()), scale=4)
        assert torch.equal(x.grad, rope_backward(dy.contiguous(), cos, sin))

    def test_gradient_expanded(self):
        """The gradient of a sum has stride 0 everywhere."""
        x = torch.randn(2, 3, 5, 16, requires_grad=True)
        cos, sin = angles(5, 16)
        rope(x, cos, sin).sum().backward()
        assert torch.equal(x.grad, rope_backward(torch.ones(2, 3, 5, 16), cos, sin))

    def test_one_sequence_for_all(self):
        """x may have stride 0 along the batch."""
        x = torch.randn(1, 3, 5, 16)
        cos, sin = angles(5, 16)
        y = rope(x.expand(4, 3, 5, 16), cos, sin)
        assert torch.equal(y, rope(x, cos, sin).expand(4, 3, 5, 16))


class TestProperties:
    def test_keeps_length(self):
        x = torch.randn(2, 3, 7, 32)
        y = rope(x, *angles(7, 32))
        check("length", y.double().norm(dim=-1).float(), x.double().norm(dim=-1))

    def test_product_depends_on_the_distance_alone(self):
        """(R(t) q) · (R(s) k) is a function of t − s: the same when both move on by 1,000."""
        q, k = torch.randn(2, 1, 1, 1, 32)
        scores = []
        for start in (0, 1000):
            cos, sin = angles(9, 32, start=start)
            turned = [rope(x.expand(1, 1, 9, 32), cos, sin)[0, 0].double() for x in (q, k)]
            scores.append(turned[0] @ turned[1].T)
        assert (scores[0] - scores[1]).abs().max() < 1e-3  # the angles themselves: 1000 · 2**-24
        for score in scores:
            for distance in range(-8, 9):
                diagonal = score.diagonal(distance)
                assert (diagonal - diagonal[0]).abs().max() < 1e-3
        assert scores[0][0].std() > 0.1, "it does depend on the distance"

    def test_position_zero_stays(self):
        x = torch.randn(1, 2, 3, 16)
        assert torch.equal(rope(x, *angles(3, 16))[:, :, 0], x[:, :, 0])

    def test_back_and_forth(self):
        x = torch.randn(2, 3, 5, 16)
        cos, sin = angles(5, 16)
        check("x", rope_backward(rope(x, cos, sin), cos, sin), x.double(), factor=2)

    def test_quarter_turn(self):
        """(a, b) → (−b, a): halves are paired, not neighbours."""
        x = torch.arange(8.0).view(1, 1, 1, 8)
        y = rope(x, torch.zeros(1, 4), torch.ones(1, 4))
        assert y.flatten().tolist() == [-4, -5, -6, -7, 0, 1, 2, 3]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_in_place(dtype, layout):
    x = LAYOUTS[layout]((2, 3, 5, 32), dtype)
    cos, sin = angles(5, 32)
    expected = rope_forward(x, cos, sin)
    assert rope_forward(x, cos, sin, out=x) is x
    assert torch.equal(x, expected)


def test_result_keeps_the_layout():
    """A transposed x gives a transposed y, with no copy on the way."""
    x = transposed((2, 3, 5, 16), torch.float32)
    assert rope(x, *angles(5, 16)).stride() == x.stride()


@pytest.mark.parametrize("offset", [0, 1, 4])
@pytest.mark.parametrize("D", [6, 32])
def test_writes_nothing_outside(D, offset):
    """Also where tensors start in the middle of 16 bytes."""
    shape = (2, 3, 5, D)
    out, intact = guarded(shape, torch.float32, guard=64 + offset)
    x = torch.randn(2 * 3 * 5 * D + offset)[offset:].view(shape)
    cos, sin = angles(5, D)
    expected = rope_reference(x.double(), cos.double(), sin.double())
    check("y", rope_forward(x, cos, sin, out=out), expected, scale=x.abs().max())
    assert intact()


def test_groups_of_heads():
    """Some of the shapes have as many heads as a thread takes, some a group of 2 or 3."""
    groups = {max(h for h in range(1, HEADS + 1) if H % h == 0) for _, H, _, _ in SHAPES}
    assert groups == {1, 2, 3, 4}


@pytest.mark.parametrize("shape", [(0, 2, 3, 4), (2, 0, 3, 4), (2, 2, 0, 4)])
def test_empty(shape):
    assert rope(torch.zeros(shape), *angles(shape[2], 4)).shape == shape


def test_deterministic():
    x, (cos, sin) = torch.randn(2, 3, 5, 32), angles(5, 32)
    assert torch.equal(rope(x, cos, sin), rope(x, cos, sin))


def test_wrong_arguments():
    x, (cos, sin) = torch.zeros(1, 2, 3, 4), angles(3, 4)
    with pytest.raises(TypeError, match="^x: its dtype is int64, rope takes float32, "):
        rope(x.long(), cos, sin)
    with pytest.raises(ValueError, match=r"^x: its shape is \(1, 2, 3, 5\), it must be "):
        rope(torch.zeros(1, 2, 3, 5), cos, sin)
    with pytest.raises(ValueError, match=r"^x: its shape is \(2, 3, 4\), it must be "):
        rope(x[0], cos, sin)
    with pytest.raises(ValueError, match=r"^cos: its shape is \(2, 2\), .* \(3, 2\)\.$"):
        rope(x, cos[:2], sin)
    with pytest.raises(TypeError, match="^sin: its dtype is float16, it must be float32.$"):
        rope(x, cos, sin.half())
