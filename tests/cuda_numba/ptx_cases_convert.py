"""Cases of `cuda_numba.ptx.convert`; the oracle is PyTorch's conversion."""

import numpy as np
import torch
from ptx_cases import Case, hard_floats

from cuda_numba import ptx
from cuda_numba.namespace import cuda

N = 1024


def unary(instruction):
    def kernel(x, y):
        i = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
        y[i] = instruction(x[i])

    return kernel


def to_pair(instruction):
    def kernel(x, y):
        i = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
        low, high = instruction(x[i])
        y[2 * i] = low
        y[2 * i + 1] = high

    return kernel


def from_pair(instruction):
    def kernel(x, y):
        i = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
        y[i] = instruction(x[2 * i], x[2 * i + 1])

    return kernel


def floats(count):
    return lambda rng: [hard_floats(rng, count)]


def every_16_bits(rng):
    return [rng.permutation(1 << 16)[:N].astype(np.uint16)]


def words(rng):
    return [rng.integers(0, 2**32, N, dtype=np.uint64).astype(np.uint32)]


# What PyTorch does not settle: the NaN that the hardware writes, and saturation.
NARROW = {
    "bf16": (torch.bfloat16, np.uint16, 0x7FFF, None),
    "f16": (torch.float16, np.uint16, 0x7FFF, None),
    "e4m3": (torch.float8_e4m3fn, np.uint8, 0x7F, 448.0),
    "e5m2": (torch.float8_e5m2, np.uint8, 0x7F, 57344.0),
}


def narrowed(x, name):
    """float32 → the bits of the format, as PyTorch rounds."""
    dtype, container, nan, largest = NARROW[name]
    y = torch.from_numpy(x)
    y = y if largest is None else y.clamp(-largest, largest)
    bits = y.to(dtype).view(torch.int16 if container is np.uint16 else torch.uint8).numpy()
    return np.where(np.isnan(x), container(nan), bits.view(container)).astype(container)


def widened(bits, name):
    dtype, container, _, _ = NARROW[name]
    signed = torch.int16 if container is np.uint16 else torch.uint8
    flat = np.ascontiguousarray(bits).view(np.int16 if container is np.uint16 else np.uint8)
    return torch.from_numpy(flat).view(signed).view(dtype).float().numpy()


def paired(x, name):
    bits = narrowed(x, name)
    return bits.view(np.uint32 if bits.dtype == np.uint16 else np.uint16)


def pack_case(name, text, cc=(7, 5)):
    instruction = getattr(ptx, f"pack_{name}")
    return Case(
        f"pack_{name}", (instruction.name,), from_pair(instruction), floats(2 * N),
        lambda x: paired(x, name), (text,), block=128, grid=N // 128, cc=cc,
    )  # fmt: skip


def unpack_case(name, text, cc=(7, 5)):
    instruction = getattr(ptx, f"unpack_{name}")
    inputs = words if name in ("bf16", "f16") else every_16_bits
    container = np.uint16 if name in ("bf16", "f16") else np.uint8
    return Case(
        f"unpack_{name}", (instruction.name,), to_pair(instruction), inputs,
        lambda x: widened(x.view(container), name), (text,), block=128, grid=N // 128, cc=cc,
    )  # fmt: skip


def unary_case(name, inputs, expected, text):
    instruction = getattr(ptx, name)
    return Case(name, (name,), unary(instruction), inputs, expected, text, block=128, grid=N // 128)


CASES = [
    pack_case("bf16", ("cvt.rn.bf16x2.f32", (8, 0))),  # before, integer code
    pack_case("f16", ("cvt.rn.f16x2.f32", (8, 0))),
    pack_case("e4m3", "cvt.rn.satfinite.e4m3x2.f32", (8, 9)),
    pack_case("e5m2", "cvt.rn.satfinite.e5m2x2.f32", (8, 9)),
    unpack_case("bf16", "shl.b32"),
    unpack_case("f16", "cvt.f32.f16"),
    unpack_case("e4m3", "cvt.rn.f16x2.e4m3x2", (8, 9)),
    unpack_case("e5m2", "cvt.rn.f16x2.e5m2x2", (8, 9)),
    unary_case(
        "f32_to_bf16", floats(N), lambda x: narrowed(x, "bf16"), (("cvt.rn.bf16.f32", (9, 0)),)
    ),
    unary_case("f32_to_f16_bits", floats(N), lambda x: narrowed(x, "f16"), ("cvt.rn.f16.f32",)),
    unary_case("bf16_to_f32", every_16_bits, lambda x: widened(x, "bf16"), ("shl.b32",)),
    unary_case("f16_to_f32", every_16_bits, lambda x: widened(x, "f16"), ("cvt.f32.f16",)),
    unary_case("bits", floats(N), lambda x: x.view(np.uint32), ()),
    unary_case("from_bits", words, lambda x: x.view(np.float32), ()),
]
