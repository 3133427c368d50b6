"""Atomic operations on global memory: read, change and write back as one.

All act on the whole GPU (`.gpu` scope). `reduce_*` returns nothing, so the thread need not wait for
the old value; `atomic_*` returns it. Suffixes: `_release` makes what the thread did before visible
to whoever acquires, `_acquire` the reverse, `_acq_rel` both; without one the operation orders
nothing else (relaxed).

`x` is a contiguous array or pointer, `i` counts its elements. Sums of float32 flush subnormal
numbers to zero. The order in which threads add floats is not fixed, so such sums are not
reproducible bit by bit. Source: PTX ISA, sections "atom", "red" and "Memory Consistency Model".
"""

import numpy as np

from ..bits import bf16_bits, bf16_values, f16_bits, f16_values
from ..emulator import handover
from .arithmetic import flush
from .convert import round_half
from .flag import INTEGERS, WORDS, data_of, look, note_atomic, place, value_of
from .instruction import instruction

# Element type in the kernel → PTX type of the sum, and the lowest capability.
ADD = {
    "float32": ("f32", (7, 5)),
    "float16": ("noftz.f16", (7, 5)),
    "uint16": ("noftz.bf16", (9, 0)),
    "int32": ("s32", (7, 5)),
    "uint32": ("u32", (7, 5)),
    "int64": ("u64", (7, 5)),  # the same bits as a signed sum
    "uint64": ("u64", (7, 5)),
}
SEMANTICS = {"": "relaxed", "_acquire": "acquire", "_release": "release", "_acq_rel": "acq_rel"}


# ---- Python meanings


def _cast(value, dtype):
    return value_of(data_of(value, dtype), dtype) if dtype in WORDS else np.float32(value)


def _sum(old, value, dtype):
    if dtype == "float32":
        return flush(float(flush(old)) + float(flush(value)))  # exact enough to round once
    return old + value


def _modify(t, address, size, dtype, semantics, change, waits=True):
    """Read, change and write back as one operation; returns the old value.

    A thread whose operation changes nothing may be waiting, for a lock say: see `look`.
    """
    handover.wrote(t, address, release=semantics in ("release", "acq_rel"))
    before = t.peek("global", address, size)
    after = data_of(change(value_of(before, dtype)), dtype)
    if waits and (before == after).all():
        before = look(t, address, size)
        after = data_of(change(value_of(before, dtype)), dtype)
    if (before == after).all():
        note_atomic(t, address, size)
    else:
        t.atomic("global", address, after)
    handover.read(t, address, acquire=semantics in ("acquire", "acq_rel"))
    return value_of(before, dtype)


CHANGES = {
    "add": _sum,
    "min": lambda old, value, dtype: min(old, value),
    "max": lambda old, value, dtype: max(old, value),
    "and": lambda old, value, dtype: old & value,
    "or": lambda old, value, dtype: old | value,
    "xor": lambda old, value, dtype: old ^ value,
    "exch": lambda old, value, dtype: value,
}


# ---- LLVM code


def _register(ptx_type):
    return "u" + ptx_type[1:] if ptx_type[0] == "b" else ptx_type


def _ptx_type(e, x, op):
    """The PTX type that follows the operation's name."""
    if op == "add":
        from numba.core.errors import TypingError

        kind, cc = ADD[x.require(ADD)]
        if e.cc[:2] < cc:
            raise TypingError(
                f"x: ptx.{e.instruction.name} on bfloat16 needs compute capability 9.0 or newer."
            )
        return kind
    kind = WORDS[x.require(WORDS if op == "exch" else INTEGERS)]
    return "b" + kind[1:] if op not in ("min", "max") else kind


def _operand(e, x, value, kind):
    """The register that holds a value: its name and the LLVM value of that type."""
    from llvmlite import ir

    if x.dtype in ("float16", "uint16"):
        return "u16", round_half(e, value.value, x.dtype)
    if x.dtype == "float32" and kind == "b32":
        return "u32", e.builder.bitcast(value.value, ir.IntType(32))
    return _register(kind), value.value


def _lower(op, semantics, returns):
    def lower(e, x, i, *values):
        from llvmlite import ir

        kind = _ptx_type(e, x, op)
        operands = [_operand(e, x, value, kind) for value in values]
        address = ("u64", e.address(x.element(i)))
        if not returns:
            text = f"red.{semantics}.gpu.global.{op}.{kind} [$0], $1;"
            e.asm(text, [], [address, *operands])
            return None
        names = ", ".join(f"${k}" for k in range(2, 2 + len(operands)))
        text = f"atom.{semantics}.gpu.global.{op}.{kind} $0, [$1], {names};"
        old = e.asm(text, [operands[0][0]], [address, *operands])[0]
        return e.builder.bitcast(old, ir.FloatType()) if x.dtype == "float32" else old

    return lower


# ---- the instructions


