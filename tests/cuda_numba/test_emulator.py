"""The emulator runs kernels as a GPU would, and finds what is wrong with them."""

import math

import numpy as np
import pytest
import torch

from cuda_numba import emulate, ptx
from cuda_numba.emulator import (
    Deadlock,
    EmulatorError,
    InvalidUse,
    Livelock,
    Misaligned,
    OutOfBounds,
)
from cuda_numba.namespace import cuda, float32, int32, uint32

FULL = 0xFFFFFFFF


def line_of(kernel, text: str) -> int:
    """The line of the only place in a kernel's source that holds `text`."""
    import inspect

    lines, first = inspect.getsourcelines(kernel)
    found = [first + i for i, line in enumerate(lines) if text in line]
    assert len(found) == 1, f"{text!r} stands {len(found)} times in {kernel.__name__}"
    return found[0]


def kinds(report) -> set[str]:
    return {finding.kind for finding in report.findings}


# ---- right kernels ------------------------------------------------------------------------------


def add(a, b, out):
    i = cuda.grid(1)
    if i < out.shape[0]:
        out[i] = a[i] + b[i]


def row_sum(x, out):
    scratch = cuda.shared.array(64, float32)
    t = cuda.threadIdx.x
    total = float32(0)
    for j in range(t, x.shape[1], 64):
        total += x[cuda.blockIdx.x, j]
    scratch[t] = total
    cuda.syncthreads()
    half = 32
    while half > 0:
        if t < half:
            scratch[t] += scratch[t + half]
        cuda.syncthreads()
        half //= 2
    if t == 0:
        out[cuda.blockIdx.x] = scratch[0]


