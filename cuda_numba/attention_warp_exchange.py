"""What the value warp and the key warp of `attention_warp_keys` do between their products.

    value warp                                    key warp
    Pᵀ = 2^(c Sᵀ − lse)                           (dPᵀ is in its registers)
    packs Pᵀ into 16-bit words ──── parcel ────→  waits, takes them, dSᵀ = Pᵀ ∘ (dPᵀ − δ)

A parcel is shared memory in the order of the registers: 16 bytes a lane for each 16 × 16 scores,
the words of the left operand that the value warp multiplies with itself. Lane i of the key warp
holds the same places of dPᵀ as lane i of the value warp of Sᵀ, so nothing changes its place, and
neighbouring lanes lie side by side: no bank conflicts. With two parts the key warp multiplies the
first half of a tile while the value warp makes the second.
"""

import functools

from . import ptx
from .attention_warp_tiles import pack_of, thread_anew, unpack_of
from .jit import jit
from .namespace import cuda, float32, uint32, uint64

LEAST = -3e38  # finite, and below every log-sum-exp


@functools.cache
def numbers_copy(turing: bool, count: int, threads: int):
    """A function (shared, x, row, first, end) that starts the copy of `count` float32 of x.

    From element `first` of the row that begins `row` bytes into x; elements from `end` on are 0.
    """

    @jit(device=True)
    def copy(shared, x, row, first, end):
        for i in range(0, count, threads):
            n = uint32(thread_anew() + uint32(i))
            if count % threads == 0 or n < uint32(count):
                inside = uint32(first + n) < end
                address = ptx.global_address(x) + row + uint64(uint32(first + n)) * uint64(4)
                to = uint32(shared + n * uint32(4))
                if turing:
                    word = uint32(0)
                    if inside:
                        word = ptx.load_32_at(uint64(address))
                    ptx.store_shared_32_at(to, word)
                else:
                    ptx.cp_async_4_zfill(to, uint64(address), uint32(4) if inside else uint32(0))

    return copy


@functools.cache
def weights_of(strips: int, M: int, parts: int):
    """A function (s, levels, c, part): s ← 2^(c s − level), one level for each column."""
    TILES, PART = M // 8, M // (8 * parts)

    @jit(device=True)
    def weigh(s, levels, c, part):
        column = (uint32(cuda.threadIdx.x) & uint32(3)) * uint32(8)
        for j in range(part * PART, (part + 1) * PART):
            a, b = ptx.load_shared_64_at(uint32(levels + column + uint32(32 * j)))
            # A query that sees no key has −∞, and −∞ − (−∞) would be NaN.
            a = max(ptx.from_bits(a), float32(LEAST))
            b = max(ptx.from_bits(b), float32(LEAST))
            for m in range(strips):
                at = 4 * (m * TILES + j)
                s[at] = ptx.ex2(s[at] * c - a)
                s[at + 1] = ptx.ex2(s[at + 1] * c - b)
                s[at + 2] = ptx.ex2(s[at + 2] * c - a)
                s[at + 3] = ptx.ex2(s[at + 3] * c - b)

    return weigh


@functools.cache
def exchange_of(dtype: str, strips: int, M: int, parts: int):
    """(leave, take): Pᵀ into the parcel; dSᵀ = Pᵀ ∘ (s − δ) with Pᵀ from the parcel.

    16 bytes a lane and 16 × 16 scores, neighbouring lanes side by side.
    """
    pack, unpack, TILES, PART = pack_of(dtype), unpack_of(dtype), M // 8, M // (8 * parts)

    @jit(device=True)
    def leave(s, parcel, part):
        lane = (uint32(cuda.threadIdx.x) & uint32(31)) * uint32(16)
        for m in range(strips):
            for j in range(part * PART, (part + 1) * PART, 2):
                at = 4 * (m * TILES + j)
                a, b = pack(s[at], s[at + 1]), pack(s[at + 2], s[at + 3])
                c, d = pack(s[at + 4], s[at + 5]), pack(s[at + 6], s[at + 7])
                to = uint32(parcel + lane + uint32(512 * ((m * TILES + j) // 2)))
                ptx.store_shared_128_at(to, a, b, c, d)

    @jit(device=True)
    def product(s, at, word, d0, d1):
        p0, p1 = unpack(word)
        s[at] = p0 * (s[at] - d0)
        s[at + 1] = p1 * (s[at + 1] - d1)

    @jit(device=True)
    def take(s, parcel, deltas, part):
        lane = (uint32(cuda.threadIdx.x) & uint32(31)) * uint32(16)
        column = (uint32(cuda.threadIdx.x) & uint32(3)) * uint32(8)
        for j in range(part * PART, (part + 1) * PART, 2):
            d0, d1 = ptx.load_shared_64_at(uint32(deltas + column + uint32(32 * j)))
            d2, d3 = ptx.load_shared_64_at(uint32(deltas + column + uint32(32 * j + 32)))
            d0, d1 = ptx.from_bits(d0), ptx.from_bits(d1)
            d2, d3 = ptx.from_bits(d2), ptx.from_bits(d3)
            for m in range(strips):
                at = 4 * (m * TILES + j)
                place = uint32(parcel + lane + uint32(512 * ((m * TILES + j) // 2)))
                a, b, c, d = ptx.load_shared_128_at(place)
                product(s, at, a, d0, d1)
                product(s, at + 2, b, d0, d1)
                product(s, at + 4, c, d2, d3)
                product(s, at + 6, d, d2, d3)

    return leave, take


# Each part of each pair, of which there are up to four, has a named barrier of 64 threads. The
# numbers of named barriers have to be constants.


@jit(device=True)
def arrive(pair, part):
    """Say to the key warp that a part of the parcel is there."""
    if part == 0:
        if pair == uint32(0):
            ptx.barrier_arrive(1, 64)
        elif pair == uint32(1):
            ptx.barrier_arrive(2, 64)
        elif pair == uint32(2):
            ptx.barrier_arrive(3, 64)
        else:
            ptx.barrier_arrive(4, 64)
    else:
        if pair == uint32(0):
            ptx.barrier_arrive(5, 64)
        elif pair == uint32(1):
            ptx.barrier_arrive(6, 64)
        elif pair == uint32(2):
            ptx.barrier_arrive(7, 64)
        else:
            ptx.barrier_arrive(8, 64)


@jit(device=True)
def meet(pair, part):
    """Wait until the part is there."""
    if part == 0:
        if pair == uint32(0):
            ptx.barrier_sync(1, 64)
        elif pair == uint32(1):
            ptx.barrier_sync(2, 64)
        elif pair == uint32(2):
            ptx.barrier_sync(3, 64)
        else:
            ptx.barrier_sync(4, 64)
    else:
        if pair == uint32(0):
            ptx.barrier_sync(5, 64)
        elif pair == uint32(1):
            ptx.barrier_sync(6, 64)
        elif pair == uint32(2):
            ptx.barrier_sync(7, 64)
        else:
            ptx.barrier_sync(8, 64)
