"""The model: what it may see, where it starts, what it counts, what it refuses."""

import itertools
import json
import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from minilm import PRESETS, MiniLM, ModelConfig, next_token_loss, ops
from minilm.record import record

T, V = 8, 19


def config(**changes):
    sizes = dict(vocab_size=V, context_length=T, d_model=16, n_layers=2, n_heads=4)
    return ModelConfig(**(sizes | changes))


def lively(model):
    """Weights large enough that every position matters to every other."""
    for p in model.parameters():
        torch.nn.init.normal_(p, mean=float(p.ndim == 1), std=0.3)
    return model.eval()


CHOICES = dict(
    norm=("layernorm", "rmsnorm"),
    mlp=("gelu", "gelu_tanh", "swiglu"),
    position=("learned", "rope"),
    qk_norm=(False, True),
    n_kv_heads=(4, 2),
    window=(None, 3),
    tied=(True, False),
)
EVERY_STYLE = [dict(zip(CHOICES, c, strict=True)) for c in itertools.product(*CHOICES.values())]


def name(style):
    return "-".join(str(value) for value in style.values())


@torch.no_grad()
@pytest.mark.parametrize("style", EVERY_STYLE, ids=name)
def test_no_position_sees_a_later_token(style):
    model = lively(MiniLM(config(**style)))
    ids = torch.randint(0, V, (2, T))
    logits = model(ids)
    changed = ids.clone()
    changed[:, 5] = (ids[:, 5] + 1) % V
    difference = (model(changed) - logits).abs().amax(dim=(0, 2))  # (T)
    assert bool((difference[:5] <= 1e-6).all())
    assert bool((difference[5:] > 1e-3).all())  # all of them see it: the field is 2 · (3 − 1) + 1


@torch.no_grad()
@pytest.mark.parametrize("position", CHOICES["position"])
def test_without_causality_every_position_sees_every_token(position):
    model = lively(MiniLM(config(position=position, causal=False)))
    ids = torch.randint(0, V, (2, T))
    changed = ids.clone()
    changed[:, -1] = (ids[:, -1] + 1) % V
    assert bool(((model(changed) - model(ids)).abs().amax(dim=(0, 2)) > 1e-3).all())


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize(("n_layers", "window"), [(1, 1), (1, 3), (2, 3), (3, 2), (2, 9)])
def test_windowed_attention_sees_exactly_its_field(n_layers, window, recorded):
    model = lively(MiniLM(config(n_layers=n_layers, window=window, context_length=12)))
    embedded = {}
    hook = model.blocks[0].register_forward_pre_hook(
        lambda module, args: embedded.update(x=args[0]) or args[0].retain_grad()
    )
    ids = torch.randint(0, V, (1, 12))
    if recorded:  # the path with the (T, T) matrices in the open
        with record(model):
            model(ids)[0, -1].square().sum().backward()
    else:
        model(ids)[0, -1].square().sum().backward()
    hook.remove()
    field = n_layers * (window - 1) + 1
    seen = [bool(g.any()) for g in embedded["x"].grad[0]]
    assert seen == [t > 11 - field for t in range(12)]  # beyond: exactly 0


@torch.no_grad()
@pytest.mark.parametrize("style", EVERY_STYLE[::7], ids=name)
def test_cache_gives_the_same_logits(style):
    model = lively(MiniLM(config(**style)))
    ids = torch.randint(0, V, (2, T))
    cache = model.new_cache(2)
    parts = [model(ids[:, a:b], cache=cache) for a, b in ((0, 3), (3, 4), (4, 7), (7, 8))]
    assert cache.length == T
    torch.testing.assert_close(torch.cat(parts, 1), model(ids), rtol=1e-5, atol=1e-5)


def test_cache_that_is_full_and_cache_with_segments():
    model = MiniLM(config(position="rope"))
    cache = model.new_cache(1, max_length=3)
    assert cache.keys.shape == (2, 1, 4, 3, 4)
    with pytest.raises(ValueError, match="^cache: it holds 3 positions"):
        model(torch.zeros(1, 4, dtype=torch.long), cache=cache)
    with pytest.raises(ValueError, match="^segments: cannot be combined with a cache$"):
        ids = torch.zeros(1, 2, dtype=torch.long)
        model(ids, segments=ids, cache=cache)


