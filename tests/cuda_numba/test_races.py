"""Races and uninitialised reads: known cases, and random traces against a slow oracle."""

import numpy as np
import pytest
from synthetic_trace import GLOBAL, SHARED, Log, random_log

from cuda_numba.emulator.races import find_races
from cuda_numba.emulator.trace import WARP
from cuda_numba.emulator.uninitialised import find_uninitialised
from cuda_numba.emulator.words import Words

SOURCE = "s[i] = x\nbarrier\ny = s[i + 1]\nout[i] = y"


def races(log):
    return find_races(log.trace())[0]


def neighbours(threads=64, *, barrier=False, warp_barrier=False, kind="store"):
    """Every thread writes its word, then reads its neighbour's."""
    log = Log((threads, 1, 1), source=SOURCE)
    write, read = log.site(1, kind, "shared"), log.site(3, "load", "shared")
    for thread in range(threads):
        log.access(thread, write, SHARED + 4 * thread)
        log.access(
            thread, read, SHARED + 4 * ((thread + 1) % threads),
            epoch=int(barrier), warp_epoch=int(warp_barrier),
        )  # fmt: skip
    return log


def test_a_missing_barrier_is_one_finding_with_lines_threads_and_text():
    (found,) = races(neighbours())
    assert (found.kind, found.lines, found.count) == ("race", (1, 3), 64)
    assert found.threads == ((32, 0, 0), (31, 0, 0))  # across warps is said first
    assert found.block == (0, 0, 0)
    assert found.message == (
        "line 1 `s[i] = x` by thread (32, 0, 0) and line 3 `y = s[i + 1]` by thread (31, 0, 0) "
        "of block (0, 0, 0): no barrier between them (64 times)"
    )
    assert str(found).startswith("race: line 1")


def test_findings_do_not_depend_on_the_size_of_batches(monkeypatch):
    log = random_log(np.random.default_rng(7), n=400, threads=70)
    for trace in (neighbours().trace(), log.trace(), handing_over(3)):
        whole = find_races(trace)[0]
        assert whole
        monkeypatch.setattr("cuda_numba.emulator.races.BATCH", 1)
        assert find_races(trace)[0] == whole
        monkeypatch.undo()


def test_barriers_order():
    assert races(neighbours(barrier=True)) == []
    assert races(neighbours(32, warp_barrier=True)) == []
    (across,) = races(neighbours(64, warp_barrier=True))  # a warp's barrier is not the block's
    assert across.count == 2
    (within,) = races(neighbours(32))
    assert "neither syncwarp nor a barrier between them" in within.message


def test_atomics_race_only_with_plain_accesses():
    log = Log((64, 1, 1))
    add = log.site(2, "atomic", "global")
    for thread in range(64):
        log.access(thread, add, GLOBAL)
    assert races(log) == []
    look = log.site(5, "load", "global")
    log.access(7, look, GLOBAL)
    (found,) = races(log)
    assert found.lines == (2, 5)
    assert "only one of them is atomic" in found.message


def test_two_writes_race_even_with_the_same_value():
    log = Log((64, 1, 1))
    write = log.site(4, "store", "shared")
    for thread in range(64):
        log.access(thread, write, SHARED)
    (found,) = races(log)
    assert (found.lines, found.count) == ((4,), 1)
    assert "left to chance" in found.message
    assert len(set(found.threads)) == 2


def test_different_sizes_overlap_and_neighbours_do_not():
    log = Log((64, 1, 1))
    byte, word, vector = (log.site(i, "store", "global", 4**i) for i in range(3))
    log.access(0, byte, GLOBAL + 3)
    log.access(33, word, GLOBAL + 4)
    assert races(log) == []
    log.access(40, word, GLOBAL)
    (found,) = races(log)
    assert found.lines == (0, 1)
    log.access(2, vector, GLOBAL)
    assert {f.lines for f in races(log)} == {(0, 1), (0, 2), (1, 2)}
    bytes_of_one_word = Log((4, 1, 1))
    site = bytes_of_one_word.site(1, "store", "global", 1)
    for thread in range(4):
        bytes_of_one_word.access(thread, site, GLOBAL + thread)
    assert races(bytes_of_one_word) == []