def _modifies(op, allowed, suffix="", returns=True):
    word = {"exch": "exchange"}.get(op, op)
    name = f"{'atomic' if returns else 'reduce'}_{word}{suffix}"
    semantics, change = SEMANTICS[suffix], CHANGES[op]

    def meaning(t, x, i, value):
        dtype, address, size = place(t, x, i, name, allowed)
        value = _cast(value, dtype)
        apply = lambda old: change(old, value, dtype)  # noqa: E731
        old = _modify(t, address, size, dtype, semantics, apply, waits=returns)
        return old if returns else None

    meaning.__doc__ = (
        f"{'' if op == 'exch' else f'`{op}` '}`value` {'with' if op != 'exch' else 'put into'} "
        f"element `i`, atomically ({semantics})"
        f"{'; returns the old value' if returns else ''}. "
        f"Arrays: {', '.join(allowed)}."
    )
    signature = f"{'element' if returns else 'void'}(array, index, element)"
    flops = 1 if op == "add" and not returns else 0
    return instruction(
        _lower(op, semantics, returns), signature, name=name, switches=returns, flops=flops
    )(meaning)


def _compare_and_swap(suffix=""):
    name, semantics = f"atomic_cas{suffix}", SEMANTICS[suffix]

    def meaning(t, x, i, compare, value):
        dtype, address, size = place(t, x, i, name, INTEGERS)
        compare, value = _cast(compare, dtype), _cast(value, dtype)
        return _modify(
            t, address, size, dtype, semantics, lambda old: value if old == compare else old
        )

    meaning.__doc__ = (
        f"Put `value` into element `i` if that equals `compare`, atomically ({semantics}); "
        "returns the old value. Arrays: int32, uint32, int64, uint64."
    )
    lower = _lower("cas", semantics, True)
    return instruction(lower, "element(array, index, element, element)", name=name, switches=True)(
        meaning
    )


def _reduce_pair(kind, cc):
    """Two 16-bit floats added to two neighbours in one operation."""
    dtype = {"bf16": "uint16", "f16": "float16"}[kind]
    name = f"reduce_add_{kind}x2"

    def lower(e, x, i, word):
        x.require((dtype,))
        text = f"red.relaxed.gpu.global.add.noftz.{kind}x2 [$0], $1;"
        e.asm(text, [], [("u64", e.address(x.element(i))), ("u32", word.value)])

    def meaning(t, x, i, word):
        _, address, _ = place(t, x, i, name, (dtype,))
        values = bf16_values if kind == "bf16" else f16_values
        rounded = bf16_bits if kind == "bf16" else f16_bits
        before = t.peek("global", address, 4).view(np.uint16)
        added = np.array([word], np.uint32).view(np.uint16)
        with np.errstate(all="ignore"):
            after = rounded(values(before) + values(added))
        t.atomic("global", address, after.view(np.uint8))

    meaning.__doc__ = (
        f"Add the two {kind} of a word to elements `i` (even) and `i + 1`; each is one atomic sum."
    )
    return instruction(lower, "void(array, index, u32)", name=name, cc=cc, flops=2)(meaning)


def _reduce_vector(words):
    """Two or four float32 added to neighbours in one operation (compute capability 9.0)."""
    name = f"reduce_add_f32x{words}"

    def lower(e, x, i, *values):
        x.require(("float32",))
        names = ", ".join(f"${k}" for k in range(1, words + 1))
        text = f"red.relaxed.gpu.global.add.v{words}.f32 [$0], {{{names}}};"
        operands = [("f32", v.value) for v in values]
        e.asm(text, [], [("u64", e.address(x.element(i))), *operands])

    def meaning(t, x, i, *values):
        _, address, _ = place(t, x, i, name, ("float32",))
        before = t.peek("global", address, 4 * words).view(np.float32)
        pairs = zip(before, values, strict=True)
        after = np.array([_sum(old, v, "float32") for old, v in pairs], np.float32)
        t.atomic("global", address, after.view(np.uint8))

    meaning.__doc__ = (
        f"Add {words} float32 to elements from `i` on, at a multiple of {4 * words} bytes; each is "
        "one atomic sum."
    )
    signature = f"void(array, index, {', '.join(['f32'] * words)})"
    return instruction(lower, signature, name=name, cc=(9, 0), flops=words)(meaning)


def _family():
    yield _modifies("add", ADD, returns=False)
    yield _modifies("add", ADD, "_release", returns=False)
    for op in ("min", "max", "and", "or", "xor"):
        yield _modifies(op, INTEGERS, returns=False)
        yield _modifies(op, INTEGERS)
    for suffix in SEMANTICS:
        yield _modifies("add", WORDS, suffix)
        yield _modifies("exch", WORDS, suffix)
        yield _compare_and_swap(suffix)
    yield from (_reduce_pair("bf16", (9, 0)), _reduce_pair("f16", (7, 5)))
    yield from (_reduce_vector(2), _reduce_vector(4))


# reduce_add, reduce_add_bf16x2, atomic_add, atomic_add_release, atomic_cas_acquire, …
_FAMILY = {ins.name: ins for ins in _family()}
globals().update(_FAMILY)
__all__ = [*_FAMILY]  # noqa: PLE0604
