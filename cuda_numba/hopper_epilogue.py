"""What becomes of a product's tile before it is written: an epilogue, as compile-time constants.

    v = Σₖ A B                       float32, in the accumulators
    v = v + bias                     a number for each column
    pre ← v                          written as well, in the operands' format (`keep_pre`)
    v = gelu(v)                      `activation`: "gelu" or "gelu_tanh"
    v = v · gelu'(beside)            `slope`: the backward pass of that; beside is a matrix like C
    v = v + beside                   `residual`
    sums ← column sums of v          a bias's gradient: rows of partial sums, see `sum_rows_of`
    C ← v, or C ← C + v              `accumulate`, float32 only

A variant compiles only what it needs. All of it happens chunk by chunk, 64 columns at a time, in 32
local float32 a thread: see `hopper_fragments` for who holds what. Bytes: 2 M N for `pre` and for
`beside`, 4 M N / 32 for the sums; the rest stays in the caches.
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
SUMS = 16  # of a chunk's columns, that a thread holds


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
def exchanged(low, high, lane, distance):
    """Of two sums, the one that this lane keeps, with what the lane at `distance` has of it."""
    upper = (lane & uint32(distance)) != uint32(0)
    mine = high if upper else low
    other = low if upper else high
    return mine + cuda.shfl_xor_sync(LANES, other, distance)


def sum_rows_of(M: int, turns: bool) -> int:
    """How many rows of partial column sums there are: one for each warp of a group that writes.

    A warp has 16 rows of 64; in turns 16 of either half of 128, and adds both.
    """
    return 4 * -(-M // (128 if turns else 64))


@jit(device=True)
def thread_column_sums(values, totals, place, first, rows_left):
    """totals[place : place + 16] ← or += what a thread has of a chunk's columns, its two rows.

    rows_left: how many rows of C there are from the thread's first on.
    """
    for j in range(8):
        for i in range(2):
            total = values[4 * j + i] if rows_left > uint32(0) else float32(0)
            if rows_left > uint32(8):
                total += values[4 * j + 2 + i]
            if not first:
                total += totals[place + 2 * j + i]
            totals[place + 2 * j + i] = total


@jit(device=True)
def warp_column_sums(totals, place, lane):
    """Of a warp's sums of a chunk's 64 columns, those of columns 2 lane and 2 lane + 1.

    Lanes that differ in g hold other rows of the same columns. In three steps they exchange halves:
    16 sums a lane become 8, 4 and 2.

        lanes g, g ^ 4: columns 8 j + … with j < 4 | j ≥ 4, then g ^ 2: of those the first two or
        the last two, then g ^ 1: one j each

    So g = 4 a + 2 b + c ends with j = g, that is columns 8 g + 2 t and the next.
    """
    sums = cuda.local.array(8, float32)
    for k in range(8):
        sums[k] = exchanged(totals[place + k], totals[place + 8 + k], lane, 16)
    for k in range(4):
        sums[k] = exchanged(sums[k], sums[4 + k], lane, 8)
    for k in range(2):
        sums[k] = exchanged(sums[k], sums[2 + k], lane, 4)
    return sums[0], sums[1]
