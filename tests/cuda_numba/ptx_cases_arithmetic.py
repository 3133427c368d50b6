"""Cases of `cuda_numba.ptx.arithmetic` and `cuda_numba.ptx.atomic`."""

from fractions import Fraction

import numpy as np
from ptx_cases import Case, hard_floats
from ptx_cases_convert import narrowed, unary, widened

from cuda_numba import ptx
from cuda_numba.namespace import cuda, float32, int32, uint32

N = 512
TABLES = (0xE8, 0x96, 0xEA, 0xCA)  # majority, parity, (a & b) | c, a ? b : c


def binary(instruction):
    def kernel(x, y, out):
        i = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
        out[i] = instruction(x[i], y[i])

    return kernel


def ternary(instruction):
    def kernel(x, y, z, out):
        i = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
        out[i] = instruction(x[i], y[i], z[i])

    return kernel


def flushed(x):
    """Subnormal float32 to zero, as `.ftz` does."""
    with np.errstate(all="ignore"):
        x = np.asarray(x).astype(np.float32)
    return np.where(np.abs(x) < np.finfo(np.float32).tiny, np.copysign(np.float32(0), x), x)


def approximate(function):
    return lambda x: flushed(function(flushed(x).astype(np.float64)))


def spread(low, high):
    """Numbers of a range, and the hard ones."""

    def inputs(rng):
        return [np.concatenate([hard_floats(rng, N // 2), rng.uniform(low, high, N // 2)], None,
                               dtype=np.float32, casting="same_kind")]  # fmt: skip

    return inputs


def unary_case(name, function, low, high, **tolerance):
    instruction = getattr(ptx, name)
    text = f"{name}.approx" + ("" if name == "tanh" else ".ftz") + ".f32"
    tolerance = {"gpu_ulp": instruction.ulp} | tolerance
    return Case(name, (name,), unary(instruction), spread(low, high), function, (text,), block=128,
                grid=N // 128, ulp=1, **tolerance)  # fmt: skip


def random_words(count, dtype=np.uint32):
    bits = 8 * np.dtype(dtype).itemsize

    def inputs(rng):
        words = [rng.integers(0, 2**32, N, dtype=np.uint64) for _ in range(2 * count)]
        if bits == 64:
            words = [a << np.uint64(32) | b for a, b in zip(words[::2], words[1::2], strict=True)]
        return [w.astype(f"uint{bits}").view(dtype) for w in words[:count]]

    return inputs


def three_floats(rng):
    """Random products and sums, many of them near a tie or cancelling."""
    a, b, c = (rng.standard_normal(N).astype(np.float32) for _ in range(3))
    c[: N // 2] = -(a * b)[: N // 2]  # leaves the rounding error of the product
    scale = np.exp2(rng.integers(-40, 40, N)).astype(np.float32)
    c[N // 2 :] *= scale[N // 2 :]
    a[:4], b[:4], c[:4] = [np.inf, np.nan, 0, 3e38], [0, 1, -1, 3e38], [1, 1, 0, -np.inf]
    return [a, b, c]


def round_exactly(value):
    """A Fraction to the nearest float32, ties to even, by comparing neighbours exactly."""
    near = np.float32(float(value))
    around = [np.nextafter(near, np.float32(-np.inf)), near, np.nextafter(near, np.float32(np.inf))]
    around = [v for v in around if np.isfinite(v)]
    odd = {id(v): int(v.view(np.uint32)) & 1 for v in around}
    return min(around, key=lambda v: (abs(Fraction(float(v)) - value), odd[id(v)]))


def exact_fma(a, b, c):
    plain = (a.astype(np.float64) * b + c).astype(np.float32)  # right where not finite, or zero
    out = plain.copy()
    for k in range(len(a)):
        if np.isfinite(a[k]) and np.isfinite(b[k]) and np.isfinite(c[k]):
            value = Fraction(float(a[k])) * Fraction(float(b[k])) + Fraction(float(c[k]))
            if value and abs(value) < 2**127:
                out[k] = round_exactly(value)
    return out


def lop3_kernel(x, y, z, out):
    i = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    out[4 * i] = ptx.lop3(x[i], y[i], z[i], 0xE8)
    out[4 * i + 1] = ptx.lop3(x[i], y[i], z[i], 0x96)
    out[4 * i + 2] = ptx.lop3(x[i], y[i], z[i], (0xF0 & 0xCC) | 0xAA)
    out[4 * i + 3] = ptx.lop3(x[i], y[i], z[i], 0xCA)


def lop3_expected(a, b, c):
    parts = [(a & b) | (a & c) | (b & c), a ^ b ^ c, (a & b) | c, (a & b) | (~a & c)]
    return np.stack(parts, 1).reshape(-1)


def prmt_expected(a, b, selector):
    pool = np.stack([a, b], 1).view(np.uint8)
    out = np.empty((len(a), 4), np.uint8)
    for k in range(4):
        nibble = (selector >> np.uint32(4 * k)) & np.uint32(15)
        byte = pool[np.arange(len(a)), nibble & 7]
        out[:, k] = np.where(nibble & 8, (byte.view(np.int8) >> 7).view(np.uint8), byte)
    return out.reshape(-1).view(np.uint32)


def dp4a_expected(dtype, result):
    def expected(a, b, c):
        products = a.view(dtype).astype(np.int64) * b.view(dtype).astype(np.int64)
        total = products.reshape(-1, 4).sum(1) + c.astype(np.int64)
        return total.astype(np.uint64).astype(np.uint32).view(result)

    return expected


def dp4a_inputs(rng):
    a, b, c = random_words(3)(rng)
    return [a, b, c.view(np.int32)]


def divided(a, b):
    a, b = flushed(a), flushed(b)
    quotient = flushed(a.astype(np.float64) / b)
    far = (np.abs(b) > np.float32(2.0**126)) & np.isfinite(b)
    zero = np.copysign(np.float32(0), quotient)
    zero = np.where(np.isinf(a) | np.isnan(a), np.float32(np.nan), zero)
    return np.where(far, zero, quotient).astype(np.float32)


def two_hard(rng):
    return [hard_floats(rng, N), rng.permutation(hard_floats(rng, N))]


def case(name, kernel, inputs, expected, text, **options):
    return Case(name, (name,), kernel, inputs, expected, (text,), block=128, grid=N // 128,
                **options)  # fmt: skip


ARITHMETIC = [
    unary_case("ex2", approximate(np.exp2), -150, 140),
    unary_case("lg2", approximate(np.log2), 0.5, 2, gpu_absolute=2.0**-22),
    unary_case("rcp", approximate(lambda x: 1 / x), -9, 9),
    unary_case("rsqrt", approximate(lambda x: 1 / np.sqrt(x)), 0, 9),
    unary_case("sqrt", approximate(np.sqrt), 0, 9),
    unary_case("tanh", lambda x: np.tanh(x.astype(np.float64)).astype(np.float32), -3, 3),
    case("div", binary(ptx.div), two_hard, divided, "div.approx.ftz.f32", ulp=1, gpu_ulp=2),
    case("fma", ternary(ptx.fma), three_floats, exact_fma, "fma.rn.f32"),
    case("lop3", lop3_kernel, random_words(3), lop3_expected, "lop3.b32"),
    case("prmt", ternary(ptx.prmt), random_words(3), prmt_expected, "prmt.b32"),
    case("dp4a", ternary(ptx.dp4a), dp4a_inputs, dp4a_expected(np.int8, np.int32), "dp4a.s32.s32"),
    case("dp4a_unsigned", ternary(ptx.dp4a_unsigned), random_words(3),
         dp4a_expected(np.uint8, np.uint32), "dp4a.u32.u32"),
]  # fmt: skip


# ---- atomics: 128 threads on 8 elements, so that each element is met 16 times

PLACES = 8
SUMS = {"float32": np.float32, "float16": np.float16, "uint16": np.uint16, "int32": np.int32,
        "uint32": np.uint32, "int64": np.int64, "uint64": np.uint64}  # fmt: skip


def reduce_kernel(*instructions):
    """Each thread applies each instruction to its element of its own row of `out`."""
    first, second = instructions if len(instructions) == 2 else (instructions[0], None)
    if second is None:

        def kernel(x, out):
            i = cuda.threadIdx.x
            first(out, i & 7, x[i])

    else:

        def kernel(x, out):
            i = cuda.threadIdx.x
            first(out, i & 7, x[i])
            second(out, 8 + (i & 7), x[i])

    return kernel


def sum_inputs(dtype):
    """Sums that do not depend on the order: whole numbers that each format holds exactly."""

    def inputs(rng):
        if dtype == "uint16":
            return [narrowed(rng.integers(-8, 9, 128).astype(np.float32), "bf16")]
        if dtype in ("float32", "float16"):
            return [rng.integers(-8, 9, 128).astype(dtype)]
        return [random_words(1, np.dtype(dtype))(rng)[0][:128].copy()]

    return inputs


def bf16_sum_kernel(x, out):
    i = cuda.threadIdx.x
    ptx.reduce_add(out, i & 7, ptx.bf16_to_f32(x[i]))
    ptx.reduce_add_release(out, 8 + (i & 7), ptx.bf16_to_f32(x[i]))


def summed(x):
    values = widened(x, "bf16") if x.dtype == np.uint16 else x
    total = values.reshape(-1, PLACES)
    total = total.astype(np.float32).sum(0) if x.dtype.kind == "f" or x.dtype == np.uint16 else (
        total.sum(0, dtype=x.dtype)
    )  # fmt: skip
    if x.dtype == np.uint16:
        total = narrowed(total, "bf16")
    return np.tile(total.astype(x.dtype), 2)


def zeros(count):
    return lambda x, *_: np.zeros(count, x.dtype)


def sum_case(dtype, text):
    both = ("reduce_add", "reduce_add_release")
    kernel = (
        bf16_sum_kernel if dtype == "uint16" else reduce_kernel(*(getattr(ptx, n) for n in both))
    )
    text = (f"red.relaxed.gpu.global.add.{text}", f"red.release.gpu.global.add.{text}")
    return Case(f"reduce_add {dtype}", both, kernel, sum_inputs(dtype), summed, text, block=128,
                cc=(9, 0) if dtype == "uint16" else (7, 5), start=zeros(2 * PLACES))  # fmt: skip


COMBINE = {
    "min": np.minimum, "max": np.maximum, "and": np.bitwise_and, "or": np.bitwise_or,
    "xor": np.bitwise_xor,
}  # fmt: skip


def combine_case(op, dtype, text):
    """`reduce_op` in row 0, `atomic_op` in row 1: the same result."""
    both = (f"reduce_{op}", f"atomic_{op}")

    def start(x):
        return np.tile(x[:PLACES], 2)

    def expected(x):
        rows = np.concatenate([x[:PLACES], x]).reshape(-1, PLACES)
        return np.tile(COMBINE[op].reduce(rows, 0), 2)

    def inputs(rng):
        return [random_words(1, np.dtype(dtype))(rng)[0][:128].copy()]

    kernel = reduce_kernel(*(getattr(ptx, n) for n in both))
    text = tuple(f"{kind}.relaxed.gpu.global.{op}.{text}" for kind in ("red", "atom"))
    return Case(f"{op} {dtype}", both, kernel, inputs, expected, text, block=128, start=start)


def ticket_kernel(add):
    def kernel(x, out):
        old = add(out, 32, int32(1))
        out[old] = x[old]

    return kernel


def ticket_case(suffix):
    """Each thread draws a ticket; whoever drew k writes x[k], so the tickets were 0 … 31."""
    name = f"atomic_add{suffix}"
    order = {"": "relaxed", "_acquire": "acquire", "_release": "release"}.get(suffix, "acq_rel")
    return Case(
        name, (name,), ticket_kernel(getattr(ptx, name)),
        lambda rng: [rng.integers(0, 1000, 33).astype(np.int32)],
        lambda x: np.concatenate([x[:32], [32]]).astype(np.int32),
        (f"atom.{order}.gpu.global.add.s32",), start=zeros(33),
    )  # fmt: skip


def exchange_kernel(exchange):
    def kernel(x, out):
        if cuda.threadIdx.x == 0:
            out[1] = exchange(out, 0, x[0])
            out[2] = exchange(out, 0, x[1])

    return kernel


def exchange_case(suffix, dtype):
    name = f"atomic_exchange{suffix}"
    bits = 8 * np.dtype(dtype).itemsize
    order = {"": "relaxed", "_acquire": "acquire", "_release": "release"}.get(suffix, "acq_rel")
    return Case(
        f"{name} {dtype}", (name,), exchange_kernel(getattr(ptx, name)),
        lambda rng: [rng.integers(1, 100, 2).astype(dtype)],
        lambda x: np.array([x[1], 7, x[0]], dtype),
        (f"atom.{order}.gpu.global.exch.b{bits}",), start=lambda x: np.array([7, 0, 0], dtype),
    )  # fmt: skip


def cas_kernel(cas):
    def kernel(x, out):
        if cuda.threadIdx.x == 0:
            out[1] = cas(out, 0, x[0], x[1])  # fits: swapped
            out[2] = cas(out, 0, x[0], x[2])  # does not

    return kernel


def cas_case(suffix, dtype):
    name = f"atomic_cas{suffix}"
    bits = 8 * np.dtype(dtype).itemsize
    order = {"": "relaxed", "_acquire": "acquire", "_release": "release"}.get(suffix, "acq_rel")
    return Case(
        f"{name} {dtype}", (name,), cas_kernel(getattr(ptx, name)),
        lambda rng: [rng.permutation(100)[:3].astype(dtype)],
        lambda x: np.array([x[1], x[0], x[1]], dtype),
        (f"atom.{order}.gpu.global.cas.b{bits}",),
        start=lambda x: np.array([x[0], 0, 0], dtype),
    )  # fmt: skip


def lock_kernel(x, out):
    """A lock taken by spinning: 32 threads add to an ordinary variable, one after the other."""
    done = uint32(0)
    while done == uint32(0):
        if ptx.atomic_cas_acquire(out, 0, uint32(0), uint32(1)) == uint32(0):
            out[1] = out[1] + x[cuda.threadIdx.x]
            ptx.atomic_exchange_release(out, 0, uint32(0))
            done = uint32(1)


def flag_kernel(x, out):
    """Block 0 writes data and raises a flag; block 1 waits for it and copies."""
    i = cuda.threadIdx.x
    if cuda.blockIdx.x == 1:
        if i == 0:
            while ptx.load_acquire(out, 96) == uint32(0):
                pass
        cuda.syncthreads()
        out[32 + i] = out[i]
    else:
        out[i] = x[i]
        cuda.syncthreads()
        if i == 0:
            ptx.store_release(out, 96, uint32(1))


def flag_at_kernel(x, out):
    i = cuda.threadIdx.x
    flag = ptx.global_address(out) + np.uint64(4 * 96)
    if cuda.blockIdx.x == 1:
        if i == 0:
            while ptx.load_acquire_at(flag) == uint32(0):
                pass
        cuda.syncthreads()
        out[32 + i] = out[i]
    else:
        out[i] = x[i]
        cuda.syncthreads()
        if i == 0:
            ptx.store_release_at(flag, uint32(1))


def handed_over(x):
    out = np.zeros(97, np.uint32)
    out[:32] = out[32:64] = x
    out[96] = 1
    return out


def loose_kernel(x, out):
    """The loads and stores that order nothing, each once."""
    i = cuda.threadIdx.x
    ptx.store_relaxed(out, i, ptx.load_relaxed(x, i))
    ptx.store_volatile(out, 32 + i, ptx.load_volatile(x, i))
    here = np.uint64(4 * i)
    source, target = ptx.global_address(x) + here, ptx.global_address(out) + here
    ptx.store_relaxed_at(target + np.uint64(256), ptx.load_relaxed_at(source))
    ptx.store_volatile_at(target + np.uint64(384), ptx.load_volatile_at(source))


def pair_kernel(reduce):
    def kernel(x, out):
        i = cuda.threadIdx.x
        reduce(out, 2 * (i & 3), x[i])

    return kernel


def pair_case(kind):
    dtype = np.uint16 if kind == "bf16" else np.float16
    name = f"reduce_add_{kind}x2"

    def inputs(rng):
        return [narrowed(rng.integers(-8, 9, 64).astype(np.float32), kind).view(np.uint32)]

    def expected(x):
        total = widened(x.view(np.uint16), kind).reshape(-1, 8).sum(0)
        return narrowed(total, kind).view(dtype)

    return Case(name, (name,), pair_kernel(getattr(ptx, name)), inputs, expected,
                (f"red.relaxed.gpu.global.add.noftz.{kind}x2",), start=lambda x: np.zeros(8, dtype),
                cc=(9, 0) if kind == "bf16" else (7, 5))  # fmt: skip


def vector_sum_kernel(x, out):
    i = cuda.threadIdx.x
    j = 4 * (i & 3)
    ptx.reduce_add_f32x4(out, j, x[i], float32(1), x[i] + float32(2), -x[i])
    ptx.reduce_add_f32x2(out, 16 + j, x[i], float32(3))


def vector_sum_expected(x):
    out = np.zeros((2, 4, 4), np.float32)
    for i, v in enumerate(x):
        out[0, i % 4] += [v, 1, v + 2, -v]
        out[1, i % 4, :2] += [v, 3]
    return out.reshape(-1)


ATOMIC = [
    *(sum_case(dtype, text) for dtype, text in (
        ("float32", "f32"), ("float16", "noftz.f16"), ("uint16", "noftz.bf16"), ("int32", "s32"),
        ("uint64", "u64"))),
    *(combine_case(op, dtype, text) for op, dtype, text in (
        ("min", "int32", "s32"), ("max", "uint32", "u32"), ("min", "uint64", "u64"),
        ("max", "int64", "s64"), ("and", "uint32", "b32"), ("or", "uint64", "b64"),
        ("xor", "int32", "b32"))),
    *(ticket_case(suffix) for suffix in ("", "_acquire", "_release", "_acq_rel")),
    *(exchange_case(*pair) for pair in (
        ("", "float32"), ("_acquire", "uint32"), ("_release", "int64"), ("_acq_rel", "int32"))),
    *(cas_case(*pair) for pair in (
        ("", "uint32"), ("_acquire", "int64"), ("_release", "uint64"), ("_acq_rel", "int32"))),
    Case("lock", ("atomic_cas_acquire", "atomic_exchange_release"), lock_kernel,
         lambda rng: [rng.integers(0, 1000, 32).astype(np.uint32)],
         lambda x: np.array([0, x.sum(), 0], np.uint32), start=zeros(3)),
    Case("flag", ("load_acquire", "store_release"), flag_kernel,
         lambda rng: [rng.integers(0, 1000, 32).astype(np.uint32)], handed_over,
         ("ld.acquire.gpu.global.u32", "st.release.gpu.global.u32"), grid=2, start=zeros(97)),
    Case("flag_at", ("load_acquire_at", "store_release_at"), flag_at_kernel,
         lambda rng: [rng.integers(0, 1000, 32).astype(np.uint32)], handed_over,
         ("ld.acquire.gpu.global.u32", "st.release.gpu.global.u32"), grid=2, start=zeros(97)),
    Case("loose", tuple(f"{what}_{how}{at}" for what in ("load", "store")
                        for how in ("relaxed", "volatile") for at in ("", "_at")), loose_kernel,
         lambda rng: [rng.integers(0, 1000, 32).astype(np.uint32)], lambda x: np.tile(x, 4),
         ("ld.relaxed.gpu.global.u32", "ld.volatile.global.u32", "st.relaxed.gpu.global.u32",
          "st.volatile.global.u32")),
    pair_case("bf16"), pair_case("f16"),
    Case("vector sums", ("reduce_add_f32x2", "reduce_add_f32x4"), vector_sum_kernel,
         lambda rng: [rng.integers(-9, 9, 32).astype(np.float32)], vector_sum_expected,
         ("red.relaxed.gpu.global.add.v4.f32", "red.relaxed.gpu.global.add.v2.f32"), cc=(9, 0),
         start=zeros(32)),
]  # fmt: skip

CASES = ARITHMETIC + ATOMIC
