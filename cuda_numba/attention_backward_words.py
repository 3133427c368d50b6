"""Words that the roles of the backward kernel share."""

from .jit import jit
from .namespace import cuda, int32, uint32

END = 0x7FFFFFFF  # no block of keys: the mark of the last tile, and of no block of queries
FULL_WARP = 0xFFFFFFFF


@jit(device=True)
def bit(x, k):
    """Bit k of a word. (Numba makes 64 bits of x >> k & 1, and of a loop's variable with it.)"""
    return uint32(uint32(x >> uint32(k)) & uint32(1))


@jit(device=True)
def uniform(x):
    """x, which is the same for all lanes: told so, the compiler keeps it in uniform registers."""
    return uint32(cuda.shfl_sync(FULL_WARP, int32(x), 0))
