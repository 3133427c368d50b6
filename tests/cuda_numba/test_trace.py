"""Requests, sectors, bank conflicts and divergence, against known cases and a slow oracle."""

import time
from collections import defaultdict

import numpy as np
import pytest
from synthetic_trace import GLOBAL, SHARED, Counts, Log, random_log

from cuda_numba.emulator import requests
from cuda_numba.emulator.divergence import part_branches, part_loops
from cuda_numba.emulator.requests import pack, spread
from cuda_numba.emulator.trace import WARP, Trace
from cuda_numba.emulator.traffic import Traffic, footprint, traffic_of_sites


def one(addresses, *, kind="load", space="global", nbytes=4, via="") -> Traffic:
    """The traffic of one warp's instruction."""
    log = Log()
    log.warp(log.site(1, kind, space, nbytes, via=via), addresses)
    return traffic_of_sites(log.trace())[0]


def elements(indices, nbytes=4, base=GLOBAL):
    return [base + nbytes * i for i in indices]


# ---- global memory ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "indices, nbytes, sectors, efficiency",
    [
        (range(32), 4, 4, 1.0),
        (range(31, -1, -1), 4, 4, 1.0),
        (range(0, 64, 2), 4, 8, 0.5),
        (range(0, 1024, 32), 4, 32, 0.125),
        (range(1, 33), 4, 5, 0.8),  # misaligned by one element
        (range(5), 4, 1, 20 / 32),
        ([0] * 32, 4, 1, 0.125),  # a broadcast moves one sector
        (range(32), 8, 8, 1.0),
        (range(32), 16, 16, 1.0),
        (range(0, 64, 2), 16, 32, 0.5),
        (range(32), 1, 1, 1.0),
        (range(32), 2, 2, 1.0),
    ],
)
def test_sectors_of_known_patterns(indices, nbytes, sectors, efficiency):
    indices = list(indices)
    t = one(elements(indices, nbytes), nbytes=nbytes)
    assert (t.requests, t.accesses, t.requested) == (1, len(indices), nbytes * len(indices))
    assert (t.sectors, t.efficiency) == (sectors, efficiency)
    assert t.ideal == -(-len(set(indices)) * nbytes // 32)
    assert t.moved == 32 * sectors


def test_partial_warp_is_one_request_and_two_warps_are_two():
    log = Log((64, 1, 1))
    site = log.site(1, "load", "global")
    log.warp(site, [GLOBAL + 4 * i if i % 3 == 0 else None for i in range(32)])
    log.warp(site, elements(range(32, 64)), first=32)
    t = traffic_of_sites(log.trace())[0]
    assert (t.requests, t.accesses, t.sectors) == (2, 11 + 32, 8)


def test_paths_separate_requests_and_order_does_not_matter():
    log = Log()
    site = log.site(1, "load", "global")
    for lane in range(32):  # each lane runs its whole loop before the next lane starts
        for step in range(3):
            log.access(lane, site, GLOBAL + 128 * step + 4 * lane, path=step)
    t = traffic_of_sites(log.trace())[0]
    assert (t.requests, t.sectors, t.efficiency) == (3, 12, 1.0)


def test_an_access_across_sectors_and_bulk_copies():
    assert one([GLOBAL + 24], nbytes=16).sectors == 2
    bulk = one([GLOBAL + 16], nbytes=4096, via="async")
    assert (bulk.sectors, bulk.unique) == (129, 4096)


def test_footprint_counts_each_sector_of_the_launch_once():
    log = Log()
    load, store = log.site(1, "load", "global"), log.site(2, "store", "global")
    for path in range(5):
        log.warp(load, elements(range(32)), path=path)
    log.warp(store, elements(range(32), base=2 * GLOBAL))
    assert footprint(log.trace()) == 2 * 128
    assert footprint(Log().trace()) == 0


# ---- shared memory ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, words, wavefronts",
    [
        ("row", range(32), 1),
        ("broadcast", [7] * 32, 1),
        ("stride 2", range(0, 64, 2), 2),
        ("stride 3", range(0, 96, 3), 1),
        ("column of a 32 × 32 tile", range(0, 1024, 32), 32),
        ("column of a 32 × 33 tile", range(0, 1056, 33), 1),
        ("two rows' broadcast", [0] * 16 + [32] * 16, 2),
    ],
)
def test_conflicts_of_4_byte_accesses(name, words, wavefronts):
    t = one(elements(words, base=SHARED), space="shared")
    assert (t.wavefronts, t.conflicts, t.degree) == (wavefronts, wavefronts - 1, wavefronts)
    assert t.sectors == 0


def test_narrow_accesses_share_words():
    assert one(elements(range(32), 1, SHARED), space="shared", nbytes=1).conflicts == 0
    assert one(elements(range(32), 2, SHARED), space="shared", nbytes=2).conflicts == 0
    stride = one(elements(range(0, 128 * 32, 128), 1, SHARED), space="shared", nbytes=1)
    assert stride.degree == 32


