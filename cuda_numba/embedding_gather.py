"""Adding up the rows of dy that the plan puts in order: one launch, the same work for every warp.

The plan lists the tokens by id. That list is cut into pieces of equal length, whatever the ids are,
and a warp takes one piece, for a stretch of columns, and adds up in float32:

    id      7 7 7 7 7 7 7 7   7 7 7 7 9 9 4 6   6 6 1 8 8 8 8 2         piece = 8
            warp 0            warp 1            warp 2
    writes  part of 7         rest of 7,        rest of 6,
                              9, 4, part of 6   1, 8, 2

Where a piece ends within an id, its part goes to memory in float32, and the warp that comes last
adds up all parts of that id, from the first to the last: which warp that is may change, the order
of the additions does not. So frequent ids take no longer than others, and a warp has UNROLL rows of
dy on their way all the time, where a warp for each id would wait for its place in the plan, then
for its token, then for one row. Further warps look at 32 ids each, and write zeros to the rows of
those without tokens.

Bytes: tokens · C · itemsize read; those rows of dw written that are not zero already; for every
part 4 · C of float32 once out and once in, mostly within L2.
"""

import functools

from . import ptx
from .dtypes import vector_width
from .embedding_places import LANES, NONE, chain
from .jit import jit
from .namespace import cuda, float32, int32, int64, uint32

THREADS = 128
WARPS = THREADS // 32
MIN_BLOCKS = 4  # in a multiprocessor, so that 16 warps or more have rows on their way
UNROLL = 16  # 16-byte loads that a lane has on their way, from sm_90 on


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
def zeroer(width: int):
    """A device function that writes zero to the `width` elements from i on."""

    @jit(device=True)
    def zero_vector(x, i):
        zero = uint32(0)
        ptx.store_128(x, i, zero, zero, zero, zero)

    @jit(device=True)
    def zero_element(x, i):
        ptx.store(x, i, float32(0))

    return zero_vector if width > 1 else zero_element


