"""Claim b: pre-training pairs are one stream shifted by one; fine-tuning pairs are prompt‖target,
padded or truncated to T, with the loss only where it belongs; the causal and the masked-LM
objective share backward and optimizer step.

Every assertion is a function that raises. It is called on the package, and in a control on broken
variants that it must reject.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from minilm.corruption import corrupt
from minilm.data import PADDING, TokenStream
from minilm.loss import masked_token_loss, next_token_loss
from minilm.model import MiniLM, ModelConfig
from minilm.optim import AdamW
from minilm.pairs import pair_batch

T = 8
PROMPT, TARGET, EOT, PAD, MASK = range(0, 20), range(20, 40), 40, 41, 42
V = 43


def small_model(seed=0, causal=True, layers=2):
    """A model in float64, one position longer than T so that whole rows of T + 1 go through it."""
    torch.manual_seed(seed)
    config = ModelConfig(
        vocab_size=V, context_length=T + 1, d_model=16, n_layers=layers, n_heads=2, causal=causal
    )
    return MiniLM(config).double()


def rejects(assertion, *arguments, **options) -> bool:
    try:
        assertion(*arguments, **options)
    except AssertionError:
        return True
    return False


# ---- pre-training pairs


def targets_that_a_loss_learns(loss_function, ids):
    """The target of each position, read off the loss itself: with equal logits, only the
    target's own logit has a gradient below 0. −1 where the position has no target."""
    logits = torch.zeros(*ids.shape, 64, dtype=torch.float64, requires_grad=True)
    loss_function(logits, ids).backward()
    low, target = logits.grad.min(dim=-1)
    return torch.where(low < 0, target, -1)


def assert_one_stream_shifted_by_one(stream, rows, loss_function=next_token_loss):
    """Inputs are consecutive in the stream and each target is the id that follows its input.

    The stream holds every id once, so an id tells its place.
    """
    place = np.empty(64, dtype=np.int64)
    place[stream.ids] = np.arange(len(stream))
    targets = targets_that_a_loss_learns(loss_function, rows)
    at = torch.from_numpy(place[rows.numpy()])
    assert (at[:, 1:] == at[:, :-1] + 1).all(), "a row is not a piece of the stream"
    assert (targets[:, -1] == -1).all(), "the last id of a row has no target within it"
    assert (targets[:, :-1] >= 0).all(), "a position has no target"
    assert (place[targets[:, :-1].numpy()] == at[:, :-1].numpy() + 1).all(), "a wrong target"


@pytest.fixture
def stream():
    return TokenStream(np.random.default_rng(0).permutation(64), vocab_size=64)


def test_pretraining_pairs_are_one_stream_shifted_by_one(stream):
    g = torch.Generator().manual_seed(0)
    batches = [stream.random_batch(6, T, g), *(stream.batch_at(s, 6, T) for s in range(5))]
    batches += [b for b in stream.sequential_batches(3, T) if "mask" not in b]
    for batch in batches:
        assert batch["ids"].shape[1] == T + 1
        assert_one_stream_shifted_by_one(stream, batch["ids"])


def test_control_builders_and_losses_that_are_off_by_one(stream):
    def no_shift(logits, ids):
        return F.cross_entropy(logits.flatten(0, 1), ids.flatten())

    def shift_twice(logits, ids):
        return F.cross_entropy(logits[:, :-2].flatten(0, 1), ids[:, 2:].flatten())

    def shift_the_wrong_way(logits, ids):
        return F.cross_entropy(logits[:, 1:].flatten(0, 1), ids[:, :-1].flatten())

    rows = stream.batch_at(0, 6, T)["ids"]
    for broken in (no_shift, shift_twice, shift_the_wrong_way):
        assert rejects(assert_one_stream_shifted_by_one, stream, rows, broken)
    ids = torch.from_numpy(stream.ids.astype(np.int64))
    inputs, late = ids[0:T], ids[2 : T + 2]  # a builder whose targets start one id too late
    assert rejects(assert_one_stream_shifted_by_one, stream, torch.cat([inputs, late[-1:]])[None])
    from_two_places = torch.cat([ids[0:4], ids[20 : 20 + T - 3]])
    assert rejects(assert_one_stream_shifted_by_one, stream, from_two_places[None])
    assert not rejects(assert_one_stream_shifted_by_one, stream, ids[None, : T + 1])


# ---- fine-tuning pairs

