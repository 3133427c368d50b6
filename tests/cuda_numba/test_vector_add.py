"""Vector addition against float64, on the emulator and on a GPU."""

import pytest
import torch
from tolerance import DTYPES, GPU_SHAPES, SHAPES, check, guarded, poisoned

from cuda_numba.vector_add import RUNGS, add_by_vector, vector_add, vector_add_reference

# More than one block of the vectorised kernel, with and without a rest.
BLOCKS = [(2, 1031), (5000,)]


@pytest.fixture(autouse=True)
def poison():
    with poisoned():
        yield


def rungs(dtype):
    """The rungs that add with `+` do so in float32."""
    return list(RUNGS) if dtype == torch.float32 else ["vectorised"]


CASES = [(rung, dtype) for dtype in DTYPES for rung in rungs(dtype)]


def check_add(rung, shape, dtype, device="cpu"):
    a = torch.randn(shape).to(device, dtype)
    b = torch.randn(shape).to(device, dtype)
    out = RUNGS[rung](a, b)
    assert out.dtype == dtype
    check("out", out, vector_add_reference(a.double(), b.double()))
    assert torch.equal(out, a + b), "torch adds in float32 and rounds once, as the kernel does"


@pytest.mark.parametrize(("rung", "dtype"), CASES)
@pytest.mark.parametrize("shape", SHAPES + BLOCKS, ids=str)
def test_against_float64(rung, shape, dtype):
    check_add(rung, shape, dtype)


@pytest.mark.gpu
@pytest.mark.parametrize(("rung", "dtype"), CASES)
@pytest.mark.parametrize("shape", [*GPU_SHAPES, (2**24 + 5,)], ids=str)
def test_on_gpu(rung, shape, dtype):
    check_add(rung, shape, dtype, "cuda")


@pytest.mark.parametrize("rung", ["element", "grid_stride"])
def test_bits_of_bfloat16_are_not_added(rung):
    a = torch.ones(3, dtype=torch.bfloat16)
    with pytest.raises(TypeError, match=": a is bfloat16, allowed are float32$"):
        RUNGS[rung](a, a)


def test_gradient():
    a = torch.randn(7, 33, requires_grad=True)
    b = torch.randn(7, 33, requires_grad=True)
    dy = torch.randn(7, 33)
    vector_add(a, b).backward(dy)
    assert torch.equal(a.grad, dy) and torch.equal(b.grad, dy)


def test_second_gradient():
    """Of (a + b)³: backward hands the gradient on with its history."""
    a, b = (torch.randn(7, requires_grad=True) for _ in range(2))
    (da,) = torch.autograd.grad((vector_add(a, b) ** 3).sum(), a, create_graph=True)
    (ddb,) = torch.autograd.grad(da.sum(), b)
    assert torch.allclose(ddb, 6 * (a + b).detach())


def test_not_contiguous():
    a, b = torch.randn(33, 7).t(), torch.randn(7, 66)[:, ::2]
    assert torch.equal(vector_add(a, b), a + b)


@pytest.mark.parametrize("offset", [0, 1, 3])
@pytest.mark.parametrize("n", [1, 33, 2051])
def test_writes_nothing_outside(monkeypatch, n, offset):
    """Also where the tensors start in the middle of 16 bytes."""
    out, intact = guarded((n,), torch.float32, guard=64 + offset)
    monkeypatch.setattr(torch, "empty_like", lambda _: out)
    a, b = torch.randn(n + offset)[offset:], torch.randn(n + offset)[offset:]
    assert torch.equal(add_by_vector(a, b), a + b)
    assert intact()


@pytest.mark.parametrize("rung", RUNGS)
def test_empty(rung):
    assert RUNGS[rung](torch.zeros(0), torch.zeros(0)).shape == (0,)


def test_wrong_arguments():
    x = torch.zeros(3)
    with pytest.raises(ValueError, match=r"^b: its shape is \(4,\), it must be a's, \(3,\)\.$"):
        vector_add(x, torch.zeros(4))
    with pytest.raises(TypeError, match="^a, b: their dtypes are float32 and float16, "):
        vector_add(x, x.half())
    with pytest.raises(TypeError, match="^a, b: their dtypes are int64 and int64, "):
        vector_add(x.long(), x.long())
