"""A GPU test that faults must not fail the tests after it.

An illegal instruction or address ends all work of the process on the GPU, for good, and it is
reported late, by whatever asks the GPU next. So each GPU test waits for its kernels, and the error
is its own; from then on the GPU tests of this process each run in a process of their own.
"""

import os
import subprocess
import sys

import pytest
import torch

LOST = pytest.StashKey[str]()  # the test after which this process has no GPU


@pytest.fixture(autouse=True)
def gpu_is_waited_for(request):
    yield
    if request.node.get_closest_marker("gpu") and LOST not in request.config.stash:
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            request.config.stash[LOST] = request.node.nodeid
            raise


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    config = pyfuncitem.config
    if LOST not in config.stash or not pyfuncitem.get_closest_marker("gpu"):
        return None
    env = {name: v for name, v in os.environ.items() if not name.startswith("PYTEST_")}
    options = ["-q", "-p", "no:cacheprovider"]
    options += ["--thorough"] if config.getoption("thorough", False) else []
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", *options, pyfuncitem.nodeid],
        cwd=config.rootpath, env=env, capture_output=True, text=True,
    )  # fmt: skip
    if ran.returncode:
        pytest.fail(f"in a process of its own, after {config.stash[LOST]}:\n{ran.stdout}", False)
    return True
