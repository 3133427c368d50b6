"""Bank conflicts: how many wavefronts a request for shared memory takes.

Shared memory has 32 banks of 4 bytes. One wavefront reads or writes one word in each; lanes that
ask for the same word share it. Warps are served whole for accesses of up to 4 bytes, by halves for
8 bytes, by quarters for 16 bytes (also ldmatrix and stmatrix: one quarter gives the eight row
addresses of one matrix). Where lanes i and i ^ 1, or i and i ^ 2, load the same 8 or 16 bytes
throughout a warp, two of these phases are served as one.

A request's conflicts are its wavefronts beyond one for each phase that has an active lane, which is
what Nsight Compute counts as `l1tex__data_bank_conflicts_pipe_lsu_mem_shared`.
"""

import numpy as np

from .requests import groups, order_of, pack, split, spread, starts

BANKS = 32
WORD = 4
ROW = BANKS * WORD  # bytes of one wavefront


def count_wavefronts(
    number: np.ndarray,
    lane: np.ndarray,
    address: np.ndarray,
    nbytes: np.ndarray,
    pairs: np.ndarray,
    n_requests: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Wavefronts, least wavefronts, and the degree of the worst phase of each request, all int64.

    number, lane, address, nbytes int64 (n,): one row for each access; pairs bool (n,): an ordinary
    load, for which phases can merge. Bulk copies (more than 16 bytes) have no conflicts.
    """
    wavefronts, least, degree = (np.zeros(n_requests, np.int64) for _ in range(3))
    bulk = nbytes > 16
    if bulk.any():
        rows = -(-nbytes[bulk] // ROW)
        np.add.at(wavefronts, number[bulk], rows)
        np.add.at(least, number[bulk], rows)
        degree[number[bulk]] = 1
        keep = ~bulk
        number, lane, address, nbytes = number[keep], lane[keep], address[keep], nbytes[keep]
        pairs = pairs[keep]
    if not len(number):
        return wavefronts, least, degree
    word, request_phase = address // WORD, number * 4
    if (nbytes > WORD).any():
        phase = np.where(nbytes > 8, lane >> 3, np.where(nbytes > 4, lane >> 4, 0))
        wide = pairs & (nbytes > 4)
        if wide.any():
            merges = _paired(number[wide], lane[wide], address[wide], n_requests)
            phase[wide] >>= merges[number[wide]]
        row, within = spread(-(-nbytes // WORD))
        word, request_phase = word[row] + within, (request_phase + phase)[row]
    # One row for each distinct word of a phase, in order of (request, phase, bank).
    bank = word & (BANKS - 1)  # % takes longer
    distinct = groups(pack(request_phase, bank, word // BANKS))[0]
    request_phase, bank = request_phase[distinct], bank[distinct]
    at_bank = np.flatnonzero(starts(request_phase * BANKS + bank))
    in_bank = np.diff(np.append(at_bank, len(bank)))
    request_phase = request_phase[at_bank]
    at_phase = np.flatnonzero(starts(request_phase))
    worst = np.maximum.reduceat(in_bank, at_phase)
    request = request_phase[at_phase] // 4
    np.add.at(wavefronts, request, worst)
    np.add.at(least, request, 1)
    np.maximum.at(degree, request, worst)
    return wavefronts, least, degree


def _paired(
    number: np.ndarray, lane: np.ndarray, address: np.ndarray, n_requests: int
) -> np.ndarray:
    """Whether in a request all active lanes i, i ^ 1, or all i, i ^ 2, have one address."""
    holds = np.zeros(n_requests, bool)
    for bit in (0, 1):
        key = number * 32 + (lane & ~(1 << bit))  # both lanes of a pair have it
        order = order_of(key)
        key, at, request = key[order], address[order], number[order]
        partners = ~starts(key)
        differ = np.zeros(n_requests, bool)
        differ[request[1:][partners[1:] & (at[1:] != at[:-1])]] = True
        seen = np.zeros(n_requests, bool)
        seen[request[partners]] = True
        holds |= seen & ~differ
    return holds.astype(np.int64)


def count_collisions(number: np.ndarray, address: np.ndarray, n_requests: int) -> np.ndarray:
    """The largest number of lanes of each request that meet at one address, int64 (n_requests,).

    Atomics at one address are done one after another.
    """
    key = pack(number, *split(address))
    first, _, count = groups(key)
    most = np.zeros(n_requests, np.int64)
    np.maximum.at(most, number[first], count)
    return most