def test_blocks_are_ordered_by_the_grid_alone():
    def log(epochs, kind="store"):
        log = Log((1, 1, 1), (2, 1, 1))
        write, read = log.site(1, kind, "global"), log.site(2, "load", "global")
        log.access(0, write, GLOBAL, block=0, epoch=epochs[0])
        log.access(0, read, GLOBAL, block=1, epoch=epochs[1])
        return log

    (found,) = races(log((0, 7)))  # seven barriers of the other block order nothing
    assert "block (0, 0, 0) and line 2 by thread (0, 0, 0) of block (1, 0, 0)" in found.message
    assert "blocks of one launch are not ordered" in found.message
    assert races(log((3, 1 << 32))) == []
    shared = Log((1, 1, 1), (2, 1, 1))
    write = shared.site(1, "store", "shared")
    for block in range(2):
        shared.access(0, write, SHARED, block=block)
    assert races(shared) == []  # each block has its own
    shared.access(0, write, (1 << 32) + SHARED, block=1)  # block 1 writes into block 0
    assert len(races(shared)) == 1


def test_reads_only_never_race():
    log = Log((64, 1, 1), (2, 1, 1))
    read, write = log.site(1, "load", "global"), log.site(2, "store", "global")
    for block in range(2):
        for thread in range(64):
            log.access(thread, read, GLOBAL, block=block)
            log.access(thread, write, 2 * GLOBAL + 256 * block + 4 * thread, block=block)
    assert races(log) == []


# ---- vector clocks ----------------------------------------------------------------------------


def handed_over(clocks, *, stamps=None, interval=0, read_interval=1, by=0, warp_epoch=0):
    """Thread `by` writes in `interval`, thread 64 reads in `read_interval`."""
    log = Log((96, 1, 1))
    write, read = log.site(1, "store", "shared"), log.site(2, "load", "shared")
    log.access(by, write, SHARED, interval=interval, warp_epoch=warp_epoch)
    log.access(64, read, SHARED, interval=read_interval)
    trace = log.trace()
    trace.clocks, trace.stamps = clocks, stamps or {}
    return find_races(trace)[0]


def test_release_and_acquire_order():
    clocks = {(0, 64): [(1, {0: 1})]}
    assert handed_over(clocks) == []
    assert len(handed_over(clocks, interval=1)) == 1  # written after the release
    assert len(handed_over(clocks, read_interval=0)) == 1  # read before the acquire
    assert handed_over(clocks, read_interval=5) == []
    assert len(handed_over({(0, 33): [(1, {0: 1})]})) == 1  # another thread acquired


def test_a_warp_barrier_before_the_release_hands_on():
    clocks = {(0, 64): [(1, {0: 1})]}  # lane 0 released for its warp
    stamps = {(0, 0): [(0, 0), (0, 1)]}  # after one syncwarp
    assert handed_over(clocks, by=5, stamps=stamps) == []
    assert len(handed_over(clocks, by=5)) == 1
    assert len(handed_over(clocks, by=5, stamps=stamps, warp_epoch=1)) == 1
    assert len(handed_over(clocks, by=33, stamps=stamps)) == 1  # of another warp


def test_a_block_barrier_before_the_release_hands_on_to_other_blocks():
    """Every thread writes; syncthreads; thread 0 counts; the last block reads everything."""

    def last_block(stamped):
        log = Log((64, 1, 1), (2, 1, 1))
        write, read = log.site(1, "store", "global"), log.site(2, "load", "global")
        for thread in range(64):
            log.access(thread, write, GLOBAL + 4 * thread, block=0)
        log.access(0, read, GLOBAL + 4 * 40, block=1, epoch=1, interval=1)
        trace = log.trace()
        trace.clocks = {(1, 0): [(1, {0: 1})]}
        trace.stamps = {(0, 0): [(0, 0), (1, 0)]} if stamped else {}
        return find_races(trace)[0]

    assert last_block(True) == []
    assert len(last_block(False)) == 1


# ---- against a slow, obviously correct search -------------------------------------------------


def oracle_ordered(trace, a, b):
    if (a[0], a[1]) == (b[0], b[1]):
        return True
    if a[2] >> 32 != b[2] >> 32:
        return True
    if a[0] == b[0]:
        if a[2] != b[2]:
            return True
        if a[1] // WARP == b[1] // WARP and a[3] != b[3]:
            return True
    known = {}
    for start, clock in trace.clocks.get((b[0], b[1]), ()):
        if start <= b[4]:
            known = clock
    return known.get(a[0] * trace.threads_per_block + a[1], 0) > a[4]