@torch.no_grad()
def test_packed_documents_are_computed_as_if_alone():
    a, b = torch.randint(0, V, (1, 3)), torch.randint(0, V, (1, 5))
    packed, segments = torch.cat((a, b), 1), torch.tensor([[0] * 3 + [1] * 5])
    model = lively(MiniLM(config(position="rope")))
    logits = model(packed, segments)
    torch.testing.assert_close(logits[:, :3], model(a), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits[:, 3:], model(b), rtol=1e-5, atol=1e-5)
    assert (model(packed)[:, 3:] - model(b)).abs().max() > 1e-2  # what segments are for
    with record(model):
        torch.testing.assert_close(model(packed, segments), logits, rtol=1e-5, atol=1e-5)


def test_loss_of_packed_documents_asks_for_the_next_one_without_seeing_it():
    a, b = torch.randint(0, V, (1, 3)), torch.randint(0, V, (1, 5))
    packed, segments = torch.cat((a, b), 1), torch.tensor([[0] * 3 + [1] * 5])
    model = lively(MiniLM(config(position="rope")))
    inside = 2 * model.loss(a) + 4 * model.loss(b)
    border = -model(a)[0, -1].log_softmax(-1)[b[0, 0]]  # from the first document alone
    expected = (inside + border).item() / 7
    assert model.loss(packed, segments=segments).item() == pytest.approx(expected, rel=1e-5)
    assert model.loss(packed).item() != pytest.approx(expected, rel=1e-3)
    mask = torch.tensor([[1, 1, 1, 0, 1, 1, 1, 1]])  # a mask leaves the border out
    without = model.loss(packed, mask, segments).item()
    assert without == pytest.approx(inside.item() / 6, rel=1e-5)


@pytest.mark.parametrize("style", [dict(), dict(position="rope", window=2, qk_norm=True)])
def test_padding_changes_nothing_and_is_never_nan(style):
    model = lively(MiniLM(config(**style)))
    ids = torch.randint(0, V, (2, T))
    segments = torch.zeros(2, T, dtype=torch.long)
    segments[0, 4:] = -1
    segments[1] = -1  # a row of nothing but padding
    mask = segments == 0
    loss = model.loss(ids, mask, segments)
    assert loss.item() == pytest.approx(model.loss(ids[:1, :4]).item(), rel=1e-5)
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert bool(model(ids, segments).isfinite().all())
    used = set(ids[0, :4].tolist())
    padding_only = [i for i in set(ids[:, 4:].flatten().tolist()) | set(ids[1].tolist())]
    untied = lively(MiniLM(config(tied=False, **style)))
    untied.loss(ids, mask, segments).backward()
    for i in padding_only:
        if i not in used:  # the embedding of padding learns nothing
            assert not untied.token_embedding.weight.grad[i].any()


@pytest.mark.parametrize("style", EVERY_STYLE[::11], ids=name)
def test_loss_is_the_loss_of_the_logits(style):
    model = lively(MiniLM(config(**style)))
    ids, mask = torch.randint(0, V, (3, T)), torch.rand(3, T) < 0.5
    for m in (None, mask, torch.zeros(3, T)):
        expected = next_token_loss(model(ids), ids, m).item()
        assert model.loss(ids, m).item() == pytest.approx(expected, rel=1e-5)


def test_loss_takes_one_token_more_than_the_context():
    model = MiniLM(config())
    assert model.loss(torch.zeros(1, T + 1, dtype=torch.long)).isfinite()
    with pytest.raises(ValueError, match=f"^ids: {T + 1} positions, but this model has learned"):
        model.loss(torch.zeros(1, T + 2, dtype=torch.long))
    assert model.loss(torch.zeros(1, 1, dtype=torch.long)).item() == 0
    int32 = torch.randint(0, V, (2, T), dtype=torch.int32)
    assert model.loss(int32).item() == pytest.approx(model.loss(int32.long()).item())


