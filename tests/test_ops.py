"""Every operation against its formula, written out; the backend switch; who sees whom."""

import math

import pytest
import torch

from minilm import ops

DOUBLE = dict(dtype=torch.float64)


def close(a, b, tolerance=1e-12):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def test_linear_is_x_times_w_transposed():
    x, w, b = torch.randn(3, 5, **DOUBLE), torch.randn(4, 5, **DOUBLE), torch.randn(4, **DOUBLE)
    y = ops.linear(x, w, b)
    for i in range(3):
        for n in range(4):
            assert y[i, n].item() == pytest.approx(float((x[i] * w[n]).sum() + b[n]))
    close(ops.linear(x, w), y - b)


def test_embedding_picks_rows():
    w = torch.randn(7, 3)
    ids = torch.tensor([[6, 0], [2, 2]])
    assert torch.equal(ops.embedding(ids, w)[1, 0], w[2])
    assert ops.embedding(ids, w).shape == (2, 2, 3)


def test_layer_norm_has_the_biased_variance_and_eps_inside_the_root():
    x, w, b = torch.randn(6, 7, **DOUBLE), torch.randn(7, **DOUBLE), torch.randn(7, **DOUBLE)
    mean = x.sum(-1, keepdim=True) / 7
    variance = ((x - mean) ** 2).sum(-1, keepdim=True) / 7
    formula = (x - mean) / (variance + 0.1).sqrt() * w + b
    close(ops.layer_norm(x, w, b, 0.1), formula)
    close(ops.layer_norm(x, w, None, 0.1), formula - b)
    unbiased = (x - mean) / (variance * 7 / 6 + 0.1).sqrt() * w + b
    outside = (x - mean) / (variance.sqrt() + 0.1) * w + b
    assert (unbiased - formula).abs().max() > 1e-2 and (outside - formula).abs().max() > 1e-2


def test_rms_norm():
    x, w = torch.randn(6, 7, **DOUBLE), torch.randn(7, **DOUBLE)
    close(ops.rms_norm(x, w, 0.1), x / ((x * x).sum(-1, keepdim=True) / 7 + 0.1).sqrt() * w)


def test_gelu_exact_and_tanh():
    x = torch.linspace(-6, 6, 97, **DOUBLE)
    phi = torch.tensor([0.5 * (1 + math.erf(v / math.sqrt(2))) for v in x.tolist()], **DOUBLE)
    close(ops.gelu(x), x * phi)
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    close(ops.gelu(x, "tanh"), 0.5 * x * (1 + inner.tanh()))
    assert (ops.gelu(x) - ops.gelu(x, "tanh")).abs().max() > 1e-4  # two functions, not one


def test_swiglu():
    gate, up = torch.randn(2, 9, **DOUBLE)
    close(ops.swiglu(gate, up), gate / (1 + (-gate).exp()) * up)


def test_rope_turns_pairs_of_the_two_halves():
    x = torch.randn(2, 3, 5, 8, **DOUBLE)
    angle = torch.randn(5, 4, **DOUBLE)
    turned = ops.rope(x, angle.cos(), angle.sin())
    plane = torch.complex(x[..., :4], x[..., 4:]) * torch.polar(torch.ones_like(angle), angle)
    close(turned, torch.cat((plane.real, plane.imag), -1))
    close(turned.norm(dim=-1), x.norm(dim=-1))  # a rotation keeps lengths
    assert ops.rope(x.bfloat16(), angle.cos(), angle.sin()).dtype == torch.bfloat16


@pytest.mark.parametrize("row", [[0.0, 1e4, -1e4], [1e30, 0, 0], [-1e30] * 3, [-math.inf, 0, 1]])
def test_softmax_of_extreme_rows(row):
    p = ops.softmax(torch.tensor(row))
    assert p.sum().item() == pytest.approx(1) and bool((p >= 0).all())
    if -math.inf in row:
        assert p[0] == 0


@pytest.mark.parametrize("window", [None, 1, 3])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("n_queries", [1, 2, 6])
def test_visible_one_pair_at_a_time(n_queries, causal, window):
    n_keys = 6
    allowed = ops.visible(n_queries, n_keys, causal=causal, window=window)
    if not causal and window is None:
        assert allowed is None
        return
    for row in range(n_queries):
        t = n_keys - n_queries + row
        for s in range(n_keys):
            expected = (not causal or s <= t) and (window is None or abs(t - s) < window)
            assert bool(allowed[row, s]) == expected


