"""Products in float32 against float64: every rung, every way that operands may lie."""

import functools
import itertools

import pytest
import torch
from tolerance import check, guarded, poisoned

from cuda_numba.matmul_operands import parts_of, product_of
from cuda_numba.matmul_simt import GRID, RUNGS, SMALL_GRID, matmul_reference, run

SIZES = [(1, 1, 1), (7, 33, 130), (65, 40, 33)]  # M, N, K
FORMS = list(itertools.product((True, False), repeat=2))  # K runs along the rows of a, of b
GPU_SIZES = [(1, 1, 1), (127, 129, 130), (256, 384, 64), (1000, 1003, 517), (2048, 1536, 1024)]


@pytest.fixture(autouse=True)
def poison():
    with poisoned():
        yield


def operands(M, N, K, forms=(True, False), dtype=torch.float32, device="cpu", batch=(), offset=0):
    """a and b, whose memory begins `offset` elements behind that of its tensor."""

    def matrix(rows, columns, straight):
        size = (rows, columns) if straight else (columns, rows)
        shape = (*batch, *size)
        x = torch.randn(torch.Size(shape).numel() + offset).to(device, dtype)[offset:].view(shape)
        return x if straight else x.mT

    return matrix(M, K, forms[0]), matrix(K, N, not forms[1])


def expect(a, b):
    return matmul_reference(a.cpu().double(), b.cpu().double())


def check_product(y, a, b):
    """Each of the K additions of a sum rounds it, to half a unit of what it is by then."""
    K = a.shape[-1]
    check("out", y, expect(a, b), y.dtype, scale=K**0.5, factor=1 + K / 64)


def run_register(grid, a, b):
    return run(product_of(a, b, dtypes=("float32",)), grid)


@pytest.mark.parametrize("rung", RUNGS)
class TestAgainstFloat64:
    @pytest.mark.parametrize("size", SIZES, ids=str)
    def test_forms(self, rung, size):
        for forms in FORMS if rung == "register tile" else FORMS[1:3]:
            a, b = operands(*size, forms)
            check_product(RUNGS[rung](a, b), a, b)

    def test_batches(self, rung):
        a, b = operands(5, 7, 9, batch=(2, 3))
        check_product(RUNGS[rung](a, b), a, b)
        check_product(RUNGS[rung](a[:1, :1], b), a[:1, :1], b)  # one matrix for all
        check_product(RUNGS[rung](a, b[0, 0]), a, b[0, 0])  # rows of one matrix

    def test_out_is_written_and_nothing_else(self, rung):
        a, b = operands(9, 34, 12)
        out, intact = guarded((9, 34), torch.float32)
        assert RUNGS[rung](a, b, out) is out and intact()
        check_product(out, a, b)
        wide = torch.full((9, 40), -1.0)
        RUNGS[rung](a, b, wide[:, 3:37])
        check_product(wide[:, 3:37], a, b)
        assert (wide[:, :3] == -1).all() and (wide[:, 37:] == -1).all()

    def test_nothing_to_add_up(self, rung):
        assert torch.equal(RUNGS[rung](torch.ones(3, 0), torch.ones(0, 5)), torch.zeros(3, 5))
        assert RUNGS[rung](torch.ones(0, 4), torch.ones(4, 5)).shape == (0, 5)

    def test_deterministic(self, rung):
        a, b = operands(33, 40, 65)
        assert torch.equal(RUNGS[rung](a, b), RUNGS[rung](a, b))

    def test_the_check_can_fail(self, rung):
        a, b = operands(7, 33, 130)
        y = RUNGS[rung](a, b)
        with pytest.raises(AssertionError):
            check_product(y, a[:, :-1], b[:-1])  # the last k dropped
        y[3, 5] += 1e-3
        with pytest.raises(AssertionError):
            check_product(y, a, b)


