"""Cases of `cuda_numba.ptx.memory`: every load and store, with every cache hint."""

import numpy as np
import torch
from ptx_cases import Case, hard_floats

from cuda_numba import ptx
from cuda_numba.namespace import cuda, float32, uint32
from cuda_numba.ptx.memory import LOAD_HINTS, STORE_HINTS

LANES = 32
FORMATS = {"float32": None, "float16": torch.float16, "bfloat16": torch.bfloat16}
CONTAINER = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}


def elements(name, count):
    """Random elements of a format, in the array that a kernel sees."""

    def inputs(rng):
        x = rng.standard_normal(count).astype(np.float32)
        return [stored(x, name)]

    return inputs


def stored(x, name):
    if name == "float32":
        return x.astype(np.float32)
    y = torch.from_numpy(x).to(FORMATS[name])
    return y.view(torch.int16).numpy().view(CONTAINER[name])


def widened(x, name):
    if name == "float32":
        return x
    return torch.from_numpy(x.view(np.int16)).view(FORMATS[name]).float().numpy()


def scalar_kernel(x, y):
    i = cuda.threadIdx.x
    ptx.store(y, i, ptx.load(x, i) * float32(3))


def scalar_case(name):
    return Case(f"scalar {name}", ("load", "store"), scalar_kernel, elements(name, LANES),
                lambda x: stored(widened(x, name) * np.float32(3), name))  # fmt: skip


def rounding_kernel(x, y):
    i = cuda.threadIdx.x
    ptx.store(y, i, x[i])


def rounding_case(name):
    """`store` rounds as PyTorch does, NaN and overflow included."""

    def expected(x):
        bits = stored(x, name)
        nan = np.array(0x7FFF, np.uint16).view(bits.dtype)
        return np.where(np.isnan(x), nan, bits).astype(bits.dtype)

    return Case(f"rounding {name}", ("store",), rounding_kernel,
                lambda rng: [hard_floats(rng, 512)], expected, block=512)  # fmt: skip


def vector_kernel(name, load, store):
    width = 16 // np.dtype(CONTAINER[name]).itemsize
    both = 2 * width

    def kernel(x, y):
        values = cuda.local.array(both, float32)
        i = cuda.threadIdx.x * both
        load(x, i, values, 0)
        load(x, i + width, values, width)
        for k in range(both):
            values[k] = values[k] * float32(3)
        store(y, i, values, width)  # the halves change places
        store(y, i + width, values, 0)

    return kernel


def swapped(name):
    width = 16 // np.dtype(CONTAINER[name]).itemsize

    def expected(x):
        tripled = stored(widened(x, name) * np.float32(3), name)
        return np.ascontiguousarray(tripled.reshape(-1, 2, width)[:, ::-1]).reshape(-1)

    return expected


def vector_case(name, load_hint, store_hint):
    load, store = getattr(ptx, f"load_vector{load_hint}"), getattr(ptx, f"store_vector{store_hint}")
    width = 16 // np.dtype(CONTAINER[name]).itemsize
    text = f"ld.global{LOAD_HINTS[load_hint]}.v4", f"st.global{STORE_HINTS[store_hint]}.v4"
    return Case(f"{load.name} {store.name} {name}", (load.name, store.name),
                vector_kernel(name, load, store), elements(name, LANES * 2 * width), swapped(name),
                text, cc=load.cc)  # fmt: skip


def shared_vector_kernel(name):
    width = 16 // np.dtype(CONTAINER[name]).itemsize
    count = LANES * width
    dtype = CONTAINER[name]

    def kernel(x, y):
        values = cuda.local.array(width, float32)
        tile = cuda.shared.array(count, dtype)
        i = cuda.threadIdx.x * width
        ptx.load_vector(x, i, values, 0)
        ptx.store_shared_vector(tile, i, values, 0)
        cuda.syncthreads()
        ptx.load_shared_vector(tile, count - width - i, values, 0)
        ptx.store_vector(y, i, values, 0)

    return kernel


def shared_vector_case(name):
    width = 16 // np.dtype(CONTAINER[name]).itemsize
    return Case(f"shared vectors {name}", ("load_shared_vector", "store_shared_vector"),
                shared_vector_kernel(name), elements(name, LANES * width),
                lambda x: np.ascontiguousarray(x.reshape(-1, width)[::-1]).reshape(-1),
                ("ld.shared.v4", "st.shared.v4"))  # fmt: skip


def words_kernel(bits, load, store, load_at, store_at):
    """The first half of y by array and index, the second by address, words turned round."""
    step = bits // 32
    total = LANES * step
    if bits == 128:

        def kernel(x, y):
            i = cuda.threadIdx.x * step
            a, b, c, d = load(x, i)
            store(y, i, d, c, b, a)
            here = np.uint64(16 * cuda.threadIdx.x)
            a, b, c, d = load_at(ptx.global_address(x) + here)
            store_at(ptx.global_address(y) + here + np.uint64(4 * total), d, c, b, a)

    elif bits == 64:

        def kernel(x, y):
            i = cuda.threadIdx.x * step
            a, b = load(x, i)
            store(y, i, b, a)
            here = np.uint64(8 * cuda.threadIdx.x)
            a, b = load_at(ptx.global_address(x) + here)
            store_at(ptx.global_address(y) + here + np.uint64(4 * total), b, a)

    else:

        def kernel(x, y):
            i = cuda.threadIdx.x * step
            store(y, i, load(x, i))
            here = np.uint64(4 * cuda.threadIdx.x)
            a = load_at(ptx.global_address(x) + here)
            store_at(ptx.global_address(y) + here + np.uint64(4 * total), a)

    return kernel


