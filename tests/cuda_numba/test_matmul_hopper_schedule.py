"""The work lists of the Hopper product: every k step of a tile once, nobody waits in vain."""

import pytest

from cuda_numba.hopper_choice import LEAST_STAGES, MEASURED, PENALTY, choice, tile_of
from cuda_numba.hopper_epilogue import Epilogue
from cuda_numba.hopper_schedule import (
    PARTIAL,
    WORDS,
    Piece,
    pieces_of,
    split_of,
    table_of,
    tile_at,
)
from cuda_numba.hopper_tile import SHARED_BYTES, Kind, Tile

# rows, columns, batches, k steps, blocks
GRIDS = [(1, 1, 1, 1, 132), (3, 5, 1, 12, 4), (18, 4, 1, 256, 132), (6, 6, 1, 256, 132)]
GRIDS += [(24, 3, 1, 256, 132), (64, 3, 1, 786, 132), (7, 2, 3, 9, 5), (128, 12, 1, 12, 132)]
GRIDS += [(2, 2, 1, 3, 132), (5, 1, 1, 7, 6), (13, 11, 1, 64, 132)]


def faults(lists, slots, rows, columns, batches, steps):
    """What is wrong with work lists, as sentences."""
    covered, owners, left, added = {}, {}, {}, {}
    for block, pieces in enumerate(lists):
        for p in pieces:
            tile = p.row, p.column, p.batch
            for k in range(p.begin, p.end):
                covered[tile, k] = covered.get((tile, k), 0) + 1
            if p.begin >= p.end:
                yield f"{p} is empty"
            if p.slot is None:
                if tile in owners:
                    yield f"{tile} has two owners"
                owners[tile] = block, p
            elif p.slot in left:
                yield f"slot {p.slot} is written twice"
            else:
                left[p.slot] = block, p
    whole = rows * columns * batches * steps
    if len(covered) != whole or set(covered.values()) != {1}:
        yield f"{len(covered)} of {whole} k steps, up to {max(covered.values())} times"
    for tile, (block, p) in owners.items():
        position = p.end
        for slot in range(p.first, p.first + p.count):
            helper, part = left.get(slot, (None, None))
            if part is None or (part.row, part.column, part.batch) != tile:
                yield f"{tile} adds slot {slot}, which holds {part}"
                continue
            if helper >= block:
                yield f"block {block} waits for block {helper}, which may not have started"
            if part.begin != position:
                yield f"{tile} adds k steps from {part.begin}, expected {position}"
            position = part.end
            added[slot] = added.get(slot, 0) + 1
        if p.begin or position != steps:
            yield f"{tile}: k steps {p.begin} to {position} of {steps}"
    if sorted(added) != list(range(slots)) or set(added.values()) - {1}:
        yield f"{len(added)} slots are added, there are {slots}"


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_every_k_step_once(grid, split):
    *shape, blocks = grid
    for group in (1, 3, 8):
        for adjust in (-4, 0, 1):
            lists, slots = pieces_of(*shape, blocks, group, split, adjust)
            assert len(lists) == blocks
            assert list(faults(lists, slots, *shape)) == []


def test_a_lost_piece_is_noticed():
    """The control."""
    lists, slots = pieces_of(3, 5, 1, 12, 4, split=True)
    lists[0] = lists[0][:-1]
    assert any("k steps" in text for text in faults(lists, slots, 3, 5, 1, 12))


def test_owners_that_come_first_are_noticed():
    lists, slots = pieces_of(18, 4, 1, 256, 132, split=True)
    assert any("may not have started" in t for t in faults(lists[::-1], slots, 18, 4, 1, 256))


def test_a_split_spreads_the_work():
    """18 tiles on 132 blocks: all are busy, none with more than a tenth above the average."""
    lists, _ = pieces_of(6, 3, 1, 256, 132, split=True)
    work = [sum(p.end - p.begin for p in pieces) for pieces in lists]
    assert min(work) > 0 and max(work) <= 1.1 * 18 * 256 / 132
    lists, _ = pieces_of(6, 3, 1, 256, 132)
    assert max(sum(p.end - p.begin for p in pieces) for pieces in lists) == 256


def test_order_of_tiles():
    found = [tile_at(number, 3, 2, 2) for number in range(6)]
    assert found == [(0, 0), (1, 0), (0, 1), (1, 1), (2, 0), (2, 1)]
    places = {tile_at(number, 7, 5, 3) for number in range(35)}
    assert len(places) == 35