def observed(trace, rows, a, b, byte):
    """Whether an atomic between a (atomic) and b (not) at the same bytes comes before b."""

    def mask(row):
        s = trace.sites[row[5]]
        return {n for n in range(row[7], row[7] + s.nbytes) if n // 4 == byte // 4}

    def memory(row):
        space = trace.sites[row[5]].space
        return space, row[0] if space == "shared" else None

    if trace.sites[rows[a][5]].kind != "atomic":
        return False
    return any(
        trace.sites[r[5]].kind == "atomic"
        and memory(r) == memory(rows[a])
        and mask(r) == mask(rows[a])
        and oracle_ordered(trace, r, rows[b])
        for r in rows[a + 1 : b]
    )


def oracle(trace):
    """Pairs of sites, and of lines with the number of words and epochs in which they race."""
    rows = trace.accesses.tolist()
    found = {}
    for j, b in enumerate(rows):
        for i, a in enumerate(rows[:j]):
            s, t = trace.sites[a[5]], trace.sites[b[5]]
            if s.space != t.space or (s.space == "shared" and a[0] != b[0]):
                continue
            if s.kind == t.kind == "load" or s.kind == t.kind == "atomic":
                continue
            common = range(max(a[7], b[7]), min(a[7] + s.nbytes, b[7] + t.nbytes))
            if common and not oracle_ordered(trace, a, b):
                common = [n for n in common if not observed(trace, rows, i, j, n)]
            else:
                common = []
            if common:
                lines = tuple(sorted((s.line, t.line)))
                words = found.setdefault(lines, set())
                epoch = (a[0], a[2]) if a[0] == b[0] else ("across", a[2] >> 32)
                words |= {(s.space, epoch, byte // 4) for byte in common}
    return {lines: len(words) for lines, words in found.items()}


def found_pairs(trace):
    found, _ = find_races(trace)
    return {(f.lines[0], f.lines[-1]): f.count for f in found}


@pytest.mark.parametrize("seed", range(60))
def test_random_epochs_agree_with_the_oracle(seed):
    rng = np.random.default_rng(seed)
    few = seed % 2
    log = random_log(
        rng, n=250, threads=[70, 40][few], sites=6, words=[3, 30][seed % 3 == 0],
        blocks=[3, 1][few],
    )  # fmt: skip
    trace = log.trace()
    assert found_pairs(trace) == oracle(trace)


def handing_over(seed):
    """A trace of few threads that release to and acquire from each other all the time."""
    rng = np.random.default_rng(1000 + seed)
    log = Log((40, 1, 1), (2, 1, 1))
    for line in range(1, 9):
        kind = ["load", "store", "atomic"][rng.choice(3, p=[0.5, 0.4, 0.1])]
        log.site(line, kind, ["global", "shared"][line % 2], int(2 ** rng.integers(4)))
    clocks, mine = {}, {}
    tokens = [{} for _ in range(2)]
    for _ in range(160):
        block, thread = int(rng.choice([0, 0, 1])), int(rng.choice([0, 1, 33]))
        key, who = block * 40 + thread, (block, thread)
        clock, interval = mine.get(who, ({}, 0))
        token = tokens[rng.integers(2)]
        what = rng.random()
        if what < 0.3:
            for k, v in {**clock, key: interval + 1}.items():
                token[k] = max(v, token.get(k, 0))
        elif what < 0.75:
            clock = {k: max(clock.get(k, 0), token.get(k, 0)) for k in clock.keys() | token.keys()}
        if what < 0.75:
            mine[who] = clock, interval + 1
            clocks.setdefault(who, []).append((interval + 1, dict(clock)))
            continue
        site = int(rng.integers(8))
        s = log.t.sites[site]
        offset = int(rng.integers(16)) // s.nbytes * s.nbytes
        base = GLOBAL if s.space == "global" else SHARED
        log.access(thread, site, base + offset, block=block, interval=interval)
    trace = log.trace()
    trace.clocks = clocks
    return trace


def test_random_clocks_agree_with_the_oracle():
    clocks_matter = 0
    for seed in range(60):
        trace = handing_over(seed)
        truth = set(oracle(trace))
        assert set(found_pairs(trace)) == truth
        trace.clocks = {}
        clocks_matter += set(oracle(trace)) != truth
    assert clocks_matter > 40


# ---- uninitialised memory ---------------------------------------------------------------------


def uninitialised(log, **more):
    trace = log.trace()
    for name, value in more.items():
        setattr(trace, name, value)
    _, racing = find_races(trace)
    return find_uninitialised(trace, racing)


def test_reading_before_writing_is_found():
    log = Log((32, 1, 1), source="a\ny = s[i]")
    read = log.site(2, "load", "shared", array="s")
    log.warp(read, [SHARED + 4 * i for i in range(32)])
    (found,) = uninitialised(log)
    assert (found.kind, found.lines, found.count) == ("uninitialised", (2,), 32)
    assert "line 2 `y = s[i]` by thread (0, 0, 0)" in found.message
    assert "shared array s" in found.message


def test_written_first_is_fine_and_partly_written_is_not():
    log = Log((32, 1, 1))
    byte, word = log.site(1, "store", "shared", 1), log.site(2, "load", "shared", 4)
    vector = log.site(3, "store", "shared", 16)
    log.access(0, vector, SHARED)
    log.access(0, word, SHARED + 12)
    assert uninitialised(log) == []
    for i in range(3):
        log.access(0, byte, SHARED + 16 + i)
    log.access(0, word, SHARED + 16)
    (found,) = uninitialised(log)
    assert found.lines == (2,)
    log.rows.insert(2, (0, 0, 0, 0, 0, byte, 0, SHARED + 19))
    assert uninitialised(log) == []


def test_local_arrays_belong_to_their_thread_and_shared_ones_to_their_block():
    log = Log((2, 1, 1), (2, 1, 1))
    write, read = log.site(1, "store", "local"), log.site(2, "load", "local")
    log.access(0, write, 1 << 32)
    log.access(0, read, 1 << 32)
    assert uninitialised(log) == []
    log.access(1, read, 1 << 32)
    (found,) = uninitialised(log)
    assert found.threads == ((1, 0, 0),)
    shared = Log((1, 1, 1), (2, 1, 1))
    write, read = shared.site(1, "store", "shared"), shared.site(2, "load", "shared")
    shared.access(0, write, SHARED, block=0)
    shared.access(0, read, SHARED, block=1)
    (found,) = uninitialised(shared)
    assert found.block == (1, 0, 0)


def test_an_atomic_reads():
    log = Log((1, 1, 1))
    log.access(0, log.site(3, "atomic", "shared"), SHARED)
    assert [f.lines for f in uninitialised(log)] == [(3,)]


def test_where_a_race_is_the_reason_it_alone_is_named():
    log = neighbours()  # thread 0 reads word 1 before thread 1 has written it
    assert uninitialised(log) == []
    empty = Words(*(np.zeros(0, np.int64) for _ in range(4)))
    assert find_uninitialised(log.trace(), empty) != []


def test_marked_global_arrays():
    log = Log((32, 1, 1))
    read, write = log.site(1, "load", "global", array="out"), log.site(2, "store", "global", 2)
    log.access(0, write, GLOBAL + 4)
    log.access(0, write, GLOBAL + 6)
    log.access(0, read, GLOBAL + 4)
    assert uninitialised(log, written={0: np.zeros(64, bool)}) == []
    log.access(0, read, GLOBAL + 8)
    (found,) = uninitialised(log, written={0: np.zeros(64, bool)})
    assert (found.lines, found.count) == ((1,), 1)
    assert uninitialised(log, written={0: np.arange(64) >= 8}) == []
    assert len(uninitialised(log, written={0: np.arange(64) >= 9})) == 1
    assert uninitialised(log, written=None) == []


@pytest.mark.parametrize("seed", range(30))
def test_random_first_accesses_agree_with_the_oracle(seed):
    rng = np.random.default_rng(seed)
    log = random_log(rng, n=120, threads=4, sites=6, words=20, spaces=("shared", "local"))
    trace = log.trace()
    seen, first = set(), {}
    for i, (block, thread, *_, number, _, address) in enumerate(trace.accesses.tolist()):
        site = trace.sites[number]
        owner = (site.space, block, thread if site.space == "local" else None)
        fresh = {(owner, address + k) for k in range(site.nbytes)} - seen
        seen |= fresh
        if fresh and site.kind != "store":
            first.setdefault((site.line, site.space), []).append(i)
    empty = Words(*(np.zeros(0, np.int64) for _ in range(4)))
    found = find_uninitialised(trace, empty)
    ours = {(f.lines[0], "local" if "local" in f.message else "shared"): f.count for f in found}
    assert ours == {key: len(rows) for key, rows in first.items()}