def words_case(bits, load_hint, store_hint):
    names = [f"load_{bits}{load_hint}", f"store_{bits}{store_hint}"]
    names += [f"{name}_at" for name in names]
    used = [getattr(ptx, name) for name in names]
    step = bits // 32
    vector = f".v{step}" if step > 1 else ""
    return Case(
        f"{names[0]} {names[1]}", (*names, "global_address"), words_kernel(bits, *used),
        lambda rng: [rng.integers(0, 2**32, LANES * step, dtype=np.uint64).astype(np.uint32)],
        lambda x: np.tile(x.reshape(-1, step)[:, ::-1].reshape(-1), 2),
        (f"ld.global{LOAD_HINTS[load_hint]}{vector}.",
         f"st.global{STORE_HINTS[store_hint]}{vector}."),
        cc=used[0].cc,
    )  # fmt: skip


def halves_kernel(x, y):
    i = cuda.threadIdx.x
    value = ptx.load_16_at(ptx.global_address(x) + np.uint64(2 * i))
    ptx.store_16_at(ptx.global_address(y) + np.uint64(62 - 2 * i), value)


HALVES_AT = Case(
    "halves by address",
    ("load_16_at", "store_16_at", "global_address"),
    halves_kernel,
    lambda rng: [rng.integers(0, 2**16, LANES, dtype=np.uint32).astype(np.uint16)],
    lambda x: np.ascontiguousarray(x[::-1]),
    ("ld.global.u16", "st.global.u16"),
)


def shared_words_kernel(x, y):
    """Through shared memory by address, in three widths, and back from another lane."""
    tile = cuda.shared.array(32 * 7, uint32)
    base = ptx.shared_address(tile)
    i = uint32(cuda.threadIdx.x)
    other = uint32(31) - i
    a, b, c, d = ptx.load_128(x, i * uint32(4))
    ptx.store_shared_128_at(base + uint32(16) * i, a, b, c, d)
    ptx.store_shared_64_at(base + uint32(512) + uint32(8) * i, a, b)
    ptx.store_shared_32_at(base + uint32(768) + uint32(4) * i, a)
    cuda.syncthreads()
    a, b, c, d = ptx.load_shared_128_at(base + uint32(16) * other)
    ptx.store_128(y, i * uint32(4), a, b, c, d)
    a, b = ptx.load_shared_64_at(base + uint32(512) + uint32(8) * other)
    ptx.store_64(y, uint32(128) + i * uint32(2), a, b)
    ptx.store_32(y, uint32(192) + i, ptx.load_shared_32_at(base + uint32(768) + uint32(4) * other))


def shared_words_expected(x):
    rows = x.reshape(32, 4)[::-1]
    return np.concatenate([rows.reshape(-1), rows[:, :2].reshape(-1), rows[:, 0]])


SHARED_WORDS = Case(
    "shared words",
    (*(f"{what}_shared_{bits}_at" for what in ("load", "store") for bits in (32, 64, 128)),
     "shared_address"),
    shared_words_kernel,
    lambda rng: [rng.integers(0, 2**32, 128, dtype=np.uint64).astype(np.uint32)],
    shared_words_expected,
    ("ld.shared.v4.b32", "st.shared.v4.b32", "ld.shared.v2.b32", "st.shared.v2.b32",
     "ld.shared.b32", "st.shared.b32"),
)  # fmt: skip


def hints():
    """Each load hint, with the store hints in turn."""
    stores = list(STORE_HINTS)
    return [(hint, stores[k % len(stores)]) for k, hint in enumerate(LOAD_HINTS)]


def matrix_kernel(x, y):
    """Elements of a 2-D array are counted flat."""
    i = cuda.threadIdx.x
    ptx.store(y, i, ptx.load(x, i))


CASES = [
    *(scalar_case(name) for name in FORMATS),
    *(rounding_case(name) for name in ("float16", "bfloat16")),
    *(vector_case("float32", *pair) for pair in hints()),
    *(vector_case(name, *pair) for name in ("float16", "bfloat16") for pair in hints()[:2]),
    *(shared_vector_case(name) for name in FORMATS),
    *(words_case(bits, *pair) for bits in (32, 64, 128) for pair in hints()),
    SHARED_WORDS, HALVES_AT,
    Case("two-dimensional", ("load", "store"), matrix_kernel,
         lambda rng: [rng.standard_normal((4, 8)).astype(np.float32)], lambda x: x),
]  # fmt: skip
