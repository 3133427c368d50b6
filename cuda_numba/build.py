"""A kernel's code for one architecture: compiled once, kept in memory and on disk.

`Code` is what everything else looks at: the gates, the listings, and the launch, which loads
`Code.cubin` and nothing else.
"""

import hashlib
import weakref
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property

from . import codecache
from .assembler import AssemblerError, Cubin, Resources, assemble, identity
from .compiler import (
    Options,
    architecture,
    compile_ltoir,
    compile_ptx,
    link_ptx,
    normal_cc,
    plain_names,
)
from .disassembler import sass
from .fingerprint import Unknown, fingerprint

DEFAULT = Options()


@dataclass(frozen=True)
class Code:
    """PTX and machine code of one kernel, one signature, one architecture."""

    name: str
    signature: tuple  # Numba types of the arguments
    cc: tuple  # (7, 5), (9, 0, "a")
    options: Options
    ptx: str
    cubin: Cubin

    @cached_property
    def ptx_sha256(self) -> str:
        """64 hexadecimal digits; equal for equal PTX."""
        return hashlib.sha256(self.ptx.encode()).hexdigest()

    @property
    def resources(self) -> Resources:
        return self.cubin.resources

    @cached_property
    def sass(self) -> str:
        """The machine code as text. Raises MissingTool where there is no nvdisasm."""
        return sass(self.cubin)


def compile_kernel(fn: Callable, signature: tuple, cc, options: Options = DEFAULT, *,
                   strict: bool = True) -> Code:  # fmt: skip
    """The code of a kernel, from memory, from disk, or compiled now.

    fn, signature, cc  as in `compile_ptx`
    strict             raise AssemblerError where the assembler slowed the kernel down (C75xx)

    Globals and closure variables count as they were when this kernel was first compiled in this
    process. Raises MissingTool, CompilerWarning, AssemblerError, and Numba's errors.
    """
    kept = _memory.setdefault(fn, {})
    place = (tuple(signature), normal_cc(cc), options)
    if place not in kept:
        kept[place] = _from_disk_or_new(fn, *place)
    code = kept[place]
    if strict and code.cubin.advice:
        raise AssemblerError(
            f"{code.cubin.assembler} has made {code.name} slow: {' | '.join(code.cubin.advice)}"
        )
    return code


_memory: "weakref.WeakKeyDictionary[Callable, dict]" = weakref.WeakKeyDictionary()


def _from_disk_or_new(fn, signature, cc, options):
    key = _key(fn, signature, cc, options)
    kept = codecache.read(key) if key else None
    code = kept and _from_disk(kept, fn, signature, cc, options)
    if code:
        return code
    code = _compile(fn, signature, cc, options)
    if key:
        about = {n: getattr(code.cubin, n) for n in ("log", "assembler", "entry")}
        codecache.write(key, about | {"ptx": code.ptx}, code.cubin.code)
    return code


def _key(fn, signature, cc, options):
    try:
        source = fingerprint(fn, lines=options.lineinfo)
    except Unknown:
        return None
    return codecache.key_of(
        source=source, signature=[*map(_type_key, signature)], architecture=architecture(cc),
        options=asdict(options), tools=identity(),
    )  # fmt: skip


def _type_key(kind):
    return f"{type(kind).__name__} {getattr(kind, 'mangling_args', '')} {kind}"


def _from_disk(kept, fn, signature, cc, options):
    try:
        about, code = kept
        cubin = Cubin(code, about["log"], about["assembler"], architecture(cc), about["entry"])
        return Code(fn.__name__, signature, cc, options, about["ptx"], cubin)
    except (KeyError, TypeError):  # written by another version of this file
        return None


def _compile(fn, signature, cc, options):
    choices = asdict(options)
    ltoir = None
    if options.lto:
        ltoir = compile_ltoir(fn, signature, cc, options)
        ptx = plain_names(link_ptx(ltoir, cc), fn.__name__)
    else:
        ptx = compile_ptx(fn, signature, cc, **choices)
    cubin = assemble(
        ptx, cc, max_registers=options.max_registers, lineinfo=options.lineinfo, ltoir=ltoir,
        strict=False,
    )  # fmt: skip
    return Code(fn.__name__, signature, cc, options, ptx, cubin)
