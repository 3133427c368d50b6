"""The Hopper product against float64: layouts, ragged sizes, formats, batches, split tiles."""

import pytest
import torch
from matmul_hopper_cases import LAYOUTS, SMALL, choose, expected, matrix, operands, scale_of
from ptx_tiles import DEVICES
from tolerance import check, guarded, poisoned

from cuda_numba import launches, matmul_hopper
from cuda_numba.hopper_operand import operand, problem, target
from cuda_numba.hopper_schedule import pieces_of
from cuda_numba.hopper_tile import Tile
from cuda_numba.matmul_hopper import product

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
devices = pytest.mark.parametrize("device", DEVICES)


@pytest.fixture(autouse=True)
def poison():
    torch.manual_seed(7)
    with poisoned():
        yield


def check_product(a, b, c, *, factor=1.0):
    check("c", c, a.double() @ b.double(), scale=scale_of(a, b), factor=factor)


# M, N, K: one element, a ragged end of everything, edges of a tile ± 1
SIZES = [(1, 1, 1), (33, 7, 130), (129, 136, 65), (127, 128, 64)]


@devices
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_layouts(device, size, layout):
    a, b = operands(layout, *size, device=device)
    check_product(a, b, product(a, b, chosen=choose(), blocks=2))


@devices
@pytest.mark.parametrize("out", [F32, F16, BF16], ids=str)
@pytest.mark.parametrize("dtype", [F16, BF16], ids=str)
def test_formats(device, dtype, out):
    a, b = operands("nt", 65, 72, 40, dtype, device)
    c = product(a, b, out_dtype=out, chosen=choose(), blocks=1)
    assert c.dtype == out
    check_product(a, b, c)


# Groups that share a tile, groups that take turns, and pairs of blocks that share B.
TILES = [Tile(192, 2, 2), Tile(256, 2, 2), Tile(128, 3, 2, turns=True), Tile(192, 2, 2, turns=True)]


@devices
@pytest.mark.parametrize("tile", TILES, ids=str)
def test_tiles(device, tile):
    """Three tiles for one block: the ring and the staging are used again."""
    a, b = operands("nn", 136, tile.n + 8, 136, device=device)
    check_product(a, b, product(a, b, chosen=choose(tile), blocks=1))


@devices
@pytest.mark.parametrize("turns", [False, True])
@pytest.mark.parametrize("layout", ["nt", "tn"])
def test_pairs(device, layout, turns):
    """An odd number of row tiles: the last pair's second block has none, and still loads."""
    a, b = operands(layout, 264, 136, 72, device=device)
    tile = Tile(128, 2, 2, turns, True)
    check_product(a, b, product(a, b, chosen=choose(tile), blocks=2))


@devices
@pytest.mark.parametrize("n", [136, 74, 75])
@pytest.mark.parametrize("dtype", [BF16, F32], ids=str)
def test_writes_nothing_outside(device, dtype, n):
    """By TMA, in pairs, and element by element."""
    a, b = operands("nt", 130, n, 24, device=device)
    c, intact = guarded((130, n), dtype, device)
    product(a, b, c, chosen=choose(), blocks=2)
    check_product(a, b, c)
    assert intact()


@devices
def test_padded_output(device):
    whole = torch.empty(70, 96, dtype=BF16, device=device)
    a, b = operands("nt", 70, 80, 24, device=device)
    product(a, b, whole[:, 8:88], chosen=choose(), blocks=1)
    check_product(a, b, whole[:, 8:88])
    assert whole[:, :8].isnan().all() and whole[:, 88:].isnan().all()


