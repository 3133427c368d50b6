"""Corrupted inputs for the masked-LM objective (Devlin et al. 2019, section 3.1).

Of all ids, 15 % are chosen as targets. A chosen id is replaced by the mask id in 80 % of cases, by
a random id in 10 %, and kept in 10 %: at no input can the model be sure that what it sees is right.

    targets    a  b  c  d  e  f  g  h     the ids as they were; the loss does not shift
    mask       0  1  0  0  1  0  1  0     1: chosen, the model must name the original here
    inputs     a  ▒  c  d  q  f  g  h     ▒ the mask id, q a random id, g kept
"""

from collections.abc import Iterable

import torch
from torch import Tensor


def corrupt(
    ids: Tensor,
    *,
    mask_id: int,
    vocab_size: int,
    generator: torch.Generator | None,
    p: float = 0.15,
    special_ids: Iterable[int] = (),
) -> tuple[Tensor, Tensor]:
    """ids (B, T) int64 → (inputs (B, T) int64, mask (B, T) bool); `ids` themselves are the targets.

    Each id is chosen with probability p on its own, so a row may have no target. `mask_id` and
    `special_ids` (name the padding id here) are never chosen and never drawn as random ids. The
    same generator state gives the same corruption. Raises ValueError when p is not within 0 to 1,
    mask_id is not an id, or no ordinary id is left to draw.
    """
    if not 0 <= p <= 1:
        raise ValueError(f"p: must be 0 to 1, got {p}")
    if not 0 <= mask_id < vocab_size:
        raise ValueError(f"mask_id: must be 0 to vocab_size - 1 = {vocab_size - 1}, got {mask_id}")
    special = torch.tensor(sorted({mask_id, *special_ids}), device=ids.device)
    ordinary = torch.ones(vocab_size, dtype=torch.bool, device=ids.device)
    ordinary[special[(special >= 0) & (special < vocab_size)]] = False
    ordinary = ordinary.nonzero().squeeze(1)
    if len(ordinary) == 0:
        raise ValueError(f"special_ids: must leave an ordinary id below {vocab_size}, leave none")

    source = torch.device("cpu") if generator is None else generator.device
    chance, fate = torch.rand((2, *ids.shape), generator=generator, device=source).to(ids.device)
    drawn = torch.randint(len(ordinary), ids.shape, generator=generator, device=source)
    mask = (chance < p) & ~torch.isin(ids, special)
    inputs = torch.where(mask & (fate < 0.8), mask_id, ids)
    random_id = ordinary[drawn.to(ids.device)]
    return torch.where(mask & (fate >= 0.8) & (fate < 0.9), random_id, inputs), mask
