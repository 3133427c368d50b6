"""Linear + cross-entropy: loss and both gradients against float64, chunk by chunk."""

import importlib

import pytest
import torch
from tolerance import DTYPES, check, poisoned

from cuda_numba.linear_cross_entropy import (
    chunks_of,
    linear_cross_entropy,
    linear_cross_entropy_forward_backward,
    linear_cross_entropy_reference,
)

module = importlib.import_module("cuda_numba.linear_cross_entropy")
IGNORED = -100


def inputs(N, C, V, dtype, device="cpu", kept=None):
    x, w = torch.randn(N, C), torch.randn(V, C) / C**0.5
    targets = torch.randint(V, (N,))
    targets[::3] = IGNORED
    if kept is not None:
        targets[:] = IGNORED if not kept else 0
    return x.to(device, dtype), w.to(device, dtype), targets.to(device)


def expected(x, w, targets, dy=1.0):
    x, w = (t.detach().double().cpu().requires_grad_() for t in (x, w))
    loss = linear_cross_entropy_reference(x, w, targets.cpu())
    (loss * dy).backward()
    return loss.detach(), x.grad, w.grad


def check_all(x, w, targets, dy=1.0):
    """The public op. The logits are rounded to the format: what one rounding of a logit changes in
    its probability is allowed in the gradients, twice (logits and dlogits)."""
    x, w = x.detach().requires_grad_(), w.detach().requires_grad_()
    with poisoned():
        loss = linear_cross_entropy(x, w, targets)
        (loss * dy).backward()
    want, dx, dw = expected(x, w, targets, dy)
    eps = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}[x.dtype]
    largest = (x.double() @ w.double().t()).abs().max().item() + 1
    assert abs(loss.item() - want.item()) <= eps * largest
    kept = max(1, int((targets != IGNORED).sum()))
    rate = abs(dy) / kept
    check("dx", x.grad, dx, scale=rate * w.double().abs().max().item() * largest, stored=2)
    rows = rate * x.double().abs().sum(0).max().item()
    check("dw", w.grad, dw, scale=rows * largest, stored=2)
    return x.grad, w.grad


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(module, "CHUNK_BYTES", 1)


