"""Claim f: a parameter's gradient is a sum over batch rows, over positions and, upstream of
attention, over heads. Three identities, each adding up to `.grad`; each with a control."""

import pytest
import torch

from minilm import MiniLM, ModelConfig, ops, record

B, T, C, H, V = 4, 7, 12, 3, 11
EXACT = 1e-12  # of float64 sums


def make(**changes):
    sizes = dict(vocab_size=V, context_length=T, d_model=C, n_layers=2, n_heads=H, tied=False)
    model = MiniLM(ModelConfig(**(sizes | changes))).double()
    for p in model.parameters():
        torch.nn.init.normal_(p, mean=float(p.ndim == 1), std=0.3)
    return model


def batch():
    """Rows with 6, 1, 3 and 0 targets."""
    mask = torch.zeros(B, T, dtype=torch.bool)
    mask[0], mask[1, 4], mask[2, 4:] = True, True, True
    return torch.randint(0, V, (B, T)), mask


def gradients(model, loss) -> dict[str, torch.Tensor]:
    named = dict(model.named_parameters())
    values = torch.autograd.grad(loss, list(named.values()), retain_graph=True, allow_unused=True)
    zeros = (torch.zeros_like(p) for p in named.values())
    pairs = zip(named, values, zeros, strict=True)
    return {name: zero if g is None else g for name, g, zero in pairs}


def add_up(parts, whole) -> bool:
    """Do the parts, dicts of tensors, add up to the whole?"""
    return all(
        torch.allclose(sum(part[name] for part in parts), whole[name], rtol=EXACT, atol=EXACT)
        for name in whole
    )


def grads(model) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("position", ["learned", "rope"])
def test_a_gradient_is_a_sum_over_batch_rows(position):
    model = make(position=position)
    ids, mask = batch()
    model.loss(ids, mask).backward()
    whole = grads(model)

    n = [int(row[1:].sum()) for row in mask]  # targets of each row
    assert n == [6, 1, 3, 0]
    row_losses = [model.loss(ids[b : b + 1], mask[b : b + 1]) for b in range(B)]
    # One normaliser for all: a row's share is the sum of its terms over the batch's targets.
    shares = [gradients(model, row_losses[b] * n[b] / sum(n)) for b in range(B)]
    assert add_up(shares, whole)
    assert not any(g.any() for g in shares[3].values())  # the row that asks for nothing

    # Control: the mean of per-row means is another number, and so are its gradients.
    rows_with_targets = 3
    means = [gradients(model, loss / rows_with_targets) for loss in row_losses]
    assert not add_up(means, whole)


def test_without_a_mask_per_row_means_add_up_too():
    """Which is why the mistake goes unnoticed until rows differ."""
    model = make()
    ids, _ = batch()
    model.loss(ids).backward()
    means = [gradients(model, model.loss(ids[b : b + 1]) / B) for b in range(B)]
    assert add_up(means, grads(model))


def inputs_and_deltas(model, ids, mask):
    """For some matrices: the x_t that they multiply and δ_t, the gradients of what they give."""
    with record(model) as r:
        logits = model(ids[:, :-1])
    logits.retain_grad()
    targets = ids[:, 1:].masked_fill(~mask[:, 1:], -100)
    ops.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
    a, g = r.activations, r.activation_gradients

    def heads_joined(tensors, names):
        return torch.cat([tensors[name].transpose(1, 2).flatten(2) for name in names], dim=-1)

    pairs = {"head.weight": (a["final_norm"], logits.grad)}
    for i, block in enumerate(model.blocks):
        name, before = f"blocks.{i}.attention", "embedding" if i == 0 else f"blocks.{i - 1}"
        x = block.norm1(a[before]).detach()
        deltas = heads_joined(g, [f"{name}.{part}" for part in "qkv"])
        pairs[f"{name}.qkv.weight"] = (x, deltas)
        pairs[f"{name}.out.weight"] = (heads_joined(a, [f"{name}.out"]), g[name])
    return {name: (x.flatten(0, 1), d.flatten(0, 1)) for name, (x, d) in pairs.items()}, r


def test_a_gradient_is_a_sum_over_positions():
    model = make()
    ids, mask = batch()
    pairs, r = inputs_and_deltas(model, ids, mask)
    whole = {name: model.get_parameter(name).grad for name in pairs}
    assert len(pairs) == 5
    # dW = Σ δ_t ⊗ x_t, one outer product for each position of each row.
    n_positions = B * (T - 1)
    parts = [
        {name: torch.outer(d[t], x[t]) for name, (x, d) in pairs.items()}
        for t in range(n_positions)
    ]
    assert add_up(parts, whole)
    # Control: without the first position of row 0, which is asked a question, nothing adds up.
    without = parts[1:]
    for name in whole:
        assert not add_up([{name: p[name]} for p in without], {name: whole[name]})

    # An embedding's row is the sum over the positions where its token stands.
    delta = r.activation_gradients["embedding"]
    table = torch.zeros(V, C, dtype=torch.float64)
    for b in range(B):
        for t in range(T - 1):
            table[ids[b, t]] += delta[b, t]
    assert add_up([{"": table}], {"": model.token_embedding.weight.grad})
    assert add_up(
        [{"": delta[b]} for b in range(B)], {"": model.position_embedding.weight.grad[:-1]}
    )


def loss_along(model, ids, live):
    """The loss of a model of one layer, with gradients only along the paths in `live`: the heads
    0 … H − 1, and "residual", the way past them."""
    block, attention = model.blocks[0], model.blocks[0].attention
    x = ops.embedding(ids[:, :-1], model.token_embedding.weight)
    y = attention.out.bias.detach()
    for h in range(H):
        q, k, v = (z[:, h : h + 1] for z in attention.project(block.norm1(x)))
        out = ops.attention(q, k, v)[:, 0]  # (B, T, D)
        out = out if h in live else out.detach()
        columns = slice(h * attention.head_dim, (h + 1) * attention.head_dim)
        y = y + out @ attention.out.weight[:, columns].detach().T
    stream = (x if "residual" in live else x.detach()) + y
    stream = stream + block.mlp(block.norm2(stream))
    logits = model.final_norm(stream) @ model.head_weight.T
    return ops.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


UPSTREAM = ("token_embedding.weight", "blocks.0.norm1.weight", "blocks.0.attention.qkv.weight")


def test_upstream_of_attention_a_gradient_is_a_sum_over_heads():
    model = make(n_layers=1, position="rope")
    ids, _ = batch()
    model.loss(ids).backward()
    whole = {name: model.get_parameter(name).grad for name in UPSTREAM}
    paths = ["residual", *range(H)]
    every = gradients(model, loss_along(model, ids, paths))
    assert add_up([every], whole)  # the model taken apart is still the model

    parts = [gradients(model, loss_along(model, ids, [path])) for path in paths]
    parts = [{name: part[name] for name in UPSTREAM} for part in parts]
    assert add_up(parts, whole)
    assert not add_up(parts[1:], whole)  # control: the residual path is one of them
    assert not add_up(parts[:-1], whole)  # control: and so is each head

    # The matrices of head h learn from the path through head h alone.
    D = C // H
    for h, part in enumerate(parts[1:]):
        by_head = part["blocks.0.attention.qkv.weight"].view(3, H, D, C)
        for other in range(H):
            assert bool(by_head[:, other].any()) == (other == h)
