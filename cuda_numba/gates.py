"""Gates: what must not be in a kernel's code, and what must. All of it is visible without a GPU.

| gate                     | why                                                                  |
|--------------------------|----------------------------------------------------------------------|
| no spills, no stack      | registers in local memory: global memory's latency in the inner loop |
| no C75xx from ptxas      | it serialised wgmma or ignored setmaxnreg, and reports no spill      |
| no float64               | 1/64 of the rate on most GPUs, and mostly nobody meant it            |
| no 64-bit division       | a call of about 70 instructions                                      |
| the expected instructions| a 128-bit load that fell apart, a product without tensor cores       |
"""

import re
from collections.abc import Iterable

from .assembler import AssemblerError
from .build import Code
from .inspect import count

FLOAT64 = re.compile(r"^\s*(?:@!?%p\d+\s+)?([a-z][\w.]*\.f64[\w.]*)\s", re.MULTILINE)
DIVISION64 = re.compile(r"^\s*(?:@!?%p\d+\s+)?((?:div|rem)\.[su]64)\s", re.MULTILINE)
ROUTINE = re.compile(rb"__(?:cuda_sm\d+|internal)\w*?_(?:div|rem)_[su]64")


def check_gates(kernel, *, expect: Iterable[str] = (), allow_float64: bool = False,
                allow_division64: bool = False, max_spills: int = 0, max_stack: int = 0,
                max_registers: int | None = None) -> list[str]:  # fmt: skip
    """The problems of a kernel's code, each a sentence; an empty list when there are none.

    kernel      a `Code`, or a function of no arguments that compiles one: then what the
                assembler refuses is a problem as well
    expect      instructions that must occur: "HMMA", "HGMMA", "LDG.E.128", "UTMALDG", …; modifiers
                that are not named may stand between
    max_spills  bytes per thread, stores and loads together; max_stack: bytes of local memory per
                thread that are not spills; max_registers: per thread, None: as many as there are
    """
    if not isinstance(kernel, Code):
        try:
            kernel = kernel()
        except AssemblerError as error:
            return [str(error)]
    problems = [f"the assembler says: {line}" for line in kernel.cubin.advice]
    problems += _memory(kernel.resources, max_spills, max_stack, max_registers)
    if not allow_float64:
        problems += _occurs(FLOAT64, kernel.ptx, "float64 arithmetic")
    if not allow_division64:
        problems += _occurs(DIVISION64, kernel.ptx, "64-bit division")
        if not DIVISION64.search(kernel.ptx) and (call := ROUTINE.search(kernel.cubin.code)):
            problems.append(f"64-bit division: the code calls {call[0].decode()}")
    if expect := tuple(expect):
        text = kernel.sass
        problems += [f"no {name} in the machine code" for name in expect if not count(text, name)]
    return [f"{kernel.name} on {kernel.cubin.architecture}: {problem}" for problem in problems]


def _memory(used, max_spills, max_stack, max_registers):
    spills = used.spill_stores + used.spill_loads
    if spills > max_spills:
        yield f"spills {used.spill_stores} bytes of stores and {used.spill_loads} of loads a thread"
    if (own := used.stack - used.spill_stores) > max_stack:  # every spilled register is stored
        yield f"{own} bytes of local memory a thread"
    if max_registers is not None and used.registers > max_registers:
        yield f"{used.registers} registers a thread, at most {max_registers} are allowed"


def _occurs(pattern, ptx, what):
    if found := pattern.findall(ptx):
        kinds = ", ".join(sorted(set(found))[:4])
        return [f"{what}: {len(found)} instructions of PTX ({kinds})"]
    return []
