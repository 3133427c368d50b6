"""The launch on a GPU: results, streams, graphs, clusters, large shared memory, time."""

import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from numba.core import types

from cuda_numba import driver, jit, launch, ptx
from cuda_numba.compiler import Options
from cuda_numba.inspect import compile_kernel
from cuda_numba.launch_paths import time_launch_paths
from cuda_numba.namespace import cuda, float32, int32  # noqa: F401  named in annotations

pytestmark = pytest.mark.gpu
F32 = types.CPointer(types.float32)


def add_kernel():
    def add(a: "float32", b: "float32", out: "float32", n: "int32"):
        i = cuda.grid(1)
        if i < n:
            out[i] = a[i] + b[i]

    return add, (F32, F32, F32, types.int32)


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_NUMBA_CACHE", str(tmp_path))


def on_gpu(n=1000):
    a, b = torch.randn(2, n, device="cuda")
    return a, b, torch.zeros(n, device="cuda")


@pytest.mark.parametrize("lto", [False, True])
def test_gpu_runs_the_code_that_was_looked_at(lto, own_cache):
    fn, signature = add_kernel()
    compiled = launch.load(fn, signature, 0, Options(lto=lto))
    assert launch.load(fn, signature, 0, Options(lto=lto)) is compiled
    assert compiled.code is compile_kernel(fn, signature, compiled.code.cc, Options(lto=lto))
    a, b, out = on_gpu()
    compiled.launch(8, 128, (a, b, out, 1000))
    torch.testing.assert_close(out, a + b, rtol=0, atol=0)


def test_gpu_arrays_scalars_and_strides(own_cache):
    def mixed(x, y, k, s, on):
        i, j = cuda.grid(2)
        if i < x.shape[0] and j < x.shape[1] and on:
            y[j, i] = x[i, j] * s + k

    x = torch.randn(17, 23, device="cuda")[:, ::2]
    y = torch.zeros(12, 17, device="cuda")
    signature = (
        types.Array(types.float32, 2, "A"), types.Array(types.float32, 2, "C"), types.int64,
        types.float32, types.boolean,
    )  # fmt: skip
    launch.load(mixed, signature, 0).launch((2, 2), (16, 16), (x, y, 3, np.float32(2), True))
    torch.testing.assert_close(y, (x * 2 + 3).t())


def test_gpu_errors_name_the_argument(own_cache):
    fn, signature = add_kernel()
    compiled = launch.load(fn, signature, 0)
    a, b, out = on_gpu()
    for args, error, text in (
        ((a, b.cpu(), out, 1), ValueError, "add: b is on cpu, the launch is on cuda:0"),
        ((a, b, out.half(), 1), TypeError, "add: out is float16"),
        ((a[::2], b, out, 1), ValueError, "add: a is not contiguous"),
        ((a, b, out, 2**40), ValueError, "add: n is .* does not fit int32"),
    ):
        with pytest.raises(error, match=text):
            compiled.launch(8, 128, args)


def test_gpu_streams_and_threads(own_cache):
    fn, signature = add_kernel()
    compiled = launch.load(fn, signature, 0)
    a, b, out = on_gpu()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(10_000_000)
        compiled.launch(8, 128, (a, b, out, 1000))
        assert not side.query()  # it waits behind the sleep: it is on this stream
    side.synchronize()
    torch.testing.assert_close(out, a + b)
    errors = []

    def elsewhere():
        try:
            compiled.launch(8, 128, (a, a, out, 1000))
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    torch.cuda.synchronize()
    assert not errors
    torch.testing.assert_close(out, a + a)
    numba_stream = cuda.external_stream(side.cuda_stream)
    for stream in (side, side.cuda_stream, numba_stream, torch.cuda.default_stream()):
        out.zero_()
        torch.cuda.synchronize()
        compiled.launch(8, 128, (a, b, out, 1000), stream=stream)
        torch.cuda.synchronize()
        torch.testing.assert_close(out, a + b)