def tiled(a, b, c):
    sa = cuda.shared.array((4, 4), float32)
    sb = cuda.shared.array((4, 4), float32)
    tx, ty = cuda.threadIdx.x, cuda.threadIdx.y
    x, y = cuda.grid(2)
    total = float32(0)
    for k in range(a.shape[1] // 4):
        sa[ty, tx] = a[y, k * 4 + tx]
        sb[ty, tx] = b[k * 4 + ty, x]
        cuda.syncthreads()
        for j in range(4):
            total += sa[ty, j] * sb[j, tx]
        cuda.syncthreads()
    c[y, x] = total


@pytest.mark.parametrize("n", [1, 31, 130, 1000])
@pytest.mark.parametrize("as_tensor", [True, False])
def test_a_guarded_kernel(n, as_tensor):
    a, b = torch.randn(n), torch.randn(n)
    out = torch.full((n,), math.nan)
    args = (a, b, out) if as_tensor else (a.numpy(), b.numpy(), out.numpy())
    emulate(add)[(n + 63) // 64, 64](*args)
    assert torch.equal(out, a + b)


def test_barriers_and_shared_memory():
    x, out = torch.randn(5, 130), torch.full((5,), math.nan)
    emulate(row_sum)[5, 64](x, out)
    torch.testing.assert_close(out, x.sum(1), rtol=1e-5, atol=1e-5)


def test_a_tiled_product_and_its_traffic():
    a, b, c = torch.randn(8, 8), torch.randn(8, 8), torch.full((8, 8), math.nan)
    report = emulate(tiled).report((2, 2), (4, 4), a, b, c)
    torch.testing.assert_close(c, a @ b, rtol=1e-5, atol=1e-5)
    assert report.findings == []
    assert report.reads == 2 * 8 * 8 * 4 * 2  # each operand is read once for each of 2 tiles
    assert report.writes == 8 * 8 * 4
    assert report.barriers == 4 * 2 * 2  # blocks · tiles · barriers
    assert report.flops_by_type["float32"] == 2 * 8**3


def test_arrays_have_the_names_of_their_variables():
    a, b, c = torch.randn(8, 8), torch.randn(8, 8), torch.empty(8, 8)
    trace = emulate(tiled).report((2, 2), (4, 4), a, b, c).trace
    assert {s.array for s in trace.sites} == {"a", "b", "c", "sa", "sb"}
    assert set(trace.arrays) == {"a", "b", "c", "sa", "sb"}
    assert trace.arrays["sb"].shape == (4, 4) and trace.arrays["sb"].space == "shared"


def test_reads_of_an_undefined_argument():
    x, out = torch.randn(8), torch.zeros(2, 8).T[::2]
    report = emulate(add).report(1, 8, x[:4], x[4:], out[:, 0], undefined=("out",))
    assert report.findings == []
    report = emulate(add).report(1, 8, x[:4], x, out[:, 0], undefined=("a",))
    assert kinds(report) == {"uninitialised"} and "array a" in str(report.findings[0])
    with pytest.raises(ValueError, match="undefined: add has no parameter 'c', it has a, b, out"):
        emulate(add).report(1, 8, x, x, x, undefined=("c",))


@pytest.mark.parametrize("seed", [None, 0, 1, 2])
def test_a_right_kernel_gives_the_same_in_every_order(seed):
    x, out = torch.randn(3, 70), torch.full((3,), math.nan)
    expected = torch.full((3,), math.nan)
    emulate(row_sum)[3, 64](x, expected)
    report = emulate(row_sum).report(3, 64, x, out, seed=seed)
    assert torch.equal(out, expected)
    assert report.races == []


def test_the_same_report_twice():
    x, out = torch.randn(3, 70), torch.empty(3)
    first = emulate(row_sum).report(3, 64, x, out).to_dict()
    assert emulate(row_sum).report(3, 64, x, out).to_dict() == first


def warp_sum(x, out):
    value = x[cuda.threadIdx.x]
    for step in range(5):
        value += cuda.shfl_xor_sync(FULL, value, 16 >> step)
    out[cuda.threadIdx.x] = value


def test_shuffles():
    x, out = torch.randn(64), torch.empty(64)
    emulate(warp_sum)[1, 64](x, out)
    expected = x.view(2, 32).sum(1, keepdim=True).expand(2, 32).reshape(64)
    torch.testing.assert_close(out, expected)


def votes(x, out):
    t = cuda.threadIdx.x
    mask = 0xFF if t < 8 else 0xFFFFFF00
    up = cuda.shfl_up_sync(mask, x[t], 1)
    ballot = cuda.ballot_sync(mask, x[t] > 3)
    same = cuda.match_any_sync(mask, x[t] % 3)
    out[t, 0] = up
    out[t, 1] = cuda.popc(ballot)
    out[t, 2] = cuda.popc(same)
    out[t, 3] = cuda.any_sync(mask, x[t] == 5)
    out[t, 4] = cuda.all_sync(mask, x[t] < 8)


def test_votes_with_partial_masks():
    x, out = torch.arange(32), torch.full((32, 5), -1)
    emulate(votes)[1, 32](x, out)
    low, high = torch.arange(8), torch.arange(8, 32)
    for lanes in (low, high):
        up = torch.where(lanes == lanes[0], lanes, lanes - 1)
        assert torch.equal(out[lanes, 0], up)
        assert set(out[lanes, 1].tolist()) == {int((lanes > 3).sum())}
        assert torch.equal(
            out[lanes, 2], torch.tensor([int((lanes % 3 == v % 3).sum()) for v in lanes])
        )
        assert set(out[lanes, 3].tolist()) == {int((lanes == 5).any())}
        assert set(out[lanes, 4].tolist()) == {int((lanes < 8).all())}


def histogram(x, out):
    i = cuda.grid(1)
    if i < x.size:
        cuda.atomic.add(out, x[i], 1)


def test_atomics():
    x, out = torch.randint(0, 5, (300,)), torch.zeros(5, dtype=torch.int64)
    report = emulate(histogram).report(3, 128, x, out)
    assert torch.equal(out, torch.bincount(x, minlength=5))
    assert report.races == []


def lock(state, out):
    if cuda.threadIdx.x == 0:
        while cuda.atomic.cas(state, 0, 0, 1) != 0:
            pass
        out[0] = out[0] + 1
        cuda.threadfence()
        cuda.atomic.exch(state, 0, 0)


def in_order(turn, out):
    if cuda.threadIdx.x == 0:
        mine = cuda.gridDim.x - 1 - cuda.blockIdx.x  # block 0 waits for all the others
        while cuda.atomic.add(turn, 0, 0) != mine:
            pass
        out[mine] = cuda.blockIdx.x
        cuda.atomic.add(turn, 0, 1)


def test_blocks_that_spin_let_others_start():
    turn, out = torch.zeros(1, dtype=torch.int32), torch.full((4,), -1)
    emulate(in_order)[4, 32](turn, out)
    assert out.tolist() == [3, 2, 1, 0]
    state, out = torch.zeros(1, dtype=torch.int32), torch.zeros(1)
    emulate(lock)[4, 32](state, out)
    assert out.item() == 4


def last_block(fenced):
    """Each block writes its sum, and the one that is last adds them up."""

    def kernel(x, partial, ticket, out):
        last = cuda.shared.array(1, int32)
        t, b = cuda.threadIdx.x, cuda.blockIdx.x
        if t < 2:  # by two threads: the barrier must pass on what both have done and learned
            partial[2 * b + t] = x[2 * b + t]
        cuda.syncthreads()
        if t == 0:
            if fenced:
                cuda.threadfence()
            last[0] = cuda.atomic.add(ticket, 0, 1) == cuda.gridDim.x - 1
        cuda.syncthreads()
        if last[0] and t == 33:
            total = float32(0)
            for i in range(partial.shape[0]):
                total += partial[i]
            out[0] = total

    return kernel


@pytest.mark.parametrize("seed", [None, 0, 1])
def test_the_last_block_needs_a_fence(seed):
    x, partial = torch.randn(10), torch.zeros(10)
    ticket, out = torch.zeros(1, dtype=torch.int32), torch.zeros(1)
    report = emulate(last_block(True)).report(5, 64, x, partial, ticket, out, seed=seed)
    torch.testing.assert_close(out[0], x.sum())
    assert report.findings == []
    ticket.zero_()
    report = emulate(last_block(False)).report(5, 64, x, partial, ticket, out, seed=seed)
    assert kinds(report) == {"race"}
    assert "partial[i]" in str(report.races[0]) and "partial[2" in str(report.races[0])


def passed_on_by_a_warp(x, flag, out):
    t, b = cuda.threadIdx.x, cuda.blockIdx.x
    if b == 0 and t == 0:
        x[0] = 5
        cuda.threadfence()
        cuda.atomic.exch(flag, 0, 1)
    if b == 1:
        if t == 0:
            while cuda.atomic.cas(flag, 0, 1, 1) != 1:
                pass
        cuda.syncwarp()
        out[t] = x[0]


def not_passed_on(x, flag, out):
    t, b = cuda.threadIdx.x, cuda.blockIdx.x
    if b == 0 and t == 0:
        x[0] = 5
        cuda.threadfence()
        cuda.atomic.exch(flag, 0, 1)
    if b == 1:
        if t == 0:
            while cuda.atomic.cas(flag, 0, 1, 1) != 1:
                pass
        cuda.shfl_sync(FULL, 0, 0)
        out[t] = x[0]


def test_a_warp_barrier_passes_on_what_one_lane_has_acquired():
    x, flag, out = (torch.zeros(n, dtype=torch.int32) for n in (1, 1, 32))
    report = emulate(passed_on_by_a_warp).report(2, 32, x, flag, out)
    assert set(out.tolist()) == {5}
    assert report.findings == []
    flag.zero_()
    report = emulate(not_passed_on).report(2, 32, x, flag, out)
    assert kinds(report) == {"race"}


def shared_lock(out):
    held = cuda.shared.array(2, int32)
    t = cuda.threadIdx.x
    if t < 2:
        held[t] = 0
    cuda.syncthreads()
    while cuda.atomic.cas(held, 0, 0, 1) != 0:
        pass
    cuda.threadfence_block()
    held[1] += t
    cuda.threadfence_block()
    cuda.atomic.exch(held, 0, 0)
    cuda.syncthreads()
    if t == 0:
        out[0] = held[1]


def test_a_lock_in_shared_memory():
    out = torch.zeros(1, dtype=torch.int32)
    report = emulate(shared_lock).report(1, 40, out)
    assert out.item() == sum(range(40))
    assert report.findings == []


def grid_sync(x, out):
    grid = cuda.cg.this_grid()
    i = cuda.grid(1)
    x[i] = i + 1
    grid.sync()
    out[i] = x[x.shape[0] - 1 - i]


def test_cooperative_grids():
    x, out = torch.zeros(96), torch.zeros(96)
    report = emulate(grid_sync).report(3, 32, x, out)
    assert out.tolist() == [96 - i for i in range(96)]
    assert report.races == []


def dynamic(x, out):
    scratch = cuda.shared.array(0, float32)
    t = cuda.threadIdx.x
    scratch[t] = x[t]
    cuda.syncthreads()
    out[t] = scratch[cuda.blockDim.x - 1 - t]


def test_dynamic_shared_memory():
    x, out = torch.randn(64), torch.empty(64)
    emulate(dynamic)[1, 64, 0, 256](x, out)
    assert torch.equal(out, x.flip(0))
    with pytest.raises(OutOfBounds):
        emulate(dynamic)[1, 64, 0, 128](x, out)


# ---- planted faults: each is found, with its lines ---------------------------------------------


def race(x, out):
    scratch = cuda.shared.array(64, float32)
    t = cuda.threadIdx.x
    scratch[t] = x[t]
    out[t] = scratch[63 - t]


def race_with_the_right_value(x, out):
    scratch = cuda.shared.array(1, float32)
    scratch[0] = x[0]  # everyone writes the same
    cuda.syncthreads()
    out[cuda.threadIdx.x] = scratch[0]


def shuffle_for_a_barrier(x, out):
    scratch = cuda.shared.array(32, float32)
    t = cuda.threadIdx.x
    scratch[t] = x[t]
    cuda.shfl_sync(FULL, x[t], 0)  # brings the lanes together, orders no memory
    out[t] = scratch[31 - t]


def syncwarp_for_a_barrier(x, out):
    scratch = cuda.shared.array(32, float32)
    t = cuda.threadIdx.x
    scratch[t] = x[t]
    cuda.syncwarp()
    out[t] = scratch[31 - t]


def race_between_blocks(x, out):
    out[cuda.threadIdx.x] = x[cuda.grid(1)]


def test_a_race_is_found_with_both_lines_and_threads():
    x, out = torch.randn(64), torch.empty(64)
    report = emulate(race).report(1, 64, x, out)
    lines = {line_of(race, "scratch[t] = x[t]"), line_of(race, "out[t] = scratch")}
    assert report.races
    for found in report.races:
        assert set(found.lines) == lines
        assert len(set(found.threads)) == 2
        assert found.block == (0, 0, 0)


def test_a_race_that_gives_the_right_value_is_found():
    x, out = torch.randn(64), torch.empty(64)
    report = emulate(race_with_the_right_value).report(1, 64, x, out)
    assert torch.equal(out, x[0].expand(64))
    (found,) = report.races
    assert set(found.lines) == {line_of(race_with_the_right_value, "scratch[0] = x[0]")}


def test_a_shuffle_orders_no_memory_and_syncwarp_does():
    x, out = torch.randn(32), torch.empty(32)
    assert emulate(shuffle_for_a_barrier).report(1, 32, x, out).races
    assert emulate(syncwarp_for_a_barrier).report(1, 32, x, out).races == []


def test_a_race_between_blocks():
    report = emulate(race_between_blocks).report(2, 32, torch.randn(64), torch.empty(32))
    assert report.races
    assert emulate(race_between_blocks).report(1, 32, torch.randn(32), torch.empty(32)).races == []


def test_a_missing_barrier_changes_the_result_with_the_seed():
    x = torch.randn(64)
    seen = set()
    for seed in range(4):
        out = torch.zeros(64)
        emulate(race).report(1, 64, x, out, seed=seed)
        seen.add(tuple(out.nan_to_num(-9).tolist()))
    assert len(seen) > 1


def no_guard(a, b, out):
    i = cuda.grid(1)
    out[i] = a[i] + b[i]


def test_out_of_bounds():
    a, b, out = torch.randn(40), torch.randn(40), torch.empty(40)
    line = line_of(no_guard, "out[i] =")
    with pytest.raises(OutOfBounds, match="no_guard") as caught:
        emulate(no_guard)[1, 64](a, b, out)
    assert (caught.value.thread, caught.value.block, caught.value.line) == (
        (40, 0, 0),
        (0, 0, 0),
        line,
    )
    report = emulate(no_guard).report(1, 64, a, b, out)
    found = [f for f in report.findings if f.kind == "out_of_bounds"]
    assert found
    assert all(f.lines == (line,) for f in found)
    assert torch.equal(out, a + b)


def diverging(x, out):
    t = cuda.threadIdx.x
    if t < 32:
        cuda.syncthreads()
    else:
        cuda.syncthreads()
    out[t] = x[t]


def early_exit(x, out):
    t = cuda.threadIdx.x
    if t >= 40:
        return
    cuda.syncthreads()
    out[t] = x[t]


def test_a_divergent_barrier():
    report = emulate(diverging).report(1, 64, torch.randn(64), torch.empty(64))
    (found,) = [f for f in report.findings if f.kind == "divergent_barrier"]
    first = line_of(diverging, "if t < 32")
    assert set(found.lines) == {first + 1, first + 3}


def test_a_barrier_that_some_threads_never_reach():
    report = emulate(early_exit).report(1, 64, torch.randn(64), torch.empty(64))
    (found,) = [f for f in report.findings if f.kind == "barrier_not_reached"]
    assert line_of(early_exit, "syncthreads") in found.lines


def stuck(x, out):
    t = cuda.threadIdx.x
    if t < 32:
        cuda.syncthreads()
    else:
        ptx.barrier_sync(1, 64)
    out[t] = x[t]


def test_a_deadlock_says_who_waits_where():
    with pytest.raises(Deadlock) as caught:
        emulate(stuck)[1, 64](torch.randn(64), torch.empty(64))
    message = str(caught.value)
    for text in ("syncthreads", "ptx.barrier_sync"):
        assert str(line_of(stuck, text)) in message


def spins(flag, out):
    while cuda.atomic.add(flag, 0, 0) == 0:
        pass
    out[0] = 1


def test_a_livelock():
    with pytest.raises(Livelock) as caught:
        emulate(spins)[1, 32](torch.zeros(1, dtype=torch.int32), torch.zeros(1))
    assert caught.value.line in (line_of(spins, "while"), line_of(spins, "while") + 1)


def misaligned(x, out):
    values = cuda.local.array(4, float32)
    ptx.load_vector(x, 1, values, 0)
    out[0] = values[0]


def test_a_misaligned_vector_load():
    x, out = torch.randn(16), torch.empty(1)
    with pytest.raises(Misaligned) as caught:
        emulate(misaligned)[1, 1](x, out)
    assert caught.value.line == line_of(misaligned, "load_vector")
    report = emulate(misaligned).report(1, 1, x, out)
    assert "misaligned" in kinds(report)
    # A view that starts one element into its storage is misaligned too, although index 0 is not.
    report = emulate(aligned).report(1, 1, x[1:], out)
    assert "misaligned" in kinds(report)
    assert kinds(emulate(aligned).report(1, 1, x, out)) == set()


def aligned(x, out):
    values = cuda.local.array(4, float32)
    ptx.load_vector(x, 0, values, 0)
    out[0] = values[0]


def copies(x, out):
    scratch = cuda.shared.array(128, float32)
    t = cuda.threadIdx.x
    ptx.cp_async_16(ptx.shared_address(scratch) + uint32(t * 16), ptx.global_address(x) + t * 16)
    ptx.cp_async_commit()
    ptx.cp_async_wait(0)
    cuda.syncthreads()
    out[t] = scratch[t]


def copies_without_wait(x, out):
    scratch = cuda.shared.array(128, float32)
    t = cuda.threadIdx.x
    ptx.cp_async_16(ptx.shared_address(scratch) + uint32(t * 16), ptx.global_address(x) + t * 16)
    ptx.cp_async_commit()
    cuda.syncthreads()
    out[t] = scratch[t]


def test_a_missing_wait_for_cp_async():
    x, out = torch.randn(128), torch.empty(32)
    assert emulate(copies).report(1, 32, x, out).findings == []
    assert torch.equal(out, x[:32])
    report = emulate(copies_without_wait).report(1, 32, x, out)
    found = [f for f in report.findings if f.kind == "missing_wait"]
    assert found
    assert line_of(copies_without_wait, "out[t] =") in found[0].lines
    assert line_of(copies_without_wait, "ptx.cp_async_16") in found[0].lines


def uninitialised(out):
    scratch = cuda.shared.array(32, float32)
    t = cuda.threadIdx.x
    if t < 16:
        scratch[t] = float32(t)
    cuda.syncthreads()
    out[t] = scratch[t]


def uninitialised_local(out):
    values = cuda.local.array(4, float32)
    values[0] = float32(1)
    out[0] = values[0] + values[1]


def test_uninitialised_reads():
    out = torch.empty(32)
    report = emulate(uninitialised).report(1, 32, out)
    found = [f for f in report.findings if f.kind == "uninitialised"]
    assert found
    assert line_of(uninitialised, "out[t] =") in found[0].lines
    assert out[:16].tolist() == list(range(16)) and out[16:].isnan().all()  # poison shows
    report = emulate(uninitialised_local).report(1, 1, out)
    assert "uninitialised" in kinds(report)


def exited_lane(x, out):
    t = cuda.threadIdx.x
    if t >= 16:
        return
    out[t] = cuda.shfl_xor_sync(FULL, x[t], 1)


def different_operations(x, out):
    t = cuda.threadIdx.x
    if t < 16:
        out[t] = cuda.shfl_xor_sync(FULL, x[t], 1)
    else:
        cuda.syncwarp(FULL)


@pytest.mark.parametrize("kernel", [exited_lane, different_operations])
def test_lanes_that_do_not_come(kernel):
    with pytest.raises(InvalidUse) as caught:
        emulate(kernel)[1, 32](torch.randn(32), torch.empty(32))
    assert str(line_of(kernel, "shfl_xor_sync")) in str(caught.value)


def negative(x, out):
    out[cuda.threadIdx.x] = x[cuda.threadIdx.x - 1]


def test_a_negative_index_wraps_as_in_numba_and_is_listed():
    x, out = torch.randn(8), torch.empty(8)
    report = emulate(negative).report(1, 8, x, out)
    assert torch.equal(out, x.roll(1))
    assert kinds(report) == {"negative_index"}


def half_promoted(x, out):
    i = cuda.threadIdx.x
    out[i] = x[i] * 2.0 + 1.0


def test_float64_that_nobody_wrote_is_counted_at_its_line():
    x, out = torch.randn(8), torch.empty(8)
    report = emulate(half_promoted).report(1, 8, x, out)
    assert report.promotions == 16
    assert report.lines[line_of(half_promoted, "2.0")].promotions == 16
    assert report.flops_by_type["float64"] == 16
    torch.testing.assert_close(out, x * 2 + 1)


def misuses(x, out):
    out[0] = x  # an array where a number belongs


def test_an_error_names_thread_block_and_line():
    with pytest.raises(
        EmulatorError, match=r"misuses: thread \(0, 0, 0\) of block \(0, 0, 0\)"
    ) as e:
        emulate(misuses)[1, 1](torch.tensor([1, 0]), torch.zeros(1, dtype=torch.int64))
    assert e.value.line == line_of(misuses, "out[0] = x")


# ---- what it refuses ----------------------------------------------------------------------------


def uses_try(x):
    try:
        x[0] = 1
    except IndexError:
        pass


def undefined_name(x):
    x[0] = nowhere  # noqa: F821


@pytest.mark.parametrize(("kernel", "words"), [(uses_try, "try"), (undefined_name, "nowhere")])
def test_what_no_kernel_can_use(kernel, words):
    with pytest.raises(SyntaxError, match=words):
        emulate(kernel)[1, 1](torch.zeros(1))


@pytest.mark.parametrize(
    ("grid", "block", "error"),
    [(0, 32, ValueError), (1, 2048, ValueError), (1, (32, 64), ValueError), (1.5, 32, TypeError)],
)
def test_launch_dimensions(grid, block, error):
    with pytest.raises(error, match="grid|block"):
        emulate(add)[grid, block](torch.zeros(1), torch.zeros(1), torch.zeros(1))


def test_arguments():
    with pytest.raises(TypeError, match="takes 3 arguments"):
        emulate(add)[1, 32](torch.zeros(1))
    with pytest.raises(TypeError, match="out is str"):
        emulate(add)[1, 32](torch.zeros(1), torch.zeros(1), "x")


def integer_parameter(n: "int32", x: ("float32", "float16"), out):  # noqa: F821
    out[0] = x[0] + n


def test_annotations_are_checked_by_name():
    x, out = torch.zeros(1), torch.zeros(1)
    emulate(integer_parameter)[1, 1](np.int32(3), x, out)
    assert out.item() == 3
    with pytest.raises(ValueError, match="integer_parameter: n is 2147483648"):
        emulate(integer_parameter)[1, 1](2**31, x, out)
    with pytest.raises(TypeError, match="integer_parameter: x is float64, allowed are float32"):
        emulate(integer_parameter)[1, 1](1, x.double(), out)


def shift(x, out):
    i = int32(cuda.threadIdx.x)
    out[i] = uint32(x[i]) << uint32(4)


def test_unsigned_arithmetic_wraps():
    x, out = torch.tensor([-1, 2**31 - 1], dtype=torch.int32), torch.zeros(2, dtype=torch.int64)
    emulate(shift)[1, 2](x, out)
    assert out.tolist() == [0xFFFFFFFF << 4, (2**31 - 1) << 4]
