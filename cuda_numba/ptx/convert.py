"""Number formats: float32 to and from bfloat16, float16 and the two 8-bit floats, and raw bits.

Kernels hold bfloat16 and 8-bit floats as unsigned integers. A packed pair has its first element in
the low half. Conversions to a narrower format round to nearest, ties to even; the 8-bit ones
saturate at the largest finite value (448 for e4m3, 57344 for e5m2). A NaN becomes the format's
canonical NaN. Source: PTX ISA, section "cvt"; the 8-bit formats: Micikevicius et al. 2022, "FP8
Formats for Deep Learning", table 1.
"""

import functools
import math

import numpy as np
from llvmlite import ir

from ..bits import (
    NAN_BF16,
    NAN_F16,
    NAN_F32,
    all_float16,
)
from .instruction import Instruction, instruction

HALF = ir.HalfType()
NAN_FLOAT8 = 0x7F


# ---- Python meanings, on whole arrays and on single numbers


@functools.cache
def float8_values(name):
    """The float32 value of each of the 256 codes of "e4m3" or "e5m2"."""
    exponent_bits, mantissa_bits = int(name[1]), int(name[3])
    bias = (1 << (exponent_bits - 1)) - 1
    values = np.empty(256, np.float32)
    for code in range(256):
        exponent = (code & 0x7F) >> mantissa_bits
        fraction = (code & ((1 << mantissa_bits) - 1)) / (1 << mantissa_bits)
        size = math.ldexp(fraction + (exponent > 0), max(exponent, 1) - bias)
        if name == "e5m2" and exponent == 31:
            size = math.nan if fraction else math.inf
        if name == "e4m3" and code & 0x7F == 0x7F:
            size = math.nan
        values[code] = -size if code & 0x80 else size
    values[np.isnan(values)] = NAN_F32
    return values


def float8_bits(value, name):
    """One float32 → the code of the nearest "e4m3" or "e5m2" number, ties to even, saturating."""
    value = float(value)
    if math.isnan(value):
        return NAN_FLOAT8
    exponent_bits, mantissa_bits = int(name[1]), int(name[3])
    bias = (1 << (exponent_bits - 1)) - 1
    sign = 0x80 if math.copysign(1.0, value) < 0 else 0
    largest = 448.0 if name == "e4m3" else 57344.0
    size = min(abs(value), largest)
    # frexp's exponent is one more than that of a 1.xxx number; below the smallest the step stays.
    exponent = max(math.frexp(size)[1] - 1, 1 - bias) if size else 1 - bias
    steps = round(math.ldexp(size, mantissa_bits - exponent))  # Python rounds ties to even
    # A carry out of the mantissa lands in the exponent field, which is the right code.
    return sign | (((exponent + bias - 1) << mantissa_bits) + steps)


def _f32_bits(x):
    return int(np.float32(x).view(np.uint32))


def bf16_of(x):
    """bf16_bits of one number: integer arithmetic is ten times faster than an array of one."""
    word = _f32_bits(x)
    return NAN_BF16 if x != x else (word + 0x7FFF + (word >> 16 & 1)) >> 16


def f16_of(x):
    if not abs(x) < 65520:  # rounds to infinity from here on; a NaN too ends up here
        return NAN_F16 if x != x else 0x7C00 if x > 0 else 0xFC00
    return int(np.float16(x).view(np.uint16))


def _f32_of(word):
    return np.uint32(word).view(np.float32)


# ---- LLVM code, also used by the loads and stores that convert


def half_words(e, words, dtype):
    """32-bit words that each hold two 16-bit floats → twice as many LLVM floats, low half first."""
    b = e.builder
    values = []
    for word in words:
        if dtype == "uint16":
            low = b.shl(word, e.integer(16, "u32"))
            high = b.and_(word, e.integer(0xFFFF0000, "u32"))
            values += [b.bitcast(low, ir.FloatType()), b.bitcast(high, ir.FloatType())]
        else:
            halves = (word, b.lshr(word, e.integer(16, "u32")))
            values += [half_to_float(e, b.trunc(h, ir.IntType(16))) for h in halves]
    return values


def half_to_float(e, bits):
    """The 16 bits of a float16 → an LLVM float."""
    return e.builder.fpext(e.builder.bitcast(bits, HALF), ir.FloatType())


def round_half(e, value, dtype):
    """An LLVM float → the 16 bits of a bfloat16 ("uint16") or float16."""
    kind = "f16" if dtype == "float16" else "bf16"
    if kind == "f16" or e.cc >= (9, 0):
        text = f"cvt.rn.{kind}.f32 $0, $1;"
        return e.asm(text, ["u16"], [("f32", value)], pure=True, memory=False)[0]
    return e.builder.trunc(pack_halves(e, value, value, dtype), ir.IntType(16))


def pack_halves(e, low, high, dtype):
    """Two LLVM floats → one word of two bfloat16 ("uint16") or float16."""
    b = e.builder
    if e.cc >= (8, 0):
        kind = "bf16x2" if dtype == "uint16" else "f16x2"
        pair = [("f32", low), ("f32", high)]
        return e.asm(f"cvt.rn.{kind}.f32 $0, $2, $1;", ["u32"], pair, pure=True, memory=False)[0]
    if dtype == "float16":
        low, high = (b.zext(round_half(e, v, dtype), ir.IntType(32)) for v in (low, high))
    else:
        low, high = (_round_bf16(e, v) for v in (low, high))
    return b.or_(low, b.shl(high, e.integer(16, "u32")))


