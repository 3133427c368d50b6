"""What was launched, for who asks: which kernel, of which types, how many blocks, on what machine.

A kernel (jit.py) looks at `open_logs` at each launch and leaves its record in every one of them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class LaunchRecord:
    """One launch. device: "emulator" or "cuda". report: see `launches`."""

    kernel: Any  # jit.Kernel
    signature: tuple[Any, ...]  # Numba types of the arguments
    grid: Any
    block: Any
    device: str
    report: Any = None  # emulator.Report

    @property
    def name(self) -> str:
        return self.kernel.name

    @property
    def ptx_sha256(self) -> str:
        """The hash of the PTX that the launch runs, or for the emulator would run on sm_90a."""
        return self.kernel.code((9, 0), signature=self.signature).ptx_sha256


class Log(list[LaunchRecord]):
    """What `launches` gives; wants_reports: each launch is run with everything recorded."""

    wants_reports = False


open_logs: list[Log] = []  # of the `with launches()` blocks that are open


@contextmanager
def launches(report: bool = False) -> Iterator[list[LaunchRecord]]:
    """Record every launch inside the `with` block, in order.

    report: run each with everything recorded, as `Kernel.report` does, and keep the emulator's
    Report as `launch.report`. A launch on a GPU is then refused with a RuntimeError.

    >>> with launches() as log:
    ...     softmax(x)
    >>> [(launch.name, launch.grid) for launch in log]
    """
    log = Log()
    log.wants_reports = report
    open_logs.append(log)
    try:
        yield log
    finally:
        open_logs[:] = [other for other in open_logs if other is not log]  # equal ones stay