@pytest.mark.parametrize("position", CHOICES["position"])
def test_first_loss_is_ln_v(position):
    model = MiniLM(config(vocab_size=500, d_model=64, position=position))
    ids = torch.randint(0, 500, (64, T))
    # Logits of variance 1/4 cost 1/8 nat beyond a uniform guess.
    assert model.loss(ids).item() == pytest.approx(math.log(500) + 1 / 8, abs=0.08)
    torch.nn.init.normal_(model.token_embedding.weight)  # as torch initialises an embedding
    assert model.loss(ids).item() > math.log(500) + 3


def test_the_residual_stream_starts_no_larger_for_many_layers():
    ids = torch.randint(0, V, (4, T))
    sizes = []
    for n_layers in (2, 16):
        model = MiniLM(config(d_model=64, n_layers=n_layers))
        with record(model) as r, torch.no_grad():
            model(ids)
        sizes.append(r.activations[f"blocks.{n_layers - 1}"].std().item())
    assert sizes[1] < 1.5 * sizes[0]  # it would be √8 times as large without the 1/√(2L)


def test_the_same_seed_gives_the_same_weights():
    made = []
    for _ in range(2):
        torch.manual_seed(3)
        made.append(MiniLM(config()).state_dict())
    assert all(torch.equal(a, b) for a, b in zip(made[0].values(), made[1].values(), strict=True))


def test_one_batch_can_be_learned_by_heart():
    torch.manual_seed(0)
    model, ids = MiniLM(config(d_model=32)), torch.randint(0, V, (4, T))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        loss = model.loss(ids)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.5  # from ln 19 = 2.9; the first token of a row cannot be known better


# ------------------------------------------------------------------ the additions between blocks

# Of the numba backend the joined norms alone: the emulator takes seconds for a whole model.
JOINED = {"layer_norm_residual", "rms_norm_residual"}
SUMS = [dict(norm="layernorm", mlp="gelu_tanh"), dict(norm="rmsnorm", mlp="swiglu", bias=False)]


def block_by_block(model, x):
    """The residual stream as it is written in the paper."""
    for block in model.blocks:
        x = x + block.dropout(block.attention(block.norm1(x)))
        x = x + block.dropout(block.mlp(block.norm2(x)))
    return model.final_norm(x)


