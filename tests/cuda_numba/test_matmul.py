"""The public products: values, gradients, which rung runs, and what is refused."""

import importlib

import pytest
import torch
from matmul_hopper_cases import FORMS, scale_of
from ptx_tiles import DEVICES
from tolerance import DTYPES, check, poisoned

from cuda_numba import launches
from cuda_numba.matmul import linear, linear_reference, matmul, matmul_reference, matmul_rung

BF16, F32 = torch.bfloat16, torch.float32
module = importlib.import_module("cuda_numba.matmul")  # the package's name for it is the function
devices = pytest.mark.parametrize("device", DEVICES)
SHAPES = [(1, 1, 1), (7, 33, 5), (33, 7, 130), (24, 40, 16)]  # M, N, K


@pytest.fixture(autouse=True)
def poison():
    torch.manual_seed(3)
    with poisoned():
        yield


def randn(*shape, dtype=BF16, device="cpu"):
    return torch.randn(*shape).to(dtype).to(device)


@devices
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matmul(device, shape, dtype):
    M, N, K = shape
    a, b = randn(M, K, dtype=dtype, device=device), randn(K, N, dtype=dtype, device=device)
    c = matmul(a, b)
    assert c.dtype == dtype
    check("c", c, matmul_reference(a.double(), b.double()), scale=scale_of(a, b))


@devices
@pytest.mark.parametrize("out", [F32, torch.float16], ids=str)
def test_out_dtype(device, out):
    a, b = randn(9, 16, device=device), randn(16, 24, device=device)
    c = matmul(a, b, out)
    assert c.dtype == out
    check("c", c, a.double() @ b.double(), scale=scale_of(a, b))


@devices
@pytest.mark.parametrize("batch", [((2,), (2,)), ((2,), ()), ((), (3,)), ((2, 1), (2, 1))], ids=str)
@pytest.mark.parametrize("dtype", [BF16, F32], ids=str)
def test_batches(device, batch, dtype):
    a = randn(*batch[0], 5, 16, dtype=dtype, device=device).requires_grad_()
    b = randn(*batch[1], 16, 8, dtype=dtype, device=device).requires_grad_()
    c = matmul(a, b)
    check("c", c, a.detach().double() @ b.detach().double(), scale=scale_of(a, b).detach())
    check_gradients(c, (a, b), matmul_reference)


def check_gradients(y, leaves, reference, *args, weight=None, stored=2):
    """Gradients of Σ y · weight against autograd in float64."""
    weight = torch.randn(y.shape).clamp(-1, 1).to(y.dtype).to(y.device)
    y.backward(weight)
    wide = [x.detach().double().requires_grad_() for x in leaves]
    reference(*wide, *args).backward(weight.double())
    for number, (x, x64) in enumerate(zip(leaves, wide, strict=True)):
        scale = max(float(x64.grad.abs().max()), 1.0)
        check(f"gradient {number}", x.grad, x64.grad, scale=scale, stored=stored)


@devices
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("transposed", [False, True])
def test_gradients(device, dtype, transposed):
    a = randn(24, 16, dtype=dtype, device=device).requires_grad_()
    b = randn(*((40, 16) if transposed else (16, 40)), dtype=dtype, device=device).requires_grad_()
    c = matmul(a, b.t() if transposed else b)
    check_gradients(c, (a, b), lambda a, b: a @ (b.t() if transposed else b))


@devices
@pytest.mark.parametrize("dtype", [BF16, F32], ids=str)
@pytest.mark.parametrize("activation", [None, *FORMS])
@pytest.mark.parametrize("shape", [(33, 16, 24), (5, 7, 9)], ids=str)
def test_linear(device, shape, activation, dtype):
    """On tensor cores with everything in one kernel, and below them."""
    rows, K, N = shape
    x = randn(1, rows, K, dtype=dtype, device=device).requires_grad_()
    w = randn(N, K, dtype=dtype, device=device).requires_grad_()
    b = randn(N, dtype=dtype, device=device).requires_grad_()
    y = linear(x, w, b, activation)
    right = linear_reference(x.double(), w.double(), b.double(), activation).detach()
    below = matmul_rung(x.detach()[0], w.detach().t()) != "hopper"
    check("y", y, right, scale=scale_of(x.detach()[0], w.detach().t()), stored=int(below))
    check_gradients(y, (x, w, b), lambda x, w, b: linear_reference(x, w, b, activation), stored=3)


