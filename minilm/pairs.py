"""Rows made of separate pieces: prompt‖target pairs for fine-tuning, and documents packed together.

A pair is one row, and only its target is learned (T = 7, rows of T + 1 = 8, · is padding):

    ids        p₀ p₁ p₂ t₀ t₁ ⏹ ·  ·
    mask       0  0  0  1  1  1  0  0     1: this id is a target
    segments   0  0  0  0  0  0 −1 −1     attention stays within equal numbers
    predicts         t₀ t₁ ⏹              the last prompt position predicts the first target

The prompt has no loss of its own and still learns: its embeddings and keys and values are what the
targets are predicted from.
"""

from collections.abc import Iterable, Sequence

import torch

from .data import PADDING, Batch


def pair_batch(
    pairs: Iterable[tuple[Sequence[int], Sequence[int]]],
    T: int,
    *,
    pad_id: int,
    eot_id: int | None = None,
    truncate: str = "left",
) -> Batch:
    """(prompt ids, target ids) pairs as rows of T + 1 ids, so that a model sees T inputs.

    Returns "ids" int64, "mask" bool and "segments" int64, each (B, T + 1). `eot_id`, when given,
    closes every target and is one. Short rows are padded on the right with `pad_id`.

    Rows that are too long: truncate="left" drops the oldest ids of the prompt, so that the target
    survives; a target that does not fit behind one prompt id loses its end. truncate="right" cuts
    the row's end; a prompt of more than T ids then leaves no target.

    A row may have no target at all (mask all False); it adds nothing to the loss. The first id of a
    row is never a target, because nothing stands before it: of a pair with an empty prompt, the
    target's first id is only an input.
    """
    if T < 1:
        raise ValueError(f"T: must be at least 1, got {T}")
    if truncate not in ("left", "right"):
        raise ValueError(f'truncate: must be "left" or "right", got {truncate!r}')
    pairs = list(pairs)
    if not pairs:
        raise ValueError("pairs: must hold at least one (prompt, target), got none")
    ids = torch.full((len(pairs), T + 1), pad_id, dtype=torch.int64)
    mask = torch.zeros_like(ids, dtype=torch.bool)
    segments = torch.full_like(ids, PADDING)
    closing = [] if eot_id is None else [eot_id]
    for row, (prompt, target) in enumerate(pairs):
        prompt, target = list(prompt), [*target, *closing]
        if truncate == "left":
            target = target[: T if prompt else T + 1]
            prompt = prompt[max(0, len(prompt) + len(target) - (T + 1)) :]
        whole = (prompt + target)[: T + 1]
        ids[row, : len(whole)] = _as_ids(whole)
        mask[row, max(1, len(prompt)) : len(whole)] = True
        segments[row, : len(whole)] = 0
    return {"ids": ids, "mask": mask, "segments": segments}


def pack(
    documents: Iterable[Sequence[int]], T: int, eot_id: int | None, *, pad_id: int = 0
) -> Batch:
    """Documents side by side in rows of T + 1 ids, with segment numbers that keep them apart.

    Each document stands behind its own `eot_id` (None: behind nothing). Like the rows of a stream,
    rows start T apart, so every id but the first is a target once. Returns "ids" int64,
    "mask" bool and "segments" int64 (the document's number, −1 for padding), each (B, T + 1).

    The `eot_id` in front of a document is a target: predicting it is how a model learns to stop.
    Without one, a document's first id is not a target, for the document before says nothing of it.
    A document that reaches into the next row goes on there without its past.
    """
    if T < 1:
        raise ValueError(f"T: must be at least 1, got {T}")
    opening = [] if eot_id is None else [eot_id]
    documents = [[*opening, *document] for document in documents]
    lengths = torch.tensor([len(document) for document in documents], dtype=torch.int64)
    n = int(lengths.sum())
    if n < 2:
        raise ValueError(f"documents: must hold at least two ids together, got {n}")
    rows = -(-(n - 1) // T)
    ids = torch.full((rows * T + 1,), pad_id, dtype=torch.int64)
    ids[:n] = _as_ids([token for document in documents for token in document])
    segments = torch.full_like(ids, PADDING)
    segments[:n] = torch.repeat_interleave(torch.arange(len(documents)), lengths)
    mask = segments != PADDING
    if eot_id is None:
        mask[1:] &= segments[1:] == segments[:-1]
    ids, segments, mask = (x.unfold(0, T + 1, T).clone() for x in (ids, segments, mask))
    mask[:, 0] = False  # a row's first id is only an input
    return {"ids": ids, "mask": mask, "segments": segments}


def _as_ids(ids: list[int]) -> torch.Tensor:
    tensor = torch.tensor(ids, dtype=None if ids else torch.int64)
    if tensor.is_floating_point() or tensor.dtype == torch.bool:
        raise TypeError(f"ids: must be whole numbers, got {tensor.dtype}")
    return tensor
