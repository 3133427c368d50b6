"""Fences: which of a thread's memory accesses others must see before which.

Tensor cores of a warpgroup (`wgmma`) and bulk copies (`cp.async.bulk`, TMA) reach memory by the
*async proxy*, past the caches that ordinary loads and stores, the *generic proxy*, go through. What
ordinary stores have written is visible there only after a `fence_proxy_async` by the thread that
wrote it, followed by a barrier that the reader waits for. Bulk copies need none in the other
direction: waiting for their mbarrier is enough.

Fences of the memory model (`fence_acq_rel_…`) order a thread's own accesses around them. Between
threads they work together with a flag that one writes and another reads.

Source: PTX ISA, sections "membar / fence", "Proxies" and "Memory Consistency Model".
"""

from ..emulator import handover, mbarrier, shadow
from .instruction import instruction

HOPPER = (9, 0)


@instruction("fence.proxy.async;", "void()", cc=HOPPER)
def fence_proxy_async(t):
    """What this thread has written, to any memory, becomes visible to bulk copies and wgmma."""
    shadow.fence(t, "shared")
    shadow.fence(t, "global")
    mbarrier.fence(t)


@instruction("fence.proxy.async.shared::cta;", "void()", cc=HOPPER)
def fence_proxy_async_shared(t):
    """What this thread has written to shared memory becomes visible to bulk copies and wgmma."""
    shadow.fence(t, "shared")
    mbarrier.fence(t)


@instruction("fence.proxy.async.global;", "void()", cc=HOPPER)
def fence_proxy_async_global(t):
    """What this thread has written to global memory becomes visible to bulk copies."""
    shadow.fence(t, "global")


@instruction("fence.mbarrier_init.release.cluster;", "void()", cc=HOPPER)
def fence_mbarrier_init(t):
    """The mbarriers that this thread has initialised become visible to bulk copies and, after a
    cluster barrier, to the other blocks of the cluster."""
    mbarrier.fence(t)


@instruction("fence.proxy.tensormap::generic.acquire.gpu [$0], 128;", "void(u64)", cc=HOPPER)
def fence_tensormap_acquire(t, tensor_map):
    """Before the first use of a tensor map in global memory: its descriptor is read anew, not from
    the cache of descriptors, which does not notice that memory was written."""


@instruction("fence.proxy.tensormap::generic.release.gpu;", "void()", cc=HOPPER)
def fence_tensormap_release(t):
    """After a kernel has written a tensor map: others that acquire it see the new one."""


def _fence(semantics, scope):
    name = f"fence_{semantics}_{scope}"

    @instruction(
        f"fence.{semantics}.{scope};",
        "void()",
        name=name,
        cc=HOPPER if scope == "cluster" else (7, 5),
    )
    def meaning(t):
        handover.fence(t)

    who = {"cta": "block", "cluster": "cluster", "gpu": "GPU", "sys": "whole system"}[scope]
    order = {
        "acq_rel": "Accesses before the fence come before those after it",
        "sc": "The same, and all such fences have one order",
    }[semantics]
    meaning.__doc__ = (
        f"{order}, as threads of the {who} see it through a flag (`fence.{semantics}.{scope}`)."
    )
    return meaning


_FAMILY = {
    ins.name: ins
    for ins in (
        _fence(s, scope) for s in ("acq_rel", "sc") for scope in ("cta", "cluster", "gpu", "sys")
    )
}
# fence_acq_rel_cta … fence_sc_sys
globals().update(_FAMILY)
__all__ = [
    "fence_mbarrier_init",
    "fence_proxy_async",
    "fence_proxy_async_global",
    "fence_proxy_async_shared",
    "fence_tensormap_acquire",
    "fence_tensormap_release",
    *_FAMILY,
]  # noqa: PLE0604
