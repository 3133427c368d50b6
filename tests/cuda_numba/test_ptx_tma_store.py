"""TMA stores and sums: boxes, edges, formats and swizzles, and that nothing else is written."""

import numpy as np
import pytest
import torch
from ptx_boxes import (
    BOXES,
    PLACES,
    RANKS,
    SHAPES,
    THREADS,
    UNTOUCHED,
    beside,
    store_kernel,
    tensor_of,
)
from ptx_tiles import devices, findings, on

from cuda_numba import jit, ptx
from cuda_numba.namespace import cuda, uint16, uint64

GUARD = 4096  # bytes before and after a tensor: more than from it to any box beside it
ranks = pytest.mark.parametrize("rank", RANKS)


def guarded(device, x):
    """A tensor there over a copy of the array, and all the bytes around it."""
    around = np.full(GUARD + x.nbytes + GUARD, UNTOUCHED & 0xFF, np.uint8)
    around[GUARD : GUARD + x.nbytes] = x.reshape(-1).view(np.uint8)
    (around,) = on(device, around)
    kind = getattr(torch, str(x.dtype))
    return around[GUARD : GUARD + x.nbytes].view(kind).view(x.shape), around


def written(x, new, place, add):
    """The array after a box of it has been stored or added to."""
    right = x.copy()
    inside = tuple(slice(p, p + n) for p, n in zip(place, new.shape, strict=True))
    cut = tuple(slice(n) for n in right[inside].shape)
    right[inside] = right[inside] + new[cut] if add else new[cut]
    return right


def check_store(device, rank, place, how="store", dtype="float32", seed=None):
    x = tensor_of(SHAPES[rank], dtype)
    new = tensor_of(BOXES[rank], dtype, seed=1)
    tensor, around = guarded(device, x)
    (words,) = on(device, new.reshape(-1).view(np.uint32))
    map = ptx.tensor_map(tensor, BOXES[rank])
    kernel = store_kernel(rank, map.nbytes, how)
    at = torch.tensor(place[::-1], dtype=torch.int32, device=device)
    if seed is None:
        kernel[1, THREADS](map, at, words)
    else:
        report = kernel.report(1, THREADS, map, at, words, seed=seed)
        assert findings(report) == []
    right = written(x, new, place, how == "reduce_add")
    np.testing.assert_array_equal(tensor.cpu().numpy(), right)
    outside = torch.cat([around[:GUARD], around[-GUARD:]])
    assert (outside == UNTOUCHED & 0xFF).all(), "bytes before or after the tensor were written"


@devices
@ranks
@pytest.mark.parametrize("place", ["inside", "over", "outside"])
def test_store(device, rank, place):
    check_store(device, rank, PLACES[rank][place])


@devices
@ranks
@pytest.mark.parametrize("how", ["store", "reduce_add"])
def test_a_box_beside_the_tensor_writes_nothing(device, rank, how):
    """Outside in one dimension is outside: the rows that follow are not written."""
    for place in beside(rank, "after"):
        check_store(device, rank, place, how)


@devices
@ranks
@pytest.mark.parametrize("dtype", ["float32", "int32"])
def test_reduce_add(device, rank, dtype):
    check_store(device, rank, PLACES[rank]["over"], "reduce_add", dtype)


@devices
@pytest.mark.parametrize("dtype", ["uint32", "uint64", "int64", "float16"])
def test_reduce_add_of_other_formats(device, dtype):
    check_store(device, 2, (2, 8), "reduce_add", dtype)


@devices
def test_reduce_add_of_bfloat16(device):
    """Sums are rounded to the nearest bfloat16."""
    torch.manual_seed(0)
    x, new = torch.randn(2, 6, 16).to(torch.bfloat16)
    tensor, words = x.clone().to(device), new.view(torch.uint32).reshape(-1).to(device)
    map = ptx.tensor_map(tensor, (6, 16))
    at = torch.zeros(2, dtype=torch.int32, device=device)
    store_kernel(2, map.nbytes, "reduce_add")[1, THREADS](map, at, words)
    assert torch.equal(tensor.cpu(), (x.float() + new.float()).to(torch.bfloat16))


@devices
def test_sums_of_float32_keep_subnormals(device):
    """As those of runs of bytes do: operands and sums below 2**-126 count."""
    tiny = np.finfo(np.float32).tiny
    x, new = tiny * np.float32([[0.5, 1.5, -1, 0]] * 4), tiny * np.float32([[1, -1, 0.5, 0.25]] * 4)
    tensor, words = on(device, x, new.reshape(-1).view(np.uint32))
    map = ptx.tensor_map(tensor, (4, 4))
    at = torch.zeros(2, dtype=torch.int32, device=device)
    store_kernel(2, map.nbytes, "reduce_add")[1, THREADS](map, at, words)
    right = tiny * np.float32([[1.5, 0.5, -0.5, 0.25]] * 4)
    np.testing.assert_array_equal(tensor.cpu().numpy(), right)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_store_without_findings(seed):
    check_store("cpu", 2, (2, 8), seed=seed)
    check_store("cpu", 2, (2, 8), "reduce_add", seed=seed)


@jit
def swizzled_store(map: "uint64", x):
    """Writes a box the way the 128-byte swizzle wants it; the copy puts it in order."""
    tile = cuda.shared.array(8 * 64, uint16, alignment=1024)
    i = cuda.threadIdx.x
    for row in range(8):
        piece, within = i >> 3, i & 7
        tile[row * 64 + ((piece ^ row) << 3) + within] = x[row * 64 + i]
    ptx.fence_proxy_async_shared()
    cuda.syncthreads()
    if i == 0:
        ptx.tma_store_2d(map, 0, 0, ptx.shared_address(tile))
        ptx.bulk_commit()
        ptx.bulk_wait(0)


@devices
def test_store_swizzled(device):
    x = np.arange(8 * 64, dtype=np.uint16).reshape(8, 64)
    target, source = on(device, np.zeros_like(x), x.reshape(-1))
    swizzled_store[1, 64](ptx.tensor_map(target, (8, 64), swizzle=128), source)
    np.testing.assert_array_equal(target.cpu().numpy(), x)
