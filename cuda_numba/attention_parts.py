"""What attention needs of PTX beyond `ptx`: maxima, packed operands, barriers by number.

Source: PTX ISA, sections "max", "barrier".
"""

import functools

import numpy as np

from .emulator import named_barrier
from .ptx.convert import bf16_of, f16_of, pack_halves
from .ptx.instruction import Instruction, instruction


@instruction("max.f32 $0, $1, $2;", "f32(f32, f32)", pure=True, flops=1)
def fmax(a, b):
    """The larger of two float32; of a NaN and a number, the number."""
    return np.fmax(a, b)


@instruction("bar.arrive $0, $1;", "void(u32, literal)", scope="block", convergent=True)
def barrier_arrive_any(t, number, count):
    """`ptx.barrier_arrive` with a number known only when the kernel runs."""
    named_barrier.arrive(t, number, count)


@functools.cache
def pack_fragments(n: int, dtype: str) -> Instruction:
    """The instruction `words = pack(values)`: n float32 of a local array as n / 2 packed words.

    Accumulators 2 k and 2 k + 1 of a product become word k: as operand A of the next product the
    words of m64nNk16 stand in the order in which the accumulators did.
    """
    round_to = f16_of if dtype == "float16" else bf16_of

    def lower(e, values):
        numbers = [e.builder.load(values.element(e.integer(k))) for k in range(n)]
        kind = "float16" if dtype == "float16" else "uint16"
        return [pack_halves(e, numbers[k], numbers[k + 1], kind) for k in range(0, n, 2)]

    def meaning(t, values):
        halves = [round_to(v) for v in values[:n]]
        return tuple(halves[k] | halves[k + 1] << 16 for k in range(0, n, 2))

    meaning.__doc__ = f"{n} float32 rounded to {dtype}, two in a word."
    return instruction(lower, f"u32x{n // 2}(f32[])", name=f"pack_{n}_{dtype}")(meaning)
