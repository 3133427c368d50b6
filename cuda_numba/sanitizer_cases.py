"""What `cuda_numba.sanitizer` watches: every kernel of every operation, launched once, small.

    python -m cuda_numba.sanitizer_cases [--device cpu] [--part 0/3] [--fault race]

Every rung, forward and backward, over odd shapes and over a row that 16-byte accesses divide; the
cases themselves are in the modules of FAMILIES. The last line printed is CASES and JSON: the
kernels that ran, and how many launches there were. --part i/n takes every n-th case from the i-th
on. --fault launches one of `sanitizer_faults` instead, which must be found.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from importlib import import_module

import torch

from . import sanitizer_faults, sanitizer_ptx
from .jit import launches
from .sanitizer_inputs import take

# sanitizer_<name>.py: OPERATIONS, and DTYPES_OF those that do not take every dtype
FAMILIES = ("rows", "matmul_ladder", "matmul", "attention", "attention_warp", "attention_backward")
FAMILIES += ("decode", "quantized")
DTYPES = (torch.float32, torch.bfloat16)


def cases(device: str) -> Iterator[tuple[str, Callable[[], None]]]:
    """(name, function) of everything there is to run on a device."""
    for family in FAMILIES:
        found = import_module(f"{__package__}.sanitizer_{family}")
        dtypes_of = getattr(found, "DTYPES_OF", {})
        for operation in found.OPERATIONS:
            for dtype in dtypes_of.get(operation, DTYPES):
                name = f"{operation.__name__} {str(dtype).removeprefix('torch.')}"
                yield name, lambda operation=operation, dtype=dtype: operation(dtype, device)
    for name, case in sanitizer_ptx.CASES.items():
        yield name, lambda case=case: take(case(device))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m cuda_numba.sanitizer_cases")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--part", default="0/1", help="i/n: every n-th case, from the i-th on")
    parser.add_argument("--fault", choices=sanitizer_faults.FAULTS, help="launch this fault only")
    chosen = parser.parse_args(arguments)
    torch.manual_seed(0)
    part, parts = map(int, chosen.part.split("/"))
    with launches() as log:
        if chosen.fault:
            sanitizer_faults.FAULTS[chosen.fault](chosen.device)
        else:
            for name, case in list(cases(chosen.device))[part::parts]:
                print(name, flush=True)
                case()
        if chosen.device == "cuda":
            torch.cuda.synchronize()
    kernels = sorted({launch.name for launch in log})
    print(f"\nCASES {json.dumps({'kernels': kernels, 'launches': len(log)})}", flush=True)


if __name__ == "__main__":
    main()
