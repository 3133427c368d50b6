"""The ladder of products as the emulator counts it and as machine code: what each rung changes."""

import itertools

import pytest
import torch
from compiled import ARCHITECTURES, assert_gates, needs_compiler
from targets import BETWEEN, HOPPER, thorough

from cuda_numba.inspect import count
from cuda_numba.matmul_operands import product_of, whole
from cuda_numba.matmul_simt import (
    GRID,
    SMALL_GRID,
    TILE,
    WARPS,
    kernel_of,
    shared_kernel,
    single_kernel,
)
from cuda_numba.matmul_simt_tile import Operand as FloatOperand
from cuda_numba.matmul_simt_tile import tile_kernel
from cuda_numba.matmul_turing import turing_kernel
from cuda_numba.matmul_warp import DTYPES, LARGE, SMALL
from cuda_numba.matmul_warp import kernel_of as warp_kernel_of
from cuda_numba.matmul_warp_epilogue import Epilogue
from cuda_numba.matmul_warp_kernel import shared_bytes, warp_kernel
from cuda_numba.matmul_warp_tiles import Operand

FORMS = list(itertools.product((True, False), repeat=2))  # K runs along the rows of a, of b
SIZE = 64  # of the square products that are counted


def report_of(kernel, grid, block, *args, smem=0):
    report = kernel.report(grid, block, *args, smem=smem)
    assert report.findings == []
    return report


def single(along_n):
    a, b, out = (torch.randn(SIZE, SIZE) for _ in range(3))
    kernel = single_kernel("float32", "float32", along_n)
    sizes = (SIZE,) * 3 + (SIZE, 1, SIZE, 1, SIZE, 0, 0, 0)
    blocks = SIZE * SIZE // (TILE * WARPS)
    return report_of(kernel, blocks, TILE * WARPS, a, b, out, *sizes)


def register(grid, forms=(True, False), size=(128, 128, 32)):
    M, N, K = size
    a = torch.randn(M, K) if forms[0] else torch.randn(K, M).mT
    b = torch.randn(N, K).mT if forms[1] else torch.randn(K, N)
    p = product_of(a, b, dtypes=("float32",))
    args = (p.M, p.N, p.K, p.a.pitch, p.b.pitch, p.out.pitch, 0, 0, 0)
    return report_of(
        kernel_of(p, grid), M * N // (grid.m * grid.n), grid.threads, whole(p.a), whole(p.b),
        whole(p.out), *args,
    )  # fmt: skip


