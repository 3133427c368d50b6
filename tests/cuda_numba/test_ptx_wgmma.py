"""wgmma against NumPy: layouts, transposes, operands in registers, groups."""

import functools
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from ptx_cases import assemble, needs_compiler
from ptx_cases_convert import narrowed, widened
from ptx_tiles import devices, findings, swizzle

from cuda_numba import jit, ptx
from cuda_numba.namespace import cuda, float32, uint32

HOPPER = (9, 0, "a")
PTX_NAMES = {"bfloat16": "bf16", "float16": "f16", "float8_e4m3fn": "e4m3", "float8_e5m2": "e5m2"}


@dataclass(frozen=True)
class Shape:
    """One product: D (64 × n) = A B over `steps` k steps, and how its operands lie."""

    n: int
    dtype: str = "bfloat16"
    steps: int = 4
    span: int = 128
    registers: bool = False
    transpose_a: bool = False
    transpose_b: bool = False

    @property
    def size(self):
        return 1 if "8" in self.dtype else 2

    @property
    def depth(self):
        return self.steps * 32 // self.size

    def __str__(self):
        flags = "-registers" * self.registers + "-ta" * self.transpose_a + "-tb" * self.transpose_b
        return f"n{self.n}-{self.dtype}-k{self.depth}-swizzle{self.span}{flags}"


def bits_of(values, dtype):
    if dtype == "int8":
        return values.astype(np.int8).view(np.uint8)
    return narrowed(values, PTX_NAMES[dtype])


def values_of(bits, dtype):
    if dtype == "int8":
        return bits.view(np.int8).astype(np.int64)
    return widened(bits, PTX_NAMES[dtype]).astype(np.float64)


