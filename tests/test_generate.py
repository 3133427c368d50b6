"""Sampling, the gate, stops, the window past T, seeds; cached against uncached."""

import math
import sys

import numpy as np
import pytest
import torch

from minilm import MiniLM, ModelConfig, generate, sample_next, stream
from minilm.generate import next_probabilities

T, V = 8, 23


def make(**changes):
    torch.manual_seed(1)
    sizes = dict(vocab_size=V, context_length=T, d_model=16, n_layers=2, n_heads=4)
    sizes |= dict(tied=False)  # a tied head at random likes to repeat the last id
    model = MiniLM(ModelConfig(**(sizes | changes)))
    for p in model.parameters():  # far from uniform, so that a wrong logit gives another id
        torch.nn.init.normal_(p, mean=float(p.ndim == 1), std=0.4)
    return model


@pytest.fixture(params=["learned", "rope"])
def model(request):
    return make(position=request.param)


@torch.no_grad()
def by_hand(model, prompt, n):
    """Greedy continuation, from nothing but model(ids) on the last T ids."""
    ids = list(prompt)
    for _ in range(n):
        ids.append(int(model(torch.tensor([ids[-T:]]))[0, -1].argmax()))
    return ids[len(prompt) :]


# Prompts of 1 … T + 2 ids and enough new ones to end before, at and behind the T-th.
LENGTHS = [(1, 6), (1, T - 1), (1, T), (1, T + 1), (T - 1, 3), (T, 3), (T + 1, 3), (T + 2, 9)]


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize(("n_prompt", "n"), LENGTHS)
def test_greedy_is_argmax_on_the_last_t_ids(model, n_prompt, n, cache):
    prompt = torch.randint(0, V, (n_prompt,)).tolist()
    expected = by_hand(model, prompt, n)
    assert generate(model, prompt, n, temperature=0, cache=cache) == expected
    assert len(expected) == n


@pytest.mark.parametrize("style", [dict(n_kv_heads=2, position="rope"), dict(window=3), dict()])
@pytest.mark.parametrize(("n_prompt", "n"), LENGTHS)
def test_cached_equals_uncached(style, n_prompt, n):
    model = make(**style)
    prompt = torch.randint(0, V, (n_prompt,)).tolist()
    for seed in range(3):
        cached = generate(model, prompt, n, seed=seed)
        assert cached == generate(model, prompt, n, seed=seed, cache=False)


def test_past_t_the_oldest_ids_are_out_of_sight(model):
    tail = torch.randint(0, V, (T,)).tolist()
    changed = [(tail[0] + 1) % V] + tail[1:]  # the oldest id that is still in sight
    other = 0
    for seed in range(20):
        first = generate(model, tail, 5, seed=seed)
        assert generate(model, [1] + tail, 5, seed=seed) == first
        assert generate(model, [2, 3] + tail, 5, seed=seed) == first
        other += generate(model, changed, 5, seed=seed) != first
    assert other > 0


def test_a_smaller_limit_gives_a_prefix(model):
    longest = generate(model, [3, 1], 20, seed=5, top_k=9)
    assert len(longest) == 20
    for n in range(20):
        assert generate(model, [3, 1], n, seed=5, top_k=9) == longest[:n]


def test_the_same_seed_gives_the_same_ids_and_another_one_others(model):
    assert generate(model, [3], 15, seed=1) == generate(model, [3], 15, seed=1)
    assert generate(model, [3], 15, seed=1) != generate(model, [3], 15, seed=2)


def test_without_a_seed_torch_decides():
    model = make()
    torch.manual_seed(7)
    first = generate(model, [3], 15)
    assert generate(model, [3], 15) != first
    torch.manual_seed(7)
    assert generate(model, [3], 15) == first


def test_a_list_of_prompts_gives_what_each_gives_alone(model):
    prompts = [[3], [5, 1, 4, 1, 5], list(range(T + 3)), [3]]
    together = generate(model, prompts, 10, seed=40, top_p=0.9)
    assert together == [
        generate(model, prompt, 10, seed=40 + i, top_p=0.9) for i, prompt in enumerate(prompts)
    ]
    assert together[0] != together[3]  # the same prompt, another seed
    assert generate(model, [[3], [3]], 6, temperature=0) == [generate(model, [3], 6, 0)] * 2