def test_gpu_graphs(own_cache):
    fn, signature = add_kernel()
    a, b, out = on_gpu()
    graph = torch.cuda.CUDAGraph()
    with pytest.raises(RuntimeError, match="cannot be loaded while a CUDA graph is captured"):
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            out.zero_()  # PyTorch warns of an empty graph
            launch.load(fn, signature, 0)
    compiled = launch.load(fn, signature, 0)
    compiled.launch(8, 128, (a, b, out, 1000))
    with torch.cuda.graph(graph):
        compiled.launch(8, 128, (a, b, out, 1000))
        compiled.launch(8, 128, (out, b, out, 1000))
    a.fill_(1)
    b.fill_(2)
    out.zero_()
    graph.replay()
    torch.cuda.synchronize()
    assert (out == 5).all()


def test_gpu_large_shared_memory(own_cache):
    def reverse(x: "float32", n: "int32"):
        held = cuda.shared.array(0, float32)
        t = cuda.threadIdx.x
        for i in range(t, n, cuda.blockDim.x):
            held[i] = x[i]
        cuda.syncthreads()
        for i in range(t, n, cuda.blockDim.x):
            x[i] = held[n - 1 - i]

    n = 15_000  # 60,000 bytes
    x = torch.randn(n, device="cuda")
    expected = x.flip(0)
    compiled = launch.load(reverse, (F32, types.int32), 0)
    compiled.launch(1, 256, (x, n), smem=4 * n)
    torch.testing.assert_close(x, expected, rtol=0, atol=0)
    with pytest.raises(ValueError, match="smem is 1000000 bytes"):
        compiled.launch(1, 256, (x, n), smem=1_000_000)


def test_gpu_clusters_and_cooperative_grids(own_cache):
    def rotate(x: "float32", y: "float32", n: "int32"):
        grid = cuda.cg.this_grid()
        i = cuda.grid(1)
        y[i] = x[i] + float32(1.0)
        grid.sync()
        x[i] = y[n - 1 - i]

    n = 64 * 128
    x, y = torch.randn(2, n, device="cuda")
    expected = x.flip(0) + 1
    launch.load(rotate, (F32, F32, types.int32), 0).launch(64, 128, (x, y, n), cooperative=True)
    torch.testing.assert_close(x, expected)
    if driver.compute_capability(0) < (9, 0):
        pytest.skip("clusters need compute capability 9.0")
    fn, signature = add_kernel()
    a, b, out = on_gpu()
    for cluster in (1, 2, 4, 8):
        out.zero_()
        compiled = launch.load(fn, signature, 0)
        compiled.launch(8, 128, (a, b, out, 1000), cluster=cluster, pdl=True)
        torch.testing.assert_close(out, a + b)


def test_gpu_driver_links_ptx():
    text = """.version 7.8
.target sm_70
.address_size 64
.visible .entry k(.param .u64 x) { ret; }
"""
    code, log = driver.link(text)
    assert code[:4] == b"\x7fELF" and "registers" in log
    with pytest.raises(RuntimeError, match="nonsense"):
        driver.link(text.replace("ret;", "nonsense;"))


def test_gpu_launch_is_quick(own_cache):
    rows = {row["path"]: row.get("seconds", row.get("error")) for row in time_launch_paths()}
    assert not [v for v in rows.values() if isinstance(v, str)], rows
    assert rows["compiled.launch"] < 20e-6 and rows["CUDA graph replay"] < 5e-6, rows


def test_gpu_a_second_process_finds_the_code_on_disk(own_cache):
    script = (
        "from cuda_numba import build, launch\nfrom cuda_numba.launch_paths import *\n"
        "build._compile, made = (lambda *a, f=build._compile: made.append(1) or f(*a)), []\n"
        "launch.load(kernel_function(), SIGNATURE, 0)\nprint(len(made))\n"
    )
    counts = [
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout
        for _ in range(2)
    ]
    assert counts == ["1\n", "0\n"]


def test_gpu_kernel_object(own_cache):
    @jit(pointers=True)
    def double(x: ("float32", "float16"), n: "int32"):  # noqa: F821
        i = cuda.grid(1)
        if i < n:
            ptx.store(x, i, float32(2) * ptx.load(x, i))

    for dtype in (torch.float32, torch.float16, torch.float32):
        x = torch.randn(100, device="cuda").to(dtype)
        expected = x * 2
        double[1, 128](x, 100)
        torch.testing.assert_close(x, expected)
    assert len(double.known) == 2
    on_cpu = torch.ones(100)
    double[1, 128](on_cpu, 100)
    assert (on_cpu == 2).all()
