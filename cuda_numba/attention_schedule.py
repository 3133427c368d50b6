"""Which block computes which tiles of queries, and in what order: decided on the host.

A tile of queries at the end of a causal sequence reads many tiles of keys, one at the beginning a
single one. Blocks stay for the whole launch, one on a multiprocessor, and each has a list of tiles.
The lists come of a simulation: whoever is free first takes the next tile, the longest first (list
scheduling, Graham 1969: no more than a short tile is left over at the end). With tiles dealt out in
turn instead, an H100 waits for 9 to 22 % of the time (T from 1,024 to 16,384).

All the tiles of a *section* of heads come before those of the next one. Its keys and values fit in
the L2 cache, where every tile of queries finds them. The last section has as many heads as it takes
for all blocks to end at nearly the same time.

A list costs what it takes once for each shape: about a microsecond a tile on the host, 4 bytes on
the GPU, kept for the life of the process, since a captured graph may use it.
"""

import functools
import heapq
import math

import torch

from .attention_tiles import GROUP, tile_of

TILE_COST = 1.0  # of what a tile takes besides its keys, in tiles of keys
LAST = 1.5  # how often the longest tile fits in the time that the last section takes


def reads(number: int, groups: int, size: int, queries: int, keys: int, behind: int,
          ahead: int) -> int:  # fmt: skip
    """How many tiles of `size` keys a tile of queries reads; see `attention_tiles`.

    number: of the tile; groups: of 64 queries, in a tile that is not short.
    """
    start, own = (int(n) for n in tile_of.function(number, queries, groups))
    first = start + keys - queries
    last = min(start + GROUP * own, queries) - 1 + keys - queries
    return -(-min(last + ahead + 1, keys) // size) - (first - min(first, behind)) // size


def sections(heads: int, most: int, last: int) -> list[range]:
    """Heads in sections of `most`, the remaining ones and at least `last` in the last section."""
    count = max(heads - last, 0) // most
    return [range(k * most, (k + 1) * most) for k in range(count)] + [range(count * most, heads)]


def lists(costs: list[float], heads: int, most: int, blocks: int) -> list[list[int]]:
    """For each block its tiles, as query tile · heads + head; costs: of each query tile."""
    order = sorted(range(len(costs)), key=lambda t: -costs[t])
    # The last tiles end together if the longest ones are begun early enough before the end.
    last = math.ceil(LAST * max(costs) * blocks / sum(costs))
    found: list[list[int]] = [[] for _ in range(blocks)]
    free = [(0.0, block) for block in range(blocks)]
    for section in sections(heads, most, last):
        for tile in order:
            for head in section:
                when, block = free[0]
                found[block].append(tile * heads + head)
                heapq.heapreplace(free, (when + costs[tile], block))
    return found


@functools.cache
def schedule(device: torch.device, blocks: int, heads: int, most: int, groups: int, size: int,
             queries: int, keys: int, behind: int, ahead: int) -> torch.Tensor:  # fmt: skip
    """int32 on the device: where each block's list begins, `blocks` + 1 numbers, then the lists."""
    count = -(-queries // (GROUP * groups))
    costs = [TILE_COST + reads(t, groups, size, queries, keys, behind, ahead) for t in range(count)]
    found = lists(costs, heads, most, blocks)
    starts = [blocks + 1]
    for tiles in found:
        starts.append(starts[-1] + len(tiles))
    return torch.tensor(starts + sum(found, []), dtype=torch.int32, device=device)