@devices
@pytest.mark.parametrize("layout", ["nt", "tn"])
@pytest.mark.parametrize("size", [(129, 72, 330), (136, 264, 640)], ids=str)
def test_split_tiles(device, size, layout):
    """Some blocks share tiles along K: the work list has slots, and their sums are right."""
    a, b = operands(layout, *size, device=device)
    tiles = -(-size[0] // 128), -(-size[1] // 128)
    _, slots = pieces_of(*tiles, 1, -(-size[2] // 64), 5, 2, True)
    assert slots > 0
    for out in (F32, BF16):
        check_product(a, b, product(a, b, out_dtype=out, chosen=choose(split=True), blocks=5))


def test_flags_are_left_clear():
    """The same workspace serves the next launch."""
    matmul_hopper.forget()
    a, b = operands("nt", 72, 72, 640)
    first = product(a, b, chosen=choose(split=True), blocks=3)
    ((partials, flags),) = matmul_hopper._workspaces[a.device, 0]
    assert flags.numel() and not flags.view(torch.int32).any()
    partials.fill_(float("nan"))
    assert torch.equal(product(a, b, chosen=choose(split=True), blocks=3), first)


def test_a_lost_partial_tile_is_noticed(monkeypatch):
    """The control: an owner that adds one partial tile too few."""

    def forgetful(*shape):
        lists, slots = pieces_of(*shape)
        return [[p._replace(count=max(p.count - 1, 0)) for p in own] for own in lists], slots

    monkeypatch.setattr(matmul_hopper, "pieces_of", forgetful)
    matmul_hopper.forget()
    matmul_hopper.work_list.cache_clear()
    a, b = operands("nt", 72, 72, 640)
    c = product(a, b, chosen=choose(split=True), blocks=3)
    matmul_hopper.work_list.cache_clear()
    matmul_hopper.forget()  # flags that nobody cleared
    with pytest.raises(AssertionError, match="^c "):
        check_product(a, b, c)


@devices
@pytest.mark.parametrize("batch", [((3,), (3,)), ((2,), ()), ((), (2,)), ((2, 2), (2, 2))], ids=str)
def test_batches(device, batch):
    a, b = operands("nt", 40, 24, 72, device=device, batch=batch)
    c = product(a, b, chosen=choose(), blocks=2)
    assert c.shape == (*max(batch, key=len), 40, 24)
    check_product(a, b, c)


def test_heads_inside_rows():
    """(B, T, H, D) seen as (H, T, D): rows lie H · D apart, matrices D apart."""
    x = torch.randn(1, 40, 3, 16).to(BF16)
    q = x[0].transpose(0, 1)
    c = product(q, q.transpose(1, 2), chosen=choose(), blocks=2)
    check_product(q, q.transpose(1, 2), c)


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("turns", [False, True])
def test_report_without_findings(split, turns):
    a, b = operands("nt", 136, 72, 200)
    tile = Tile(128, 2, 2, turns)
    with launches(report=True) as log:
        c = product(a, b, chosen=choose(tile, split=split), blocks=3)
    (launched,) = log
    assert [f for f in launched.report.findings if f.kind != "untyped"] == []
    assert launched.report.tensor_flops == 2 * 2 * 128 * 128 * 4 * 64
    assert launched.report.conflicts == 0
    check_product(a, b, c)


@devices
def test_deterministic(device):
    a, b = operands("tn", 200, 136, 700, device=device)
    found = [product(a, b, out_dtype=F32, chosen=choose(split=True), blocks=6) for _ in range(2)]
    assert torch.equal(*found)


def test_chosen_by_itself():
    a, b = operands("nt", 33, 40, 64)
    check_product(a, b, product(a, b))


@pytest.mark.parametrize("shape", [(0, 8, 8), (8, 0, 8)], ids=str)
def test_nothing_to_do(shape):
    M, N, K = shape
    assert product(torch.empty(M, K, dtype=BF16), torch.empty(K, N, dtype=BF16)).shape == (M, N)


class TestOperands:
    def test_as_memory_lies(self):
        x = torch.zeros(24, 40, dtype=BF16)
        assert operand("a", x)[1] is False and operand("a", x).shape == (1, 24, 40)
        assert operand("a", x.t())[1] is True and operand("a", x.t()).shape == (1, 40, 24)
        assert operand("a", x[:, :33]).view.stride() == (960, 40, 1)

    def test_one_row_or_column(self):
        x = torch.zeros(1, 40, dtype=BF16)
        for view in (x, x.t(), x.t().contiguous(), x[:, :1]):
            assert operand("a", view).shape == (1, *view.shape)

    @pytest.mark.parametrize(
        ("x", "text"),
        [
            (torch.zeros(4, 7, dtype=BF16), "its last two strides are"),
            (torch.zeros(4, 16, dtype=BF16)[:, ::2], "its last two strides are"),
            (torch.zeros(40, dtype=BF16)[1:33].view(4, 8), "does not begin at a multiple of 16"),
            (torch.zeros(4, 8), "its dtype is float32"),
            (torch.zeros(8, dtype=BF16), "it has 1 dimensions"),
            (torch.zeros(4, 3, 2, 8, dtype=BF16)[:, :2], "not one stride apart"),
        ],
    )
    def test_what_tma_cannot_take(self, x, text):
        assert text in problem(x)
        with pytest.raises(ValueError, match="^a: "):
            operand("a", x)

    def test_how_results_are_written(self):
        x = torch.zeros(4, 80)
        assert target("c", x.to(BF16)).store == "tma" and target("c", x).store == "tma"
        assert target("c", x[:, 2:]).store == "pairs"
        assert target("c", x[:, 1:]).store == "singles"
        assert target("c", x.to(BF16)[:, :77]).store == "tma"  # clipped, rows 160 bytes apart
        assert target("c", x.to(BF16)[:, 2:]).store == "pairs"
        with pytest.raises(ValueError, match="^c: its strides"):
            target("c", x.t())


class TestErrors:
    def test_shapes(self):
        a, b = operands("nt", 16, 24, 32)
        with pytest.raises(ValueError, match="^b: its shape is"):
            product(a, b.t())
        with pytest.raises(ValueError, match="^out: its shape"):
            product(a, b, torch.empty(16, 16, dtype=BF16))

    def test_pairs_do_not_split(self):
        a, b = operands("nt", 16, 24, 32)
        with pytest.raises(ValueError, match="^chosen: pairs"):
            product(a, b, chosen=choose(Tile(128, 2, 2, pair=True), split=True))

    def test_formats(self):
        a, b = operands("nt", 16, 24, 32)
        with pytest.raises(ValueError, match="^b: .*float16"):
            product(a, b.half())
        with pytest.raises(TypeError, match="^out: its dtype is float64"):
            product(a, b, out_dtype=torch.float64)
        with pytest.raises(TypeError, match="^out: it is bfloat16"):
            product(a, b, accumulate=True)


@pytest.mark.gpu
class TestOnGPU:
    @pytest.mark.parametrize("layout", LAYOUTS)
    @pytest.mark.parametrize("size", [(1000, 776, 520), (1544, 1160, 4328), (16384, 768, 768)])
    def test_chosen(self, size, layout):
        a, b = operands(layout, *size, device="cuda")
        for out in (BF16, F32):
            check_product(a, b, product(a, b, out_dtype=out), factor=2)

    @pytest.mark.parametrize("K", [8192, 16384])
    def test_split_is_repeatable(self, K):
        a, b = operands("tn", 768, 768, K, device="cuda")
        first = product(a, b, out_dtype=F32)
        for _ in range(20):
            assert torch.equal(product(a, b, out_dtype=F32), first)

    def test_graph(self):
        a, b = operands("tn", 768, 768, 8192, device="cuda")
        out = torch.empty(768, 768, device="cuda")
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            product(a, b, out)
            torch.cuda.synchronize()
            first = out.clone()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=stream):
                product(a, b, out)
        for _ in range(3):
            out.fill_(float("nan"))
            graph.replay()
            torch.cuda.synchronize()
            assert torch.equal(out, first)

    def test_plans_keep_no_tensor_alive(self):
        a, b = operands("nt", 128, 128, 64, device="cuda")
        product(a, b)
        before = torch.cuda.memory_allocated()
        c = product(a, b, torch.empty(128, 128, dtype=BF16, device="cuda"))
        del c
        assert torch.cuda.memory_allocated() == before

    def test_like_the_emulator(self):
        a, b = operands("nt", 136, 72, 200)
        c = product(a, b, chosen=choose(SMALL), blocks=2)
        on_gpu = product(matrix_on(a), matrix_on(b), chosen=choose(SMALL), blocks=2)
        check("c", on_gpu, c.double(), scale=scale_of(a, b), factor=2)


def matrix_on(x):
    """The same memory layout on the GPU."""
    y = matrix(*x.shape, x.stride(-1) != 1, x.dtype, "cuda")
    return y.copy_(x)


def test_expected_is_a_plain_product():
    a, b = operands("nt", 3, 4, 5)
    assert torch.equal(expected(a, b)[0], a.double() @ b.double())
