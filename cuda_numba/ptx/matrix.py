"""Tensor cores of a warp: `mma.sync`, and the moves that feed it, `ldmatrix` and `stmatrix`.

A warp multiplies small matrices, D = A B + C, whose elements are spread over the registers of its
32 lanes: lane = 4 g + t. Register r of A holds neighbours of row g + 8 (r mod 2), register r of B
neighbours of column g. `mma_layout(name)` says which; for m16n8k16:

    A, 16 × 16: register 0 | 2        B, 16 × 8: register 0      C, D, 16 × 8: 0 and 1
                register 1 | 3                   register 1                    2 and 3

Every instruction here is executed by all 32 lanes together. Source: PTX ISA, sections "mma",
"Matrix Fragments for mma.m16n8k16 …", "ldmatrix", "stmatrix", "movmatrix".
"""

import functools
from dataclasses import dataclass

import numpy as np

from ..bits import bf16_values, f16_values
from .convert import float8_values
from .instruction import instruction


@dataclass(frozen=True)
class Shape:
    """An mma: D (m × n) = A (m × k) B (k × n) + C."""

    m: int
    n: int
    k: int
    operand: str  # of A and B, as PTX calls it
    bits: int  # of an operand
    accumulator: str  # of C and D: "f32" or "s32"
    cc: tuple

    @property
    def ptx(self):
        """The instruction's PTX name."""
        size, a, c = f"m{self.m}n{self.n}k{self.k}", self.operand, self.accumulator
        return f"mma.sync.aligned.{size}.row.col.{c}.{a}.{a}.{c}"

    @property
    def registers(self):
        """Registers of A, B and C in a lane."""
        per_lane = 32 * 32 // self.bits
        return self.m * self.k // per_lane, self.k * self.n // per_lane, self.m * self.n // 32


SHAPES = {
    "m16n8k8_f16": Shape(16, 8, 8, "f16", 16, "f32", (7, 5)),
    "m16n8k16_f16": Shape(16, 8, 16, "f16", 16, "f32", (8, 0)),
    "m16n8k8_bf16": Shape(16, 8, 8, "bf16", 16, "f32", (8, 0)),
    "m16n8k16_bf16": Shape(16, 8, 16, "bf16", 16, "f32", (8, 0)),
    "m16n8k8_tf32": Shape(16, 8, 8, "tf32", 32, "f32", (8, 0)),
    "m16n8k32_s8": Shape(16, 8, 32, "s8", 8, "s32", (8, 0)),
    "m16n8k32_e4m3": Shape(16, 8, 32, "e4m3", 8, "f32", (8, 9)),
    "m16n8k32_e5m2": Shape(16, 8, 32, "e5m2", 8, "f32", (8, 9)),
}


@functools.cache
def mma_layout(name):
    """Where each lane's elements lie: {"a", "b", "c"} → int array (32 lanes, registers, elements of
    a register, 2), the last axis being row and column of A (m × k), B (k × n), C and D (m × n).

    >>> mma_layout("m16n8k16_bf16")["a"][5, 1, 0]  # lane 5, register a1, its low half
    array([9, 2])
    """
    if name not in SHAPES:
        raise ValueError(f"name: {name!r} is no mma; there are {', '.join(SHAPES)}.")
    shape = SHAPES[name]
    packed = 32 // shape.bits
    regs_a, regs_b, regs_c = shape.registers
    lane = np.arange(32)[:, None, None]
    g, t = lane >> 2, lane & 3
    element = np.arange(packed)[None, None, :]

    def register(count):
        return np.arange(count)[None, :, None]

    r = register(regs_a)
    a = _pairs(g + 8 * (r & 1), packed * (t + 4 * (r >> 1)) + element)
    r = register(regs_b)
    b = _pairs(packed * (t + 4 * r) + element, g)
    r = register(regs_c)
    c = _pairs(g + 8 * (r >> 1), 2 * t + (r & 1))
    return {"a": a, "b": b, "c": c}


def _pairs(rows, columns):
    pairs = np.stack(np.broadcast_arrays(rows, columns), -1)
    pairs.setflags(write=False)
    return pairs


def _elements(words, operand):
    """uint32 registers (…, r) → their values, float64 or int32, (…, r, elements of a register)."""
    words = np.ascontiguousarray(words, np.uint32)
    if operand == "tf32":
        return (words & np.uint32(0xFFFFE000)).view(np.float32)[..., None].astype(np.float64)
    split = words[..., None]
    if operand == "s8":
        return split.view(np.int8).astype(np.int32)
    if operand in ("e4m3", "e5m2"):
        return float8_values(operand)[split.view(np.uint8)].astype(np.float64)
    values = bf16_values if operand == "bf16" else f16_values
    return values(split.view(np.uint16)).astype(np.float64)


def _scatter(values, places, rows, columns):
    matrix = np.empty((rows, columns), values.dtype)
    matrix[places[..., 0], places[..., 1]] = values
    return matrix


_SUMS = {
    "s32": "Sums wrap at 32 bits.",
    "f32": """The meaning sums in float64 and rounds once. The hardware aligns all terms
    to the largest and cuts off what falls below its last bit (Fasi et al. 2021, "Numerical behavior
    of NVIDIA tensor cores"), so results differ by a few units in the last place of that term.""",
}