def test_linear_without_bias_or_gradient():
    x, w = randn(33, 16), randn(24, 16)
    with launches() as log:
        y = linear(x, w, activation="gelu")
    assert [launch.name[:7] for launch in log] == ["product"]
    check("y", y, linear_reference(x.double(), w.double(), None, "gelu"), scale=scale_of(x, w.t()))


def test_linear_with_gradient_keeps_the_argument_of_its_activation():
    x, w = randn(33, 16).requires_grad_(), randn(24, 16)
    with launches() as log:
        linear(x, w, activation="gelu_tanh").sum().backward()
    first, second, third = (launch.name for launch in log)
    assert first[:7] == third[:7] == "product" and "gelu_backward" in second
    assert w.grad is None


class TestRungs:
    @pytest.mark.parametrize(
        ("a", "b", "name"),
        [
            (randn(8, 16), randn(16, 8), "hopper"),
            (randn(8, 16), randn(8, 16).t(), "hopper"),
            (randn(7, 16), randn(9, 16).t(), "hopper"),
            (randn(8, 7), randn(7, 8), None),
            (randn(8, 16), randn(16, 7), None),
        ],
    )
    def test_by_operands(self, a, b, name):
        below = list(importlib.import_module("cuda_numba.matmul_warp").RUNGS)[-1]
        assert matmul_rung(a, b) == (name or below)
        simt = list(importlib.import_module("cuda_numba.matmul_simt").RUNGS)[-1]
        assert matmul_rung(a.float(), b.float()) == simt

    def test_before_hopper(self, monkeypatch):
        monkeypatch.setattr(module, "_has_hopper", lambda x: False)
        a, b = randn(8, 16), randn(16, 8)
        assert matmul_rung(a, b) != "hopper"
        with launches() as log:
            c = matmul(a, b)
        assert not any(launch.name.startswith("product") for launch in log)
        check("c", c, a.double() @ b.double(), scale=scale_of(a, b))

    def test_table(self):
        assert list(module.RUNGS)[0] == "naive" and list(module.RUNGS)[-1] == "hopper"

    def test_what_runs(self):
        with launches() as log:
            matmul(randn(8, 16), randn(16, 8))
        assert [launch.name[:7] for launch in log] == ["product"]


def test_rows_that_lie_apart():
    """A view with gaps in its rows is copied; a padded one is read where it is."""
    a, b = randn(9, 32)[:, ::2], randn(16, 24)[:, :8]
    check("c", matmul(a, b), a.double() @ b.double(), scale=scale_of(a, b))


@pytest.mark.parametrize("shape", [(0, 8, 8), (8, 0, 8), (8, 8, 0)], ids=str)
@pytest.mark.parametrize("dtype", [BF16, F32], ids=str)
def test_empty(shape, dtype):
    M, N, K = shape
    c = matmul(randn(M, K, dtype=dtype), randn(K, N, dtype=dtype))
    assert c.shape == (M, N) and not c.any()


def test_deterministic():
    a, b = randn(33, 40), randn(40, 24)
    assert torch.equal(matmul(a, b), matmul(a, b))


def test_once_differentiable():
    a = randn(8, 8, dtype=F32).requires_grad_()
    (da,) = torch.autograd.grad((matmul(a, a) ** 2).sum(), a, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        da.sum().backward()


class TestErrors:
    def test_matmul(self):
        a = torch.zeros(4, 8)
        with pytest.raises(ValueError, match="^b: its shape"):
            matmul(a, a)
        with pytest.raises(ValueError, match="^a, b: they have 1"):
            matmul(a[0], a.t())
        with pytest.raises(TypeError, match="^b: it is bfloat16"):
            matmul(a, a.t().to(BF16))
        with pytest.raises(TypeError, match="^a: its dtype is int64"):
            matmul(a.long(), a.t().long())
        with pytest.raises(TypeError, match="^out_dtype: got"):
            matmul(a, a.t(), torch.float64)
        with pytest.raises(ValueError, match="^b: its batch is"):
            matmul(torch.zeros(2, 4, 8), torch.zeros(3, 8, 4))

    def test_linear(self):
        x, w = torch.zeros(4, 8), torch.zeros(6, 8)
        with pytest.raises(ValueError, match="^w: its shape"):
            linear(x, w.t())
        with pytest.raises(ValueError, match="^b: "):
            linear(x, w, torch.zeros(5))
        with pytest.raises(ValueError, match="^activation: got 'relu'"):
            linear(x, w, activation="relu")
