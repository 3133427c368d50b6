"""Which block multiplies what: the work list of a product, made on the host, read by the kernel.

The grid is persistent: one block for each multiprocessor, and each walks through its own list of
pieces. A piece is a tile of C and a run of k steps (64 of K each):

    whole tiles      block b takes tiles b, b + G, b + 2 G, …          G blocks, P tiles
    the last T = P mod G tiles, when `split`: all G blocks work on them (stream-K)
        shares       tile q is cut along K: S = G // T blocks take L steps each, in step over k
        left-overs   the H = G − S T blocks that remain share the R = nk − S L steps that are left
                     of every one of the T tiles, T R / H each, the last tile first

        k →   |–– share 0 ––|–– share 1 ––|–– share 2 ––|–left-over–|     one split tile, S = 3

The owner of a split tile, who has its first share, adds the others' partial tiles in the order of
k and writes C: a fixed order, hence the same bits on every run. Owners wait for blocks of a lower
number only, and those wait for nobody: the GPU starts blocks in order, so that no set of blocks
that happens to be running can wait for one that cannot start.

Tiles are numbered so that blocks at work at the same time share rows of A and columns of B, which
then come from L2: `group` row tiles are taken together, column after column.

    group 2     0 2 4 6
                1 3 5 7
                8 …

Source: Osama et al. 2023, "Stream-K: Work-centric Parallel Decomposition for Dense Matrix-Matrix
Multiplication on the GPU", for the idea; the cut into shares and left-overs is our own.
"""

from typing import NamedTuple

K_STEP = 64  # of K, in one stage of the kernel's ring
WORDS = 4  # of a piece in the list
PARTIAL = 1 << 31  # in the last word: this piece leaves a partial tile in a slot
LIMIT = 1 << 16  # tiles along M or N, k steps


class Piece(NamedTuple):
    """A run of k steps of one tile. slot: where a partial tile goes, None where the piece is the
    tile's owner; `first` and `count`: the slots of the partial tiles that the owner adds."""

    row: int
    column: int
    batch: int
    begin: int
    end: int
    slot: int | None = None
    first: int = 0
    count: int = 0

    def words(self) -> tuple[int, int, int, int]:
        last = self.first | self.count << 20 if self.slot is None else PARTIAL | self.slot
        return self.row | self.column << 16, self.batch, self.begin | self.end << 16, last


class Split(NamedTuple):
    """How the last tiles are cut: `tiles` of them into `shares` of `steps`, the rest of each for
    `helpers`. tiles 0: nothing is split."""

    tiles: int = 0
    shares: int = 1
    steps: int = 0
    left: int = 0
    helpers: int = 0


def tile_at(number: int, rows: int, columns: int, group: int) -> tuple[int, int]:
    """Row and column of a tile by its number; rows × columns tiles, `group` row tiles together."""
    band, within = divmod(number, group * columns)
    height = min(rows - band * group, group)
    column, row = divmod(within, height)
    return band * group + row, column


def split_of(tiles: int, blocks: int, steps: int, adjust: int = 0) -> Split:
    """The cut of the last `tiles` mod `blocks` tiles of `steps` k steps each.

    adjust: k steps that move from every share to the left-overs: an owner also adds.
    """
    last = tiles % blocks
    if not last:
        return Split()
    shares = min(blocks // last, steps)
    helpers = blocks - shares * last
    if helpers == 0 or shares == steps:
        length = -(-steps // shares)
        shares = -(-steps // length)
        return Split(last, shares, length) if shares > 1 else Split()
    length = min(-(-last * steps // blocks) - adjust, steps // shares)
    length = max(length, 1)
    left = steps - shares * length
    return Split(last, shares, length, left, min(helpers, last * left))


def _left_over_pieces(split: Split, first: int):
    """For each helper, its (tile, begin, end) in left-over steps, the last tile first."""
    total = split.tiles * split.left
    for h in range(split.helpers):
        begin, end = h * total // split.helpers, (h + 1) * total // split.helpers
        pieces = []
        while begin < end:
            tile = begin // split.left
            stop = min(end, (tile + 1) * split.left)
            pieces.append((first + tile, begin - tile * split.left, stop - tile * split.left))
            begin = stop
        yield pieces[::-1]


def pieces_of(rows: int, columns: int, batches: int, steps: int, blocks: int, group: int = 8,
              split: bool = False, adjust: int = 0) -> tuple[list[list[Piece]], int]:  # fmt: skip
    """The work list of every block, and how many slots for partial tiles they need.

    rows, columns: tiles along M and N, for each of `batches`; steps: of K; the rest as above.
    """
    for name, count in (("M", rows), ("N", columns), ("K", steps)):
        if count >= LIMIT:
            raise ValueError(f"{name}: {count} tiles or k steps, there may be {LIMIT - 1}")
    per_batch = rows * columns
    tiles = per_batch * batches
    cut = split_of(tiles, blocks, steps, adjust) if split else Split()
    whole = tiles - cut.tiles

    def place(number: int) -> tuple[int, int, int]:
        batch, within = divmod(number, per_batch)
        return (*tile_at(within, rows, columns, group), batch)

    lists: list[list[Piece]] = [[] for _ in range(blocks)]
    for number in range(whole):
        lists[number % blocks].append(Piece(*place(number), 0, steps))
    # Partial tiles of a split tile, in the order of k: (begin, end, block).
    partials: list[list[tuple[int, int, int]]] = [[] for _ in range(cut.tiles)]
    for q in range(cut.tiles):
        for i in range(1, cut.shares):
            begin = i * cut.steps
            end = min(begin + cut.steps, steps)
            partials[q].append((begin, end, i * cut.tiles + q))
    shared = cut.shares * cut.steps
    for h, found in enumerate(_left_over_pieces(cut, 0)):
        for q, begin, end in found:
            partials[q].append((shared + begin, shared + end, cut.shares * cut.tiles + h))
    slots = 0
    for q in range(cut.tiles):
        partials[q].sort()
        lists[q].append(
            Piece(*place(whole + q), 0, min(cut.steps, steps), None, slots, len(partials[q]))
        )
        slots += len(partials[q])
    slot = 0
    for q in range(cut.tiles):
        for begin, end, block in partials[q]:
            lists[block].append(Piece(*place(whole + q), begin, end, slot))
            slot += 1
    for block in range(cut.shares * cut.tiles, blocks):  # helpers: the last tile first
        own = [p for p in lists[block] if p.slot is not None]
        lists[block] = [p for p in lists[block] if p.slot is None] + own[::-1]
    return lists[::-1], slots  # owners last, see above


def table_of(lists: list[list[Piece]]) -> list[int]:
    """The lists as the kernel reads them, 32-bit words: where each block's pieces begin, counted in
    pieces from the start of the table, and where the last ends; then the pieces."""
    head = -(-(len(lists) + 1) // WORDS)  # pieces that the head takes the place of
    starts = [head]
    for own in lists:
        starts.append(starts[-1] + len(own))
    starts += [0] * (head * WORDS - len(starts))
    return starts + [word for own in lists for piece in own for word in piece.words()]
