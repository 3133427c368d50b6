"""Quantisers: rounding, packing, what is refused, and the error that they report."""

import math

import pytest
import torch

from cuda_numba.ptx.convert import float8_bits, float8_values
from cuda_numba.quantize import (
    FLOAT8,
    GROUPS,
    LARGEST,
    codes_of,
    pack_int4,
    quantize_fp8,
    quantize_int4,
    quantize_int8,
    unpack_int4,
)

QUANTIZERS = {
    "int8": quantize_int8,
    "int4": quantize_int4,
    "e4m3": quantize_fp8,
    "e5m2": lambda w: quantize_fp8(w, "e5m2"),
}
SHAPES = [(1, 1), (1, 7), (7, 33), (33, 130), (3, 128), (2, 300)]
kinds = pytest.mark.parametrize("kind", QUANTIZERS)


def codes(quantized):
    """The codes of w itself, float32 (N, K)."""
    N, K = quantized.shape
    return codes_of(quantized.q)[:N, :K]


def step(quantized):
    """What one code is worth, for each weight: (N, K)."""
    N, K = quantized.shape
    if quantized.group is None:
        return quantized.scales.double()[:, None].expand(N, K)
    return quantized.scales.T.double().repeat_interleave(quantized.group, 1)[:, :K]


class TestEveryKind:
    @kinds
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_within_half_a_step(self, kind, shape):
        w = torch.randn(shape) * torch.rand(shape[0], 1)
        quantized = QUANTIZERS[kind](w)
        difference = (quantized.dequantize(torch.float64) - w.double()).abs()
        allowed = step(quantized) / 2
        if kind in FLOAT8:  # steps between 8-bit floats grow with the number
            bits = int(kind[3])
            smallest = 2.0 ** (1 - (7 if kind == "e4m3" else 15) - bits)
            size = (codes(quantized).double().abs()).clamp_min(smallest * 2**bits)
            allowed = allowed * 2.0 ** (size.log2().floor() - bits)
        # w / scale is rounded to float32 before it is rounded to a code
        assert (difference <= allowed * (1 + 1e-5)).all()

    @kinds
    def test_symmetric(self, kind):
        w = torch.randn(5, 300)
        quantized, opposite = QUANTIZERS[kind](w), QUANTIZERS[kind](-w)
        assert torch.equal(codes(quantized), -codes(opposite))
        assert torch.equal(quantized.scales, opposite.scales)
        assert codes(quantized).abs().max() == LARGEST[kind]

    @kinds
    def test_rows_of_zeros(self, kind):
        w = torch.randn(3, 130)
        w[1] = 0
        quantized = QUANTIZERS[kind](w)
        assert (codes(quantized)[1] == 0).all()
        assert (step(quantized)[1] == 1).all()
        assert (quantized.dequantize()[1] == 0).all()

    @kinds
    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    def test_not_finite(self, kind, bad):
        w = torch.randn(9, 40)
        w[6, 11] = bad
        with pytest.raises(ValueError, match=r"row 6 holds -?(nan|inf) \(column 11\)"):
            QUANTIZERS[kind](w)

    @kinds
    @pytest.mark.parametrize("size", [1e-44, 1e-38, 1e-30, 1e30, 3e38])
    def test_extreme_sizes(self, kind, size):
        w = (torch.rand(2, 40).double() * size).float()
        quantized = QUANTIZERS[kind](w)
        assert torch.isfinite(quantized.scales).all() and (quantized.scales > 0).all()
        assert quantized.error(w).max <= max(w.max().item() * 0.15, 2.0**-126)

    @kinds
    def test_padding_is_zero(self, kind):
        quantized = QUANTIZERS[kind](torch.randn(3, 130) + 5)
        stored = codes_of(quantized.q)
        assert stored.shape == (16, 256)
        assert (stored[:, 130:] == 0).all() and (stored[3:] == 0).all()

    @kinds
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
    def test_other_formats(self, kind, dtype):
        w = torch.randn(4, 130).to(dtype)
        quantized, same = QUANTIZERS[kind](w), QUANTIZERS[kind](w.float())
        assert torch.equal(codes(quantized), codes(same))

    @kinds
    def test_refused(self, kind):
        with pytest.raises(ValueError, match="w: its shape is"):
            QUANTIZERS[kind](torch.randn(4))
        with pytest.raises(ValueError, match="w: its shape is"):
            QUANTIZERS[kind](torch.randn(0, 4))
        with pytest.raises(TypeError, match="w: its dtype is torch.int64"):
            QUANTIZERS[kind](torch.ones(2, 2, dtype=torch.int64))

    @kinds
    def test_bytes(self, kind):
        quantized = QUANTIZERS[kind](torch.randn(16, 1024))
        expected = 16 * 512 + 16 * 8 * 2 if kind == "int4" else 16 * 1024 + 16 * 4
        assert quantized.nbytes == expected


class TestRounding:
    """Ties go to the even code; scale is 1 where the largest weight is the largest code."""

    def test_int8(self):
        w = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, 126.5, 0.49, -127.0]])
        assert codes(quantize_int8(w)).tolist() == [[127, 0, 2, 2, 0, -2, 126, 0, -127]]

    def test_int4(self):
        w = torch.tensor([[7.0, 0.5, 1.5, 2.5, -0.5, -1.5, 6.5, 5.5, -7.0]])
        assert codes(quantize_int4(w)).tolist() == [[7, 0, 2, 2, 0, -2, 6, 6, -7]]

    @pytest.mark.parametrize("kind", FLOAT8)
    def test_float8(self, kind):
        """Every code is its own; halves between neighbours and random numbers as `cvt` has them."""
        values = torch.from_numpy(float8_values(kind).copy())
        values = values[torch.isfinite(values)].unique()
        between = (values[1:] + values[:-1]) / 2
        w = torch.cat([values, between, torch.rand(300) * values.max()])
        quantized = quantize_fp8(w[None], kind)
        assert quantized.scales.tolist() == [1]
        row = quantized.q.view(torch.uint8)[:, 0, 0, 0].flatten()  # chunks, lanes, bytes
        got = row[: len(w)].tolist()
        expected = [float8_bits(v, kind) for v in w.tolist()]
        assert [g & 0x7F for g in got] == [e & 0x7F for e in expected]
        assert torch.equal(codes(quantized)[0, : len(values)], values)

    def test_formats_are_named(self):
        with pytest.raises(ValueError, match="format: 'e3m4', it must be one of e4m3, e5m2"):
            quantize_fp8(torch.randn(2, 2), "e3m4")


