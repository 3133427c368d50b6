"""Which kernel, which tile, which order, and whether the last tiles are split: chosen for a shape.

An H100 has 132 multiprocessors, and P tiles take ⌈P / 132⌉ rounds: 384 tiles of 128 × 256 make
2.91 rounds of 3, 18 tiles of a 768 × 768 gradient keep 14 % of it busy. So for each kernel the time
is estimated, in k steps of a 128 × 256 tile,

    whole tiles    ⌈P / G⌉ · n / 256 · (steps · PENALTY + EDGE)
    split          P / G · (the same) + SPLIT

and the shortest is taken. The constants fit the timings of K = 768 and K = 3072 on an H100.
`MEASURED` has what was best for the products of a GPT-2-124M step of 16,384 rows and for two
squares, each found among about ten variants.

Share of cuBLAS (torch.mm) in the same run, medians, inputs not in L2:

    groups            forward, K 768    dgrad, K 3072    head      what decides
    share 128 × 256   1.00 – 1.01       1.01             1.00      the epilogue of short tiles
    turns 128 × 128   1.06 – 1.07       0.98             1.04      32 KB a step from L2
    turns 128 × 192   1.03 – 1.10       1.01             1.17      240 registers, all in use
    the same, pairs   0.98 – 1.10       0.96             1.14      B comes once for two blocks

What did not pay: pairs of blocks (above; 8192 squared alone gained), letting the first group lead
by one or two steps where both share a tile (−1 %), stores of each warp by itself (−1 %).
With a slope or `pre`: asking for the matrix beside only when the products have begun, one barrier
for all chunks of 64 rows, more slots (± 1 %). What paid there: a fifth stage (+10 %).
"""

from typing import NamedTuple

from .hopper_tile import CHUNK, DEPTH, ROWS, SHARED_BYTES, Kind, Tile

# (columns, turns) → time of a k step relative to its share of 128 × 256
PENALTY = {
    (256, False): 1.0,
    (192, False): 1.02,
    (128, False): 1.05,
    (192, True): 1.02,
    (128, True): 1.04,
}
EDGE = {False: 1.5, True: 0.3}  # k steps of 256 columns that a tile's beginning and end cost
HEAVY = 4  # times that, where the epilogue reads or writes another matrix, or sums
SPLIT = 10.0  # k steps that leaving and adding partial tiles costs
LEAST_STEPS = 8  # of K in a share, below which nothing is split
LEAST_STAGES = 3


class Choice(NamedTuple):
    """A tile; `group`, `split` and `adjust` of `hopper_schedule.pieces_of`; lto: of `jit`."""

    tile: Tile
    group: int = 8
    split: bool = False
    adjust: int = 0
    lto: bool = False


def turns(n: int, group: int, stages: int, slots: int = 2) -> Choice:
    return Choice(Tile(n, stages, slots, True), group)


# (M, N, K, what C is made of) → choice, where nothing is read or written beside C, nor summed.
WIDE, HALF = "float32", "bfloat16"
MEASURED = {
    (16384, 2304, 768, HALF): turns(192, 4, 4),
    (16384, 768, 768, HALF): turns(128, 3, 6),
    (16384, 3072, 768, HALF): turns(192, 2, 4),
    (16384, 768, 3072, HALF): turns(192, 1, 4),
    (16384, 768, 2304, HALF): turns(192, 1, 4),
    (8192, 50304, 768, HALF): turns(192, 16, 4),
    (8192, 768, 50304, HALF): Choice(Tile(256, 4, 2), 22, True, -3),
    (2304, 768, 16384, WIDE): Choice(Tile(192, 5, 0), 6, True, -4),
    (768, 768, 16384, WIDE): Choice(Tile(128, 7, 0), 8, True, 1),
    (3072, 768, 16384, WIDE): Choice(Tile(192, 5, 0), 8, True, -5),
    (768, 3072, 16384, WIDE): Choice(Tile(256, 4, 2), 8, True, -5),
    (50304, 768, 8192, WIDE): turns(192, 4, 4),
    (2304, 768, 16384, HALF): Choice(Tile(192, 4, 3), 8, True, -8),
    (768, 768, 16384, HALF): Choice(Tile(128, 6, 2), 8, True, 1),
    (3072, 768, 16384, HALF): Choice(Tile(192, 4, 3), 8, True, -5),
    (768, 3072, 16384, HALF): Choice(Tile(256, 4, 2), 8, True, -5),
    (50304, 768, 8192, HALF): turns(192, 8, 4),
    (4096, 4096, 4096, HALF): Choice(Tile(256, 4, 2), 16),
    (8192, 8192, 8192, HALF): Choice(Tile(192, 4, 2, True, True), 8),
}


