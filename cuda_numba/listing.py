"""The first kernel in three languages: Python, PTX and SASS, and which lines belong together.

    listing(add)     # compiled now: needs the compiler's wheels, no GPU
    recorded()       # what `python -m cuda_numba.listing` wrote, for machines without a compiler

A listing is a dict: "python", "ptx" and "sass" are lists of [text, part], where part is the number
of the Python line (from 0, after the `def`) that an instruction works for, or None; "registers" has
the registers of a thread for each kernel and architecture; "architecture", "versions", "date" say
where it comes from.
"""

import importlib
import inspect
import json
import re
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from .jit import Kernel, jit
from .namespace import cuda, float32, int32  # noqa: F401  of the annotations

RECORDED = Path(__file__).parent / "recorded" / "first_kernel.json"
CC = (9, 0)
ARCHITECTURES = {"sm_75": (7, 5), "sm_80": (8, 0), "sm_89": (8, 9), "sm_90": (9, 0)}
POINTERS = ("float32[:]", "float32[:]", "float32[:]", "int32")

# Arguments that come from constant memory, labels and the end belong to no line in particular.
NOBODY = re.compile(r"ld\.param|U?LDC|USHF|\$L.*:|ret;|EXIT$")
GUARD = re.compile(r"setp\.|@%p\d+ bra|I?SETP|@!?P\d+ (EXIT|BRA)")


@jit(pointers=True)
def add(a: "float32", b: "float32", out: "float32", n: "int32"):
    i = cuda.grid(1)
    if i < n:
        out[i] = a[i] + b[i]


def listing(kernel: Kernel = add, cc=CC, signature: tuple = POINTERS) -> dict:
    """The kernel on one architecture. Raises MissingTool where there is no compiler.

    kernel: three lines (thread number, guard, work), as `add`; signature: as Kernel.ptx takes it.
    """
    code = kernel.code(cc, signature)
    return {
        "python": python_lines(kernel),
        "ptx": parted(ptx_lines(code.ptx)),
        "sass": parted(sass_lines(code.sass)),
        "registers": registers(),
        "architecture": re.search(r"\.target (\w+)", code.ptx)[1],
        "versions": {"numba-cuda": metadata.version("numba-cuda"), "ptxas": assembler(code.ptx)},
        "date": datetime.now(UTC).date().isoformat(),
    }


def recorded() -> dict:
    """The listing that was written on a machine with a compiler."""
    return json.loads(RECORDED.read_text(encoding="utf-8"))


def python_lines(kernel: Kernel) -> list[list]:
    lines = inspect.getsource(kernel.function).splitlines()
    start = next(i for i, line in enumerate(lines) if line.lstrip().startswith("def "))
    lines = [line for line in lines[start:] if line.strip()]
    lines[0] = re.sub(r': "\w+"', "", lines[0])  # the types are in the PTX
    return [[line, k - 1 if k else None] for k, line in enumerate(lines)]


def ptx_lines(ptx: str) -> list[str]:
    """The instructions of the only kernel, without declarations."""
    body = ptx[ptx.index("{") + 1 : ptx.rindex("}")].splitlines()
    lines = (re.sub(r"\s+", " ", line).strip() for line in body)
    return [line for line in lines if line and not line.startswith((".", "//"))]


def sass_lines(sass: str) -> list[str]:
    """The instructions up to the last EXIT, without addresses in the code."""
    found = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(.+?)\s*;", sass)
    last = max(i for i, line in enumerate(found) if line.endswith("EXIT"))
    return found[: last + 1]


def parted(instructions: list[str]) -> list[list]:
    """Each with its line of `add`: 0 before the guard, 1 the guard, 2 after it."""
    found, now = [], 0
    for text in instructions:
        if GUARD.match(text):
            found.append([text, 1])
            now = 2
        else:
            found.append([text, None if NOBODY.match(text) else now])
    return found


def assembler(ptx: str) -> str:
    """The release of the compiler as the PTX itself says it."""
    return re.search(r"release ([\d.]+)", ptx)[1]


def registers() -> dict[str, dict[str, int]]:
    """Registers of a thread for some kernels: kernel → architecture → number."""
    vector_add = importlib.import_module(".vector_add", __package__)
    softmax = importlib.import_module(".softmax", __package__)
    team = softmax.team_of(4096, 8, softmax.FORWARD)
    kernels = {
        "add": (add, POINTERS),
        "add, 16 bytes": (
            vector_add.add_kernel("float32", 4),
            ("float32[:]",) * 3 + ("int64",) * 2,
        ),
        "softmax, three reads": (softmax.softmax_naive, ("float32[:, :]",) * 2),
        "softmax, one read": (
            softmax.forward_kernel("bfloat16", team),
            ("uint16[:]",) * 2 + ("uint32",) * 2,
        ),
    }
    return {
        name: {arch: kernel.resources(cc, signature).registers
               for arch, cc in ARCHITECTURES.items()}
        for name, (kernel, signature) in kernels.items()
    }  # fmt: skip


def main() -> None:
    RECORDED.parent.mkdir(exist_ok=True)
    text = json.dumps(listing(), indent=1, ensure_ascii=False) + "\n"
    RECORDED.write_text(text, encoding="utf-8", newline="\n")
    print(f"wrote {RECORDED.name}")


if __name__ == "__main__":
    main()
