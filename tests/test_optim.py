"""The optimizers against PyTorch's and the papers' formulas; the schedule, clipping."""

import copy
import math

import pytest
import torch
from torch import nn

from minilm.optim import (
    SGD,
    AdamW,
    Lion,
    clip_grad_norm,
    grad_norm,
    parameter_groups,
    scale_grads,
    warmup_cosine,
)

MAKERS = {
    "sgd": lambda ps: SGD(ps, 0.05, momentum=0.9, weight_decay=0.1),
    "adamw": lambda ps: AdamW(ps, 0.01, betas=(0.9, 0.95), weight_decay=0.1),
    "lion": lambda ps: Lion(ps, 0.001, weight_decay=0.5),
}


def fresh(dtype=torch.float32):
    generator = torch.Generator().manual_seed(3)
    shapes = [(7, 5), (5,), (1,), (3, 2, 4)]
    return [nn.Parameter(torch.randn(s, generator=generator).to(dtype)) for s in shapes]


def run(optimizer, params, steps, seed=0, first=0):
    """Gradients that vary in size and direction and do not depend on the parameters."""
    for step in range(first, first + steps):
        generator = torch.Generator().manual_seed(1000 * seed + step)
        for p in params:
            size = 10.0 ** float(torch.randint(-3, 3, (), generator=generator))
            p.grad = size * torch.randn(p.shape, generator=generator, dtype=torch.float32).to(
                p.dtype
            )
        for group in optimizer.param_groups:
            group["lr"] *= 0.99  # a schedule must take effect
        optimizer.step()


def distance(a, b):
    return max(float((x - y).detach().abs().max()) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (MAKERS["adamw"], lambda ps: torch.optim.AdamW(ps, 0.01, (0.9, 0.95), weight_decay=0.1)),
        (lambda ps: AdamW(ps), lambda ps: torch.optim.AdamW(ps)),
        (MAKERS["sgd"], lambda ps: torch.optim.SGD(ps, 0.05, momentum=0.9, weight_decay=0.1)),
        (lambda ps: SGD(ps, 0.05), lambda ps: torch.optim.SGD(ps, 0.05)),
    ],
    ids=["adamw", "adamw-defaults", "sgd", "sgd-plain"],
)
def test_equals_torch_over_100_steps(ours, theirs):
    a, b = fresh(), fresh()
    run(ours(a), a, 100)
    run(theirs(b), b, 100)
    assert distance(a, b) < 1e-6
    assert distance(a, fresh()) > 0.01  # they have moved


@pytest.mark.parametrize(
    "wrong",
    [
        lambda ps: AdamW(ps, 0.01, (0.9, 0.95), weight_decay=0.0),
        lambda ps: AdamW(ps, 0.01, (0.9, 0.95), eps=1e-4, weight_decay=0.1),
        lambda ps: torch.optim.Adam(ps, 0.01, (0.9, 0.95), weight_decay=0.1),  # coupled decay
    ],
)
def test_the_comparison_with_torch_can_fail(wrong):
    a, b = fresh(), fresh()
    run(wrong(a), a, 100)
    run(torch.optim.AdamW(b, 0.01, (0.9, 0.95), weight_decay=0.1), b, 100)
    assert distance(a, b) > 1e-4


def test_lion_is_algorithm_2_element_by_element():
    params = fresh(torch.float64)
    expected = [[float(x) for x in p.detach().flatten()] for p in params]
    momenta = [[0.0] * len(e) for e in expected]
    optimizer = Lion(params, lr=0.01, betas=(0.6, 0.9), weight_decay=0.3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64)
        optimizer.step()
        for p, theta, m in zip(params, expected, momenta, strict=True):
            for i, g in enumerate(p.grad.flatten().tolist()):
                c = 0.6 * m[i] + 0.4 * g
                theta[i] -= 0.01 * (math.copysign(1, c) + 0.3 * theta[i])
                m[i] = 0.9 * m[i] + 0.1 * g
    for p, theta in zip(params, expected, strict=True):
        assert torch.allclose(p.flatten(), torch.tensor(theta, dtype=torch.float64), atol=1e-12)


def test_lion_takes_the_sign_before_it_updates_the_momentum():
    p = nn.Parameter(torch.zeros(1))
    optimizer = Lion([p], lr=1.0, betas=(0.9, 0.5))
    for g in (1.0, -2.0):
        p.grad = torch.tensor([g])
        optimizer.step()
    # step 2: m = 0.5 from step 1, 0.9 · 0.5 − 0.1 · 2 = +0.25: down again. With the momentum
    # updated first, m = −0.75 and 0.9 · m − 0.1 · 2 < 0: up.
    assert p.item() == -2.0


@pytest.mark.parametrize("name", MAKERS)
def test_state_dict_round_trip_goes_on_bit_for_bit(name):
    a, b = fresh(), fresh()
    straight, first = MAKERS[name](a), MAKERS[name](b)
    run(straight, a, 12)
    run(first, b, 5)
    c = [nn.Parameter(p.detach().clone()) for p in b]
    second = MAKERS[name](c)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    run(second, c, 7, first=5)
    assert distance(a, c) == 0
    without_state = MAKERS[name]([nn.Parameter(p.detach().clone()) for p in b])
    without_state.param_groups[0]["lr"] = first.param_groups[0]["lr"]
    other = without_state.param_groups[0]["params"]
    run(without_state, other, 7, first=5)
    assert distance(a, other) > 0


