"""The kernel object: both machines, its checks, its compiler, and the record of launches."""

import importlib
import subprocess
import sys

import numpy as np
import pytest
import torch

import cuda_numba
from cuda_numba import jit, launches
from cuda_numba.inspect import has_compiler
from cuda_numba.namespace import cuda, float32

jit_module = importlib.import_module("cuda_numba.jit")
needs_compiler = pytest.mark.skipif(not has_compiler(), reason="needs numba-cuda's compiler")


@jit
def add(a, b, out):
    i = cuda.grid(1)
    if i < out.shape[0]:
        out[i] = a[i] + b[i]


@jit(device=True)
def twice(x):
    return x + x


@jit(pointers=True, launch_bounds=(64, 1))
def scaled(x: ("float32", "float64"), out: "float32", n: "int32", factor: "float32"):  # noqa: F821
    i = cuda.grid(1)
    if i < n:
        out[i] = twice(x[i]) * factor


def run_scaled(x, factor=0.5):
    out = torch.full((x.numel(),), torch.nan, device=x.device)
    scaled[-(-x.numel() // 64), 64](x, out, x.numel(), factor)
    return out


def test_cpu_tensors_and_arrays_run_on_the_emulator():
    a, b, out = torch.randn(100), torch.randn(100), torch.empty(100)
    add[2, 64](a, b, out)
    assert torch.equal(out, a + b)
    other = np.empty(100, np.float32)
    add[2, 64, 0](a.numpy(), b.numpy(), other)
    assert np.array_equal(other, out.numpy())


def test_pointers_and_device_functions():
    x = torch.randn(77)
    assert torch.equal(run_scaled(x), x)
    assert torch.equal(run_scaled(x, 1.0), 2 * x)


def test_launches_are_recorded_in_order():
    x = torch.randn(10)
    with launches() as log:
        run_scaled(x)
        add[1, 32](x, x, torch.empty(10))
    run_scaled(x)
    assert [(launch.name, launch.device, launch.block) for launch in log] == [
        ("scaled", "emulator", 64),
        ("add", "emulator", 32),
    ]
    assert str(log[0].signature[2]) == "int32" and str(log[0].signature[3]) == "float32"


def test_nested_records_both_hear():
    x = torch.randn(4)
    with launches() as outer:
        with launches() as inner:
            run_scaled(x)
        run_scaled(x)
    assert (len(outer), len(inner)) == (2, 1)


def test_a_record_holds_the_emulators_report():
    x = torch.randn(10)
    with launches() as plain, launches(report=True) as log:
        run_scaled(x)
        add[1, 32](x, x, torch.empty(10))
    assert [launch.report.kernel for launch in log] == ["scaled", "add"]
    assert (log[1].report.reads, log[1].report.writes, log[1].report.races) == (80, 40, [])
    assert plain[0].report is log[0].report
    with launches() as log:
        run_scaled(x)
    assert log[0].report is None


class OnGpu:
    """What a launch takes for an array on a GPU."""

    is_cuda, dtype, shape = True, torch.float32, (4,)


def test_reports_of_a_gpu_are_refused():
    with launches(report=True) as log:
        with pytest.raises(
            RuntimeError, match=r"add: launches\(report=True\) takes its reports fr"
        ):
            add[1, 32](OnGpu(), OnGpu(), OnGpu())
    assert log == []


class Loaded:
    """What a GPU would have loaded: launchers that count, and fail over for what is no number."""

    def __init__(self, name):
        self.name, self.bound, self.launched, self.signature = name, [], [], (name,)

    def bind(self, grid, block, stream, smem, otherwise, current, logs):
        self.bound.append((grid, block, stream, smem))

        def launcher(*args):
            if current[0] is self and not logs and args[0] is self.name:
                return self.launched.append(args)
            return otherwise(*args)

        return launcher


def test_a_launcher_is_kept_for_each_configuration(monkeypatch):
    @jit
    def busy(x):
        pass

    one, two = Loaded("one"), Loaded("two")
    looked_at = []

    def look(grid, block, args, **options):
        looked_at.append(args)
        busy.known[:] = [one if args[0] == "one" else two]
        return busy.known[0].signature

    monkeypatch.setattr(busy, "launch_on_gpu", look)
    monkeypatch.setattr(jit_module, "is_cuda", lambda value: value in ("one", "two"))
    held = busy[2, 32]
    held("one")
    held("one")
    assert busy[2, 32] is busy[2, 32] and one.bound == [(2, 32, 0, 0)]
    busy[2, 32]("one")
    assert (len(looked_at), len(one.launched)) == (1, 2)
    quick = busy[(2, 1), (8, 4), 0, 64]
    assert quick is busy[(2, 1), (8, 4), 0, 64] and one.bound[-1] == ((2, 1), (8, 4), 0, 64)
    quick("two")  # another signature
    assert looked_at[-1] == ("two",) and busy.signature() == ("two",)
    quick("one")  # a launcher that was kept does not launch what is no longer the last
    assert looked_at[-1] == ("one",) and busy.signature() == ("one",)
    with launches() as log:
        busy[2, 32]("one")
    assert [launch.signature for launch in log] == [("one",)] and len(one.launched) == 2


def test_what_may_change_is_no_key(monkeypatch):
    @jit
    def busy(x):
        pass

    busy.known.append(loaded := Loaded("one"))
    blocks = torch.tensor(3)
    for configuration in ((blocks, 32), ([2], 32), (2, 32, object())):
        assert busy[configuration] is not busy[configuration]
    assert len(loaded.bound) == 6 and busy._ready == {}
    monkeypatch.setattr(jit_module, "CONFIGURATIONS", 3)
    for blocks in range(1, 9):
        busy[blocks, 32]
    assert list(busy._ready) == [(7, 32), (8, 32)]


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"x": torch.zeros(4, 2).t()}, ValueError, "scaled: x is not contiguous"),
        ({"x": torch.zeros(8, dtype=torch.float16)}, TypeError, "scaled: x is float16, allowed"),
        ({"x": 1.0}, TypeError, "scaled: x is a number"),
        ({"x": [1.0]}, TypeError, "scaled: x is list"),
        ({"n": 2**31}, ValueError, "scaled: n is 2147483648, which does not fit int32"),
        ({"n": 1.5}, TypeError, "scaled: n is 1.5, expected an integer"),
        ({"out": torch.zeros(8, dtype=torch.complex64)}, TypeError, "scaled: out is complex64"),
        (
            {"factor": (1, torch.zeros(2))},
            TypeError,
            "scaled: factor is a tuple whose part 1 is Ten",
        ),
    ],
)
def test_a_wrong_argument_is_named(change, error, words):
    args = {"x": torch.zeros(8), "out": torch.zeros(8), "n": 8, "factor": 1.0} | change
    with pytest.raises(error, match=words):
        scaled[1, 64](*args.values())


