"""The plan of an embedding's gradient: the tokens in the order of their ids. Two launches.

A radix sort with two digits, id % groups and then id // groups: stable, and no atomic operation
decides on an order. Neighbouring ids are in different groups, because in many vocabularies the
frequent ones stand together.

    embedding_split    the tokens of every tile, group by group
    embedding_order    the tokens of every group, id by id; where each id's tokens begin

Bytes for N = 65,536: ids twice, 8 · N of entries out and twice in, as many of the order once, 8 · V
of where ids begin, 4 MB in all, within L2. What takes time is waiting, about 12 round trips to that
cache. So meanwhile other blocks set the last rows of dw to zero, CLEAR_BYTES in each launch: work
that is due anyway, but for those of these rows that have tokens and are written once more. Where
most of them would, nothing is cleared ahead.

From sm_90 on the launches overlap (programmatic dependent launch): a grid's blocks are there, and
those that clear at work, before the grid in front has ended.
"""

from typing import NamedTuple

import torch

from .dtypes import dtype_name
from .embedding_order import MAX_TILES, order_kernel
from .embedding_places import CLEARED, THREADS
from .embedding_split import split_kernel

GROUPS = 256  # at most: about two blocks per multiprocessor; fewer where there are few tokens
CLEAR_BYTES = 32 << 20  # of a launch; an H100 writes so much in 11 µs, about as long as it sorts
CLEAR_TOKENS = 4  # for each row, from which on nothing is cleared ahead


class Plan(NamedTuple):
    """The tokens in the order of their ids."""

    order: torch.Tensor  # (N, 2) int32: token, id
    spans: torch.Tensor  # (groups · per_group, 2) int32: an id's first place in order, how many
    found: torch.Tensor  # (1,) int32: rows of order in use, less than N where ids are outside
    arrived: torch.Tensor  # (counters,) int32: zeros
    groups: int  # a power of two; id v has row (v % groups) · per_group + v // groups of spans
    kept: int  # rows of dw from here on are zero already


def overlaps(device: torch.device) -> bool:
    """Whether launches on this device may overlap: GPUs from compute capability 9.0 on."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << max(0, n - 1).bit_length()


def plan(
    ids: torch.Tensor, dw: torch.Tensor, width: int, counters: int, *,
    most_groups: int = GROUPS, most_tiles: int = MAX_TILES,
) -> Plan:  # fmt: skip
    """Sort the tokens of ids (contiguous, any shape, not empty) by id, and set the last rows of
    dw (V, C) to zero.

    width: elements in one access to dw; counters: numbers to set to zero beside; most_groups: a
    power of two; most_tiles: at most MAX_TILES.
    """
    n, rows, dtype = ids.numel(), len(dw), dtype_name(dw)
    groups = min(most_groups, power_of_two(n // 256 + 1), power_of_two(rows))
    per_group = -(-rows // groups)
    rounds = -(-n // (THREADS * most_tiles))
    tile = THREADS * rounds
    tiles = -(-n // tile)

    def integers(*shape):
        return torch.empty(*shape, dtype=torch.int32, device=ids.device)

    entries, table = integers(n, 2), integers(tiles, groups + 1)
    order, spans = integers(n, 2), integers(groups * per_group, 2)
    found, arrived = integers(1), integers(counters)

    accesses = dw.shape[1] // width  # of a row
    ahead = 2 * CLEAR_BYTES if n < CLEAR_TOKENS * rows else 0
    kept = rows - min(rows, ahead // (dw.shape[1] * dw.itemsize))
    first, end = kept * accesses, rows * accesses
    middle = (first + end) // 2

    def blocks(accesses):
        return -(-accesses // (THREADS * CLEARED))

    overlap = overlaps(ids.device)
    split_kernel(dtype, width, groups, overlap)[tiles + blocks(middle - first), THREADS](
        ids, entries, table, arrived, dw, n, rows, tiles, rounds, counters, first, middle
    )
    order_kernel(dtype, width, groups, overlap).launch(
        groups + blocks(end - middle), THREADS, entries, table, order, spans, found, dw, tiles,
        tile, per_group, middle, end, pdl=overlap,
    )  # fmt: skip
    return Plan(order, spans, found, arrived, groups, kept)
