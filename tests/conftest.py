"""What every test gets: fixed seeds, one torch thread, its own cache folder, no windows."""

import os
import random

# Before torch, numba or matplotlib are imported anywhere.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["MPLBACKEND"] = "Agg"
os.environ["NUMBA_CUDA_LOW_OCCUPANCY_WARNINGS"] = "0"  # tests launch small grids

import numpy as np
import pytest
import torch


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs an NVIDIA GPU")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


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
