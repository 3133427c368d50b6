"""How a product's kernel is cut: constants that it is compiled for, and its shared memory.

| stage 0 | stage 1 | … | slots of group 0 | slots of group 1 | mbarriers |

stage       A 128 × 64 and B 64 × n, 16-bit elements, 128-byte swizzle: 16 KB + 128 n bytes
slot        a chunk, 64 rows × 64 columns, on its way out or in: 8 KB
mbarriers   full[stage], at 64 bytes empty[stage], at 128 one for each reader of what lies beside C
"""

from typing import NamedTuple

from .hopper_epilogue import NONE, Epilogue

ROWS, DEPTH = 128, 64  # of a tile: rows, and k of one stage
WIDTHS = (256, 192, 128)  # columns of a tile
CHUNK = 64  # columns that leave together
CHUNK_BYTES = 64 * CHUNK * 2
A_BYTES = ROWS * DEPTH * 2
SHARED_BYTES = 227 * 1024  # that a block may have
U32, U64, F32 = "uint32", "uint64", "float32"  # of the kernels' parameters
ALIGNMENT = 1024  # of a swizzled tile; the kernel finds the first such place itself


class Kind(NamedTuple):
    """What a kernel multiplies and what it writes. a_along_m: A lies along M in memory, not along
    K; b_along_n likewise. store: "tma", or from registers "pairs" or "singles" of elements.
    bias_pairs: two numbers of the bias can be read at once. row_sums: A's rows are added up as well
    (`hopper_row_sums`)."""

    dtype: str = "bfloat16"
    out: str = "bfloat16"
    a_along_m: bool = False
    b_along_n: bool = False
    store: str = "tma"
    epilogue: Epilogue = NONE
    bias_pairs: bool = True
    row_sums: bool = False

    @property
    def writes(self) -> int:
        """How many slots leave by TMA for each chunk of C: float32 takes two."""
        own = 0 if self.store != "tma" else 2 if self.out == "float32" else 1
        return own + int(self.epilogue.keep_pre)


class Tile(NamedTuple):
    """n: columns of a tile, of WIDTHS; stages of the ring, at most 8; slots of each group, at least
    one where anything leaves or comes by TMA. turns: each group has tiles of its own, all 128 rows,
    and multiplies while the other writes (`hopper_turns`). pair: clusters of two blocks, one above
    the other in C, each of which loads half of B for both (multicast)."""

    n: int = 256
    stages: int = 4
    slots: int = 2
    turns: bool = False
    pair: bool = False

    @property
    def chunks(self) -> int:
        return self.n // CHUNK

    @property
    def stage(self) -> int:
        return A_BYTES + self.n * DEPTH * 2

    @property
    def staging(self) -> int:
        """Where the slots begin."""
        return self.stages * self.stage

    @property
    def barriers(self) -> int:
        """Where the mbarriers begin."""
        return self.staging + 2 * self.slots * CHUNK_BYTES

    @property
    def shared(self) -> int:
        """Bytes of dynamic shared memory."""
        return ALIGNMENT + self.barriers + 256

    @property
    def rows(self) -> int:
        """Of C, that an entry of the work list stands for."""
        return ROWS * (1 + self.pair)

    def check(self, kind: Kind) -> None:
        """Raise ValueError where there is no such kernel."""
        if self.n not in WIDTHS:
            raise ValueError(f"n: got {self.n}, a tile has {', '.join(map(str, WIDTHS))} columns")
        if not 2 <= self.stages <= 8:
            raise ValueError(f"stages: got {self.stages}, there are 2 to 8")
        if self.turns and self.n > 192:
            raise ValueError(f"n: got {self.n}; a group that takes turns holds up to 192")
        if kind.epilogue.beside and self.slots < (own := self.chunks * (1 + self.turns)):
            raise ValueError(
                f"slots: got {self.slots}; what is read beside needs one for each chunk, {own}"
            )
        if kind.epilogue.beside and kind.writes > 1:
            raise ValueError("store: float32 leaves by TMA only where no matrix is read beside")
        if kind.row_sums and (self.turns or kind.epilogue.sums or not kind.a_along_m):
            raise ValueError(
                "row_sums: they are taken of an A along M, by groups that share a tile, and not "
                "together with column sums"
            )
        if kind.writes and not self.slots:
            raise ValueError("slots: got 0; what leaves by TMA needs one at least")
        if (nbytes := self.shared) > SHARED_BYTES:
            raise ValueError(f"{self}: {nbytes} bytes of shared memory, a block has {SHARED_BYTES}")
