"""Quantised products as machine code, on every architecture that they are for."""

import itertools

import pytest
from compiled import ARCHITECTURES, WIDE_LOAD, assert_gates, needs_compiler
from targets import BETWEEN, HOPPER, thorough

from cuda_numba.inspect import count
from cuda_numba.quantized import FEW, SLAB, TILES, WARPS, depth_of
from cuda_numba.quantized_few import few_kernel
from cuda_numba.quantized_rows import rows_kernel
from cuda_numba.quantized_tiles import combine_kernel, tiles_kernel
from cuda_numba.quantized_words import KINDS

TENSOR_CORES = [cc for cc in ARCHITECTURES if cc >= (8, 0)]
# Every kind on the H100, int4 on the others; float16 once.
TARGETS = [(cc, "int4", "bfloat16") for cc in TENSOR_CORES]
TARGETS += [((9, 0), kind, "bfloat16") for kind in KINDS if kind != "int4"]
TARGETS += [((9, 0), "int4", "float16"), ((8, 0), "int8", "float16"), ((8, 0), "e4m3", "bfloat16")]


def width(kind):
    return "int4" if kind == "int4" else "8 bits"


def chosen(cc, kind, dtype, *rest, representative):
    """A parameter set, in the default run where it is one of the H100's or stands for others.

    The settings are the H100's, and their registers are what can go wrong; another architecture,
    float16 or float8 changes what a code or a number is unpacked to. There one variant is seen by
    default, and `--thorough` sees the others.
    """
    tuned = cc == (9, 0) and dtype == "bfloat16" and kind in ("int4", "int8")
    values = (cc, kind, dtype, *rest)
    return values if tuned or representative else thorough(*values)


def few_cases():
    """Settings for all widths of a layer, with and without guards; the widest, guarded, for all."""
    for target, full in itertools.product(TARGETS, (True, False)):
        for _, settings in (choices := FEW[width(target[1])]):
            widest = settings == choices[-1][1]
            yield chosen(*target, settings, full, representative=widest and not full)


def tiles_cases():
    """Settings for 16, 32 and 64 rows; the most rows for all."""
    for target, rows in itertools.product(TARGETS, TILES["int4"]):
        if target[2] == "bfloat16" and target[1] != "e5m2":
            yield chosen(*target, rows, representative=rows == max(TILES["int4"]))


def group_of(kind):
    return 128 if kind == "int4" else 0


def tensors(kind, dtype, out=None):
    scales = "bfloat16[:]" if kind == "int4" else "float32[:]"
    return (f"{dtype}[:]", "uint8[:]", scales, f"{out or dtype}[:]")


@needs_compiler
class TestMachineCode:
    @pytest.mark.parametrize(
        ("cc", "kind", "dtype", "settings", "full"), list(few_cases()), ids=str
    )
    def test_few(self, cc, kind, dtype, settings, full):
        signature = (*tensors(kind, dtype), *["uint32"] * 3)
        kernel = few_kernel(kind, dtype, *settings, full, group_of(kind))
        assert_gates(kernel, cc, signature, ("HMMA.16816.F32", WIDE_LOAD))

    @pytest.mark.parametrize(("cc", "kind", "dtype", "rows"), list(tiles_cases()), ids=str)
    def test_tiles(self, cc, kind, dtype, rows):
        kernel = tiles_kernel(kind, dtype, rows, *TILES[width(kind)][rows], group_of(kind))
        signature = (*tensors(kind, dtype), *["uint32"] * 4)
        assert_gates(kernel, cc, signature, ("HMMA.16816.F32", "LDGSTS.E", "LDS.128"))

    @pytest.mark.parametrize("kind", ["int4", "int8"])
    def test_parts(self, kind):
        kernel = tiles_kernel(kind, "bfloat16", 16, *TILES[width(kind)][16], group_of(kind), 2)
        signature = (*tensors(kind, "bfloat16", "float32"), *["uint32"] * 4)
        assert_gates(kernel, (9, 0), signature, ("HMMA.16816.F32", "LDGSTS.E", "LDS.128"))
        kernel = combine_kernel("bfloat16", 2, kind != "int4")
        signature = ("float32[:]", "float32[:]", "bfloat16[:]", "uint32", "uint32")
        assert_gates(kernel, (7, 5), signature)

    # As many rows as there are, and one of int4; one row of the others has their unpacking and the
    # loops of int4, and is seen with --thorough.
    @pytest.mark.parametrize(
        ("kind", "M"),
        [(kind, SLAB) for kind in KINDS]
        + [("int4", 1)]
        + [thorough(kind, 1) for kind in KINDS if kind != "int4"],
    )
    def test_rows(self, kind, M):
        kernel = rows_kernel(kind, "bfloat16", M, WARPS, depth_of(M), group_of(kind))
        signature = (*tensors(kind, "bfloat16"), "uint32", "uint32")
        assert_gates(kernel, (7, 5), signature, ("FFMA", WIDE_LOAD))

    # Where there are tensor cores this rung runs by name alone: there it is seen on the H100.
    @pytest.mark.parametrize("cc", [(7, 5), HOPPER, *map(thorough, BETWEEN)], ids=str)
    def test_rows_elsewhere(self, cc):
        kernel = rows_kernel("int4", "float16", SLAB, WARPS, depth_of(SLAB), 128)
        signature = (*tensors("int4", "float16"), "uint32", "uint32")
        assert_gates(kernel, cc, signature, ("FFMA", WIDE_LOAD))


@needs_compiler
class TestInstructions:
    """How many instructions the codes cost: what limits 1 row."""

    def test_unpacking(self):
        """Each word of int4: one HFMA2 and about one LOP3 for two codes, no conversions."""
        kernel = few_kernel("int4", "bfloat16", *FEW["int4"][1][1], True, 128)
        sass = kernel.sass((9, 0), (*tensors("int4", "bfloat16"), *["uint32"] * 3))
        products = sass.count("HMMA.16816")
        assert sass.count("HFMA2.BF16") == 4 * products
        assert not count(sass, "I2F") and not count(sass, "F2F")

    def test_float8_has_no_conversions(self):
        kernel = few_kernel("e4m3", "bfloat16", *FEW["8 bits"][1][1], True)
        sass = kernel.sass((9, 0), (*tensors("e4m3", "bfloat16"), *["uint32"] * 3))
        assert "F2FP.F16.E4M3" not in sass
