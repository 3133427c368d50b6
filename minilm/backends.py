"""Backends: who computes the operations of `ops`, and which of them.

- ``torch`` (the default): PyTorch's own kernels, on a CPU, a GPU or MPS;
- ``numba``: the kernels of `cuda_numba`, written in Python; on CUDA tensors they run on the GPU, on
  CPU tensors on the emulator, which shows everything and takes thousands of times longer.

A backend that is asked for by name is used or refused, never replaced silently. What `numba` has no
kernel for stays with PyTorch, and that is written down here: `computed_by` tells it for each
operation.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Lock

BACKENDS = ("torch", "numba")
OPS = (
    "linear",
    "embedding",
    "layer_norm",
    "layer_norm_residual",
    "rms_norm",
    "rms_norm_residual",
    "gelu",
    "swiglu",
    "rope",
    "softmax",
    "attention",
    "packed_attention",
    "mlp",
    "cross_entropy",
    "linear_cross_entropy",
    "sgd_step",
    "adamw_step",
    "lion_step",
)
# What each backend computes itself. The rest is PyTorch's: SGD, attention with a mask or dropout,
# and whatever stands between the operations (additions, dropout, reshapes).
BACKEND_OPS = {"torch": frozenset(OPS), "numba": frozenset(OPS) - {"sgd_step"}}
DEVICES = {"torch": None, "numba": ("cuda", "cpu")}  # None: every device

# The backend in force, and the operations that it computes.
_state: ContextVar[tuple[str, frozenset[str]]] = ContextVar(
    "minilm_backend", default=("torch", BACKEND_OPS["torch"])
)
_switched = 0  # `with` blocks of any thread that are inside another backend than torch
_lock = Lock()


def backend() -> str:
    """The name of the backend in force."""
    # As long as nobody has switched, the variable is not looked at: torch.compile cannot trace it.
    return _state.get()[0] if _switched else "torch"


def computed_by(op: str, name: str | None = None) -> str:
    """Who computes operation `op` on backend `name`; without a name, here and now.

    "numba" or "torch". Raises ValueError for an operation or a backend that does not exist.
    """
    _check_ops([op])
    if name is None:
        if not _switched:  # as in `backend`
            return "torch"
        name, computed = _state.get()
    else:
        computed = BACKEND_OPS[check_backend(name)]
    return name if op in computed else "torch"


def _check_ops(names: Iterable[str]) -> None:
    for name in names:
        if name not in OPS:
            raise ValueError(f"op: got {name!r}, allowed are {', '.join(map(repr, OPS))}")


def check_backend(name: str, device: str | None = None) -> str:
    """`name`, or a ValueError that says which backends there are.

    device: the type of device ("cpu", "cuda", "mps") that it is to compute on, if known.
    """
    if name not in BACKENDS:
        raise ValueError(f"backend: got {name!r}, allowed are {', '.join(map(repr, BACKENDS))}")
    if device is not None and DEVICES[name] is not None and device not in DEVICES[name]:
        raise ValueError(
            f"backend: {name!r} computes on {' and '.join(DEVICES[name])}, got tensors on {device}"
        )
    return name


@contextmanager
def use_backend(name: str, only: Iterable[str] | None = None) -> Iterator[None]:
    """Run the operations inside the `with` block on backend `name`, in this thread.

    only: operations that it computes, of OPS; PyTorch has the rest. None: all that it has. Raises
    ValueError for a backend or an operation that does not exist.
    """
    computed = BACKEND_OPS[check_backend(name)]
    if only is not None:
        only = frozenset(only)
        _check_ops(sorted(only))
        computed &= only
    token = _state.set((name, computed))
    _count(name != "torch")
    try:
        yield
    finally:
        _count(-(name != "torch"))
        _state.reset(token)


def _count(change: int) -> None:
    global _switched
    with _lock:
        _switched += change
