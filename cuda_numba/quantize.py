"""Weights in 8 or 4 bits: quantisers, their inverses, and the error that they make.

A weight matrix w (N, K) becomes codes and scales, w[n, k] ≈ scale · code:

    int8   a scale for each of the N rows, max|w| / 127; codes −127 … 127
    int4   a scale for each row and each group of K, max|w| / 7; codes −7 … 7, stored as code + 8
    fp8    a scale for each row, max|w| / 448 (e4m3) or / 57344 (e5m2); codes are 8-bit floats

Codes are w / scale rounded to nearest, ties to even. Zero has a code of its own and is symmetric:
−w has the negative codes of w. A row (or group) of zeros has scale 1 and zeros as codes. NaN and
infinity are refused.

Codes are stored in the order in which the kernels read them. A warp reads 512 consecutive bytes,
16 for each lane, and has then what one register operand of `mma.m16n8k16` needs, without a shuffle:
lane 4 g + t holds row g of eight. Two such loads are a tile of 16 rows, and a chunk of k:

    q (chunks of k, tiles of 16 rows, 2, 8 rows, 4 lanes, 16 bytes)

    tile T, chunk C, half h:   lane 0: row g = 0, t = 0 | lane 1: t = 1 | …  | lane 4: g = 1 | …
    row n = 16 T + 8 h + g

    int8, fp8: a chunk is 64 k, byte b of lane t is k = 64 C + 16 t + b
    int4:      a chunk is 128 k, each 32-bit word eight neighbours of k, so that a mask takes pairs
               of neighbours out of a word, one in either half:

                      lane t = 0   t = 1      t = 2      t = 3
        word 0:  k =  0 … 7        8 … 15     16 … 23    24 … 31
        word 1:  k = 32 … 39       40 … 47    48 … 55    56 … 63
        word 2:  k = 64 …          72 …       80 …       88 …
        word 3:  k = 96 …          104 …      112 …      120 … 127

        bits of a word   31–28 27–24 23–20 19–16 | 15–12 11–8  7–4   3–0
        k, of its eight    7     5     3     1   |   6     4    2     0

Rows are filled up with zero codes to a multiple of 16, K to one of 128. The chunks of k are the
outermost: while all warps of a GPU work on chunk C, they read one contiguous piece of memory, which
a DRAM likes better than 256 pieces (measured on an H100: 14.2 µs for 33 MB, against 15.2 µs where
each row is contiguous).

Here everything is plain torch; the kernels are in `quantized`. Sources: Dettmers et al. 2022,
"LLM.int8()", section 2 (absmax by vector); Frantar et al. 2023, "GPTQ", section 4 (groups);
Micikevicius et al. 2022, "FP8 Formats for Deep Learning".
"""

import math
from dataclasses import dataclass

import torch

PAD = 128  # K is a multiple of this in stored codes: two chunks of 8-bit codes, one of int4
TILE = 16  # rows of w, columns of y, of a tile
GROUPS = (32, 64, 128, 256, 512, 1024)
FLOAT8 = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}
LARGEST = {"int8": 127.0, "int4": 7.0, "e4m3": 448.0, "e5m2": 57344.0}
TINY = 2.0**-126  # the smallest scale of float32; below, w / scale would overflow


@dataclass(frozen=True)
class QuantizationError:
    """How far dequantised weights are from w, in w's unit and relative to it.

    max: largest |difference|; rms: its root mean square; relative: rms over the rms of w;
    snr_db: −20 log10(relative), infinite where nothing is lost.
    """

    max: float
    rms: float
    relative: float
    snr_db: float


