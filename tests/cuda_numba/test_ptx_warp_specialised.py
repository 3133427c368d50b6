"""A product by TMA, mbarriers and wgmma, with warps for each."""

import functools

import numpy as np
import pytest
import torch
from ptx_cases import assemble, needs_compiler
from ptx_tiles import devices, findings, line_of

from cuda_numba import jit, ptx
from cuda_numba.namespace import cuda, uint32, uint64

HOPPER = (9, 0, "a")
TILE, DEPTH, STAGES = 64, 128, 2
STAGE = 2 * TILE * 64 * 2  # bytes of A and of B, 64 columns each
WORDS, BARRIERS = STAGES * STAGE // 4, 2 * STAGES


@functools.cache
def warp_specialised(dtype):
    """C (64 × 64) = A (64 × 128) Bᵀ: warps 4 to 7 multiply what one thread of warp 0 has loaded."""
    multiply = ptx.wgmma(TILE, dtype, k_steps=4)
    zeros, wait = ptx.wgmma_zeros(TILE), ptx.wgmma_wait(TILE, 0)

    @jit(launch_bounds=(256, 1))
    def product(map_a: "uint64", map_b: "uint64", c):
        tiles = cuda.shared.array(WORDS, uint32, alignment=1024)
        bars = cuda.shared.array(BARRIERS, uint64)
        i = uint32(cuda.threadIdx.x)
        base, full = ptx.shared_address(tiles), ptx.shared_address(bars)
        empty = uint32(full + uint32(8 * STAGES))
        if i == 0:
            for s in range(STAGES):
                ptx.mbarrier_init(full + uint32(8 * s), 1)
                ptx.mbarrier_init(empty + uint32(8 * s), 4)
            ptx.fence_mbarrier_init()
        cuda.syncthreads()
        stage, phase = uint32(0), uint32(0)
        if i < uint32(128):
            ptx.setmaxnreg_dec(40)
            if i == 0:
                for k in range(0, 4 * DEPTH, 64):  # four times round, so that stages are used again
                    ptx.mbarrier_wait(empty + uint32(8) * stage, phase ^ uint32(1))
                    bar = uint32(full + uint32(8) * stage)
                    place = uint32(base + uint32(STAGE) * stage)
                    ptx.mbarrier_arrive_expect_tx(bar, STAGE)
                    ptx.tma_load_2d(place, map_a, k % DEPTH, 0, bar)
                    ptx.tma_load_2d(place + uint32(STAGE // 2), map_b, k % DEPTH, 0, bar)
                    stage = uint32(stage + uint32(1))
                    if stage == uint32(STAGES):
                        stage, phase = uint32(0), uint32(phase ^ uint32(1))
        else:
            ptx.setmaxnreg_inc(232)
            acc = zeros()
            for k in range(0, 4 * DEPTH, 64):
                ptx.mbarrier_wait(full + uint32(8) * stage, phase)
                place = uint32(base + uint32(STAGE) * stage)
                a = ptx.wgmma_descriptor(place, 0, 1024, 128)
                b = ptx.wgmma_descriptor(place + uint32(STAGE // 2), 0, 1024, 128)
                ptx.wgmma_fence()
                acc = multiply(acc, a, b, k > 0)
                ptx.wgmma_commit()
                acc = wait(acc)
                if i & uint32(31) == 0:
                    ptx.mbarrier_arrive(empty + uint32(8) * stage)
                stage = uint32(stage + uint32(1))
                if stage == uint32(STAGES):
                    stage, phase = uint32(0), uint32(phase ^ uint32(1))
            warp, lane = (i >> uint32(5)) & uint32(3), i & uint32(31)
            row = warp * uint32(16) + (lane >> uint32(2))
            for j in range(TILE // 8):
                column = uint32(8 * j) + (lane & uint32(3)) * uint32(2)
                c[row, column] = acc[4 * j]
                c[row, column + uint32(1)] = acc[4 * j + 1]
                c[row + uint32(8), column] = acc[4 * j + 2]
                c[row + uint32(8), column + uint32(1)] = acc[4 * j + 3]

    return product


def matrices(dtype, device="cpu"):
    torch.manual_seed(5)
    a, b = (torch.randn(TILE, DEPTH).to(getattr(torch, dtype)) for _ in range(2))
    maps = [ptx.tensor_map(x.to(device), (TILE, 64), swizzle=128) for x in (a, b)]
    right = 4 * (a.double() @ b.double().T)
    return maps, torch.zeros(TILE, TILE, device=device), right


@devices
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_warp_specialised_product(device, dtype):
    maps, c, right = matrices(dtype, device)
    warp_specialised(dtype)[1, 256](*maps, c)
    np.testing.assert_allclose(c.cpu().numpy(), right.numpy(), rtol=0, atol=3e-4)


@pytest.mark.parametrize("seed", [None, 0, 1])
def test_warp_specialised_product_without_findings(seed):
    maps, c, right = matrices("bfloat16")
    report = warp_specialised("bfloat16").report(1, 256, *maps, c, seed=seed)
    assert findings(report) == []
    np.testing.assert_allclose(c.numpy(), right.numpy(), rtol=0, atol=3e-4)
    assert report.tensor_flops == 2 * TILE * TILE * 4 * DEPTH


def test_warp_specialised_product_compiled():
    needs_compiler()
    kernel = warp_specialised("bfloat16")
    text = kernel.ptx(HOPPER, signature=("uint64", "uint64", "float32[:, :]"))
    for part in (
        "cp.async.bulk.tensor.2d",
        "mbarrier.try_wait",
        "setmaxnreg.inc",
        "wgmma.mma_async",
    ):
        assert part in text
    assert "0 bytes stack frame, 0 bytes spill stores" in assemble(text, HOPPER)


@functools.cache
def released_too_soon():
    """As above, but a stage is given back before its product has read it."""
    multiply = ptx.wgmma(TILE, k_steps=4)
    zeros, wait = ptx.wgmma_zeros(TILE), ptx.wgmma_wait(TILE, 0)

    @jit
    def product(map: "uint64", c):
        tile = cuda.shared.array(WORDS, uint32, alignment=1024)
        bars = cuda.shared.array(2, uint64)
        i = uint32(cuda.threadIdx.x)
        place, full = ptx.shared_address(tile), ptx.shared_address(bars)
        empty = uint32(full + uint32(8))
        if i == 0:
            ptx.mbarrier_init(full, 1)
            ptx.mbarrier_init(empty, 128)
            ptx.fence_mbarrier_init()
        cuda.syncthreads()
        if i >= uint32(128):
            if i == uint32(128):
                for k in range(4):
                    ptx.mbarrier_wait(empty, uint32(k & 1) ^ uint32(1))
                    ptx.mbarrier_arrive_expect_tx(full, TILE * 128)
                    ptx.tma_load_2d(place, map, 64 * (k & 1), 0, full)
        else:
            acc = zeros()
            for k in range(4):
                ptx.mbarrier_wait(full, uint32(k & 1))
                d = ptx.wgmma_descriptor(place, 0, 1024, 128)
                ptx.wgmma_fence()
                acc = multiply(acc, d, d, k > 0)
                ptx.wgmma_commit()
                ptx.mbarrier_arrive(empty)
                acc = wait(acc)
            c[i] = acc[0]

    return product


def test_a_stage_given_back_too_soon():
    torch.manual_seed(5)
    x = torch.randn(TILE, DEPTH).to(torch.bfloat16)
    kernel = released_too_soon()
    load, product = (line_of(kernel.function, t) for t in ("tma_load_2d(", "= multiply("))
    report = kernel.report(1, 160, ptx.tensor_map(x, (TILE, 64), 128), torch.zeros(128))
    races = [f for f in report.findings if f.kind == "race"]
    assert any({load, product} <= set(f.lines) for f in races), report.findings
