"""Weight-only quantised linear layers against float64, on the emulator and on a GPU."""

import functools
import importlib

import pytest
import torch
from ptx_tiles import devices, findings
from tolerance import check, guarded, poisoned

from cuda_numba import jit
from cuda_numba.namespace import cuda, uint32
from cuda_numba.ptx.convert import float8_values
from cuda_numba.quantize import codes_of, quantize_fp8, quantize_int4, quantize_int8
from cuda_numba.quantized import (
    RUNGS,
    fp8_linear,
    int4_linear,
    int4_linear_reference,
    int8_linear,
    int8_linear_reference,
    rung_for,
    tiles_settings,
)
from cuda_numba.quantized_few import few_kernel
from cuda_numba.quantized_rows import rows_kernel
from cuda_numba.quantized_tiles import combine_kernel, shared_bytes, tiles_kernel
from cuda_numba.quantized_words import KINDS, eight_of, floats_of, unit_of

module = importlib.import_module("cuda_numba.quantized")
DTYPES = [torch.bfloat16, torch.float16]
QUANTIZERS = {
    "int8": quantize_int8,
    "int4": quantize_int4,
    "e4m3": quantize_fp8,
    "e5m2": functools.partial(quantize_fp8, format="e5m2"),
}
OPS = {"int8": int8_linear, "int4": int4_linear, "e4m3": fp8_linear, "e5m2": fp8_linear}
GPU_SHAPES = [(1024, 1024), (4096, 4096), (1000, 11008), (11008, 512), (33, 8192), (5, 130)]
kinds = pytest.mark.parametrize("kind", KINDS)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@pytest.fixture(autouse=True)
def poison():
    with poisoned():
        yield


def weights(kind, N, K, device="cpu", **options):
    w = torch.randn(N, K, device=device) * torch.rand(N, 1, device=device)
    return QUANTIZERS[kind](w, **options)


def expected(x, quantized):
    """In float64, and what was added up: the scale of the errors allowed."""
    reference = int4_linear_reference if quantized.kind == "int4" else int8_linear_reference
    x = x.double()
    size = reference(x.abs(), _absolute(quantized), quantized.scales)
    return reference(x, quantized.q, quantized.scales), size


def _absolute(quantized):
    if quantized.kind == "int4":
        from cuda_numba.quantize import pack_int4

        return pack_int4(codes_of(quantized.q).abs().clamp_max(7).to(torch.int8))
    return quantized.q.float().abs().to(quantized.q.dtype)


def check_linear(x, quantized, got=None):
    wanted, size = expected(x, quantized)
    got = OPS[quantized.kind](x, quantized.q, quantized.scales) if got is None else got
    check("y", got, wanted, x.dtype, scale=size)


def by_rung(rung, x, quantized):
    y, intact = guarded((len(x), quantized.shape[0]), x.dtype, x.device)
    K = codes_of(quantized.q).shape[1]
    x = torch.nn.functional.pad(x, (0, K - x.shape[1]))
    codes = quantized.q.view(torch.uint8)
    RUNGS[rung](quantized.kind, x, codes, quantized.scales, y, quantized.group or 0)
    assert intact()
    return y


class TestReferences:
    @kinds
    def test_are_the_dequantised_product(self, kind):
        quantized = weights(kind, 7, 300)
        x = torch.randn(3, 300, dtype=torch.float64)
        wanted, size = expected(x, quantized)
        torch.testing.assert_close(wanted, x @ quantized.dequantize(torch.float64).T)
        assert (size >= wanted.abs() * (1 - 1e-12)).all()


