"""What is compared between the emulator and Nsight Compute, and how the two must be to each other.

| count of                     | Nsight Compute                             | must be |
|------------------------------|--------------------------------------------|---------|
| global requests and sectors  | l1tex__t_requests, l1tex__t_sectors        | equal   |
| requests of global atomics   | …_op_red and …_op_atom together            | equal   |
| sectors of global atomics    | the same                                   | no less |
| shared wavefronts            | smsp__sass_l1tex_data_…, from addresses    | equal   |
| the same, and bank conflicts | l1tex__data_…, a hardware counter          | no less |
| shared instructions          | smsp__sass_inst_executed_op_shared_…       | no less |
| float32 operations           | smsp__sass_thread_inst_executed_op_fadd, … | equal   |

Where Nsight Compute may count more, `Metric.more` says what. Its hardware counters of shared memory
count ldmatrix with the loads, the counts from addresses keep it apart; of conflicts ncu has none.
Operations are compared only where the kernel does nothing but add and multiply, for Nsight Compute
counts those instructions alone, and where ptxas leaves each to all the threads that have it in the
source (`Case.apart`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .emulator.traffic import Traffic, traffic_of_sites

MATRIX = ("ldmatrix", "stmatrix")
# What Nsight Compute counts besides.
EACH_LANE = (
    "the hardware counts a sector for every lane's atomic, the emulator the sectors of 32 bytes "
    "that a request touches"
)
WAITS = (
    "the hardware also counts wavefronts that wait for something else than a bank, "
    "the data of global loads on their way to registers, say"
)
SWITCHED_OFF = "instructions count also where every lane of the warp is switched off"


def traffic(report: Any, space: str, kind: str, via: tuple[str, ...] = ("", *MATRIX)) -> Traffic:
    """The traffic of a space and kind that goes by these ways; asynchronous copies left out."""
    trace = report.trace
    pairs = zip(trace.sites, traffic_of_sites(trace), strict=True)
    chosen = (t for s, t in pairs if (s.space, s.kind) == (space, kind) and s.via in via)
    return sum(chosen, Traffic())


@dataclass(frozen=True)
class Metric:
    """One count. terms: Nsight Compute's metrics, each times a factor; their sum is compared.

    more: what Nsight Compute counts besides, "" where the two must be equal.
    """

    name: str
    terms: dict[str, int]
    emulator: Callable[[Any], int]
    more: str = ""
    flops: bool = False  # only for cases whose operations can be compared

    @property
    def relation(self) -> str:
        """How Nsight Compute's count must be to the emulator's: "equal" or "no less"."""
        return "no less" if self.more else "equal"


def _global(kind: str, suffixes: tuple[str, ...], of: str, more: str = "") -> Metric:
    terms = {f"l1tex__t_{of}_pipe_lsu_mem_global_op_{s}.sum": 1 for s in suffixes}
    return Metric(
        f"global {kind} {of}",
        terms,
        lambda r: getattr(traffic(r, "global", kind), of),
        more,
    )


def _shared(kind: str, suffix: str, of: str) -> Metric:
    """From the hardware's counters."""
    counter = "data_bank_conflicts_pipe_lsu" if of == "conflicts" else "data_pipe_lsu_wavefronts"
    name = f"l1tex__{counter}_mem_shared_op_{suffix}.sum"
    return Metric(
        f"shared {kind} {of}, by hardware",
        {name: 1},
        lambda r: getattr(traffic(r, "shared", kind), of),
        WAITS,
    )


def _exact(kind: str, suffix: str) -> Metric:
    """Wavefronts from the addresses of every instruction."""
    via = ("ldmatrix",) if suffix == "ldsm" else ("",)
    what = "ldmatrix" if suffix == "ldsm" else f"shared {kind}"
    name = f"smsp__sass_l1tex_data_pipe_lsu_wavefronts_mem_shared_op_{suffix}.sum"
    return Metric(
        f"{what} wavefronts", {name: 1}, lambda r: traffic(r, "shared", kind, via).wavefronts
    )


def _instructions(kind: str, suffix: str) -> Metric:
    name = f"smsp__sass_inst_executed_op_shared_{suffix}.sum"
    return Metric(
        f"shared {kind} instructions", {name: 1},
        lambda r: traffic(r, "shared", kind, ("",)).requests, SWITCHED_OFF,
    )  # fmt: skip


OPERATIONS = "float32 operations"
ADDED_AND_MULTIPLIED = {
    f"smsp__sass_thread_inst_executed_op_f{op}_pred_on.sum": operations
    for op, operations in (("add", 1), ("mul", 1), ("fma", 2))
}
METRICS = [
    *(_global("load", ("ld",), of) for of in ("requests", "sectors")),
    *(_global("store", ("st",), of) for of in ("requests", "sectors")),
    _global("atomic", ("red", "atom"), "requests"),
    _global("atomic", ("red", "atom"), "sectors", EACH_LANE),
    _exact("load", "ld"),
    _exact("store", "st"),
    _exact("load", "ldsm"),
    *(_shared("load", "ld", of) for of in ("wavefronts", "conflicts")),
    *(_shared("store", "st", of) for of in ("wavefronts", "conflicts")),
    *(_instructions(kind, suffix) for kind, suffix in (("load", "ld"), ("store", "st"))),
    Metric(OPERATIONS, ADDED_AND_MULTIPLIED, lambda r: r.flops_by_type["float32"], flops=True),
]
TERMS = list(dict.fromkeys(term for metric in METRICS for term in metric.terms))
