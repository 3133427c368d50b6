"""The names of the `cuda` namespace in the emulator: places, memory, and all the others.

`TWINS` is whole once this module is imported.
"""

from . import barriers, bit_twins, warps  # noqa: F401  (they fill the table)
from .arrays import bind_shared_array, local_array
from .atomics import ATOMICS, wrap
from .memory import View
from .twin import TWINS, Twin, twin

__all__ = ["TWINS", "Twin"]


# ---- where am I -------------------------------------------------------------------------------


@twin("grid")
def grid(m, n):
    """The thread's place in the whole grid: an int for n = 1, else a tuple."""
    t, b = m.t, m.block_dim
    place = (t.x + t.block.x * b[0], t.y + t.block.y * b[1], t.z + t.block.z * b[2])
    return place[0] if n == 1 else place[:n]


@twin("gridsize")
def gridsize(m, n):
    size = tuple(g * b for g, b in zip(m.grid_dim, m.block_dim, strict=True))
    return size[0] if n == 1 else size[:n]


# ---- arrays -----------------------------------------------------------------------------------

TWINS["shared.array"] = Twin("shared.array", None, memory=True, bind=bind_shared_array)
TWINS["local.array"] = Twin("local.array", local_array, memory=True)


@twin("const.array_like", memory=True)
def array_like(m, a):
    return View(a, "constant", 0, "constant", m.log) if m.tracing else a


for name, run in ATOMICS.items():
    TWINS[f"atomic.{name}"] = Twin(f"atomic.{name}", run, memory=True)


# ---- cache hints: loads and stores like any other ---------------------------------------------


def hinted_load(m, a, i):
    where = m.atomic_place(a, i) if not m.tracing else m.tracer.hinted("load", a, i)
    x = a.a if isinstance(a, View) else a
    value = x[where] if where is not None else x.dtype.type(0)
    return value.item() if x.dtype.kind in "iub" else value


def hinted_store(m, a, i, value):
    where = m.atomic_place(a, i) if not m.tracing else m.tracer.hinted("store", a, i)
    x = a.a if isinstance(a, View) else a
    if where is not None:
        x[where] = wrap(x.dtype, value)


for hint in ("ldca", "ldcg", "ldcs", "ldlu", "ldcv"):
    TWINS[hint] = Twin(hint, hinted_load, memory=True)
for hint in ("stcg", "stcs", "stwb", "stwt"):
    TWINS[hint] = Twin(hint, hinted_store, memory=True)