def _round_bf16(e, value):
    """bfloat16 bits in integer arithmetic, for GPUs before compute capability 8.0."""
    b = e.builder
    bits = b.bitcast(value, ir.IntType(32))
    odd = b.and_(b.lshr(bits, e.integer(16, "u32")), e.integer(1, "u32"))
    rounded = b.lshr(b.add(b.add(bits, e.integer(0x7FFF, "u32")), odd), e.integer(16, "u32"))
    nan = b.fcmp_unordered("uno", value, value)
    return b.select(nan, e.integer(NAN_BF16, "u32"), rounded)


# ---- the instructions


def _lower_pack(dtype):
    return lambda e, low, high: pack_halves(e, low.value, high.value, dtype)


def _lower_unpack(dtype):
    return lambda e, word: half_words(e, [word.value], dtype)


def _lower_round(dtype):
    return lambda e, value: round_half(e, value.value, dtype)


@instruction(_lower_pack("uint16"), "u32(f32, f32)", pure=True)
def pack_bf16(lo, hi):
    """Two float32 → two bfloat16 in one word (`cvt.rn.bf16x2.f32`; integer code before sm_80)."""
    return bf16_of(lo) | bf16_of(hi) << 16


@instruction(_lower_unpack("uint16"), "f32x2(u32)", pure=True)
def unpack_bf16(word):
    """Two bfloat16 in one word → two float32, exact (a shift and a mask)."""
    return _f32_of((word & 0xFFFF) << 16), _f32_of(word & 0xFFFF0000)


@instruction(_lower_round("uint16"), "u16(f32)", pure=True)
def f32_to_bf16(x):
    """A float32 → the bits of the nearest bfloat16."""
    return bf16_of(x)


def _lower_bf16_to_f32(e, bits):
    word = e.builder.zext(bits.value, ir.IntType(32))
    return half_words(e, [word], "uint16")[0]


@instruction(_lower_bf16_to_f32, "f32(u16)", pure=True)
def bf16_to_f32(bits):
    """The bits of a bfloat16 → float32, exact."""
    return _f32_of(bits << 16)


@instruction(_lower_pack("float16"), "u32(f32, f32)", pure=True)
def pack_f16(lo, hi):
    """Two float32 → two float16 in one word (`cvt.rn.f16x2.f32`; two `cvt` before sm_80)."""
    return f16_of(lo) | f16_of(hi) << 16


@instruction(_lower_unpack("float16"), "f32x2(u32)", pure=True)
def unpack_f16(word):
    """Two float16 in one word → two float32, exact."""
    values = all_float16()
    return values[word & 0xFFFF], values[word >> 16]


@instruction(_lower_round("float16"), "u16(f32)", pure=True)
def f32_to_f16_bits(x):
    """A float32 → the bits of the nearest float16; from 65520 on, infinity."""
    return f16_of(x)


@instruction(lambda e, bits: half_to_float(e, bits.value), "f32(u16)", pure=True)
def f16_to_f32(bits):
    """The bits of a float16 → float32, exact."""
    return all_float16()[bits]


def _pack_float8(name):
    @instruction(
        f"cvt.rn.satfinite.{name}x2.f32 $0, $2, $1;",
        "u16(f32, f32)",
        pure=True,
        cc=(8, 9),
        name=f"pack_{name}",
    )
    def pack(lo, hi):
        return float8_bits(lo, name) | float8_bits(hi, name) << 8

    pack.__doc__ = f"Two float32 → two {name} in 16 bits, saturating (`cvt.rn.satfinite`)."
    return pack


def _unpack_float8(name):
    def lower(e, pair):
        text = f"cvt.rn.f16x2.{name}x2 $0, $1;"
        return half_words(e, e.asm(text, ["u32"], [("u16", pair.value)]), "float16")

    @instruction(lower, "f32x2(u16)", pure=True, cc=(8, 9), name=f"unpack_{name}")
    def unpack(pair):
        values = float8_values(name)
        return values[pair & 0xFF], values[pair >> 8]

    unpack.__doc__ = f"Two {name} in 16 bits → two float32, exact (by way of float16)."
    return unpack


pack_e4m3, pack_e5m2 = _pack_float8("e4m3"), _pack_float8("e5m2")
unpack_e4m3, unpack_e5m2 = _unpack_float8("e4m3"), _unpack_float8("e5m2")


@instruction(lambda e, x: e.builder.bitcast(x.value, ir.IntType(32)), "u32(f32)", pure=True)
def bits(x):
    """The 32 bits of a float32."""
    return _f32_bits(x)


@instruction(lambda e, x: e.builder.bitcast(x.value, ir.FloatType()), "f32(u32)", pure=True)
def from_bits(word):
    """The float32 that has these 32 bits."""
    return _f32_of(word)


__all__ = [name for name, value in globals().items() if isinstance(value, Instruction)]
