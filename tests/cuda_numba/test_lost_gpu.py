"""One GPU test faults: it fails, those after it run all the same."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

# What a faulting kernel does to a process, without a GPU.
TORCH = """
lost = False

class cuda:
    def synchronize():
        if lost:
            raise RuntimeError("CUDA error: an illegal instruction was encountered")
"""
TESTS = """
import pytest
import torch

@pytest.mark.gpu
def test_before():
    assert not torch.lost

@pytest.mark.gpu
def test_faults():
    torch.lost = True

@pytest.mark.gpu
@pytest.mark.parametrize("right", [True, False])
def test_after(right):
    assert not torch.lost and right

def test_without_gpu():
    assert torch.lost
"""


@pytest.mark.slow
def test_a_fault_is_one_tests_own(tmp_path):
    shutil.copy(Path(__file__).with_name("conftest.py"), tmp_path)
    (tmp_path / "torch.py").write_text(TORCH)
    (tmp_path / "test_faulty.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu: needs a GPU\n")
    env = {name: v for name, v in os.environ.items() if not name.startswith("PYTEST_")}
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rA", "--tb=short", tmp_path],
        cwd=tmp_path, env=env, capture_output=True, text=True,
    )  # fmt: skip
    lines = ran.stdout.splitlines()
    for line in (
        "PASSED test_faulty.py::test_before",
        "PASSED test_faulty.py::test_after[True]",
        "PASSED test_faulty.py::test_without_gpu",
    ):
        assert line in lines, ran.stdout
    assert "1 failed, 4 passed, 1 error" in lines[-1], ran.stdout
    assert "an illegal instruction was encountered" in ran.stdout
    assert "in a process of its own, after test_faulty.py::test_faults" in ran.stdout
