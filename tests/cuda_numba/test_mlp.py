"""linear, GELU, linear as one operation: values, gradients, what is launched and what is kept."""

import importlib

import pytest
import torch
from ptx_tiles import DEVICES
from tolerance import check, poisoned

from cuda_numba import launches, linear, mlp
from cuda_numba.mlp import mlp_reference, slope_product

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
module = importlib.import_module("cuda_numba.mlp")  # the package's name for it is the function
devices = pytest.mark.parametrize("device", DEVICES)
GPT2 = (16384, 768, 3072, 768)  # rows, K, FF, N


@pytest.fixture(autouse=True)
def poison():
    torch.manual_seed(5)
    with poisoned():
        yield


def operands(rows, K, FF, N, dtype=BF16, weights=F32, device="cpu"):
    """[x, w1, b1, w2, b2] with gradients; the weights so that nothing grows."""
    shapes = [(rows, K), (FF, K), (FF,), (N, FF), (N,)]
    sizes = [1, K**-0.5, 1, FF**-0.5, 1]
    formats = [dtype, weights, weights, weights, weights]
    return [
        (torch.randn(*shape) * size).to(device, format).requires_grad_()
        for shape, size, format in zip(shapes, sizes, formats, strict=True)
    ]


def copies_of(leaves, dtype=BF16):
    return leaves[1].detach().to(dtype), leaves[3].detach().to(dtype)


def check_all(leaves, activation="gelu_tanh", rounded=None):
    """y and every gradient against float64 on what the products read. In between h, dh and, off the
    Hopper kernel, pre are rounded to x's format."""
    x, w1, b1, w2, b2 = leaves
    y = mlp(*leaves, activation, rounded)
    dy = torch.randn(y.shape).to(y)
    y.backward(dy)
    assert y.dtype == x.dtype
    read = [x, w1.to(x.dtype), b1, w2.to(x.dtype), b2]
    wide = [t.detach().double().requires_grad_() for t in read]
    right = mlp_reference(*wide, activation)
    right.backward(dy.double())
    check("y", y, right.detach(), scale=right.abs().max().detach(), stored=3)
    for name, leaf, leaf64 in zip(("dx", "dw1", "db1", "dw2", "db2"), leaves, wide, strict=True):
        assert leaf.grad.dtype == leaf.dtype, name
        scale = leaf64.grad.abs().max()
        check(name, leaf.grad, leaf64.grad, x.dtype, scale=scale, stored=3)
    return dy


# On the Hopper kernel throughout; FF or K or N that it does not take.
SHAPES = [(33, 16, 24, 8), (7, 9, 16, 8), (20, 16, 13, 8), (9, 8, 16, 10)]


@devices
@pytest.mark.parametrize(
    ("shape", "dtype"), [(SHAPES[0], F16), *((shape, BF16) for shape in SHAPES)], ids=str
)
def test_values(device, shape, dtype):
    leaves = operands(*shape, dtype, device=device)
    check_all(leaves, rounded=copies_of(leaves, dtype))


@pytest.mark.gpu
@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh"])
@pytest.mark.parametrize("dtype", [F16, BF16], ids=str)
@pytest.mark.parametrize("shape", [GPT2, (1030, 768, 3072, 768), (1001, 130, 519, 33)], ids=str)
def test_values_at_real_sizes(shape, dtype, activation):
    leaves = operands(*shape, dtype, device="cuda")
    check_all(leaves, activation, copies_of(leaves, dtype))


@devices
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_weights_of_the_same_dtype(device, dtype):
    """And the other form of GELU."""
    check_all(operands(33, 16, 24, 8, dtype, dtype, device), "gelu")


def test_without_copies():
    """They are made: the same result."""
    leaves = operands(33, 16, 24, 8)
    dy = check_all(leaves)
    before = [t.grad for t in leaves]
    for t in leaves:
        t.grad = None
    mlp(*leaves, rounded=copies_of(leaves)).backward(dy)
    assert all(torch.equal(a, t.grad) for a, t in zip(before, leaves, strict=True))


def check_sums(name, got, left, right):
    """got = leftᵀ right to float32; what went through bfloat16 is not, the control."""
    left, right = left.detach().double(), right.detach().double()
    expected, terms = left.t() @ right, left.abs().t() @ right.abs()
    assert got.dtype == F32
    check(name, got, expected, scale=terms)
    with pytest.raises(AssertionError, match=name):
        check(name, got.to(BF16).float(), expected, scale=terms)


