"""What ran on the GPU, and when: the profiler's events of a call, and what they add up to."""

import json
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from .kernel_classes import class_of

NAMES_UP_TO = 200  # letters of a kernel's name that are kept


def timed(function: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    begin = time.perf_counter()
    function()
    torch.cuda.synchronize()
    return time.perf_counter() - begin


def traced(function: Callable[[], object]) -> list[dict]:
    """The GPU's activities in a call, as the profiler's trace has them: name, ts, dur in µs."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    torch.cuda.synchronize()
    activities = [ProfilerActivity.CUDA, ProfilerActivity.CPU]
    with profiler(activities=activities, acc_events=True) as found:
        function()
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        found.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    kinds = ("kernel", "gpu_memcpy", "gpu_memset")
    events = [e for e in events if e.get("ph") == "X" and e.get("cat") in kinds]
    if not events:
        raise RuntimeError("trace: the profiler saw no kernel (may this process use CUPTI?)")
    return events


def union(spans: Iterable[tuple[float, float]]) -> float:
    """How much of the time at least one of the spans (start, end) covers."""
    total, until = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total


def kernel_rows(side: str, events: Iterable[dict]) -> list[dict]:
    """Events of one name together, the longest first."""
    found: dict[str, list[float]] = {}
    for event in events:
        found.setdefault(event["name"], []).append(event["dur"] / 1e6)
    rows = [
        {"kind": "kernel", "side": side, "name": name[:NAMES_UP_TO], "class": class_of(name),
         "calls": len(seconds), "seconds": sum(seconds)}
        for name, seconds in found.items()
    ]  # fmt: skip
    return sorted(rows, key=lambda r: -r["seconds"])
