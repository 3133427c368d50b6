"""Every operation against its formula, written out; the backend switch; who sees whom."""

import math
import threading

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


def with_gradients(function, *tensors):
    """All that `function` gives of the tensors, and their gradients for random ones of it."""
    leaves = [t.clone().requires_grad_() for t in tensors]
    results = function(*leaves)
    results = results if isinstance(results, tuple) else (results,)
    source = torch.Generator().manual_seed(3)
    weights = [torch.randn(r.shape, generator=source, **DOUBLE) for r in results]
    total = sum((r * w).sum() for r, w in zip(results, weights, strict=True))
    return *(r.detach() for r in results), *torch.autograd.grad(total, leaves)


def is_the_same(function, formula, *tensors):
    ours, expected = with_gradients(function, *tensors), with_gradients(formula, *tensors)
    for got, right in zip(ours, expected, strict=True):
        assert right.abs().max() > 1e-3
        close(got, right)


def test_layer_norm_residual_adds_first():
    x, branch, w, b = *torch.randn(2, 6, 7, **DOUBLE), *torch.randn(2, 7, **DOUBLE)

    def formula(x, branch, w, b=0.0):
        total = x + branch
        centred = total - total.mean(-1, keepdim=True)
        return centred / ((centred**2).mean(-1, keepdim=True) + 0.1).sqrt() * w + b, total

    is_the_same(lambda *t: ops.layer_norm_residual(*t, 0.1), formula, x, branch, w, b)
    is_the_same(lambda *t: ops.layer_norm_residual(*t, None, 0.1), formula, x, branch, w)


def test_rms_norm_residual_adds_first():
    def formula(x, branch, w):
        total = x + branch
        return total / ((total**2).mean(-1, keepdim=True) + 0.1).sqrt() * w, total

    tensors = *torch.randn(2, 6, 7, **DOUBLE), torch.randn(7, **DOUBLE)
    is_the_same(lambda *t: ops.rms_norm_residual(*t, 0.1), formula, *tensors)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_mlp_is_two_products_with_a_gelu_between(approximate):
    def formula(x, w1, b1, w2, b2):
        return torch.nn.GELU(approximate)(x @ w1.T + b1) @ w2.T + b2

    x, w1, b1 = (
        torch.randn(2, 3, 5, **DOUBLE),
        torch.randn(8, 5, **DOUBLE),
        torch.randn(8, **DOUBLE),
    )
    w2, b2 = torch.randn(4, 8, **DOUBLE), torch.randn(4, **DOUBLE)
    is_the_same(lambda *t: ops.mlp(*t, approximate), formula, x, w1, b1, w2, b2)
    without = ops.mlp(x, w1, None, w2, None, approximate)
    close(without, formula(x, w1, 0 * b1, w2, 0 * b2))
    other = ops.mlp(x, w1, b1, w2, b2, "tanh" if approximate == "none" else "none")
    assert (other - ops.mlp(x, w1, b1, w2, b2, approximate)).abs().max() > 1e-5


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


@pytest.mark.parametrize(("n_heads", "n_kv_heads"), [(1, 1), (4, 4), (4, 2), (3, 1)])
def test_split_heads_are_views_in_order(n_heads, n_kv_heads):
    """Column block i of qkv is head i: the queries, then the keys, then the values."""
    heads = n_heads + 2 * n_kv_heads
    qkv = torch.randn(2, 5, heads * 3, **DOUBLE)
    q, k, v = ops.split_heads(qkv, n_heads, n_kv_heads)
    assert q.shape == (2, n_heads, 5, 3) and k.shape == v.shape == (2, n_kv_heads, 5, 3)
    joined = torch.cat((q, k, v), dim=1)
    for i in range(heads):
        assert torch.equal(joined[:, i], qkv[..., 3 * i : 3 * i + 3])
    first = qkv.untyped_storage().data_ptr()
    assert all(t.untyped_storage().data_ptr() == first for t in (q, k, v))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("n_heads", "n_kv_heads"), [(2, 2), (4, 2)])
