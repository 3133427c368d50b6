"""The softmax between the two products of the Hopper attention kernel, on a warpgroup's registers.

Thread 32 w + 4 g + t holds of a tile of scores (64 queries × keys) rows 16 w + g and 16 w + g + 8:

    values[4 j + i]        row 16 w + g,      key 8 j + 2 t + i       i = 0, 1
    values[4 j + 2 + i]    row 16 w + g + 8,  key 8 j + 2 t + i

so a row is with four lanes, and two shuffles make its maximum. Names end in 0 and 1 for the two
rows. Scores are not scaled; exp(scale (s − m)) is 2^(s · c − m · c), c = scale · log2(e): one fused
multiply-add and one `ex2`. Each score costs a maximum, a multiply-add, an exponential, an addition
and half a conversion: of the 4.5 instructions a clock that an SM issues to a thread in 32, so that
64 × 128 scores take 290 cycles to issue, and 512 in the special function units, which do 16
exponentials a clock. The two products take 512 cycles for D = 64 and 1,024 for D = 128.
"""

import functools

from . import ptx
from .attention_parts import fmax
from .jit import jit
from .namespace import cuda, float32, uint32
from .warp import LANES, LOWEST

# log2 by which a row's maximum may rise before l and o are rescaled: p is at most 2^SLACK then,
# far inside float16 and bfloat16, and o / l is the same (FlashAttention-4's lazy rescaling).
SLACK = 8.0


@jit(device=True)
def row_offset(m, scale):
    """−m · scale, what is added to a scaled score; 0 for a row that has seen no key so far."""
    return cuda.selp(m == float32(LOWEST), float32(0), -(m * scale))


@jit(device=True)
def quad_max(value):
    """The largest of four lanes, in all of them."""
    value = fmax(value, cuda.shfl_xor_sync(LANES, value, 1))
    return fmax(value, cuda.shfl_xor_sync(LANES, value, 2))


@jit(device=True)
def quad_sum(value):
    value += cuda.shfl_xor_sync(LANES, value, 1)
    return value + cuda.shfl_xor_sync(LANES, value, 2)


@functools.cache
def mask_of(keys: int):
    @jit(device=True)
    def mask(values, tile, inner_first, inner_end, first0, seen0, first1, seen1):
        """−∞ for the keys of a tile that a row does not see.

        inner: the keys that all rows of the warpgroup see; a tile of them alone needs no mask.
        first, seen: the first key that a row sees, and how many: key − first < seen is one
        comparison, for the numbers are unsigned.
        """
        key = uint32(tile * uint32(keys))
        if uint32(key + uint32(keys)) > inner_end or key < inner_first:
            key = uint32(key + uint32(2) * (uint32(cuda.threadIdx.x) & uint32(3)))
            at0, at1 = uint32(key - first0), uint32(key - first1)
            for j in range(keys // 8):
                for i in range(2):
                    if uint32(at0 + uint32(8 * j + i)) >= seen0:
                        values[4 * j + i] = float32(LOWEST)
                    if uint32(at1 + uint32(8 * j + i)) >= seen1:
                        values[4 * j + 2 + i] = float32(LOWEST)

    return mask


@functools.cache
def maxima_of(keys: int):
    @jit(device=True)
    def maxima(values):
        """The largest score of each of the two rows; two chains for each, for they are slow."""
        a0, b0, a1, b1 = values[0], values[1], values[2], values[3]
        for j in range(1, keys // 8):
            a0, b0 = fmax(a0, values[4 * j]), fmax(b0, values[4 * j + 1])
            a1, b1 = fmax(a1, values[4 * j + 2]), fmax(b1, values[4 * j + 3])
        return quad_max(fmax(a0, b0)), quad_max(fmax(a1, b1))

    return maxima


@functools.cache
def exponentials_of(keys: int):
    @jit(device=True)
    def exponentials(values, scale, offset0, offset1, l0, l1):
        """Scores to 2^(score · scale + offset), in place; adds them to l0 and l1."""
        for j in range(keys // 8):
            for i in range(2):
                p0 = ptx.ex2(ptx.fma(values[4 * j + i], scale, offset0))
                p1 = ptx.ex2(ptx.fma(values[4 * j + 2 + i], scale, offset1))
                values[4 * j + i], values[4 * j + 2 + i] = p0, p1
                l0 += p0
                l1 += p1
        return l0, l1

    return exponentials


@functools.cache
def softmax_of(keys: int):
    maxima, exponentials = maxima_of(keys), exponentials_of(keys)

    @jit(device=True)
    def begin(values, scale):
        """The first tile of keys: scores to exponentials; returns m and l of the two rows."""
        m0, m1 = maxima(values)
        l0, l1 = exponentials(
            values, scale, row_offset(m0, scale), row_offset(m1, scale), float32(0), float32(0)
        )
        return m0, m1, l0, l1

    @jit(device=True)
    def go_on(values, scale, m0, m1, l0, l1):
        """Another one: returns m and l, what o has to be multiplied by, and whether it has to."""
        t0, t1 = maxima(values)
        rises0 = (t0 - m0) * scale > float32(SLACK)
        rises1 = (t1 - m1) * scale > float32(SLACK)
        t0, t1 = cuda.selp(rises0, t0, m0), cuda.selp(rises1, t1, m1)
        offset0, offset1 = row_offset(t0, scale), row_offset(t1, scale)
        factor0 = ptx.ex2(ptx.fma(m0, scale, offset0))
        factor1 = ptx.ex2(ptx.fma(m1, scale, offset1))
        l0, l1 = exponentials(values, scale, offset0, offset1, l0 * factor0, l1 * factor1)
        return t0, t1, l0, l1, factor0, factor1, rises0 or rises1

    return begin, go_on


@functools.cache
def rescale_of(width: int):
    @jit(device=True)
    def rescale(output, factor0, factor1):
        for j in range(width // 8):
            for i in range(2):
                output[4 * j + i] *= factor0
                output[4 * j + 2 + i] *= factor1

    return rescale
