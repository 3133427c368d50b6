"""Claim c: the loop, ids → embedding → transformer → logits → shifted cross-entropy → backward →
Adam or Lion.

It is written out here once, and takes the mistakes as arguments: every check must hold for the
right loop and fail for the loop with the mistake that it is there to find.
"""

import math

import pytest
import torch
import torch.nn.functional as F

from minilm.model import MiniLM, ModelConfig
from minilm.optim import AdamW, Lion

V, T, B = 16, 12, 8
OPTIMIZERS = {
    "adamw": lambda params: AdamW(params, lr=5e-3),
    "lion": lambda params: Lion(params, lr=1e-3),
}


def make_model() -> MiniLM:
    torch.manual_seed(0)
    return MiniLM(ModelConfig(vocab_size=V, context_length=T, d_model=32, n_layers=2, n_heads=4))


def logits_of(model: MiniLM, ids: torch.Tensor) -> torch.Tensor:
    """ids (B, T) → logits (B, T, V), layer by layer."""
    x = model.token_embedding(ids) + model.position_embedding.weight[: ids.shape[1]]  # (B, T, C)
    for block in model.blocks:
        x = block(x)
    return model.final_norm(x) @ model.head_weight.T


def loop(model, batches, optimizer, *, zero_grad=True, shift=True, step=True) -> list[float]:
    """One step for each batch of rows (B, T + 1); returns the losses."""
    losses = []
    for ids in batches:
        if zero_grad:
            optimizer.zero_grad()
        inputs, targets = ids[:, :-1], ids[:, 1:] if shift else ids[:, :-1]
        logits = logits_of(model, inputs)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss.backward()
        if step:
            optimizer.step()
        losses.append(loss.item())
    return losses


def random_rows(n: int, seed: int) -> list[torch.Tensor]:
    """n batches of independent, uniform ids: nothing can predict the next one."""
    generator = torch.Generator().manual_seed(seed)
    return list(torch.randint(0, V, (n, B, T + 1), generator=generator))


def counting_rows(n: int, seed: int) -> list[torch.Tensor]:
    """n batches of rows that count up from a random start, modulo V: the next id is known."""
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(0, V, (n, B, 1), generator=generator)
    return list((starts + torch.arange(T + 1)) % V)


def trained(name: str, batches, **mistake) -> tuple[MiniLM, list[float]]:
    model = make_model()
    losses = loop(model, batches, OPTIMIZERS[name](model.parameters()), **mistake)
    return model, losses


def test_the_path_is_the_models_own():
    model, ids = make_model(), random_rows(1, 1)[0]
    torch.testing.assert_close(logits_of(model, ids[:, :-1]), model(ids[:, :-1]))
    step_loss = loop(model, [ids], AdamW(model.parameters()), step=False)[0]
    assert model.loss(ids).item() == pytest.approx(step_loss, rel=1e-5)
    assert step_loss == pytest.approx(math.log(V), abs=0.1)  # a fresh model knows nothing
    blind = loop(model, [ids], AdamW(model.parameters()), step=False, shift=False)[0]
    assert model.loss(ids).item() != pytest.approx(blind, rel=1e-3)  # control


def learns_by_heart(losses: list[float]) -> bool:
    return losses[0] > 2.5 and losses[-1] < 0.3


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_one_batch_is_learned_by_heart(name):
    batches = random_rows(1, 2) * 150
    _, losses = trained(name, batches)
    assert learns_by_heart(losses)
    _, losses = trained(name, batches, step=False)  # control: nothing moves without the optimizer
    assert not learns_by_heart(losses) and losses[0] == losses[-1]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_rule_is_learned_and_holds_for_rows_that_were_not_seen(name):
    def knows_the_rule(model: MiniLM) -> bool:
        ids = counting_rows(1, 99)[0]
        return bool((model(ids[:, :-1]).argmax(-1) == ids[:, 1:]).float().mean() > 0.95)

    model, losses = trained(name, counting_rows(120, 3))
    assert knows_the_rule(model) and losses[-1] < 0.5
    # control: without the shift the loss falls just as well, but what is learned is to repeat
    model, losses = trained(name, counting_rows(120, 3), shift=False)
    assert not knows_the_rule(model) and losses[-1] < 0.5


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_cannot_be_predicted_stays_at_ln_v(name):
    def sees_no_target(losses: list[float]) -> bool:
        return min(losses) > 0.9 * math.log(V)

    batches = random_rows(120, 4)  # new rows in every step
    assert sees_no_target(trained(name, batches)[1])
    assert not sees_no_target(trained(name, batches, shift=False)[1])  # control: it reads them off


def test_the_gradient_of_a_step_is_that_of_its_batch_alone():
    first, second = random_rows(2, 5)

    def gradients(batches, **mistake) -> list[torch.Tensor]:
        model = make_model()
        loop(model, batches, AdamW(model.parameters()), step=False, **mistake)
        return [p.grad for p in model.parameters()]

    alone = gradients([second])
    for g, expected in zip(gradients([first, second]), alone, strict=True):
        torch.testing.assert_close(g, expected)
    # control: without zero_grad it is the sum over both batches
    added = gradients([first, second], zero_grad=False)
    for g, a, b in zip(added, gradients([first]), alone, strict=True):
        torch.testing.assert_close(g, a + b)
    assert not all(torch.allclose(g, a, rtol=1e-3) for g, a in zip(added, alone, strict=True))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_backward_reaches_every_weight_and_the_step_moves_it(name):
    def moved(**mistake) -> list[bool]:
        model = make_model()
        before = [p.clone() for p in model.parameters()]
        loop(model, random_rows(1, 6), OPTIMIZERS[name](model.parameters()), **mistake)
        return [not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]

    assert all(moved())
    assert not any(moved(step=False))  # control