class TestRegisterTile:
    """What the edges of a tile and of 16 bytes can break."""

    @pytest.mark.parametrize("forms", FORMS, ids=str)
    @pytest.mark.parametrize("size", [(64, 64, 16), (68, 72, 24), (65, 63, 17)], ids=str)
    def test_small_tile(self, size, forms):
        a, b = operands(*size, forms)
        check_product(RUNGS["register tile"](a, b), a, b)

    def test_large_tile(self):
        a, b = operands(132, 140, 24)
        check_product(run_register(GRID, a, b), a, b)

    @pytest.mark.parametrize("forms", FORMS, ids=str)
    def test_rows_that_begin_anywhere(self, forms):
        a, b = operands(66, 68, 20, forms, offset=1)
        check_product(RUNGS["register tile"](a, b), a, b)

    def test_same_sum_whatever_the_form(self):
        """The order of additions is that of k in every form and every tile: the same bits."""
        a, b = operands(66, 68, 36)
        y = RUNGS["register tile"](a, b)
        for forms in FORMS:
            left = a if forms[0] else a.mT.contiguous().mT
            right = b.mT.contiguous().mT if forms[1] else b
            assert torch.equal(RUNGS["register tile"](left, right), y)
        assert torch.equal(run_register(GRID, a, b), y)

    def test_infinities_stay_in_their_row(self):
        a, b = operands(66, 40, 12)
        a[3, 5], a[65, 0] = float("inf"), float("nan")
        y = RUNGS["register tile"](a, b)
        assert not torch.isfinite(y[3]).any() and y[65].isnan().all()
        rest = [i for i in range(65) if i != 3]
        assert torch.isfinite(y[rest]).all()


class TestTeachingRungs:
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    @pytest.mark.parametrize("rung", ["naive", "coalesced", "shared tile"])
    def test_narrow_formats(self, rung, dtype):
        a, b = operands(7, 33, 40, dtype=dtype)
        check_product(RUNGS[rung](a, b), a, b)
        check_product(RUNGS[rung](a, b, out_dtype=torch.float32), a, b)

    @pytest.mark.parametrize("rung", ["naive", "coalesced", "shared tile"])
    def test_any_strides(self, rung):
        a, b = torch.randn(14, 90)[::2, ::3], torch.randn(60, 10)[::2, ::2]
        check_product(RUNGS[rung](a, b), a, b)


class TestErrors:
    @pytest.mark.parametrize(
        ("a", "b", "message"),
        [
            (torch.ones(2, 3), torch.ones(4, 5), "b: .* K differs"),
            (torch.ones(3), torch.ones(3, 5), "a: .* two dimensions"),
            (torch.ones(2, 3, 4), torch.ones(5, 4, 2), "b: .* do not broadcast"),
            (torch.ones(4, 6)[:, ::2], torch.ones(3, 5), r"a: its strides .*a\.contiguous\(\)"),
        ],
    )
    def test_shapes(self, a, b, message):
        with pytest.raises(ValueError, match=message):
            RUNGS["register tile"](a, b)

    def test_formats(self):
        with pytest.raises(TypeError, match="a: .* bfloat16"):
            RUNGS["register tile"](torch.ones(2, 2).bfloat16(), torch.ones(2, 2).bfloat16())
        with pytest.raises(TypeError, match="b: "):
            RUNGS["naive"](torch.ones(2, 2), torch.ones(2, 2).bfloat16())
        with pytest.raises(TypeError, match="out_dtype: "):
            RUNGS["naive"](torch.ones(2, 2), torch.ones(2, 2), out_dtype=torch.int32)

    def test_out(self):
        with pytest.raises(ValueError, match="out: "):
            RUNGS["naive"](torch.ones(2, 2), torch.ones(2, 2), torch.ones(2, 3))
        with pytest.raises(ValueError, match="out: its strides"):
            RUNGS["naive"](torch.ones(2, 2), torch.ones(2, 3), torch.ones(3, 2).mT)


def test_more_batches_than_a_grid_has_blocks(monkeypatch):
    monkeypatch.setattr("cuda_numba.matmul_operands.MOST_BATCHES", 2)
    a, b = operands(5, 6, 4, batch=(5,))
    assert [part.batches for part in parts_of(product_of(a, b, dtypes=("float32",)))] == [2, 2, 1]
    for rung in RUNGS.values():
        check_product(rung(a, b), a, b)


@pytest.mark.gpu
class TestOnGPU:
    @pytest.mark.parametrize("size", GPU_SIZES, ids=str)
    @pytest.mark.parametrize("rung", RUNGS)
    def test_forms(self, rung, size):
        for forms, offset in itertools.product(FORMS, (0, 1)):
            a, b = operands(*size, forms, device="cuda", offset=offset)
            check_product(RUNGS[rung](a, b), a, b)

    @pytest.mark.parametrize("grid", [GRID, SMALL_GRID], ids=["large", "small"])
    def test_register_tiles(self, grid):
        run = functools.partial(run_register, grid)
        for forms in FORMS:
            a, b = operands(1003, 645, 259, forms, device="cuda")
            y = run(a, b)
            check_product(y, a, b)
            assert torch.equal(y, run(a, b))

    def test_like_the_emulator(self):
        a, b = operands(66, 68, 36)
        assert torch.equal(
            RUNGS["register tile"](a.cuda(), b.cuda()).cpu(), RUNGS["register tile"](a, b)
        )
