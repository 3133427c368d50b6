"""A report as plain data."""

from dataclasses import asdict
from typing import Any

from .tally import Tally


def as_dict(report) -> dict[str, Any]:
    """What `Report.to_dict` returns."""
    return {
        "kernel": report.kernel,
        "grid": list(report.grid),
        "block": list(report.block),
        "shared_bytes": report.shared_bytes,
        "local_bytes": report.local_bytes,
        "footprint": report.footprint,
        "barriers": report.barriers,
        **_numbers(report),
        "findings": [
            {
                "kind": f.kind,
                "message": f.message,
                "lines": list(f.lines),
                "threads": [list(t) for t in f.threads],
                "block": None if f.block is None else list(f.block),
                "count": f.count,
            }
            for f in report.findings
        ],
        "remarks": list(report.remarks),
        "lines": {
            str(key): {"text": line.text, "function": line.function, **_numbers(line)}
            for key, line in report.lines.items()
        },
    }


def _numbers(tally: Tally) -> dict[str, Any]:
    intensity = tally.intensity
    return {
        "requests": tally.requests,
        "reads": tally.reads,
        "writes": tally.writes,
        "sectors": tally.sectors,
        "moved": tally.moved,
        "efficiency": tally.efficiency,
        "conflicts": tally.conflicts,
        "degree": tally.degree,
        "flops": tally.flops,
        "flops_by_type": dict(sorted(tally.flops_by_type.items())),
        "tensor_flops": tally.tensor_flops,
        "intensity": None if intensity == float("inf") else intensity,  # JSON has no infinity
        "barrier_waits": tally.barrier_waits,
        "promotions": tally.promotions,
        "long_integer": tally.long_integer,
        "divergence": tally.divergence,
        "parting": asdict(tally.parting),
        "traffic": {
            f"{space} {kind}": asdict(traffic)
            for (space, kind), traffic in sorted(tally.parts.items())
        },
    }