@pytest.mark.parametrize("name", MAKERS)
def test_descends_on_a_quadratic(name):
    p = nn.Parameter(torch.tensor([3.0, -2.0]))
    optimizer = MAKERS[name]([p])
    optimizer.param_groups[0]["weight_decay"] = 0.0
    scale = torch.tensor([1.0, 4.0])
    values = []
    for _ in range(400):
        optimizer.zero_grad()
        loss = optimizer.step(lambda: _loss(p, scale))
        values.append(loss.item())
    # Lion moves every weight by lr, whatever the gradient: 400 steps of 0.001
    assert values[-1] < (0.8 if name == "lion" else 0.5) * values[0]


def _loss(p, scale):
    loss = (scale * p**2).sum()
    loss.backward()
    return loss


def test_a_parameter_that_misses_steps_keeps_its_own_count():
    ours, theirs = fresh(), fresh()
    a, b = AdamW(ours, 0.01), torch.optim.AdamW(theirs, 0.01)
    for step in range(6):
        for i, (p, q) in enumerate(zip(ours, theirs, strict=True)):
            g = torch.randn(p.shape)
            p.grad, q.grad = (None, None) if i == 1 and step in (0, 3) else (g, g.clone())
        a.step()
        b.step()
    assert distance(ours, theirs) < 1e-6
    assert a.state[ours[1]]["step"] == 4


def test_only_matrices_decay():
    model = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Embedding(5, 2))
    model[0].weight.requires_grad_(True)
    decay, rest = parameter_groups(model, 0.1)
    assert [p.ndim for p in decay["params"]] == [2, 2] and decay["weight_decay"] == 0.1
    assert [p.ndim for p in rest["params"]] == [1, 1, 1] and rest["weight_decay"] == 0.0
    optimizer = AdamW([decay, rest], lr=0.5)
    before = [p.detach().clone() for p in model.parameters()]
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for p, old in zip(model.parameters(), before, strict=True):
        assert torch.allclose(p, old * (0.95 if p.ndim == 2 else 1))


def test_tied_and_frozen_parameters():
    model = nn.ModuleList([nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)])
    model[1].weight = model[0].weight
    assert len(parameter_groups(model, 0.1)[0]["params"]) == 1
    model[0].weight.requires_grad_(False)
    assert parameter_groups(model, 0.1)[0]["params"] == []


def test_warmup_cosine():
    def rate(step):
        return warmup_cosine(step, steps=110, warmup=10, lr=2.0, min_lr=0.5)

    assert [rate(s) for s in (1, 5, 10)] == [0.2, 1.0, 2.0]
    assert rate(60) == pytest.approx(1.25)  # half-way between lr and min_lr
    assert rate(110) == rate(500) == 0.5
    assert all(rate(s + 1) < rate(s) for s in range(10, 110))
    assert warmup_cosine(1, steps=1, warmup=0, lr=1.0, min_lr=0.1) == 0.1
    assert warmup_cosine(1, steps=100, warmup=0, lr=1.0) > 0.99


@pytest.mark.parametrize("max_norm", [0.5, 1e9])
def test_clip_grad_norm_equals_torch(max_norm):
    ours, theirs = fresh(), fresh()
    for p, q in zip(ours, theirs, strict=True):
        p.grad = torch.randn(p.shape)
        q.grad = p.grad.clone()
    expected = torch.nn.utils.clip_grad_norm_(theirs, max_norm)
    norm = clip_grad_norm(ours, max_norm)
    assert isinstance(norm, float) and norm == pytest.approx(float(expected))
    for p, q in zip(ours, theirs, strict=True):
        assert torch.allclose(p.grad, q.grad, rtol=1e-5)
    assert float(grad_norm(ours)) == pytest.approx(min(norm, max_norm), rel=1e-5)


def test_clip_reports_a_norm_that_is_not_finite_and_touches_nothing():
    p = nn.Parameter(torch.zeros(3))
    p.grad = torch.tensor([1.0, math.inf, 2.0])
    assert clip_grad_norm([p], 1.0) == math.inf
    assert p.grad.tolist() == [1.0, math.inf, 2.0]
    assert clip_grad_norm([nn.Parameter(torch.zeros(1))], 1.0) == 0.0  # no gradient at all
    scale_grads([p], torch.tensor(2.0))
    assert p.grad[2] == 4.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda ps: AdamW(ps, lr=-1.0), "lr: must be at least 0, got -1.0"),
        (lambda ps: AdamW(ps, betas=(0.9, 1.0)), r"betas\[1\]: must be at least 0 and below 1"),
        (lambda ps: AdamW(ps, eps=float("nan")), "eps: must be"),
        (lambda ps: Lion(ps, weight_decay=-0.1), "weight_decay: must be at least 0, got -0.1"),
        (lambda ps: SGD(ps, 0.1, momentum=1.5), "momentum: must be at least 0 and below 1"),
        (lambda ps: clip_grad_norm(ps, 0.0), "max_norm: must be above 0, got 0.0"),
    ],
)
def test_bad_settings_name_the_argument(make, message):
    with pytest.raises(ValueError, match=message):
        make(fresh())
