"""What the Hopper product does to a tile before it is written, against float64."""

import pytest
import torch
from matmul_hopper_cases import FORMS, choose, expected, matrix, operands, scale_of, slope_of
from ptx_tiles import DEVICES
from tolerance import check, poisoned

from cuda_numba import launches
from cuda_numba.hopper_epilogue import Epilogue
from cuda_numba.hopper_tile import Tile
from cuda_numba.matmul_hopper import product
from cuda_numba.matmul_sums import column_sums

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
devices = pytest.mark.parametrize("device", DEVICES)
TILES = {"together": Tile(128, 2, 2), "turns": Tile(128, 2, 4, True)}
tiles = pytest.mark.parametrize("tile", TILES.values(), ids=TILES)


@pytest.fixture(autouse=True)
def poison():
    torch.manual_seed(11)
    with poisoned():
        yield


def empty_like_c(M, N, device="cpu", dtype=BF16):
    return torch.empty(M, N, dtype=dtype, device=device)


@devices
@tiles
def test_bias_and_residual(device, tile):
    M, N, K = 264, 72, 40
    a, b = operands("nt", M, N, K, device=device)
    given = {"bias": torch.randn(N, device=device), "residual": matrix(M, N, False, BF16, device)}
    c = product(a, b, chosen=choose(tile), blocks=1, **given)
    check("c", c, expected(a, b, **given)[0], scale=scale_of(a, b))


@devices
@tiles
@pytest.mark.parametrize("form", FORMS)
def test_activation(device, form, tile):
    M, N, K = 136, 80, 24
    a, b = operands("nt", M, N, K, device=device)
    bias, pre = torch.randn(N, device=device).to(BF16), empty_like_c(M, N, device)
    c = product(a, b, bias=bias, activation=form, pre=pre, chosen=choose(tile), blocks=1)
    right, argument = expected(a, b, bias=bias, activation=form)
    check("c", c, right, scale=scale_of(a, b))
    check("pre", pre, argument, scale=scale_of(a, b))


@devices
@tiles
@pytest.mark.parametrize("form", FORMS)
def test_slope_and_column_sums(device, form, tile):
    M, N, K = 136, 72, 24
    a, b = operands("nn", M, N, K, device=device)
    pre, sums = matrix(M, N, False, BF16, device), torch.empty(N, device=device)
    c = product(a, b, slope_at=pre, slope=form, column_sums=sums, chosen=choose(tile), blocks=2)
    right, _ = expected(a, b, slope_at=pre, slope=form)
    check("c", c, right, scale=2 * scale_of(a, b))
    check("sums", sums, right.sum(0), scale=M * scale_of(a, b))


@devices
@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("n", [72, 300])
def test_row_sums(device, split, n):
    """A bias's gradient from the product that makes its weight's, tiles of several columns."""
    dy, x = operands("tn", 200, n, 650, device=device)
    sums = torch.empty(200, device=device)
    c = product(dy, x, out_dtype=F32, row_sums=sums, chosen=choose(split=split), blocks=5)
    check("c", c, expected(dy, x)[0], scale=scale_of(dy, x))
    check("sums", sums, dy.double().sum(1), scale=dy.double().abs().sum(1).max())


def test_row_sums_are_the_same_however_it_is_cut():
    dy, x = operands("tn", 130, 136, 330)
    found = []
    for tile, blocks in ((Tile(128, 2, 2), 1), (Tile(128, 3, 0), 3), (Tile(192, 2, 2), 2)):
        sums = torch.empty(130)
        product(dy, x, out_dtype=F32, row_sums=sums, chosen=choose(tile), blocks=blocks)
        found.append(sums)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_a_wrong_slope_is_noticed():
    """The control: the derivative at a rounded-off place."""
    a, b = operands("nn", 16, 16, 24)
    pre = matrix(16, 16, False, BF16)
    c = product(a, b, slope_at=pre, chosen=choose(), blocks=1)
    wrong = (a.double() @ b.double()) * slope_of(pre + 0.05, "gelu_tanh")
    with pytest.raises(AssertionError, match="^c "):
        check("c", c, wrong, scale=scale_of(a, b))


@devices
@pytest.mark.parametrize("turns", [False, True])
@pytest.mark.parametrize("n", [72, 74, 75])
def test_accumulate(device, n, turns):
    """By TMA, in pairs, and element by element."""
    a, b = operands("tn", 130, n, 40, device=device)
    before = torch.randn(130, n, device=device)
    c = before.clone()
    product(a, b, c, accumulate=True, chosen=choose(Tile(128, 2, 2, turns)), blocks=2)
    check("c", c, before.double() + a.double() @ b.double(), scale=scale_of(a, b))


@devices
@pytest.mark.parametrize("given", ["pre", "residual"])
def test_float32_result(device, given):
    """Beside a matrix that is written, by TMA; beside one that is read, from registers."""
    a, b = operands("nt", 136, 72, 40, device=device)
    x = matrix(136, 72, False, BF16, device)
    c = product(a, b, out_dtype=F32, chosen=choose(TILES["turns"]), blocks=1, **{given: x})
    right, pre = expected(a, b, **({"residual": x} if given == "residual" else {}))
    check("c", c, right, scale=scale_of(a, b))
    if given == "pre":
        check("pre", x, pre, scale=scale_of(a, b))


@devices
@pytest.mark.parametrize("turns", [False, True])
def test_split_tiles_with_all_that_follows(device, turns):
    M, N, K = 136, 72, 650
    a, b = operands("nt", M, N, K, device=device)
    residual, sums = matrix(M, N, False, BF16, device), torch.empty(N, device=device)
    tile = Tile(128, 2, 4, turns)
    given = {"bias": torch.randn(N, device=device), "residual": residual}
    c = product(a, b, **given, column_sums=sums, chosen=choose(tile, split=True), blocks=5)
    right, _ = expected(a, b, **given)
    check("c", c, right, scale=scale_of(a, b))
    check("sums", sums, right.sum(0), scale=M * scale_of(a, b))


