"""One access of a thread, 16 bytes or one element, converted to and from float32 on the way.

Kernels that convert what they read at once are written over these two, for either width:

    width > 1     |x[i] x[i+1] … x[i+width−1]|  ↔  values[j : j + width]    16 bytes, aligned
    width == 1    |x[i]|                        ↔  values[j]                any address

Where the words stay as they came and are converted later: see `norm_access`.
"""

from typing import Any

from . import ptx
from .jit import jit


@jit(device=True)
def load_element(x, i, values, j):
    values[j] = ptx.load(x, i)


@jit(device=True)
def store_element(y, i, values, j):
    ptx.store(y, i, values[j])


def loader(width: int, vector: Any) -> Any:
    """What a kernel calls as load(x, i, values, j).

    vector: the instruction for 16 bytes, such as `ptx.load_vector`; a suffix of it is a cache hint
    (see ptx.memory). A single element has none.
    """
    return vector if width > 1 else load_element


def storer(width: int, vector: Any) -> Any:
    """What a kernel calls as store(y, i, values, j); vector: such as `ptx.store_vector`."""
    return vector if width > 1 else store_element