class TestCodes:
    """Every code becomes exactly its number."""

    @staticmethod
    def words(kind):
        """All codes in the order of k, as the words of 8, and their numbers."""
        if kind == "int4":
            codes = torch.arange(16).repeat(32)  # 128 k · 4, each word has 8 of the 16
            from cuda_numba.quantize import pack_int4

            packed = pack_int4((codes - 8).to(torch.int8).repeat(16, 1))
            words = packed[:, 0, 0, 0].flatten().view(torch.int32)  # of row 0
            lane_order = torch.arange(512).view(-1, 4, 4, 8).transpose(1, 2).reshape(-1)
            return words, None, (codes - 8).double()[lane_order]
        codes = torch.arange(256, dtype=torch.uint8)
        words = codes.view(torch.int32)
        if kind == "int8":
            values = codes.view(torch.int8).double()
        else:
            values = torch.from_numpy(float8_values(kind).copy()).double()
        return words[0::2].contiguous(), words[1::2].contiguous(), values

    @staticmethod
    def allowed(kind, values):
        """int8 has −128 as well; codes that are no numbers are left out."""
        return torch.isfinite(values)

    @kinds
    @dtypes
    @devices
    def test_pairs(self, device, kind, dtype):
        eight = eight_of(kind, str(dtype).removeprefix("torch."))
        first, second, values = self.words(kind)
        second = first if second is None else second

        @jit
        def unpack(first, second, out):
            i = uint32(cuda.threadIdx.x)
            if i < first.shape[0]:
                a, b, c, d = eight(uint32(first[i]), uint32(second[i]))
                out[i, 0] = a
                out[i, 1] = b
                out[i, 2] = c
                out[i, 3] = d

        out = torch.empty(len(first), 4, dtype=torch.uint32, device=device)
        first, second = (t.view(torch.uint32).to(device) for t in (first, second))
        unpack[1, 64](first, second, out)
        got = out.cpu().view(torch.int32).view(dtype).flatten().double()
        got /= unit_of(kind, str(dtype).removeprefix("torch."))
        keep = self.allowed(kind, values)
        assert torch.equal(got[keep], values[keep])

    @kinds
    @devices
    def test_floats(self, device, kind):
        floats = floats_of(kind)
        first, second, values = self.words(kind)
        second = first if second is None else second

        @jit
        def unpack(first, second, out):
            i = uint32(cuda.threadIdx.x)
            if i < first.shape[0]:
                a, b, c, d, e, f, g, h = floats(uint32(first[i]), uint32(second[i]))
                out[i, 0] = a
                out[i, 1] = b
                out[i, 2] = c
                out[i, 3] = d
                out[i, 4] = e
                out[i, 5] = f
                out[i, 6] = g
                out[i, 7] = h

        out = torch.empty(len(first), 8, device=device)
        first, second = (t.view(torch.uint32).to(device) for t in (first, second))
        unpack[1, 64](first, second, out)
        keep = self.allowed(kind, values)
        assert torch.equal(out.cpu().flatten().double()[keep], values[keep])