@pytest.mark.parametrize("dtype", [BF16, F32], ids=str)
def test_odd_columns(dtype):
    """Element by element, with a bias that has no pairs."""
    a, b = operands("nt", 33, 75, 24, F16)
    bias = torch.randn(75).to(F16)
    sums = torch.empty(75)
    c = product(a, b, out_dtype=dtype, bias=bias, activation="gelu", column_sums=sums,
                chosen=choose(), blocks=1)  # fmt: skip
    right, _ = expected(a, b, bias=bias, activation="gelu")
    check("c", c, right, scale=scale_of(a, b))
    check("sums", sums, right.sum(0), scale=33 * scale_of(a, b))


def test_bias_of_odd_length():
    """Rows of C are padded, so they leave by TMA; the bias ends with its last number."""
    a, b = operands("nt", 33, 75, 24)
    padded = torch.empty(33, 80, dtype=BF16)[:, :75]
    bias = torch.randn(76)[:75].clone()
    c = product(a, b, padded, bias=bias, chosen=choose(), blocks=1)
    check("c", c, expected(a, b, bias=bias)[0], scale=scale_of(a, b))


@tiles
def test_report_without_findings(tile):
    a, b = operands("nn", 136, 72, 24)
    pre, sums = matrix(136, 72, False, BF16), torch.empty(72)
    with launches(report=True) as log:
        product(a, b, slope_at=pre, column_sums=sums, chosen=choose(tile), blocks=1)
    assert [launch.name[:7] for launch in log] == ["product", "sum_row"]
    for launch in log:
        assert [f for f in launch.report.findings if f.kind != "untyped"] == []


def test_row_sums_report_without_findings():
    dy, x = operands("tn", 136, 72, 200)
    with launches(report=True) as log:
        product(dy, x, out_dtype=F32, row_sums=torch.empty(136), chosen=choose(), blocks=1)
    assert [launch.name[:7] for launch in log] == ["product", "sum_row"]
    for launch in log:
        assert [f for f in launch.report.findings if f.kind != "untyped"] == []


class TestErrors:
    def test_row_sums(self):
        a, b = operands("nt", 16, 24, 32)
        with pytest.raises(ValueError, match="^row_sums: a must lie along M"):
            product(a, b, row_sums=torch.empty(16))
        a, b = operands("tn", 16, 24, 32)
        with pytest.raises(ValueError, match="^row_sums: it must be"):
            product(a, b, row_sums=torch.empty(24))
        with pytest.raises(ValueError, match="^row_sums: they are taken"):
            product(a, b, row_sums=torch.empty(16), chosen=choose(TILES["turns"]))

    def test_together(self):
        with pytest.raises(ValueError, match="^residual, slope: "):
            Epilogue(residual=True, slope="gelu")
        with pytest.raises(ValueError, match="^pre: "):
            Epilogue(residual=True, keep_pre=True)
        with pytest.raises(ValueError, match="^activation: got 'relu'"):
            Epilogue(activation="relu")

    @pytest.mark.parametrize(
        ("given", "text"),
        [
            ({"bias": torch.zeros(16)}, "^bias: its shape"),
            ({"residual": torch.zeros(16, 24)}, "^residual: .*float32"),
            ({"pre": torch.zeros(16, 25, dtype=BF16)[:, :24]}, "^pre: its rows"),
            ({"column_sums": torch.zeros(24, dtype=BF16)}, "^column_sums: "),
        ],
    )
    def test_tensors(self, given, text):
        a, b = operands("nt", 16, 24, 32)
        with pytest.raises(ValueError, match=text):
            product(a, b, **given)


@pytest.mark.parametrize("dtype", [BF16, F16, F32], ids=str)
@pytest.mark.parametrize(
    "shape", [(1, 1), (7, 33), (520, 70), (33, 130), (65, 264), (130, 8)], ids=str
)
def test_column_sums(shape, dtype):
    x = torch.randn(shape).to(dtype)
    check("sums", column_sums(x), x.double().sum(0), scale=x.double().abs().sum(0).max())


@pytest.mark.gpu
class TestOnGPU:
    def test_step(self):
        """The products of a block of GPT-2-124M with what follows them."""
        R, C, FF = 4096, 768, 3072
        x, w = operands("nt", R, FF, C, device="cuda")
        bias, pre = torch.randn(FF, device="cuda"), empty_like_c(R, FF, "cuda")
        c = product(x, w, bias=bias, activation="gelu_tanh", pre=pre)
        right, argument = expected(x, w, bias=bias, activation="gelu_tanh")
        check("c", c, right, scale=scale_of(x, w), factor=2)
        check("pre", pre, argument, scale=scale_of(x, w), factor=2)
        dy, w2 = operands("nn", R, FF, C, device="cuda")
        sums = torch.empty(FF, device="cuda")
        c = product(dy, w2, slope_at=pre, column_sums=sums)
        right, _ = expected(dy, w2, slope_at=pre)
        check("c", c, right, scale=2 * scale_of(dy, w2), factor=2)
        check("sums", sums, right.sum(0), scale=R * scale_of(dy, w2))
        h, w3 = operands("nt", R, C, FF, device="cuda")
        residual = matrix(R, C, False, BF16, "cuda")
        check("c", product(h, w3, residual=residual), expected(h, w3, residual=residual)[0],
              scale=scale_of(h, w3), factor=2)  # fmt: skip
