"""The kernel behind AdamW and Lion: one block per chunk, 16 bytes an access, any rule.

A thread reads two groups of four elements of each tensor before it uses the first, works on them in
float32, and writes back what changed:

    chunk of p   |t0: 4 elements|t1| … |t511|t0|t1| … |t511|     two groups of thread 0, one round
    chunk of g   |t0           |t1| … |t511|t0|t1| … |t511|      4 elements: 16 bytes of float32,
    chunk of m   …                                               8 bytes of a 16-bit format

Tensors that do not start at a multiple of 16 bytes, and the last few elements of the others, are
worked on one element at a time. Addresses come from a table, so that one launch does them all.
"""

import functools
from typing import NamedTuple

from . import ptx
from .dtypes import itemsize
from .jit import jit
from .namespace import cuda, float32, int32, int64, uint32, uint64


class Tuning(NamedTuple):
    """What decides the speed and not the result."""

    threads: int = 512
    items: int = 2  # groups of four elements that a thread has on their way
    resident: int = 2  # blocks of a multiprocessor: 2 · 512 threads, up to 128 bytes on their way
    chunk: int = (
        4096  # elements of a block: one round, so that a block only loads, works and stores
    )
    load: str = "_cs"  # cache hints, as in `ptx.memory`: nothing is read twice
    store: str = "_cs"


TUNED = Tuning()


class Form(NamedTuple):
    """The compile-time constants of one kernel."""

    param: str
    grad: str
    moment: str
    moments: int  # 1 or 2
    copy: str | None  # format of a second copy of the parameters, which is only written
    on_device: tuple[bool, bool, bool]  # lr, step, grad_scale: in memory rather than numbers


@functools.cache
def reader(dtype: str, hint: str):
    """Device functions: four elements of a tensor from an address into values[j:], and one."""
    load_128, load_64 = getattr(ptx, f"load_128{hint}_at"), getattr(ptx, f"load_64{hint}_at")

    @jit(device=True)
    def four(address, values, j):
        a, b, c, d = load_128(address)
        values[j] = ptx.from_bits(a)
        values[j + 1] = ptx.from_bits(b)
        values[j + 2] = ptx.from_bits(c)
        values[j + 3] = ptx.from_bits(d)

    @jit(device=True)
    def one(address):
        return ptx.from_bits(ptx.load_32_at(address))

    @jit(device=True)
    def four_bf16(address, values, j):
        a, b = load_64(address)
        values[j], values[j + 1] = ptx.unpack_bf16(a)
        values[j + 2], values[j + 3] = ptx.unpack_bf16(b)

    @jit(device=True)
    def one_bf16(address):
        return ptx.bf16_to_f32(ptx.load_16_at(address))

    @jit(device=True)
    def four_f16(address, values, j):
        a, b = load_64(address)
        values[j], values[j + 1] = ptx.unpack_f16(a)
        values[j + 2], values[j + 3] = ptx.unpack_f16(b)

    @jit(device=True)
    def one_f16(address):
        return ptx.f16_to_f32(ptx.load_16_at(address))

    of = {"float32": (four, one), "bfloat16": (four_bf16, one_bf16), "float16": (four_f16, one_f16)}
    return of[dtype]


@functools.cache
def writer(dtype: str, hint: str):
    """Device functions: the opposite of `reader`."""
    store_128, store_64 = getattr(ptx, f"store_128{hint}_at"), getattr(ptx, f"store_64{hint}_at")

    @jit(device=True)
    def four(address, values, j):
        store_128(
            address, ptx.bits(values[j]), ptx.bits(values[j + 1]), ptx.bits(values[j + 2]),
            ptx.bits(values[j + 3]),
        )  # fmt: skip

    @jit(device=True)
    def one(address, value):
        ptx.store_32_at(address, ptx.bits(value))

    @jit(device=True)
    def four_bf16(address, values, j):
        low = ptx.pack_bf16(values[j], values[j + 1])
        store_64(address, low, ptx.pack_bf16(values[j + 2], values[j + 3]))

    @jit(device=True)
    def one_bf16(address, value):
        ptx.store_16_at(address, ptx.f32_to_bf16(value))

    @jit(device=True)
    def four_f16(address, values, j):
        low = ptx.pack_f16(values[j], values[j + 1])
        store_64(address, low, ptx.pack_f16(values[j + 2], values[j + 3]))

    @jit(device=True)
    def one_f16(address, value):
        ptx.store_16_at(address, ptx.f32_to_f16_bits(value))

    of = {"float32": (four, one), "bfloat16": (four_bf16, one_bf16), "float16": (four_f16, one_f16)}
    return of[dtype]


@jit(device=True)
def from_memory(x):
    return x[0]


@jit(device=True)
def as_given(x):
    return x


