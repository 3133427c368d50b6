"""In which order the blocks of a product take the tiles of its result, and where a tile begins.

Blocks that run at the same time should share rows of A and columns of B in L2. Row after row, the
132 blocks of an H100 would read a few rows of A and all of B; in groups of 16 rows of tiles they
read about as much of one as of the other:

    0  16 32 …        tile of block 0, 1, 2, …: down a column of 16, then the next column; after
    1  17 33 …        the last column the next group of 16 rows
    …
    15 31 47 …        16 × 8 tiles of 128 × 256: 2,048 rows of A, 2,048 of B for 128 blocks

(The grouped order of Triton's matmul tutorial, and CUTLASS's threadblock swizzle.)
"""

import functools

from .jit import jit
from .namespace import uint32

GROUP = 16  # rows of tiles in a group


@functools.cache
def corner(tile_m: int, tile_n: int, group: int = GROUP):
    """corner(index, M, N) → (row, column) where block `index`'s tile of tile_m × tile_n begins."""

    @jit(device=True)
    def corner(index, M, N):
        down = uint32((M + uint32(tile_m - 1)) // uint32(tile_m))
        across = uint32((N + uint32(tile_n - 1)) // uint32(tile_n))
        first = uint32(uint32(index // (uint32(group) * across)) * uint32(group))
        height = min(uint32(down - first), uint32(group))  # the last group may be lower
        within = uint32(index - first * across)
        column = uint32(within // height)
        row = uint32(first + (within - column * height))
        return uint32(row * uint32(tile_m)), uint32(column * uint32(tile_n))

    return corner
