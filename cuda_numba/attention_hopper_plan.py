"""How a block of the Hopper attention kernel is built, and where things lie in its shared memory.

    | queries, slot 0 | slot 1 | keys, stage 0 | 1 … | values, stage 0 | 1 … | barriers | tiles |

Rows lie in parts of 64 columns, 128 bytes, the span of a swizzle; a head of more columns has a
second part behind the rows of the first. Columns that the tensors do not have are zeros that TMA
fills in. A slot holds the queries of one tile, then its outputs until they are stored: the queries
of the next tile are on their way into the other slot meanwhile.

Every slot and stage has mbarriers: `full` when its bytes have come, `empty` when everybody has read
them. A slot has a third, `done`, when its outputs are in it, and 16 bytes that say which tile it
is.
"""

from typing import NamedTuple

from .attention_tiles import GROUP

END = 0xFFFFFFFF  # in place of a tile's first query: there are no more tiles
ALIGNMENT = 1024  # of tiles with a swizzle; dynamic shared memory may begin anywhere


class Plan(NamedTuple):
    """Compile-time constants of a kernel."""

    width: int  # columns of a head that the products take: 32, 64, 96 or 128
    keys: int  # of a tile of keys
    consumers: int  # warpgroups that multiply, 64 queries each
    stages: int  # tiles of keys, and of values, that there is room for
    turns: bool  # whether the consumers begin their products in turn

    @property
    def rows(self) -> int:
        """Queries of a block's tile."""
        return GROUP * self.consumers

    @property
    def threads(self) -> int:
        return 128 * (self.consumers + 1)

    @property
    def registers(self) -> tuple[int, int]:
        """Of a thread that copies, and of one that multiplies; a block has 512 for each of 128."""
        return (24, 240) if self.consumers == 2 else (32, 160)

    @property
    def parts(self) -> int:
        return -(-self.width // 64)

    @property
    def query_part(self) -> int:
        """Bytes of 64 columns of a tile of queries."""
        return 128 * self.rows

    @property
    def key_part(self) -> int:
        return 128 * self.keys

    @property
    def query_bytes(self) -> int:
        return self.parts * self.query_part

    @property
    def key_bytes(self) -> int:
        return self.parts * self.key_part

    # ---- where things begin, in bytes from the first multiple of ALIGNMENT

    @property
    def keys_at(self) -> int:
        return 2 * self.query_bytes

    @property
    def values_at(self) -> int:
        return self.keys_at + self.stages * self.key_bytes

    @property
    def barriers_at(self) -> int:
        return self.values_at + self.stages * self.key_bytes

    def slot_barriers(self) -> tuple[int, int, int]:
        """Of slot 0: full, empty, done. Those of slot 1 are 8 bytes further."""
        return tuple(self.barriers_at + 16 * k for k in range(3))

    def stage_barriers(self) -> tuple[int, int, int, int]:
        """Of stage 0: keys full, keys empty, values full, values empty; then of stage 1, …"""
        return tuple(self.barriers_at + 48 + 8 * self.stages * k for k in range(4))

    @property
    def tiles_at(self) -> int:
        """What slot 0's tile is: first query, head, batch, groups; 16 bytes further, slot 1's."""
        return self.barriers_at + 48 + 32 * self.stages

    @property
    def shared(self) -> int:
        """Bytes of dynamic shared memory; a Hopper block has up to 232,448."""
        return ALIGNMENT + self.tiles_at + 32
