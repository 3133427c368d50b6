"""Loads and stores: one element with conversion, 16 bytes at a time, and their cache hints.

A thread that moves 16 bytes with one instruction keeps four times as much data in flight as one
that moves 4, and needs a quarter of the instructions; that is most of what a memory-bound kernel
can do. `x` is a contiguous array or a pointer, `i` counts its elements; the address must be a
multiple of the bytes moved. Without a suffix an access works on global, shared and local memory;
with a hint it must be global.

| suffix               | PTX                   | meaning                            |
|----------------------|-----------------------|------------------------------------|
| (none)               |                       | cached in L1 and L2                |
| `_nc`                | `.nc.L1::no_allocate` | read-only path, not kept in L1,    |
|                      |                       | for data this kernel never writes  |
| `_cs`                | `.cs`                 | streaming: first to be evicted     |
| `_cg`                | `.cg`                 | L2 only                            |
| `_no_allocate`       | `.L1::no_allocate`    | not kept in L1                     |
| `_l2_64` … `_l2_256` | `.L2::64B` …          | fetches that many bytes into L2    |

Source: PTX ISA, sections "ld", "ld.global.nc", "st" and "Cache Operators".
"""

import numpy as np
from llvmlite import ir

from ..bits import decode, encode
from .convert import (
    bf16_of,
    f16_of,
    half_to_float,
    half_words,
    pack_halves,
    round_half,
)
from .instruction import instruction, require_dtype, require_space
from .lowering import SHARED

LOAD_HINTS = {
    "": "",
    "_nc": ".nc.L1::no_allocate",
    "_cs": ".cs",
    "_cg": ".cg",
    "_no_allocate": ".L1::no_allocate",
    "_l2_64": ".L2::64B",
    "_l2_128": ".L2::128B",
    "_l2_256": ".L2::256B",
}
STORE_HINTS = {"": "", "_cs": ".cs", "_cg": ".cg", "_no_allocate": ".L1::no_allocate"}
NEEDS = {"_l2_256": (8, 0)}  # everything else is there on sm_75
FLOATS = ("float32", "float16", "uint16")


# ---- Python meanings


# ---- LLVM code


def fetch(e, pointer, words, hint=""):
    """The 32-bit words at an LLVM pointer, loaded by one instruction."""
    if hint:
        return fetch_at(e, e.address(pointer), words, hint)
    b = e.builder
    word = ir.IntType(32)
    kind = ir.VectorType(word, words) if words > 1 else word
    space = pointer.type.addrspace
    loaded = b.load(b.bitcast(pointer, kind.as_pointer(space)))
    loaded.align = 4 * words
    if words == 1:
        return [loaded]
    return [b.extract_element(loaded, e.integer(k, "s32")) for k in range(words)]


def put(e, pointer, words, hint=""):
    """Store 32-bit words at an LLVM pointer by one instruction."""
    if hint:
        put_at(e, e.address(pointer), words, hint)
        return
    b = e.builder
    word = ir.IntType(32)
    kind = ir.VectorType(word, len(words)) if len(words) > 1 else word
    value = words[0] if len(words) == 1 else ir.Constant(kind, ir.Undefined)
    if len(words) > 1:
        for k, part in enumerate(words):
            value = b.insert_element(value, part, e.integer(k, "s32"))
    space = pointer.type.addrspace
    b.store(value, b.bitcast(pointer, kind.as_pointer(space))).align = 4 * len(words)


def _operands(first, count):
    names = ", ".join(f"${k}" for k in range(first, first + count))
    return f"{{{names}}}" if count > 1 else names


def _vector(words):
    return f".v{words}.b32" if words > 1 else ".b32"


def fetch_at(e, address, words, hint="", space="global"):
    """The same by address: u64 in global, u32 in shared memory."""
    kind = "u32" if space == "shared" else "u64"
    text = f"ld.{space}{hint}{_vector(words)} {_operands(0, words)}, [${words}];"
    return e.asm(text, ["u32"] * words, [(kind, address)])


def put_at(e, address, words, hint="", space="global"):
    kind = "u32" if space == "shared" else "u64"
    text = f"st.{space}{hint}{_vector(len(words))} [$0], {_operands(1, len(words))};"
    e.asm(text, [], [(kind, address)] + [("u32", w) for w in words])


def _shared(e, pointer):
    kind = pointer.type.pointee.as_pointer(SHARED)
    return e.builder.addrspacecast(pointer, kind)


def _floats(e, words, dtype):
    if dtype == "float32":
        return [e.builder.bitcast(w, ir.FloatType()) for w in words]
    return half_words(e, words, dtype)


def _packed(e, values, dtype):
    if dtype == "float32":
        return [e.builder.bitcast(v, ir.IntType(32)) for v in values]
    pairs = zip(values[::2], values[1::2], strict=True)
    return [pack_halves(e, low, high, dtype) for low, high in pairs]


# ---- one element