@pytest.mark.parametrize(("n", "k"), [(0, 0), (7, 15), (8, 16), (15, 63), (16, 64), (31, 127)])
def test_place_of_bytes(n, k):
    """One int8 or fp8 code at (n, k) is in the chunk, tile, lane and byte that the picture says."""
    w = torch.zeros(32, 128)
    w[n, k] = 1
    for quantized in (quantize_int8(w), quantize_fp8(w)):
        q = quantized.q.float()
        assert q.shape == (2, 2, 2, 8, 4, 16) and q.count_nonzero() == 1
        assert q[k // 64, n // 16, n % 16 // 8, n % 8, k % 64 // 16, k % 16] > 0


class TestInt4:
    def test_packing_is_invertible(self):
        wanted = torch.randint(-8, 8, (48, 384), dtype=torch.int8)
        packed = pack_int4(wanted)
        assert packed.shape == (3, 3, 2, 8, 4, 16) and packed.dtype == torch.uint8
        assert packed.is_contiguous()
        assert torch.equal(unpack_int4(packed), wanted)

    @pytest.mark.parametrize("k", [0, 1, 2, 7, 8, 31, 32, 37, 64, 100, 127, 128, 255])
    @pytest.mark.parametrize("n", [0, 7, 8, 21])
    def test_place(self, n, k):
        """One code at (n, k) is in the tile, lane, word and bits that the picture says."""
        wanted = torch.full((32, 256), -8, dtype=torch.int8)
        wanted[n, k] = 7
        words = pack_int4(wanted).flatten().view(torch.int32).tolist()
        chunk, word, t, one = k // 128, k % 128 // 32, k % 32 // 8, k % 8
        tile, half, g = n // 16, n % 16 // 8, n % 8
        shift = 16 * (one % 2) + 4 * (one // 2)
        place = (((chunk * 2 + tile) * 2 + half) * 32 + 4 * g + t) * 4 + word
        expected = [0] * len(words)
        expected[place] = 15 << shift
        assert [w & 0xFFFFFFFF for w in words] == expected

    @pytest.mark.parametrize("group", GROUPS)
    def test_groups(self, group):
        w = torch.randn(3, 1500) * torch.logspace(-2, 2, 1500)
        quantized = quantize_int4(w, group)
        assert quantized.scales.shape == (-(-1536 // group), 3)
        assert quantized.scales.dtype == torch.bfloat16 and quantized.scales.is_contiguous()
        largest = w[1, group : 2 * group].abs().max()
        if largest.numel() and group < 1024:
            assert quantized.scales[1, 1].item() == (largest / 7).bfloat16().item()

    def test_smaller_groups_are_more_exact(self):
        w = torch.randn(64, 2048)
        errors = [quantize_int4(w, group).error(w).rms for group in GROUPS]
        assert errors == sorted(errors) and errors[0] < 0.8 * errors[-1]

    def test_group_is_named(self):
        with pytest.raises(ValueError, match="group: 48, it must be one of 32, 64"):
            quantize_int4(torch.randn(2, 96), 48)


class TestError:
    def test_is_what_it_says(self):
        w = torch.randn(33, 130)
        quantized = quantize_int8(w)
        difference = quantized.dequantize(torch.float64) - w.double()
        error = quantized.error(w)
        assert error.max == difference.abs().max().item()
        assert math.isclose(error.rms, difference.square().mean().sqrt().item())
        assert math.isclose(error.relative, error.rms / w.double().square().mean().sqrt().item())
        assert math.isclose(error.snr_db, -20 * math.log10(error.relative))

    def test_nothing_lost(self):
        w = torch.arange(-127.0, 128).repeat(2, 1)
        error = quantize_int8(w).error(w)
        assert (error.max, error.rms, error.relative, error.snr_db) == (0, 0, 0, math.inf)

    def test_zeros(self):
        w = torch.zeros(2, 3)
        assert quantize_int8(w).error(w).snr_db == math.inf

    def test_of_normal_weights(self):
        """Theory for the step Δ of a uniform quantiser: rms Δ / √12."""
        w = torch.randn(256, 1024)
        quantized = quantize_int8(w)
        theory = (quantized.scales.double().square().mean() / 12).sqrt().item()
        assert math.isclose(quantized.error(w).rms, theory, rel_tol=0.02)
        snr = {kind: QUANTIZERS[kind](w).error(w).snr_db for kind in QUANTIZERS}
        assert 40 < snr["int8"] < 45 and 30 < snr["e4m3"] < 33
        assert 24 < snr["e5m2"] < 27 and 17 < snr["int4"] < 21

    def test_of_other_weights(self):
        with pytest.raises(
            ValueError, match=r"w: its shape is \(2, 4\), the codes are of \(2, 3\)"
        ):
            quantize_int8(torch.randn(2, 3)).error(torch.randn(2, 4))

    def test_is_frozen(self):
        with pytest.raises(AttributeError):
            quantize_int8(torch.randn(2, 3)).kind = "int4"