def test_split():
    cut = split_of(72, 132, 256)
    assert cut.tiles == 72 and cut.shares == 1 and cut.helpers == 60
    assert cut.shares * cut.steps + cut.left == 256
    assert split_of(132, 132, 256).tiles == 0
    even = split_of(4, 8, 10)
    assert (even.tiles, even.shares, even.steps, even.left) == (4, 2, 5, 0)


def test_table():
    lists = [
        [Piece(1, 2, 3, 4, 5)],
        [],
        [Piece(0, 0, 0, 0, 7, None, 5, 2), Piece(1, 0, 0, 7, 9, 6)],
    ]
    table = table_of(lists)
    head = table[:4]
    assert head == [1, 2, 2, 4] and len(table) == 4 * WORDS
    assert table[4:8] == [1 | 2 << 16, 3, 4 | 5 << 16, 0]
    assert table[8:12] == [0, 0, 7 << 16, 5 | 2 << 20]
    assert table[12:16] == [1, 0, 7 | 9 << 16, PARTIAL | 6]


def test_too_many_tiles():
    with pytest.raises(ValueError, match="^M: 65536 tiles"):
        pieces_of(65536, 1, 1, 1, 132)


KINDS = [Kind(), Kind(out="float32", store="pairs"), Kind(epilogue=Epilogue(residual=True))]
KINDS += [Kind(epilogue=Epilogue(slope="gelu", sums=True)), Kind(epilogue=Epilogue(sums=True))]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_choices_fit(kind):
    for n, in_turns in PENALTY:
        if (tile := tile_of(n, kind, in_turns)) is not None:
            tile.check(kind)
            assert tile.stages >= LEAST_STAGES
    for M, N, K in (
        (1, 1, 1),
        (16384, 768, 768),
        (768, 768, 16384),
        (50304, 768, 8192),
        (7, 33, 9),
    ):
        found = choice(M, N, K, 1, kind, 132)
        found.tile.check(kind)
        assert found.tile.shared <= SHARED_BYTES


def test_measured_choices_fit():
    for (_, _, _, out), found in MEASURED.items():
        store = "tma" if found.tile.slots else "pairs"
        found.tile.check(Kind(out=out, store=store))
        assert not (found.split and (found.tile.pair or found.tile.turns))


def test_what_is_added_leaves_by_tma():
    """Where the measured choice writes from registers, the one that adds has slots."""
    kind = Kind(out="float32", a_along_m=True, b_along_n=True)
    adds = kind._replace(epilogue=Epilogue(accumulate=True))
    plain, added = (choice(2304, 768, 16384, 1, k, 132) for k in (kind, adds))
    assert not plain.tile.slots and added.tile.slots
    assert plain[1:] == added[1:] and plain.tile.n == added.tile.n


def test_what_has_no_room_gets_narrower_tiles():
    pre = Epilogue(bias="bfloat16", activation="gelu", keep_pre=True)
    for kind in (Kind(epilogue=pre), Kind(store="singles"), Kind(epilogue=Epilogue(sums=True))):
        assert choice(16384, 3072, 768, 1, kind, 132).tile.n == 128
    assert choice(16384, 3072, 768, 1, Kind(), 132).tile.n == 192


def test_small_gradients_are_split():
    kind = Kind(out="float32", a_along_m=True, b_along_n=True, store="pairs")
    assert choice(768, 768, 16384, 1, kind, 132).split
    assert not choice(16384, 768, 768, 1, Kind(), 132).split


@pytest.mark.parametrize(
    ("tile", "kind", "text"),
    [
        (Tile(100), Kind(), "^n: got 100"),
        (Tile(256, 9), Kind(), "^stages: got 9"),
        (Tile(256, 5), Kind(), "bytes of shared memory"),
        (Tile(256, 4, 0), Kind(), "^slots: got 0"),
        (Tile(256, 3, 2), Kind(epilogue=Epilogue(residual=True)), "one for each chunk"),
        (Tile(256, 3, 2, turns=True), Kind(), "holds up to 192"),
    ],
)
def test_tiles_that_do_not_fit(tile, kind, text):
    with pytest.raises(ValueError, match=text):
        tile.check(kind)