def check_gradients_are_not_rounded(shape, device="cpu"):
    """dw1 and dw2 are the products of what is in memory, in float32, and db2 is its sums."""
    leaves = operands(*shape, device=device)
    x, w1, b1, w2, b2 = leaves
    copies = copies_of(leaves)
    y = mlp(*leaves, rounded=copies)
    dy = torch.randn(y.shape).to(y)
    y.backward(dy)
    with torch.no_grad():
        h = linear(x, copies[0], b1, "gelu_tanh")
        pre = linear(x, copies[0], b1)
    check_sums("dw2", w2.grad, dy, h)
    check_sums("db2", b2.grad[:, None], dy, torch.ones(len(dy), 1, device=device))
    dh, db1 = slope_product(dy, copies[1], pre, "gelu_tanh", F32)
    check_sums("dw1", w1.grad, dh, x)
    assert torch.equal(db1, b1.grad)


def test_gradients_are_not_rounded():
    check_gradients_are_not_rounded((33, 16, 24, 8))


@pytest.mark.gpu
def test_gradients_are_not_rounded_on_a_gpu():
    check_gradients_are_not_rounded(GPT2, "cuda")


def test_launches():
    """Bias, GELU and its slope with the column sums are part of the products: nothing between."""
    leaves = operands(33, 16, 24, 8)
    with launches() as log:
        y = mlp(*leaves, rounded=copies_of(leaves))
    assert [launch.name[:7] for launch in log] == ["product"] * 2
    with launches() as log:
        y.sum().backward()
    names = [launch.name for launch in log]
    kinds = ["product", "sum_row", "product", "sum_row", "product", "product"]  # dw2, db2; dh, db1
    assert [name[:7] for name in names] == kinds


def test_the_copies_are_read():
    """And nothing of the weights: their numbers may be any."""
    leaves = operands(33, 16, 24, 8)
    other = [torch.randn_like(w) for w in copies_of(leaves)]
    x, w1, b1, w2, b2 = leaves
    nothing = [torch.full_like(w, float("nan")).requires_grad_() for w in (w1, w2)]
    y = mlp(x, nothing[0], b1, nothing[1], b2, rounded=tuple(other))
    y.sum().backward()
    dx, x.grad = x.grad, None
    same = mlp(x, other[0], b1, other[1], b2)
    same.sum().backward()
    assert torch.equal(y, same) and torch.equal(dx, x.grad)


def test_only_the_weights_have_gradients():
    leaves = operands(33, 16, 24, 8)
    copies = [w.requires_grad_() for w in copies_of(leaves)]
    mlp(*leaves, rounded=tuple(copies)).sum().backward()
    assert all(w.grad is None for w in copies)
    assert all(leaf.grad is not None for leaf in leaves)


def test_without_biases():
    x, w1, _, w2, _ = operands(33, 16, 24, 8)
    copies = copies_of([x, w1, None, w2])
    y = mlp(x, w1, None, w2, None, rounded=copies)
    y.sum().backward()
    wide = [t.detach().double().requires_grad_() for t in (x, *copies)]
    right = mlp_reference(wide[0], wide[1], None, wide[2], None)
    right.sum().backward()
    check("y", y, right.detach(), stored=3)
    for name, got, leaf64 in zip(("dx", "dw1", "dw2"), (x, w1, w2), wide, strict=True):
        check(name, got.grad, leaf64.grad, BF16, stored=3)


def kept_by(leaves, copies):
    """(y, what is kept for the backward pass)."""
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = mlp(*leaves, rounded=copies)
    return y, kept


def test_nothing_is_kept_twice():
    """x, both copies, the argument of GELU and its value; no float32 weights."""
    leaves = operands(33, 16, 24, 8)
    copies = copies_of(leaves)
    kept = kept_by(leaves, copies)[1]
    assert [tuple(t.shape) for t in kept] == [(33, 16), (24, 16), (8, 24), (33, 24), (33, 24)]
    assert len({t.data_ptr() for t in kept}) == 5 and all(t.dtype == BF16 for t in kept)
    assert [t.data_ptr() for t in kept[:3]] == [t.data_ptr() for t in (leaves[0], *copies)]


# Which have a gradient → what is kept, of x w1 w2 pre h, and the launches of the backward pass.
PARTS = {
    (0,): ([1, 2, 3], 2),
    (1,): ([0, 2, 3], 2),
    (2,): ([2, 3], 2),
    (3,): ([4], 1),
    (4,): ([], 2),
}


@pytest.mark.parametrize("wanted", PARTS, ids=str)
def test_what_is_not_wanted_is_not_computed(wanted):
    leaves = operands(33, 16, 24, 8)
    copies = copies_of(leaves)
    alone = [t.detach().requires_grad_(i in wanted) for i, t in enumerate(leaves)]
    y, kept = kept_by(alone, copies)
    sizes = [33 * 16, 24 * 16, 8 * 24, 33 * 24, 33 * 24]
    places, many = PARTS[wanted]
    assert [t.numel() for t in kept] == [sizes[place] for place in places]
    with launches() as log:
        y.sum().backward()
    assert len(log) == many
    assert [t.grad is not None for t in alone] == [i in wanted for i in range(5)]