@pytest.mark.parametrize("style", SUMS, ids=name)
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_torch_computes_block_by_block_bit_by_bit(style, dropout):
    model = lively(MiniLM(config(dropout=dropout, **style))).train()
    ids = torch.randint(0, V, (2, T))
    results = []
    for through in (model._through_blocks, None):
        model.zero_grad()
        torch.manual_seed(1)
        x = model.token_embedding.weight[ids] + model.position_embedding.weight[:T]
        x = model.dropout(x)
        y = through(x, None, None) if through else block_by_block(model, x)
        y.square().sum().backward()
        results.append([y.detach(), *(p.grad.clone() for p in model.blocks.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    torch.manual_seed(1)
    torch.testing.assert_close(model.hidden(ids), results[0][0])


def loss_and_gradients(model, ids):
    model.zero_grad()
    loss = model.loss(ids)
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters())]


@pytest.mark.parametrize("style", SUMS, ids=name)
def test_joined_additions_change_nothing(style, monkeypatch):
    """On the numba backend: 2 L additions in a norm, and with a hook on a block L of them."""
    model = lively(MiniLM(config(d_model=8, n_heads=2, **style)))
    ids = torch.randint(0, V, (1, 5))
    op = "layer_norm_residual" if style["norm"] == "layernorm" else "rms_norm_residual"
    real, calls, seen = getattr(ops, op), [], []
    monkeypatch.setattr(ops, op, lambda *args: (calls.append(op), real(*args))[1])
    plain = loss_and_gradients(model, ids)
    assert not calls
    with ops.use_backend("numba", only=JOINED):
        joined = loss_and_gradients(model, ids)
        assert len(calls) == 4
        model.blocks[1].register_forward_hook(lambda *_: seen.append("block"))
        hooked = loss_and_gradients(model, ids)
        assert len(calls) == 4 + 2 and seen == ["block"]
    for a, b, c in zip(joined, hooked, plain, strict=True):
        size = c.abs().max()
        assert (a - b).abs().max() <= 1e-5 * size and (a - c).abs().max() <= 1e-5 * size


@pytest.mark.parametrize("backend", ops.BACKENDS)
@pytest.mark.parametrize("where", ["blocks.0", "blocks.1", "final_norm"])
def test_hooks_of_blocks_see_the_stream(where, backend):
    model = lively(MiniLM(config(d_model=8, n_heads=2)))
    ids, seen = torch.randint(0, V, (1, 5)), {}
    module = model.get_submodule(where)
    handles = [
        module.register_forward_pre_hook(lambda m, args: seen.update(before=args[0])),
        module.register_forward_hook(lambda m, args, out: seen.update(after=out)),
        module.register_full_backward_hook(lambda m, dx, dy: seen.update(gradient=dy[0])),
    ]
    with ops.use_backend(backend, only=JOINED):
        model.loss(ids).backward()
    assert seen["before"].shape == seen["after"].shape == seen["gradient"].shape == (1, 4, 8)
    for handle in handles:
        handle.remove()
    x = model.token_embedding.weight[ids[:, :4]] + model.position_embedding.weight[:4]
    for block in model.blocks[: {"blocks.0": 0, "blocks.1": 1, "final_norm": 2}[where]]:
        x = block(x)
    torch.testing.assert_close(seen["before"], x, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(seen["after"], module(x), rtol=1e-4, atol=1e-5)


KINDS = ("forward_pre_hook", "forward_hook", "full_backward_pre_hook", "full_backward_hook")


@pytest.mark.parametrize("kind", KINDS)
def test_hooks_of_every_kind_and_place_fire_on_both_backends(kind):
    """One of each model's modules after the other; all at once would hide that one is skipped."""
    places = ("blocks.0", "blocks.1.norm1", "blocks.1.norm2", "final_norm")
    model, ids = lively(MiniLM(config(d_model=8, n_heads=2))), torch.randint(0, V, (1, 3))
    for where in places:
        for backend in ops.BACKENDS:
            seen, module = [], model.get_submodule(where)
            handle = getattr(module, f"register_{kind}")(lambda *_, s=seen: s.append(1) and None)
            with ops.use_backend(backend, only=JOINED):
                model.loss(ids).backward()
            handle.remove()
            assert seen == [1], (where, backend)


def test_a_recording_is_the_same_on_both_backends():
    model = lively(MiniLM(config(d_model=8, n_heads=2)))
    ids, recorded = torch.randint(0, V, (1, 4)), {}
    for backend in ops.BACKENDS:
        model.zero_grad()
        with ops.use_backend(backend), record(model) as r:
            model.loss(ids).backward()
        recorded[backend] = r.activations | {f"d {n}": g for n, g in r.activation_gradients.items()}
    assert recorded["torch"].keys() == recorded["numba"].keys()
    for n, expected in recorded["torch"].items():
        torch.testing.assert_close(recorded["numba"][n], expected, rtol=1e-4, atol=1e-5, msg=n)


def test_tied_is_one_matrix():
    tied, untied = MiniLM(config()), MiniLM(config(tied=False))
    assert tied.head_weight is tied.token_embedding.weight and tied.head is None
    assert untied.head_weight is untied.head.weight
    assert untied.num_parameters() - tied.num_parameters() == V * 16


def test_number_of_parameters_is_12_l_c_squared_plus_v_c():
    L, C = 3, 24
    shape = dict(d_model=C, n_layers=L, norm="rmsnorm", position="rope", bias=False)
    counts = set()
    for H in (1, 2, 4, 12):  # H is not in the formula
        model = MiniLM(config(n_heads=H, **shape))
        counts.add(model.num_parameters())
        assert model.num_parameters(non_embedding=True) == model.num_parameters() - V * C
    assert counts == {12 * L * C**2 + V * C + (2 * L + 1) * C}
    with_bias = MiniLM(config(**(shape | dict(bias=True, position="learned", norm="layernorm"))))
    biases = L * (3 * C + C + 4 * C + C) + (2 * L + 1) * C
    assert with_bias.num_parameters() == counts.pop() + biases + T * C
    by_hand = with_bias.num_parameters() - V * C - T * C
    assert with_bias.num_parameters(non_embedding=True) == by_hand


def test_published_sizes():
    llama = ModelConfig.llama(  # Llama 3.2 1B
        vocab_size=128256,
        context_length=64,
        d_model=2048,
        n_layers=16,
        n_heads=32,
        n_kv_heads=8,
        d_ff=8192,
        tied=True,
    )
    with torch.device("meta"):  # shapes without memory
        assert MiniLM(PRESETS["gpt2"]).num_parameters() == 124_439_808
        assert MiniLM(llama).num_parameters() == 1_235_814_400


def test_presets():
    assert set(PRESETS) == {"tiny", "small", "gpt2"}
    tiny = MiniLM(PRESETS["tiny"])
    assert 0.8e6 < tiny.num_parameters() < 1.3e6
    assert PRESETS["gpt2"].d_ff == 3072 and PRESETS["small"].mlp == "swiglu"


@pytest.mark.parametrize("style", [{}, dict(n_kv_heads=2, mlp="swiglu"), dict(tied=False)])
def test_flops_are_those_that_torch_counts(style):
    """Every matrix product of a forward pass, with attention in the open, is counted."""
    model = MiniLM(config(bias=False, **style))
    ids = torch.zeros(2, T, dtype=torch.long)
    with record(model), FlopCounterMode(display=False) as counter:
        model(ids)
    assert model.flops_per_token() * ids.numel() == 3 * counter.get_total_flops()
    assert model.flops_per_token(T=4) < model.flops_per_token()


def test_no_parameter_depends_on_the_context_length_with_rope():
    shapes = [
        {
            name: p.shape
            for name, p in MiniLM(config(position=p, context_length=t)).state_dict().items()
        }
        for p, t in (("rope", T), ("rope", 50), ("learned", T), ("learned", 50))
    ]
    assert shapes[0] == shapes[1] and shapes[2] != shapes[3]


@torch.no_grad()
def test_past_the_context_length():
    ids = torch.randint(0, V, (1, T + 1))
    learned = MiniLM(config())
    words = rf"^ids: {T + 1} positions, but this model has learned {T} \(context_length\)$"
    with pytest.raises(ValueError, match=words):
        learned(ids)
    cache = learned.new_cache(1, max_length=20)
    learned(ids[:, :T], cache=cache)
    with pytest.raises(ValueError, match=words):
        learned(ids[:, T:], cache=cache)
    assert MiniLM(config(position="rope"))(ids).shape == (1, T + 1, V)


@torch.no_grad()
def test_the_model_in_bf16():
    model = lively(MiniLM(config(position="rope", norm="rmsnorm", mlp="swiglu", qk_norm=True)))
    ids = torch.randint(0, V, (2, T))
    full = model(ids)
    rough = model.bfloat16()(ids)
    assert rough.dtype == torch.bfloat16
    assert (rough.float() - full).norm() < 0.05 * full.norm()
    assert model.loss(ids).dtype == torch.float32
    assert model.new_cache(2).keys.dtype == torch.bfloat16


def test_dropout_only_in_training():
    model = MiniLM(config(dropout=0.3))
    ids = torch.randint(0, V, (2, T))
    assert not torch.equal(model(ids), model(ids))
    model.eval()
    assert torch.equal(model(ids), model(ids))


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        (torch.tensor([[0, V]]), f"must be 0 to {V - 1}, got {V}"),
        (torch.tensor([[-1, 0]]), f"must be 0 to {V - 1}, got -1"),
        (torch.tensor([0, 1]), r"must be \(B, T\) of int64, got \(2,\) of torch.int64"),
        (torch.zeros(1, 2), r"must be \(B, T\) of int64, got \(1, 2\) of torch.float32"),
    ],
)
def test_bad_ids(ids, words):
    with pytest.raises(ValueError, match=f"^ids: {words}$"):
        MiniLM(config())(ids)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(vocab_size=0), "vocab_size: must be a positive whole number, got 0"),
        (dict(context_length=-1), "context_length: must be a positive whole number, got -1"),
        (dict(d_model=1.5), "d_model: must be a positive whole number, got 1.5"),
        (dict(n_layers=True), "n_layers: must be a positive whole number, got True"),
        (dict(n_heads="4"), "n_heads: must be a positive whole number, got '4'"),
        (dict(n_kv_heads=0), "n_kv_heads: must be a positive whole number, got 0"),
        (dict(n_kv_heads=3), "n_kv_heads: must be a divisor of n_heads = 4, got 3"),
        (dict(d_model=18), "d_model: must be a multiple of n_heads = 4, got 18"),
        (dict(head_dim=0), "head_dim: must be a positive whole number, got 0"),
        (dict(head_dim=5, position="rope"), "head_dim: must be even with position='rope', got 5"),
        (dict(d_ff=-4), "d_ff: must be a positive whole number, got -4"),
        (dict(norm="batch"), "norm: must be 'layernorm' or 'rmsnorm', got 'batch'"),
        (dict(mlp="relu"), "mlp: must be 'gelu' or 'gelu_tanh' or 'swiglu', got 'relu'"),
        (dict(position=None), "position: must be 'learned' or 'rope', got None"),
        (dict(window=0), "window: must be None or at least 1, got 0"),
        (dict(norm_eps=0), "norm_eps: must be a number above 0, got 0"),
        (dict(rope_theta="big"), "rope_theta: must be a number above 0, got 'big'"),
        (dict(rope_scaling="linear"), "rope_scaling: must be None or a dict, got 'linear'"),
        (dict(dropout=1.0), "dropout: must be at least 0 and below 1, got 1.0"),
        (dict(dropout="x"), "dropout: must be at least 0 and below 1, got 'x'"),
        (dict(bias=1), "bias: must be True or False, got 1"),
        (dict(qkv_bias="no"), "qkv_bias: must be True or False, got 'no'"),
        (dict(qk_norm=None), "qk_norm: must be True or False, got None"),
        (dict(tied="yes"), "tied: must be True or False, got 'yes'"),
        (dict(causal=0), "causal: must be True or False, got 0"),
    ],
)
def test_config_errors(changes, message):
    with pytest.raises(ValueError) as error:
        config(**changes)
    assert str(error.value) == message


