"""What is recorded is what was computed; and nothing is left behind."""

import pytest
import torch

from minilm import MiniLM, ModelConfig, record

B, T, C, H, V = 2, 6, 16, 4, 17


def make(**changes):
    sizes = dict(vocab_size=V, context_length=8, d_model=C, n_layers=2, n_heads=H)
    model = MiniLM(ModelConfig(**(sizes | changes)))
    for p in model.parameters():
        torch.nn.init.normal_(p, mean=float(p.ndim == 1), std=0.3)
    return model


@pytest.fixture
def ids():
    return torch.randint(0, V, (B, T))


@pytest.mark.parametrize(
    "style",
    [
        dict(),
        dict(position="rope", n_kv_heads=2, norm="rmsnorm"),
        dict(window=2),
        dict(qk_norm=True),
    ],
)
def test_recording_changes_the_result_by_rounding_only(ids, style):
    model = make(**style)
    plain = model(ids)
    with record(model) as r:
        recorded = model(ids)
    torch.testing.assert_close(recorded, plain, rtol=1e-5, atol=1e-5)
    assert len(r.attention) == len(r.scores) == len(r.heads) == 2
    for weights, scores, heads in zip(r.attention, r.scores, r.heads, strict=True):
        assert weights.shape == scores.shape == (B, H, T, T)
        assert heads.shape == (B, H, T, C // H)
        torch.testing.assert_close(weights.sum(-1), torch.ones(B, H, T))
        torch.testing.assert_close(scores.softmax(-1), weights)


def test_activations_fit_together(ids):
    model = make()
    with record(model) as r:
        logits = model(ids)
    a = r.activations
    position = model.position_embedding.weight[:T]
    torch.testing.assert_close(a["embedding"], model.token_embedding.weight[ids] + position)
    stream = a["embedding"]
    for i, block in enumerate(model.blocks):
        stream = stream + a[f"blocks.{i}.attention"] + a[f"blocks.{i}.mlp"]
        torch.testing.assert_close(a[f"blocks.{i}"], stream)
        heads = r.heads[i].transpose(1, 2).flatten(2)  # (B, T, C)
        mixed = heads @ block.attention.out.weight.T + block.attention.out.bias
        torch.testing.assert_close(a[f"blocks.{i}.attention"], mixed)
        torch.testing.assert_close(r.heads[i], r.attention[i] @ a[f"blocks.{i}.attention.v"])
    torch.testing.assert_close(a["final_norm"], model.final_norm(stream))
    torch.testing.assert_close(a["final_norm"] @ model.head_weight.T, logits)
    assert not any(value.requires_grad for value in a.values())


@pytest.mark.parametrize("inside", [True, False])
def test_gradients_of_parameters_and_activations(ids, inside):
    model = make()
    with record(model) as r:
        loss = model.loss(ids)
        assert r.gradients == {} and r.activation_gradients == {}
        if inside:
            loss.backward()
    if not inside:
        loss.backward()
    assert r.gradients.keys() == dict(model.named_parameters()).keys()
    assert r.gradients["final_norm.weight"] is model.final_norm.weight.grad
    g = r.activation_gradients
    assert g.keys() == r.activations.keys()
    # Against the definition: what the loss does when the embedding moves a little.
    direction = torch.randn(B, T - 1, C)
    expected = (g["embedding"] * direction).sum().item()
    moved = []
    for sign in (1, -1):
        hook = model.blocks[0].register_forward_pre_hook(
            lambda module, args, s=sign: (args[0] + s * 1e-2 * direction, *args[1:])
        )
        moved.append(model.loss(ids).item())
        hook.remove()
    assert (moved[0] - moved[1]) / 2e-2 == pytest.approx(expected, rel=2e-2)
    # The gradient through the residual stream: straight on, and through both halves of block 1.
    assert not torch.equal(g["blocks.0"], g["blocks.1"])


def test_the_gradient_of_scores_is_zero_where_a_key_is_hidden(ids):
    model = make()
    with record(model) as r:
        model.loss(ids).backward()
    hidden = torch.ones(T - 1, T - 1).triu(1).bool()
    g = r.activation_gradients["blocks.1.attention.scores"]
    assert not g[..., hidden].any() and g[..., ~hidden].any()


def hooks(model):
    return [
        len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks)
        for m in model.modules()
    ]


def watches(model):
    return [block.attention.watch for block in model.blocks]


def test_nothing_is_left_behind(ids):
    model = make()
    hooks_before = hooks(model)
    with record(model):
        assert None not in watches(model) and hooks(model) != hooks_before
    assert watches(model) == [None, None] and hooks(model) == hooks_before
    with pytest.raises(ZeroDivisionError), record(model) as r:
        model(ids)
        1 / 0  # noqa: B018
    assert watches(model) == [None, None] and hooks(model) == hooks_before
    assert len(r.attention) == 2  # what was seen before the error stays
    recorded = r.attention[0].clone()
    model((ids + 1) % V)
    assert torch.equal(r.attention[0], recorded)  # later passes are not recorded


def test_a_recording_inside_a_recording(ids):
    model = make()
    calls = []
    model.blocks[0].attention.watch = mine = lambda **tensors: calls.append(tensors["weights"])
    with record(model) as outer:
        with record(model) as inner:
            model(ids)
        assert len(calls) == 1
        assert torch.equal(outer.attention[0], inner.attention[0])
        assert torch.equal(outer.attention[0], calls[0])
        model((ids + 1) % V)
    assert not torch.equal(outer.attention[0], inner.attention[0])
    assert model.blocks[0].attention.watch is mine


def test_the_last_pass_stays(ids):
    model = make()
    with record(model) as r, torch.no_grad():
        model(ids)
        model(ids[:1, :3])
    assert r.attention[0].shape == (1, H, 3, 3)
    assert r.activation_gradients == {}


def test_before_a_pass_there_is_nothing():
    with record(make()) as r:
        pass
    assert r.attention == [] and r.activations == {}