@pytest.mark.parametrize(
    "prompt", [(3, 1), np.array([3, 1]), torch.tensor([3, 1]), list(torch.tensor([3, 1]))]
)
def test_kinds_of_prompts(prompt):
    model = make()
    assert generate(model, prompt, 4, seed=0) == generate(model, [3, 1], 4, seed=0)


def test_two_dimensions_are_a_list_of_prompts():
    model, rows = make(), torch.tensor([[3, 1], [2, 2]])
    expected = generate(model, rows.tolist(), 4, seed=0)
    assert generate(model, rows, 4, seed=0) == expected
    assert generate(model, rows.numpy(), 4, seed=0) == expected
    assert generate(model, list(rows), 4, seed=0) == expected


def test_the_ids_are_plain_ints():
    assert {type(i) for i in generate(make(), [3], 5, seed=0)} == {int}


def test_the_model_is_left_as_it_was():
    model = make(dropout=0.5)
    model.train()
    model.blocks[0].eval()
    flags = [m.training for m in model.modules()]
    ids = generate(model, [3], 10, temperature=0)
    assert [m.training for m in model.modules()] == flags
    assert all(p.grad is None for p in model.parameters())
    model.eval()
    assert generate(model, [3], 10, temperature=0) == ids  # no dropout while generating


def test_a_stream_lets_the_caller_train_between_two_ids():
    model = make(dropout=0.5).train()
    ids = stream(model, [3], 3, seed=0)
    next(ids)
    assert model.training and torch.is_grad_enabled()
    ids.close()


def test_an_error_in_the_middle_leaves_the_mode_alone(monkeypatch):
    model = make().train()

    def broken(*args, **kwargs):
        assert not model.training
        raise MemoryError

    monkeypatch.setattr(MiniLM, "hidden", broken)
    with pytest.raises(MemoryError):
        generate(model, [3], 3)
    assert model.training


def drained(ids):
    """The ids of a stream and the reason it gave."""
    out = []
    while True:
        try:
            out.append(next(ids))
        except StopIteration as end:
            return out, end.value


HOT = dict(seed=3, temperature=4.0)  # hardly any id comes twice in a row


def test_stop_ids_and_sequences_are_not_returned():
    model = make()
    ids = generate(model, [3], 20, **HOT)
    assert generate(model, [3], 20, **HOT, stop=()) == ids
    for at in (0, 4, 11):
        first = ids.index(ids[at])  # an id may have come before
        for stop in (ids[at], [ids[at]], {ids[at]}, [[ids[at]]], torch.tensor([ids[at]])):
            assert generate(model, [3], 20, **HOT, stop=stop) == ids[:first]
    for at in (0, 4, 11):
        assert generate(model, [3], 20, **HOT, stop=[ids[at : at + 3]]) == ids[:at]
    assert len({*zip(ids, ids[1:], ids[2:], strict=False)}) == 18  # no three ids come twice
    assert drained(stream(model, [3], 20, **HOT, stop=ids[4]))[1] == "stop"
    assert drained(stream(model, [3], 5, **HOT, stop=[ids[8:12]]))[1] == "length"
    assert drained(stream(model, [3], 0)) == ([], "length")


def test_the_gate_inside_a_stop_sequence_returns_its_beginning():
    model = make()
    ids = generate(model, [3], 20, **HOT)
    stop = [ids[6:9]]
    assert generate(model, [3], 8, **HOT, stop=stop) == ids[:8]
    assert generate(model, [3], 9, **HOT, stop=stop) == ids[:6]


def test_the_prompt_is_not_searched():
    model = make()
    ids = generate(model, [3], 6, **HOT)
    assert generate(model, [3], 6, **HOT, stop=[[3, ids[0]]]) == ids


class Script:
    """Stands where the sampler would: a stream of given ids, and what came out after each."""

    def __init__(self, monkeypatch, ids):
        self.left = list(ids)
        self.taken = 0
        monkeypatch.setattr(sys.modules["minilm.generate"], "sample_next", self.next)

    def next(self, *args):
        self.taken += 1
        return torch.tensor(self.left.pop(0))


