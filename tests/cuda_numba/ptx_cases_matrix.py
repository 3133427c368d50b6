"""Cases of `cuda_numba.ptx.matrix`: the warp's matrix product and the moves that feed it."""

import numpy as np
import torch
from ptx_cases import Case
from ptx_cases_convert import narrowed, widened

from cuda_numba import ptx
from cuda_numba.namespace import cuda, uint32
from cuda_numba.ptx.matrix import SHAPES


def mma_kernel(name):
    """Each lane's registers come from rows of x, in the order a, b; the sums from c."""
    mma = getattr(ptx, f"mma_{name}")
    regs_a, regs_b, _ = SHAPES[name].registers
    step = regs_a + regs_b

    if (regs_a, regs_b) == (4, 2):

        def kernel(x, c, y):
            i = cuda.threadIdx.x
            j, k = i * step, i * 4
            d = mma(x[j], x[j + 1], x[j + 2], x[j + 3], x[j + 4], x[j + 5],
                    c[k], c[k + 1], c[k + 2], c[k + 3])  # fmt: skip
            y[k], y[k + 1], y[k + 2], y[k + 3] = d[0], d[1], d[2], d[3]

    else:

        def kernel(x, c, y):
            i = cuda.threadIdx.x
            j, k = i * step, i * 4
            d = mma(x[j], x[j + 1], x[j + 2], c[k], c[k + 1], c[k + 2], c[k + 3])
            y[k], y[k + 1], y[k + 2], y[k + 3] = d[0], d[1], d[2], d[3]

    return kernel


def encoded(matrix, operand):
    """Values to the operand's elements, as unsigned integers of its width."""
    if operand == "s8":
        return matrix.astype(np.int8).view(np.uint8)
    if operand == "tf32":
        return matrix.view(np.uint32) & np.uint32(0xFFFFE000)
    return narrowed(matrix, operand)


def decoded(bits, operand):
    if operand == "s8":
        return bits.view(np.int8).astype(np.int64)
    if operand == "tf32":
        return bits.view(np.float32).astype(np.float64)
    return widened(bits, operand).astype(np.float64)


def fragments(shape, a, b):
    """The words of each lane, by the rule of the PTX manual: groupID = lane / 4 and so on."""
    per = 32 // shape.bits
    regs_a, regs_b, _ = shape.registers
    words = np.empty((32, regs_a + regs_b), np.uint32)
    for lane in range(32):
        group, thread = lane // 4, lane % 4
        for r in range(regs_a):
            row = group + (8 if r % 2 else 0)
            column = thread * per + (4 * per if r >= 2 else 0)
            words[lane, r] = a[row, column : column + per].copy().view(np.uint32)[0]
        for r in range(regs_b):
            row = thread * per + (4 * per if r else 0)
            words[lane, regs_a + r] = b[row : row + per, group].copy().view(np.uint32)[0]
    return words.reshape(-1)


def sums(c):
    """C or D, 16 × 8, as each lane's four numbers."""
    lanes = [
        (c[g, 2 * t], c[g, 2 * t + 1], c[g + 8, 2 * t], c[g + 8, 2 * t + 1])
        for g in range(8)
        for t in range(4)
    ]
    return np.array(lanes, c.dtype).reshape(-1)


def mma_case(name):
    shape = SHAPES[name]

    def matrices(rng):
        if shape.accumulator == "s32":
            a = rng.integers(-128, 128, (shape.m, shape.k))
            b = rng.integers(-128, 128, (shape.k, shape.n))
            return a, b, rng.integers(-(2**31), 2**31, (shape.m, shape.n)).astype(np.int32)
        a, b, c = (
            rng.standard_normal(size).astype(np.float32)
            for size in ((shape.m, shape.k), (shape.k, shape.n), (shape.m, shape.n))
        )
        return a, b, c

    def inputs(rng):
        a, b, c = matrices(rng)
        a, b = encoded(a, shape.operand), encoded(b, shape.operand)
        return [fragments(shape, a, b), sums(c)]

    def expected(x, c):
        a, b, c = matrices(np.random.default_rng(7))
        a, b = (decoded(encoded(m, shape.operand), shape.operand) for m in (a, b))
        if shape.accumulator == "s32":
            return sums((a @ b + c).astype(np.uint64).astype(np.uint32).view(np.int32))
        product = torch.from_numpy(a) @ torch.from_numpy(b) + torch.from_numpy(c).double()
        return sums(product.float().numpy())

    return Case(
        f"mma_{name}", (f"mma_{name}",), mma_kernel(name), inputs, expected, (shape.ptx,),
        cc=shape.cc, ulp=1,
        # The hardware truncates below the last bit of the largest term, here about 16; 8-bit floats
        # keep fewer bits still on Hopper.
        gpu_absolute=2.0**-9 if shape.bits == 8 else 2.0**-18,
    )  # fmt: skip


