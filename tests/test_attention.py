"""Attention: the formula, rotary positions, heads one by one and all at once, the cache."""

import math

import pytest
import torch

from minilm import AttentionHead, KVCache, ModelConfig, MultiHeadAttention, RotaryEmbedding
from minilm.attention import attention_weights, scale_frequencies
from minilm.model import MiniLM


def config(**changes):
    sizes = dict(vocab_size=17, context_length=12, d_model=24, n_layers=1, n_heads=4)
    return ModelConfig(**(sizes | changes))


def layer(**changes):
    """A MultiHeadAttention in float64 whose weights are large enough to matter."""
    made = MultiHeadAttention(config(**changes)).double()
    for p in made.parameters():
        torch.nn.init.normal_(p, std=0.4)
    return made


def test_head_is_the_formula():
    head, x = AttentionHead(6, 4, bias=True).double(), torch.randn(2, 5, 6, dtype=torch.float64)
    out, weights = head(x, return_weights=True)
    for b in range(2):
        parts = (head.query, head.key, head.value)
        q, k, v = ((x[b] @ part.weight.T + part.bias).detach() for part in parts)
        for t in range(5):
            e = [math.exp(float(q[t] @ k[s]) / math.sqrt(4)) for s in range(t + 1)]
            expected = sum(e[s] / sum(e) * v[s] for s in range(t + 1))
            torch.testing.assert_close(out[b, t], expected)
            assert weights[b, t].tolist() == pytest.approx(
                [a / sum(e) for a in e] + [0] * (4 - t), abs=1e-12
            )
    assert torch.equal(head(x), out)


def test_weights_are_a_probability_over_what_may_be_seen():
    head = AttentionHead(6, 4, window=3)
    _, weights = head(torch.randn(2, 8, 6), return_weights=True)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 8))
    seen = torch.tensor([[0 <= t - s < 3 for s in range(8)] for t in range(8)])
    assert bool((weights[:, ~seen] == 0).all()) and bool((weights[:, seen] > 0).all())


def test_head_without_positions_does_not_know_the_order():
    x = torch.randn(1, 7, 6)
    shuffled = x[:, [3, 0, 5, 1, 4, 2, 6]]  # the last token stays last
    head = AttentionHead(6, 4)
    torch.testing.assert_close(head(x)[:, -1], head(shuffled)[:, -1])
    turned = AttentionHead(6, 4, rope=RotaryEmbedding(4, 7))  # and this one does
    for p in turned.parameters():
        torch.nn.init.normal_(p)
    assert (turned(x)[:, -1] - turned(shuffled)[:, -1]).abs().max() > 1e-3


def test_scores_carry_the_scale_and_the_mask():
    q, k = torch.randn(2, 1, 1, 5, 16, dtype=torch.float64)
    scores, _ = attention_weights(q, k)
    assert scores[0, 0, 3, 1].item() == pytest.approx(float(q[0, 0, 3] @ k[0, 0, 1]) / 4)
    assert scores[0, 0, 1, 3].item() == -math.inf
    mask = torch.ones(1, 1, 5, 5, dtype=torch.bool)
    mask[..., 3, 1] = False
    scores, weights = attention_weights(q, k, mask=mask, scale=1.0)
    assert scores[0, 0, 3, 1].item() == -math.inf and weights[0, 0, 3, 1] == 0
    assert scores[0, 0, 3, 0].item() == pytest.approx(float(q[0, 0, 3] @ k[0, 0, 0]))


