"""Claim h: `max_new_tokens` stops sampling and changes no parameter; T caps what attention can
see; the KV cache changes the cost and, up to T, not the result. Each check has a control."""

import hashlib
import sys

import pytest
import torch

from minilm import MiniLM, ModelConfig, MultiHeadAttention, generate

T, V = 10, 23


def make(**changes):
    torch.manual_seed(2)
    sizes = dict(vocab_size=V, context_length=T, d_model=16, n_layers=2, n_heads=4, tied=False)
    model = MiniLM(ModelConfig(**(sizes | changes)))
    for p in model.parameters():
        torch.nn.init.normal_(p, mean=float(p.ndim == 1), std=0.4)
    return model


@pytest.fixture(params=["learned", "rope"])
def model(request):
    return make(position=request.param)


def weights_hash(model) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode() + value.numpy().tobytes())
    return digest.hexdigest()


def test_the_gate_changes_no_parameter(model):
    before = weights_hash(model)
    for n in (0, 1, T, 3 * T):
        assert len(generate(model, [1, 2], n, seed=0)) == n
        assert weights_hash(model) == before
    # Control: one step of training with a learning rate of 1e-6 shows in the hash.
    model.loss(torch.randint(0, V, (2, T))).backward()
    torch.optim.SGD(model.parameters(), lr=1e-6).step()
    assert weights_hash(model) != before


def is_prefix_for_all(continuation, longest: int) -> bool:
    """Is continuation(n) the beginning of continuation(longest), for every smaller n?"""
    whole = continuation(longest)
    return len(whole) == longest and all(continuation(n) == whole[:n] for n in range(longest))


def test_a_smaller_gate_gives_a_prefix(model):
    assert is_prefix_for_all(lambda n: generate(model, [1, 2], n, seed=7), 2 * T)
    # Control: a sampler whose random numbers depend on the limit.
    assert not is_prefix_for_all(lambda n: generate(model, [1, 2], n, seed=7 + n), 2 * T)


class PassCounter:
    """Counts the positions that go through the first block."""

    def __init__(self, model):
        self.positions = 0
        self.handle = model.blocks[0].register_forward_pre_hook(self.count)

    def count(self, module, args):
        self.positions += args[0].shape[1]


def positions_computed(model, prompt, n, **options) -> int:
    counter = PassCounter(model)
    generate(model, prompt, n, seed=0, **options)
    counter.handle.remove()
    return counter.positions


def test_the_cache_changes_the_cost(model):
    prompt, n = [1, 2, 3], T - 3
    cached = positions_computed(model, prompt, n)
    assert cached == len(prompt) + n - 1  # each position once; the last new id is never fed
    assert positions_computed(model, prompt, n, cache=False) == sum(range(3, T))
    # Past T there is nothing to reuse: T positions for each new id.
    beyond = positions_computed(model, prompt, n + 5) - positions_computed(model, prompt, n + 1)
    assert beyond == 4 * T


@torch.no_grad()
def cache_agrees(model, ids) -> bool:
    """Are the logits, one id at a time through the cache, those of one pass without it?"""
    cache = model.new_cache(1)
    parts = [model(ids[:, t : t + 1], cache=cache) for t in range(ids.shape[1])]
    return torch.allclose(torch.cat(parts, 1), model(ids), rtol=1e-5, atol=1e-5)


def test_the_cache_does_not_change_the_result_up_to_t(model, monkeypatch):
    for n in (1, 2, T - 1, T):
        assert cache_agrees(model, torch.randint(0, V, (1, n)))
    prompt = [5, 3]
    for n in (T - 3, T - 2, T - 1, 2 * T):  # up to T − 1, T, T + 1 ids, and beyond
        for seed in range(3):
            uncached = generate(model, prompt, n, seed=seed, cache=False)
            assert generate(model, prompt, n, seed=seed) == uncached

    # Control: a cache that starts to count positions from 0 at each call.
    project, positions = MultiHeadAttention.project, MiniLM._positions
    monkeypatch.setattr(MultiHeadAttention, "project", lambda self, x, start=0: project(self, x))
    monkeypatch.setattr(MiniLM, "_positions", lambda self, start, n: positions(self, 0, n))
    assert not cache_agrees(model, torch.randint(0, V, (1, T)))
    uncached = [generate(model, prompt, T - 2, seed=s, cache=False) for s in range(10)]
    assert [generate(model, prompt, T - 2, seed=s) for s in range(10)] != uncached


@pytest.fixture
def sees(monkeypatch):
    """A question: does another id at a position of the prompt change what the sampler is given?"""
    module, given = sys.modules["minilm.generate"], []
    draw = module.sample_next

    def noted(logits, *args):
        given.append(logits.clone())
        return draw(logits, *args)

    monkeypatch.setattr(module, "sample_next", noted)

    def ask(model, prompt, position) -> bool:
        other = list(prompt)
        other[position] = (prompt[position] + 1) % V
        given.clear()
        for ids in (prompt, other):
            generate(model, ids, 1, seed=0)
        return not torch.equal(*given)

    return ask


def test_t_caps_what_can_be_seen(model, sees):
    prompt = torch.randint(0, V, (T + 2,)).tolist()
    # The window has moved on by two; the control is every position that is still inside it.
    assert [sees(model, prompt, t) for t in range(T + 2)] == [False, False] + [True] * T


def test_positions_past_t():
    ids = torch.zeros(1, T + 1, dtype=torch.long)
    learned, rope = make(position="learned"), make(position="rope")
    learned(ids[:, :T])
    with pytest.raises(
        ValueError, match=f"^ids: {T + 1} positions, but this model has learned {T}"
    ):
        learned(ids)
    rope(ids)  # no table ends; what comes out, training has not shown
    for model in (learned, rope):
        assert len(generate(model, [1] * (T + 1), 2)) == 2


def parameters_at(position, length) -> int:
    return make(position=position, context_length=length).num_parameters()


def test_parameters_and_t_do_not_depend_on_each_other(sees):
    assert parameters_at("rope", T) == parameters_at("rope", 100 * T)
    # Control: a table of learned positions does grow, by C numbers for each.
    assert parameters_at("learned", 2 * T) - parameters_at("learned", T) == T * 16
    # And more parameters see no further.
    larger = make(d_model=32, n_layers=4, n_heads=8)
    prompt = torch.randint(0, V, (T + 1,)).tolist()
    assert not sees(larger, prompt, 0) and sees(larger, prompt, 1)
