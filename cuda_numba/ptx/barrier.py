"""Barriers for some of a block's threads: sixteen named ones, and mbarriers in shared memory.

*Named barriers* (`bar`) count warps. `barrier_sync(1, 128)` waits until 128 threads have come to
barrier 1, by `barrier_sync` or by `barrier_arrive`, which does not wait: a producer arrives, the
consumers sync. Number and count are constants, since a number in a register makes the assembler
reserve all sixteen; barrier 0 is that of `cuda.syncthreads`.

*Mbarriers* are 8 bytes of shared memory, a multiple of 8. One has a phase, and counts in it the
arrivals that are pending and the bytes (`tx`) that bulk copies have still to bring. When both are
zero the phase is complete and the next begins, with the arrivals of `mbarrier_init` pending again.
`mbarrier_wait(bar, parity)` waits for the phase of that parity, 0 for the first, 1 for the second,
0 for the third, …; a barrier in its first phase lets those that wait for parity 1 pass at once.

    if thread 0: mbarrier_init(bar, 1); fence_mbarrier_init()       then a block barrier
    producer:    mbarrier_arrive_expect_tx(bar, nbytes); tma_load_2d(…, bar)
    consumer:    mbarrier_wait(bar, phase); use the data; phase ^= 1

An arrival releases what the thread has done, a wait acquires it. Source: PTX ISA, sections
"barrier", "mbarrier" and its subsections.
"""

from ..emulator import async_copy, mbarrier, named_barrier
from .instruction import instruction

AMPERE, HOPPER = (8, 0), (9, 0)


# ---- named barriers


@instruction("bar.sync $0, $1;", "void(literal, literal)", scope="block")
def barrier_sync(t, number, count):
    """Wait at barrier `number`, 0 to 15, until `count` threads have come; whole warps."""
    named_barrier.sync(t, number, count)


@instruction("bar.arrive $0, $1;", "void(literal, literal)", scope="block", convergent=True)
def barrier_arrive(t, number, count):
    """Come to barrier `number`, 1 to 15, where `count` threads are due, without waiting."""
    named_barrier.arrive(t, number, count)


@instruction("bar.sync $0, $1;", "void(u32, literal)", scope="block")
def barrier_sync_any(t, number, count):
    """`barrier_sync` with a number known only when the kernel runs: all sixteen are reserved."""
    named_barrier.sync(t, number, count)


def _reduce(name, text, signature, combine, what):
    @instruction(text, signature, name=name, scope="block", convergent=True)
    def meaning(t, number, count, predicate):
        return named_barrier.sync(t, number, count, predicate, combine)

    meaning.__doc__ = f"`barrier_sync`, whose result is {what} of the predicates of all threads."
    return meaning


_PREDICATE = "{{ .reg .pred p, q; setp.ne.u32 p, $3, 0; bar.red.{0}.pred q, $1, $2, p; "
_PREDICATE += "selp.u32 $0, 1, 0, q; }}"
barrier_and = _reduce(
    "barrier_and", _PREDICATE.format("and"), "pred(literal, literal, pred)", all, "the and"
)
barrier_or = _reduce(
    "barrier_or", _PREDICATE.format("or"), "pred(literal, literal, pred)", any, "the or"
)
barrier_count = _reduce(
    "barrier_count",
    "{ .reg .pred p; setp.ne.u32 p, $3, 0; bar.red.popc.u32 $0, $1, $2, p; }",
    "u32(literal, literal, pred)",
    sum,
    "the number that are true",
)


# ---- mbarriers


@instruction("mbarrier.init.shared.b64 [$0], $1;", "void(u32, u32)", cc=AMPERE)
def mbarrier_init(t, bar, count):
    """Make the 8 bytes at `bar` a barrier whose phases take `count` arrivals, at least 1.

    Other threads may use it after a block barrier, bulk copies after `fence_mbarrier_init` or
    `fence_proxy_async`.
    """
    mbarrier.init(t, bar, count)


