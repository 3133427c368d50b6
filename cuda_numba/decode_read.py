"""A warp walks over its steps of one row of the line of work: what is loaded when.

The loads of the next step are issued as soon as this one's words have been multiplied, K's behind
Sᵀ = K Qᵀ and V's behind Oᵀ += Vᵀ Pᵀ, into the same registers, so that nearly all the time a warp
has a step of K and one of V on their way, 8 KB at D 128:

    Sᵀ = K Qᵀ | load next K | softmax, Oᵀ += Vᵀ Pᵀ | load next V | Sᵀ = K Qᵀ | …

Eight warps have 64 KB under way in a multiprocessor. Little's law asks for about 20: an H100's
3.35 TB/s times 800 ns, over 132. By way of shared memory, with `cp.async` into a ring of two to
five stages, the same walk ran at two thirds of the speed on an H100.

Of a paged cache, each lane looks up the page of a step that is `lane` turns ahead, once in 32
turns, and a shuffle hands out one of them in each turn: no step waits for the block table.
"""

import functools

from .decode_tile import columns_of, loaders, soften, tile
from .decode_work import STEP
from .jit import jit
from .namespace import cuda, float32, int32, uint32, uint64
from .warp import LANES


@functools.cache
def places(paged: bool, readers: int):
    """(look, offsets): which page a step is in, and how many bytes from the cache's start."""

    @jit(device=True)
    def look(table, row, page_size, position, end):
        """Page of the lane's step and its first row there; `row`: where the sequence's entries
        begin in the table. Entries past `end` are not read."""
        page, inside = uint32(0), uint32(0)
        ahead = uint32(position + (uint32(cuda.threadIdx.x) & uint32(31)) * uint32(readers * STEP))
        if paged and ahead < end:
            number = uint32(ahead // page_size)
            inside = uint32(ahead - number * page_size)
            page = uint32(table[uint32(row + number)])
        return page, inside

    @jit(device=True)
    def offsets(page, inside, turn, position, k_page, k_row, v_page, v_row):
        """Bytes to a step's first row in K and in V."""
        if paged:
            here = uint64(uint32(cuda.shfl_sync(LANES, int32(page), turn & uint32(31))))
            down = uint64(uint32(cuda.shfl_sync(LANES, int32(inside), turn & uint32(31))))
            k = uint64(2) * (here * k_page + down * uint64(k_row))
            v = uint64(2) * (here * v_page + down * uint64(v_row))
            return k, v
        twice = uint64(2) * uint64(position)
        return twice * uint64(k_row), twice * uint64(v_row)

    return look, offsets


@functools.cache
def reader(dtype: str, D: int, rows: int, readers: int, paged: bool, depth: int = 16):
    """read(…): peak, total and acc of the steps from `step` to `upto`, `readers` apart.

    k, v           addresses of the lane's first piece in the sequence's first row
    k_row, v_row   elements from row to row, of K and of V; k_page, v_page from page to page
    origin         position of the row's step 0; start, end: of the first one seen, behind the last
    """
    WORDS, STRIDE = columns_of(D) // 4, readers * STEP
    SCORES = rows // 2
    load_keys, load_values = loaders(D, depth)
    _, scores, accumulate = tile(dtype, D, rows, depth)
    online = soften(rows, columns_of(D) // 16)
    look, offsets = places(paged, readers)

    @jit(device=True)
    def read(
        k, v, table, table_row, page_size, k_page, v_page, k_row, v_row,
        origin, start, end, step, upto, queries, last, window, scale, peak, total, acc,
    ):  # fmt: skip
        kw = cuda.local.array(WORDS, uint32)
        vw = cuda.local.array(WORDS, uint32)
        s = cuda.local.array(SCORES, float32)
        lane = uint32(cuda.threadIdx.x) & uint32(31)
        position = uint32(origin + step * uint32(STEP))
        page, inside, turn = uint32(0), uint32(0), uint32(0)
        seen = uint32(end - start)
        while True:  # turn 0 only loads, the last one only multiplies
            more = step < upto
            limit = seen if more else uint32(0)
            if turn > 0:
                scores(kw, queries, s)
            if turn & uint32(31) == 0:
                page, inside = look(table, table_row, page_size, position, end)
            k_off, v_off = offsets(page, inside, turn, position, k_page, k_row, v_page, v_row)
            first = uint32(position - start)  # below 0, so very large, before the first one seen
            load_keys(
                kw, k + k_off, uint32(k_row * uint32(2)), uint32(first + (lane >> uint32(2))), limit
            )
            if turn > 0:
                online(
                    s, scale, uint32((step - uint32(readers)) * uint32(STEP)), last, window,
                    peak, total, acc,
                )  # fmt: skip
                accumulate(vw, s, acc)
            if not more:
                break
            load_values(
                vw, v + v_off, uint32(v_row * uint32(2)),
                uint32(first + (lane & uint32(3)) * uint32(2)), limit,
            )  # fmt: skip
            turn = uint32(turn + uint32(1))
            step = uint32(step + uint32(readers))
            position = uint32(position + uint32(STRIDE))

    return read
