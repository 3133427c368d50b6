"""Products by mma.sync against float64: every way operands may lie, edges, batches, epilogues."""

import itertools

import pytest
import torch
from tolerance import check, guarded, poisoned

from cuda_numba import matmul_operands
from cuda_numba.matmul_operands import product_of
from cuda_numba.matmul_warp import (
    DTYPES,
    LARGE,
    OUT_DTYPES,
    RUNGS,
    SMALL,
    launch,
    matmul_warp,
    matmul_warp_reference,
)
from cuda_numba.matmul_warp_kernel import Tile

FORMS = list(itertools.product((True, False), repeat=2))  # K runs along the rows of a, of b
HALVES = [torch.bfloat16, torch.float16]
GPU_SIZES = [(1, 1, 1), (127, 129, 130), (256, 512, 128), (1000, 1000, 520), (2048, 1032, 1024)]


@pytest.fixture(autouse=True)
def poison():
    with poisoned():
        yield


@pytest.fixture
def turing(monkeypatch):
    monkeypatch.setattr(matmul_operands, "EMULATED", ((7, 5), 8))


def operands(M, N, K, forms=(True, True), dtype=torch.bfloat16, device="cpu", batch=(), offset=0):
    """a and b, whose memory begins `offset` elements behind that of its tensor."""

    def matrix(rows, columns, straight):
        size = (rows, columns) if straight else (columns, rows)
        shape = (*batch, *size)
        x = torch.randn(torch.Size(shape).numel() + offset).to(device, dtype)[offset:].view(shape)
        return x if straight else x.mT

    return matrix(M, K, forms[0]), matrix(K, N, not forms[1])


def double(x):
    return None if x is None else x.detach().cpu().double()


def check_product(y, a, b, bias=None, beta=0.0, before=None):
    """A tensor core adds products in groups, cut off below the largest one's last bit: a unit or
    two of float32 for each of K / 8 groups, and each relative to what the sum is by then."""
    expected = matmul_warp_reference(double(a), double(b), double(bias), beta, double(before))
    K = a.shape[-1]
    check("out", y, expected, y.dtype, scale=K**0.5, factor=1 + K / 256)


def run(a, b, tile, **options):
    p = product_of(a, b, options.pop("out", None), options.pop("out_dtype", None),
                   dtypes=DTYPES, out_dtypes=OUT_DTYPES)  # fmt: skip
    launch(p, tile, **options)
    return p.result


class TestAgainstFloat64:
    @pytest.mark.parametrize("forms", FORMS, ids=str)
    def test_whole_tiles(self, forms):
        """Tiles that fit, and a last one that moves back."""
        for size, dtype in (((64, 64, 128), HALVES[0]), ((72, 64, 64), HALVES[1])):
            a, b = operands(*size, forms, dtype)
            check_product(matmul_warp(a, b), a, b)

    @pytest.mark.parametrize("forms", FORMS, ids=str)
    def test_edges(self, forms):
        """Sizes that no 16 bytes divide, in rows that begin at multiples of 16 bytes."""
        a, b = operands(72, 80, 136, forms)
        a, b = a[:65, :130], b[:130, :70]
        check_product(matmul_warp(a, b, out_dtype=torch.float32), a, b)

    @pytest.mark.parametrize("forms", FORMS, ids=str)
    def test_rows_that_begin_anywhere(self, forms):
        for size, offset in (((7, 33, 130), 0), ((65, 64, 64), 1)):
            a, b = operands(*size, forms, offset=offset)
            check_product(matmul_warp(a, b), a, b)

    @pytest.mark.parametrize("K", [1, 64, 65, 256])
    def test_fewer_and_more_tiles_than_stages(self, K):
        a, b = operands(16, 24, K)
        check_product(matmul_warp(a, b), a, b)

    @pytest.mark.parametrize("forms", [(True, True), (False, False)], ids=str)
    def test_large_tile(self, forms):
        a, b = operands(128, 256, 192, forms)
        check_product(run(a, b, LARGE[9, 0]), a, b)

    @pytest.mark.parametrize("forms", FORMS, ids=str)
    def test_before_ampere(self, turing, forms):
        for size in ((64, 72, 96), (7, 33, 130)):
            a, b = operands(*size, forms, torch.float16)
            check_product(matmul_warp(a, b), a, b)