@pytest.mark.parametrize(
    ("sampled", "stop", "expected"),
    [
        ([1, 2, 1, 2, 3, 9], [[1, 2, 3]], [1, 2]),  # the first 1, 2 is let go late
        ([1, 1, 2, 9], [[1, 2]], [1]),  # a beginning inside a beginning
        ([4, 5, 6, 9], [[5, 6], [4, 5, 6, 7]], [4]),  # one stop ends inside another
        ([1, 2, 9], [[1, 2], 2], []),  # two end together: the longer one
        ([1, 2, 9], [2, [1, 2, 3]], [1]),
        ([7, 7, 7, 7], [[7, 7, 7]], []),
    ],
)
def test_stop_sequences_that_overlap(monkeypatch, sampled, stop, expected):
    Script(monkeypatch, sampled)
    assert generate(make(), [3], len(sampled), stop=stop) == expected


def test_a_stream_holds_back_what_may_be_a_stop_and_nothing_else(monkeypatch):
    script = Script(monkeypatch, [8, 1, 2, 5, 1, 6])
    ids = stream(make(), [3], 6, stop=[[1, 2, 3]])
    came = []
    for new_id in ids:
        came.append((new_id, script.taken))  # how many were sampled when it came
    assert came == [(8, 1), (1, 4), (2, 4), (5, 4), (1, 6), (6, 6)]


def test_sample_next_draws_with_the_probabilities_of_the_softmax():
    logits = torch.tensor([0.0, 1.0, -1.0, 3.0])
    generator = torch.Generator().manual_seed(0)
    n = 20_000
    drawn = sample_next(logits.expand(n, 4), 2.0, generator=generator)
    shares = torch.bincount(drawn, minlength=4) / n
    p = (logits / 2.0).softmax(-1)
    assert ((shares - p).abs() < 4 * (p * (1 - p) / n).sqrt()).all()  # four standard errors


def test_sample_next_shapes():
    logits = torch.randn(5, 7)
    assert sample_next(logits).shape == (5,) and sample_next(logits[0]).shape == ()
    assert sample_next(logits).dtype == torch.int64
    assert torch.equal(sample_next(logits, 0), logits.argmax(-1))
    assert sample_next(torch.tensor([1.0, 2.0, 2.0, 0.0]), 0).item() == 1  # the lower of equals


def test_one_number_per_row_makes_a_filter_that_keeps_all_change_nothing():
    logits = torch.randn(50, 9)
    draws = [
        sample_next(logits, 0.7, *filters, torch.Generator().manual_seed(3))
        for filters in ((None, None), (9, None), (100, 1.0), (None, 1.0))
    ]
    assert all(torch.equal(draw, draws[0]) for draw in draws)


def kept(p, **filters):
    return next_probabilities(torch.tensor(p).log(), **filters).nonzero()[:, 0].tolist()


def test_top_k_keeps_k():
    p = [0.1, 0.4, 0.2, 0.3]
    assert [kept(p, top_k=k) for k in (1, 2, 3, 4, 9)] == [
        [1],
        [1, 3],
        [1, 2, 3],
        [0, 1, 2, 3],
        [0, 1, 2, 3],
    ]
    assert kept([0.25] * 4, top_k=2) == [0, 1]  # exactly k, also among equals
    assert kept([0.001] * 1000, top_k=3) == [0, 1, 2]


def test_top_p_keeps_the_one_that_crosses():
    p = [0.125, 0.5, 0.125, 0.25]
    assert kept(p, top_p=0.5) == [1]
    assert kept(p, top_p=0.51) == [1, 3]
    assert kept(p, top_p=0.75) == [1, 3]
    assert kept(p, top_p=0.8) == [0, 1, 3]
    assert kept(p, top_p=1e-9) == [1]  # never nothing
    assert kept(p, top_p=1.0) == [0, 1, 2, 3]
    # Equal probabilities are exact: to reach 1/2, two of four are enough.
    assert [len(kept([1.0] * 4, top_p=x)) for x in (0.25, 0.26, 0.5, 0.51, 0.75)] == [1, 2, 2, 3, 3]
    assert kept(p, top_k=3, top_p=0.86) == [0, 1, 3]  # of what top-k left, renormalised
    assert kept(p, top_k=2, top_p=0.6) == [1]


def test_what_is_kept_is_renormalised():
    logits = torch.tensor([0.125, 0.5, 0.125, 0.25]).log()
    p = next_probabilities(logits, top_p=0.6)
    torch.testing.assert_close(p, torch.tensor([0, 2 / 3, 0, 1 / 3], dtype=torch.float64))
    for filters in (dict(), dict(top_k=3), dict(top_p=0.3, temperature=0.1)):
        rows = next_probabilities(torch.randn(4, 30), **filters)
        torch.testing.assert_close(rows.sum(-1), torch.ones(4, dtype=torch.float64))


