"""Embedding kernels as the emulator counts them and as machine code."""

import pytest
import torch
from compiled import WIDE_LOAD, WIDE_STORE, assert_gates, needs_compiler
from targets import targets, thorough

from cuda_numba import embedding_plan
from cuda_numba.dtypes import itemsize, vector_width
from cuda_numba.embedding import ITEMS, ROW_THREADS, embedding_kernel, rows_kernel
from cuda_numba.embedding import THREADS as FORWARD_THREADS
from cuda_numba.embedding_gather import THREADS as GATHER_THREADS
from cuda_numba.embedding_gather import gather_kernel
from cuda_numba.embedding_order import order_kernel
from cuda_numba.embedding_places import CLEARED, THREADS
from cuda_numba.embedding_plan import CLEAR_TOKENS, GROUPS, plan
from cuda_numba.embedding_split import split_kernel

PIECE = 64
FORMATS = ["float32", "float16", "bfloat16"]
SORTING = [*targets(formats=("float32", "bfloat16")), thorough((9, 0), "float16")]


class TestTraffic:
    @pytest.mark.parametrize("dtype", FORMATS)
    def test_forward(self, dtype):
        """Rows once, y once, in whole sectors; an id for every 16 bytes, one request a warp."""
        width = vector_width(dtype)
        row = 96 // width
        w, ids = torch.randn(9, 96).to(getattr(torch, dtype)), torch.arange(8)
        y = torch.empty(8, 96, dtype=w.dtype)
        kernel = embedding_kernel(dtype, row, width, ITEMS)
        report = kernel.report(1, FORWARD_THREADS, ids, w, y, 8 * row, 9)
        assert report.findings == []
        size = 8 * 96 * itemsize(dtype)
        assert report.of("global", "store").moved == size
        assert report.reads == size + 8 * (8 * row)

    @pytest.mark.parametrize("dtype", FORMATS)
    def test_rows(self, dtype):
        """Rows once, y once, in whole sectors; every id once, by one request for two."""
        row = 768 // vector_width(dtype)
        w, ids = torch.randn(9, 768).to(getattr(torch, dtype)), torch.arange(8)
        y = torch.empty(8, 768, dtype=w.dtype)
        report = rows_kernel(dtype, row, 3).report(row // 96, ROW_THREADS, ids, w, y, 8, 9)
        assert report.findings == []
        size = 8 * 768 * itemsize(dtype)
        assert report.of("global", "store").moved == size
        assert report.reads == size + 8 * 8 * (row // 96)

    def test_split(self):
        """The tokens by group; the blocks behind write zeros to rows 10 to 19 once."""
        dw = torch.full((40, 104), float("nan"))
        ids = torch.tensor([3, 1, 40, 6, 3])
        entries, table, arrived = integers(5, 2), integers(1, 3), integers(7)
        blocks = 1 + -(-260 // (THREADS * CLEARED))
        args = (ids, entries, table, arrived, dw, 5, 40, 1, 1, 6, 260, 520)
        report = split_kernel("float32", 4, 2).report(blocks, THREADS, *args)
        assert report.findings == []
        assert entries[:4].tolist() == [[3, 6], [0, 3], [1, 1], [4, 3]]
        assert table.tolist() == [[0, 1, 4]] and arrived.tolist() == [0] * 6 + [-1]
        assert (dw[10:20] == 0).all() and dw[:10].isnan().all() and dw[20:].isnan().all()
        assert report.of("global", "store").requested == 10 * 104 * 4 + 4 * 8 + 3 * 4 + 6 * 4
        assert report.reads == 2 * 5 * 8

    def test_order(self):
        """Every id's first place and number of tokens, the tokens behind each other."""
        dw = torch.full((8, 4), float("nan"))
        entries, table = integers(4, 2), torch.tensor([[0, 1, 4]], dtype=torch.int32)
        entries[:] = torch.tensor([[3, 6], [0, 3], [1, 1], [4, 3]])
        order, spans, found = integers(5, 2), integers(8, 2), integers(1)
        args = (entries, table, order, spans, found, dw, 1, THREADS, 4, 0, 0)
        report = order_kernel("float32", 4, 2).report(2, THREADS, *args)
        assert report.findings == []
        assert order[:4].tolist() == [[3, 6], [1, 1], [0, 3], [4, 3]] and found == 4
        # ids 0, 2, 4, 6, then 1, 3, 5, 7
        assert spans[:, 1].tolist() == [0, 0, 0, 1, 1, 2, 0, 0]
        assert spans[:, 0].tolist() == [0, 0, 0, 0, 1, 2, 4, 4]
        assert report.of("global", "store").requested == 4 * 8 + 8 * 8 + 4

    def test_gather(self, monkeypatch):
        """Each row of dy once, each row of dw once."""
        monkeypatch.setattr(embedding_plan, "CLEAR_BYTES", 0)
        ids, dy = torch.tensor([3, 1, 3, 0]), torch.randn(4, 128)
        dw = torch.empty(9, 128)
        order, spans, found, arrived, groups, kept = plan(ids, dw, 4, 1)
        assert (groups, kept) == (1, 9)
        kernel = gather_kernel("float32", 128, 4, 1, PIECE, 1, 1)
        args = (dy, order, spans, found, arrived, torch.empty(2, 128), dw, 1, 9, 9)
        report = kernel.report(2, GATHER_THREADS, *args)
        assert report.findings == []
        assert report.of("global", "store").moved == dw.nbytes
        # four warps ask for the number of tokens, 32 lanes each; one for the first and the last id;
        # tokens with their ids, three ids behind them and rows; 9 numbers of tokens of an id
        assert report.reads == 4 * 32 * 4 + 2 * 32 * 4 + 4 * (8 + 512) + 3 * 4 + 9 * 4


@pytest.mark.parametrize(
    ("n", "V", "groups", "most"), [(100, 40, 1, {}), (1200, 40, 8, {"most_tiles": 2}),
                                   (300, 1100, 2, {}), (1200, 5, 8, {}),
                                   (600, 30, 2, {"most_groups": 2}),
                                   (2500, 3, 1, {"most_groups": 1})]
)  # fmt: skip
def test_plan_is_a_stable_sort(n, V, groups, most):
    """By group, then by id, then by token: one tile or several, long ones, several windows, a group
    of which every lane has more than AHEAD entries."""
    ids = torch.randint(0, V, (n,))
    ids[:3] = torch.tensor([V, -1, 2**33])
    found = plan(ids, torch.empty(V, 4), 4, 1, **most)
    assert found.groups == groups
    order = [t for t in range(n) if 0 <= ids[t] < V]
    order.sort(key=lambda t: (ids[t] % groups, ids[t], t))
    assert found.found == len(order)
    assert found.order[: len(order)].tolist() == [[t, ids[t]] for t in order]
    counts = torch.bincount(ids[order], minlength=V)
    per_group = len(found.spans) // groups
    for v in range(V):
        start, many = found.spans[v % groups * per_group + v // groups].tolist()
        assert many == counts[v]
        assert (found.order[start : start + many, 1] == v).all()


@pytest.mark.parametrize("bytes_", [0, 8 * 5, 1 << 20])
def test_rows_cleared_ahead(monkeypatch, bytes_):
    """None, ten of 16 bytes, or all: the last ones."""
    monkeypatch.setattr(embedding_plan, "CLEAR_BYTES", bytes_)
    dw = torch.full((40, 4), float("nan"))
    kept = plan(torch.tensor([1, 2]), dw, 4, 1).kept
    assert kept == 40 - min(40, 2 * bytes_ // 16)
    assert (dw[kept:] == 0).all() and dw[:kept].isnan().all()


def test_nothing_is_cleared_ahead_for_many_tokens():
    """Where most rows have tokens they would be written twice."""
    dw = torch.full((40, 4), float("nan"))
    kept = plan(torch.arange(CLEAR_TOKENS * 40) % 40, dw, 4, 1).kept
    assert kept == 40 and dw.isnan().all()


def integers(*shape):
    return torch.full(shape, -1, dtype=torch.int32)


@needs_compiler
class TestMachineCode:
    @pytest.mark.parametrize(("cc", "dtype"), targets(), ids=str)
    def test_forward(self, cc, dtype):
        width = vector_width(dtype)
        kernel = embedding_kernel(dtype, 768 // width, width, ITEMS)
        types = ("int64[:]", f"{dtype}[:]", f"{dtype}[:]", "uint32", "int64")
        assert_gates(kernel, cc, types, (WIDE_LOAD, WIDE_STORE))

    @pytest.mark.parametrize(("cc", "dtype"), targets(), ids=str)
    def test_rows(self, cc, dtype):
        kernel = rows_kernel(dtype, 768 // vector_width(dtype), 3)
        types = ("int64[:]", f"{dtype}[:]", f"{dtype}[:]", "uint32", "int64")
        assert_gates(kernel, cc, types, (WIDE_LOAD, WIDE_STORE))

    # `split` and `order` see the format only where they clear rows: float16 is bfloat16 there.
    @pytest.mark.parametrize(("cc", "dtype"), SORTING, ids=str)
    def test_split(self, cc, dtype):
        kernel = split_kernel(dtype, vector_width(dtype), GROUPS, cc >= (9, 0))
        expect = (WIDE_STORE, "STG.E.64", "MATCH.ANY", "ATOMS")
        assert_gates(kernel, cc, split_types(dtype), expect)

    @pytest.mark.parametrize(("cc", "dtype"), SORTING, ids=str)
    def test_order(self, cc, dtype):
        kernel = order_kernel(dtype, vector_width(dtype), GROUPS, cc >= (9, 0))
        expect = (WIDE_STORE, "LDG.E.64", "STG.E.64", "MATCH.ANY", "ATOMS")
        assert_gates(kernel, cc, order_types(dtype), expect)

    @pytest.mark.parametrize(("cc", "dtype"), targets(everywhere=True), ids=str)
    def test_gather(self, cc, dtype):
        width = vector_width(dtype)
        kernel = gather_kernel(dtype, 768, width, 1, PIECE, 24 // width, GROUPS, cc >= (9, 0))
        assert_gates(kernel, cc, gather_types(dtype), (WIDE_LOAD, WIDE_STORE, "ATOMG"))

    def test_unaligned(self):
        kernel = embedding_kernel("float16", 33, 1, ITEMS)
        types = ("int32[:]", "float16[:]", "float16[:]", "uint32", "int64")
        assert_gates(kernel, (9, 0), types)
        assert_gates(split_kernel("float16", 1, 128), (9, 0), split_types("float16"))
        assert_gates(order_kernel("float16", 1, 128), (9, 0), order_types("float16"))
        kernel = gather_kernel("float16", 33, 1, 1, PIECE, 2, 128)
        assert_gates(kernel, (9, 0), gather_types("float16"))


INTS = ("int32[:]",)


def split_types(dtype):
    numbers = ("int32", "int64", "int32", "int32", "int32", "int64", "int64")
    return ("int64[:]", *INTS * 3, f"{dtype}[:]", *numbers)


def order_types(dtype):
    return (*INTS * 5, f"{dtype}[:]", "int32", "int32", "uint32", "int64", "int64")


def gather_types(dtype):
    return (f"{dtype}[:]", *INTS * 4, "float32[:]", f"{dtype}[:]", *("uint32",) * 3)
