"""Bytes and numbers: float32 to and from the bits of bfloat16 and float16, on whole arrays.

Rounding is to nearest, ties to even; a NaN becomes the format's canonical NaN, as a GPU makes it.
"""

import functools

import numpy as np

NAN_BF16 = NAN_F16 = 0x7FFF
NAN_F32 = np.uint32(0x7FFFFFFF).view(np.float32)


def bf16_bits(values):
    """float32 array → uint16 array of bfloat16 bits, rounded to nearest even."""
    values = np.ascontiguousarray(values, np.float32)
    bits = values.view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    nan = values != values
    if nan.any():
        rounded[nan] = NAN_BF16
    return rounded


def f16_bits(values):
    """float32 array → uint16 array of float16 bits, rounded to nearest even."""
    values = np.ascontiguousarray(values, np.float32)
    with np.errstate(all="ignore"):
        bits = values.astype(np.float16).view(np.uint16)
    nan = values != values
    if nan.any():
        bits[nan] = NAN_F16
    return bits


def bf16_values(bits):
    """uint16 array of bfloat16 bits → float32 array, exact."""
    return (np.asarray(bits, np.uint16).astype(np.uint32) << 16).view(np.float32)


@functools.cache
def all_float16():
    """The float32 value of each of the 65,536 codes of float16."""
    with np.errstate(all="ignore"):
        values = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    values[np.isnan(values)] = NAN_F32
    return values


def f16_values(bits):
    """uint16 array of float16 bits → float32 array, exact; a NaN becomes the canonical one."""
    return all_float16()[np.asarray(bits, np.uint16)]


def decode(data, dtype):
    """Bytes of float32, float16 or bfloat16 ("uint16") elements → float32 array."""
    if dtype == "float32":
        return data.view(np.float32)
    return (bf16_values if dtype == "uint16" else f16_values)(data.view(np.uint16))


def encode(values, dtype):
    """float32 array → the bytes of float32, float16 or bfloat16 ("uint16") elements."""
    if dtype == "float32":
        return values.view(np.uint8)
    return (bf16_bits if dtype == "uint16" else f16_bits)(values).view(np.uint8)
