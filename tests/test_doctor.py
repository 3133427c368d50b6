"""The advice, for machines that are not at hand; and that looking at this one works."""

import ctypes
import io
import json
import os
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from minilm import machine
from minilm.doctor import diagnose, version_tuple
from minilm.doctor import doctor as run_doctor
from minilm.machine import Facts, look

LAPTOP = Facts()
MAC = Facts(system="Darwin", machine="arm64", mps=True, numba_cuda=None, nvrtc=None)
WINDOWS = Facts(system="Windows", machine="AMD64")
H100 = Facts(
    torch_cuda="13.0",
    torch_sees_gpu=True,
    bf16=True,
    driver="580.95.05",
    driver_cuda=(13, 0),
    gpus=(("NVIDIA H100 80GB HBM3", (9, 0)),),
)
# A Colab machine: its driver is for CUDA 12, and so is the torch that is there already.
T4 = replace(
    H100,
    torch_cuda="12.6",
    bf16=False,
    driver="550.54.15",
    driver_cuda=(12, 4),
    gpus=(("Tesla T4", (7, 5)),),
)


def named(facts, name):
    (finding,) = [finding for finding in diagnose(facts) if finding.name == name]
    return finding


def problems(facts):
    return [finding.name for finding in diagnose(facts) if finding.level == "problem"]


@pytest.mark.parametrize("facts", [LAPTOP, MAC, WINDOWS, H100])
def test_a_sound_machine_has_no_problem(facts):
    assert problems(facts) == []


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"python": (3, 9, 6)}, "python"),
        ({"python": (3, 15, 0)}, "python"),
        ({"numpy": "2.5.0"}, "numpy"),
        ({"numba": None}, "numba"),
        ({"cache_error": "Permission denied"}, "cache"),
        ({"cache_free": 0.2}, "cache"),
    ],
)
def test_each_fault_is_the_one_problem_reported(change, name):
    assert problems(replace(LAPTOP, **change)) == [name]


@pytest.mark.parametrize("facts", [LAPTOP, MAC, WINDOWS, H100, T4])
def test_whatever_is_not_ok_comes_with_a_remedy(facts):
    worst = replace(facts, cores=1, numpy="2.5.1", cache_free=0.0, python=(3, 10, 2))
    findings = diagnose(worst)
    assert {finding.level for finding in findings} >= {"ok", "problem"}
    for finding in findings:
        assert (finding.level == "ok") == (finding.remedy == "")
        assert finding.level == "ok" or finding.remedy.endswith(".")


def test_colab_t4_needs_the_cuda_12_compiler_and_float16():
    assert problems(T4) == ["compiler"]
    assert 'pip install "numba-cuda[cu12]"' in named(T4, "compiler").remedy
    assert "--dtype float16" in named(T4, "bfloat16").remedy
    assert named(replace(T4, nvrtc="12.9.86"), "compiler").level == "ok"
    assert "cu12" in named(replace(T4, nvrtc=None), "compiler").remedy


def test_a_newer_driver_runs_an_older_compiler():
    assert named(replace(H100, nvrtc="12.9.86"), "compiler").level == "ok"


def test_cuda_13_compiles_nothing_for_a_v100():
    v100 = replace(H100, gpus=(("Tesla V100", (7, 0)),))
    assert problems(v100) == ["compiler"]
    assert named(v100, "gpu").level == "note"


def test_a_cpu_build_of_torch_beside_a_driver():
    finding = named(replace(H100, torch_cuda=None, torch_sees_gpu=False), "torch")
    assert finding.level == "problem" and "CUDA build" in finding.remedy


def test_a_driver_too_old_for_torch():
    finding = named(replace(T4, torch_cuda="13.0", torch_sees_gpu=False), "torch")
    assert finding.level == "problem" and "12.4" in finding.remedy and "580" in finding.remedy


def test_a_gpu_that_torch_does_not_reach():
    finding = named(replace(H100, torch_sees_gpu=False), "torch")
    assert finding.level == "problem" and "CUDA_VISIBLE_DEVICES" in finding.remedy


def test_macos_says_why_the_gpu_is_not_used():
    finding = named(MAC, "gpu")
    assert finding.level == "note" and "--device mps" in finding.remedy
    assert "--device mps" not in named(replace(MAC, mps=False), "gpu").remedy
    assert "compiler" not in [finding.name for finding in diagnose(MAC)]


@pytest.mark.parametrize(
    ("text", "pair"),
    [
        ("13.0.88", (13, 0)),
        ("2.13.0+cpu", (2, 13)),
        ("2.5rc1", (2, 5)),
        ("13", (13, 0)),
        ("12.4", (12, 4)),
    ],
)
def test_version_tuple(text, pair):
    assert version_tuple(text) == pair


def test_look_sees_this_machine():
    facts = look()
    assert facts.torch == torch.__version__ and facts.numpy == np.__version__
    assert facts.cores >= 1 and 0.5 < facts.memory < 1e5
    assert facts.cache == os.environ["MINILM_CACHE"] and facts.cache_error is None
    assert facts.torch_sees_gpu == torch.cuda.is_available()


def test_look_finds_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    monkeypatch.setenv("MINILM_CACHE", str(tmp_path / "file" / "cache"))
    assert look().cache_error
    monkeypatch.setenv("MINILM_CACHE", str(tmp_path / "not" / "yet"))
    assert look().cache_error is None
    assert not (tmp_path / "not").exists()


def test_a_driver_library_without_a_driver_is_no_driver(monkeypatch):
    class Empty:
        def cuDriverGetVersion(self, version):
            return 0  # and leaves 0 in it

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Empty())
    assert machine._nvidia() == {}


def test_torch_may_warn_of_an_old_driver_but_the_report_is_quiet(monkeypatch):
    def warns():
        warnings.warn("The NVIDIA driver on your system is too old", stacklevel=1)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", warns)
    assert look().torch_sees_gpu is False


def test_the_kernels_and_where_they_run():
    value = named(H100, "kernels").value
    assert "layer_norm" in value and "on the GPU; sgd_step stays with torch" in value
    for facts in (LAPTOP, MAC, replace(H100, numba_cuda=None)):
        assert "on the emulator (--emulate); sgd_step" in named(facts, "kernels").value
    assert "kernels" not in [f.name for f in diagnose(replace(LAPTOP, numba=None))]


def test_the_printed_report_and_the_returned_one_agree():
    out = io.StringIO()
    report = run_doctor(file=out, facts=T4)
    text = out.getvalue()
    assert not report["ok"] and text.endswith("1 to mend\n")
    for finding in report["findings"]:
        assert finding["value"] in text and finding["remedy"] in text
    assert json.loads(json.dumps(report))["facts"]["driver_cuda"] == [12, 4]


@pytest.mark.gpu
def test_the_driver_and_torch_tell_the_same_of_a_gpu():
    name, capability = look().gpus[0]
    assert name == torch.cuda.get_device_name(0)
    assert capability == torch.cuda.get_device_capability(0)
