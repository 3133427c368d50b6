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


def rounded_once(dw):
    """The control: a gradient that went through 16 bits."""
    return dw.to(BF16).to(F32)


def mixed(rows, K, N, dtype, device="cpu"):
    """x, w float32, its copy, b float32, with gradients."""
    x = randn(rows, K, dtype=dtype, device=device).requires_grad_()
    w, b = (randn(*shape, dtype=F32, device=device).requires_grad_() for shape in ((N, K), (N,)))
    return x, w, w.detach().to(dtype), b


def check_sums(name, got, expected64, terms64):
    """Of a float32 gradient, summed in float32 from 16-bit numbers: exact to that, and what was
    rounded to bfloat16 on the way is not. terms64: Σ of what is added up, without signs."""
    assert got.dtype == F32
    check(name, got, expected64, scale=terms64)
    with pytest.raises(AssertionError, match=name):
        check(name, rounded_once(got), expected64, scale=terms64)


HALVES = [torch.float16, BF16]
MIXED_SHAPES = [(33, 16, 24), (5, 7, 9), (12, 16, 10)]  # the last: dw by the Hopper kernel, not dx


class TestFloat32Weights:
    """w float32, x in 16 bits: a copy is read, dw is never rounded."""

    @devices
    @pytest.mark.parametrize("dtype", HALVES, ids=str)
    @pytest.mark.parametrize("shape", MIXED_SHAPES, ids=str)
    def test_values(self, device, shape, dtype):
        x, w, copy, b = mixed(*shape, dtype, device)
        self.check(x, w, copy, b, copy)

    def test_without_a_copy(self):
        self.check(*mixed(33, 16, 24, BF16), None)

    @pytest.mark.gpu
    @pytest.mark.parametrize("dtype", HALVES, ids=str)
    @pytest.mark.parametrize("shape", [(16384, 768, 3072), (16384, 768, 2304), (1030, 769, 130)])
    def test_values_at_real_sizes(self, shape, dtype):
        x, w, copy, b = mixed(*shape, dtype, "cuda")
        self.check(x, w, copy, b, copy)

    def check(self, x, w, copy, b, rounded):
        y = linear(x, w, b, rounded=rounded)
        dy = torch.randn(y.shape).to(y)
        y.backward(dy)
        assert y.dtype == x.grad.dtype == x.dtype
        x64, copy64, dy64 = (t.detach().double() for t in (x, copy, dy))
        right = linear_reference(x64, copy64, b.detach().double())
        check("y", y, right, scale=scale_of(x.detach(), copy.t()), stored=1)
        check("dx", x.grad, dy64 @ copy64, scale=scale_of(dy, copy))
        check_sums("dw", w.grad, dy64.t() @ x64, dy64.abs().t() @ x64.abs())
        check_sums("db", b.grad, dy64.sum(0), dy64.abs().sum(0))

    def test_the_copy_is_read(self):
        """And nothing of w: its numbers may be any."""
        x, w, _, b = mixed(33, 16, 24, BF16)
        other = randn(24, 16)
        y = linear(x, w.detach().fill_(float("nan")).requires_grad_(), b, "gelu_tanh", other)
        y.sum().backward()
        dx, x.grad = x.grad, None
        same = linear(x, other, b, "gelu_tanh")
        same.sum().backward()
        assert torch.equal(y, same) and torch.equal(dx, x.grad)

    def test_only_w_has_a_gradient(self):
        x, w, copy, _ = mixed(33, 16, 24, BF16)
        copy.requires_grad_()
        linear(x, w, rounded=copy).sum().backward()
        assert copy.grad is None and w.grad.dtype == F32
        w.grad = None
        linear(x, copy, rounded=w.detach().to(BF16)).sum().backward()
        assert copy.grad.dtype == BF16, "of w's dtype, also where w and the copy have the same"

    def test_nothing_is_kept_twice(self):
        """For the backward pass: x, the copy, the argument of the activation; not w."""
        x, w, copy, b = mixed(33, 16, 24, BF16)
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            linear(x, w, b, "gelu", copy)
        addresses = {t.data_ptr() for t in kept}
        assert len(addresses) == len(kept) == 3
        assert {x.data_ptr(), copy.data_ptr()} < addresses and w.data_ptr() not in addresses

    def test_once_differentiable(self):
        x, w, copy, _ = mixed(8, 8, 8, BF16)
        y = linear(x, w, rounded=copy).float().square().sum()
        (dw,) = torch.autograd.grad(y, w, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            dw.sum().backward()

    def test_deterministic(self):
        x, w, copy, _ = mixed(33, 16, 24, BF16)
        first, second = (
            torch.autograd.grad(linear(x, w, rounded=copy).sum(), w)[0] for _ in range(2)
        )
        assert torch.equal(first, second)

    def test_no_rows(self):
        x, w, copy, b = mixed(0, 16, 24, BF16)
        linear(x, w, b, "gelu", copy).sum().backward()
        assert w.grad.dtype == b.grad.dtype == F32 and not w.grad.any() and not b.grad.any()

    def test_errors(self):
        x, w = torch.zeros(4, 8, dtype=BF16), torch.zeros(6, 8)
        with pytest.raises(TypeError, match="^w: it is float16, with x in bfloat16 it must be "):
            linear(x, w.half())
        with pytest.raises(TypeError, match="^w: it is bfloat16, with x in float32 it must be "):
            linear(x.float(), w.to(BF16))
        with pytest.raises(TypeError, match="^rounded: it is float16, it must be bfloat16 as x is"):
            linear(x, w, rounded=w.half())
        with pytest.raises(ValueError, match=r"^rounded: \(8, 6\) on cpu, it must be w's shape "):
            linear(x, w, rounded=w.t().to(BF16))


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