def test_config_fills_in_what_is_left_open():
    made = config()
    assert (made.n_kv_heads, made.head_dim, made.d_ff, made.qkv_bias) == (4, 4, 64, True)
    gated = config(mlp="swiglu", d_model=128, bias=False)
    assert gated.d_ff == 344 and gated.d_ff % 8 == 0 and gated.qkv_bias is False
    odd = config(d_model=18, head_dim=6)
    assert MiniLM(odd)(torch.zeros(1, 2, dtype=torch.long)).shape == (1, 2, V)
    with pytest.raises(AttributeError):
        made.d_model = 3


@pytest.mark.parametrize(
    "made",
    [
        *PRESETS.values(),
        config(rope_scaling={"rope_type": "linear", "factor": 2.0}, position="rope", window=4),
    ],
)
def test_config_through_json_and_back(made):
    assert ModelConfig.from_dict(json.loads(json.dumps(made.to_dict()))) == made


def test_config_from_a_bad_dict():
    values = config().to_dict()
    with pytest.raises(ValueError, match="^config: unknown field 'colour', allowed are "):
        ModelConfig.from_dict(values | {"colour": 1})
    del values["vocab_size"]
    with pytest.raises(ValueError, match="^config: missing .* 'vocab_size'$"):
        ModelConfig.from_dict(values)