@dataclass(frozen=True)
class Quantized:
    """A weight matrix in few bits: what a linear layer takes in place of w.

    kind: "int8", "int4", "e4m3" or "e5m2". q: the codes in the order above, of int8, of float8 or,
    two int4 in each, of uint8: (chunks, tiles, 2, 8, 4, 16). scales: float32 (N,), for int4
    bfloat16 (groups, N): the columns that a warp computes have their scales side by side. shape:
    (N, K) of w. group: k of one scale, None where it is the whole row.
    """

    kind: str
    q: torch.Tensor
    scales: torch.Tensor
    shape: tuple[int, int]
    group: int | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales."""
        return self.q.nbytes + self.scales.nbytes

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """scale · code, (N, K), computed in float64 and rounded once to `dtype`."""
        N, K = self.shape
        values = codes_of(self.q)[:N, :K].double()
        if self.group is None:
            return (values * self.scales.double()[:, None]).to(dtype)
        scales = self.scales.T.double().repeat_interleave(self.group, 1)
        return (values * scales[:, :K]).to(dtype)

    def error(self, w: torch.Tensor) -> QuantizationError:
        """The error of the codes against w (N, K), in float64."""
        if tuple(w.shape) != self.shape:
            raise ValueError(f"w: its shape is {tuple(w.shape)}, the codes are of {self.shape}.")
        w = w.double()
        difference = self.dequantize(torch.float64) - w
        rms, size = (t.square().mean().sqrt().item() for t in (difference, w))
        relative = rms / size if rms else 0.0
        snr = -20 * math.log10(relative) if relative else math.inf
        return QuantizationError(difference.abs().max().item(), rms, relative, snr)


def codes_of(q: torch.Tensor) -> torch.Tensor:
    """The codes as numbers, float32 (padded N, padded K), from their stored form."""
    if q.dtype == torch.uint8:
        return unpack_int4(q).float()
    return _rows_of(q).float()


def _tiles_of(rows: torch.Tensor) -> torch.Tensor:
    """(N, bytes of a row), multiples of 16 and 64 → (chunks, tiles, 2, 8, 4, 16)."""
    N, length = rows.shape
    tiles = rows.view(N // TILE, 2, 8, length // 64, 4, 16)
    return tiles.permute(3, 0, 1, 2, 4, 5).contiguous()


def _rows_of(q: torch.Tensor) -> torch.Tensor:
    """The inverse of `_tiles_of`."""
    return q.permute(1, 2, 3, 0, 4, 5).reshape(TILE * q.shape[1], 64 * q.shape[0])


def pack_int4(codes: torch.Tensor) -> torch.Tensor:
    """int4 codes −8 … 7, (N, K), multiples of 16 and 128 → uint8 (K / 128, N / 16, 2, 8, 4, 16)."""
    N, K = codes.shape
    nibbles = (codes.to(torch.int16) + 8).to(torch.uint8)
    # 128 k: (word, lane, pair, half of the word) → (lane, word, half, pair)
    parts = nibbles.view(N, K // PAD, 4, 4, 4, 2).permute(0, 1, 3, 2, 5, 4)
    parts = parts.reshape(N, K // 2, 2)  # pairs (0, 1) and (2, 3) of a half: its two bytes
    return _tiles_of(parts[..., 0] | parts[..., 1] << 4)


def unpack_int4(q: torch.Tensor) -> torch.Tensor:
    """The inverse of `pack_int4`: uint8 (K / 128, N / 16, 2, 8, 4, 16) → int8 (N, K)."""
    rows = _rows_of(q)
    N, K = rows.shape[0], 2 * rows.shape[1]
    nibbles = torch.stack((rows & 15, rows >> 4), -1).to(torch.int8) - 8
    parts = nibbles.view(N, K // PAD, 4, 4, 2, 4)  # lane, word, half, pair
    return parts.permute(0, 1, 3, 2, 5, 4).reshape(N, K)


def _checked(w: torch.Tensor) -> torch.Tensor:
    """w as float32, (N, K); what cannot be quantised is refused."""
    if w.dim() != 2 or not w.numel():
        raise ValueError(f"w: its shape is {tuple(w.shape)}, it must be (N, K), not empty.")
    if not w.is_floating_point():
        raise TypeError(f"w: its dtype is {w.dtype}, it must be a floating-point format.")
    w = w.detach().float()
    wrong = ~torch.isfinite(w).all(1)
    if wrong.any():
        row = int(wrong.nonzero()[0])
        where = int((~torch.isfinite(w[row])).nonzero()[0])
        raise ValueError(
            f"w: row {row} holds {w[row, where].item()} (column {where}); weights must be finite."
        )
    return w


def _scales(largest: torch.Tensor, most: float) -> torch.Tensor:
    """The scale at which `largest` has the code `most`; 1 where everything is zero."""
    scales = (largest / most).clamp_min(TINY)
    return torch.where(largest > 0, scales, 1.0)


def _pad(codes: torch.Tensor, multiple: int = PAD) -> torch.Tensor:
    """codes with zeros up to a multiple of 16 rows and of so many k."""
    N, K = codes.shape
    return torch.nn.functional.pad(codes, (0, -K % multiple, 0, -N % TILE))


def quantize_int8(w: torch.Tensor) -> Quantized:
    """w (N, K) → int8 codes −127 … 127, a float32 scale for each row.

    Raises ValueError naming the row that holds NaN or infinity.
    """
    w = _checked(w)
    scales = _scales(w.abs().amax(1), LARGEST["int8"])
    codes = (w / scales[:, None]).round().clamp(-127, 127)
    return Quantized("int8", _tiles_of(_pad(codes.to(torch.int8))), scales, tuple(w.shape))


def quantize_int4(w: torch.Tensor, group: int = 128) -> Quantized:
    """w (N, K) → int4 codes −7 … 7, a bfloat16 scale for each row and group of K.

    group: 32, 64, 128, 256, 512 or 1024 k; the last group of a row may be shorter. The scale is
    rounded to bfloat16 before the codes are computed, so they make up for its rounding. Raises
    ValueError naming the row that holds NaN or infinity.
    """
    if group not in GROUPS:
        raise ValueError(f"group: {group}, it must be one of {', '.join(map(str, GROUPS))}.")
    w = _checked(w)
    N, K = w.shape
    groups = _pad(w, max(group, PAD)).view(N + -N % TILE, -1, group)
    scales = _scales(groups.abs().amax(2), LARGEST["int4"]).to(torch.bfloat16)
    codes = (groups / scales.float()[..., None]).round().clamp(-7, 7).flatten(1)
    codes = codes[:, : K + -K % PAD]
    scales = scales[:N, : -(-codes.shape[1] // group)]
    return Quantized("int4", pack_int4(codes), scales.T.contiguous(), (N, K), group)


def quantize_fp8(w: torch.Tensor, format: str = "e4m3") -> Quantized:
    """w (N, K) → 8-bit floats, "e4m3" or "e5m2", a float32 scale for each row.

    Raises ValueError naming the row that holds NaN or infinity.
    """
    if format not in FLOAT8:
        raise ValueError(f"format: {format!r}, it must be one of {', '.join(FLOAT8)}.")
    w = _checked(w)
    most = LARGEST[format]
    scales = _scales(w.abs().amax(1), most)
    codes = (w / scales[:, None]).clamp(-most, most).to(FLOAT8[format])
    codes = _tiles_of(_pad(codes.view(torch.uint8))).view(FLOAT8[format])
    return Quantized(format, codes, scales, tuple(w.shape))
