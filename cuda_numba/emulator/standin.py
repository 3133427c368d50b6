"""`cuda` for machines without numba-cuda: a tree of names, each knowing its dotted path.

`cuda.syncthreads` is then an object that says "syncthreads" when the emulator asks what it is, and
refuses to be called anywhere else. The paths that exist are those of `builtins.TWINS`.
"""

from typing import Any


class StandIn:
    """One name of the `cuda` namespace, for example `cuda.shared.array`."""

    def __init__(self, path: str):
        self._path = path

    def __getattr__(self, name: str) -> "StandIn":
        if name.startswith("_"):
            raise AttributeError(name)
        child = StandIn(f"{self._path}.{name}" if self._path else name)
        setattr(self, name, child)  # the same object each time: identity is how it is found
        return child

    def __call__(self, *_args: Any, **_kwargs: Any) -> Any:
        raise TypeError(
            f"cuda.{self._path}: numba-cuda is not installed here, so this name has a meaning only "
            f"inside a kernel that the emulator runs"
        )

    def __repr__(self) -> str:
        return f"<cuda.{self._path} (stand-in)>" if self._path else "<cuda (stand-in)>"


cuda = StandIn("")