def load_kernel(count, trans):
    load = getattr(ptx, f"ldmatrix_x{count}{'_trans' if trans else ''}")

    if count == 1:

        def kernel(x, y):
            tile = cuda.shared.array(256, uint32)
            i = cuda.threadIdx.x
            for k in range(8):
                tile[32 * k + i] = x[32 * k + i]
            cuda.syncthreads()
            row = uint32(5 * i & 31)  # rows in no simple order
            y[i] = load(ptx.shared_address(tile) + uint32(32) * row)

    else:

        def kernel(x, y):
            tile = cuda.shared.array(256, uint32)
            i = cuda.threadIdx.x
            for k in range(8):
                tile[32 * k + i] = x[32 * k + i]
            cuda.syncthreads()
            row = uint32(5 * i & 31)
            words = load(ptx.shared_address(tile) + uint32(32) * row)
            for k in range(count):
                y[count * i + k] = words[k]

    return kernel


def load_expected(count, trans):
    def expected(x):
        rows = x.view(np.uint16).reshape(32, 16)[:, :8]  # 32 rows of 32 bytes, half of each read
        out = np.empty((32, count, 2), np.uint16)
        for lane in range(32):
            for k in range(count):
                matrix = rows[[5 * (8 * k + r) % 32 for r in range(8)]]
                matrix = matrix.T if trans else matrix
                out[lane, k] = matrix[lane // 4, 2 * (lane % 4) : 2 * (lane % 4) + 2]
        return out.reshape(-1).view(np.uint32)

    return expected


def load_case(count, trans):
    name = f"ldmatrix_x{count}{'_trans' if trans else ''}"
    return Case(
        name, (name,), load_kernel(count, trans),
        lambda rng: [rng.integers(0, 2**32, 256, dtype=np.uint64).astype(np.uint32)],
        load_expected(count, trans),
        (f"ldmatrix.sync.aligned.m8n8.x{count}{'.trans' if trans else ''}.shared.b16",),
    )  # fmt: skip


def store_expected(count, trans):
    def expected(x):
        lanes = x.view(np.uint16).reshape(32, count, 2)
        tile = np.zeros((8 * count, 8), np.uint16)
        for k in range(count):
            matrix = lanes[:, k].reshape(8, 8)
            matrix = matrix.T if trans else matrix
            for r in range(8):
                tile[3 * (8 * k + r) % (8 * count)] = matrix[r]
        return tile.reshape(-1).view(np.uint32)

    return expected


def store_case(count, trans):
    name = f"stmatrix_x{count}{'_trans' if trans else ''}"
    store = getattr(ptx, name)
    kernels = {1: store_kernel_1, 2: store_kernel_2, 4: store_kernel_4}
    return Case(
        name, (name,), kernels[count](store),
        lambda rng: [rng.integers(0, 2**32, 32 * count, dtype=np.uint64).astype(np.uint32)],
        store_expected(count, trans),
        (f"stmatrix.sync.aligned.m8n8.x{count}{'.trans' if trans else ''}.shared.b16",),
        cc=(9, 0),
    )  # fmt: skip


def store_kernel_1(store):
    def kernel(x, y):
        tile = cuda.shared.array(32, uint32)
        i = cuda.threadIdx.x
        row = uint32(3 * i & 7)
        store(ptx.shared_address(tile) + uint32(16) * row, x[i])
        cuda.syncthreads()
        y[i] = tile[i]

    return kernel


def store_kernel_2(store):
    def kernel(x, y):
        tile = cuda.shared.array(64, uint32)
        i = cuda.threadIdx.x
        row = uint32(3 * i & 15)
        store(ptx.shared_address(tile) + uint32(16) * row, x[2 * i], x[2 * i + 1])
        cuda.syncthreads()
        y[i], y[i + 32] = tile[i], tile[i + 32]

    return kernel


def store_kernel_4(store):
    def kernel(x, y):
        tile = cuda.shared.array(128, uint32)
        i = cuda.threadIdx.x
        row = uint32(3 * i & 31)
        j = 4 * i
        store(ptx.shared_address(tile) + uint32(16) * row, x[j], x[j + 1], x[j + 2], x[j + 3])
        cuda.syncthreads()
        for k in range(4):
            y[32 * k + i] = tile[32 * k + i]

    return kernel


def transpose_kernel(x, y):
    i = cuda.threadIdx.x
    y[i] = ptx.movmatrix_trans(x[i])


def transposed(x):
    matrix = x.view(np.uint16).reshape(8, 8)
    return np.ascontiguousarray(matrix.T).reshape(-1).view(np.uint32)


CASES = [
    *(mma_case(name) for name in SHAPES),
    *(load_case(count, trans) for count in (1, 2, 4) for trans in (False, True)),
    *(store_case(count, trans) for count in (1, 2, 4) for trans in (False, True)),
    Case("movmatrix_trans", ("movmatrix_trans",), transpose_kernel,
         lambda rng: [rng.integers(0, 2**32, 32, dtype=np.uint64).astype(np.uint32)], transposed,
         ("movmatrix.sync.aligned.m8n8.trans.b16",)),
]  # fmt: skip
