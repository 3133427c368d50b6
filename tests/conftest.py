"""What every test gets: fixed seeds, one torch thread, its own cache folder, no windows.

Here also: which tests run by default, and in which order. A test marked `thorough` repeats what
others prove, on one more architecture, variant or shape; it runs with `pytest --thorough` alone.
"""

import gc
import os
import random

# Before torch, numba or matplotlib are imported anywhere.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["MPLBACKEND"] = "Agg"
os.environ["NUMBA_CUDA_LOW_OCCUPANCY_WARNINGS"] = "0"  # tests launch small grids

import numpy as np
import pytest
import torch

# The longest files, the longest first: a worker that begins one of them last works on it alone.
# They take from 110 down to 30 seconds of one core, most of them measured, some guessed.
LONGEST = (
    "test_ops_numba.py", "test_matmul_ladder_code.py", "test_attention_warp_code.py",
    "test_quantized_code.py", "test_bench_gpt2.py", "test_step_graph.py",
    "test_attention_backward_code.py", "test_norm_code.py", "test_attention_backward.py",
    "test_exercise_notebooks.py", "test_decode_code.py", "test_attention_warp.py",
    "test_matmul_hopper.py", "test_quantized.py", "test_embedding_code.py", "test_mlp.py",
    "test_attention_code.py", "test_decode.py", "test_matmul_code.py", "test_cross_entropy_code.py",
    "test_activation_code.py", "test_linear_cross_entropy.py", "test_matmul_hopper_schedule.py",
    "test_cli.py", "test_attention_hopper.py", "test_softmax.py", "test_exercises.py",
    "test_softmax_code.py", "test_book.py", "test_embedding.py", "test_sanitizer.py",
)  # fmt: skip


def pytest_addoption(parser):
    parser.addoption(
        "--thorough", action="store_true", help="run the tests that are marked thorough, too"
    )


def pytest_configure(config):
    text = "thorough: repeats others on one more architecture, variant or shape; see --thorough"
    config.addinivalue_line("markers", text)


def pytest_collection_modifyitems(config, items):
    if not config.getoption("thorough"):
        left_out = [item for item in items if item.get_closest_marker("thorough")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("thorough")]
    place = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))  # stable: files stay whole
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs an NVIDIA GPU")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


def pytest_collection_finish():
    """What has been imported by now stays: the collector need not look at it again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


@pytest.fixture(scope="session", autouse=True)
def kernel_cache(tmp_path_factory):
    """Compiled kernels of this test run go to a temporary folder; workers of one run share it."""
    if "CUDA_NUMBA_CACHE" not in os.environ:
        folder = tmp_path_factory.getbasetemp()
        shared = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
        os.environ["CUDA_NUMBA_CACHE"] = str(shared / "cuda-numba-cache")


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory):
    """Token files of this test run go to a temporary folder, never to the user's cache."""
    folder = tmp_path_factory.mktemp("minilm-cache")
    before = os.environ.get("MINILM_CACHE")
    os.environ["MINILM_CACHE"] = str(folder)
    yield folder
    if before is None:
        del os.environ["MINILM_CACHE"]
    else:
        os.environ["MINILM_CACHE"] = before


@pytest.fixture(autouse=True)
def fixed_seeds():
    """Each test starts from the same random state, alone or in a full run, on any worker."""
    torch.set_num_threads(1)
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="module", autouse=True)
def torch_is_left_as_it_was():
    """A replaced torch function that outlives its file would change every test after it."""
    names = ("empty", "empty_like", "empty_strided", "zeros", "rand", "randn")
    before = [getattr(torch, name) for name in names]
    yield
    for name, function in zip(names, before, strict=True):
        assert getattr(torch, name) is function, f"torch.{name} is left replaced"
