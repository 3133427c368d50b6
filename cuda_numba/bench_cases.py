"""What `bench` measures is a `Case`: an operation's inputs, its peers, its bytes and its goal.

The cases themselves are in the modules `bench_softmax`, `bench_matmul` and so on; here is what they
share.

Bytes are what the operation must move at least: each input read once, each output written once.
FLOPs are given where the arithmetic is the limit: then the row is in TFLOP/s.
The checks compare with the reference in float64, on a part of the rows where the whole would not
fit in memory.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import torch

from .stopwatch import sets_for

ROWS, COLUMNS = 16384, 4096
CHECKED_ROWS = 512


@dataclass
class Case:
    """One row to be.

    ours, peers: called with the number of an input set. nbytes: what the operation must read and
    write at least; flops: what it must compute, 0 where the bytes are what counts. error: the
    largest error of `ours` against float64, relative to the largest expected number.

    goal: a share of the copy's bandwidth; beats: share of a peer's rate; goal_value: a rate, in the
    row's unit. Where there are several, the highest is the row's goal.
    """

    op: str
    pass_: str
    shape: dict[str, Any]
    dtype: str
    nbytes: int
    ours: Callable[[int], object]
    error: Callable[[], float]
    sets: int
    peers: dict[str, Callable[[int], object]] = field(default_factory=dict)
    rungs: dict[str, Callable[[int], object]] = field(default_factory=dict)
    goal: float | None = None
    beats: dict[str, float] = field(default_factory=dict)
    flops: int = 0
    goal_value: float | None = None

    @property
    def amount(self) -> int:
        """What the row's rate counts: FLOPs, or bytes."""
        return self.flops or self.nbytes

    @property
    def unit(self) -> str:
        return "TFLOP/s" if self.flops else "TB/s"


def module(name: str) -> Any:
    """A module of this package, where the package itself has a function of that name."""
    return import_module(f"cuda_numba.{name}")


def liger_module(name: str) -> Any:
    """Liger's module, or None where the package is not installed."""
    try:
        return import_module(f"liger_kernel.ops.{name}")
    except ImportError:
        return None


def randn(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(*shape, device="cuda").to(dtype)


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest error, relative to the largest expected number."""
    return ((got.double() - expected).abs().max() / expected.abs().max()).item()


def compiled(fn: Callable) -> Callable:
    """fn under torch.compile, for one shape; it is compiled at the first call."""
    return torch.compile(fn, dynamic=False, mode="max-autotune-no-cudagraphs")


def over(sets: list[tuple], fn: Callable) -> Callable[[int], object]:
    """fn on the arguments of a set, by its number."""
    return lambda i: fn(*sets[i])


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def inputs(nbytes: int, make: Callable[[], tuple]) -> list[tuple]:
    """As many sets of inputs as a call that moves `nbytes` needs to find none of them in L2."""
    return [make() for _ in range(sets_for(nbytes))]