def test_rotary_is_a_complex_turn():
    D, theta = 8, 100.0
    rope = RotaryEmbedding(D, 10, theta)
    x = torch.randn(1, 2, 10, D, dtype=torch.float64)
    turned = rope(x)
    for t in range(10):
        for i in range(D // 2):
            z = complex(x[0, 1, t, i], x[0, 1, t, i + D // 2])
            angle = t * theta ** (-2 * i / D)
            z *= complex(math.cos(angle), math.sin(angle))
            got = complex(turned[0, 1, t, i], turned[0, 1, t, i + D // 2])
            assert abs(got - z) < 1e-6


def scores_at(rope, q, k, start_q, start_k):
    return (rope(q, start_q) * rope(k, start_k)).sum().item()


def test_rotary_score_depends_on_the_distance_alone():
    rope = RotaryEmbedding(16, 64)
    q, k = torch.randn(2, 1, 1, 1, 16, dtype=torch.float64)
    for distance in (0, 1, 7):
        first = scores_at(rope, q, k, distance, 0)
        for s in (1, 5, 40):
            assert scores_at(rope, q, k, s + distance, s) == pytest.approx(first, abs=1e-5)
    assert abs(scores_at(rope, q, k, 7, 0) - scores_at(rope, q, k, 6, 0)) > 1e-3
    assert abs(scores_at(rope, q, k, 7, 0) - scores_at(rope, q, k, 0, 7)) > 1e-3


def test_rotary_tables_grow_and_stay_exact():
    short, long = RotaryEmbedding(8, 4), RotaryEmbedding(8, 5000)
    x = torch.randn(1, 1, 3, 8)
    assert torch.equal(short(x, start=4990), long(x, start=4990))
    angle = 4992 * short.frequency
    torch.testing.assert_close(short.cos[4992].double(), angle.cos(), rtol=0, atol=1e-7)


def test_rotary_tables_stay_float32_in_a_bf16_model():
    model = MiniLM(config(position="rope")).bfloat16()
    rope = model.blocks[0].attention.rope
    assert rope.cos.dtype == torch.float32
    angle = torch.arange(12, dtype=torch.float64)[:, None] * rope.frequency
    assert (rope.sin.double() - angle.sin()).abs().max() < 1e-7
    assert (rope.sin.bfloat16().double() - angle.sin()).abs().max() > 1e-3  # as bf16 would be
    assert model(torch.zeros(1, 12, dtype=torch.long)).dtype == torch.bfloat16


def llama3_frequencies(theta, D, factor, low, high, original):
    """Llama 3.1's rule, wave by wave."""
    out = []
    for i in range(D // 2):
        wavelength = 2 * math.pi * theta ** (2 * i / D)
        f = 1 / theta ** (2 * i / D)
        if wavelength < original / high:
            out.append(f)
        elif wavelength > original / low:
            out.append(f / factor)
        else:
            smooth = (original / wavelength - low) / (high - low)
            out.append((1 - smooth) * f / factor + smooth * f)
    return torch.tensor(out, dtype=torch.float64)


def test_rope_scaling_linear_divides_positions():
    plain = RotaryEmbedding(8, 20)
    scaled = RotaryEmbedding(8, 20, scaling={"rope_type": "linear", "factor": 4.0})
    x = torch.randn(1, 1, 1, 8)
    torch.testing.assert_close(scaled(x, start=12), plain(x, start=3))


def test_rope_scaling_llama3():
    scaling = dict(
        rope_type="llama3",
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=8192,
    )
    rope = RotaryEmbedding(128, 4, theta=500000.0, scaling=scaling)
    expected = llama3_frequencies(500000.0, 128, 8.0, 1.0, 4.0, 8192)
    torch.testing.assert_close(rope.frequency, expected, rtol=1e-12, atol=0)
    plain = RotaryEmbedding(128, 4, theta=500000.0).frequency
    kept, stretched = expected == plain, expected == plain / 8
    assert kept.any() and stretched.any() and bool((~kept & ~stretched).any())  # all three cases


@pytest.mark.parametrize(
    ("scaling", "words"),
    [
        ({"rope_type": "yarn"}, "must be 'linear' or 'llama3', got 'yarn'"),
        ({}, "got None"),
        ({"rope_type": "linear"}, "'linear' needs 'factor'"),
        ({"rope_type": "llama3", "factor": 8}, "'llama3' needs 'low_freq_factor'"),
    ],
)
def test_rope_scaling_errors(scaling, words):
    with pytest.raises(ValueError, match="^rope_scaling: ") as error:
        scale_frequencies(torch.ones(4), scaling)
    assert words in str(error.value)


def test_rotary_needs_pairs():
    with pytest.raises(ValueError, match="^head_dim: .* even number, got 7$"):
        RotaryEmbedding(7, 4)


STYLES = [
    dict(),
    dict(position="rope"),
    dict(position="rope", n_kv_heads=2, bias=False),
    dict(n_kv_heads=1, window=3),
    dict(causal=False, head_dim=10, qkv_bias=True, bias=False),
]


def from_heads(attention, x, order):
    out = torch.cat([attention.head(h)(x) for h in order], dim=-1)
    return torch.nn.functional.linear(out, attention.out.weight, attention.out.bias)


@pytest.mark.parametrize("style", STYLES)
def test_single_heads_side_by_side_are_the_layer(style):
    attention, x = layer(**style), torch.randn(2, 7, 24, dtype=torch.float64)
    y = attention(x)
    torch.testing.assert_close(from_heads(attention, x, range(4)), y)
    assert (from_heads(attention, x, (1, 0, 2, 3)) - y).abs().max() > 1e-2  # the order matters


def test_layer_is_a_sum_over_heads():
    attention, x = layer(), torch.randn(1, 5, 24, dtype=torch.float64)
    parts = [attention.head(h)(x) @ attention.out.weight[:, 6 * h : 6 * h + 6].T for h in range(4)]
    torch.testing.assert_close(sum(parts) + attention.out.bias, attention(x))


def test_head_is_a_copy():
    attention = layer()
    before = attention.qkv.weight.clone()
    attention.head(2).query.weight.data.zero_()
    assert torch.equal(attention.qkv.weight, before)


def test_head_of_a_layer_with_qk_norm_is_refused():
    with pytest.raises(ValueError, match="^qk_norm: "):
        layer(qk_norm=True).head(0)


@pytest.mark.parametrize("n_kv_heads", [1, 2])
def test_grouped_queries_are_repeated_heads(n_kv_heads):
    grouped, full = layer(n_kv_heads=n_kv_heads), layer()
    D, group = 6, 4 // n_kv_heads
    for name in ("weight", "bias"):
        parts = getattr(grouped.qkv, name).data.split((4 * D, n_kv_heads * D, n_kv_heads * D))
        q, k, v = parts
        k, v = (
            z.unflatten(0, (n_kv_heads, D)).repeat_interleave(group, dim=0).flatten(0, 1)
            for z in (k, v)
        )
        getattr(full.qkv, name).data.copy_(torch.cat((q, k, v)))
    full.out.load_state_dict(grouped.out.state_dict())
    x = torch.randn(2, 6, 24, dtype=torch.float64)
    torch.testing.assert_close(grouped(x), full(x))


def test_qk_norm_gives_queries_and_keys_one_length():
    attention = MultiHeadAttention(config(qk_norm=True))
    q, k, v = attention.project(torch.randn(2, 5, 24) * 100)
    for z in (q, k):
        torch.testing.assert_close(z.norm(dim=-1), torch.full((2, 4, 5), math.sqrt(6)))
    assert v.norm(dim=-1).std() > 1


@pytest.mark.parametrize("style", [*STYLES, dict(qk_norm=True, position="rope")])
@pytest.mark.parametrize("masked", [False, True])
def test_watched_path_equals_the_fused_one(style, masked):
    attention, x = layer(**style).float(), torch.randn(2, 7, 24)
    mask = None
    if masked:
        mask = (torch.rand(2, 1, 7, 7) < 0.5) | torch.eye(7, dtype=torch.bool)
    fused = attention(x, mask)
    seen = {}
    attention.watch = lambda **tensors: seen.update(tensors)
    torch.testing.assert_close(attention(x, mask), fused, rtol=1e-5, atol=1e-5)
    D = attention.head_dim
    shapes = {name: tuple(value.shape) for name, value in seen.items()}
    assert shapes == dict(
        q=(2, 4, 7, D),
        k=(2, 4, 7, D),
        v=(2, 4, 7, D),
        scores=(2, 4, 7, 7),
        weights=(2, 4, 7, 7),
        out=(2, 4, 7, D),
    )


@pytest.mark.parametrize("style", [s for s in STYLES if s.get("causal", True)])
@pytest.mark.parametrize("watched", [False, True])
def test_cache_gives_what_the_whole_sequence_gives(style, watched):
    attention, x = layer(**style), torch.randn(2, 9, 24, dtype=torch.float64)
    whole = attention(x)
    if watched:
        attention.watch = lambda **tensors: None
    cache = KVCache(1, 2, attention.n_kv_heads, attention.head_dim, 9, dtype=torch.float64)
    parts = []
    with torch.no_grad():
        for begin, end in ((0, 4), (4, 5), (5, 8), (8, 9)):
            parts.append(attention(x[:, begin:end], cache=cache))
            cache.length = end  # what the model does after its last layer
    torch.testing.assert_close(torch.cat(parts, dim=1), whole)


def test_a_full_cache_is_an_error():
    cache = KVCache(1, 1, 2, 3, max_length=4)
    cache.extend(0, torch.ones(1, 2, 3, 3), torch.ones(1, 2, 3, 3))
    cache.length = 3
    words = "^cache: it holds 4 positions and 3 are in use, so 2 more do not fit$"
    with pytest.raises(ValueError, match=words):
        cache.extend(0, torch.ones(1, 2, 2, 3), torch.ones(1, 2, 2, 3))