def test_wrong_uses():
    with pytest.raises(TypeError, match="launch it with add"):
        add(1, 2, 3)
    with pytest.raises(TypeError, match="device function"):
        twice(1.0)
    with pytest.raises(TypeError, match="device function"):
        twice[1, 1](torch.zeros(1))
    with pytest.raises(ValueError, match="expected"):
        add[3]
    with pytest.raises(TypeError, match="takes 3 arguments"):
        add[1, 1](torch.zeros(1))
    with pytest.raises(TypeError, match="parameter x is annotated 'float33'"):

        @jit
        def wrong(x: "float33"):  # noqa: F821
            pass


def test_report_is_of_the_same_kernel():
    x, out = torch.randn(64), torch.empty(64)
    report = scaled.report(1, 64, x, out, 64, 0.5)
    assert torch.equal(out, x)
    assert (report.kernel, report.reads, report.writes) == ("scaled", 256, 256)


@needs_compiler
def test_ptx_without_a_gpu():
    ptx = add.ptx((9, 0), signature=("float32[:]", "float32[:]", "float32[:]"))
    assert ".target sm_90a" in ptx and "add.f32" in ptx.replace("add.rn.f32", "add.f32")
    resources = scaled.resources((8, 0), signature=("float32[:]", "float32[:]", None, None))
    assert 0 < resources.registers <= 64 and resources.spill_stores == 0


@needs_compiler
def test_a_signature_is_needed_once():
    @jit
    def fresh(x, out):
        out[0] = x[0] + float32(1)

    with pytest.raises(TypeError, match="no type is known for x"):
        fresh.ptx((9, 0))
    fresh[1, 1](torch.zeros(1), torch.zeros(1))
    assert "add" in fresh.ptx((9, 0))  # as it was launched


@needs_compiler
def test_the_body_compiles_under_plain_numba():
    from numba import cuda as numba_cuda

    for kernel, text in (
        (add, ("float32[:]",) * 3),
        (scaled, ("float32[:]", "float32[:]", None, None)),
    ):
        signature = kernel.signature(text)
        ptx, _ = numba_cuda.compile(
            kernel.function, signature, cc=(9, 0), device=False, abi="numba"
        )
        assert ".entry" in ptx


@needs_compiler
def test_equal_launches_have_equal_ptx():
    x = torch.randn(10)
    with launches() as log:
        run_scaled(x)
        run_scaled(x + 1, 3.0)
        add[1, 32](x, x, torch.empty(10))
    first, second, other = (launch.ptx_sha256 for launch in log)
    assert first == second != other


NAMES = """
import importlib, sys
{imports}
import cuda_numba
for name in cuda_numba.__all__:
    value = getattr(cuda_numba, name)
    if name not in ("ptx", "emulator", "cuda"):
        assert callable(value), name
from cuda_numba import softmax, jit
assert softmax.__name__ == "softmax" and jit.__name__ == "jit"
assert importlib.import_module("cuda_numba.softmax").softmax is softmax
"""


@pytest.mark.parametrize(
    "imports",
    ["", "import cuda_numba.softmax, cuda_numba.jit", "from cuda_numba.softmax import softmax"],
)
def test_a_name_is_the_function_after_any_imports(imports):
    done = subprocess.run(
        [sys.executable, "-c", NAMES.format(imports=imports)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_importing_the_package_costs_nothing():
    code = "import sys, cuda_numba; assert not {'numba', 'torch', 'numpy'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        cuda_numba.nothing  # noqa: B018


@pytest.mark.gpu
def test_on_a_gpu():
    x = torch.randn(1000, device="cuda")
    with launches() as log:
        assert torch.equal(run_scaled(x), x)
    assert log[0].device == "cuda"
    for _ in range(3):  # the quick way
        assert torch.equal(run_scaled(x), x)
    assert torch.equal(run_scaled(x.double(), 1.0), 2 * x)  # another signature
    assert torch.equal(run_scaled(x.cpu()), x.cpu())  # and the other machine
    assert torch.equal(run_scaled(x, 1.0), 2 * x)
    with pytest.raises(ValueError, match="b|cpu"):
        add[1, 32](x, x.cpu(), x)


@pytest.mark.gpu
def test_captured_in_a_graph():
    x, out = torch.randn(64, device="cuda"), torch.zeros(64, device="cuda")
    scaled[1, 64](x, out, 64, 0.5)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        scaled[1, 64](x, out, 64, 0.5)
    x.fill_(3.0)
    out.zero_()
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(out, x)
