"""Loads and stores of words that other blocks write and read: flags, counters, semaphores.

A flag that one block sets with `store_release` and another waits for with `load_acquire` hands over
everything written before it. `relaxed` sees what other blocks write, but orders nothing else;
`volatile` is its older form. All act on global memory and on the whole GPU (`.gpu` scope). `x` is a
contiguous array or pointer, `i` counts its elements; `_at` takes a u64 global address of a 32-bit
word. Source: PTX ISA, sections "ld", "st" and "Memory Consistency Model".
"""

import numpy as np

from ..bits import bf16_bits, bf16_values, f16_bits, f16_values
from ..emulator import handover
from .instruction import instruction, require_dtype, require_space

INTEGERS = {"int32": "s32", "uint32": "u32", "int64": "s64", "uint64": "u64"}
WORDS = INTEGERS | {"float32": "f32"}


# ---- Python meanings, shared with the atomic operations


def place(t, x, i, name, allowed):
    """Type, address and size of an element of a global array."""
    dtype = require_dtype(x, name, allowed)
    space, address, size = t.locate(x, i)
    require_space(space, name, "global")
    return dtype, address, size


def value_of(data, dtype):
    """What a kernel computes with: a float32, or a Python integer."""
    if dtype == "uint16":
        return bf16_values(data.view(np.uint16))[0]
    if dtype == "float16":
        return f16_values(data.view(np.uint16))[0]
    value = data.view(dtype)[0]
    return value if dtype == "float32" else int(value)


def data_of(value, dtype):
    """The bytes of a value in memory; integers wrap."""
    if dtype in ("uint16", "float16"):
        rounded = bf16_bits if dtype == "uint16" else f16_bits
        return rounded(np.array([value], np.float32)).view(np.uint8)
    if dtype == "float32":
        return np.array([value], np.float32).view(np.uint8)
    bits = 8 * np.dtype(dtype).itemsize
    return np.array([int(value) & ((1 << bits) - 1)], f"uint{bits}").view(np.uint8)


def look(t, address, size):
    """The bytes at an address that other threads write. A thread that finds the same as when it
    last looked is waiting: the others get a turn first."""
    seen = t.state.setdefault("seen", {})
    data = t.peek("global", address, size)
    if seen.get(address) == data.tobytes():
        t.spin()
        data = t.peek("global", address, size)
    seen[address] = data.tobytes()
    return data


def note_atomic(t, address, size):
    """Log an atomic access that changed nothing: a kernel that does only that makes no headway."""
    if t.machine.tracing:
        t.machine.note(t, "atomic", "global", address, size)


# ---- the instructions


def _ordered_load(how, at=False):
    name = f"load_{how}{'_at' if at else ''}"
    level = "volatile" if how == "volatile" else f"{how}.gpu"

    def lower(e, x, i=None):
        kind = "u32" if at else WORDS[x.require(WORDS)]
        address = x.value if at else e.address(x.element(i))
        return e.asm(f"ld.{level}.global.{kind} $0, [$1];", [kind], [("u64", address)])[0]

    def read(t, address, size, dtype):
        data = look(t, address, size)
        note_atomic(t, address, size)
        handover.read(t, address, acquire=how == "acquire")
        return value_of(data, dtype)

    if at:
        meaning = lambda t, address: read(t, address, 4, "uint32")  # noqa: E731
    else:

        def meaning(t, x, i):
            dtype, address, size = place(t, x, i, name, WORDS)
            return read(t, address, size, dtype)

    what = "The 32-bit word at a global address" if at else "Element `i` of a 32- or 64-bit array"
    meaning.__doc__ = f"{what}, read where other blocks write it (`ld.{level}`)."
    signature = "u32(u64)" if at else "element(array, index)"
    return instruction(lower, signature, name=name, switches=True)(meaning)


def _ordered_store(how, at=False):
    name = f"store_{how}{'_at' if at else ''}"
    level = "volatile" if how == "volatile" else f"{how}.gpu"

    def lower(e, x, *rest):
        kind = "u32" if at else WORDS[x.require(WORDS)]
        address = x.value if at else e.address(x.element(rest[0]))
        text = f"st.{level}.global.{kind} [$0], $1;"
        e.asm(text, [], [("u64", address), (kind, rest[-1].value)])

    def write(t, address, data):
        handover.wrote(t, address, release=how == "release")
        t.atomic("global", address, data)

    if at:
        meaning = lambda t, address, value: write(t, address, data_of(value, "uint32"))  # noqa: E731
    else:

        def meaning(t, x, i, value):
            dtype, address, _ = place(t, x, i, name, WORDS)
            write(t, address, data_of(value, dtype))

    what = "a 32-bit word at a global address" if at else "element `i` of a 32- or 64-bit array"
    meaning.__doc__ = f"Write {what} where other blocks read it (`st.{level}`)."
    signature = "void(u64, u32)" if at else "void(array, index, element)"
    return instruction(lower, signature, name=name)(meaning)


def _family():
    for at in (False, True):
        yield from (_ordered_load(how, at) for how in ("acquire", "relaxed", "volatile"))
        yield from (_ordered_store(how, at) for how in ("release", "relaxed", "volatile"))


# load_acquire, load_relaxed_at, store_release, store_volatile, …
_FAMILY = {ins.name: ins for ins in _family()}
globals().update(_FAMILY)
__all__ = [*_FAMILY]  # noqa: PLE0604