def image(matrix, span, transposed):
    """The bytes in shared memory of a matrix (rows, K) of element bits, and its two strides.

    Along K: rows of `span` bytes, or columns of 16-byte pieces without a swizzle. Transposed:
    panels of 64 rows, each with K lines of 128 bytes.
    """
    rows, depth = matrix.shape
    if transposed:
        panels = [matrix[p : p + 64].T for p in range(0, rows, 64)]
        data = np.ascontiguousarray(np.stack(panels))
        return swizzle(data, 128), 128 * depth, 1024
    if not span:
        pieces = matrix.reshape(rows, -1, 16 // matrix.itemsize).transpose(1, 0, 2)
        return np.ascontiguousarray(pieces).reshape(-1).view(np.uint8), 16 * rows, 128
    assert depth * matrix.itemsize == span
    return swizzle(np.ascontiguousarray(matrix), span), 0, 8 * span


def fragments(matrix):
    """A (64, K) as each thread's words, by the manual: four to a k step of 32 bytes."""
    per = 4 // matrix.itemsize
    half = 4 * per
    steps = matrix.shape[1] // (2 * half)
    out = np.empty((128, steps, 4), np.uint32)
    for thread in range(128):
        warp, lane = divmod(thread, 32)
        for step in range(steps):
            for word in range(4):
                row = 16 * warp + lane // 4 + (8 if word % 2 else 0)
                column = 2 * half * step + (half if word >= 2 else 0) + lane % 4 * per
                piece = matrix[row, column : column + per].copy()
                out[thread, step, word] = piece.view(np.uint32)[0]
    return out.reshape(-1)


def by_thread(d):
    """D (64, n) as each thread's n / 2 numbers, by the manual."""
    n = d.shape[1]
    out = np.empty((128, n // 2), d.dtype)
    for thread in range(128):
        warp, lane = divmod(thread, 32)
        row, column = 16 * warp + lane // 4, 2 * (lane % 4)
        for j in range(n // 8):
            for h in range(2):
                part = d[row + 8 * h, 8 * j + column : 8 * j + column + 2]
                out[thread, 4 * j + 2 * h : 4 * j + 2 * h + 2] = part
    return out.reshape(-1)


@functools.cache
def product_kernel(shape, strides):
    """D = A B, then D += A B, so that both ways to begin are there."""
    n, count, steps = shape.n, shape.n // 2, shape.steps
    words_a = 64 * shape.depth * shape.size // 4
    words_b = n * shape.depth * shape.size // 4
    (lead_a, stride_a), (lead_b, stride_b) = strides
    span_a = 128 if shape.transpose_a else shape.span
    span_b = 128 if shape.transpose_b else shape.span
    kind = "s32" if shape.dtype == "int8" else "f32"
    jump = {
        f"step_{x}": None if shape.span or t else 2 * lead
        for x, t, lead in (("a", shape.transpose_a, lead_a), ("b", shape.transpose_b, lead_b))
    }
    multiply = ptx.wgmma(
        n, shape.dtype, "registers" if shape.registers else "shared", steps,
        shape.transpose_a, shape.transpose_b, **jump,
    )  # fmt: skip
    zeros, wait = ptx.wgmma_zeros(n, kind), ptx.wgmma_wait(n, 0, kind)

    if shape.registers:

        @jit(launch_bounds=(128, 1))
        def kernel(a, b, y):
            tile = cuda.shared.array(words_b, uint32, alignment=1024)
            i = cuda.threadIdx.x
            j = i
            while j < words_b:
                tile[j] = b[j]
                j += 128
            ptx.fence_proxy_async_shared()
            cuda.syncthreads()
            db = ptx.wgmma_descriptor(ptx.shared_address(tile), lead_b, stride_b, span_b)
            k = 4 * steps * i
            words = (a[k], a[k + 1], a[k + 2], a[k + 3])
            acc = zeros()
            ptx.wgmma_fence()
            acc = multiply(acc, words, db, False)
            acc = multiply(acc, words, db, True)
            ptx.wgmma_commit()
            acc = wait(acc)
            for k in range(count):
                y[count * i + k] = acc[k]

        return kernel

    @jit(launch_bounds=(128, 1))
    def kernel(a, b, y):
        tile_a = cuda.shared.array(words_a, uint32, alignment=1024)
        tile_b = cuda.shared.array(words_b, uint32, alignment=1024)
        i = cuda.threadIdx.x
        j = i
        while j < words_a:
            tile_a[j] = a[j]
            j += 128
        j = i
        while j < words_b:
            tile_b[j] = b[j]
            j += 128
        ptx.fence_proxy_async_shared()
        cuda.syncthreads()
        da = ptx.wgmma_descriptor(ptx.shared_address(tile_a), lead_a, stride_a, span_a)
        db = ptx.wgmma_descriptor(ptx.shared_address(tile_b), lead_b, stride_b, span_b)
        acc = zeros()
        ptx.wgmma_fence()
        acc = multiply(acc, da, db, False)
        ptx.wgmma_commit()
        acc = multiply(acc, da, db, True)
        ptx.wgmma_commit()
        acc = wait(acc)
        for k in range(count):
            y[count * i + k] = acc[k]

    return kernel


def operands(shape):
    """A and B as element bits, what the kernel is given of them, and the kernel."""
    rng = np.random.default_rng(3)
    draw = (lambda s: rng.integers(-128, 128, s)) if shape.dtype == "int8" else (
        lambda s: rng.standard_normal(s).astype(np.float32)
    )  # fmt: skip
    a, b = (bits_of(draw((rows, shape.depth)), shape.dtype) for rows in (64, shape.n))
    image_b, *strides_b = image(b, shape.span, shape.transpose_b)
    if shape.registers:
        given_a, strides_a = fragments(a), (0, 0)
    else:
        given_a, *strides_a = image(a, shape.span, shape.transpose_a)
    kernel = product_kernel(shape, (tuple(strides_a), tuple(strides_b)))
    return a, b, given_a.view(np.uint32), image_b.view(np.uint32), kernel


SHAPES = [
    *(Shape(n) for n in (8, 16, 64, 96, 256)),
    *(Shape(64, steps=s, span=w) for s, w in ((1, 32), (2, 64), (4, 0))),
    Shape(64, "float16"),
    Shape(128, "float8_e4m3fn"),
    Shape(64, "float8_e5m2", span=0),
    Shape(64, "int8"),
    Shape(64, transpose_b=True),
    Shape(64, transpose_a=True),
    Shape(128, "float16", transpose_a=True, transpose_b=True),
    Shape(64, "float16", steps=1, span=32, registers=True),
    Shape(128, steps=1, registers=True, transpose_b=True),
    Shape(64, "float8_e4m3fn", steps=1, span=32, registers=True),
    Shape(64, "int8", steps=1, span=32, registers=True),
]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


@devices
@shapes
def test_product(device, shape):
    a, b, given_a, given_b, kernel = operands(shape)
    exact = 2 * (values_of(a, shape.dtype) @ values_of(b, shape.dtype).T)
    right = by_thread(exact)
    kind = torch.int32 if shape.dtype == "int8" else torch.float32
    y = torch.zeros(len(right), dtype=kind, device=device)
    kernel[1, 128](*(torch.from_numpy(x.copy()).to(device) for x in (given_a, given_b)), y)
    got = y.cpu().numpy()
    if kind == torch.int32:
        np.testing.assert_array_equal(got, right.astype(np.int32))
        return
    allowed = np.abs(right).max() * 2.0**-20
    if shape.size == 1 and device == "cuda":
        # Before the hardware adds the 32 products of 8-bit floats and what the accumulator holds,
        # it shifts them to the exponent of the largest and cuts them off 13 bits behind the point.
        # 33 such cuts, each by up to 2⁻¹³ of the largest sum and of either sign, make about two of
        # these units per instruction; there are 2 · steps.
        allowed = np.abs(right).max() * 2.0**-12 * 2 * shape.steps
    np.testing.assert_allclose(got, right, rtol=0, atol=allowed)


@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[2], SHAPES[12], SHAPES[15]], ids=str)
@pytest.mark.parametrize("seed", [None, 1, 2])
def test_no_findings(shape, seed):
    a, b, given_a, given_b, kernel = operands(shape)
    y = np.zeros(64 * shape.n, np.float32)
    report = kernel.report(1, 128, given_a, given_b, y, seed=seed)
    assert findings(report) == []
    right = by_thread(2 * (values_of(a, shape.dtype) @ values_of(b, shape.dtype).T))
    np.testing.assert_allclose(y, right, rtol=1e-5, atol=1e-5)


@shapes
def test_compiled(shape):
    needs_compiler()
    *_, kernel = operands(shape)
    out = "int32[:]" if shape.dtype == "int8" else "float32[:]"
    text = kernel.ptx(HOPPER, signature=("uint32[:]", "uint32[:]", out))
    size = f"m64n{shape.n}k{32 // shape.size}"
    assert text.count(f"wgmma.mma_async.sync.aligned.{size}.") == 2 * shape.steps
    if shape.size == 2:
        transposes = (
            [shape.transpose_b] if shape.registers else [shape.transpose_a, shape.transpose_b]
        )
        assert f", 1, 1, {', '.join(str(int(t)) for t in transposes)};" in text
    assert "wgmma.fence.sync.aligned" in text and "wgmma.commit_group.sync.aligned" in text
    report = assemble(text, HOPPER)
    assert "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in report, report


def test_instructions_are_made_once():
    assert ptx.wgmma(64) is ptx.wgmma(n=64, dtype="bfloat16", a="shared", step_a=32)
    assert ptx.wgmma(64) is not ptx.wgmma(64, k_steps=2)
    assert ptx.wgmma(64, k_steps=4).flops == 2 * 64 * 64 * 64
    assert ptx.wgmma_wait(64, 1) is ptx.wgmma_wait(64, 1)


WRONG = [
    (dict(n=12), "n: got 12, for bfloat16 it is a multiple of 8 from 8 to 256"),
    (dict(n=264), "n: got 264"),
    (dict(n=40, dtype="int8"), "n: got 40, for int8 it is a multiple of 16"),
    (dict(n=64, dtype="float32"), "dtype: got 'float32', wgmma takes bfloat16, float16"),
    (dict(n=64, a="local"), 'a: got \'local\', it is "shared" or "registers"'),
    (dict(n=64, k_steps=0), "k_steps: got 0"),
    (dict(n=64, dtype="int8", transpose_b=True), "int8 operands cannot be transposed"),
    (dict(n=64, a="registers", transpose_a=True), "in registers cannot be transposed"),
    (dict(n=64, step_a=8), "step_a: got 8, it must be a multiple of 16"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG)
def test_what_there_is_not(arguments, message):
    with pytest.raises(ValueError, match=message):
        ptx.wgmma(**arguments)


def test_descriptor():
    """The bits, from the table of the manual."""
    made = ptx.wgmma_descriptor.evaluate(0x12340, 8192, 1024, 128)
    assert made == 0x1234 | 512 << 16 | 64 << 32 | 1 << 62
    codes = {0: 0, 128: 1, 64: 2, 32: 3}
    for span, code in codes.items():
        assert ptx.wgmma_descriptor.evaluate(0, 0, 0, span) >> 62 == code
    with pytest.raises(ValueError, match="swizzle: got 16, it is 0, 32, 64 or 128"):
        ptx.wgmma_descriptor.evaluate(0, 0, 0, 16)


@jit
def descriptors(x, y):
    y[0] = ptx.wgmma_descriptor(x[0], 8192, 1024, 128)
    y[1] = ptx.wgmma_descriptor(x[0], 16, 512, 64)
    y[2] = ptx.wgmma_descriptor(x[0], 0, 256, 32)
    y[3] = ptx.wgmma_descriptor(x[0], 1024, 128, 0)


@devices
def test_descriptor_in_a_kernel(device):
    x = torch.tensor([0x12340], dtype=torch.uint32, device=device)
    y = torch.zeros(4, dtype=torch.uint64, device=device)
    descriptors[1, 1](x, y)
    rows = [(8192, 1024, 128), (16, 512, 64), (0, 256, 32), (1024, 128, 0)]
    right = [ptx.wgmma_descriptor.evaluate(0x12340, *row) for row in rows]
    assert y.cpu().numpy().tolist() == right


@functools.cache
def scaling_kernel(n):
    """Accumulators through a local array, scaled by index, and on as accumulators."""
    count = n // 2
    words = 8 * n
    load, store, multiply = ptx.wgmma_load(n), ptx.wgmma_store(n), ptx.wgmma(n)
    zeros, wait, pin = ptx.wgmma_zeros(n), ptx.wgmma_wait(n, 0), ptx.pin(count, "f32")

    @jit(launch_bounds=(128, 1))
    def kernel(a, b, y):
        tile_a = cuda.shared.array(512, uint32, alignment=1024)
        tile_b = cuda.shared.array(words, uint32, alignment=1024)
        values = cuda.local.array(count, float32)
        i = cuda.threadIdx.x
        for k in range(4):
            tile_a[128 * k + i] = a[128 * k + i]
        j = i
        while j < words:
            tile_b[j] = b[j]
            j += 128
        ptx.fence_proxy_async_shared()
        cuda.syncthreads()
        da = ptx.wgmma_descriptor(ptx.shared_address(tile_a), 0, 256, 32)
        db = ptx.wgmma_descriptor(ptx.shared_address(tile_b), 0, 256, 32)
        acc = zeros()
        ptx.wgmma_fence()
        acc = multiply(acc, da, db, False)
        ptx.wgmma_commit()
        store(wait(acc), values)
        for k in range(count):
            values[k] = values[k] * float32(0.5)
        acc = pin(load(values))
        ptx.wgmma_fence()
        acc = multiply(acc, da, db, True)
        ptx.wgmma_commit()
        acc = wait(acc)
        for k in range(count):
            y[count * i + k] = acc[k]

    return kernel


@devices
def test_accumulators_by_index(device):
    shape = Shape(64, steps=1, span=32)
    a, b, given_a, given_b, _ = operands(shape)
    y = torch.zeros(64 * 64, device=device)
    scaling_kernel(64)[1, 128](
        *(torch.from_numpy(x.copy()).to(device) for x in (given_a, given_b)), y
    )
    right = by_thread(1.5 * (values_of(a, shape.dtype) @ values_of(b, shape.dtype).T))
    np.testing.assert_allclose(y.cpu().numpy(), right, rtol=0, atol=2e-5)


def test_accumulators_by_index_stay_in_registers():
    needs_compiler()
    text = scaling_kernel(64).ptx(HOPPER, signature=("uint32[:]", "uint32[:]", "float32[:]"))
    assert ".local" not in text and "// pinned" in text
    assert "0 bytes stack frame, 0 bytes spill stores" in assemble(text, HOPPER)


def test_accumulators_by_index_without_findings():
    _, _, given_a, given_b, _ = operands(Shape(64, steps=1, span=32))
    report = scaling_kernel(64).report(1, 128, given_a, given_b, np.zeros(64 * 64, np.float32))
    assert findings(report) == []


@functools.cache
def pipelined(n, rounds):
    """Products that begin before the one before is waited for."""
    count = n // 2
    multiply, zeros = ptx.wgmma(n), ptx.wgmma_zeros(n)
    wait_but_one, wait = ptx.wgmma_wait(n, 1), ptx.wgmma_wait(n, 0)

    @jit(launch_bounds=(128, 1))
    def kernel(a, b, y):
        tile_a = cuda.shared.array(512, uint32, alignment=1024)
        tile_b = cuda.shared.array(512, uint32, alignment=1024)
        i = cuda.threadIdx.x
        for k in range(4):
            tile_a[128 * k + i] = a[128 * k + i]
            tile_b[128 * k + i] = b[128 * k + i]
        ptx.fence_proxy_async_shared()
        cuda.syncthreads()
        da = ptx.wgmma_descriptor(ptx.shared_address(tile_a), 0, 256, 32)
        db = ptx.wgmma_descriptor(ptx.shared_address(tile_b), 0, 256, 32)
        acc = zeros()
        for k in range(rounds):
            ptx.wgmma_fence()
            acc = multiply(acc, da, db, k > 0)
            ptx.wgmma_commit()
            acc = wait_but_one(acc)
        acc = wait(acc)
        for k in range(count):
            y[count * i + k] = acc[k]

    return kernel


@devices
@pytest.mark.parametrize("rounds", [1, 2, 5])
def test_products_one_behind_the_other(device, rounds):
    a, b, given_a, given_b, _ = operands(Shape(64, steps=1, span=32))
    inputs = [torch.from_numpy(x.copy()).to(device) for x in (given_a, given_b)]
    y = torch.zeros(64 * 64, device=device)
    pipelined(64, rounds)[1, 128](*inputs, y)
    right = by_thread(rounds * (values_of(a, "bfloat16") @ values_of(b, "bfloat16").T))
    np.testing.assert_allclose(y.cpu().numpy(), right, rtol=0, atol=1e-5 * rounds)


def test_products_one_behind_the_other_without_findings():
    _, _, given_a, given_b, _ = operands(Shape(64, steps=1, span=32))
    for seed in (None, 0):
        y = np.zeros(64 * 64, np.float32)
        report = pipelined(64, 3).report(1, 128, given_a, given_b, y, seed=seed)
        assert findings(report) == []
