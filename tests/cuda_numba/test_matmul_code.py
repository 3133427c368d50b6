"""The machine code of the Hopper product and of the column sums, without a GPU."""

import pytest
from compiled import assert_gates, needs_compiler
from targets import BETWEEN, HOPPER, targets, thorough

from cuda_numba.hopper_epilogue import Epilogue
from cuda_numba.hopper_product import product_kernel
from cuda_numba.hopper_tile import Kind, Tile
from cuda_numba.hopper_turns import turns_kernel
from cuda_numba.inspect import count
from cuda_numba.matmul_sums import partial_sums_kernel, sum_rows_kernel, wide_sums_kernel

GRADIENT = Kind(out="float32", a_along_m=True, b_along_n=True)
GELU = Epilogue(bias="bfloat16", keep_pre=True, activation="gelu_tanh")
TOGETHER = {
    "forward": (Kind(), Tile(256, 4, 2)),
    "dgrad": (Kind(b_along_n=True), Tile(192, 4, 3)),
    "wgrad": (GRADIENT, Tile(256, 4, 2)),
    "wgrad in pairs of registers": (GRADIENT._replace(store="pairs"), Tile(256, 4, 0)),
    "wgrad, added": (GRADIENT._replace(epilogue=Epilogue(accumulate=True)), Tile(192, 5, 1)),
    "bias and gelu": (Kind(epilogue=GELU), Tile(192, 4, 3)),
    "residual": (Kind(epilogue=Epilogue(bias="float32", residual=True)), Tile(192, 4, 3)),
    "float16": (Kind("float16", "float16", store="singles"), Tile(128, 6, 0)),
}
TURNS = {
    "pairs of blocks": (Kind(b_along_n=True), Tile(192, 4, 2, True, True)),
    "forward": (Kind(), Tile(192, 4, 2, True)),
    "bias and gelu": (Kind(epilogue=GELU), Tile(128, 5, 4, True)),
    "slope and sums": (
        Kind(b_along_n=True, epilogue=Epilogue(slope="gelu_tanh", sums=True)),
        Tile(128, 4, 4, True),
    ),
}


def signature(kind):
    bias = kind.epilogue.bias or "float32"
    tensors = ("uint32[:]", "float32[:]", "uint32[:]", f"{kind.out}[:]", f"{bias}[:]", "float32[:]")
    return ("uint64",) * 4 + tensors + ("uint32",) * 3 + ("uint64", "uint32", "uint32")


@needs_compiler
@pytest.mark.parametrize("name", TOGETHER)
def test_groups_that_share_a_tile(name):
    kind, tile = TOGETHER[name]
    expect = ("HGMMA", "UTMALDG.3D", "USETMAXREG")
    if kind.store == "tma":
        reduces = kind.epilogue.accumulate
        expect += ("UTMAREDG.3D" if reduces else "UTMASTG.3D",)
        expect += ("STSM",) if kind.out != "float32" else ("STS.64",)
    kernel = product_kernel(kind, tile)
    assert_gates(kernel, HOPPER, signature(kind), expect)
    sass = kernel.sass(HOPPER, signature(kind))
    assert count(sass, "HGMMA") == 4, "one loop, four k steps of 16, not unrolled"


@needs_compiler
@pytest.mark.parametrize("name", TURNS)
def test_groups_that_take_turns(name):
    kind, tile = TURNS[name]
    kernel = turns_kernel(kind, tile)
    assert_gates(kernel, HOPPER, signature(kind), ("HGMMA", "UTMALDG.3D", "UTMASTG.3D"))
    assert count(kernel.sass(HOPPER, signature(kind)), "HGMMA") == 8


@needs_compiler
def test_narrow_loads_are_noticed():
    """The control: registers stored in pairs are no TMA stores."""
    kind = GRADIENT._replace(store="pairs")
    sass = product_kernel(kind, Tile(256, 4, 0)).sass(HOPPER, signature(kind))
    assert not count(sass, "UTMASTG") and count(sass, "STG.E.64") == 64


OTHERS = [thorough(cc, d) for cc in ((7, 5), *BETWEEN) for d in ("float32", "float16")]


@needs_compiler
@pytest.mark.parametrize(("cc", "dtype"), [*targets(), *OTHERS], ids=str)
def test_column_sums(cc, dtype):
    pairs = dtype != "float32"
    types = (f"{dtype}[:]", "float32[:]", "uint32", "uint32", "uint32")
    assert_gates(partial_sums_kernel(dtype, pairs), cc, types)
    if pairs:
        assert_gates(wide_sums_kernel(dtype), cc, types, ("LDG.E.128",))
    assert_gates(sum_rows_kernel, cc, ("float32[:]", "float32[:]", "uint32", "uint32", "uint32"))
