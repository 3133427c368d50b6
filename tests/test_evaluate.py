"""evaluate(): every token once, nats turned into bits, and only targets counted."""

import math

import numpy as np
import pytest
import torch

from minilm.data import TokenStream
from minilm.evaluate import batch_loss, count_targets, evaluate
from minilm.loss import next_token_loss
from minilm.model import MiniLM, ModelConfig

CONFIG = ModelConfig(
    vocab_size=50, context_length=8, d_model=16, n_layers=1, n_heads=2, position="rope"
)


def make_stream(n: int, n_bytes: int | None = 1000) -> TokenStream:
    ids = np.random.default_rng(n).integers(0, 50, n)
    return TokenStream(ids, n_bytes, 50)


@pytest.mark.parametrize("n", [2, 9, 10, 17, 100])
def test_every_token_but_the_first_is_predicted_once(n):
    model, stream = MiniLM(CONFIG), make_stream(n)
    total = 0.0
    for start in range(0, n - 1, 8):  # one window at a time, by hand
        row = torch.from_numpy(stream.ids[start : start + 9].astype(np.int64))[None]
        with torch.no_grad():
            logits = model(row[:, :-1])[0].log_softmax(-1)
        total -= logits[torch.arange(row.shape[1] - 1), row[0, 1:]].sum().item()
    result = evaluate(model, stream, batch_size=3)
    assert result.tokens == n - 1 and result.bytes == 1000
    assert result.loss == pytest.approx(total / (n - 1), rel=1e-5)
    assert result.bits_per_byte == pytest.approx(total / math.log(2) / 1000, rel=1e-5)


def test_the_windows_may_be_shorter_or_longer_than_the_model_was_made_for():
    model, stream = MiniLM(CONFIG), make_stream(41)
    for T in (5, 20):
        rows = torch.from_numpy(stream.ids.astype(np.int64)).unfold(0, T + 1, T)
        expected = model.loss(rows).item()  # 40 targets are whole windows of either length
        result = evaluate(model, stream, context_length=T)
        assert result.tokens == 40 and result.loss == pytest.approx(expected, rel=1e-5)
    assert evaluate(model, stream, context_length=5) != evaluate(model, stream)


def test_the_matrix_products_may_be_bfloat16():
    model, stream = MiniLM(CONFIG), make_stream(100)
    full, half = evaluate(model, stream), evaluate(model, stream, dtype="bfloat16")
    assert half.loss != full.loss and half.loss == pytest.approx(full.loss, rel=1e-2)
    with pytest.raises(ValueError, match="dtype: must be float32, bfloat16 or float16, got int8"):
        evaluate(model, stream, dtype=torch.int8)


def test_a_model_that_sees_the_next_token_is_not_asked_for_it():
    model = MiniLM(ModelConfig.from_dict(CONFIG.to_dict() | {"causal": False}))
    with pytest.raises(ValueError, match="not causal and sees the next token"):
        evaluate(model, make_stream(30))


def test_unknown_bytes_give_no_bits_per_byte():
    assert evaluate(MiniLM(CONFIG), make_stream(30, None)).bits_per_byte is None


def test_batches_are_weighted_by_their_targets():
    model = MiniLM(CONFIG)
    ids = torch.randint(0, 50, (4, 8), generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(4, 8, dtype=torch.bool)
    mask[0, 1:] = True  # 7 targets
    mask[1, 5] = True  # 1 target
    batches = [{"ids": ids[i : i + 1], "mask": mask[i : i + 1]} for i in range(4)]
    result = evaluate(model, batches)
    whole = next_token_loss(model(ids), ids, mask).item()
    assert result.tokens == 8 and result.loss == pytest.approx(whole, rel=1e-5)
    means = [batch_loss(model, b).item() for b in batches[:2]]
    assert abs(sum(means) / 2 - whole) > 1e-4  # control: a mean of means is something else


def test_count_targets_is_what_the_loss_divides_by():
    ids = torch.zeros(2, 5, dtype=torch.int64)
    mask = torch.tensor([[1, 1, 0, 0, 1], [1, 0, 0, 0, 0]], dtype=torch.bool)
    segments = torch.tensor([[0, 0, 0, 1, -1], [0, -1, -1, -1, -1]])
    assert count_targets({"ids": ids}) == 8
    assert count_targets({"ids": ids, "mask": mask}) == 2
    assert count_targets({"ids": ids, "segments": segments}) == 3
    assert count_targets({"ids": ids, "mask": mask, "segments": segments}) == 1
    assert count_targets({"ids": ids, "targets": ids, "mask": mask}) == 4


def test_no_target_is_an_error():
    batch = {"ids": torch.zeros(1, 4, dtype=torch.int64), "mask": torch.zeros(1, 4)}
    with pytest.raises(ValueError, match="no target"):
        evaluate(MiniLM(CONFIG), [batch])


def test_a_tokenizer_of_another_model_is_refused():
    with pytest.raises(ValueError, match="60 tokens, the model only 50"):
        evaluate(MiniLM(CONFIG), TokenStream([1, 2, 3], 3, 60))


def test_the_mode_of_the_model_is_restored_and_dropout_is_off():
    config = ModelConfig.from_dict(CONFIG.to_dict() | {"dropout": 0.5})
    model, stream = MiniLM(config).train(), make_stream(50)
    assert evaluate(model, stream) == evaluate(model, stream)
    assert model.training
    assert all(p.grad is None for p in model.parameters())
