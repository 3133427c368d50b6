"""What becomes of a product's tile before it is written: an epilogue, as compile-time constants.

    v = Σₖ A B                       float32, in the accumulators
    v = v + bias                     a number for each column
    pre ← v                          written as well, in the operands' format (`keep_pre`)
    v = gelu(v)                      `activation`: "gelu" or "gelu_tanh"
    v = v · gelu'(beside)            `slope`: the backward pass of that; beside is a matrix like C
    v = v + beside                   `residual`
    sums ← column sums of v          a bias's gradient: a row of partial sums for each 64 rows of C
    C ← v, or C ← C + v              `accumulate`, float32 only

A variant compiles only what it needs. All of it happens chunk by chunk, 64 columns at a time, in 32
local float32 a thread: see `hopper_fragments` for who holds what. Bytes: 2 M N for `pre` and for
`beside`, 4 M N / 64 for the sums; the rest stays in the caches.
"""

import functools
from dataclasses import dataclass

from . import ptx
from .activation_curve import curve
from .hopper_fragments import halves
from .jit import jit
from .namespace import cuda, float32, uint32
from .warp import LANES

ACTIVATIONS = ("gelu", "gelu_tanh")
SUM_ROWS = 64  # rows of C that one row of partial column sums stands for


@dataclass(frozen=True)
class Epilogue:
    """See the module. bias: the format of the bias, None for none."""

    bias: str | None = None
    keep_pre: bool = False
    activation: str | None = None
    slope: str | None = None
    residual: bool = False
    sums: bool = False
    accumulate: bool = False

    @property
    def beside(self) -> bool:
        """Whether a matrix like C is read."""
        return self.residual or self.slope is not None

    def __post_init__(self):
        for name in ("activation", "slope"):
            if getattr(self, name) not in (None, *ACTIVATIONS):
                raise ValueError(
                    f"{name}: got {getattr(self, name)!r}, it is one of {', '.join(ACTIVATIONS)}"
                )
        if self.residual and self.slope:
            raise ValueError("residual, slope: a product reads one matrix beside, not two")
        if self.keep_pre and self.beside:
            raise ValueError("pre: it cannot be written where residual or slope_at is read")


NONE = Epilogue()


@functools.cache
def add_bias(dtype: str, pairs: bool):
    """The device function (values, bias, column, columns): values += bias. column: the thread's
    first; pairs: the number of columns is even and the bias begins at a multiple of 8 bytes."""
    WIDE = dtype == "float32"
    _, unpack = (None, None) if WIDE else halves(dtype)

    @jit(device=True)
    def pair_at(bias, at):
        if WIDE:
            first, second = ptx.load_64(bias, at)
            return ptx.from_bits(first), ptx.from_bits(second)
        return unpack(ptx.load_32(bias, at))

    @jit(device=True)
    def singles_at(bias, at, columns):
        second = float32(0)
        if uint32(at + uint32(1)) < columns:
            second = ptx.load(bias, at + uint32(1))
        return ptx.load(bias, at), second

    @jit(device=True)
    def add(values, bias, column, columns):
        for j in range(8):
            at = uint32(column + uint32(8 * j))
            if at < columns:
                if pairs:
                    low, high = pair_at(bias, at)
                else:
                    low, high = singles_at(bias, at, columns)
                for h in range(2):
                    values[4 * j + 2 * h] += low
                    values[4 * j + 2 * h + 1] += high

    return add


# Loops of eight, not of 32: a body as long as a curve is unrolled that often, and only where every
# loop over a local array is unrolled does the array stay in registers.


@functools.cache
def mapped(form: str, dtype: str):
    """The device function (values): values = form(values), all 32."""
    value, _ = curve(form, dtype)

    @jit(device=True)
    def apply_eight(values, first):
        for k in range(8):
            values[first + k] = value(values[first + k])

    @jit(device=True)
    def apply(values):
        apply_eight(values, 0)
        apply_eight(values, 8)
        apply_eight(values, 16)
        apply_eight(values, 24)

    return apply


@functools.cache
def sloped(form: str, dtype: str):
    """The device function (values, at): values = values · form'(at), all 32."""
    _, derivative = curve(form, dtype)

    @jit(device=True)
    def apply_eight(values, at, first):
        for k in range(8):
            values[first + k] *= derivative(at[first + k])

    @jit(device=True)
    def apply(values, at):
        apply_eight(values, at, 0)
        apply_eight(values, at, 8)
        apply_eight(values, at, 16)
        apply_eight(values, at, 24)

    return apply


@jit(device=True)
def added(values, beside):
    for k in range(32):
        values[k] += beside[k]


@jit(device=True)
def _exchanged(low, high, lane, distance):
    """Of two sums, the one that this lane keeps, with what the lane at `distance` has of it."""
    upper = (lane & uint32(distance)) != uint32(0)
    mine = high if upper else low
    other = low if upper else high
    return mine + cuda.shfl_xor_sync(LANES, other, distance)


@jit(device=True)
def warp_column_sums(values, out, at, lane, rows_left):
    """The sums over a warp's 16 rows of a chunk's 64 columns, to out[at : at + 64] (shared).

    Lanes that differ in g hold other rows of the same columns. In three steps they exchange halves:
    16 sums a lane become 8, 4 and 2, and every lane ends with two columns of its own.

        lanes g, g ^ 4: columns 8 j + … with j < 4 | j ≥ 4, then g ^ 2: of those the first two or
        the last two, then g ^ 1: one j each
    """
    sums = cuda.local.array(16, float32)
    g = uint32(lane >> uint32(2))
    for j in range(8):
        for i in range(2):
            total = float32(0)
            if g < rows_left:
                total = values[4 * j + i]
            if uint32(g + uint32(8)) < rows_left:
                total += values[4 * j + 2 + i]
            sums[2 * j + i] = total
    for k in range(8):
        sums[k] = _exchanged(sums[k], sums[8 + k], lane, 16)
    for k in range(4):
        sums[k] = _exchanged(sums[k], sums[4 + k], lane, 8)
    for k in range(2):
        sums[k] = _exchanged(sums[k], sums[2 + k], lane, 4)
    t = uint32(lane & uint32(3))
    # g = 4 a + 2 b + c holds j = 4 a + 2 b + c, that is columns 8 g + 2 t and the next.
    place = uint32(at + g * uint32(8) + t * uint32(2))
    out[place] = sums[0]
    out[place + uint32(1)] = sums[1]
