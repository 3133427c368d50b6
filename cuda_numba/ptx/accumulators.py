"""Accumulators of `wgmma` as tuples of registers: made, changed by index, and kept in place.

Tuples cannot be changed; where single accumulators are, they go into a local array and back:

    store(acc, values)
    for k in range(n // 2): values[k] = values[k] * scale
    acc = load(values)

Both stay in registers, no code comes of it.
"""

import functools

import numpy as np
from llvmlite import ir

from ..emulator import wgmma_state
from .instruction import Instruction, instruction


@functools.cache
def wgmma_zeros(n: int, accumulator: str = "f32") -> Instruction:
    """The instruction `acc = zeros()`: n / 2 registers of zeros."""
    zero = 0 if accumulator == "s32" else np.float32(0)

    def lower(e):
        kind = ir.IntType(32) if accumulator == "s32" else ir.FloatType()
        return [ir.Constant(kind, 0)] * (n // 2)

    def meaning(t):
        return wgmma_state.written(t, (zero,) * (n // 2))

    meaning.__doc__ = f"{n // 2} registers of zeros."
    return instruction(
        lower, f"{accumulator}x{n // 2}()", name=f"wgmma_zeros_{n // 2}", memory=False
    )(meaning)


@functools.cache
def wgmma_load(n: int) -> Instruction:
    """The instruction `acc = load(values)`: a local array of n / 2 float32 as accumulators."""

    def lower(e, values):
        return [e.builder.load(values.element(e.integer(k))) for k in range(n // 2)]

    def meaning(t, values):
        return wgmma_state.written(t, tuple(np.float32(v) for v in values[: n // 2]))

    meaning.__doc__ = f"The first {n // 2} float32 of a local array as a tuple."
    return instruction(lower, f"f32x{n // 2}(f32[])", name=f"wgmma_load_{n // 2}")(meaning)


@functools.cache
def wgmma_store(n: int) -> Instruction:
    """The instruction `store(acc, values)`: accumulators into a local array of n / 2 float32.

    Where single accumulators are changed by index, as the rescaling of attention does; both arrays
    and tuples stay in registers.
    """

    def lower(e, accumulators, values):
        for k in range(n // 2):
            value = e.builder.extract_value(accumulators.value, k)
            e.builder.store(value, values.element(e.integer(k)))

    def meaning(t, accumulators, values):
        values[: n // 2] = list(accumulators)

    meaning.__doc__ = f"{n // 2} accumulators into a local array."
    return instruction(lower, f"void(f32x{n // 2}, f32[])", name=f"wgmma_store_{n // 2}")(meaning)


@functools.cache
def pin(count: int, kind: str = "u32") -> Instruction:
    """The instruction `values = pin(values)`: `count` registers that stay where they are from here.

    Without it the compiler may still be moving an operand's registers when the product begins, and
    the assembler then makes every wgmma of the kernel wait for the one before.
    """

    def meaning(t, values):
        return values

    meaning.__doc__ = f"Keep {count} registers in their places; does nothing else."
    registers = f"{kind}x{count}"
    return instruction("// pinned", f"{registers}({registers})", name=f"pin_{count}", tied=count)(
        meaning
    )


__all__ = ["pin", "wgmma_load", "wgmma_store", "wgmma_zeros"]
