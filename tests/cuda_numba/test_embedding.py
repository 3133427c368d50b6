"""Embedding against float64, forward and backward, on the emulator and on a GPU."""

import sys

import pytest
import torch
from tolerance import DTYPES, check, guarded, poison_, poisoned

from cuda_numba import embedding_gradient, embedding_places, embedding_plan
from cuda_numba.embedding import (
    RUNGS,
    embedding,
    embedding_backward,
    embedding_forward,
    embedding_reference,
)
from cuda_numba.embedding_gradient import embedding_backward_reference

# (tokens, V, C): odd columns, one row, more tokens than rows and the other way round.
SHAPES = [(1, 1, 1), (7, 3, 33), (33, 7, 8), (5, 130, 24), (130, 33, 7), (40, 9, 264)]
SHAPES += [(21, 9, 256), (6, 5, 1280)]  # a warp has whole rows, or shares them with others
GPU_SHAPES = SHAPES + [(1823, 781, 130), (16384, 50304, 768), (5001, 128256, 33), (70001, 517, 96)]


@pytest.fixture(autouse=True)
def poison():
    with poisoned():
        yield


def zipf(n, rows, device="cpu", dtype=torch.int64):
    """n ids, of which id k turns up in proportion to 1 / (k + 1), in random order."""
    odds = 1.0 / torch.arange(1, rows + 1)
    return torch.multinomial(odds, n, replacement=True).to(device, dtype)


def numbers(shape, dtype, device="cpu"):
    return torch.randn(shape).to(device, dtype)


def check_forward(forward, shape, dtype, device="cpu"):
    n, V, C = shape
    ids, w = zipf(n, V, device), numbers((V, C), dtype, device)
    assert torch.equal(forward(ids, w), embedding_reference(ids, w))


def check_backward(dy, ids, V):
    dw = embedding_backward(dy, ids, V)
    assert dw.dtype == dy.dtype
    # What is added up: Σ |dy|, which for an id with many tokens is much more than |dw|.
    scale = embedding_backward_reference(dy.double().abs(), ids, V)
    check("dw", dw, embedding_backward_reference(dy.double(), ids, V), scale=scale)
    return dw


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
class TestAgainstFloat64:
    @pytest.mark.parametrize("rung", RUNGS)
    def test_forward(self, shape, dtype, rung):
        check_forward(RUNGS[rung], shape, dtype)

    def test_backward(self, shape, dtype):
        n, V, C = shape
        check_backward(numbers((n, C), dtype), zipf(n, V), V)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
class TestOnGPU:
    @pytest.mark.parametrize("rung", RUNGS)
    @pytest.mark.parametrize("shape", GPU_SHAPES, ids=str)
    def test_forward(self, shape, dtype, rung):
        check_forward(RUNGS[rung], shape, dtype, "cuda")

    @pytest.mark.parametrize("shape", GPU_SHAPES, ids=str)
    def test_backward(self, shape, dtype):
        n, V, C = shape
        ids = zipf(n, V, "cuda")
        dy = numbers((n, C), dtype, "cuda")
        dw = check_backward(dy, ids, V)
        for _ in range(10):
            assert torch.equal(embedding_backward(dy, ids, V), dw)

    def test_one_id_for_all(self, dtype):
        ids = torch.full((20000,), 77, device="cuda")
        dy = numbers((20000, 768), dtype, "cuda")
        dw = check_backward(dy, ids, 1000)
        assert torch.equal(embedding_backward(dy, ids, 1000), dw)

    def test_ids_outside(self, dtype):
        ids = torch.tensor([0, -1, 4, 5, 2**40, 3], device="cuda")
        w = numbers((5, 16), dtype, "cuda")
        y = embedding(ids, w)
        inside = (ids >= 0) & (ids < 5)
        assert torch.equal(y[inside], w[ids[inside]]) and y[~inside].isnan().all()
        check_backward(numbers((6, 16), dtype, "cuda"), ids, 5)

    def test_like_the_emulator(self, dtype):
        ids = zipf(130, 33)
        dy = numbers((130, 24), dtype)
        dw = embedding_backward(dy.cuda(), ids.cuda(), 33)
        assert torch.equal(dw.cpu(), embedding_backward(dy, ids, 33)), "the same order of additions"


