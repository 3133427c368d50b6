"""What a thread holds of a tile in a warpgroup's accumulators, and its ways to memory.

    acc = 64 rows × n columns; this thread: rows g and g + 8 of its warp's 16, columns 8 j + 2 t + i

A chunk is 64 columns: 32 registers a thread, values[4 j + 2 h + i] for j < 8, row g + 8 h. In
shared memory it has 64 rows of 128 bytes (16-bit elements) with the 128-byte swizzle, 8 KB, as TMA
moves it and as `stmatrix` writes it without bank conflicts.

A partial tile (stream-K) goes to global memory as the registers are, not as the matrix is: register
quadruple j of thread t at byte 2048 j + 16 t, so that every access of a warp is 512 bytes in a row.
"""

import functools

import numpy as np

from . import ptx
from .emulator import wgmma_state
from .jit import jit
from .namespace import uint32
from .ptx.instruction import Instruction, instruction

HELD = 32  # registers of a chunk
BATCH = 12  # 16-byte loads of a partial tile on their way at once, 48 registers


@functools.cache
def chunk_of(n: int, number: int) -> Instruction:
    """The instruction `take(acc, values)`: chunk `number` of n columns into 32 local float32."""
    first = number * HELD

    def lower(e, acc, values):
        for k in range(HELD):
            value = e.builder.extract_value(acc.value, first + k)
            e.builder.store(value, values.element(e.integer(k)))

    def meaning(t, acc, values):
        values[:HELD] = list(acc[first : first + HELD])

    meaning.__doc__ = f"Accumulators {first} to {first + HELD - 1} into a local array."
    return instruction(lower, f"void(f32x{n // 2}, f32[])", name=f"chunk_{number}_of_{n}")(meaning)


@functools.cache
def store_partial(n: int) -> Instruction:
    """The instruction `leave(acc, address)`: n / 2 accumulators, 16 bytes at every 2048th."""

    def lower(e, acc, address):
        b = e.builder
        for j in range(n // 8):
            parts = [("f32", b.extract_value(acc.value, 4 * j + i)) for i in range(4)]
            e.asm(
                "st.global.v4.f32 [$0], {$1, $2, $3, $4};",
                [],
                [("u64", b.add(address.value, e.integer(2048 * j))), *parts],
            )

    def meaning(t, acc, address):
        values = np.array(acc, np.float32)
        for j in range(n // 8):
            t.write("global", address + 2048 * j, values[4 * j : 4 * j + 4].view(np.uint8))

    meaning.__doc__ = f"Write {n // 2} accumulators to global memory."
    return instruction(lower, f"void(f32x{n // 2}, u64)", name=f"store_partial_{n}")(meaning)


@functools.cache
def add_partial(n: int) -> Instruction:
    """The instruction `acc = add(acc, address)`: adds what `store_partial` has left there."""
    load = "ld.relaxed.gpu.global.v4.f32 {$0, $1, $2, $3}, [$4];"

    def lower(e, acc, address):
        b = e.builder
        values = [b.extract_value(acc.value, k) for k in range(n // 2)]
        for j0 in range(0, n // 8, BATCH):
            places = [(j, e.integer(2048 * j)) for j in range(j0, min(j0 + BATCH, n // 8))]
            found = [
                e.asm(load, ["f32"] * 4, [("u64", b.add(address.value, at))]) for _, at in places
            ]
            for (j, _), four in zip(places, found, strict=True):
                for i in range(4):
                    values[4 * j + i] = b.fadd(values[4 * j + i], four[i])
        return values

    def meaning(t, acc, address):
        values = np.array(acc, np.float32)
        for j in range(n // 8):
            values[4 * j : 4 * j + 4] += t.read("global", address + 2048 * j, 16).view(np.float32)
        return wgmma_state.written(t, tuple(values))

    meaning.__doc__ = f"Add {n // 2} numbers in global memory to the accumulators."
    return instruction(lower, f"f32x{n // 2}(f32x{n // 2}, u64)", name=f"add_partial_{n}")(meaning)


@functools.cache
def halves(dtype: str):
    """The instructions (pack, unpack) of two elements in a word, for "bfloat16" or "float16"."""
    if dtype == "float16":
        return ptx.pack_f16, ptx.unpack_f16
    return ptx.pack_bf16, ptx.unpack_bf16


@jit(device=True)
def meet(group):
    """The 128 threads of a consumer come together. (Barriers by number, which must be literal.)"""
    if group == 0:
        ptx.barrier_sync(1, 128)
    else:
        ptx.barrier_sync(2, 128)


@jit(device=True)
def staged_row(start, warp, lane):
    """The shared address that this lane gives to `stmatrix` and `ldmatrix` for columns 0 to 15 of a
    chunk at `start`; for columns 16 j on it is that xor 32 j.

    Lanes 8 k to 8 k + 7 name the rows of matrix k: k = 0 | 2 over 1 | 3, as the registers are.
    """
    row = uint32(warp * uint32(16) + (lane & uint32(15)))
    piece = uint32((lane >> uint32(4)) ^ (lane & uint32(7)))
    return uint32(start + row * uint32(128) + piece * uint32(16))


@functools.cache
def chunk_store(dtype: str):
    """The device function put(values, row): a chunk, rounded, to shared memory."""
    pack, _ = halves(dtype)

    @jit(device=True)
    def put(values, row):
        for j in range(4):
            ptx.stmatrix_x4(
                row ^ uint32(32 * j),
                pack(values[8 * j], values[8 * j + 1]),
                pack(values[8 * j + 2], values[8 * j + 3]),
                pack(values[8 * j + 4], values[8 * j + 5]),
                pack(values[8 * j + 6], values[8 * j + 7]),
            )

    return put


@jit(device=True)
def put_wide(values, start, warp, lane, part):
    """Columns 32 part to 32 part + 31 of a chunk as float32 to shared memory, swizzled as well:
    64 rows of 128 bytes at `start`."""
    g, t = uint32(lane >> uint32(2)), uint32(lane & uint32(3))
    row = uint32(start + uint32(warp * uint32(16) + g) * uint32(128))
    place = uint32(row + ((t >> uint32(1)) ^ g) * uint32(16) + (t & uint32(1)) * uint32(8))
    for j in range(4):
        for h in range(2):
            k = 16 * part + 4 * j + 2 * h
            ptx.store_shared_64_at(
                (place ^ uint32(32 * j)) + uint32(1024 * h),
                ptx.bits(values[k]),
                ptx.bits(values[k + 1]),
            )


@functools.cache
def chunk_load(dtype: str):
    """The device function get(row, values): the reverse of `chunk_store`."""
    _, unpack = halves(dtype)

    @jit(device=True)
    def get(row, values):
        for j in range(4):
            words = ptx.ldmatrix_x4(row ^ uint32(32 * j))
            for k in range(4):
                values[8 * j + 2 * k], values[8 * j + 2 * k + 1] = unpack(words[k])

    return get
