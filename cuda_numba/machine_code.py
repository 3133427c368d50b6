"""What the measured kernels are as machine code: registers, spills, shared memory, instructions.

`python -m cuda_numba.bench` looks at every kernel that it measures, on the way, and writes what it
finds to `results/tools/machine-code-<device>.json`: a row for each kernel that a case launches.
"""

from collections.abc import Callable, Iterator
from typing import Any

from . import record
from .inspect import instructions
from .jit import launches

COMMAND = "machine-code"
ROW_KEYS = (
    *("op", "pass", "shape", "dtype", "kernel", "architecture", "assembler", "ptx_sha256"),
    *("registers", "spill_bytes", "stack_bytes", "shared_bytes", "instructions"),
)
# What is counted, by the first word of the instruction in SASS.
KINDS = {
    "tensor": ("HMMA", "HGMMA", "IMMA", "IGMMA", "QGMMA", "QMMA"),
    "float32": ("FFMA", "FADD", "FMUL", "FMNMX", "FSETP", "FSEL"),
    "special function": ("MUFU",),
    "global load": ("LDG", "LDGSTS"),
    "global store": ("STG", "RED", "REDG", "ATOMG"),
    "bulk copy": ("UTMALDG", "UTMASTG", "UTMAREDG", "UBLKCP", "UBLKRED", "UTMAPF"),
    "shared load": ("LDS", "LDSM"),
    "shared store": ("STS", "STSM"),
    "local memory": ("LDL", "STL"),
    "barrier": ("BAR", "SYNCS", "WARPSYNC", "WARPGROUP", "DEPBAR", "MEMBAR"),
}


def counts(sass: str) -> dict[str, int]:
    """How many instructions of each kind stand in machine code, and how many in all."""
    found = instructions(sass)
    heads: dict[str, int] = {}
    for opcode, n in found.items():
        head = opcode.split(".")[0]
        heads[head] = heads.get(head, 0) + n
    kinds = {kind: sum(heads.get(name, 0) for name in names) for kind, names in KINDS.items()}
    return kinds | {"all": sum(heads.values())}


def rows_of(case: Any, cc: Any, call: Callable[[int], object] | None = None) -> Iterator[dict]:
    """A row for each kernel that `call` launches, by default the case's own.

    case: a bench_cases.Case. cc: compute capability of the GPU that it runs on.
    """
    with launches() as log:
        (call or case.ours)(0)
    seen = set()
    for launch in log:
        if (key := (launch.kernel.function, launch.signature)) in seen:
            continue
        seen.add(key)
        code = launch.kernel.code(cc, launch.signature)
        used = code.resources
        yield {
            "op": case.op,
            "pass": case.pass_,
            "shape": case.shape,
            "dtype": case.dtype,
            "kernel": launch.name,
            "architecture": code.cubin.architecture,
            "assembler": code.cubin.assembler,
            "ptx_sha256": code.ptx_sha256,
            "registers": used.registers,
            "spill_bytes": used.spill_stores + used.spill_loads,
            "stack_bytes": used.stack,
            "shared_bytes": used.shared,
            "instructions": counts(code.sass),
        }


def check_row(row: dict) -> None:
    """Raise ValueError saying what is not as it must be in a row."""
    record.check_keys(row, ROW_KEYS)
    numbers = [row[k] for k in ("registers", "spill_bytes", "stack_bytes", "shared_bytes")]
    if not all(type(n) is int and n >= 0 for n in [*numbers, *row["instructions"].values()]):
        raise ValueError(f"registers, bytes and counts must be integers of at least 0: {numbers}")
    if set(row["instructions"]) != {*KINDS, "all"}:
        raise ValueError(f"instructions: kinds are {sorted(row['instructions'])}")
