"""Norm, the two MLPs, and the block, each against its formula."""

import pytest
import torch

from minilm import MLP, Block, ModelConfig, Norm, SwiGLU, ops


def config(**changes):
    sizes = dict(vocab_size=17, context_length=12, d_model=24, n_layers=1, n_heads=4)
    return ModelConfig(**(sizes | changes))


def scramble(module):
    for p in module.parameters():
        torch.nn.init.normal_(p, std=0.5)
    return module.double()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["layernorm", "rmsnorm"])
def test_norm(kind, bias):
    norm = scramble(Norm(config(norm=kind, bias=bias, norm_eps=0.01)))
    x = 3 + 2 * torch.randn(2, 5, 24, dtype=torch.float64)
    names = [name for name, _ in norm.named_parameters()]
    assert names == (["weight", "bias"] if kind == "layernorm" and bias else ["weight"])
    centred = x - x.mean(-1, keepdim=True) if kind == "layernorm" else x
    expected = centred / (centred.pow(2).mean(-1, keepdim=True) + 0.01).sqrt() * norm.weight
    torch.testing.assert_close(norm(x), expected if norm.bias is None else expected + norm.bias)


@pytest.mark.parametrize(("kind", "approximate"), [("gelu", "none"), ("gelu_tanh", "tanh")])
def test_mlp(kind, approximate):
    mlp, x = scramble(MLP(config(mlp=kind))), torch.randn(2, 5, 24, dtype=torch.float64)
    assert mlp.up.weight.shape == (96, 24)
    hidden = torch.nn.GELU(approximate)(x @ mlp.up.weight.T + mlp.up.bias)
    torch.testing.assert_close(mlp(x), hidden @ mlp.down.weight.T + mlp.down.bias)


def test_swiglu_gate_comes_first():
    mlp, x = (
        scramble(SwiGLU(config(mlp="swiglu", bias=False, d_ff=40))),
        torch.randn(3, 24).double(),
    )
    gate, up = x @ mlp.gate_up.weight[:40].T, x @ mlp.gate_up.weight[40:].T
    expected = (gate * gate.sigmoid() * up) @ mlp.down.weight.T
    torch.testing.assert_close(mlp(x), expected)
    swapped = (up * up.sigmoid() * gate) @ mlp.down.weight.T
    assert (swapped - expected).abs().max() > 1e-2


@pytest.mark.parametrize("kind", ["layernorm", "rmsnorm"])
def test_norm_of_a_sum(kind):
    norm = scramble(Norm(config(norm=kind)))
    x, branch = torch.randn(2, 2, 5, 24, dtype=torch.float64)
    y, total = norm.of_sum(x, branch)
    assert torch.equal(total, x + branch) and torch.equal(y, norm(x + branch))


@pytest.mark.parametrize(("kind", "op"), [("layernorm", "layer_norm"), ("rmsnorm", "rms_norm")])
def test_who_joins_an_addition_and_a_norm(kind, op):
    """A backend that has the operation, and of several norms the right one."""
    norm = Norm(config(norm=kind))
    assert not norm.joins()
    with ops.use_backend("numba"):
        assert norm.joins()
    with ops.use_backend("numba", only={f"{op}_residual"}):
        assert norm.joins()
    other = {"layer_norm", "rms_norm", "layer_norm_residual", "rms_norm_residual"}
    with ops.use_backend("numba", only=other - {f"{op}_residual"}):
        assert not norm.joins()


@pytest.mark.parametrize("kind", ["layernorm", "rmsnorm"])
def test_norm_of_a_sum_on_the_numba_backend(kind):
    norm = Norm(config(norm=kind))
    x, branch = torch.randn(2, 1, 3, 24)
    expected = norm.of_sum(x, branch)
    with ops.use_backend("numba"):
        ours = norm.of_sum(x, branch)
    for got, right in zip(ours, expected, strict=True):
        torch.testing.assert_close(got, right, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("mlp", ["gelu", "swiglu"])
def test_block_adds_both_halves_to_the_stream(mlp):
    block = scramble(Block(config(mlp=mlp)))
    x = torch.randn(2, 5, 24, dtype=torch.float64)
    middle = x + block.attention(block.norm1(x))
    torch.testing.assert_close(block(x), middle + block.mlp(block.norm2(middle)))
    parallel = x + block.attention(block.norm1(x)) + block.mlp(block.norm2(x))
    assert (parallel - block(x)).abs().max() > 1e-2  # the MLP reads what attention has written


@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm"])
@pytest.mark.parametrize("mlp", ["gelu_tanh", "swiglu"])
def test_halves_leave_the_last_addition(mlp, norm):
    """(x, branch) stands for x + branch, before and after; bit by bit, dropout included."""
    first, second = (Block(config(mlp=mlp, norm=norm, dropout=0.1)) for _ in range(2))
    x = torch.randn(2, 5, 24)
    torch.manual_seed(5)
    whole = second(first(x))
    torch.manual_seed(5)
    halves = second.halves(*first.halves(x, None))
    assert torch.equal(sum(halves), whole)
    torch.manual_seed(5)
    expected = x
    for block in (first, second):
        expected = expected + block.dropout(block.attention(block.norm1(expected)))
        expected = expected + block.dropout(block.mlp(block.norm2(expected)))
    assert torch.equal(whole, expected)


def test_dropout_only_in_training():
    block, x = Block(config(dropout=0.5)), torch.randn(2, 5, 24)
    assert not torch.equal(block(x), block(x))
    block.eval()
    assert torch.equal(block(x), block(x))