def test_temperature():
    logits = torch.randn(6)
    torch.testing.assert_close(next_probabilities(logits, 0.5), (2 * logits.double()).softmax(-1))
    for cold in (0, 1e-300):
        assert next_probabilities(logits, cold).argmax() == logits.argmax()
        assert next_probabilities(logits, cold).max() == 1
    hot = next_probabilities(logits, 1e9)
    torch.testing.assert_close(hot, torch.full((6,), 1 / 6, dtype=torch.float64))


def test_logits_of_any_size(monkeypatch):
    assert next_probabilities(torch.tensor([1e4, -1e4, 9e3])).tolist() == [1, 0, 0]
    banned = torch.tensor([0.0, -math.inf, 0.0])
    assert 1 not in sample_next(banned.expand(1000, 3)).tolist()
    monkeypatch.setattr(torch, "rand", lambda shape, **kwargs: torch.zeros(shape))
    assert sample_next(torch.tensor([-math.inf, 0.0, 0.0])) == 1  # the smallest random number
    for bad in ([math.nan, 0.0], [math.inf, 0.0], [-math.inf, -math.inf]):
        with pytest.raises(ValueError, match="^logits: the largest must be a finite number, got"):
            sample_next(torch.tensor(bad))


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (dict(prompt_ids=[]), ValueError, "prompt_ids: must hold at least one id"),
        (dict(prompt_ids=[[1], []]), ValueError, "prompt_ids: must hold at least one id"),
        (dict(prompt_ids=[1, V]), ValueError, f"prompt_ids: ids must be 0 to {V - 1}, got {V}"),
        (dict(prompt_ids=[-1]), ValueError, f"prompt_ids: ids must be 0 to {V - 1}, got -1"),
        (dict(prompt_ids="def"), TypeError, "prompt_ids: must be ids (encode text first)"),
        (dict(prompt_ids=b"def"), TypeError, "prompt_ids: must be ids (encode text first)"),
        (dict(prompt_ids=3), TypeError, "prompt_ids: must be ids"),
        (dict(prompt_ids=[1.0]), TypeError, "prompt_ids: ids must be whole numbers, got 1.0"),
        (dict(prompt_ids=["a"]), TypeError, "prompt_ids: ids must be whole numbers, got 'a'"),
        (dict(max_new_tokens=-1), ValueError, "max_new_tokens: must be a whole number of at"),
        (dict(max_new_tokens=2.0), ValueError, "max_new_tokens: must be a whole number of at"),
        (dict(temperature=-0.1), ValueError, "temperature: must be 0 or a positive number"),
        (dict(temperature=math.nan), ValueError, "temperature: must be 0 or a positive number"),
        (dict(temperature=math.inf), ValueError, "temperature: must be 0 or a positive number"),
        (dict(temperature="hot"), ValueError, "temperature: must be 0 or a positive number"),
        (dict(top_k=0), ValueError, "top_k: must be a whole number of at least 1, got 0"),
        (dict(top_k=1.5), ValueError, "top_k: must be a whole number of at least 1, got 1.5"),
        (dict(top_p=0), ValueError, "top_p: must be above 0 and at most 1, got 0"),
        (dict(top_p=1.01), ValueError, "top_p: must be above 0 and at most 1, got 1.01"),
        (dict(stop="\n"), TypeError, "stop: must be ids (encode text first)"),
        (dict(stop=["\n"]), TypeError, "stop: must be ids (encode text first)"),
        (dict(stop=[[]]), ValueError, "stop: a stop sequence must hold at least one id"),
    ],
)
def test_errors_name_the_argument_before_anything_is_computed(arguments, error, words):
    given = dict(prompt_ids=[1], max_new_tokens=3) | arguments
    with pytest.raises(error) as caught:
        generate(make(), **given)
    assert str(caught.value).startswith(words)
    if not isinstance(given["prompt_ids"], list) or [1] not in given["prompt_ids"]:
        with pytest.raises(error):
            stream(make(), **given)  # without asking for an id


def test_a_model_that_sees_the_future_cannot_generate():
    with pytest.raises(ValueError, match="^model: generation needs a model with causal=True"):
        generate(make(causal=False), [1], 3)