def test_packed_attention_is_attention_of_the_heads(n_heads, n_kv_heads, causal, window, masked):
    mask = None
    if masked:
        mask = (torch.rand(2, 1, 5, 5) < 0.6) | torch.eye(5, dtype=torch.bool)
    options = dict(causal=causal, window=window, mask=mask)

    def packed(qkv):
        return ops.packed_attention(qkv, n_heads, n_kv_heads, **options)

    def formula(qkv):
        group, blocks = n_heads // n_kv_heads, qkv.split(3, dim=-1)
        allowed = ops.visible(5, 5, causal=causal, window=window)
        outputs = []
        for h in range(n_heads):
            q, k, v = (
                blocks[i] for i in (h, n_heads + h // group, n_heads + n_kv_heads + h // group)
            )
            scores = q @ k.transpose(1, 2) / math.sqrt(3)
            for restriction in (allowed, mask[:, 0] if masked else None):
                if restriction is not None:
                    scores = scores.masked_fill(~restriction, -math.inf)
            outputs.append(scores.softmax(-1) @ v)
        return torch.cat(outputs, dim=-1)

    qkv = torch.randn(2, 5, (n_heads + 2 * n_kv_heads) * 3, **DOUBLE)
    is_the_same(packed, formula, qkv)
    if causal or window or masked:
        plain = ops.packed_attention(qkv, n_heads, n_kv_heads, causal=False)
        assert (packed(qkv) - plain).abs().max() > 1e-2


def test_packed_attention_drops():
    qkv = torch.randn(1, 6, 12)
    dropped = ops.packed_attention(qkv, 1, 1, dropout=0.5)
    assert not torch.equal(dropped, ops.packed_attention(qkv, 1, 1))
    q, k, v = ops.split_heads(qkv, 1, 1)
    torch.manual_seed(1)
    dropped = ops.packed_attention(qkv, 1, 1, dropout=0.5)
    torch.manual_seed(1)
    assert torch.equal(dropped, ops.attention(q, k, v, dropout=0.5)[:, 0])


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


def named_here(*names):
    return [ops.computed_by(name) for name in names]


def test_only_some_operations_are_the_backend_s():
    asked = ("linear", "gelu", "softmax", "sgd_step")
    assert named_here(*asked) == ["torch"] * 4
    with ops.use_backend("numba", only={"linear", "gelu"}):
        assert ops.backend() == "numba"
        assert named_here(*asked) == ["numba", "numba", "torch", "torch"]
        with ops.use_backend("numba", only=["softmax", "sgd_step"]):  # no sum of both
            assert named_here(*asked) == ["torch", "torch", "numba", "torch"]
            with ops.use_backend("numba"):
                assert named_here(*asked) == ["numba", "numba", "numba", "torch"]
            with ops.use_backend("torch", only={"linear"}):
                assert named_here(*asked) == ["torch"] * 4
            assert named_here(*asked) == ["torch", "torch", "numba", "torch"]
        assert named_here(*asked) == ["numba", "numba", "torch", "torch"]
        assert ops.computed_by("softmax", "numba") == "numba"  # by name: of the whole backend
    assert named_here(*asked) == ["torch"] * 4
    with ops.use_backend("numba", only=()):
        assert {ops.computed_by(op) for op in ops.OPS} == {"torch"}


def test_only_with_an_unknown_operation_names_it():
    with pytest.raises(ValueError, match="^op: got 'conv', allowed are 'linear', "):
        with ops.use_backend("numba", only={"linear", "conv"}):
            pass
    assert ops.backend() == "torch" and ops.computed_by("linear") == "torch"


def test_only_is_of_one_thread():
    seen, reached, go_on = [], threading.Event(), threading.Event()

    def other():
        seen.append(named_here("linear", "gelu"))
        with ops.use_backend("numba", only={"gelu"}):
            seen.append(named_here("linear", "gelu"))
            reached.set()
            go_on.wait(10)
            seen.append(named_here("linear", "gelu"))

    with ops.use_backend("numba", only={"linear"}):
        thread = threading.Thread(target=other)
        thread.start()
        assert reached.wait(10)
        assert named_here("linear", "gelu") == ["numba", "torch"]
    assert named_here("linear", "gelu") == ["torch", "torch"]  # while the other one goes on
    go_on.set()
    thread.join(10)
    assert seen == [["torch", "torch"], ["torch", "numba"], ["torch", "numba"]]
