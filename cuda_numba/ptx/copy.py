"""Copies from global to shared memory that go on while the thread does: `cp.async`.

A thread starts copies, closes them into a group with `cp_async_commit`, and later waits until at
most `n` of its newest groups are unfinished. The wait makes the data visible to the thread that
waits; a barrier after it makes it visible to the others. While tensor cores work on one stage of a
ring, the copies into the next ones are under way:

    for stage in range(STAGES - 1): start copies of that stage; cp_async_commit()
    loop: cp_async_wait(STAGES - 2); barrier; use a stage; start the next copies; cp_async_commit()

`_zfill` variants read `nbytes` of the source and fill the rest with zeros (edges of a matrix);
nothing is read where `nbytes` is 0. A commit without copies makes an empty group, and it counts.

Source: PTX ISA, sections "cp.async", "cp.async.commit_group" and "cp.async.wait_group".
"""

from ..emulator import async_copy
from .instruction import instruction

AMPERE = (8, 0)
CACHES = {4: "ca", 8: "ca", 16: "cg"}  # only 16 bytes can pass by L1


def _copy(nbytes, zfill=False, l2=None):
    name = f"cp_async_{nbytes}{'_zfill' if zfill else ''}{f'_l2_{l2}' if l2 else ''}"
    hint = f".L2::{l2}B" if l2 else ""
    text = f"cp.async.{CACHES[nbytes]}.shared.global{hint} [$0], [$1], {nbytes}"

    if zfill:

        @instruction(f"{text}, $2;", "void(u32, u64, u32)", name=name, cc=AMPERE)
        def meaning(t, shared, source, count):
            async_copy.start(t, name, shared, source, nbytes, count)

        what = f"`count` bytes, at most {nbytes}, and zeros up to {nbytes}"
    else:

        @instruction(f"{text};", "void(u32, u64)", name=name, cc=AMPERE)
        def meaning(t, shared, source):
            async_copy.start(t, name, shared, source, nbytes, nbytes)

        what = f"{nbytes} bytes"
    meaning.__doc__ = (
        f"Start to copy {what} from global address `source` to shared address `shared`, both "
        f"multiples of {nbytes}{f'; L2 fetches {l2} bytes around them' if l2 else ''}."
    )
    return meaning


@instruction("cp.async.commit_group;", "void()", cc=AMPERE)
def cp_async_commit(t):
    """Close the copies that this thread has started since its last commit into a group."""
    async_copy.commit(t)


@instruction("cp.async.wait_group $0;", "void(literal)", cc=AMPERE)
def cp_async_wait(t, n):
    """Wait until at most the newest `n` groups of this thread are unfinished; n is a constant."""
    async_copy.wait(t, n)


@instruction("cp.async.wait_all;", "void()", cc=AMPERE)
def cp_async_wait_all(t):
    """Wait for every copy that this thread has started, committed or not."""
    async_copy.wait_all(t)


def _family():
    for nbytes in CACHES:
        yield from (_copy(nbytes), _copy(nbytes, zfill=True))
    yield from (_copy(16, l2=128), _copy(16, zfill=True, l2=128))


# cp_async_4, cp_async_16_zfill, cp_async_16_l2_128, …
_FAMILY = {ins.name: ins for ins in _family()}
globals().update(_FAMILY)
__all__ = ["cp_async_commit", "cp_async_wait", "cp_async_wait_all", *_FAMILY]  # noqa: PLE0604