PAIRS = {
    "short": (PROMPT[:3], TARGET[:2]),
    "full": (PROMPT[:5], TARGET[:3]),
    "prompt longer than T": (PROMPT[: T + 5], TARGET[:3]),
    "target longer than T": (PROMPT[:2], TARGET[: T + 3]),
    "both longer than T": (PROMPT[: T + 1], TARGET[: T + 1]),
    "no target": (PROMPT[:4], ()),
    "no prompt": ((), TARGET[:3]),
    "nothing": ((), ()),
}


def is_target(ids):
    """Told from the ids alone, without the mask: prompts and targets use different ids here."""
    return (ids >= TARGET.start) & (ids <= EOT)


def assert_loss_only_on_targets(model, batch):
    """dlogits is (softmax − onehot) / targets where the next id is a target, else exactly 0."""
    ids, mask, segments = batch["ids"], batch["mask"], batch["segments"]
    logits = model(ids, segments)
    logits.retain_grad()
    loss = next_token_loss(logits, ids, mask)
    loss.backward()
    predicts = torch.zeros_like(mask)
    predicts[:, :-1] = is_target(ids[:, 1:])
    assert torch.isfinite(loss) and torch.isfinite(logits.grad).all(), "not finite"
    assert (logits.grad[~predicts] == 0).all(), "loss at a position that predicts no target"
    onehot = F.one_hot(ids.roll(-1, dims=1), V)
    expected = (logits.detach().softmax(-1) - onehot) * predicts[..., None]
    expected /= max(1, int(predicts.sum()))
    assert torch.allclose(logits.grad, expected, rtol=0, atol=1e-14), "a wrong gradient"
    assert torch.allclose(model.loss(ids, mask, segments), loss, rtol=1e-12, atol=0)


def embedding_gradient(model, batch):
    """d loss / d (embedding of the position), (B, T): its largest component."""
    seen = []
    handle = model.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    logits = model(batch["ids"], batch["segments"])
    handle.remove()
    seen[0].retain_grad()
    next_token_loss(logits, batch["ids"], batch["mask"]).backward()
    return seen[0].grad.abs().amax(dim=-1)


def assert_prompts_learn_and_padding_does_not(model, batch):
    """Prompt positions have no loss and get gradient through attention; padding gets exactly 0."""
    ids = batch["ids"]
    size = embedding_gradient(model, batch)
    has_target = is_target(ids[:, 1:]).any(dim=1, keepdim=True)
    prompt, padding = ids < TARGET.start, ids == PAD
    assert (prompt & has_target).any() and padding.any()
    assert (size[prompt & has_target] > 0).all(), "a prompt embedding gets no gradient"
    assert (size[padding] == 0).all(), "padding gets gradient"
    assert (size[~has_target.expand_as(ids)] == 0).all(), "a row without target gets gradient"


def all_pairs(**options):
    return pair_batch(PAIRS.values(), T, pad_id=PAD, **options)


@pytest.mark.parametrize("truncate", ["left", "right"])
@pytest.mark.parametrize("eot_id", [None, EOT])
def test_finetuning_loss_is_only_on_targets(truncate, eot_id):
    batch = all_pairs(truncate=truncate, eot_id=eot_id)
    assert batch["ids"].shape == (len(PAIRS), T + 1)
    assert_loss_only_on_targets(small_model(), batch)
    assert_prompts_learn_and_padding_does_not(small_model(), batch)
    for name, pair in PAIRS.items():  # each alone too: the batch's mean must not hide a row
        row = pair_batch([pair], T, pad_id=PAD, truncate=truncate, eot_id=eot_id)
        assert_loss_only_on_targets(small_model(), row)
        if name == "prompt longer than T":
            assert row["mask"].any() == (truncate == "left")


def test_control_masks_that_are_shifted_or_missing():
    model, batch = small_model(), all_pairs(eot_id=EOT)
    mask = batch["mask"]
    everything = batch["segments"] != PADDING
    first_target_forgotten = mask & mask.roll(1, dims=1)
    for broken in (mask.roll(1, 1), mask.roll(-1, 1), everything, first_target_forgotten):
        assert rejects(assert_loss_only_on_targets, model, batch | {"mask": broken})
    assert not rejects(assert_loss_only_on_targets, model, batch)


def test_control_attention_that_is_cut_or_reaches_padding():
    batch = all_pairs()
    alone = torch.arange(T + 1).expand_as(batch["ids"])  # each position sees only itself
    check = assert_prompts_learn_and_padding_does_not
    assert rejects(check, small_model(), batch | {"segments": alone})
    both_ways = small_model(causal=False)
    assert rejects(check, both_ways, batch | {"segments": torch.zeros_like(alone)})
    assert not rejects(check, both_ways, batch)
    assert not rejects(check, small_model(), batch)