class TestManyTokens:
    """Several tiles of tokens, several groups of ids, several pieces of an id."""

    @pytest.mark.parametrize("stretch", [1, 3])
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_pieces(self, monkeypatch, dtype, stretch):
        """Ids that end with a piece, begin with one, fill one or several, and many short ones."""
        monkeypatch.setattr(embedding_gradient, "STRETCH", stretch)
        counts = [32, 20, 12, 0, 64, 1, 95, 2, 31, *[1] * 40, 33, 3, 29]
        ids = torch.cat([torch.full((c,), v) for v, c in enumerate(counts)])
        ids = ids[torch.randperm(len(ids))]
        check_backward(numbers((len(ids), 24), dtype), ids, len(counts))

    @pytest.mark.parametrize("tokens", [31, 32, 33, 63, 64, 65, 200])
    def test_one_id(self, tokens):
        """And further ids, which have none."""
        ids = torch.full((tokens,), 2)
        dw = check_backward(torch.randn(tokens, 8), ids, 5)
        assert (dw[[0, 1, 3, 4]] == 0).all()

    def test_order_is_that_of_the_tokens(self):
        """Bit for bit the sum from the first to the last, by pieces of 32 of all tokens."""
        ids = torch.zeros(150, dtype=torch.int64)
        ids[::3] = 1
        dy = torch.randn(150, 8) * 10.0 ** torch.randint(-4, 4, (150, 8))
        dw = embedding_backward(dy, ids, 3)
        order = ids.argsort(stable=True)
        for v in (0, 1):
            total = torch.zeros(8)
            for piece in order.split(32):
                part = torch.zeros(8)
                for token in piece[ids[piece] == v]:
                    part += dy[token]
                total += part
            assert torch.equal(dw[v], total)
        assert (dw[2] == 0).all()

    def test_tiles(self):
        n = 2 * embedding_places.THREADS + 77
        ids = zipf(n, 40)
        check_backward(numbers((n, 4), torch.float32), ids, 40)

    @pytest.mark.parametrize("clear_bytes", [0, 700, 1 << 20])
    def test_rows_cleared_ahead(self, monkeypatch, clear_bytes):
        """Some of the rows are cleared before it is known which have tokens."""
        monkeypatch.setattr(embedding_plan, "CLEAR_BYTES", clear_bytes)
        check_backward(numbers((60, 8), torch.float32), torch.randint(0, 130, (60,)), 130)

    def test_longer_pieces(self, monkeypatch):
        """As for more tokens: pieces of 128."""
        monkeypatch.setattr(embedding_gradient, "PIECES", 2)
        ids = torch.randint(0, 2, (300,))
        check_backward(numbers((300, 8), torch.bfloat16), ids, 3)