def attention_by_loops(q, k, v, causal, window, scale, mask):
    B, H, n_queries, D = q.shape
    n_keys, group = k.shape[2], H // k.shape[1]
    out = torch.zeros_like(q)
    for b in range(B):
        for h in range(H):
            for row in range(n_queries):
                t = n_keys - n_queries + row
                seen = [
                    s
                    for s in range(n_keys)
                    if (not causal or s <= t)
                    and (window is None or abs(t - s) < window)
                    and (mask is None or mask[b, 0, row, s])
                ]
                scores = [float(q[b, h, row] @ k[b, h // group, s]) * scale for s in seen]
                weights = [math.exp(score - max(scores)) for score in scores]
                for weight, s in zip(weights, seen, strict=True):
                    out[b, h, row] += weight / sum(weights) * v[b, h // group, s]
    return out


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("n_queries", [1, 2, 5])
@pytest.mark.parametrize("n_kv_heads", [1, 2, 4])
def test_attention_is_the_formula(n_kv_heads, n_queries, causal, window, masked):
    q = torch.randn(2, 4, n_queries, 3, **DOUBLE)
    k, v = torch.randn(2, 2, n_kv_heads, 5, 3, **DOUBLE)
    mask = None
    if masked:
        mask = torch.rand(2, 1, n_queries, 5) < 0.6
        for row in range(n_queries):
            mask[:, :, row, 5 - n_queries + row] = True  # a position always sees itself
    options = dict(causal=causal, window=window)
    expected = attention_by_loops(q, k, v, causal, window, 1 / math.sqrt(3), mask)
    close(ops.attention(q, k, v, mask=mask, **options), expected, 1e-10)
    doubled = attention_by_loops(q, k, v, causal, window, 2.0, mask)
    close(ops.attention(q, k, v, mask=mask, scale=2.0, **options), doubled, 1e-10)


def test_attention_dropout_drops():
    q = k = v = torch.randn(1, 1, 6, 4)
    assert not torch.equal(ops.attention(q, k, v, dropout=0.5), ops.attention(q, k, v))


def test_cross_entropy_is_a_mean_over_kept_targets():
    logits = torch.randn(5, 7, **DOUBLE)
    targets = torch.tensor([3, -100, 0, 6, -100])
    p = logits.exp() / logits.exp().sum(-1, keepdim=True)
    expected = -(p[0, 3].log() + p[2, 0].log() + p[3, 6].log()) / 3
    assert ops.cross_entropy(logits, targets).item() == pytest.approx(expected.item())
    nothing = torch.full((5,), -100)
    assert ops.cross_entropy(logits, nothing).item() == 0


def test_cross_entropy_adds_up_in_float32():
    logits, targets = torch.randn(64, 50), torch.randint(0, 50, (64,))
    loss = ops.cross_entropy(logits.bfloat16(), targets)
    assert loss.dtype == torch.float32
    expected = ops.cross_entropy(logits.bfloat16().double(), targets).item()
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_linear_cross_entropy_is_both_in_one():
    x, w = torch.randn(5, 4, **DOUBLE), torch.randn(9, 4, **DOUBLE)
    targets = torch.tensor([3, -100, 0, 8, 1])
    close(ops.linear_cross_entropy(x, w, targets), ops.cross_entropy(x @ w.T, targets))


def test_backend_switch():
    assert ops.backend() == "torch"
    with ops.use_backend("torch"):
        assert ops.backend() == "torch"
    with pytest.raises(ValueError, match="^backend: got 'jax', allowed are 'torch', 'numba'$"):
        with ops.use_backend("jax"):
            pass
    assert ops.backend() == "torch"


def test_backend_comes_back_after_an_error():
    with pytest.raises(RuntimeError), ops.use_backend("numba"):
        assert ops.backend() == "numba"
        with ops.use_backend("torch"):
            assert ops.backend() == "torch"
        raise RuntimeError
    assert ops.backend() == "torch"