def assert_no_target_is_no_gradient(loss_function):
    model = small_model()
    batch = pair_batch([(PROMPT[:4], ()), (PROMPT, TARGET)], T, pad_id=PAD, truncate="right")
    loss = loss_function(model(batch["ids"], batch["segments"]), batch["ids"], batch["mask"])
    loss.backward()
    assert loss == 0
    assert all((p.grad == 0).all() for p in model.parameters())


def test_a_batch_without_any_target_has_loss_and_gradient_zero():
    assert_no_target_is_no_gradient(next_token_loss)


def test_control_a_mean_over_no_target():
    def naive(logits, ids, mask):
        each = F.cross_entropy(logits[:, :-1].mT, ids[:, 1:], reduction="none")
        return (each * mask[:, 1:]).sum() / mask[:, 1:].sum()

    assert rejects(assert_no_target_is_no_gradient, naive)


# ---- one backward, one optimizer step


def optimizer_step(optimizer, loss):
    """All that happens after the loss. Neither objective needs anything else."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def next_token_step(model, ids):
    return next_token_loss(model(ids), ids)


def assert_same_run(losses, steps=3):
    """Two losses from the same weights give the same weights, to the last bit."""
    models = [small_model(), small_model()]
    optimizers = [AdamW(model.parameters(), lr=1e-2) for model in models]
    for step in range(steps):
        ids = torch.randint(V, (4, T + 1), generator=torch.Generator().manual_seed(step))
        for model, optimizer, loss in zip(models, optimizers, losses, strict=True):
            optimizer_step(optimizer, loss(model, ids))
    pairs = zip(models[0].parameters(), models[1].parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_both_objectives_share_backward_and_optimizer_step():
    # the masked-LM loss, told to predict the next id, is the causal loss: only targets differ
    def masked_with_next_ids(model, ids):
        mask = torch.ones_like(ids, dtype=torch.bool)
        mask[:, -1] = False
        return masked_token_loss(model(ids), ids.roll(-1, dims=1), mask)

    assert_same_run((next_token_step, masked_with_next_ids))


def test_control_a_masked_loss_with_its_own_targets():
    def masked(model, ids):
        mask = torch.ones_like(ids, dtype=torch.bool)
        mask[:, -1] = False
        return masked_token_loss(model(ids), ids, mask)

    def leave_out_a_target(model, ids):
        mask = torch.ones_like(ids, dtype=torch.bool)
        mask[0, 1] = False
        return next_token_loss(model(ids), ids, mask)

    assert rejects(assert_same_run, (next_token_step, masked))
    assert rejects(assert_same_run, (next_token_step, leave_out_a_target))


def counting_rows(g):
    """Rows that count up from a random start, and no id twice in a row of T: easy to learn."""
    return (torch.randint(20, (16, 1), generator=g) + torch.arange(T)) % 20


def loss_before_and_after(causal, lr, steps=120):
    model = small_model(causal=causal, layers=1)
    optimizer = AdamW(model.parameters(), lr=lr)
    g = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(steps):
        ids = counting_rows(g)
        if causal:
            loss = next_token_loss(model(ids), ids)
        else:
            inputs, mask = corrupt(ids, mask_id=MASK, vocab_size=20 + 23, generator=g, p=0.3)
            loss = masked_token_loss(model(inputs), ids, mask)
        optimizer_step(optimizer, loss)
        losses.append(loss.item())
    return losses[0], sum(losses[-5:]) / 5


@pytest.mark.parametrize("causal", [True, False])
def test_both_objectives_learn_by_that_step(causal):
    before, after = loss_before_and_after(causal, lr=2e-2)
    assert after < 0.6 * before
    before, after = loss_before_and_after(causal, lr=0.0)  # control
    assert not after < 0.6 * before


def assert_padding_is_invisible(model, segments_of):
    """Logits of a row do not depend on how much padding stands behind it."""
    ids = torch.tensor([list(PROMPT[: T - 3])])
    padded = F.pad(ids, (0, 3), value=PAD)
    expected = model(ids)
    found = model(padded, segments_of(padded))[:, : T - 3]
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)


def test_a_masked_lm_needs_the_padding_mask_and_a_causal_one_does_not():
    def by_padding(ids):
        return torch.where(ids == PAD, PADDING, 0)

    def without(ids):
        return None

    assert_padding_is_invisible(small_model(causal=False), by_padding)
    assert_padding_is_invisible(small_model(causal=True), by_padding)
    assert_padding_is_invisible(small_model(causal=True), without)
    assert rejects(assert_padding_is_invisible, small_model(causal=False), without)  # control