def test_without_gradients():
    leaves = operands(33, 16, 24, 8)
    copies = copies_of(leaves)
    y = mlp(*leaves, rounded=copies)
    with torch.no_grad():
        alone = mlp(*leaves, rounded=copies)
    assert torch.equal(y, alone) and not alone.requires_grad


def test_leading_dimensions_and_views():
    """x (…, K) whose rows lie evenly is read where it is; what does not is copied."""
    leaves = operands(12, 16, 24, 8, F32)
    whole = mlp(*leaves)
    x, *rest = leaves
    assert torch.equal(mlp(x.view(3, 4, 16), *rest), whole.view(3, 4, 8))
    apart = x.detach().view(3, 4, 16).transpose(0, 1)
    assert torch.equal(mlp(apart, *rest), whole.view(3, 4, 8).transpose(0, 1))
    dy = torch.randn(8, 12).t()  # columns are contiguous
    (dx,) = torch.autograd.grad(mlp(*leaves), x, dy)
    (same,) = torch.autograd.grad(mlp(*leaves), x, dy.contiguous())
    assert torch.equal(dx, same)


def test_no_rows():
    leaves = operands(0, 16, 24, 8)
    mlp(*leaves).sum().backward()
    assert leaves[0].grad.shape == (0, 16)
    assert all(t.grad.dtype == F32 and not t.grad.any() for t in leaves[1:])


def test_a_lost_slope_is_noticed(monkeypatch):
    """The control: gradients through GELU as if its slope were 1."""

    def lost(dy, w2, pre, activation, sums):
        return dy @ w2, (dy @ w2).sum(0).to(sums)

    monkeypatch.setattr(module, "slope_product", lost)
    with pytest.raises(AssertionError, match="dx"):
        check_all(operands(33, 16, 24, 8))


def test_once_differentiable():
    leaves = operands(8, 8, 8, 8)
    y = mlp(*leaves).float().square().sum()
    (dw,) = torch.autograd.grad(y, leaves[1], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dw.sum().backward()


def test_before_hopper(monkeypatch):
    """The same steps one by one."""
    monkeypatch.setattr(importlib.import_module("cuda_numba.matmul"), "_has_hopper", lambda x: 0)
    with launches() as log:
        check_all(operands(9, 16, 24, 8))
    assert not any(launch.name.startswith("product") for launch in log)


@pytest.mark.gpu
def test_in_a_graph():
    leaves = operands(*GPT2, device="cuda")
    copies = copies_of(leaves)
    dy = torch.randn(16384, 768, device="cuda", dtype=BF16)

    def step():
        return torch.autograd.grad(mlp(*leaves, rounded=copies), leaves, dy)

    want = [t.clone() for t in step()]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made = step()
    for _ in range(3):
        graph.replay()
        assert all(torch.equal(a, b) for a, b in zip(made, want, strict=True))


def test_errors():
    x, w1, b1, w2, b2 = (t.detach() for t in operands(4, 8, 16, 6))
    with pytest.raises(TypeError, match="^x: its dtype is float64"):
        mlp(x.double(), w1, b1, w2, b2)
    with pytest.raises(ValueError, match=r"^w1: its shape is \(8, 16\), with x's \(4, 8\) it must"):
        mlp(x, w1.t(), b1, w2, b2)
    with pytest.raises(ValueError, match=r"^b1: \(6,\) float32 on cpu, it must be \(16,\)"):
        mlp(x, w1, b2, w2, b2)
    with pytest.raises(ValueError, match=r"^w2: its shape is \(16, 6\), with h's \(4, 16\) it mus"):
        mlp(x, w1, b1, w2.t(), b2)
    with pytest.raises(ValueError, match=r"^b2: \(16,\) float32 on cpu, it must be \(6,\)"):
        mlp(x, w1, b1, w2, b1)
    with pytest.raises(ValueError, match="^activation: got None, it is one of gelu, gelu_tanh"):
        mlp(x, w1, b1, w2, b2, None)
    with pytest.raises(TypeError, match="^w2: it is float16, with x in bfloat16 it must be "):
        mlp(x, w1, b1, w2.half(), b2)
    with pytest.raises(TypeError, match=r"^rounded\[0\]: it is float16, it must be bfloat16"):
        mlp(x, w1, b1, w2, b2, rounded=(w1.half(), w2.to(BF16)))
    with pytest.raises(ValueError, match=r"^rounded\[1\]: \(16, 6\) on cpu, it must be w2's shape"):
        mlp(x, w1, b1, w2, b2, rounded=(w1.to(BF16), w2.t().to(BF16)))
    with pytest.raises(ValueError, match="^rounded: it has 1 parts, it must be"):
        mlp(x, w1, b1, w2, b2, rounded=(w1.to(BF16),))