@functools.cache
def update_kernel(prepare, rule, form: Form, tuning: Tuning = TUNED):
    """One step for all tensors of the tables.

    prepare(lr, step, log1, log2, eps) → (size, small): what is the same for all elements.
    rule(p, g, m, v, shrink, size, small, b1, a1, b2, a2) → (p, m, v); shrink = lr · weight decay.
    b1, b2: the betas, a1 = 1 − b1, a2 = 1 − b2, log1 = ln b1, log2 = ln b2. Where there is one
    moment, v is 0 and nothing happens to it.
    """
    MOMENTS, COPY = form.moments, form.copy is not None
    COLUMNS = 2 + MOMENTS + COPY
    THREADS, ITEMS, CHUNK = tuning.threads, tuning.items, tuning.chunk
    HELD, ROUND = ITEMS * 4, THREADS * ITEMS * 4
    P, G, M = itemsize(form.param), itemsize(form.grad), itemsize(form.moment)
    C = itemsize(form.copy or form.param)
    read_p, read_one_p = reader(form.param, tuning.load)
    read_g, read_one_g = reader(form.grad, tuning.load)
    read_m, read_one_m = reader(form.moment, tuning.load)
    write_p, write_one_p = writer(form.param, tuning.store)
    write_m, write_one_m = writer(form.moment, tuning.store)
    write_c, write_one_c = writer(form.copy or form.param, tuning.store)
    value_of_lr, value_of_step, value_of_scale = (
        from_memory if there else as_given for there in form.on_device
    )

    @jit(pointers=True, launch_bounds=(THREADS, tuning.resident))
    def optimizer_step(
        addresses: "int64", sizes: "int64", decays: "float32", chunks: "int32", lr: "float32",
        step: "float32", grad_scale: "float32", b1: "float32", a1: "float32", b2: "float32",
        a2: "float32", log1: "float32", log2: "float32", eps: "float32",
    ):  # fmt: skip
        params = cuda.local.array(HELD, float32)
        grads = cuda.local.array(HELD, float32)
        ms = cuda.local.array(HELD, float32)
        vs = cuda.local.array(HELD, float32)
        tensor, part = ptx.load_64(chunks, int64(cuda.blockIdx.x) * 2)
        first = uint64(part) * uint64(CHUNK)
        count = uint32(min(uint64(sizes[tensor]) - first, uint64(CHUNK)))
        row = int64(tensor) * COLUMNS
        p = uint64(addresses[row]) + first * uint64(P)
        g = uint64(addresses[row + 1]) + first * uint64(G)
        m = uint64(addresses[row + 2]) + first * uint64(M)
        v = uint64(addresses[row + 1 + MOMENTS]) + first * uint64(M)
        c = uint64(addresses[row + COLUMNS - 1]) + first * uint64(C)
        rate = value_of_lr(lr)
        size, small = prepare(rate, value_of_step(step), log1, log2, eps)
        shrink = rate * decays[tensor]
        scale = value_of_scale(grad_scale)

        whole = uint32(count & uint32(0xFFFFFFFC))  # elements in groups of four
        together = p | g | m
        if MOMENTS == 2:
            together |= v
        if COPY:
            together |= c
        if together & uint64(15):
            whole = uint32(0)
        thread = uint32(cuda.threadIdx.x)
        start = uint32(thread * uint32(4))
        while start < whole:
            at = uint64(start)
            round_p, round_g = p + at * uint64(P), g + at * uint64(G)
            round_m, round_v = m + at * uint64(M), v + at * uint64(M)
            round_c = c + at * uint64(C)
            for k in range(ITEMS):  # what is added to an address here is part of the instruction
                if uint32(start + uint32(k * THREADS * 4)) < whole:
                    read_p(round_p + uint64(k * THREADS * 4 * P), params, 4 * k)
                    read_g(round_g + uint64(k * THREADS * 4 * G), grads, 4 * k)
                    read_m(round_m + uint64(k * THREADS * 4 * M), ms, 4 * k)
                    if MOMENTS == 2:
                        read_m(round_v + uint64(k * THREADS * 4 * M), vs, 4 * k)
                    else:
                        for j in range(4 * k, 4 * k + 4):
                            vs[j] = float32(0)
            for k in range(ITEMS):
                if uint32(start + uint32(k * THREADS * 4)) < whole:
                    for j in range(4 * k, 4 * k + 4):
                        params[j], ms[j], vs[j] = rule(
                            params[j], grads[j] * scale, ms[j], vs[j], shrink, size, small,
                            b1, a1, b2, a2,
                        )  # fmt: skip
                    write_p(round_p + uint64(k * THREADS * 4 * P), params, 4 * k)
                    write_m(round_m + uint64(k * THREADS * 4 * M), ms, 4 * k)
                    if MOMENTS == 2:
                        write_m(round_v + uint64(k * THREADS * 4 * M), vs, 4 * k)
                    if COPY:
                        write_c(round_c + uint64(k * THREADS * 4 * C), params, 4 * k)
            start = uint32(start + uint32(ROUND))

        rest = uint32(whole + thread)
        while rest < count:
            i = uint64(rest)
            second = float32(0)
            if MOMENTS == 2:
                second = read_one_m(v + i * uint64(M))
            value, mean, second = rule(
                read_one_p(p + i * uint64(P)), read_one_g(g + i * uint64(G)) * scale,
                read_one_m(m + i * uint64(M)), second, shrink, size, small, b1, a1, b2, a2,
            )  # fmt: skip
            write_one_p(p + i * uint64(P), value)
            write_one_m(m + i * uint64(M), mean)
            if MOMENTS == 2:
                write_one_m(v + i * uint64(M), second)
            if COPY:
                write_one_c(c + i * uint64(C), value)
            rest = uint32(rest + uint32(THREADS))

    return optimizer_step
