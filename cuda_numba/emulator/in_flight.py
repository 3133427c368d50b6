"""A copy on its way to shared memory: until it has been waited for, its destination holds poison.

It can land earlier (a seed decides), which changes the bytes but not that they must not be touched
yet: reading them is a `missing_wait`, writing them a race.
"""

from typing import Any

import numpy as np

from . import shadow
from .memory import POISON


class Copy:
    """Bytes under way.

    name: the instruction; thread, line, origin, path: who started it, where in the source, and in
    which iteration of the loops around it (two copies of one place are two requests); block, low,
    high: the destination; target: the bytes there; places: which of them each byte of `data`
    goes to, None where they simply follow each other.
    """

    __slots__ = ("block", "data", "done", "high", "landed", "line", "low", "name", "number")
    __slots__ += ("origin", "path", "places", "target", "thread")

    def __init__(
        self,
        t: Any,
        name: str,
        block: Any,
        address: int,
        data: np.ndarray,
        target: np.ndarray,
        places: np.ndarray | None = None,
    ):
        self.thread, self.name, self.block = t, name, block
        self.data, self.target, self.places = data, target, places
        self.line, self.origin, self.path = t.line, t.machine.origin, t.path
        self.low, self.high = address, address + len(target)
        self.landed = self.done = False
        shadow.begin(self)
        target[:] = POISON
        if t.machine.rng is not None and t.machine.rng.random() < 0.5:
            self.land()

    def land(self) -> None:
        """The bytes arrive."""
        if not self.landed:
            self.landed = True
            if self.places is None:
                self.target[:] = self.data
            else:
                self.target[self.places] = self.data

    def finish(self) -> None:
        """The copy has been waited for."""
        self.land()
        self.done = True
        shadow.end(self)
