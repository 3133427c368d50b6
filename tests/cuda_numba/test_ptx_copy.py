"""cp.async: what lands, when, and what the emulator says where a wait or a barrier is missing."""

import numpy as np
import pytest
from ptx_cases import Case, check_compiled, check_emulated, check_gpu, ids
from ptx_compiled import compiled
from ptx_tiles import findings, line_of

from cuda_numba import ptx
from cuda_numba.emulator import emulate
from cuda_numba.namespace import cuda, uint32, uint64

AMPERE, HOPPER = (8, 0), (9, 0, "a")
STAGES = 3


def copy_kernel(nbytes):
    copy = getattr(ptx, f"cp_async_{nbytes}")
    words = nbytes // 4

    def kernel(x, y):
        tile = cuda.shared.array(128, uint32)
        i = cuda.threadIdx.x
        place = uint32(ptx.shared_address(tile) + uint32(nbytes) * uint32(i))
        copy(place, ptx.global_address(x) + uint64(nbytes) * uint64(31 - i))
        ptx.cp_async_commit()
        ptx.cp_async_wait(0)
        cuda.syncthreads()
        for k in range(words):
            y[words * i + k] = tile[words * i + k]

    return kernel


def zfill_kernel(nbytes):
    copy = getattr(ptx, f"cp_async_{nbytes}_zfill")
    words = nbytes // 4

    def kernel(x, y):
        tile = cuda.shared.array(128, uint32)
        i = cuda.threadIdx.x
        place = uint32(ptx.shared_address(tile) + uint32(nbytes) * uint32(i))
        copy(
            place,
            ptx.global_address(x) + uint64(nbytes) * uint64(i),
            uint32(i) % uint32(nbytes + 1),
        )
        ptx.cp_async_commit()
        ptx.cp_async_wait_all()
        cuda.syncthreads()
        for k in range(words):
            y[words * i + k] = tile[words * i + k]

    return kernel


def words(count):
    return lambda rng: [rng.integers(0, 2**32, count, dtype=np.uint64).astype(np.uint32)]


def cut(nbytes):
    def expected(x):
        rows = x.view(np.uint8).reshape(32, nbytes).copy()
        for i in range(32):
            rows[i, i % (nbytes + 1) :] = 0
        return rows.reshape(-1).view(np.uint32)

    return expected


def ring(x, y):
    """Sums over rows of 32 words, three of them under way at a time."""
    tile = cuda.shared.array((STAGES, 32), uint32)
    i = cuda.threadIdx.x
    place = uint32(ptx.shared_address(tile) + uint32(4) * uint32(i))
    source = ptx.global_address(x) + uint64(4) * uint64(i)
    for row in range(STAGES - 1):
        ptx.cp_async_4(place + uint32(128 * row), source + uint64(128 * row))
        ptx.cp_async_commit()
    total = uint32(0)
    for row in range(8):
        ptx.cp_async_wait(STAGES - 2)
        cuda.syncthreads()
        total = uint32(total + tile[row % STAGES, i ^ 1])
        if row + STAGES - 1 < 8:
            stage = (row + STAGES - 1) % STAGES
            ptx.cp_async_4(place + uint32(128 * stage), source + uint64(128 * (row + STAGES - 1)))
        ptx.cp_async_commit()
    y[i] = total


def ring_sums(x):
    rows = x.reshape(8, 32).sum(axis=0, dtype=np.uint64).astype(np.uint32)
    return rows[np.arange(32) ^ 1]


def mbarrier_kernel(x, y):
    """Copies that arrive at an mbarrier by themselves."""
    tile, bars = cuda.shared.array(32, uint32), cuda.shared.array(1, uint64)
    i = cuda.threadIdx.x
    bar = ptx.shared_address(bars)
    if i == 0:
        ptx.mbarrier_init(bar, 32)
    cuda.syncthreads()
    place = uint32(ptx.shared_address(tile) + uint32(4) * uint32(i))
    ptx.cp_async_4(place, ptx.global_address(x) + uint64(4) * uint64(i))
    ptx.cp_async_mbarrier_arrive(bar)
    ptx.mbarrier_wait(bar, 0)
    y[i] = tile[31 - i]