def is_plain(kind: Kind) -> bool:
    """Whether the epilogue touches no matrix but C, and sums nothing."""
    end = kind.epilogue
    return not (end.beside or end.keep_pre or end.sums)


def has_room(kind: Kind) -> bool:
    """Whether 192 columns in turns leave registers enough for the epilogue: else it spills."""
    end = kind.epilogue
    wide = kind.out == "float32" and (end.bias is not None or end.activation is not None)
    return is_plain(kind) and kind.store == "tma" and not wide


def tile_of(n: int, kind: Kind, in_turns: bool = False) -> Tile | None:
    """The tile of n columns with as many stages as shared memory has room for; None: too few.

    float32 goes straight from registers, but for what is added, or written while others multiply.
    """
    chunks = n // CHUNK * (1 + in_turns)
    slots = chunks if kind.epilogue.beside else min(2, chunks) if kind.writes else 0
    adds = kind.epilogue.accumulate or kind.epilogue.keep_pre
    if kind.out == "float32" and not kind.epilogue.beside and not (adds or in_turns):
        slots = 0
    if kind.out == "float32" and kind.epilogue.accumulate and n == 192 and not in_turns:
        slots = 1  # five stages
    for stages in range(8, LEAST_STAGES - 1, -1):
        tile = Tile(n, stages, slots, in_turns)
        if tile.shared <= SHARED_BYTES:
            return tile
    return None


def estimate(tiles: int, steps: int, n: int, in_turns: bool, plain: bool, blocks: int,
             split: bool) -> float:  # fmt: skip
    """Time in k steps of a 128 × 256 tile."""
    edge = EDGE[in_turns] * (1 if plain else HEAVY)
    each = n / 256 * (steps * PENALTY[n, in_turns] + edge)
    return tiles / blocks * each + SPLIT if split else -(-tiles // blocks) * each


def group_of(N: int, steps: int, in_turns: bool) -> int:
    """Row tiles that are taken together: as measured for the shapes of a step."""
    if not in_turns:
        return 8
    return 16 if N > 16384 else 4 if steps <= 16 else 1


def choice(M: int, N: int, K: int, batches: int, kind: Kind, blocks: int) -> Choice:
    """How to multiply M × K by K × N."""
    plain = is_plain(kind)
    if plain and batches == 1 and blocks == 132:
        out = HALF if kind.out == "float16" else kind.out
        found = MEASURED.get((M, N, K, out))
        if found and found.tile.turns and (found.tile.n == 192 and not has_room(kind)
                                           or kind.row_sums):  # fmt: skip
            found = None
        if found and kind.epilogue.accumulate and not found.tile.slots:
            return found._replace(tile=tile_of(found.tile.n, kind))
        if found:
            return found
    steps, best = -(-K // DEPTH), None
    for n, in_turns in PENALTY:
        if in_turns and (n == 192 and not has_room(kind) or kind.row_sums):
            continue
        if n > 128 and N <= n - 64:
            continue
        if (tile := tile_of(n, kind, in_turns)) is None:
            continue
        tiles = -(-M // ROWS) * -(-N // n) * batches
        for split in (False,) if in_turns else (False, True):
            last = tiles % blocks
            few = last * steps < blocks * LEAST_STEPS / 2 or steps < 2 * LEAST_STEPS
            if split and (not last or few):
                continue
            time = estimate(tiles, steps, n, in_turns, plain, blocks, split)
            if best is None or time < best[0]:
                best = time, Choice(tile, group_of(N, steps, in_turns), split)
    return best[1]