class TestAutograd:
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_gradient(self, dtype):
        ids, w = zipf(20, 9).view(4, 5), numbers((9, 24), dtype).requires_grad_()
        dy = numbers((4, 5, 24), dtype)
        embedding(ids, w).backward(dy)
        assert torch.equal(w.grad, embedding_backward(dy, ids, 9))
        expected = embedding_backward_reference(dy.double(), ids, 9)
        check("dw", w.grad, expected, scale=20 * dy.abs().max().double())

    def test_not_contiguous(self):
        ids = zipf(20, 9).view(4, 5).t()
        w = torch.randn(24, 9).t().requires_grad_()
        dy = torch.randn(24, 4, 5).permute(2, 1, 0)
        y = embedding(ids, w)
        y.backward(dy)
        assert torch.equal(y, w[ids])
        check("dw", w.grad, embedding_backward_reference(dy.double(), ids, 9), scale=80)

    def test_only_once_differentiable(self):
        """The gradient of a gradient is refused, not silently left out."""
        w = torch.randn(9, 8, requires_grad=True)
        (dw,) = torch.autograd.grad(embedding(zipf(20, 9), w).square().sum(), w, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            dw.sum().backward()

    def test_gradient_of_a_sum(self):
        ids, w = zipf(20, 9), torch.randn(9, 8, requires_grad=True)
        embedding(ids, w).sum().backward()
        assert torch.equal(w.grad, torch.bincount(ids, minlength=9)[:, None].float().expand(9, 8))


def check_copy(shape, dtype, device="cpu"):
    """w float32 beside its copy: the rows are the copy's, the gradient is not rounded."""
    n, V, C = shape
    ids, w = zipf(n, V, device), torch.full((V, C), float("nan"), device=device).requires_grad_()
    copy = numbers((V, C), dtype, device)
    y = embedding(ids, w, copy)
    dy = numbers((n, C), dtype, device)
    y.backward(dy)
    assert torch.equal(y, copy[ids]) and w.grad.dtype == torch.float32
    expected = embedding_backward_reference(dy.double(), ids, V)
    scale = embedding_backward_reference(dy.double().abs(), ids, V)
    check("dw", w.grad, expected, scale=scale)
    with pytest.raises(AssertionError, match="dw"):  # the control: rounded on the way
        check("dw", embedding_backward(dy, ids, V).float(), expected, scale=scale)


HALVES = [torch.float16, torch.bfloat16]


class TestFloat32Weights:
    @pytest.mark.parametrize("dtype", HALVES, ids=str)
    @pytest.mark.parametrize("shape", [(130, 33, 7), (40, 9, 264), (33, 5, 256)], ids=str)
    def test_copy(self, shape, dtype):
        check_copy(shape, dtype)

    @pytest.mark.gpu
    @pytest.mark.parametrize("dtype", HALVES, ids=str)
    @pytest.mark.parametrize("shape", [(16384, 50304, 768), (1823, 781, 130)], ids=str)
    def test_on_a_gpu(self, shape, dtype):
        check_copy(shape, dtype, "cuda")

    def test_only_w_has_a_gradient(self):
        w, copy = (torch.randn(9, 8).to(d).requires_grad_() for d in (torch.float32, *HALVES[:1]))
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            y = embedding(zipf(20, 9), w, rounded=copy)
        assert len(kept) == 1 and kept[0].dtype == torch.int64, "nothing but the ids is kept"
        y.sum().backward()
        assert copy.grad is None and w.grad.dtype == torch.float32

    def test_not_contiguous(self):
        ids, w = zipf(20, 9), torch.randn(24, 9).t().requires_grad_()
        copy = w.detach().to(torch.bfloat16)
        assert not copy.is_contiguous()
        y = embedding(ids, w, copy)
        y.sum().backward()
        count = torch.bincount(ids, minlength=9)[:, None].float()
        assert torch.equal(y, copy[ids]) and torch.equal(w.grad, count.expand(9, 24))

    def test_errors(self):
        ids, w = torch.tensor([0]), torch.zeros(2, 3)
        with pytest.raises(TypeError, match="^rounded: its dtype is float64, embedding takes "):
            embedding(ids, w, w.double())
        with pytest.raises(TypeError, match="^w: it is float16, with rounded in bfloat16 it must "):
            embedding(ids, w.half(), w.to(torch.bfloat16))
        with pytest.raises(ValueError, match=r"^rounded: \(2, 2\) on cpu, it must be w's shape "):
            embedding(ids, w, w[:, :2].half())


class TestIds:
    def test_single(self):
        w = torch.randn(5, 8)
        assert torch.equal(embedding(torch.tensor(3), w), w[3])

    def test_int32(self):
        ids, w = zipf(20, 9, dtype=torch.int32), torch.randn(9, 8, requires_grad=True)
        y = embedding(ids, w)
        y.sum().backward()
        assert torch.equal(y, w[ids])
        assert torch.equal(w.grad[:, 0], torch.bincount(ids, minlength=9).float())

    @pytest.mark.parametrize("bad", [-1, 5, 2**40])
    def test_outside_on_a_cpu(self, bad):
        with pytest.raises(IndexError, match=f"^ids: got {bad}, allowed are 0 to 4.$"):
            embedding(torch.tensor([0, bad]), torch.randn(5, 8))

    @pytest.mark.parametrize("C", [7, 8, 256])
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_outside_in_a_kernel(self, dtype, C):
        """What a GPU does with them: NaN rows, and no gradient."""
        ids = torch.tensor([0, -1, 4, 5, 2**40, -(2**40), 2**32, 3])
        w = numbers((5, C), dtype)
        inside = (ids >= 0) & (ids < 5)
        for forward in RUNGS.values():
            y = forward(ids, w)
            assert torch.equal(y[inside], w[ids[inside]]) and y[~inside].isnan().all()
        check_backward(numbers((8, C), dtype), ids, 5)

    def test_all_outside(self):
        dw = embedding_backward(torch.randn(3, 8), torch.full((3,), 9), 5)
        assert torch.equal(dw, torch.zeros(5, 8))


@pytest.mark.parametrize(("n", "V", "C"), [(0, 5, 8), (3, 5, 0), (0, 0, 8), (0, 5, 0)])
def test_empty(n, V, C):
    ids, w = torch.zeros(n, dtype=torch.int64), torch.randn(V, C, requires_grad=True)
    y = embedding(ids, w)
    assert y.shape == (n, C)
    y.sum().backward()
    assert torch.equal(w.grad, torch.zeros(V, C))


@pytest.mark.parametrize("offset", [0, 1, 3])
@pytest.mark.parametrize("C", [7, 16])
def test_writes_nothing_outside(monkeypatch, C, offset):
    """Also where tensors start in the middle of 16 bytes."""
    y, y_intact = guarded((40, C), torch.float16, guard=64 + offset)
    dw, dw_intact = guarded((9, C), torch.float16, guard=64 + offset)
    original = torch.empty
    shapes = {(40, C): y, (9, C): dw}

    def empty(*shape, **options):
        if options.get("dtype") == torch.float16:
            return shapes[shape]
        return poison_(original(*shape, **options))

    monkeypatch.setattr(torch, "empty", empty)
    ids = zipf(40, 9)
    w, dy = (torch.randn(n * C + offset).half()[offset:].view(n, C) for n in (9, 40))
    assert torch.equal(embedding_forward(ids, w), w[ids])
    check_backward(dy, ids, 9)
    assert y_intact() and dw_intact()


def test_rows_of_several_launches(monkeypatch):
    """More accesses than fit 32 bits are split; here, more than 100."""
    monkeypatch.setattr(sys.modules["cuda_numba.embedding"], "PER_LAUNCH", 100)
    check_forward(embedding_forward, (130, 33, 56), torch.float16)
    check_forward(embedding_forward, (13, 9, 256), torch.float16)


def test_deterministic():
    ids, dy = zipf(300, 20), torch.randn(300, 8)
    assert torch.equal(embedding_backward(dy, ids, 20), embedding_backward(dy, ids, 20))


def test_wrong_arguments():
    ids, w = torch.tensor([0]), torch.zeros(2, 3)
    with pytest.raises(TypeError, match="^ids: its dtype is float32, embedding takes int64, int32"):
        embedding(ids.float(), w)
    with pytest.raises(TypeError, match="^w: its dtype is float64, embedding takes float32, "):
        embedding(ids, w.double())
    with pytest.raises(ValueError, match=r"^w: its shape is \(3,\), it must be \(V, C\)\.$"):
        embedding(ids, w[0])