class TestEpilogue:
    @pytest.mark.parametrize("out_dtype", [torch.float32, *HALVES], ids=str)
    def test_formats(self, out_dtype):
        for dtype in HALVES:
            a, b = operands(33, 40, 72, dtype=dtype)
            y = matmul_warp(a, b, out_dtype=out_dtype)
            assert y.dtype == out_dtype
            check_product(y, a, b)

    @pytest.mark.parametrize("N", [40, 37])
    def test_bias(self, N):
        a, b = operands(33, N, 72)
        for bias in (torch.randn(N), torch.randn(N).bfloat16()):
            check_product(matmul_warp(a, b, bias=bias), a, b, bias)

    @pytest.mark.parametrize("out_dtype", [torch.float32, *HALVES], ids=str)
    @pytest.mark.parametrize("N", [40, 37])
    def test_added_to_what_was_there(self, N, out_dtype):
        a, b = operands(33, N, 72)
        before = torch.randn(33, N).to(out_dtype)
        out = before.clone()
        assert matmul_warp(a, b, out, beta=0.5) is out
        check_product(out, a, b, None, 0.5, before)

    def test_out_is_not_read_without_beta(self):
        a, b = operands(16, 24, 40)
        out, intact = guarded((16, 24), torch.bfloat16)  # NaN
        check_product(matmul_warp(a, b, out), a, b)
        assert intact()

    def test_part_of_a_larger_matrix(self):
        a, b = operands(66, 70, 64)
        wide = torch.full((66, 80), -1.0)
        matmul_warp(a, b, wide[:, 3:73])
        check_product(wide[:, 3:73], a, b)
        assert (wide[:, :3] == -1).all() and (wide[:, 73:] == -1).all()

    def test_nothing_to_add_up(self):
        a, b = operands(3, 5, 0)
        bias, out = torch.randn(5), torch.randn(3, 5)
        assert torch.equal(matmul_warp(a, b), torch.zeros(3, 5).bfloat16())
        expected = 0.5 * out + bias
        assert torch.equal(matmul_warp(a, b, out, bias=bias, beta=0.5), expected)
        assert matmul_warp(*operands(0, 5, 8)).shape == (0, 5)


def test_batches():
    a, b = operands(5, 16, 24, batch=(2, 3))
    check_product(matmul_warp(a, b), a, b)
    check_product(matmul_warp(a[:, :1], b[:, 1:2]), a[:, :1], b[:, 1:2])
    check_product(matmul_warp(a, b[0, 0]), a, b[0, 0])


def test_deterministic():
    a, b = operands(33, 40, 200)
    assert torch.equal(matmul_warp(a, b), matmul_warp(a, b))


def test_the_check_can_fail():
    a, b = operands(33, 40, 200)
    y = matmul_warp(a, b, out_dtype=torch.float32)
    check_product(y, a, b)
    with pytest.raises(AssertionError):
        check_product(y, a[:, :-1], b[:-1])  # the last k dropped
    y[3, 5] += 1e-3
    with pytest.raises(AssertionError):
        check_product(y, a, b)


class TestErrors:
    def test_formats(self, turing):
        with pytest.raises(TypeError, match="a: .* float32"):
            matmul_warp(torch.ones(2, 2), torch.ones(2, 2))
        with pytest.raises(TypeError, match="a: it is bfloat16, before compute capability 8.0"):
            matmul_warp(*operands(2, 2, 2))

    def test_bias(self):
        a, b = operands(2, 3, 4)
        with pytest.raises(ValueError, match="bias: its shape"):
            matmul_warp(a, b, bias=torch.ones(2))
        with pytest.raises(TypeError, match="bias: it is float16"):
            matmul_warp(a, b, bias=torch.ones(3).half())

    def test_beta(self):
        with pytest.raises(ValueError, match="out: got None"):
            matmul_warp(*operands(2, 3, 4), beta=1.0)

    def test_strides(self):
        with pytest.raises(ValueError, match="a: its strides"):
            matmul_warp(torch.ones(4, 6).bfloat16()[:, ::2], torch.ones(3, 5).bfloat16())

    def test_tile(self):
        a, b = operands(2, 3, 4, (False, True))
        with pytest.raises(ValueError, match="form: "):
            run(a, b, Tile(96, 64, 64, 48, 32, 3))


@pytest.mark.gpu
class TestOnGPU:
    @pytest.mark.parametrize("size", GPU_SIZES, ids=str)
    def test_forms(self, size):
        for forms, offset in itertools.product(FORMS, (0, 1)):
            a, b = operands(*size, forms, device="cuda", offset=offset)
            check_product(RUNGS["mma.sync"](a, b), a, b)

    @pytest.mark.parametrize("tile", sorted({*LARGE.values(), *SMALL.values()}), ids=str)
    def test_tiles(self, tile):
        for forms in FORMS if tile == LARGE[9, 0] else FORMS[:1]:
            a, b = operands(1000, 776, 576, forms, torch.float16, "cuda")
            bias, before = torch.randn(776, device="cuda"), torch.randn(1000, 776, device="cuda")
            out = before.clone()
            run(a, b, tile, out=out, bias=bias, beta=0.5)
            check_product(out, a, b, bias, 0.5, before)

    def test_deterministic(self):
        a, b = operands(1000, 776, 576, device="cuda")
        assert torch.equal(matmul_warp(a, b), matmul_warp(a, b))

    def test_in_a_graph(self):
        a, b = operands(256, 512, 128, device="cuda")
        y = matmul_warp(a, b)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            again = matmul_warp(a, b)
        graph.replay()
        assert torch.equal(again, y)

    def test_like_the_emulator(self):
        """The sums differ in a few units of float32: both are rounded, perhaps another way."""
        a, b = operands(65, 72, 136)
        expected = double(matmul_warp(a, b))
        check("out", matmul_warp(a.cuda(), b.cuda()), expected, torch.bfloat16, factor=2)
