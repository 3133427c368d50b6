"""Kernels on the CPU: the same source, thread by thread, with everything seen.

Reading order: `source` and `infer` (what the kernel says), `arithmetic`, `twins` (what its names
mean), `rewrite` and `program` (a copy that can run), `memory`, `machine` and `schedule` (the GPU),
`trace` and `report` (what happened).
"""

from .errors import Deadlock, EmulatorError, InvalidUse, Livelock, Misaligned, OutOfBounds
from .report import Report
from .run import Emulation, emulate

__all__ = [
    "Deadlock",
    "Emulation",
    "EmulatorError",
    "InvalidUse",
    "Livelock",
    "Misaligned",
    "OutOfBounds",
    "Report",
    "emulate",
]
