import numpy as np
import pytest
from ptx_cases import HOPPER, check_compiled, check_emulated, check_gpu, ids
from ptx_cases_matrix import CASES

from cuda_numba import ptx
from cuda_numba.namespace import cuda, float32, uint16, uint32
from cuda_numba.ptx.matrix import SHAPES, mma_layout

cases = pytest.mark.parametrize("case", CASES, ids=ids)


@cases
def test_emulated(case):
    check_emulated(case)


@cases
def test_compiled_for_the_oldest_gpu(case):
    check_compiled(case, case.cc, pointers=False)


@cases
def test_compiled_for_hopper(case):
    check_compiled(case, HOPPER, pointers=True)


@pytest.mark.gpu
@cases
def test_gpu(case):
    check_gpu(case)


@pytest.mark.parametrize("name", SHAPES)
def test_every_element_has_one_place(name):
    shape, layout = SHAPES[name], mma_layout(name)
    for part, rows, columns in (("a", shape.m, shape.k), ("b", shape.k, shape.n), ("c", 16, 8)):
        places = layout[part].reshape(-1, 2)
        assert sorted(map(tuple, places)) == [(r, c) for r in range(rows) for c in range(columns)]


def test_layout_of_an_unknown_shape():
    with pytest.raises(ValueError, match="'m8n8k8' is no mma; there are m16n8k8_f16"):
        mma_layout("m8n8k8")


def product(a, b, c):
    """One 16 × 8 × 16 product through shared memory: A row-major, B stored [n, k]."""
    tile_a = cuda.shared.array(256, uint16)
    tile_b = cuda.shared.array(128, uint16)
    lane = cuda.threadIdx.x
    for k in range(8):
        tile_a[32 * k + lane] = a[32 * k + lane]
    for k in range(4):
        tile_b[32 * k + lane] = b[32 * k + lane]
    cuda.syncthreads()
    row, half = uint32(lane & 15), uint32(lane >> 4)
    x = ptx.ldmatrix_x4(ptx.shared_address(tile_a) + uint32(32) * row + uint32(16) * half)
    row, half = uint32(lane & 7), uint32(lane >> 3 & 1)
    y = ptx.ldmatrix_x2(ptx.shared_address(tile_b) + uint32(32) * row + uint32(16) * half)
    zero = float32(0)
    d = ptx.mma_m16n8k16_bf16(x[0], x[1], x[2], x[3], y[0], y[1], zero, zero, zero, zero)
    i = (lane >> 2) * 8 + (lane & 3) * 2
    c[i], c[i + 1], c[i + 64], c[i + 65] = d[0], d[1], d[2], d[3]


def test_ldmatrix_feeds_mma():
    from cuda_numba.bits import bf16_bits, bf16_values
    from cuda_numba.emulator import emulate

    rng = np.random.default_rng(0)
    a, b = (bf16_bits(rng.standard_normal(shape)) for shape in ((16, 16), (8, 16)))
    c = np.zeros((16, 8), np.float32)
    emulate(product)[1, 32](a.reshape(-1), b.reshape(-1), c.reshape(-1))
    right = bf16_values(a).astype(np.float64) @ bf16_values(b).astype(np.float64).T
    np.testing.assert_allclose(c, right, rtol=1e-6, atol=1e-6)
