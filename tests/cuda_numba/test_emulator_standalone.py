"""Where numba-cuda is not installed (macOS), everything but the GPU and its code still works."""

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent
# Before anything else is imported: no part of numba.cuda can be found, as on macOS.
BLOCK = """
import importlib.abc, sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("numba_cuda", "cuda", "triton") or name.startswith("numba.cuda"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
"""
OPERATIONS = """
import torch
import cuda_numba
from cuda_numba import cuda, emulate, jit, launches, ptx
from cuda_numba.namespace import HAS_NUMBA_CUDA, float32

assert not HAS_NUMBA_CUDA
assert not any(m == "numba_cuda" or m.startswith("numba.cuda.") for m in sys.modules)
torch.manual_seed(0)

def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)

F = torch.nn.functional
x, w, b = torch.randn(3, 64), torch.randn(64), torch.randn(64)
with launches() as log:
    close(cuda_numba.softmax(x), x.softmax(-1))
    close(cuda_numba.layer_norm(x, w, b, 1e-5), F.layer_norm(x, (64,), w, b))
    close(cuda_numba.rms_norm(x, w, 1e-6), F.rms_norm(x, (64,), w, 1e-6))
    close(cuda_numba.gelu(x), F.gelu(x))
    close(cuda_numba.swiglu(x, 2 * x), F.silu(x) * 2 * x)
    close(cuda_numba.vector_add(x, x), 2 * x)
    close(cuda_numba.row_sum(x), x.sum(-1))
    ids = torch.randint(0, 9, (5,))
    table = torch.randn(9, 64)
    close(cuda_numba.embedding(ids, table), table[ids])
    close(cuda_numba.cross_entropy(x, ids[:3]), F.cross_entropy(x, ids[:3]))
assert len(log) >= 9 and all(launch.device == "emulator" for launch in log)

@jit
def twice(x, out):
    i = cuda.grid(1)
    if i < out.shape[0]:
        out[i] = float32(2) * ptx.load(x, i)

out = torch.zeros(64)
assert twice.report(2, 32, w, out).findings == []
close(out, 2 * w)
try:
    cuda.syncthreads()
except TypeError as error:
    assert "numba-cuda is not installed" in str(error)
else:
    raise AssertionError("cuda.syncthreads() outside a kernel must say what is wrong")
print("all right")
"""


def run(code: str, folder: Path) -> str:
    script = folder / "script.py"  # a file: the emulator reads the source of kernels
    script.write_text(BLOCK + code, encoding="utf-8")
    root = str(TESTS.parent.parent)
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": root},
        cwd=root,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def test_the_operations_without_numba_cuda(tmp_path):
    assert "all right" in run(OPERATIONS, tmp_path)


def test_the_tests_of_the_emulator_without_numba_cuda(tmp_path):
    names = ["test_emulator", "test_emulator_examples", "test_report", "test_ptx_atomic"]
    names += ["test_emulator_algorithms", "test_emulator_refusals"]
    files = [str(TESTS / f"{name}.py") for name in names]
    options = ["-q", "-p", "no:cacheprovider", *files]
    code = f"import pytest\nraise SystemExit(pytest.main({options}))"
    last = run(code, tmp_path).strip().splitlines()[-1]
    assert "passed" in last and "failed" not in last