def _lower_load(e, x, i):
    dtype = x.require(FLOATS)
    value = e.builder.load(x.element(i))
    if dtype == "float32":
        return value
    if dtype == "float16":
        return half_to_float(e, value)
    return half_words(e, [e.builder.zext(value, ir.IntType(32))], dtype)[0]


@instruction(_lower_load, "f32(array, index)")
def load(t, x, i):
    """Element `i` of a float32, float16 or bfloat16 (uint16) array, as float32."""
    dtype = require_dtype(x, "load", FLOATS)
    space, address, size = t.locate(x, i)
    return decode(t.read(space, address, size), dtype)[0]


def _lower_store(e, x, i, value):
    dtype = x.require(FLOATS)
    value = value.value if dtype == "float32" else round_half(e, value.value, dtype)
    e.builder.store(value, x.element(i))


@instruction(_lower_store, "void(array, index, f32)")
def store(t, x, i, value):
    """Write a float32 to element `i`, rounded to the array's format."""
    dtype = require_dtype(x, "store", FLOATS)
    space, address, size = t.locate(x, i)
    if dtype == "float32":
        data = np.float32(value)
    else:
        data = np.uint16(bf16_of(value) if dtype == "uint16" else f16_of(value))
    t.write(space, address, np.atleast_1d(data).view(np.uint8))


# ---- 16 bytes, converted to and from a local float32 array


def _load_vector(hint="", shared=False):
    name = "load_shared_vector" if shared else f"load_vector{hint}"

    def lower(e, x, i, values, j):
        dtype = x.require(FLOATS)
        pointer = _shared(e, x.element(i)) if shared else x.element(i)
        floats = _floats(e, fetch(e, pointer, 4, LOAD_HINTS[hint]), dtype)
        for k, value in enumerate(floats):
            e.builder.store(value, values.element(e.builder.add(j.i64, e.integer(k))))

    @instruction(lower, "void(array, index, f32[], index)", name=name, cc=NEEDS.get(hint, (7, 5)))
    def meaning(t, x, i, values, j):
        dtype = require_dtype(x, name, FLOATS)
        space, address, _ = t.locate(x, i)
        require_space(space, name, "shared" if shared else "global" if hint else None)
        floats = decode(t.read(space, address, 16), dtype)
        _in_registers(t, values, j, len(floats))
        values[j : j + len(floats)] = floats

    meaning.__doc__ = (
        "16 bytes from element `i` on, converted to float32 into `values[j:]`: "
        "4 of float32, 8 of float16 or bfloat16."
    )
    return meaning


def _store_vector(hint="", shared=False):
    name = "store_shared_vector" if shared else f"store_vector{hint}"

    def lower(e, x, i, values, j):
        dtype = x.require(FLOATS)
        pointer = _shared(e, x.element(i)) if shared else x.element(i)
        count = 4 if dtype == "float32" else 8
        places = [values.element(e.builder.add(j.i64, e.integer(k))) for k in range(count)]
        put(e, pointer, _packed(e, [e.builder.load(p) for p in places], dtype), STORE_HINTS[hint])

    @instruction(lower, "void(array, index, f32[], index)", name=name)
    def meaning(t, x, i, values, j):
        dtype = require_dtype(x, name, FLOATS)
        count = 4 if dtype == "float32" else 8
        _in_registers(t, values, j, count)
        floats = np.array(values[j : j + count], np.float32)
        space, address, _ = t.locate(x, i)
        require_space(space, name, "shared" if shared else "global" if hint else None)
        t.write(space, address, encode(floats, dtype), 16)

    meaning.__doc__ = (
        "`values[j:]`, rounded to the array's format, to 16 bytes from element `i` on: "
        "4 of float32, 8 of float16 or bfloat16."
    )
    return meaning


def _in_registers(t, values, j, count):
    if not 0 <= j <= len(values) - count:
        t.machine.finding(
            "out_of_bounds", f"elements {j} to {j + count - 1} of a local array of {len(values)}"
        )


# ---- addresses


@instruction(lambda e, x: e.address(x.data, SHARED), "u32(array)")
def shared_address(t, x):
    """The 32-bit shared-memory address of an array's first element."""
    space, address, _ = t.locate(x, 0)
    require_space(space, "shared_address", "shared")
    return address


@instruction(lambda e, x: e.address(x.data), "u64(array)")
def global_address(t, x):
    """The 64-bit global address of the first element of an array or pointer."""
    space, address, _ = t.locate(x, 0)
    require_space(space, "global_address", "global")
    return address


def _family():
    yield from map(_load_vector, LOAD_HINTS)
    yield from map(_store_vector, STORE_HINTS)
    yield from (_load_vector(shared=True), _store_vector(shared=True))


# load_vector, load_vector_nc, …, store_vector_cs, load_shared_vector, …
_FAMILY = {ins.name: ins for ins in _family()}
globals().update(_FAMILY)
__all__ = ["load", "store", "shared_address", "global_address", *_FAMILY]  # noqa: PLE0604
