"""From stored codes to pairs of bfloat16 or float16, a few instructions for each word of codes.

A word of four or eight codes becomes words that hold two numbers each, as tensor cores want them.
No conversion instruction is needed: bits are put where a floating-point number has its fraction,
under an exponent at which one unit of the fraction is 1, and what that adds is taken off again.

    int4, code c = q + 8, 0 … 15        0x4300 | c   is 128 + c in bfloat16     − 136 gives q
                                        0x6400 | c   is 1024 + c in float16     − 1032
      four bits further to the left     c << 4       is c · 2^-129 in bfloat16  · 2^127 is c / 4
                                        0x6400 | c << 4  is 1024 + 16 c in float16
    int8, u = q + 128, 0 … 255          u        is u · 2^-133 in bfloat16  · 2^127 − 2 is q / 64
                                        0x6400 | u   is 1024 + u in float16     − 1152
    e4m3, e5m2                          sign, exponent and fraction shifted into place; times a
                                        power of two that makes up for the other exponent bias

(A bfloat16 below 2^-125 has one unit, 2^-133, whether its exponent bits are 0 or 1: eight bits
count up evenly.) The factors that are missing, 4 and 64, are in `UNIT`; a kernel multiplies its
sums by them, exactly. Every step is exact (tested for every code), subnormal codes included. Codes
that are no numbers (e4m3 0x7F, e5m2 from 0x7C on) are not told apart; no quantiser makes them.

Instructions for eight numbers: int4 9 (a shift, 4 `lop3`, 4 `fma`), int8 10, fp8 20. Source of the
first trick: Kim, Henry, Fahim and Awadalla 2022, "Who Says Elephants Can't Run", section 3.2;
`fma.rn.bf16x2`: PTX ISA, section "Half Precision Floating Point Instructions".
"""

import functools

import numpy as np

from . import ptx
from .bits import bf16_values, f16_values
from .jit import jit
from .namespace import float32, uint32
from .ptx.arithmetic import fused, narrow
from .ptx.convert import bf16_of, f16_of
from .ptx.instruction import instruction

AND_OR = (0xF0 & 0xCC) | 0xAA  # lop3: (a & b) | c
KINDS = ("int8", "int4", "e4m3", "e5m2")


def _fma_pair(name, kind, values, bits_of, cc):
    """a · b + c on both halves of words, each rounded once."""

    def meaning(a, b, c):
        halves = [values(np.array([w & 0xFFFF, w >> 16], np.uint16)) for w in (a, b, c)]
        low, high = (bits_of(fused(*numbers)) for numbers in zip(*halves, strict=True))
        return low | high << 16

    meaning.__doc__ = f"a · b + c on the two {kind} of a word, each rounded once."
    return instruction(
        f"fma.rn.{kind}x2 $0, $1, $2, $3;", "u32(u32, u32, u32)", pure=True, flops=4, cc=cc,
        name=name,
    )(meaning)  # fmt: skip


fma_pair_bf16 = _fma_pair("fma_pair_bf16", "bf16", bf16_values, bf16_of, (8, 0))
fma_pair_f16 = _fma_pair("fma_pair_f16", "f16", f16_values, f16_of, (7, 5))

# (times, plus): the numbers that take the magic exponent off again, in both halves of a word.
FIX = {
    ("int8", "bfloat16"): (0x7F007F00, 0xC000C000),  # 2^127, −2
    ("int8", "float16"): (0x3C003C00, 0xE480E480),  # 1, −1152
    ("e4m3", "bfloat16"): (0x7B807B80, 0),  # 2^120
    ("e4m3", "float16"): (0x5C005C00, 0),  # 2^8
    ("e5m2", "bfloat16"): (0x77807780, 0),  # 2^112
}
# int4: the magic number, and the fix of codes in the low four bits and in the next four. In
# bfloat16 the next four bits are a subnormal number, or one of the lowest
# exponent, which has the same unit: no magic number is needed, but 2^127 is as much as there is.
INT4 = {
    "bfloat16": (0x43004300, (0x3E803E80, 0xC208C208), 0, (0x7F007F00, 0xC000C000)),
    "float16": (0x64006400, (0x3C003C00, 0xE408E408), 0x64006400, (0x2C002C00, 0xD480D480)),
}
# A code comes out as q · UNIT.
UNIT = {("int4", "bfloat16"): 1 / 4, ("int8", "bfloat16"): 1 / 64}


def unit_of(kind: str, dtype: str) -> float:
    """What code 1 of a kind comes out as."""
    return UNIT.get((kind, dtype), 1.0)


# Where fp8's exponent and fraction go in a half word, after a shift to the right.
FLOAT8 = {
    ("e4m3", "bfloat16"): (4, 0x07F007F0),
    ("e4m3", "float16"): (1, 0x3F803F80),
    ("e5m2", "bfloat16"): (3, 0x0FE00FE0),
}


