"""The numbers beside a source line, and how to write them: shared by the table and the HTML."""

from .tally import Line


def count(n: float) -> str:
    return f"{n:,.0f}" if n else ""


def size(nbytes: float) -> str:
    """Bytes for people: 640 B, 1.5 KiB, 12 MiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if nbytes < 1024 or unit == "GiB":
            break
        nbytes /= 1024
    return f"{nbytes:.0f} {unit}" if nbytes >= 100 or unit == "B" else f"{nbytes:.3g} {unit}"


def percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _requested(line: Line) -> str:
    return size(line.of("global").requested) if line.requests else ""


def _moved(line: Line) -> str:
    return size(line.moved) if line.sectors else ""


def _used(line: Line) -> str:
    return percent(line.efficiency) if line.sectors else ""


def _per_request(line: Line) -> str:
    return f"{line.of('global').sectors_per_request:.3g}" if line.sectors else ""


def _wavefronts(line: Line) -> str:
    return count(line.of("shared").wavefronts)


def _conflicts(line: Line) -> str:
    return f"{line.conflicts:,} ({line.degree}-way)" if line.conflicts else ""


def _local(line: Line) -> str:
    n = line.of("local").requested
    return size(n) if n else ""


def _parted(line: Line) -> str:
    p = line.parting
    return f"{p.divergent:,}/{p.executions:,}" if p.divergent else ""


COLUMNS = (
    # heading, what it says, value
    ("requests", "instructions of warps for global memory", lambda line: count(line.requests)),
    ("asked", "bytes that threads asked for in global memory", _requested),
    ("moved", "bytes in the 32-byte sectors moved for them", _moved),
    ("used", "share of the moved bytes that a lane asked for", _used),
    ("sectors/req", "sectors per request: 4 is a warp's 128 bytes side by side", _per_request),
    ("wavefronts", "passes through shared memory", _wavefronts),
    ("conflicts", "wavefronts beyond the least possible", _conflicts),
    ("local", "bytes of local arrays, unless they fit in registers", _local),
    ("parted", "executions in which lanes of a warp parted, of all", _parted),
    ("FLOPs", "floating-point operations", lambda line: count(line.flops)),
    ("tensor", "floating-point operations of tensor cores", lambda line: count(line.tensor_flops)),
    ("float64", "float64 operations nobody asked for", lambda line: count(line.promotions)),
    ("64-bit", "64-bit integer operations", lambda line: count(line.long_integer)),
    ("waits", "waits of threads at barriers", lambda line: count(line.barrier_waits)),
)


def used_columns(lines: list[Line]) -> list[tuple]:
    """The columns that say something about one of the lines."""
    return [column for column in COLUMNS if any(column[2](line) for line in lines)]


def totals(report) -> list[tuple[str, str]]:
    """The launch in three sentences: (what, numbers)."""
    shared, local = report.of("shared"), report.of("local")
    found = []
    if report.requests:
        parts = [f"reads {size(report.reads)}", f"writes {size(report.writes)}"]
        parts += [f"moves {size(report.moved)} in {report.sectors:,} sectors"]
        parts += [f"{percent(report.efficiency)} used", f"touches {size(report.footprint)}"]
        found.append(("global memory", " · ".join(parts)))
    if shared.requests or report.shared_bytes:
        parts = [f"{size(report.shared_bytes)} a block", f"{shared.requests:,} requests"]
        parts += [f"{shared.wavefronts:,} wavefronts", f"{report.conflicts:,} bank conflicts"]
        if report.conflicts:
            parts[-1] += f" (up to {report.degree}-way)"
        found.append(("shared memory", " · ".join(parts)))
    if local.requests or report.local_bytes:
        found.append(("local arrays", f"{size(report.local_bytes)} a thread"))
    parts = [f"{n:,} {name}" for name, n in sorted(report.flops_by_type.items()) if "float" in name]
    parts += [f"{report.tensor_flops:,} on tensor cores"] if report.tensor_flops else []
    if parts:
        parts[-1] += " operations"
        parts += [f"{report.intensity:.3g} FLOPs per moved byte"] if report.moved else []
    n = report.barriers
    parts += [f"{n:,} barrier{'s' * (n != 1)}"] if n else []
    if report.parting.executions:
        parts.append(f"lanes part in {percent(report.divergence)} of branches and loops")
    if parts:
        found.append(("work", " · ".join(parts)))
    return found


def launch(report) -> str:
    """`kernel[(2, 1, 1), (64, 1, 1)]`, as it was launched."""
    return f"{report.kernel}[{tuple(report.grid)}, {tuple(report.block)}]"
