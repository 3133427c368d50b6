"""Sums and maxima against float64, on the emulator and on a GPU."""

import pytest
import torch
from tolerance import DTYPES, GPU_SHAPES, SHAPES, TOLERANCE, check, poisoned

from cuda_numba.jit import jit
from cuda_numba.namespace import cuda, float32
from cuda_numba.reduction import (
    RUNGS,
    reduce_max,
    reduce_max_reference,
    reduce_sum,
    reduce_sum_reference,
    row_sum,
    row_sum_reference,
)
from cuda_numba.warp import block_max, block_sum

ABSOLUTE = TOLERANCE[torch.float32][1]  # of `scale`
BLOCKS = [(2, 301), (5003,)]  # more than one block, with a rest
ROWS = [(9, 64), (2, 2056), (1, 2057)]  # a warp, a block per row, a block per unaligned row


@pytest.fixture(autouse=True)
def poison():
    with poisoned():
        yield


def numbers(shape, dtype, device="cpu"):
    return (torch.randn(shape) + 0.25).to(device, dtype)


def check_sum(name, shape, dtype, device="cpu"):
    x = numbers(shape, dtype, device)
    total = RUNGS[name](x)
    assert total.shape == () and total.dtype == torch.float32
    expected, scale = reduce_sum_reference(x.double()), x.double().abs().sum()
    if name == "atomic":
        # n additions to one sum, in any order. Each rounds by at most 2⁻²⁴ of the sum so far, as
        # often up as down: their standard deviation is √n · 2⁻²⁴ / 3 of the total. Six of those.
        scale += 2 * x.numel() ** 0.5 * 2**-24 * expected.abs() / ABSOLUTE
    check("sum", total, expected, scale=scale)


def check_rows(shape, dtype, device="cpu"):
    x = numbers(shape, dtype, device)
    expected = row_sum_reference(x.double())
    check("sums", row_sum(x), expected, torch.float32, scale=x.double().abs().sum(-1))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