SHAPES = [(1, 8, 1), (1, 16, 7), (7, 8, 33), (33, 24, 130), (130, 8, 64)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("N", "C", "V"), SHAPES)
def test_values(N, C, V, dtype):
    check_all(*inputs(N, C, V, dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_chunks(small_chunks, dtype):
    """Two chunks: the losses and the gradients of w add up."""
    x, w, targets = inputs(140, 8, 20, dtype)
    assert len(chunks_of(140, 20, x.itemsize)) == 2
    check_all(x, w, targets, dy=3.0)


def test_a_lost_chunk_is_noticed(small_chunks, monkeypatch):
    """The control: gradients of the last chunk alone do not pass."""
    monkeypatch.setattr(module._Gradients, "__init__", forgetful(module._Gradients.__init__))
    with pytest.raises(AssertionError, match="dw"):
        check_all(*inputs(140, 8, 20, torch.bfloat16))


def forgetful(original):
    def init(self, x, w, *options):
        original(self, x, w, *options)
        self.add = lambda rows, i, dlogits: type(self).add(self, rows, 0, dlogits)

    return init


@pytest.mark.parametrize("kept", [0, 1])
def test_no_target_and_all_of_them(kept):
    x, w, targets = inputs(5, 8, 12, torch.bfloat16, kept=kept)
    dx, dw = check_all(x, w, targets)
    if not kept:
        assert not dx.any() and not dw.any()


def test_no_rows():
    x, w = torch.empty(0, 8).requires_grad_(), torch.randn(5, 8).requires_grad_()
    loss = linear_cross_entropy(x, w, torch.empty(0, dtype=torch.int64))
    loss.backward()
    assert loss == 0 and not w.grad.any() and x.grad.shape == (0, 8)


def test_without_gradients():
    x, w, targets = inputs(140, 8, 20, torch.bfloat16)
    with torch.no_grad():
        alone = linear_cross_entropy(x, w, targets)
    loss = linear_cross_entropy(x.requires_grad_(), w, targets)
    assert abs(alone - loss) <= 1e-6 * loss.abs() and not alone.requires_grad


def test_added_into_a_gradient():
    """dw of float32 is added to, and nothing else is made for it."""
    x, w, targets = inputs(33, 8, 20, torch.bfloat16)
    before = torch.randn(20, 8)
    dw = before.clone()
    loss, dx, same = linear_cross_entropy_forward_backward(x, w, targets, dw=dw)
    again, _, alone = linear_cross_entropy_forward_backward(x, w, targets, dw=torch.zeros(20, 8))
    assert same is dw and loss == again
    torch.testing.assert_close(dw, before + alone, rtol=1e-6, atol=1e-6)
    scaled = linear_cross_entropy_forward_backward(x, w, targets, scale=4.0)[1]
    torch.testing.assert_close(scaled.float(), 4 * dx.float(), rtol=0.02, atol=1e-6)


def test_backward_once():
    x, w, targets = inputs(5, 8, 12, torch.bfloat16)
    loss = linear_cross_entropy(x.requires_grad_(), w, targets)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="its backward pass ran before"):
        loss.backward()


def test_float16_with_a_loss_scale():
    """Gradients that float16 cannot hold without the scale: they come whole, as often as wanted."""
    x, w, targets = inputs(130, 8, 64, torch.float16)
    x = (x / 64).requires_grad_()
    loss = linear_cross_entropy(x, w, targets)
    scale = 2.0**14
    first = torch.autograd.grad(loss * scale, x, retain_graph=True)[0]
    second = torch.autograd.grad(loss * scale, x)[0]
    _, dx, _ = expected(x, w, targets, scale)
    assert torch.equal(first, second)
    check("dx", first, dx, scale=dx.abs().max().item(), stored=4)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda x, w, t: (x.double(), w, t), TypeError, "x: its dtype is float64"),
        (lambda x, w, t: (x, w.half(), t), ValueError, r"w: \(12, 8\) float16"),
        (lambda x, w, t: (x.float(), w, t), ValueError, r"w: \(12, 8\) bfloat16"),
        (lambda x, w, t: (x, w, t, -100, w.half()), TypeError, "rounded: it is float16"),
        (lambda x, w, t: (x, w, t, -100, w[:4]), ValueError, r"rounded: \(4, 8\) on cpu"),
        (lambda x, w, t: (x, w[:, :4], t), ValueError, r"w: \(12, 4\)"),
        (lambda x, w, t: (x[0], w, t), ValueError, "x: its shape is"),
        (lambda x, w, t: (x, w, t.int()), ValueError, r"targets: \(5,\) int32"),
        (lambda x, w, t: (x, w, t[:4]), ValueError, r"targets: \(4,\)"),
    ],
)
def test_errors(change, error, message):
    with pytest.raises(error, match=message):
        linear_cross_entropy(*change(*inputs(5, 8, 12, torch.bfloat16)))


def test_chunk_sizes():
    for rows in (1, 127, 128, 129, 8192):
        chunks = chunks_of(rows, 50304, 2, limit=288 << 20)
        assert [r for c in chunks for r in range(rows)[c]] == list(range(rows))
        assert all((c.stop - c.start) * 50304 * 2 <= (288 << 20) + 128 * 50304 * 2 for c in chunks)
    assert len(chunks_of(8192, 50304, 2, limit=288 << 20)) == 3


HALVES = [torch.float16, torch.bfloat16]


