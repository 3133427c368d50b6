"""Adding up the rows of dy that the plan puts together: one launch, a warp for each row of dw.

A warp takes one row of dw, for a stretch of up to 2 KB, and adds up its rows of dy in float32:
thirty, one, or none at all, which writes zeros. Ids with more than `piece` tokens are left to other
warps, which come first in the grid:

    tokens of id 7     0 … 31     32 … 63     64 … 69           piece = 32
                       warp 0     warp 1      warp 2

They leave partial sums in memory, and the one that comes last adds those up, from the first to the
last: which warp that is may change, the order of the additions does not.

Bytes: tokens · C · itemsize read; those rows of dw written that are not zero already; for every
piece 4 · C of float32 once out and once in, mostly within L2. A warp waits three times, for its
place in the plan, for the tokens and for their rows, so that many warps must be there at a time.
"""

import functools

from . import ptx
from .embedding_places import LANES, chain
from .jit import jit
from .namespace import cuda, float32, int32, int64, uint32

THREADS = 128  # few warps: a block ends when its longest row does
WARPS = THREADS // 32
MIN_BLOCKS = 4  # in a multiprocessor, so that 16 warps or more have rows on their way
UNROLL = 4  # rows of dy that a warp has on their way


@functools.cache
def mover(dtype: str, width: int):
    """Device functions for `width` elements: load (as they are, into words), add (words to float32
    sums) and store, and the same three for partial sums, which are read past L1.

    What is loaded stays packed until it is added: half the registers, and no lane waits for one row
    before it asks for the next."""

    @jit(device=True)
    def load_vector(x, i, words, m):
        words[m], words[m + 1], words[m + 2], words[m + 3] = ptx.load_128_nc(x, i)

    @jit(device=True)
    def add_bfloat16(total, j, words, m):
        for k in range(4):
            low, high = ptx.unpack_bf16(words[m + k])
            total[j + 2 * k] += low
            total[j + 2 * k + 1] += high

    @jit(device=True)
    def add_float16(total, j, words, m):
        for k in range(4):
            low, high = ptx.unpack_f16(words[m + k])
            total[j + 2 * k] += low
            total[j + 2 * k + 1] += high

    @jit(device=True)
    def add_float32(total, j, words, m):
        for k in range(width):
            total[j + k] += ptx.from_bits(words[m + k])

    @jit(device=True)
    def store_vector(x, i, total, j):
        ptx.store_vector(x, i, total, j)

    @jit(device=True)
    def load_partial(x, i, words, m):
        for k in range(0, width, 4):
            a, b, c, d = ptx.load_128_cg(x, i + k)
            words[m + k] = a
            words[m + k + 1] = b
            words[m + k + 2] = c
            words[m + k + 3] = d

    @jit(device=True)
    def store_partial(x, i, total, j):
        for k in range(0, width, 4):
            ptx.store_vector(x, i + k, total, j + k)

    @jit(device=True)
    def load_element(x, i, words, m):
        words[m] = ptx.bits(ptx.load(x, i))

    @jit(device=True)
    def store_element(x, i, total, j):
        ptx.store(x, i, total[j])

    @jit(device=True)
    def load_one_partial(x, i, words, m):
        words[m] = ptx.load_32_cg(x, i)

    if width == 1:
        rows = load_element, add_float32, store_element
        return rows, (load_one_partial, add_float32, store_element)
    add = {"bfloat16": add_bfloat16, "float16": add_float16, "float32": add_float32}[dtype]
    return (load_vector, add, store_vector), (load_partial, add_float32, store_partial)


