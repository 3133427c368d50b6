"""Claim i: kernels move float32, 16- and 8-bit numbers. The error is that of the format: it falls
with the bits of the mantissa, and small numbers vanish where the exponent has few bits.

The same kernels run on float32, float16 and bfloat16 inputs; 8-bit numbers are converted on the way
in and out. All compute in float32, so a result is off by the rounding of the format that it is
stored in. Expected values are float64, of the inputs as the format holds them.
"""

from collections.abc import Callable

import pytest
import torch

from cuda_numba import jit, ptx
from cuda_numba.namespace import cuda, float32
from minilm import ops

FORMATS = {  # name → (dtype, bits of mantissa that are stored)
    "float32": (torch.float32, 23),
    "float16": (torch.float16, 10),
    "bfloat16": (torch.bfloat16, 7),
}
ROWS, N = 6, 96


def randn(*shape, seed=0, dtype=torch.float64):
    source = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=source, dtype=torch.float64).to(dtype)


ANGLES = torch.arange(ROWS)[:, None] * 0.7 ** torch.arange(N // 2)
OPS: dict[str, tuple[Callable, list[torch.Tensor]]] = {
    "softmax": (ops.softmax, [2 * randn(ROWS, N)]),
    "layer_norm": (ops.layer_norm, [randn(ROWS, N), 1 + 0.1 * randn(N), randn(N, seed=1)]),
    "rms_norm": (ops.rms_norm, [randn(ROWS, N), 1 + 0.1 * randn(N)]),
    "gelu": (ops.gelu, [randn(ROWS, N)]),
    "swiglu": (ops.swiglu, [randn(ROWS, N), randn(ROWS, N, seed=1)]),
    "rope": (
        lambda x: ops.rope(x, ANGLES.cos().float(), ANGLES.sin().float()),
        [randn(1, 1, ROWS, N)],
    ),
}


def error(op: str, dtype: torch.dtype) -> float:
    """The root mean square of the error, relative to that of the result, of a kernel."""
    function, values = OPS[op]
    stored = [v.to(dtype) for v in values]
    with ops.use_backend("numba"):
        got = function(*stored)
    assert got.dtype == dtype
    exact = function(*(v.double() for v in stored))
    return float((got.double() - exact).norm() / exact.norm())


def is_one_rounding(measured: float, bits: int) -> bool:
    """Rounding to nearest is off by up to 2^(−bits − 1), in the mean by about 0.4 of it."""
    unit = 2.0 ** (-bits - 1)
    return 0.2 * unit < measured < unit


@pytest.mark.parametrize("op", OPS)
def test_the_error_is_one_rounding_to_the_format(op):
    errors = {name: error(op, dtype) for name, (dtype, _) in FORMATS.items()}
    assert errors["float32"] < errors["float16"] < errors["bfloat16"]
    for name in ("float16", "bfloat16"):
        assert is_one_rounding(errors[name], FORMATS[name][1]), errors
    # float32 is stored as it was computed: its error is that of the arithmetic, a few roundings
    assert errors["float32"] < 8 * 2.0**-24
    # three more bits of mantissa, an eighth of the error
    assert 5 < errors["bfloat16"] / errors["float16"] < 12
    # control: each format's error is not that of the others
    assert not is_one_rounding(errors["float16"], 7) and not is_one_rounding(errors["bfloat16"], 10)


@jit
def softmax_in_bfloat16(x, y, n):
    """A softmax with the sum itself in bfloat16: what a kernel should not do."""
    if cuda.threadIdx.x == 0:
        row = cuda.blockIdx.x * n
        total = float32(0)
        for j in range(n):
            rounded = ptx.f32_to_bf16(total + ptx.ex2(ptx.load(x, row + j)))
            total = ptx.bf16_to_f32(rounded)
        for j in range(n):
            ptx.store(y, row + j, ptx.ex2(ptx.load(x, row + j)) / total)


def test_the_sum_must_be_wider_than_the_numbers():
    n = 600
    x = torch.zeros(2, n, dtype=torch.bfloat16)
    with ops.use_backend("numba"):
        assert float(ops.softmax(x)[0, 0]) == pytest.approx(1 / n, rel=2**-8)
    y = torch.empty_like(x)
    softmax_in_bfloat16[2, 32](x, y, n)
    # control: adding ones in bfloat16 ends at 256, where 256 + 1 rounds to 256
    assert float(y[0, 0]) == 1 / 256


# ------------------------------------------------------------------ range


def survives(scale: float, dtype: torch.dtype) -> bool:
    """Does a gradient of size `scale` come through the backward pass of GELU?"""
    x = torch.ones(32, dtype=dtype, requires_grad=True)
    with ops.use_backend("numba"):
        ops.gelu(x).backward(torch.full((32,), scale).to(dtype))
    slope = 1.0833  # gelu'(1)
    return bool(((x.grad.float() / scale - slope).abs() < 0.02).all())


def test_float16_underflows_where_bfloat16_does_not():
    for dtype, _ in FORMATS.values():
        assert survives(1e-3, dtype)
    assert survives(1e-9, torch.float32) and survives(1e-9, torch.bfloat16)
    assert not survives(1e-9, torch.float16)  # control: below 6e-8 it is 0
    assert not survives(2e-7, torch.float16)  # subnormal: two bits are left
    # a loss scale of 2^16 lifts it into the range, as does a float32 gradient
    assert survives(1e-9 * 2**16, torch.float16)


def test_float16_overflows_where_bfloat16_does_not():
    def doubled(value: float, dtype: torch.dtype) -> float:
        x = torch.full((8,), value, dtype=dtype)
        with ops.use_backend("numba"):
            return float(ops.swiglu(x, torch.full_like(x, 2.0))[0])

    assert doubled(3e4, torch.float16) == pytest.approx(6e4, rel=1e-3)
    assert doubled(4e4, torch.float16) == float("inf")  # control: above 65,504
    assert doubled(4e4, torch.bfloat16) == pytest.approx(8e4, rel=1e-2)
    assert doubled(4e4, torch.float32) == pytest.approx(8e4, rel=1e-6)


# ------------------------------------------------------------------ 8 bits


@jit
def through_e4m3(x, y):
    """Two neighbours → a pair of 8-bit numbers → two float32."""
    i = 2 * cuda.grid(1)
    if i + 1 < x.size:
        y[i], y[i + 1] = ptx.unpack_e4m3(ptx.pack_e4m3(x[i], x[i + 1]))


@jit
def through_e5m2(x, y):
    i = 2 * cuda.grid(1)
    if i + 1 < x.size:
        y[i], y[i + 1] = ptx.unpack_e5m2(ptx.pack_e5m2(x[i], x[i + 1]))


EIGHT = {  # name → (kernel, dtype, bits of mantissa, the largest number)
    "e4m3": (through_e4m3, torch.float8_e4m3fn, 3, 448.0),
    "e5m2": (through_e5m2, torch.float8_e5m2, 2, 57344.0),
}


def converted(kernel, x: torch.Tensor) -> torch.Tensor:
    y = torch.full_like(x, float("nan"))
    kernel[-(-x.numel() // 64), 32](x, y)
    return y


@pytest.mark.parametrize("name", EIGHT)
def test_eight_bits_are_off_by_one_rounding_too(name):
    kernel, dtype, bits, largest = EIGHT[name]
    x = 1 + randn(256, dtype=torch.float32).abs()
    y = converted(kernel, x)
    assert torch.equal(y, x.to(dtype).float())
    assert is_one_rounding(float((y - x).norm() / x.norm()), bits)
    # control: the other format's mantissa
    other = next(v for k, v in EIGHT.items() if k != name)
    assert not torch.equal(converted(other[0], x), y)
    # beyond the largest number: held there, not infinite (satfinite)
    assert converted(kernel, torch.tensor([1e6, -1e6])).tolist() == [largest, -largest]


def test_three_bits_of_mantissa_or_five_of_exponent():
    """e4m3 is finer, e5m2 reaches further: gradients want the second, weights the first."""
    x = 1 + randn(256, dtype=torch.float32).abs()

    def relative(name: str, scale: float) -> float:
        y = converted(EIGHT[name][0], x * scale)
        return float((y / scale - x).norm() / x.norm())

    assert 1.5 < relative("e5m2", 1.0) / relative("e4m3", 1.0) < 2.5
    for scale in (1e-4, 1e3):  # control: there it is the other way round
        assert relative("e5m2", scale) < 0.2 < relative("e4m3", scale)