def _mma(name):
    shape = SHAPES[name]
    regs_a, regs_b, regs_c = shape.registers
    first, last = regs_a, regs_a + regs_b

    def meaning(warp, rows):
        layout = mma_layout(name)
        words = np.array([row[:last] for row in rows], np.uint32)
        kind = np.int64 if shape.accumulator == "s32" else np.float64
        c = np.array([row[last:] for row in rows], kind)
        values = _elements(words, shape.operand)
        a = _scatter(values[:, :first], layout["a"], shape.m, shape.k)
        b = _scatter(values[:, first:], layout["b"], shape.k, shape.n)
        c = _scatter(c[..., None], layout["c"], shape.m, shape.n)
        with np.errstate(all="ignore"):
            d = a.astype(kind) @ b.astype(kind) + c
            d = d.astype(np.uint32).view(np.int32) if kind is np.int64 else d.astype(np.float32)
        places = layout["c"][:, :, 0]
        found = d[places[..., 0], places[..., 1]]
        if kind is np.int64:
            return [tuple(row) for row in found.tolist()]
        return [tuple(row) for row in found]

    meaning.__doc__ = f"""D = A B + C on the tensor cores of one warp, `{shape.ptx}`.

    A ({shape.m} × {shape.k}) comes in {regs_a} registers, B ({shape.k} × {shape.n}) in {regs_b},
    C ({shape.m} × {shape.n}) in {regs_c}, placed as `mma_layout("{name}")` says; returns D's
    {regs_c}. {_SUMS[shape.accumulator]}
    """
    operands = ["u32"] * last + [shape.accumulator] * regs_c
    numbers = [f"${k}" for k in range(last + 2 * regs_c)]
    groups = [numbers[:regs_c]] + [
        numbers[start + regs_c : stop + regs_c]
        for start, stop in ((0, first), (first, last), (last, last + regs_c))
    ]
    text = f"{shape.ptx} " + ", ".join("{" + ", ".join(group) + "}" for group in groups) + ";"
    return instruction(
        text,
        f"{shape.accumulator}x{regs_c}({', '.join(operands)})",
        name=f"mma_{name}",
        scope="warp",
        pure=True,
        cc=shape.cc,
        flops=2 * shape.m * shape.n * shape.k,
        tensor=True,
    )(meaning)


def _lane_words(matrix, trans):
    """An 8 × 8 matrix of 16-bit elements → each lane's word of it."""
    matrix = np.ascontiguousarray(matrix.T if trans else matrix)
    return matrix.view(np.uint32).reshape(32)


def _ldmatrix(count, trans):
    suffix = "_trans" if trans else ""
    name = f"ldmatrix_x{count}{suffix}"

    def meaning(warp, rows):
        words = np.empty((count, 32), np.uint32)
        for k in range(count):
            lines = [
                warp.threads[lane].read("shared", rows[lane][0], 16, via="ldmatrix").view(np.uint16)
                for lane in range(8 * k, 8 * k + 8)
            ]
            words[k] = _lane_words(np.stack(lines), trans)
        lanes = words.T.tolist()
        return [tuple(lane) for lane in lanes] if count > 1 else [lane[0] for lane in lanes]

    meaning.__doc__ = (
        f"Load {count} 8 × 8 matrices of 16-bit elements from shared memory"
        f"{', transposed' if trans else ''}: lanes 8k to 8k + 7 give the addresses of the eight "
        "16-byte rows of matrix k; register k of lane 4g + t gets "
        f"{'column g, rows' if trans else 'row g, columns'} 2t and 2t + 1."
    )
    registers = ", ".join(f"${k}" for k in range(count))
    text = (
        f"ldmatrix.sync.aligned.m8n8.x{count}{'.trans' if trans else ''}.shared.b16 "
        f"{{{registers}}}, [${count}];"
    )
    result = f"u32x{count}" if count > 1 else "u32"
    return instruction(text, f"{result}(u32)", name=name, scope="warp")(meaning)


def _stmatrix(count, trans):
    suffix = "_trans" if trans else ""
    name = f"stmatrix_x{count}{suffix}"

    def meaning(warp, rows):
        for k in range(count):
            words = np.array([row[1 + k] for row in rows], np.uint32)
            matrix = words.view(np.uint16).reshape(8, 8)
            matrix = np.ascontiguousarray(matrix.T if trans else matrix)
            for line in range(8):
                lane = 8 * k + line
                data = matrix[line].view(np.uint8)
                warp.threads[lane].write("shared", rows[lane][0], data, 16, via="stmatrix")
        return [None] * 32

    meaning.__doc__ = (
        f"Store {count} 8 × 8 matrices of 16-bit elements to shared memory"
        f"{', transposed' if trans else ''}: the reverse of `ldmatrix_x{count}{suffix}`."
    )
    registers = ", ".join(f"${k}" for k in range(1, count + 1))
    text = (
        f"stmatrix.sync.aligned.m8n8.x{count}{'.trans' if trans else ''}.shared.b16 "
        f"[$0], {{{registers}}};"
    )
    signature = f"void({', '.join(['u32'] * (1 + count))})"
    return instruction(text, signature, name=name, scope="warp", cc=(9, 0))(meaning)


@instruction("movmatrix.sync.aligned.m8n8.trans.b16 $0, $1;", "u32(u32)", scope="warp", pure=True)
def movmatrix_trans(warp, rows):
    """Transpose an 8 × 8 matrix of 16-bit elements that the warp holds, one word a lane."""
    words = np.array([row[0] for row in rows], np.uint32)
    return _lane_words(words.view(np.uint16).reshape(8, 8), True).tolist()


def _family():
    yield from map(_mma, SHAPES)
    for count in (1, 2, 4):
        for trans in (False, True):
            yield from (_ldmatrix(count, trans), _stmatrix(count, trans))


# mma_m16n8k16_bf16, …, ldmatrix_x4_trans, stmatrix_x2, …
_FAMILY = {ins.name: ins for ins in _family()}
globals().update(_FAMILY)
__all__ = ["SHAPES", "mma_layout", "movmatrix_trans", *_FAMILY]  # noqa: PLE0604