def warp(tile, forms, size, dtype=torch.bfloat16, **changes):
    """The report of a product by mma.sync; changes: of both operands' forms."""
    M, N, K = size
    a = torch.randn(M, K).to(dtype) if forms[0] else torch.randn(K, M).to(dtype).mT
    b = torch.randn(N, K).to(dtype).mT if forms[1] else torch.randn(K, N).to(dtype)
    p = product_of(a, b, dtypes=DTYPES)
    kernel, smem = warp_kernel_of(p, tile, **changes)
    out = whole(p.out)
    args = (p.M, p.N, p.K, p.a.pitch, p.b.pitch, p.out.pitch, 0, 0, 0, 0.0)
    blocks = -(-M // tile.m) * -(-N // tile.n)
    return report_of(
        kernel, blocks, tile.threads, whole(p.a), whole(p.b), out, out, *args, smem=smem
    )


class TestOneSumAThread:
    """64³: each of 4,096 threads reads 64 pairs; all but where they lie is the same."""

    @pytest.mark.parametrize(
        ("along_n", "reads", "stores"),
        [(False, 32 + 1, 32), (True, 1 + 4, 4)],  # sectors: of a request for a and one for b
        ids=["naive", "coalesced"],
    )
    def test_sectors(self, along_n, reads, stores):
        report = single(along_n)
        warps = SIZE * SIZE // 32
        load, store = report.of("global", "load"), report.of("global", "store")
        assert load.requests == 2 * warps * SIZE and store.requests == warps
        assert load.sectors == reads * warps * SIZE
        assert store.sectors == stores * warps
        assert report.flops == 2 * SIZE**3


class TestSharedTile:
    def test_traffic_falls_by_the_tile(self):
        a, b, out = (torch.randn(SIZE, SIZE) for _ in range(3))
        kernel = shared_kernel("float32", "float32")
        sizes = (SIZE,) * 3 + (SIZE, 1, SIZE, 1, SIZE, 0, 0, 0)
        report = report_of(kernel, (SIZE // TILE) ** 2, (TILE, TILE), a, b, out, *sizes)
        asked = 2 * SIZE**3 * 4  # by one sum a thread
        assert report.of("global", "load").moved == asked // TILE
        assert report.efficiency == 1 and report.conflicts == 0
        assert report.flops == 2 * SIZE**3
        # Two words from shared memory for each multiply-add, as before from global memory.
        assert report.of("shared", "load").requested == 2 * SIZE**3 * 4


class TestRegisterTile:
    @pytest.mark.parametrize("grid", [GRID, SMALL_GRID], ids=["large", "small"])
    def test_shared_words_for_a_multiply_add(self, grid):
        """1 / rows + 1 / columns instead of two; one more line is read, ahead of the first one."""
        M, N, K = 128, 128, 32
        report = register(grid, size=(M, N, K))
        threads = M * N // grid.sums
        words = threads * (K + 1) * (grid.rows + grid.columns)
        assert report.of("shared", "load").requested == 4 * words
        assert report.flops == 2 * M * N * K
        blocks = M * N // (grid.m * grid.n)
        assert report.of("global", "load").requested == 4 * blocks * (grid.m + grid.n) * K
        assert report.of("global", "store").moved == 4 * M * N
        assert report.of("global", "store").efficiency == 1

    @pytest.mark.parametrize("forms", FORMS, ids=str)
    def test_no_bank_conflicts(self, forms):
        assert register(SMALL_GRID, forms, (64, 64, 16)).conflicts == 0


class TestTensorCores:
    @pytest.mark.parametrize("forms", FORMS, ids=str)
    def test_every_byte_once_for_a_block(self, forms):
        tile = SMALL[8, 0]
        M, N, K = 128, 64, 128
        report = warp(tile, forms, (M, N, K))
        assert report.tensor_flops == 2 * M * N * K
        assert report.conflicts == 0 and report.efficiency == 1
        blocks = M * N // (tile.m * tile.n)
        load, store = report.of("global", "load"), report.of("global", "store")
        assert load.moved == 2 * blocks * (tile.m + tile.n) * K
        assert load.accesses == load.moved // 16
        assert store.moved == 2 * M * N
        # Start, one for each tile, one before shared memory is used for the way out.
        assert report.barriers == blocks * (1 + K // tile.k + 1)

    @pytest.mark.parametrize("forms", [(True, True), (False, False)], ids=str)
    def test_large_tile(self, forms):
        tile = LARGE[9, 0]
        report = warp(tile, forms, (tile.m, tile.n, 128))
        assert report.tensor_flops == 2 * tile.m * tile.n * 128
        assert report.conflicts == 0 and report.efficiency == 1

    @pytest.mark.parametrize("forms", FORMS, ids=str)
    def test_without_the_swizzle(self, forms):
        """The control: each ldmatrix takes eight wavefronts for one; nothing else changes."""
        plain = warp(SMALL[8, 0], forms, (64, 64, 64), swizzled=False)
        assert plain.tensor_flops == 2 * 64**3
        good = warp(SMALL[8, 0], forms, (64, 64, 64))
        reads = 4 * (4 + 1) * (2 + 2)  # warps, steps and the one ahead, ldmatrix.x4 of A and B
        assert plain.conflicts >= good.conflicts + reads * 4 * 7

    @pytest.mark.parametrize("forms", FORMS, ids=str)
    def test_turing(self, forms):
        report = warp(SMALL[7, 5], forms, (64, 64, 64), torch.float16)
        assert report.tensor_flops == 2 * 64**3
        assert report.conflicts == 0 and report.efficiency == 1


# ---- machine code

SINGLE = ("uint32",) * 3 + ("uint64",) * 8
FLOAT_TILE = ("float32[:]",) * 3 + ("uint32",) * 6 + ("uint64",) * 3


def warp_code(tile, forms, exact=True, wide=True, dtype="bfloat16", out=None, bias=None, add=False):
    out = out or dtype
    a = Operand(True, forms[0], tile.m, tile.k, tile.warp_m, exact, wide)
    b = Operand(False, forms[1], tile.n, tile.k, tile.warp_n, exact, wide)
    end = Epilogue(tile.warp_m, tile.warp_n, out, bias, add, exact)
    make = turing_kernel if tile.k == 32 else warp_kernel
    arrays = tuple(f"{name}[:]" for name in (dtype, dtype, out, bias or out))
    signature = arrays + ("uint32",) * 6 + ("uint64",) * 3 + ("float32",)
    return make(dtype, tile, a, b, end), signature


def test_tiles_fit_in_shared_memory():
    most = {(7, 5): 64, (8, 0): 163, (8, 6): 99, (9, 0): 227, (12, 0): 99}  # KB of a block
    for cc, tile in (*LARGE.items(), *SMALL.items()):
        end = Epilogue(tile.warp_m, tile.warp_n, "float32", None, False, True)
        assert shared_bytes(tile, end) <= most[cc] * 1024


@needs_compiler
class TestFloatCode:
    @pytest.mark.parametrize("cc", [(7, 5), *map(thorough, BETWEEN), HOPPER], ids=str)
    def test_teaching_rungs(self, cc):
        signature = ("float32[:]",) * 3 + SINGLE
        for along_n in (True, False):
            assert_gates(single_kernel("float32", "float32", along_n), cc, signature, ("FFMA",))
        assert_gates(shared_kernel("float32", "float32"), cc, signature, ("FFMA", "LDS"))

    @pytest.mark.parametrize(
        ("cc", "exact", "forms"),
        [(cc, False, (True, False)) for cc in ARCHITECTURES]
        + [(HOPPER, True, forms) for forms in ((True, False), (True, True), (False, False))]
        # Elsewhere with the guards, which take more registers; without them the loop is the same.
        + [thorough(cc, True, (True, False)) for cc in ARCHITECTURES if cc != HOPPER],
        ids=str,
    )
    def test_register_tile(self, cc, exact, forms):
        grid = GRID
        a = FloatOperand(forms[0], grid.m, grid.k, exact, True)
        b = FloatOperand(forms[1], grid.n, grid.k, exact, True)
        kernel = tile_kernel(grid, a, b, True)
        wide = ("LDS.128", "STG.E.128", "LDG.E.128")
        assert_gates(kernel, cc, FLOAT_TILE, wide)
        sass = kernel.sass(cc, FLOAT_TILE)
        assert count(sass, "FFMA") == grid.sums * grid.k  # each multiply-add of a tile, once
        assert count(sass, "FMUL") == count(sass, "FADD") == 0

    @pytest.mark.parametrize("cc", [HOPPER, thorough((7, 5))], ids=str)
    def test_rows_that_begin_anywhere(self, cc):
        """On the T4 with --thorough: one number an access is the same on both."""
        side = FloatOperand(True, SMALL_GRID.m, SMALL_GRID.k, False, False)
        assert_gates(tile_kernel(SMALL_GRID, side, side, False), cc, FLOAT_TILE, ("FFMA",))


TARGETS = [((8, 0), LARGE[8, 0]), ((8, 9), LARGE[8, 6]), ((9, 0), LARGE[9, 0])]
TARGETS += [((8, 0), SMALL[8, 0]), ((9, 0), SMALL[8, 0])]


@needs_compiler
class TestWarpCode:
    @pytest.mark.parametrize(
        ("cc", "tile", "forms"),
        [(*target, (True, True)) for target in TARGETS[:4]]
        + [thorough(*TARGETS[4], (True, True))]  # the small tile is the A100's
        + [((9, 0), LARGE[9, 0], (True, False)), ((9, 0), LARGE[9, 0], (False, False))],
        ids=str,
    )
    def test_whole_tiles(self, cc, tile, forms):
        kernel, signature = warp_code(tile, forms)
        wide = ("LDSM", "LDGSTS.E.BYPASS.128", "STG.E.64")
        assert_gates(kernel, cc, signature, ("HMMA.16816.F32.BF16", *wide))
        sass = kernel.sass(cc, signature)
        assert count(sass, "HMMA") == 4 * tile.warp_m // 16 * tile.warp_n // 8

    # The large tile is the A100's but for one stage more: on the H100 with --thorough.
    @pytest.mark.parametrize(("cc", "tile"), [*TARGETS[:2], thorough(*TARGETS[2])], ids=str)
    def test_edges_bias_and_sum(self, cc, tile):
        kernel, signature = warp_code(
            tile,
            (False, True),
            exact=False,
            dtype="float16",
            out="float32",
            bias="float16",
            add=True,
        )
        assert_gates(kernel, cc, signature, ("HMMA.16816.F32", "LDSM", "LDGSTS.E.BYPASS.128"))

    def test_rows_that_begin_anywhere(self):
        kernel, signature = warp_code(LARGE[9, 0], (True, False), exact=False, wide=False)
        assert_gates(kernel, (9, 0), signature, ("HMMA", "LDG.E.U16"))

    @pytest.mark.parametrize(
        ("tile", "forms"),
        [
            (LARGE[7, 5], (True, True)),
            (LARGE[7, 5], (False, False)),
            thorough(SMALL[7, 5], (True, True)),  # fewer registers in the same loops
        ],
        ids=str,
    )
    def test_turing(self, tile, forms):
        kernel, signature = warp_code(tile, forms, dtype="float16")
        assert_gates(kernel, (7, 5), signature, ("HMMA.1688.F32", "LDSM", "LDG.E.128", "STS.128"))
        kernel, signature = warp_code(
            tile, forms, False, True, "float16", "float32", "float32", True
        )
        assert_gates(kernel, (7, 5), signature, ("HMMA.1688.F32",))