@functools.cache
def gather_kernel(
    dtype: str, columns: int, width: int, accesses: int, piece: int, stretches: int, groups: int,
    overlap: bool = False,
):  # fmt: skip
    """dw[id] = Σ dy[token], `accesses` of a lane to a row. The first blocks take what is in pieces,
    the others the rows of dw; those from `kept` on are zero already."""
    HELD = accesses * width  # elements of one row that a lane has
    WORDS = min(4, width)  # of an access
    HELD_WORDS = UNROLL * accesses * WORDS
    PARTS = UNROLL * WORDS // width  # partial sums that fit into those
    STRETCH_COLUMNS = 32 * HELD
    FULL = columns == STRETCH_COLUMNS * stretches  # no lane needs a guard
    SHIFT, PIECE_SHIFT = groups.bit_length() - 1, piece.bit_length() - 1
    _, await_previous = chain(overlap)
    (load, add, store), (load_partial, add_partial, store_partial) = mover(dtype, width)

    @jit(device=True)
    def add_rows(total, words, dy, tokens, start, length, column):
        """Add the rows of tokens[start : start + length] to `total`, UNROLL at a time."""
        lane = int32(cuda.threadIdx.x & 31)
        begin = int32(0)
        while begin < length:
            token = int32(0)
            if begin + lane < length:
                token = tokens[int64(start) + (begin + lane)]
            count = int32(min(int32(32), int32(length - begin)))
            i = int32(0)
            while i < count:
                for u in range(UNROLL):
                    if i + u < count:
                        place = int64(cuda.shfl_sync(LANES, token, i + u)) * columns + column
                        for a in range(accesses):
                            if FULL or column + a * 32 * width < columns:
                                load(dy, place + a * 32 * width, words, (u * accesses + a) * WORDS)
                for u in range(UNROLL):
                    if i + u < count:
                        for a in range(accesses):
                            if FULL or column + a * 32 * width < columns:
                                add(total, a * width, words, (u * accesses + a) * WORDS)
                i = int32(i + UNROLL)
            begin = int32(begin + 32)

    @jit(device=True)
    def add_partials(total, words, partial, head, parts, column):
        """Add rows head … head + parts − 1 of `partial` to `total`."""
        p = int32(0)
        while p < parts:
            for u in range(PARTS):
                place = int64(head + p + u) * columns + column
                for a in range(accesses):
                    if p + u < parts and (FULL or column + a * 32 * width < columns):
                        at = (u * accesses + a) * width
                        load_partial(partial, place + a * 32 * width, words, at)
            for u in range(PARTS):
                for a in range(accesses):
                    if p + u < parts and (FULL or column + a * 32 * width < columns):
                        add_partial(total, a * width, words, (u * accesses + a) * width)
            p = int32(p + PARTS)

    @jit(pointers=True, launch_bounds=(THREADS, MIN_BLOCKS))
    def gather_rows(
        dy: dtype, tokens: "int32", spans: "int32", pieces: "int32", found: "int32",
        arrived: "int32", partial: "float32", dw: dtype, piece_blocks: "uint32", rows: "uint32",
        per_group: "uint32", kept: "uint32",
    ):  # fmt: skip
        total = cuda.local.array(HELD, float32)
        words = cuda.local.array(HELD_WORDS, uint32)
        lane = int32(cuda.threadIdx.x & 31)
        block = uint32(cuda.blockIdx.x)
        in_pieces = block < piece_blocks
        task = block if in_pieces else uint32(block - piece_blocks)
        task = uint32(task * uint32(WARPS) + (uint32(cuda.threadIdx.x) >> uint32(5)))
        number = uint32(task // uint32(stretches))  # of a row of pieces, or of dw
        column = int32(uint32(task - number * uint32(stretches)) * uint32(STRETCH_COLUMNS))
        column = int32(column + lane * width)
        head = int32(0)
        await_previous()
        if in_pieces:
            if number >= uint32(found[0]):  # a whole warp leaves, here and below
                return
            row, first, many, head_bits = ptx.load_128(pieces, int64(number) * 4)
            head = int32(head_bits)
            many = int32(many)
            done = int32((int32(number) - head) << PIECE_SHIFT)
            start = int32(int32(first) + done)
            length = int32(min(int32(piece), int32(many - done)))
        else:
            row = number
            if row >= rows:
                return
            line = int64(row & uint32(groups - 1)) * per_group + (row >> uint32(SHIFT))
            first, many = ptx.load_64(spans, line * 2)
            start = int32(first)
            many = int32(many)
            length = many
            if many > piece or (many == 0 and row >= kept):
                return
        for j in range(HELD):
            total[j] = float32(0)
        add_rows(total, words, dy, tokens, start, length, column)

        if in_pieces:
            place = int64(number) * columns + column
            for a in range(accesses):
                if FULL or column + a * 32 * width < columns:
                    store_partial(partial, place + a * 32 * width, total, a * width)
            cuda.syncwarp()  # lane 0 now answers for the stores of all lanes
            parts = int32((many + (piece - 1)) >> PIECE_SHIFT)
            came = int32(0)
            if lane == 0:
                counter = int64(task) - int64(int32(number) - head) * stretches
                came = ptx.atomic_add_acq_rel(arrived, counter, 1)
            cuda.syncwarp()
            if int32(cuda.shfl_sync(LANES, came, 0)) != parts - 1:
                return
            for j in range(HELD):
                total[j] = float32(0)
            add_partials(total, words, partial, head, parts, column)

        place = int64(row) * columns + column
        for a in range(accesses):
            if FULL or column + a * 32 * width < columns:
                store(dw, place + a * 32 * width, total, a * width)

    return gather_rows
