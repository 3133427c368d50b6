"""Machine code as text: what nvdisasm makes of a cubin."""

import subprocess
import tempfile
from pathlib import Path

from .assembler import Cubin
from .toolchain import find_tool


def sass(cubin: Cubin) -> str:
    """The machine code as nvdisasm writes it. Raises MissingTool, RuntimeError with its words."""
    tool = find_tool("nvdisasm")
    with tempfile.TemporaryDirectory(prefix="cuda_numba-") as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin.code)
        ran = subprocess.run(
            [tool.path, "-c", str(path)], capture_output=True, text=True, errors="replace"
        )
    if ran.returncode:
        raise RuntimeError(f"{tool}: {(ran.stderr or ran.stdout).strip()}")
    return ran.stdout