class TestAgainstFloat64:
    @kinds
    @dtypes
    @pytest.mark.parametrize("rung", RUNGS)
    def test_rungs(self, rung, kind, dtype):
        rows = 3 if rung != "tiles" else 11
        x = torch.randn(rows, 300).to(dtype)
        quantized = weights(kind, 18, 300)
        check_linear(x, quantized, by_rung(rung, x, quantized))

    @kinds
    @pytest.mark.parametrize("rows", [1, 8])
    def test_few_rows(self, kind, rows):
        check_linear(torch.randn(rows, 130).bfloat16(), weights(kind, 33, 130))

    @pytest.mark.parametrize("kind", ["int4", "int8"])
    @pytest.mark.parametrize("rows", [9, 16, 17, 33, 64])
    def test_more_rows(self, kind, rows):
        check_linear(torch.randn(rows, 130).bfloat16(), weights(kind, 7, 130))

    @pytest.mark.parametrize("group", [32, 64, 256])
    @pytest.mark.parametrize("rung", RUNGS)
    def test_groups(self, rung, group):
        x = torch.randn(2, 600).bfloat16()
        quantized = weights("int4", 17, 600, group=group)
        check_linear(x, quantized, by_rung(rung, x, quantized))

    @pytest.mark.parametrize("N", [1, 15, 16, 17, 32])
    @pytest.mark.parametrize("rung", RUNGS)
    def test_edges_of_columns(self, rung, N):
        x = torch.randn(2, 128).bfloat16()
        quantized = weights("int8", N, 128)
        check_linear(x, quantized, by_rung(rung, x, quantized))

    @pytest.mark.parametrize("K", [1, 127, 128, 129])
    def test_edges_of_k(self, K):
        check_linear(torch.randn(2, K).bfloat16(), weights("int4", 5, K))

    @pytest.mark.parametrize("kind", ["int4", "int8"])
    def test_k_is_divided(self, kind):
        """Two blocks share K, and `combine_kernel` adds what they leave."""
        x = torch.randn(9, 640).bfloat16()
        quantized = weights(kind, 20, 640)
        y = torch.empty(9, 20, dtype=torch.bfloat16)
        run_tiles(x, quantized, y, parts=2)
        check_linear(x, quantized, y)

    def test_controls(self):
        """What is wrong by one chunk, one group's scale or one column does not pass."""
        x = torch.randn(2, 256).bfloat16()
        quantized = weights("int4", 17, 256)
        got = int4_linear(x, quantized.q, quantized.scales)
        dropped = x.clone()
        dropped[:, 120:128] = 0
        scales = quantized.scales.clone()
        scales[1, 3] *= 1.02
        for wrong in (
            int4_linear(dropped, quantized.q, quantized.scales),
            int4_linear(x, quantized.q, scales),
            got.roll(1, 1),
        ):
            with pytest.raises(AssertionError):
                check_linear(x, quantized, wrong)

    def test_shapes(self):
        quantized = weights("int8", 5, 130)
        x = torch.randn(2, 3, 130).bfloat16()
        y = int8_linear(x, quantized.q, quantized.scales)
        assert y.shape == (2, 3, 5) and y.dtype == x.dtype
        assert torch.equal(y[1, 2], int8_linear(x[1, 2], quantized.q, quantized.scales))
        strided = torch.randn(130, 3).bfloat16().T
        check_linear(strided, quantized)
        assert int8_linear(x[:0], quantized.q, quantized.scales).shape == (0, 3, 5)

    def test_x_that_is_not_aligned(self):
        quantized = weights("int8", 5, 128)
        x = torch.randn(2 * 128 + 1).bfloat16()[1:].view(2, 128)
        check_linear(x, quantized)