def check_mixed(N, C, V, dtype, device="cpu", given=True, dy=3.0):
    """w float32: loss and dx as with the copy, dw the float32 sums that would have been rounded."""
    x, copy, targets = inputs(N, C, V, dtype, device)
    w = torch.randn(V, C, device=device) if given else copy.float() * (1 + 2**-14)
    x, w = x.requires_grad_(), w.requires_grad_()
    with poisoned():
        loss = linear_cross_entropy(x, w, targets, rounded=copy if given else None)
        (loss * dy).backward()
    assert w.grad.dtype == torch.float32 and x.grad.dtype == dtype
    dw, dx = w.grad, x.grad
    x.grad = None
    alike = copy.clone().requires_grad_()
    same = linear_cross_entropy(x, alike, targets)
    (same * dy).backward()
    assert torch.equal(loss, same) and torch.equal(dx, x.grad)
    options = {"dw": torch.zeros(V, C, device=device)}
    *_, sums = linear_cross_entropy_forward_backward(x.detach(), copy, targets, **options)
    if dtype == torch.float16:  # whose backward pass goes another way to the same sums
        check("dw", dw, expected(x, copy, targets, dy)[2], dtype, scale=dy, stored=4)
    else:
        assert torch.equal(dw, sums * dy)
        assert not torch.equal(alike.grad.float(), dw), "the control: rounded on the way"
    assert not torch.equal(dw.to(dtype).float(), dw)


class TestFloat32Weights:
    """w float32, x in 16 bits: a copy is read, dw is never rounded."""

    @pytest.mark.parametrize("dtype", HALVES, ids=str)
    @pytest.mark.parametrize("shape", [(7, 8, 33), (9, 7, 13)], ids=str)
    def test_values(self, shape, dtype):
        check_mixed(*shape, dtype)

    def test_without_a_copy(self):
        check_mixed(7, 8, 33, torch.bfloat16, given=False)

    def test_chunks(self, small_chunks):
        check_mixed(140, 8, 20, torch.bfloat16)

    def test_only_w_has_a_gradient(self):
        x, copy, targets = inputs(7, 8, 33, torch.bfloat16)
        w = copy.float().requires_grad_()
        linear_cross_entropy(x, w, targets, rounded=copy.requires_grad_()).backward()
        assert copy.grad is None and w.grad.dtype == torch.float32

    def test_without_gradients(self):
        """The copy is read here too."""
        x, copy, targets = inputs(7, 8, 33, torch.bfloat16)
        w = torch.full(copy.shape, float("nan"))
        loss = linear_cross_entropy(x, w, targets, rounded=copy)
        assert torch.equal(loss, linear_cross_entropy(x, copy, targets))

    def test_nothing_is_kept_twice(self):
        """bfloat16 keeps the two gradients, float16 the operands: the copy, not w."""
        for dtype in HALVES:
            x, copy, targets = inputs(7, 8, 33, dtype)
            w, kept = copy.float().requires_grad_(), []
            with torch.autograd.graph.saved_tensors_hooks(
                lambda t, kept=kept: kept.append(t) or t, lambda t: t
            ):
                linear_cross_entropy(x, w, targets, rounded=copy)
            sizes = [t.numel() * t.itemsize for t in kept]
            if dtype == torch.bfloat16:
                assert sizes == [7 * 8 * 2, 33 * 8 * 4]
            else:
                assert sizes == [7 * 8 * 2, 33 * 8 * 2, 7 * 8]

    @pytest.mark.gpu
    @pytest.mark.parametrize("dtype", HALVES, ids=str)
    def test_on_a_gpu(self, dtype):
        check_mixed(1030, 768, 4099, dtype, "cuda")

    @pytest.mark.gpu
    def test_at_real_sizes(self):
        check_mixed(8192, 768, 50304, torch.bfloat16, "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
class TestOnGPU:
    @pytest.mark.parametrize(("N", "C", "V"), [*SHAPES, (781, 96, 1823), (1030, 768, 4099)])
    def test_values(self, N, C, V, dtype):
        check_all(*inputs(N, C, V, dtype, "cuda"))

    def test_chunks(self, small_chunks, dtype):
        check_all(*inputs(781, 64, 1823, dtype, "cuda"), dy=3.0)

    def test_in_a_graph(self, dtype):
        x, w, targets = inputs(300, 64, 520, dtype, "cuda")
        call = linear_cross_entropy_forward_backward
        want = [t.clone() for t in call(x, w, targets)]
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            made = call(x, w, targets)
        graph.replay()
        assert all(torch.equal(a, b) for a, b in zip(made, want, strict=True))
