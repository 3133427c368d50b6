"""Runs of bytes, and what blocks of a cluster send each other."""

import functools

import numpy as np
import pytest
import torch
from ptx_tiles import devices, findings, on

from cuda_numba import jit, ptx
from cuda_numba.namespace import cuda, uint32, uint64


@functools.cache
def run_kernel(how):
    store = getattr(ptx, how)

    @jit
    def kernel(x, y):
        tile, bars = cuda.shared.array(64, uint32, alignment=16), cuda.shared.array(1, uint64)
        i = cuda.threadIdx.x
        bar, place = ptx.shared_address(bars), ptx.shared_address(tile)
        if i == 0:
            ptx.mbarrier_init(bar, 1)
            ptx.fence_proxy_async()
            ptx.bulk_prefetch(ptx.global_address(x), 256)
            ptx.mbarrier_arrive_expect_tx(bar, 256)
            ptx.bulk_load(place, ptx.global_address(x), 256, bar)
            ptx.mbarrier_wait(bar, 0)
            store(ptx.global_address(y), place, 128)
            ptx.bulk_commit()
            store(ptx.global_address(y) + uint64(128), place + uint32(128), 128)
            ptx.bulk_commit()
            ptx.bulk_wait_read(1)
            ptx.bulk_wait(0)

    return kernel


HOW = {
    "bulk_store": "int32",
    "bulk_reduce_add_f32": "float32",
    "bulk_reduce_add_f16": "float16",
    "bulk_reduce_add_bf16": "bfloat16",
}


@devices
@pytest.mark.parametrize("how", HOW)
def test_runs(device, how):
    count = 64 if HOW[how].endswith("32") else 128
    if how == "bulk_store":
        x, y = torch.arange(count, dtype=torch.int32), torch.zeros(count, dtype=torch.int32)
        right = x.clone()
    else:
        torch.manual_seed(0)
        x, y = torch.randn(2, count).to(getattr(torch, HOW[how]))
        right = (x.float() + y.float()).to(x.dtype)
    x, y = x.to(device), y.clone().to(device)
    run_kernel(how)[1, 32](x, y)
    assert torch.equal(y.cpu(), right)


@pytest.mark.parametrize("seed", [0, 1])
def test_runs_without_findings(seed):
    x, y = np.arange(64, dtype=np.float32), np.ones(64, np.float32)
    report = run_kernel("bulk_reduce_add_f32").report(1, 32, x, y, seed=seed)
    assert findings(report) == []
    np.testing.assert_array_equal(y, x + 1)


@devices
def test_sums_of_float32_keep_subnormals(device):
    """Operands and sums below 2**-126 count, unlike those of ordinary atomics."""
    tiny = float(np.finfo(np.float32).tiny)
    x = torch.tensor([tiny / 2, tiny * 1.5, -tiny, 1.0]).repeat(16)
    y = torch.tensor([tiny, -tiny, tiny / 2, tiny / 2]).repeat(16)
    right = torch.tensor([tiny * 1.5, tiny / 2, -tiny / 2, 1.0]).repeat(16)
    x, y = x.to(device), y.to(device)
    run_kernel("bulk_reduce_add_f32")[1, 32](x, y)
    assert torch.equal(y.cpu(), right)


# ---- clusters


@jit
def multicast(map: "uint64", y):
    """Each of two blocks loads half a tile for both."""
    tile = cuda.shared.array(128, uint32, alignment=128)
    bars = cuda.shared.array(1, uint64)
    i = cuda.threadIdx.x
    bar, rank = ptx.shared_address(bars), ptx.cluster_rank()
    if i == 0:
        ptx.mbarrier_init(bar, 1)
        ptx.fence_mbarrier_init()
    ptx.cluster_sync()
    if i == 0:
        ptx.mbarrier_arrive_expect_tx(bar, 512)
        place = ptx.shared_address(tile) + uint32(256) * rank
        ptx.tma_load_2d_multicast(place, map, 0, uint32(2) * rank, bar, 3)
    ptx.mbarrier_wait(bar, 0)
    for k in range(2):
        y[128 * cuda.blockIdx.x + 64 * k + i] = tile[64 * k + i]
    ptx.cluster_sync()


@devices
def test_multicast(device):
    x = np.arange(128, dtype=np.uint32).reshape(4, 32)
    source, y = on(device, x, np.zeros(256, np.uint32))
    map = ptx.tensor_map(source, (2, 32))
    multicast.launch(2, 64, map, y, cluster=2)
    np.testing.assert_array_equal(y.cpu().numpy(), np.tile(x.reshape(-1), 2))


@pytest.mark.parametrize("seed", [None, 1, 2])
def test_multicast_without_findings(seed):
    x, y = np.arange(128, dtype=np.uint32).reshape(4, 32), np.zeros(256, np.uint32)
    map = ptx.tensor_map(x, (2, 32))
    report = multicast.report(2, 64, map, y, cluster=2, seed=seed)
    assert findings(report) == []
    np.testing.assert_array_equal(y, np.tile(x.reshape(-1), 2))


@jit
def send(x, y):
    """Each block sends its words to the other one."""
    mine, theirs = cuda.shared.array(64, uint32), cuda.shared.array(64, uint32)
    bars = cuda.shared.array(1, uint64)
    i, b = cuda.threadIdx.x, cuda.blockIdx.x
    bar, other = ptx.shared_address(bars), ptx.cluster_rank() ^ uint32(1)
    mine[i] = x[64 * b + i]
    if i == 0:
        ptx.mbarrier_init(bar, 1)
        ptx.fence_mbarrier_init()
        ptx.mbarrier_arrive_expect_tx(bar, 256)
    ptx.fence_proxy_async_shared()
    ptx.cluster_sync()
    if i == 0:
        there = ptx.mapa(ptx.shared_address(theirs), other)
        ptx.bulk_send(there, ptx.shared_address(mine), 256, ptx.mapa(bar, other))
    ptx.mbarrier_wait(bar, 0)
    y[64 * b + i] = theirs[i]
    ptx.cluster_sync()


@devices
def test_send(device):
    x, y = on(device, np.arange(128, dtype=np.uint32), np.zeros(128, np.uint32))
    send.launch(2, 64, x, y, cluster=2)
    np.testing.assert_array_equal(y.cpu().numpy(), np.roll(np.arange(128), 64))