@functools.cache
def gather_kernel(
    dtype: str, columns: int, width: int, accesses: int, piece: int, stretches: int, groups: int,
    overlap: bool = False, sums: str | None = None,
):  # fmt: skip
    """dw[id] = Σ dy[token], `accesses` of a lane to a row. The first blocks take the pieces, the
    others write zeros to the rows of dw without tokens; those from `kept` on are zero already.
    sums: dw's format, dy's or "float32"."""
    sums = sums or dtype
    ZERO = min(width, vector_width(sums))  # elements of dw in an access that writes zeros
    HELD = accesses * width  # elements of one row that a lane has
    WORDS = min(4, width)  # of an access
    UNROLLED = UNROLL if overlap else UNROLL // 2  # for sm_75 NVVM would leave longer loops rolled
    ROWS = max(2, UNROLLED // accesses)  # of dy on their way
    HELD_WORDS = ROWS * accesses * WORDS
    PARTS = ROWS * WORDS // width  # float32 parts that fit into those
    STRETCH_COLUMNS = 32 * HELD
    FULL = columns == STRETCH_COLUMNS * stretches  # no lane needs a guard
    SHIFT, PIECE_SHIFT = groups.bit_length() - 1, piece.bit_length() - 1
    _, await_previous = chain(overlap)
    (load, add, store), (load_partial, add_partial, store_partial) = mover(dtype, width)
    store = store if sums == dtype else store_partial
    zero = zeroer(width)

    @jit(device=True)
    def write_row(total, dw, row, column):
        place = int64(row) * columns + column
        for a in range(accesses):
            if FULL or column + a * 32 * width < columns:
                store(dw, place + a * 32 * width, total, a * width)
        for j in range(HELD):
            total[j] = float32(0)

    @jit(device=True)
    def write_part(total, partial, row, column):
        place = int64(row) * columns + column
        for a in range(accesses):
            if FULL or column + a * 32 * width < columns:
                store_partial(partial, place + a * 32 * width, total, a * width)
        for j in range(HELD):
            total[j] = float32(0)

    @jit(device=True)
    def add_parts(total, words, partial, first, parts, column):
        """Add what pieces first … first + parts − 1 left of an id."""
        p = int32(0)
        while p < parts:
            for u in range(PARTS):
                row = int64(first + p + u) * 2 + (1 if p + u == 0 else 0)
                for a in range(accesses):
                    if p + u < parts and (FULL or column + a * 32 * width < columns):
                        at = (u * accesses + a) * width
                        load_partial(partial, row * columns + column + a * 32 * width, words, at)
            for u in range(PARTS):
                for a in range(accesses):
                    if p + u < parts and (FULL or column + a * 32 * width < columns):
                        add_partial(total, a * width, words, (u * accesses + a) * width)
            p = int32(p + PARTS)

    @jit(device=True)
    def line_of(row, per_group):
        """Where the span of an id stands."""
        return int64(row & uint32(groups - 1)) * per_group + (row >> uint32(SHIFT))

    @jit(device=True)
    def write_zeros(spans, dw, row, kept, per_group):
        """To those of a warp's 32 rows that have no tokens; row: this lane's."""
        lane = int32(cuda.threadIdx.x & 31)
        many = int32(1)
        if row < kept:
            many = spans[line_of(row, per_group) * 2 + 1]
        empty = uint32(cuda.ballot_sync(LANES, many == 0))
        place = int64(row - uint32(lane)) * columns + lane * ZERO
        for k in range(32):
            if (empty >> uint32(k)) & uint32(1):
                column = int32(lane * ZERO)
                at = place
                while column < columns:
                    zero(dw, at)
                    column = int32(column + 32 * ZERO)
                    at += 32 * ZERO
            place += columns

    @jit(pointers=True, launch_bounds=(THREADS, MIN_BLOCKS))
    def gather_rows(
        dy: dtype, order: "int32", spans: "int32", found: "int32", arrived: "int32",
        partial: "float32", dw: sums, piece_blocks: "uint32", per_group: "uint32", kept: "uint32",
    ):  # fmt: skip
        block = uint32(cuda.blockIdx.x)
        thread = uint32(cuda.threadIdx.x)
        await_previous()
        if block >= piece_blocks:
            row = uint32(uint32(uint32(block - piece_blocks) * uint32(THREADS)) + thread)
            write_zeros(spans, dw, row, kept, per_group)
            return
        total = cuda.local.array(HELD, float32)
        words = cuda.local.array(HELD_WORDS, uint32)
        lane = int32(thread & uint32(31))
        task = uint32(uint32(block * uint32(WARPS)) + (thread >> uint32(5)))
        number = int32(task // uint32(stretches))  # of the piece
        stretch = int32(task - uint32(number) * uint32(stretches))
        column = int32(stretch * STRETCH_COLUMNS + lane * width)
        tokens = found[0]
        start = int32(number << PIECE_SHIFT)
        if start >= tokens:  # a whole warp leaves
            return
        stop = int32(min(int32(start + piece), tokens))
        first = uint32(order[int64(start) * 2 + 1])
        last = uint32(order[int64(stop) * 2 - 1])
        # Whether the first id began before this piece, and whether the last goes on behind it.
        head = start > 0 and uint32(order[int64(start) * 2 - 1]) == first
        tail = stop < tokens and uint32(order[int64(stop) * 2 + 1]) == last

        for j in range(HELD):
            total[j] = float32(0)
        began_before = head
        begin = start
        while begin < stop:
            token = int32(0)
            key = uint32(NONE)
            after = uint32(NONE)
            at = int32(begin + lane)
            if at < stop:
                token_bits, key = ptx.load_64(order, int64(at) * 2)
                token = int32(token_bits)
                if at + 1 < tokens:
                    after = uint32(order[int64(at) * 2 + 3])
            ends = uint32(cuda.ballot_sync(LANES, key != after))
            count = int32(min(int32(32), int32(stop - begin)))
            i = int32(0)
            while i < count:
                for u in range(ROWS):
                    if i + u < count:
                        place = int64(cuda.shfl_sync(LANES, token, i + u)) * columns + column
                        for a in range(accesses):
                            if FULL or column + a * 32 * width < columns:
                                load(dy, place + a * 32 * width, words, (u * accesses + a) * WORDS)
                for u in range(ROWS):
                    if i + u < count:
                        for a in range(accesses):
                            if FULL or column + a * 32 * width < columns:
                                add(total, a * width, words, (u * accesses + a) * WORDS)
                        if (ends >> uint32(i + u)) & uint32(1):
                            row = uint32(cuda.shfl_sync(LANES, int32(key), i + u))
                            if began_before:
                                write_part(total, partial, number * 2, column)
                            else:
                                write_row(total, dw, row, column)
                            began_before = False
                i = int32(i + ROWS)
            begin = int32(begin + 32)
        if tail:
            write_part(total, partial, number * 2 + (0 if began_before else 1), column)

        if head or tail:
            cuda.syncwarp()  # lane 0 now answers for the stores of all lanes
        for side in range(2):
            # An id that began before and goes on behind has one part here, not two.
            if head if side == 0 else tail and not began_before:
                row = first if side == 0 else last
                begin_bits, many_bits = ptx.load_64(spans, line_of(row, per_group) * 2)
                from_piece = int32(int32(begin_bits) >> PIECE_SHIFT)
                to_piece = int32(int32(int32(begin_bits) + int32(many_bits) - 1) >> PIECE_SHIFT)
                parts = int32(to_piece - from_piece + 1)
                came = int32(0)
                if lane == 0:
                    counter = int64(from_piece) * stretches + stretch
                    came = ptx.atomic_add_acq_rel(arrived, counter, 1)
                cuda.syncwarp()
                if int32(cuda.shfl_sync(LANES, came, 0)) == parts - 1:
                    add_parts(total, words, partial, from_piece, parts, column)
                    write_row(total, dw, row, column)

    return gather_rows
