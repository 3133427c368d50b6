"""The two losses against loops: the shift, the mask, the mean over the whole batch."""

import math

import pytest
import torch

from minilm.loss import IGNORE, masked_token_loss, next_token_loss, shift_targets


def surprisal(logits, target):
    """Nats, in plain Python."""
    values = logits.tolist()
    top = max(values)
    return top + math.log(sum(math.exp(v - top) for v in values)) - values[target]


def by_loops(logits, ids, mask, shift):
    terms = []
    for b in range(ids.shape[0]):
        for t in range(shift, ids.shape[1]):
            if mask is None or mask[b, t]:
                terms.append(surprisal(logits[b, t - shift], int(ids[b, t])))
    return sum(terms) / len(terms) if terms else 0.0


@pytest.fixture
def batch():
    return torch.randn(3, 5, 7, dtype=torch.float64), torch.randint(0, 7, (3, 5))


MASKS = {
    "none": None,
    "all": torch.ones(3, 5),
    "unequal rows": torch.tensor([[0, 0, 0, 0, 1], [0, 1, 1, 1, 1], [0, 0, 0, 0, 0]]),
    "first column only": torch.tensor([[1, 0, 0, 0, 0]] * 3),
    "nothing": torch.zeros(3, 5, dtype=torch.bool),
}


@pytest.mark.parametrize("name", MASKS)
def test_next_token_loss_is_the_loop(batch, name):
    logits, ids = batch
    mask = MASKS[name]
    expected = by_loops(logits, ids, mask, shift=1)
    assert next_token_loss(logits, ids, mask).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", [name for name in MASKS if name != "none"])
def test_masked_token_loss_is_the_loop_without_shift(batch, name):
    logits, ids = batch
    expected = by_loops(logits, ids, MASKS[name], shift=0)
    assert masked_token_loss(logits, ids, MASKS[name]).item() == pytest.approx(expected, abs=1e-12)


def test_the_two_losses_differ_by_the_shift(batch):
    logits, ids = batch
    everything = torch.ones(3, 5)
    causal = next_token_loss(logits, ids, everything)
    assert abs(causal - masked_token_loss(logits, ids, everything)) > 1e-3
    shifted = masked_token_loss(logits[:, :-1], ids[:, 1:], everything[:, 1:])
    assert causal.item() == pytest.approx(shifted.item())


def test_unequal_rows_weigh_by_their_targets(batch):
    logits, ids = batch
    mask = MASKS["unequal rows"]
    rows = [next_token_loss(logits[b : b + 1], ids[b : b + 1], mask[b : b + 1]) for b in range(3)]
    whole = next_token_loss(logits, ids, mask)
    assert whole.item() == pytest.approx((1 * rows[0] + 4 * rows[1] + 0 * rows[2]).item() / 5)
    of_means = (rows[0] + rows[1]) / 2  # what the loss must not be
    assert abs(whole - of_means) > 1e-2


def test_gradient_is_p_minus_one_hot_and_exactly_zero_where_nothing_is_asked(batch):
    logits, ids = batch
    logits.requires_grad_()
    mask = MASKS["unequal rows"]
    next_token_loss(logits, ids, mask).backward()
    p = logits.detach().softmax(-1)
    for b in range(3):
        for t in range(5):
            asked = t + 1 < 5 and bool(mask[b, t + 1])
            if not asked:
                assert not logits.grad[b, t].any()
                continue
            expected = p[b, t].clone()
            expected[ids[b, t + 1]] -= 1
            torch.testing.assert_close(logits.grad[b, t], expected / 5)


def test_without_targets_the_loss_and_all_gradients_are_zero(batch):
    logits, ids = batch
    for loss in (next_token_loss, masked_token_loss):
        logits = logits.detach().requires_grad_()
        value = loss(logits, ids, MASKS["nothing"])
        value.backward()
        assert value.item() == 0 and not logits.grad.any()


@pytest.mark.parametrize("name", ["all", "unequal rows", "nothing"])
def test_gradcheck(batch, name):
    logits, ids = batch[0].requires_grad_(), batch[1]
    for loss in (next_token_loss, masked_token_loss):
        assert torch.autograd.gradcheck(lambda x, f=loss: f(x, ids, MASKS[name]), logits)


def test_one_token_has_no_next_one():
    assert next_token_loss(torch.randn(2, 1, 4), torch.zeros(2, 1, dtype=torch.long)).item() == 0


def test_shift_targets():
    ids = torch.tensor([[4, 5, 6, 7]])
    assert shift_targets(ids).tolist() == [[5, 6, 7]]
    kept = shift_targets(ids, torch.tensor([[1, 0, 1, 0]]))
    assert kept.tolist() == [[IGNORE, 6, IGNORE]]


def test_errors_name_the_argument(batch):
    logits, ids = batch
    with pytest.raises(ValueError, match=r"^logits: shape must be .*\(3, 4\), got \(3, 5, 7\)$"):
        next_token_loss(logits, ids[:, 1:])
    with pytest.raises(ValueError, match=r"^logits: .* that of targets"):
        masked_token_loss(logits[:2], ids, torch.ones(3, 5))
    for mask in (torch.ones(3, 4), torch.ones(5), torch.ones(1, 5)):
        with pytest.raises(ValueError, match=r"^mask: shape must be that of the ids, \(3, 5\)"):
            next_token_loss(logits, ids, mask)