CASES = [
    *(
        Case(f"cp_async_{n}", (f"cp_async_{n}",), copy_kernel(n), words(8 * n),
             lambda x, n=n: x.reshape(32, n // 4)[::-1].reshape(-1).copy(),
             (f"cp.async.{'cg' if n == 16 else 'ca'}.shared.global",), cc=AMPERE)
        for n in (4, 8, 16)
    ),
    *(
        Case(f"cp_async_{n}_zfill", (f"cp_async_{n}_zfill",), zfill_kernel(n), words(8 * n), cut(n),
             ("cp.async.wait_all",), cc=AMPERE)
        for n in (4, 8, 16)
    ),
    Case("ring", ("cp_async_wait", "cp_async_commit"), ring, words(256), ring_sums,
         ("cp.async.wait_group 1;", "cp.async.commit_group"), cc=AMPERE),
    Case("cp_async_mbarrier_arrive", ("cp_async_mbarrier_arrive",), mbarrier_kernel, words(32),
         lambda x: x[::-1].copy(), ("cp.async.mbarrier.arrive.noinc",), cc=AMPERE),
]  # fmt: skip
cases = pytest.mark.parametrize("case", CASES, ids=ids)


@cases
def test_emulated(case):
    check_emulated(case)


@cases
def test_no_findings(case):
    """The programs above are right, whatever the order and whenever copies land."""
    for seed in (None, 1, 2):
        inputs, output, expected = case.arguments()
        report = emulate(case.kernel).report(case.grid, case.block, *inputs, output, seed=seed)
        assert findings(report) == []
        np.testing.assert_array_equal(output, expected)


@cases
def test_compiled(case):
    check_compiled(case, AMPERE, pointers=False)
    check_compiled(case, HOPPER, pointers=True)


@pytest.mark.gpu
@cases
def test_gpu(case):
    check_gpu(case)


@pytest.mark.parametrize("name", ["cp_async_16_l2_128", "cp_async_16_zfill_l2_128"])
def test_hints_assemble(name):
    text = compiled(getattr(ptx, name))
    assert "cp.async.cg.shared.global.L2::128B [" in text


# ---- planted faults


def no_wait(x, y):
    tile = cuda.shared.array(32, uint32)
    i = cuda.threadIdx.x
    place = uint32(ptx.shared_address(tile) + uint32(4) * uint32(i))
    ptx.cp_async_4(place, ptx.global_address(x) + uint64(4) * uint64(i))
    ptx.cp_async_commit()
    cuda.syncthreads()
    y[i] = tile[i]


def wait_for_one_too_few(x, y):
    tile = cuda.shared.array((2, 32), uint32)
    i = cuda.threadIdx.x
    place = uint32(ptx.shared_address(tile) + uint32(4) * uint32(i))
    for k in range(2):
        ptx.cp_async_4(place + uint32(128 * k), ptx.global_address(x) + uint64(4) * uint64(i))
        ptx.cp_async_commit()
    ptx.cp_async_wait(1)
    cuda.syncthreads()
    y[i] = tile[1, i]


@pytest.mark.parametrize("kernel", [no_wait, wait_for_one_too_few])
def test_missing_wait(kernel):
    x, y = np.arange(32, dtype=np.uint32), np.zeros(32, np.uint32)
    report = emulate(kernel).report(1, 32, x, y)
    (finding,) = [f for f in report.findings if f.kind == "missing_wait"]
    read = line_of(kernel, "y[i] =")
    assert finding.lines == (line_of(kernel, "ptx.cp_async_4("), read)
    assert "may still be filling" in finding.message and finding.block == (0, 0, 0)
    assert (y == 0xFFFFFFFF).all()  # poison: the copy lands when it is waited for


def over_old_values(x, y):
    tile = cuda.shared.array(32, uint32)
    i = cuda.threadIdx.x
    tile[i] = 7
    place = uint32(ptx.shared_address(tile) + uint32(4) * uint32(i))
    ptx.cp_async_4(place, ptx.global_address(x) + uint64(4) * uint64(i))
    y[i] = tile[i]


def test_old_values_do_not_hide_a_missing_wait():
    x, y = np.arange(32, dtype=np.uint32), np.zeros(32, np.uint32)
    emulate(over_old_values)[1, 32](x, y)
    assert (y == 0xFFFFFFFF).all()


def test_missing_wait_is_found_when_copies_land_at_once():
    """The bytes may be right: the program is not."""
    x = np.arange(32, dtype=np.uint32)
    for seed in range(4):
        y = np.zeros(32, np.uint32)
        report = emulate(no_wait).report(1, 32, x, y, seed=seed)
        assert "missing_wait" in {f.kind for f in report.findings}
        landed = y != 0xFFFFFFFF
        assert landed.any() and (y[landed] == x[landed]).all()


def no_barrier(x, y):
    tile = cuda.shared.array(32, uint32)
    i = cuda.threadIdx.x
    place = uint32(ptx.shared_address(tile) + uint32(4) * uint32(i))
    ptx.cp_async_4(place, ptx.global_address(x) + uint64(4) * uint64(i))
    ptx.cp_async_wait_all()
    y[i] = tile[31 - i]


def test_the_wait_is_for_the_thread_alone():
    report = emulate(no_barrier).report(
        1, 32, np.arange(32, dtype=np.uint32), np.zeros(32, np.uint32)
    )
    kinds = {f.kind for f in report.findings}
    assert kinds & {"race", "missing_wait"}
    lines = {line for f in report.findings for line in f.lines}
    assert line_of(no_barrier, "y[i] =") in lines


def overwritten(x, y):
    tile = cuda.shared.array(32, uint32)
    i = cuda.threadIdx.x
    place = uint32(ptx.shared_address(tile) + uint32(4) * uint32(i))
    ptx.cp_async_4(place, ptx.global_address(x) + uint64(4) * uint64(i))
    tile[i] = 0
    ptx.cp_async_wait_all()
    y[i] = tile[i]


def test_writing_what_is_being_filled():
    report = emulate(overwritten).report(
        1, 32, np.arange(32, dtype=np.uint32), np.zeros(32, np.uint32)
    )
    (finding,) = [f for f in report.findings if f.kind == "race"]
    assert finding.lines == (
        line_of(overwritten, "ptx.cp_async_4("),
        line_of(overwritten, "tile[i] = 0"),
    )


def misaligned(x, y):
    tile = cuda.shared.array(32, uint32)
    ptx.cp_async_16(ptx.shared_address(tile) + uint32(4), ptx.global_address(x))


def too_long(x, y):
    tile = cuda.shared.array(32, uint32)
    ptx.cp_async_16_zfill(ptx.shared_address(tile), ptx.global_address(x), 17)


def beyond(x, y):
    tile = cuda.shared.array(32, uint32)
    ptx.cp_async_16(ptx.shared_address(tile), ptx.global_address(x) + uint64(128))


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        (misaligned, "16-byte access at shared address .* not a multiple of 16"),
        (too_long, "count is 17; it may be at most 16"),
        (beyond, "outside every array"),
    ],
)
def test_wrong_operands_are_errors(kernel, message):
    with pytest.raises(Exception, match=message):
        emulate(kernel)[1, 1](np.arange(32, dtype=np.uint32), np.zeros(32, np.uint32))


def test_nothing_is_read_where_nothing_is_asked_for():
    def kernel(x, y):
        tile = cuda.shared.array(4, uint32)
        ptx.cp_async_16_zfill(ptx.shared_address(tile), ptx.global_address(x) + uint64(4096), 0)
        ptx.cp_async_wait_all()
        y[0] = tile[3]

    y = np.ones(1, np.uint32)
    emulate(kernel)[1, 1](np.arange(4, dtype=np.uint32), y)
    assert y[0] == 0
