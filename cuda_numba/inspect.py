"""What a kernel has become: PTX, SASS, registers and instruction counts, with no GPU needed.

code = compile_kernel(fn, signature, "sm_90a")     # see build.py
code.ptx, code.sass, code.resources, instructions(code.sass)["HMMA.16816.F32.BF16"]
"""

import re
from collections import Counter

from .assembler import AssemblerError, Cubin, Resources, assemble, read_resources
from .build import Code, compile_kernel
from .compiler import CompilerWarning, Options, compile_ptx
from .disassembler import sass
from .toolchain import MissingTool, has_compiler

__all__ = [
    "AssemblerError",
    "Code",
    "CompilerWarning",
    "Cubin",
    "MissingTool",
    "Options",
    "Resources",
    "assemble",
    "compile_kernel",
    "compile_ptx",
    "count",
    "has_compiler",
    "instructions",
    "resources",
    "sass",
]

# "/*0a10*/  @!P0 LDG.E.128 R4, desc[UR4][R2.64] ;"
INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P[T\d]+\s+)?([A-Z][\w.]*)")


def resources(cubin: Cubin | str) -> Resources:
    """Registers, spills, stack, shared memory and barriers of machine code, or from a log."""
    return read_resources(cubin) if isinstance(cubin, str) else cubin.resources


def instructions(text: str) -> Counter:
    """How often each instruction stands in SASS: {"LDG.E.128": 4, "FFMA": 16, …}."""
    return Counter(INSTRUCTION.findall(text))


def count(text: str, name: str) -> int:
    """Instructions of a kind, whatever modifiers they have besides.

    "HMMA" counts HMMA.16816.F32.BF16; "LDG.E.128" counts LDG.E.EF.128.CONSTANT.
    """
    return sum(n for opcode, n in instructions(text).items() if _is_kind(opcode, name))


def _is_kind(opcode, name):
    (head, *wanted), (first, *modifiers) = name.split("."), opcode.split(".")
    rest = iter(modifiers)
    return head == first and all(modifier in rest for modifier in wanted)  # in this order
