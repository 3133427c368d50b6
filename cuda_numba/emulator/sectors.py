"""Coalescing: which 32-byte sectors a request for global memory moves.

L1 asks L2 for whole sectors (CUDA C++ Best Practices Guide, "Coalesced Access to Global Memory").
However the lanes of a warp are permuted, a request moves each sector it touches once. As in Nsight
Compute, `l1tex__t_sectors` is that count summed over requests. Efficiency is the share of the moved
bytes that some lane asked for: a byte that many lanes ask for counts once, so it is at most 1.
"""

import numpy as np

from .requests import order_of, pack, split, starts
from .trace import SECTOR


def count_sectors(
    number: np.ndarray, address: np.ndarray, nbytes: np.ndarray, n_requests: int
) -> tuple[np.ndarray, np.ndarray]:
    """Sectors and distinct bytes of each request, both int64 (n_requests,).

    number, address, nbytes int64 (n,): request, address and size of each access; the accesses of
    one request have one size, so in order of address neither starts nor ends go back.
    """
    order = order_of(pack(number, *split(address)))
    number, address, nbytes = number[order], address[order], nbytes[order]
    new = starts(number)
    gap = np.diff(address, prepend=0)
    fresh = np.where(new, nbytes, np.minimum(nbytes, gap))
    first, last = address // SECTOR, (address + nbytes - 1) // SECTOR
    before = np.concatenate(([-1], last[:-1]))
    before[new] = -1
    sectors = last - np.maximum(first, before + 1) + 1
    return _sum(number, sectors, n_requests), _sum(number, fresh, n_requests)


def _sum(number: np.ndarray, values: np.ndarray, n: int) -> np.ndarray:
    return np.bincount(number, values, n).astype(np.int64)
