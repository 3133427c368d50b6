import pytest
import torch

from minilm.corruption import corrupt

V, MASK, PAD, EOT = 40, 3, 1, 0
SPECIAL = (PAD, EOT)


def generator(seed=0, device="cpu"):
    return torch.Generator(device).manual_seed(seed)


def corrupted(ids, p=0.15, seed=0, special_ids=SPECIAL):
    return corrupt(
        ids, mask_id=MASK, vocab_size=V, generator=generator(seed), p=p, special_ids=special_ids
    )


@pytest.fixture(scope="module")
def many():
    return torch.randint(4, V, (400, 500), generator=generator(1))  # 200,000 ordinary ids


def within(count: int, n: int, p: float) -> bool:
    """True when `count` of n draws of probability p is within five standard deviations."""
    return abs(count - n * p) < 5 * (n * p * (1 - p)) ** 0.5


@pytest.mark.parametrize("p", [0.15, 0.5, 1.0])
def test_80_10_10(many, p):
    inputs, mask = corrupted(many, p)
    assert inputs.shape == mask.shape == many.shape
    assert inputs.dtype == torch.int64 and mask.dtype == torch.bool
    n = int(mask.sum())
    assert within(n, many.numel(), p) if p < 1 else mask.all()
    assert torch.equal(inputs[~mask], many[~mask])
    chosen, original = inputs[mask], many[mask]
    assert within(int((chosen == MASK).sum()), n, 0.8)
    ordinary = V - 3  # a random id is the original one in 37
    assert within(int((chosen == original).sum()), n, 0.1 + 0.1 / ordinary)
    drawn = chosen[(chosen != original) & (chosen != MASK)]
    counts = torch.bincount(drawn, minlength=V)
    assert counts[[MASK, *SPECIAL]].sum() == 0
    # one id in 37 each, less the draws that hit the original id
    assert all(within(int(c), n, 0.1 / ordinary * (1 - 1 / ordinary)) for c in counts[[2]])
    assert all(within(int(c), n, 0.1 / ordinary * 36 / 37) for c in counts[4:])


@pytest.mark.parametrize("p", [0.15, 1.0])
def test_special_ids_are_never_chosen(p):
    ids = torch.randint(0, V, (50, 60), generator=generator(2))
    inputs, mask = corrupted(ids, p)
    special = (ids == MASK) | (ids == PAD) | (ids == EOT)
    assert special.any() and not mask[special].any()
    assert torch.equal(inputs[special], ids[special])
    if p == 1:
        assert mask[~special].all()


def test_nothing_is_chosen_at_p_0_and_in_rows_of_padding(many):
    inputs, mask = corrupted(many, p=0)
    assert not mask.any() and torch.equal(inputs, many)
    inputs, mask = corrupted(torch.full((2, 5), PAD), p=1)
    assert not mask.any() and (inputs == PAD).all()


def test_the_generator_decides_and_the_ids_stay_as_they_were(many):
    before = many.clone()
    first, again, other = corrupted(many), corrupted(many), corrupted(many, seed=1)
    torch.manual_seed(7)
    assert torch.equal(many, before)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[1], other[1])
    g = generator()
    run = [corrupt(many, mask_id=MASK, vocab_size=V, generator=g)[1] for _ in range(2)]
    assert not torch.equal(run[0], run[1])


def test_a_choice_does_not_depend_on_the_other_ids(many):
    changed = many.clone()
    changed[:200] = PAD
    inputs, mask = corrupted(changed)
    assert torch.equal(mask[200:], corrupted(many)[1][200:])
    assert torch.equal(inputs[200:], corrupted(many)[0][200:])


def test_bad_arguments_are_said(many):
    with pytest.raises(ValueError, match="p: must be 0 to 1, got 1.5"):
        corrupted(many, p=1.5)
    with pytest.raises(ValueError, match="mask_id.*= 39, got 40"):
        corrupt(many, mask_id=V, vocab_size=V, generator=None)
    with pytest.raises(ValueError, match="special_ids"):
        corrupted(many, special_ids=range(V))