@instruction("mbarrier.inval.shared.b64 [$0];", "void(u32)", cc=AMPERE)
def mbarrier_inval(t, bar):
    """End the barrier's life: its bytes are ordinary memory again."""
    mbarrier.invalidate(t, bar)


@instruction("{ .reg .b64 state; mbarrier.arrive.shared.b64 state, [$0]; }", "void(u32)", cc=AMPERE)
def mbarrier_arrive(t, bar):
    """One arrival."""
    mbarrier.arrive(t, bar)


@instruction(
    "{ .reg .b64 state; mbarrier.arrive.shared.b64 state, [$0], $1; }", "void(u32, u32)", cc=HOPPER
)
def mbarrier_arrive_many(t, bar, count):
    """`count` arrivals at once."""
    mbarrier.arrive(t, bar, count)


@instruction("mbarrier.arrive.expect_tx.shared::cta.b64 _, [$0], $1;", "void(u32, u32)", cc=HOPPER)
def mbarrier_arrive_expect_tx(t, bar, nbytes):
    """One arrival; the phase also waits for `nbytes` more bytes of bulk copies."""
    mbarrier.expect(t, bar, nbytes)
    mbarrier.arrive(t, bar)


@instruction(
    "mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [$0], $1;", "void(u32, u32)", cc=HOPPER
)
def mbarrier_expect_tx(t, bar, nbytes):
    """The phase also waits for `nbytes` more bytes of bulk copies; no arrival."""
    mbarrier.expect(t, bar, nbytes)


_LOOP = (
    "{ .reg .pred done; WAIT_${:uid}: mbarrier.%s.shared.b64 done, [$0], $1; "
    "@done bra DONE_${:uid}; bra WAIT_${:uid}; DONE_${:uid}: }"
)


def _lower_wait(e, bar, parity):
    # try_wait sleeps in hardware; before Hopper there is only the test.
    text = _LOOP % ("try_wait.parity" if e.cc >= HOPPER else "test_wait.parity")
    e.asm(text, [], [("u32", bar.value), ("u32", parity.value)])


@instruction(_lower_wait, "void(u32, u32)", cc=AMPERE, switches=True)
def mbarrier_wait(t, bar, parity):
    """Wait until the barrier's phase of that parity, 0 or 1, is complete."""
    mbarrier.wait(t, bar, parity)


def _test(name, cc, what):
    test = f"mbarrier.{name}.parity.shared.b64 done, [$1], $2;"
    text = f"{{ .reg .pred done; {test} selp.u32 $0, 1, 0, done; }}"

    @instruction(text, "pred(u32, u32)", name=f"mbarrier_{name}", cc=cc, switches=True)
    def meaning(t, bar, parity):
        return mbarrier.test(t, bar, parity)

    meaning.__doc__ = f"Whether the barrier's phase of that parity is complete; {what}."
    return meaning


mbarrier_test_wait = _test("test_wait", AMPERE, "does not wait")
mbarrier_try_wait = _test("try_wait", HOPPER, "may wait a while before it says no")


@instruction("cp.async.mbarrier.arrive.noinc.shared.b64 [$0];", "void(u32)", cc=AMPERE)
def cp_async_mbarrier_arrive(t, bar):
    """One arrival, made when all `cp.async` copies that this thread has started are there.

    It is one of those that `mbarrier_init` counted (`.noinc`).
    """
    async_copy.arrive_later(t, bar)


__all__ = [
    "barrier_and",
    "barrier_arrive",
    "barrier_count",
    "barrier_or",
    "barrier_sync",
    "barrier_sync_any",
    "cp_async_mbarrier_arrive",
    "mbarrier_arrive",
    "mbarrier_arrive_expect_tx",
    "mbarrier_arrive_many",
    "mbarrier_expect_tx",
    "mbarrier_init",
    "mbarrier_inval",
    "mbarrier_test_wait",
    "mbarrier_try_wait",
    "mbarrier_wait",
]