class TestAgainstFloat64:
    @pytest.mark.parametrize("rung", RUNGS)
    @pytest.mark.parametrize("shape", SHAPES + BLOCKS, ids=str)
    def test_sum(self, rung, shape, dtype):
        check_sum(rung, shape, dtype)

    @pytest.mark.parametrize("shape", SHAPES + BLOCKS, ids=str)
    def test_max(self, shape, dtype):
        x = numbers(shape, dtype)
        assert torch.equal(reduce_max(x), reduce_max_reference(x))

    @pytest.mark.parametrize("shape", SHAPES + ROWS, ids=str)
    def test_rows(self, shape, dtype):
        check_rows(shape, dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
class TestOnGPU:
    @pytest.mark.parametrize("rung", RUNGS)
    @pytest.mark.parametrize("shape", [*GPU_SHAPES, (2**24 + 5,)], ids=str)
    def test_sum(self, rung, shape, dtype):
        check_sum(rung, shape, dtype, "cuda")

    @pytest.mark.parametrize("shape", GPU_SHAPES, ids=str)
    def test_max(self, shape, dtype):
        x = numbers(shape, dtype, "cuda")
        assert torch.equal(reduce_max(x), reduce_max_reference(x))

    @pytest.mark.parametrize("shape", [*GPU_SHAPES, (100, 50304), (3, 2**20 + 1)], ids=str)
    def test_rows(self, shape, dtype):
        check_rows(shape, dtype, "cuda")

    def test_deterministic(self, dtype):
        x = numbers((2**22 + 3,), dtype, "cuda")
        for rung in RUNGS.keys() - {"atomic"}:
            assert torch.equal(RUNGS[rung](x), RUNGS[rung](x)), rung
        x = x[: 2**22].view(-1, 4096)
        assert torch.equal(row_sum(x), row_sum(x))

    def test_emulator_adds_in_the_same_order(self, dtype):
        x = numbers((3001,), dtype)
        for rung in RUNGS.keys() - {"atomic"}:
            assert torch.equal(RUNGS[rung](x.cuda()).cpu(), RUNGS[rung](x)), rung


@jit
def four_reductions(x: "float32", out: "float32"):
    """Two sums and two maxima in a row, by turns in the two halves of the scratch."""
    scratch = cuda.shared.array(64, float32)
    t = cuda.threadIdx.x
    out[0, t] = block_sum(x[0, t], scratch, 0)
    out[1, t] = block_max(x[1, t], scratch, 32)
    out[2, t] = block_sum(x[2, t], scratch, 0)
    out[3, t] = block_max(x[3, t], scratch, 32)


@pytest.mark.parametrize("threads", [32, 96, 1024])
def test_block_reductions_reach_every_thread(threads):
    x = torch.randn(4, threads)
    out = torch.empty(4, threads)
    four_reductions[1, threads](x, out)
    assert (out == out[:, :1]).all(), "every thread gets the same bits"
    check("sums", out[::2, 0], x[::2].double().sum(1), scale=x.abs().sum(1).max())
    assert torch.equal(out[1::2, 0], x[1::2].amax(1))


class TestProperties:
    @pytest.mark.parametrize("rung", RUNGS)
    def test_ones_are_counted(self, rung):
        assert RUNGS[rung](torch.ones(3001)) == 3001

    def test_max_of_extremes(self):
        x = torch.randn(3001)
        x[2000] = float("inf")
        assert reduce_max(x) == float("inf")
        assert reduce_max(torch.full((5,), -float("inf"))) == -float("inf")

    @pytest.mark.parametrize("place", [0, 7, 2049, 3000])
    def test_max_keeps_nan(self, place):
        x = torch.randn(3001)
        x[place] = float("nan")
        assert reduce_max(x).isnan()

    @pytest.mark.parametrize("rung", sorted(RUNGS.keys() - {"atomic"}))
    def test_deterministic(self, rung):
        x = torch.randn(3001)
        assert torch.equal(RUNGS[rung](x), RUNGS[rung](x))

    @pytest.mark.parametrize("offset", [1, 2, 3])
    def test_start_in_the_middle_of_16_bytes(self, offset):
        x = torch.randn(2049 + offset)[offset:]
        check("sum", reduce_sum(x), x.double().sum(), scale=x.abs().sum())
        x = torch.randn(3 * 64 + offset)[offset:].view(3, 64)
        check("sums", row_sum(x), x.double().sum(1), scale=x.abs().sum(1))


class TestAutograd:
    def test_sum(self):
        x = torch.randn(7, 33, requires_grad=True)
        (3 * reduce_sum(x)).backward()
        assert torch.equal(x.grad, torch.full((7, 33), 3.0))

    def test_rows(self):
        x = torch.randn(2, 7, 33, dtype=torch.float64).half().requires_grad_()
        dy = torch.randn(2, 7)
        row_sum(x).backward(dy)
        assert torch.equal(x.grad, dy.half().unsqueeze(-1).expand(2, 7, 33))

    @pytest.mark.parametrize("operation", [reduce_sum, row_sum])
    def test_second_gradient(self, operation):
        """Of (Σ x)³: the backward pass is made of torch's operations, which go on from there."""
        x = torch.randn(3, 5, requires_grad=True)
        (dx,) = torch.autograd.grad((operation(x) ** 3).sum(), x, create_graph=True)
        (ddx,) = torch.autograd.grad(dx[0, 0], x)
        total = operation(x.detach())
        if operation is reduce_sum:
            expected = (6 * total).expand(3, 5)
        else:
            expected = torch.zeros(3, 5)
            expected[0] = 6 * total[0]
        assert torch.allclose(ddx, expected)

    def test_not_contiguous(self):
        x = torch.randn(33, 7).t()
        check("sums", row_sum(x), x.double().sum(1), scale=x.abs().sum(1))
        check("sum", reduce_sum(x), x.double().sum(), scale=x.abs().sum())


def test_empty():
    assert reduce_sum(torch.zeros(0, 3)) == 0
    assert torch.equal(row_sum(torch.zeros(3, 0)), torch.zeros(3))
    assert row_sum(torch.zeros(0, 3)).shape == (0,)
    with pytest.raises(ValueError, match="^x: it has no element"):
        reduce_max(torch.zeros(0))


@pytest.mark.parametrize("operation", [reduce_sum, reduce_max, row_sum])
def test_wrong_dtype(operation):
    with pytest.raises(TypeError, match="^x: its dtype is int64, "):
        operation(torch.arange(3))