@functools.cache
def eight_of(kind: str, dtype: str):
    """A device function (word, next word) → four words of two numbers of `dtype`, in order of k.

    int4 has its eight codes in the first word, 8-bit codes are in both. They come as
    q · unit_of(kind, dtype).
    """
    fma = fma_pair_bf16 if dtype == "bfloat16" else fma_pair_f16
    if kind == "int4":
        return _eight_of_int4(fma, *INT4[dtype])
    if kind == "int8":
        return _eight_of_int8(fma, 0 if dtype == "bfloat16" else 0x64646464, *FIX[kind, dtype])
    if (kind, dtype) == ("e5m2", "float16"):
        two = _two_of_e5m2_f16
    else:
        two = _two_of_float8(fma, *FLOAT8[kind, dtype], FIX[kind, dtype][0])

    @jit(device=True)
    def eight(word, more):
        return two(word, 0), two(word, 1), two(more, 0), two(more, 1)

    return eight


def _eight_of_int4(fma, low_magic, low_fix, high_magic, high_fix):
    low_times, low_plus = low_fix
    high_times, high_plus = high_fix

    @jit(device=True)
    def two(word):
        low = ptx.lop3(word, uint32(0x000F000F), uint32(low_magic), AND_OR)
        high = ptx.lop3(word, uint32(0x00F000F0), uint32(high_magic), AND_OR)
        return (
            fma(low, uint32(low_times), uint32(low_plus)),
            fma(high, uint32(high_times), uint32(high_plus)),
        )

    @jit(device=True)
    def eight(word, more):
        a, b = two(word)
        c, d = two(word >> uint32(8))
        return a, b, c, d

    return eight


def _eight_of_int8(fma, magic, times, plus):
    @jit(device=True)
    def two(word, selector):
        """A code in the low byte of each half, the magic number's byte in the high one."""
        return fma(ptx.prmt(word, uint32(magic), selector), uint32(times), uint32(plus))

    @jit(device=True)
    def eight(word, more):
        word, more = word ^ uint32(0x80808080), more ^ uint32(0x80808080)
        low, high = uint32(0x4140), uint32(0x4342)
        return two(word, low), two(word, high), two(more, low), two(more, high)

    return eight


@jit(device=True)
def _two_of_e5m2_f16(word, half):
    return ptx.prmt(word, uint32(0), uint32(0x1404 + 0x2020 * half))  # a code in each high byte


def _two_of_float8(fma, shift, mask, times):
    @jit(device=True)
    def two(word, half):
        high = ptx.prmt(word, uint32(0), uint32(0x1404 + 0x2020 * half))
        sign = high & uint32(0x80008000)
        number = ptx.lop3(high >> uint32(shift), uint32(mask), sign, AND_OR)
        return fma(number, uint32(times), uint32(0))

    return two


def _dot_text():
    """Eight fused multiply-adds in a row; a loop of them would be unrolled less surely."""
    steps = [f"fma.rn.f32 $0, ${1 + k}, ${9 + k}, ${'0' if k else '17'};" for k in range(8)]
    return " ".join(steps)


@instruction(_dot_text(), f"f32({', '.join(['f32'] * 17)})", pure=True, flops=16, early=True)
def dot8(*numbers):
    """c + a₀b₀ + … + a₇b₇ in this order, of a₀ … a₇, b₀ … b₇, c: eight fused multiply-adds."""
    total = numbers[16]
    for k in range(8):
        total = narrow(fused(numbers[k], numbers[8 + k], total))
    return total


# ---- float32, for the kernel without tensor cores: it runs on compute capability 7.5 as well


@functools.cache
def floats_of(kind: str):
    """A device function (word, next word) → eight float32, in order of k."""
    if kind == "int4":
        return _floats_of_int4
    one = _float_of_int8 if kind == "int8" else _float_of_float8(kind)

    @jit(device=True)
    def floats(word, more):
        a, b, c, d = one(word, 0), one(word, 1), one(word, 2), one(word, 3)
        e, f, g, h = one(more, 0), one(more, 1), one(more, 2), one(more, 3)
        return a, b, c, d, e, f, g, h

    return floats


@jit(device=True)
def _pair_of_int4(word):
    code = ptx.lop3(word, uint32(0x000F000F), uint32(0x43004300), AND_OR)
    low, high = ptx.from_bits(code << uint32(16)), ptx.from_bits(code & uint32(0xFFFF0000))
    return low - float32(136), high - float32(136)


@jit(device=True)
def _floats_of_int4(word, more):
    a, b = _pair_of_int4(word)
    c, d = _pair_of_int4(word >> uint32(4))
    e, f = _pair_of_int4(word >> uint32(8))
    g, h = _pair_of_int4(word >> uint32(12))
    return a, b, c, d, e, f, g, h


@jit(device=True)
def _float_of_int8(word, byte):
    """2^23 + (q + 128) by its bits, less 2^23 + 128."""
    magic = ptx.prmt(word ^ uint32(0x80808080), uint32(0x4B000000), uint32(0x7440 + byte))
    return ptx.from_bits(magic) - float32(8388736.0)


def _float_of_float8(kind):
    bias_gap = 120 if kind == "e4m3" else 112
    shift, mask = (4, 0x07F00000) if kind == "e4m3" else (3, 0x0FE00000)

    @jit(device=True)
    def one(word, byte):
        high = ptx.prmt(word, uint32(0), uint32(0x0444 + 0x1000 * byte))
        number = ptx.lop3(high >> uint32(shift), uint32(mask), high & uint32(0x80000000), AND_OR)
        return ptx.from_bits(number) * float32(2.0**bias_gap)

    return one
