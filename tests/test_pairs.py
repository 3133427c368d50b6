import numpy as np
import pytest
import torch

from minilm.data import PADDING
from minilm.pairs import pack, pair_batch

PAD, EOT = 99, 98


def one(prompt, target, T, **options):
    """The single row of a pair: its ids, the ids that are targets, and how many ids are real."""
    batch = pair_batch([(prompt, target)], T, pad_id=PAD, **options)
    ids, mask, segments = (batch[name][0] for name in ("ids", "mask", "segments"))
    assert len(ids) == len(mask) == len(segments) == T + 1
    real = int((segments == 0).sum())
    assert (segments[:real] == 0).all() and (segments[real:] == PADDING).all()
    assert (ids[real:] == PAD).all() and not mask[real:].any()
    return ids[:real].tolist(), ids[mask].tolist()


def test_a_pair_is_prompt_and_target_padded_on_the_right():
    batch = pair_batch([([1, 2, 3], [4, 5]), ([6], [7, 8, 9])], 6, pad_id=PAD, eot_id=EOT)
    assert batch["ids"].tolist() == [[1, 2, 3, 4, 5, EOT, PAD], [6, 7, 8, 9, EOT, PAD, PAD]]
    assert batch["mask"].long().tolist() == [[0, 0, 0, 1, 1, 1, 0], [0, 1, 1, 1, 1, 0, 0]]
    assert batch["segments"].tolist() == [[0, 0, 0, 0, 0, 0, -1], [0, 0, 0, 0, 0, -1, -1]]
    assert [batch[name].dtype for name in ("ids", "mask", "segments")] == [
        torch.int64,
        torch.bool,
        torch.int64,
    ]
    assert one([1, 2, 3], [4, 5], 6) == ([1, 2, 3, 4, 5], [4, 5])


def test_the_last_prompt_position_predicts_the_first_target():
    batch = pair_batch([([1, 2, 3], [4, 5])], 6, pad_id=PAD)
    predicted = batch["mask"][0, 1:]  # position t of the model's input predicts id t + 1
    inputs = batch["ids"][0, :-1]
    assert inputs[predicted].tolist() == [3, 4]


@pytest.mark.parametrize("n_prompt", range(8))
@pytest.mark.parametrize("n_target", range(8))
@pytest.mark.parametrize("eot_id", [None, EOT])
def test_truncation_on_the_left_keeps_the_target(n_prompt, n_target, eot_id):
    T = 4
    prompt = list(range(n_prompt))
    target = list(range(50, 50 + n_target))
    full = target + ([] if eot_id is None else [eot_id])
    ids, targets = one(prompt, target, T, eot_id=eot_id)
    if prompt:
        assert targets == full[:T]
        kept = ids[: len(ids) - len(targets)]
        assert kept and kept == prompt[-len(kept) :]  # the newest part of the prompt, never nothing
        assert len(ids) == min(n_prompt + len(full), T + 1)  # no more is cut than has to be
    else:
        assert ids == full[: T + 1] and targets == ids[1:]  # nothing predicts the first id


@pytest.mark.parametrize("n_prompt", range(8))
@pytest.mark.parametrize("n_target", range(8))
def test_truncation_on_the_right_cuts_the_end(n_prompt, n_target):
    T = 4
    prompt, target = list(range(n_prompt)), list(range(50, 50 + n_target))
    ids, targets = one(prompt, target, T, truncate="right")
    assert ids == (prompt + target)[: T + 1]
    assert targets == [token for t, token in enumerate(ids) if t > 0 and token >= 50]
    if n_prompt > T:
        assert targets == []


def test_rows_without_any_target_are_all_masked():
    batch = pair_batch([([1, 2], []), ([], []), ([], [5])], 4, pad_id=PAD)
    assert not batch["mask"].any()
    assert batch["ids"].tolist() == [[1, 2, 99, 99, 99], [99] * 5, [5, 99, 99, 99, 99]]


def test_any_sequence_of_whole_numbers_is_a_prompt():
    lists = pair_batch([([1, 2], [3])], 4, pad_id=PAD)
    for kind in (tuple, np.array, torch.tensor):
        other = pair_batch(iter([(kind([1, 2]), kind([3]))]), 4, pad_id=PAD)
        assert all(torch.equal(lists[name], other[name]) for name in lists)


def test_bad_pairs_are_said():
    with pytest.raises(ValueError, match="T: must be at least 1, got 0"):
        pair_batch([([1], [2])], 0, pad_id=PAD)
    with pytest.raises(ValueError, match="truncate.*'middle'"):
        pair_batch([([1], [2])], 4, pad_id=PAD, truncate="middle")
    with pytest.raises(ValueError, match="at least one"):
        pair_batch([], 4, pad_id=PAD)
    with pytest.raises(TypeError, match="float32"):
        pair_batch([([1.5], [2])], 4, pad_id=PAD)


# ---- packing


def random_documents(seed):
    g = np.random.default_rng(seed)
    sizes = g.integers(0, 9, size=g.integers(1, 9))
    return [g.integers(0, 50, size=size).tolist() for size in sizes]


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("T", [1, 3, 7, 64])
def test_packed_rows_hold_every_id_as_a_target_once(seed, T):
    documents = random_documents(seed)
    line = [token for document in documents for token in [EOT, *document]]
    if len(line) < 2:
        pytest.skip("one empty document")
    batch = pack(documents, T, EOT, pad_id=PAD)
    ids, mask, segments = batch["ids"], batch["mask"], batch["segments"]
    assert ids.shape == mask.shape == segments.shape == (-(-(len(line) - 1) // T), T + 1)
    assert ids[mask].tolist() == line[1:]
    assert torch.equal(ids[1:, 0], ids[:-1, -1]) and torch.equal(segments[1:, 0], segments[:-1, -1])
    number = [i for i, document in enumerate(documents) for _ in range(len(document) + 1)]
    assert segments[mask].tolist() == number[1:]
    assert (ids[segments == PADDING] == PAD).all() and not mask[segments == PADDING].any()


def test_without_eot_no_document_predicts_the_next():
    batch = pack([[1, 2, 3], [4, 5], [6]], 5, None, pad_id=PAD)
    assert batch["ids"].tolist() == [[1, 2, 3, 4, 5, 6]]
    assert batch["segments"].tolist() == [[0, 0, 0, 1, 1, 2]]
    assert batch["ids"][batch["mask"]].tolist() == [2, 3, 5]
    with_eot = pack([[1, 2, 3], [4, 5], [6]], 9, EOT, pad_id=PAD)
    assert with_eot["ids"][with_eot["mask"]].tolist() == [1, 2, 3, EOT, 4, 5, EOT, 6]
    assert with_eot["segments"].tolist() == [[0, 0, 0, 0, 1, 1, 1, 2, 2, -1]]


def test_bad_documents_are_said():
    with pytest.raises(ValueError, match="T: must be at least 1, got 0"):
        pack([[1, 2]], 0, EOT)
    for documents in ([], [[]]):
        with pytest.raises(ValueError, match="at least two ids"):
            pack(documents, 4, EOT)
    with pytest.raises(TypeError, match="float32"):
        pack([[0.5, 1.5]], 4, None)
