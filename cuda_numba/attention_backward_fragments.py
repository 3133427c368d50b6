"""Moves of register fragments between float32 accumulators and 16-bit operands.

The accumulators of wgmma, rounded two by two, *are* its operand A: registers 8k … 8k + 7 of a
64 × n result make the four words of k step k. The same words are what `stmatrix` stores.
"""

import functools

import numpy as np

from . import ptx
from .bits import bf16_bits, f16_bits
from .emulator import wgmma_state
from .ptx.convert import pack_halves
from .ptx.instruction import instruction


@functools.cache
def pack_fragment(n: int, dtype: str):
    """The instruction `words = pack(values)`: n / 2 float32 of a local array → n / 4 words."""
    count = n // 4
    kind = "uint16" if dtype == "bfloat16" else "float16"
    rounded = bf16_bits if dtype == "bfloat16" else f16_bits

    def lower(e, values):
        loaded = [e.builder.load(values.element(e.integer(k))) for k in range(2 * count)]
        pairs = zip(loaded[::2], loaded[1::2], strict=True)
        return [pack_halves(e, low, high, kind) for low, high in pairs]

    def meaning(t, values):
        with np.errstate(all="ignore"):
            halves = rounded(np.array(values[: 2 * count], np.float32))
        return wgmma_state.written(t, tuple(np.ascontiguousarray(halves).view(np.uint32).tolist()))

    meaning.__doc__ = f"{2 * count} float32 of a local array, rounded to {dtype}, as {count} words."
    return instruction(lower, f"u32x{count}(f32[])", name=f"pack_{count}_{dtype}")(meaning)


pack_of = {"bfloat16": ptx.pack_bf16, "float16": ptx.pack_f16}