def test_8_bytes_go_by_halves_and_16_by_quarters():
    for nbytes, phases in ((8, 2), (16, 4)):
        t = one(elements(range(32), nbytes, SHARED), space="shared", nbytes=nbytes, kind="store")
        assert (t.wavefronts, t.conflicts, t.degree) == (phases, 0, 1)
        column = elements(range(0, 32 * 128, 128), 1, SHARED)
        t = one(column, space="shared", nbytes=nbytes)
        assert (t.wavefronts, t.conflicts, t.degree) == (32, 32 - phases, 32 // phases)
        few = one(elements(range(3), nbytes, SHARED), space="shared", nbytes=nbytes)
        assert (few.wavefronts, few.conflicts) == (1, 0)


def test_phases_merge_where_lanes_load_in_pairs():
    for nbytes, merged in ((8, 1), (16, 2)):
        for partner in (1, 2):
            places = [i // 2 if partner == 1 else i // 4 * 2 + i % 2 for i in range(32)]
            load = one(elements(places, nbytes, SHARED), space="shared", nbytes=nbytes)
            assert (load.wavefronts, load.conflicts) == (merged, 0)
        same = one(elements([5] * 32, nbytes, SHARED), space="shared", nbytes=nbytes)
        assert same.wavefronts == merged
        broken = [i // 2 for i in range(31)] + [16]  # lane 31 reads what no partner reads
        t = one(elements(broken, nbytes, SHARED), space="shared", nbytes=nbytes)
        assert t.wavefronts == 2 * merged


def swizzled(row, chunk):
    """The 16-byte chunk of a row of 128 bytes, where XOR puts it."""
    return SHARED + 128 * row + 16 * (chunk ^ (row & 7))


def test_ldmatrix_is_served_by_rows_of_eight():
    rows = [SHARED + 128 * (i % 8) + 16 * (i // 8) for i in range(32)]
    plain = one(rows, space="shared", nbytes=16, via="ldmatrix")
    assert (plain.wavefronts, plain.conflicts, plain.degree) == (32, 28, 8)
    rows = [swizzled(i % 8, i // 8) for i in range(32)]
    xor = one(rows, space="shared", nbytes=16, via="ldmatrix")
    assert (xor.wavefronts, xor.conflicts) == (4, 0)
    padded = [SHARED + 144 * (i % 8) + 16 * (i // 8) for i in range(32)]
    assert one(padded, space="shared", nbytes=16, via="ldmatrix").conflicts == 0
    x2 = one(rows[:16], space="shared", nbytes=16, via="ldmatrix", kind="load")
    assert (x2.wavefronts, x2.conflicts) == (2, 0)


def test_ldmatrix_reads_four_rows_even_if_they_are_one():
    row = [SHARED] * 32
    assert one(row, space="shared", nbytes=16, via="ldmatrix").wavefronts == 4
    assert one(row, space="shared", nbytes=16).wavefronts == 2


def test_bulk_copies_have_no_conflicts():
    t = one([SHARED], space="shared", nbytes=8192, kind="store", via="async")
    assert (t.wavefronts, t.conflicts, t.degree) == (64, 0, 1)


def test_atomics_at_one_address_collide():
    assert one([GLOBAL] * 32, kind="atomic").collisions == 32
    assert one(elements(range(32)), kind="atomic").collisions == 1
    t = one(elements([0] * 20 + [1] * 12, base=SHARED), kind="atomic", space="shared")
    assert (t.collisions, t.conflicts) == (20, 0)
    assert one([GLOBAL] * 32).collisions == 0


# ---- against a slow, obviously correct count --------------------------------------------------


def oracle(trace: Trace) -> list[Traffic]:
    requests = defaultdict(list)
    for block, thread, _, _, _, site, path, address in trace.accesses.tolist():
        requests[block, thread // WARP, site, path].append((thread % WARP, address))
    result = [Traffic() for _ in trace.sites]
    for (_, _, number, _), lanes in requests.items():
        site = trace.sites[number]
        t = Traffic(1, len(lanes), site.nbytes * len(lanes))
        if site.space == "global":
            touched = {a + i for _, a in lanes for i in range(site.nbytes)}
            t.unique, t.sectors = len(touched), len({b // 32 for b in touched})
            t.ideal = -(-len(touched) // 32)
        if site.space == "shared":
            t.wavefronts, t.conflicts, t.degree = oracle_banks(site, lanes)
        if site.kind == "atomic":
            where = [a for _, a in lanes]
            t.collisions = max(where.count(a) for a in where)
        result[number] += t
    return result


def oracle_banks(site, lanes):
    group = {16: 8, 8: 16}.get(site.nbytes, 32)
    if site.kind == "load" and site.nbytes >= 8:
        for partner in (1, 2):
            pairs = [(a, b) for i, a in lanes for j, b in lanes if i ^ partner == j or i == j]
            twice = len(pairs) > len(lanes)
            if twice and all(a == b for a, b in pairs):
                group *= 2
                break
    phases = defaultdict(lambda: defaultdict(set))
    for lane, address in lanes:
        for word in range(address // 4, (address + site.nbytes - 1) // 4 + 1):
            phases[lane // group][word % 32].add(word)
    worst = [max(len(words) for words in banks.values()) for banks in phases.values()]
    return sum(worst), sum(worst) - len(worst), max(worst)


@pytest.mark.parametrize("seed", range(40))
def test_random_traffic_agrees_with_the_oracle(seed):
    rng = np.random.default_rng(seed)
    log = random_log(rng, n=400, threads=48, sites=8, words=int(rng.choice([4, 40, 400])))
    rows = {}  # a thread is at one site and path only once
    for row in log.rows:
        rows[row[0], row[1], row[5], row[6]] = row
    log.rows = list(rows.values())
    trace = log.trace()
    assert traffic_of_sites(trace) == oracle(trace)
    touched = {
        (a + i) // 32
        for *_, site, _, a in trace.accesses.tolist()
        for i in range(trace.sites[site].nbytes)
        if trace.sites[site].space == "global"
    }
    assert footprint(trace) == 32 * len(touched)


def test_pack_orders_rows_and_survives_wide_columns():
    rng = np.random.default_rng(0)
    columns = [rng.integers(0, high, 300) for high in (3, 1 << 50, 5, 1 << 61)]
    key = pack(*columns)
    rows = list(zip(*(c.tolist() for c in columns), strict=True))
    order = sorted(range(300), key=lambda i: rows[i])
    assert np.argsort(key, kind="stable").tolist() == order
    assert len(set(key.tolist())) == len(set(rows))
    assert [a.tolist() for a in spread([2, 0, 3])] == [[0, 0, 2, 2, 2], [0, 1, 0, 1, 2]]


def test_a_million_accesses_take_seconds_at_most():
    n = 1 << 20
    log = Log((256, 1, 1), (64, 1, 1))
    log.site(1, "load", "global"), log.site(2, "store", "shared")
    trace = log.trace()
    i = np.arange(n)
    thread, step = i // 64 % 256, i % 64
    block = i // (64 * 256)
    site = step % 2
    address = np.where(site == 0, GLOBAL + 4 * i, SHARED + 4 * thread)
    zero = np.zeros(n, np.int64)
    trace.accesses = np.stack([block, thread, zero, zero, zero, site, step, address], 1)
    start = time.perf_counter()
    load, store = traffic_of_sites(trace)
    assert time.perf_counter() - start < 8  # about 1 s on two idle cores
    assert load.requests == store.requests == n // 64
    assert store.conflicts == 0


# ---- divergence -------------------------------------------------------------------------------


def test_branches_and_loops_part():
    log = Log((64, 1, 1))
    odd, edge = log.branch(3), log.branch(5)
    loop = log.loop(7)
    for thread in range(64):
        for path in range(2):
            log.branches.append((0, thread, odd, path, thread % 2))
        log.branches.append((0, thread, edge, 0, int(thread < 32)))
        log.loops.append((0, thread, loop, 0, 4 if thread < 48 else 1))
    trace = log.trace()
    a, b = part_branches(trace)
    assert (a.executions, a.divergent, a.share) == (4, 4, 1.0)
    assert (b.executions, b.divergent, b.share) == (2, 0, 0.0)
    (c,) = part_loops(trace)
    assert (c.executions, c.divergent) == (2, 1)
    assert (c.trips, c.idle) == (48 * 4 + 16, 16 * 3)
    assert part_branches(Log().trace()) == []


def test_trace_names_threads_blocks_and_source():
    t = Trace("k", "k.py", ["a = 1", "  b = 2 "], 10, (4, 3, 2), (2, 2, 1))
    assert (t.thread(0), t.thread(5), t.thread(23)) == ((0, 0, 0), (1, 1, 0), (3, 2, 1))
    assert (t.block(3), t.n_blocks, t.threads_per_block) == ((1, 1, 0), 4, 24)
    assert (t.text(11), t.text(9), t.text(12)) == ("b = 2", "", "")
    assert Counts().flops == {}


@pytest.mark.parametrize("n", [0, 1, 100, 20_000])
@pytest.mark.parametrize("high", [1, 50, 1 << 20, 1 << 40, 1 << 62])
def test_rows_of_equal_key_are_those_of_numpy(n, high):
    key = np.random.default_rng(n).integers(-high, high, n)
    for k in (key, np.sort(key)):
        np.testing.assert_array_equal(requests.order_of(k), np.argsort(k, kind="stable"))
        _, *expected = np.unique(k, return_index=True, return_inverse=True, return_counts=True)
        for ours, theirs in zip(requests.groups(k), expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)
