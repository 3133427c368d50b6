"""The shared memory of the backward kernel, in bytes from its start, as compile-time constants."""

from typing import NamedTuple

from .attention_backward_schedule import KEYS

ALIGNMENT = 1024  # of tiles with a 128-byte swizzle
TURNS = 4  # of adding to dQ that can be granted and not yet passed on, a power of two
LARGEST = 232448  # bytes of a block on Hopper


class Layout(NamedTuple):
    """The tiles of one variant of the kernel.

    d: columns that are computed with, 32, 64, 96 or 128; bq: queries of a block; stages: of Q and
    dO; ring: of dS; early: dV is started before dS is computed (it needs the registers); producer,
    consumer: registers of a thread; ordered: the parts of dQ are added in a fixed order; paired: a
    turn to add is that of two blocks of queries.
    """

    d: int
    bq: int
    stages: int
    ring: int
    early: bool
    producer: int = 24
    consumer: int = 240
    ordered: bool = True
    paired: bool = False

    @property
    def halves(self):
        """Tiles of 64 columns, 128 bytes, side by side."""
        return -(-self.d // 64)

    @property
    def keys(self):
        """Bytes of a block of K or V."""
        return self.halves * KEYS * 128

    @property
    def queries(self):
        """Bytes of a block of Q or dO."""
        return self.halves * self.bq * 128

    @property
    def stage(self):
        return 2 * self.queries

    @property
    def scores(self):
        """Bytes of dS of a block of queries and one of keys."""
        return KEYS * self.bq * 2

    @property
    def part_columns(self):
        """Columns of a warpgroup's part of dQ: half of those of 64 queries, all of 64 of 128."""
        return 32 * self.halves if self.bq == 64 else self.d

    @property
    def q_at(self):
        return 2 * self.keys

    @property
    def ring_at(self):
        return self.q_at + self.stages * self.stage

    @property
    def stats_at(self):
        return self.ring_at + self.ring * self.scores

    @property
    def tile_at(self):
        """Two slots of a block of keys: j, head."""
        return self.stats_at + self.stages * 8 * self.bq

    def bars(self):
        """Barriers: name → (offset, how many of them, arrivals of a phase); by arrivals."""
        readers = 11 if self.ordered else 9  # of a tile's numbers
        kinds = [
            ("full", self.stages, 1), ("k_full", 1, 1), ("v_full", 1, 1), ("tile_full", 2, 1),
            ("allow", TURNS, 1), ("passed", TURNS, 1), ("empty", self.stages, 8),
            ("k_empty", 1, 8), ("v_empty", 1, 8), ("done", TURNS, 8),
            ("ds_full", self.ring, 8), ("ds_empty", self.ring, 8),
            ("tile_empty", 2, readers),
        ]  # fmt: skip
        at, found = self.tile_at + 16, {}
        for name, count, arrivals in kinds:
            found[name] = (at, count, arrivals)
            at += 8 * count
        return found

    @property
    def nbytes(self):
        """Dynamic shared memory, with what alignment may cost."""
        at, count, _ = self.bars()["tile_empty"]
        return at + 8 * count + ALIGNMENT