def run_tiles(x, quantized, y, parts=1, report=False, across=1, deep=2, stages=2):
    M, N, K = len(x), quantized.shape[0], x.shape[1]
    dtype = str(x.dtype).removeprefix("torch.")
    rows, group = 16, quantized.group or 0
    kernel = tiles_kernel(quantized.kind, dtype, rows, 1, across, deep, stages, 1, group, parts)
    out = y if parts == 1 else torch.empty(parts, M, N)
    codes = quantized.q.view(torch.uint8)
    args = (x, codes, quantized.scales, out, M, N, K, -(-K // 128 // parts))
    grid, threads = (-(-N // (16 * across)), parts), 32 * across * deep
    smem = shared_bytes(quantized.kind, rows, 1, across, deep, stages)
    if report:
        return kernel.report(grid, threads, *args, smem=smem)
    kernel[grid, threads, 0, smem](*args)
    if parts > 1:
        scaled = quantized.kind != "int4"
        scales = quantized.scales if scaled else torch.ones(N)
        combine_kernel(dtype, parts, scaled)[(-(-N // 128), M), 128](out, scales, y, M, N)
    return None


@pytest.mark.parametrize("kind", ["int4", "int8"])
class TestReports:
    """No race, no misaligned or uninitialised access; codes are read once."""

    def test_few(self, kind):
        N = 20
        x, quantized = torch.randn(5, 512).bfloat16(), weights(kind, N, 512)
        y = torch.empty(5, N, dtype=x.dtype)
        kernel = few_kernel(kind, "bfloat16", 1, 2, 2, 1, 2, N % 16 == 0, quantized.group or 0)
        codes = quantized.q.view(torch.uint8)
        report = kernel.report(2, 64, x, codes, quantized.scales, y, 5, N, 512)
        assert findings(report) == []
        check_linear(x, quantized, y)

    def test_few_reads_codes_once(self, kind):
        N = 16
        x, quantized = torch.randn(8, 512).bfloat16(), weights(kind, N, 512)
        y = torch.empty(8, N, dtype=x.dtype)
        kernel = few_kernel(kind, "bfloat16", 1, 2, 2, 1, 2, N % 16 == 0, quantized.group or 0)
        codes = quantized.q.view(torch.uint8)
        report = kernel.report(1, 64, x, codes, quantized.scales, y, 8, N, 512)
        # Each of four lanes needs a row's scale: a read of 2 bytes a lane, served by one sector.
        scales = 4 * quantized.scales.nbytes if kind == "int4" else 8 * quantized.scales.nbytes
        ahead = 2 * 2 * 512  # at its end each warp asks for two pieces of x once more
        load = report.of("global", "load")
        assert load.requested == codes.nbytes + x.nbytes + ahead + scales
        assert report.of("global", "store").moved == y.nbytes

    def test_rows(self, kind):
        x, quantized = torch.randn(2, 1024).bfloat16(), weights(kind, 5, 1024)
        y = torch.empty(2, 5, dtype=x.dtype)
        kernel = rows_kernel(kind, "bfloat16", 2, 2, 2, quantized.group or 0)
        codes = quantized.q.view(torch.uint8)
        report = kernel.report(1, 64, x, codes, quantized.scales, y, 5, 1024)
        assert findings(report) == []
        check_linear(x, quantized, y)

    def test_tiles(self, kind):
        x, quantized = torch.randn(13, 640).bfloat16(), weights(kind, 20, 640)
        y = torch.empty(13, 20, dtype=x.dtype)
        report = run_tiles(x, quantized, y, report=True)
        assert findings(report) == []
        check_linear(x, quantized, y)


class TestErrors:
    def setup_method(self):
        self.quantized = quantize_int8(torch.ones(5, 130))
        self.x = torch.ones(2, 130, dtype=torch.bfloat16)

    def test_rows(self):
        x = torch.ones(65, 130, dtype=torch.bfloat16)
        with pytest.raises(
            ValueError, match=r"x: it has 65 rows, int8_linear takes up to 64\. For"
        ):
            int8_linear(x, self.quantized.q, self.quantized.scales)

    def test_x(self):
        q, scales = self.quantized.q, self.quantized.scales
        with pytest.raises(TypeError, match="x: its dtype is float32"):
            int8_linear(self.x.float(), q, scales)
        with pytest.raises(ValueError, match="codes are of rows of 129 to 256 numbers"):
            int8_linear(self.x[:, :128], q, scales)
        with pytest.raises(ValueError, match="x: it requires a gradient"):
            int8_linear(self.x.clone().requires_grad_(), q, scales)
        with torch.no_grad():
            int8_linear(self.x.clone().requires_grad_(), q, scales)

    def test_codes(self):
        q, scales = self.quantized.q, self.quantized.scales
        with pytest.raises(TypeError, match="q: it is uint8"):
            int8_linear(self.x, q.view(torch.uint8), scales)
        with pytest.raises(TypeError, match="q: it is int8"):
            fp8_linear(self.x, q, scales)
        with pytest.raises(TypeError, match="scales: they are bfloat16"):
            int8_linear(self.x, q, scales.bfloat16())
        with pytest.raises(TypeError, match=r"scales: they are float32 \(32,\).*N from 1 to 16"):
            int8_linear(self.x, q.repeat(1, 2, 1, 1, 1, 1)[:, :1], scales[:4].repeat(8))
        with pytest.raises(ValueError, match="q: it must be contiguous"):
            int8_linear(self.x, q.repeat(1, 2, 1, 1, 1, 1)[:, :1], scales)

    def test_groups(self):
        quantized = quantize_int4(torch.ones(5, 640))
        x = torch.ones(2, 640, dtype=torch.bfloat16)
        with pytest.raises(ValueError, match=r"scales: their shape is \(4, 5\)"):
            int4_linear(x, quantized.q, quantized.scales[:4])


def test_rule():
    """Which kernel a GPU takes: tensor cores from compute capability 8.0."""
    cpu = torch.device("cpu")
    assert [rung_for(rows, cpu) for rows in (1, 8, 9, 64)] == ["few", "few", "tiles", "tiles"]


@kinds
@pytest.mark.parametrize("memory", [232448, 166912, 101376])  # of a block on sm_90, 80, 89
def test_shared_memory(kind, memory):
    """Every GPU with tensor cores has settings that fit."""
    for rows in (16, 32, 64):
        tiles, across, deep, stages, _ = tiles_settings(kind, rows, memory)
        assert shared_bytes(kind, rows, tiles, across, deep, stages) <= memory and stages >= 2
    with pytest.raises(ValueError, match="shared memory"):
        tiles_settings(kind, 64, 48000)


def test_rule_without_tensor_cores(monkeypatch):
    monkeypatch.setattr(module, "_has_tensor_cores", lambda device: False)
    x, quantized = torch.randn(6, 130).bfloat16(), weights("int4", 5, 130)
    check_linear(x, quantized)
    assert rung_for(64, x.device) == "rows"


@pytest.mark.gpu
class TestOnGPU:
    @kinds
    @dtypes
    @pytest.mark.parametrize("shape", GPU_SHAPES, ids=str)
    def test_against_float64(self, shape, kind, dtype):
        quantized = weights(kind, *shape, "cuda")
        for rows in (1, 2, 3, 4, 8, 9, 16, 17, 32, 33, 64):
            x = torch.randn(rows, shape[1], device="cuda").to(dtype)
            check_linear(x, quantized)

    @kinds
    @pytest.mark.parametrize("rung", RUNGS)
    def test_rungs(self, rung, kind):
        quantized = weights(kind, 1000, 4096, "cuda")
        for rows in (1, 5, 8):
            x = torch.randn(rows, 4096, device="cuda").bfloat16()
            check_linear(x, quantized, by_rung(rung, x, quantized))

    @pytest.mark.parametrize("group", [32, 64, 256, 1024])
    @pytest.mark.parametrize("rows", [1, 40])
    def test_groups(self, group, rows):
        quantized = weights("int4", 1000, 4000, "cuda", group=group)
        check_linear(torch.randn(rows, 4000, device="cuda").half(), quantized)

    @kinds
    @pytest.mark.parametrize("rows", [1, 8, 16, 64])
    def test_deterministic(self, kind, rows):
        quantized = weights(kind, 4096, 4096, "cuda")
        x = torch.randn(rows, 4096, device="cuda").bfloat16()
        first = OPS[kind](x, quantized.q, quantized.scales)
        for _ in range(10):
            assert torch.equal(first, OPS[kind](x, quantized.q, quantized.scales))

    @kinds
    @pytest.mark.parametrize("rows", [3, 20])
    def test_like_the_emulator(self, kind, rows):
        quantized = weights(kind, 33, 300)
        x = torch.randn(rows, 300).bfloat16()
        there = OPS[kind](x.cuda(), quantized.q.cuda(), quantized.scales.cuda())
        here = OPS[kind](x, quantized.q, quantized.scales)
        _, size = expected(x, quantized)
        check("y", there, here.double(), factor=2, scale=size)

    @pytest.mark.parametrize("rows", [1, 64])
    def test_in_a_graph(self, rows):
        quantized = weights("int4", 1024, 4096, "cuda")
        x = torch.randn(rows, 4096, device="cuda").bfloat16()
        wanted = int4_linear(x, quantized.q, quantized.scales)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = int4_linear(x, quantized.q, quantized.scales)
        y.zero_()
        graph.replay()
        assert torch.equal(y, wanted)
