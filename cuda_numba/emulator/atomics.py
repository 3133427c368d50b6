"""`cuda.atomic`: each reads, changes and writes one element as a whole, and returns what was there.

The emulator runs one thread at a time, so an atomic is atomic by itself; what is left to do is the
arithmetic of the array's type, the record for the report, and giving others a turn where a kernel
waits for an atomic in a loop.
"""

import math
from collections.abc import Callable
from typing import Any

from . import handover
from .memory import View


def wrap(dtype: Any, value: Any) -> Any:
    """`value` as an element of an array of `dtype`: integers keep their low bits."""
    if dtype.kind == "u":
        return int(value) & ((1 << 8 * dtype.itemsize) - 1)
    if dtype.kind == "i":
        half = 1 << (8 * dtype.itemsize - 1)
        return ((int(value) + half) & (2 * half - 1)) - half
    return dtype.type(value)


def atomic(change: Callable[..., Any]) -> Callable[..., Any]:
    """change(old, *operands) → the new value, or None to leave the old one."""

    def run(m, x, index, *operands):
        m.scheduler.pause(m)
        place = m.atomic_place(x, index)
        if place is None:  # out of bounds, and listed as that
            return x.dtype.type(0)
        a = x.a if isinstance(x, View) else x
        word = word_of(m, x, place) if m.tracing else None
        if word is not None:
            handover.wrote(m.t, word)
        old = a.item(place) if a.dtype.kind in "iub" else a[place]
        new = change(old, *(wrap(a.dtype, value) for value in operands))
        if new is not None:
            a[place] = new = wrap(a.dtype, new)
            if new != old:
                m.scheduler.idle = 0
        if word is not None:
            # By the letter an atomic acquires only with a fence after it. The last-block pattern
            # of NVIDIA's samples has none there: a branch on the old value keeps the loads behind.
            handover.read(m.t, word, acquire=True)
        return old

    return run


def word_of(m: Any, x: Any, place: tuple[int, ...]) -> Any:
    """The word that hands over what a fence released, or None while no thread has fenced."""
    if not m.fences:
        return None
    address = x.base + sum(i * s for i, s in zip(place, x.strides, strict=True))
    return address if x.space == "global" else (m.t.block.index, address)


def _nanmax(old: Any, value: Any) -> Any:
    return value if math.isnan(old) or value > old else None


def _nanmin(old: Any, value: Any) -> Any:
    return value if math.isnan(old) or value < old else None


ATOMICS: dict[str, Callable[..., Any]] = {
    "add": atomic(lambda old, value: old + value),
    "sub": atomic(lambda old, value: old - value),
    "and_": atomic(lambda old, value: old & value),
    "or_": atomic(lambda old, value: old | value),
    "xor": atomic(lambda old, value: old ^ value),
    "inc": atomic(lambda old, limit: 0 if old >= limit else old + 1),
    "dec": atomic(lambda old, limit: limit if old == 0 or old > limit else old - 1),
    "exch": atomic(lambda old, value: value),
    "max": atomic(lambda old, value: value if value > old or value != value else None),
    "min": atomic(lambda old, value: value if value < old or value != value else None),
    "nanmax": atomic(_nanmax),
    "nanmin": atomic(_nanmin),
    "cas": atomic(lambda old, expected, value: value if old == expected else None),
}


def compare_and_swap(m, x, expected, value):
    """On the first element, as Numba has it."""
    return ATOMICS["cas"](m, x, 0, expected, value)


ATOMICS["compare_and_swap"] = compare_and_swap
