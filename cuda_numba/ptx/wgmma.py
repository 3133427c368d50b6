"""Tensor cores of a warpgroup: `wgmma`, products of four warps that read shared memory themselves.

    D (64 × n) = A (64 × K) B (K × n) + D

`wgmma(n, dtype, …)` makes the instruction. The 128 threads hold D in n / 2 registers each, a tuple
that goes in and comes out. Thread 32 w + 4 g + t holds, of register 4 j + 2 h + i, row
16 w + g + 8 h, column 8 j + 2 t + i. A and B lie in shared memory and are named by descriptors
(`wgmma_descriptor`); A can also come in registers, 4 words a k step, as `mma_m16n8k16` wants it for
the 16 rows of each warp. B is stored as rows of n along K, unless `transpose_b`.

The product goes on while the threads do:

    wgmma_fence()                     registers written by other instructions are ready
    acc = product(acc, a, b, scale)   scale False: D = A B, the old numbers are not read
    wgmma_commit()                    the products since the last commit are a group
    acc = wait(acc)                   wait = wgmma_wait(n, 0): at most 0 groups are unfinished

Until then the accumulators, and the operands in shared memory, belong to the product. Pass the
accumulators through every wait: it ties them to their registers. Shared memory written by ordinary
stores needs `fence_proxy_async_shared` first. A warpgroup is four warps, the first a multiple of 4.

Source: PTX ISA, section "Asynchronous Warpgroup Level Matrix Multiply-Accumulate Operations".
"""

import functools
from dataclasses import dataclass

import numpy as np
from llvmlite import ir

from ..bits import bf16_values, f16_values
from ..emulator import wgmma_operands, wgmma_state
from .convert import float8_values
from .instruction import Instruction, instruction

HOPPER_ONLY = (9, 0, "a")
M = 64
# dtype → PTX name, bytes, type of the accumulators
OPERANDS = {
    "bfloat16": ("bf16", 2, "f32"),
    "float16": ("f16", 2, "f32"),
    "float8_e4m3fn": ("e4m3", 1, "f32"),
    "float8_e5m2": ("e5m2", 1, "f32"),
    "int8": ("s8", 1, "s32"),
}


def _values(bits, operand):
    """Elements, as unsigned integers of their width → their values."""
    if operand == "s8":
        return bits.view(np.int8).astype(np.int64)
    if operand in ("e4m3", "e5m2"):
        return float8_values(operand)[bits].astype(np.float64)
    return (bf16_values if operand == "bf16" else f16_values)(bits).astype(np.float64)


@dataclass(frozen=True)
class Product:
    """One kind of wgmma, as `emulator.wgmma_state` runs it."""

    n: int
    operand: str  # of A and B, as PTX calls it
    size: int  # bytes of an element
    accumulator: str  # "f32" or "s32"
    a: str  # "shared" or "registers"
    k_steps: int
    transpose_a: bool
    transpose_b: bool
    step_a: int
    step_b: int

    @property
    def name(self):
        flags = "_ta" * self.transpose_a + "_tb" * self.transpose_b
        return f"wgmma_m64n{self.n}k{self.depth}_{self.operand}_{self.a}{flags}"

    @property
    def depth(self):
        """Columns of A in all k steps."""
        return self.k_steps * wgmma_operands.STEP // self.size

    @functools.cached_property
    def poison(self):
        value = -1 if self.accumulator == "s32" else wgmma_state.POISON
        return (value,) * (self.n // 2)

    def parts(self, arguments):
        """For each operand in shared memory: its name, and what `wgmma_operands` wants."""
        if self.a == "shared":
            yield "a", (arguments[1], M, self.size, self.k_steps, self.step_a, self.transpose_a)
        yield "b", (arguments[2], self.n, self.size, self.k_steps, self.step_b, self.transpose_b)

    def runs(self, arguments):
        """The bytes of shared memory that the product reads: (address, number)."""
        for _, part in self.parts(arguments):
            yield from wgmma_operands.runs(*part)

    def fetch(self, memory, arguments):
        """The operands in shared memory as unsigned integers, (rows, columns), by name."""
        elements = memory.view(np.uint16 if self.size == 2 else np.uint8)
        return {
            which: elements[wgmma_operands.addresses(*part) // self.size % len(elements)]
            for which, part in self.parts(arguments)
        }

    def multiply(self, operands, rows, accumulators):
        """D, (128, n / 2), from the operands, each thread's arguments, and C.

        The sum is exact to float64 and rounded once; the hardware cuts off the bits of small terms.
        """
        b = _values(operands["b"], self.operand)
        if self.a == "shared":
            a = _values(operands["a"], self.operand)
        else:
            words = np.array([row[1] for row in rows], np.uint32)
            elements = words[..., None].view(np.uint16 if self.size == 2 else np.uint8)
            a = np.empty((M, self.depth), b.dtype)
            a[wgmma_operands.fragment_places(self.size, self.k_steps)] = _values(
                elements, self.operand
            )
        with np.errstate(all="ignore"):
            d = (a @ b.T)[wgmma_operands.accumulator_places(self.n)]
            if rows[0][3]:
                d = d + accumulators
            if self.accumulator == "s32":
                return d.astype(np.uint64).astype(np.uint32).view(np.int32)
            return d.astype(np.float32)

    @property
    def text(self):
        """The PTX: the k steps one after another, each with its descriptors moved on."""
        count = self.n // 2
        words = 4 * self.k_steps if self.a == "registers" else 1
        at = 2 * count  # the operands come after the results and the registers tied to them
        d = "{" + ", ".join(f"${k}" for k in range(count)) + "}"
        b, scale = at + words, at + words + 1
        size = f"m64n{self.n}k{wgmma_operands.STEP // self.size}"
        kind = f"{size}.{self.accumulator}.{self.operand}.{self.operand}"
        lines = ["{ .reg .pred p; .reg .b64 a, b;", f"setp.ne.u32 p, ${scale}, 0; mov.b64 b, ${b};"]
        if self.a == "shared":
            lines.append(f"mov.b64 a, ${at};")
        for k in range(self.k_steps):
            a = "a"
            if self.a == "registers":
                a = "{" + ", ".join(f"${at + 4 * k + i}" for i in range(4)) + "}"
            use = "p" if k == 0 else "1"
            lines.append(f"wgmma.mma_async.sync.aligned.{kind} {d}, {a}, b, {use}{self.flags};")
            if k + 1 < self.k_steps:
                if self.a == "shared":
                    lines.append(f"add.s64 a, a, {self.step_a >> 4};")
                lines.append(f"add.s64 b, b, {self.step_b >> 4};")
        return "\n".join([*lines, "}"])

    @property
    def flags(self):
        """The immediates after the predicate: signs of A and B, and their transposes."""
        if self.accumulator == "s32":
            return ""
        if self.size == 1:
            return ", 1, 1"
        if self.a == "registers":
            return f", 1, 1, {int(self.transpose_b)}"
        return f", 1, 1, {int(self.transpose_a)}, {int(self.transpose_b)}"


def wgmma(
    n: int,
    dtype: str = "bfloat16",
    a: str = "shared",
    k_steps: int = 1,
    transpose_a: bool = False,
    transpose_b: bool = False,
    step_a: int | None = None,
    step_b: int | None = None,
) -> Instruction:
    """The instruction `acc = product(acc, a, b, scale)`: D = A B + D for one warpgroup.

    n: columns of D, a multiple of 8 from 8 to 256 (of 16 above 32 for int8).
    dtype: of A and B: "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2", "int8". Accumulators
        are float32, int32 for int8.
    a: "shared", where the operand is a descriptor (uint64), or "registers", a tuple of
        4 · k_steps uint32.
    k_steps: how many steps along K, 32 bytes each: 16 elements of 16 bits, 32 of 8.
    transpose_a, transpose_b: the operand's rows in shared memory run along M or N, not along K;
        16-bit types only.
    step_a, step_b: bytes between the starts of two steps; by default 32, and 2048 where transposed:
        a row of K in one 128-byte swizzle, or 16 rows of it.

    Raises ValueError where there is no such instruction.
    """
    if dtype not in OPERANDS:
        raise ValueError(f"dtype: got {dtype!r}, wgmma takes {', '.join(OPERANDS)}")
    operand, size, accumulator = OPERANDS[dtype]
    unit = 16 if dtype == "int8" and n > 32 else 8
    if not 8 <= n <= 256 or n % unit:
        raise ValueError(f"n: got {n}, for {dtype} it is a multiple of {unit} from 8 to 256")
    if a not in ("shared", "registers"):
        raise ValueError(f'a: got {a!r}, it is "shared" or "registers"')
    if k_steps < 1:
        raise ValueError(f"k_steps: got {k_steps}, it must be at least 1")
    if size == 1 and (transpose_a or transpose_b):
        raise ValueError(f"transpose_a, transpose_b: {dtype} operands cannot be transposed")
    if transpose_a and a == "registers":
        raise ValueError("transpose_a: an operand in registers cannot be transposed")
    steps = [
        given if given is not None else 2048 if transposed else wgmma_operands.STEP
        for given, transposed in ((step_a, transpose_a), (step_b, transpose_b))
    ]
    for name, step in zip(("step_a", "step_b"), steps, strict=True):
        if step % 16:
            raise ValueError(f"{name}: got {step}, it must be a multiple of 16 bytes")
    return _made(
        Product(n, operand, size, accumulator, a, k_steps, transpose_a, transpose_b, *steps)
    )


@functools.cache
def _made(shape):
    def meaning(t, *arguments):
        return wgmma_state.issue(t, shape, arguments)

    meaning.__doc__ = f"D (64 × {shape.n}) += A (64 × {shape.depth}) B, of {shape.operand}."
    registers = f"{shape.accumulator}x{shape.n // 2}"
    first = "u64" if shape.a == "shared" else f"u32x{4 * shape.k_steps}"
    return instruction(
        shape.text,
        f"{registers}({registers}, {first}, u64, pred)",
        name=shape.name,
        scope="warpgroup",
        tied=shape.n // 2,
        cc=HOPPER_ONLY,
        flops=2 * M * shape.n * shape.depth,
        tensor=True,
        switches=True,
    )(meaning)


@functools.cache
def wgmma_wait(n: int, pending: int = 0, accumulator: str = "f32") -> Instruction:
    """The instruction `acc = wait(acc)`: wait until at most `pending` groups are unfinished.

    n: columns of the product whose accumulators pass through. Those of a product in a group that is
    still unfinished remain its own.
    """

    def meaning(t, values):
        return wgmma_state.wait(t, pending, values)

    meaning.__doc__ = f"Wait until at most {pending} groups of products are unfinished."
    registers = f"{accumulator}x{n // 2}"
    return instruction(
        f"wgmma.wait_group.sync.aligned {pending};",
        f"{registers}({registers})",
        name=f"wgmma_wait_{n // 2}_{pending}",
        scope="warpgroup",
        tied=n // 2,
        cc=HOPPER_ONLY,
    )(meaning)


@instruction(
    "wgmma.fence.sync.aligned;", "void()", scope="warpgroup", cc=HOPPER_ONLY, switches=False
)
def wgmma_fence(t):
    """Registers that this thread has written are ready for the wgmma after it.

    Before the first one, and after other instructions have written accumulators or operand A.
    """
    wgmma_state.fence(t)


@instruction(
    "wgmma.commit_group.sync.aligned;", "void()", scope="warpgroup", cc=HOPPER_ONLY, switches=False
)
def wgmma_commit(t):
    """Close the products that the warpgroup has issued since its last commit into a group."""
    wgmma_state.commit(t)


def _lower_descriptor(e, address, leading, stride, swizzle):
    b = e.builder
    wide = ir.IntType(64)

    def field(value, place):
        part = b.and_(b.lshr(value, ir.Constant(value.type, 4)), ir.Constant(value.type, 0x3FFF))
        return b.shl(b.zext(part, wide), ir.Constant(wide, place))

    code = ir.Constant(wide, 0)
    for span, number in wgmma_operands.SWIZZLE_CODES.items():
        same = b.icmp_unsigned("==", swizzle.value, ir.Constant(swizzle.value.type, span))
        code = b.select(same, ir.Constant(wide, number << 62), code)
    low = b.or_(field(address.value, 0), field(leading.value, 16))
    return b.or_(b.or_(low, field(stride.value, 32)), code)


@instruction(_lower_descriptor, "u64(u32, u32, u32, u32)", pure=True, cc=(7, 5))
def wgmma_descriptor(address, leading, stride, swizzle):
    """The descriptor of an operand in shared memory.

    address: of its first element, a multiple of 16; tiles with a swizzle begin at multiples of 8
        rows of it, 1,024 bytes for 128.
    swizzle: 0, 32, 64 or 128 bytes; rows of that many bytes lie one after another.
    stride: bytes from one group of eight rows to the next, 8 · swizzle where no gap is between.
    leading: bytes between two parts of the rows: along K without a swizzle, from one 16-byte piece
        to the next; transposed, from one swizzle's width of M or N to the next. Else it is ignored.

    For 64 rows of 64 bfloat16 along K: `wgmma_descriptor(address, 0, 1024, 128)`.
    """
    if swizzle not in wgmma_operands.SWIZZLE_CODES:
        raise ValueError(f"swizzle: got {swizzle}, it is 0, 32, 64 or 128 bytes")
    return wgmma_operands.encode(address, leading, stride, swizzle)


__all__ = [
    "wgmma",
    "wgmma_commit",
    "wgmma_descriptor",
    "wgmma_fence",
    "wgmma_wait",
]
