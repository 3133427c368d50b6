"""Clusters: blocks that run together and reach each other's shared memory; and a few clocks.

A block's shared address names its own memory. `mapa(address, rank)` names the same place in block
`rank` of the cluster; the result goes into the `_cluster` loads and stores, into
`mbarrier_arrive_cluster`, and into bulk copies. `cluster_arrive` and `cluster_wait` are the
cluster's barrier: before it another block may not have started, after a block has ended its memory
is gone, so kernels begin and end with `cluster_sync`.

Also here: giving registers from one warpgroup to another (`setmaxnreg_…`), choosing one lane of a
warp (`elect`), starting the next kernel early (`grid_…`, programmatic dependent launch), time.

Source: PTX ISA, sections "barrier.cluster", "mapa", "Special Registers", "setmaxnreg",
"elect.sync", "griddepcontrol" and "nanosleep".
"""

import numpy as np

from ..emulator import cluster_memory, mbarrier
from .instruction import instruction

HOPPER, HOPPER_ONLY = (9, 0), (9, 0, "a")


# ---- the cluster's barrier


@instruction(
    "barrier.cluster.arrive.release.aligned;", "void()", scope="cluster", cc=HOPPER, convergent=True
)
def cluster_arrive(t):
    """Come to the cluster's barrier; what the thread has done is released."""
    cluster_memory.arrive(t)


@instruction(
    "barrier.cluster.arrive.relaxed.aligned;", "void()", scope="cluster", cc=HOPPER, convergent=True
)
def cluster_arrive_relaxed(t):
    """Come to the cluster's barrier, which then orders no memory for this thread's part."""
    cluster_memory.arrive(t, release=False)


@instruction(
    "barrier.cluster.wait.acquire.aligned;", "void()", scope="cluster", cc=HOPPER, convergent=True
)
def cluster_wait(t):
    """Wait until every thread of the cluster has come to its barrier."""
    cluster_memory.wait(t)


@instruction(
    "barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;",
    "void()",
    scope="cluster",
    cc=HOPPER,
    convergent=True,
)
def cluster_sync(t):
    """`cluster_arrive` and `cluster_wait`."""
    cluster_memory.arrive(t)
    cluster_memory.wait(t)


# ---- where am I


def _register(name, register, cc, value, what):
    @instruction(f"mov.u32 $0, %{register};", "u32()", name=name, cc=cc, memory=False)
    def meaning(t):
        return value(t)

    meaning.__doc__ = what
    return meaning


cluster_rank = _register(
    "cluster_rank", "cluster_ctarank", HOPPER, cluster_memory.rank,
    "The number of this block in its cluster, 0 in a launch without clusters.",
)  # fmt: skip
cluster_size = _register(
    "cluster_size", "cluster_nctarank", HOPPER, lambda t: len(cluster_memory.blocks(t)),
    "The number of blocks in the cluster.",
)  # fmt: skip
cluster_id = _register(
    "cluster_id", "clusterid.x", HOPPER, lambda t: cluster_memory.place(t)[0],
    "The number of this cluster in the grid, along x.",
)  # fmt: skip
cluster_count = _register(
    "cluster_count", "nclusterid.x", HOPPER, lambda t: cluster_memory.place(t)[1],
    "How many clusters the grid has along x.",
)  # fmt: skip


# ---- each other's shared memory


@instruction("mapa.shared::cluster.u32 $0, $1, $2;", "u32(u32, u32)", cc=HOPPER, memory=False)
def mapa(t, address, rank):
    """The cluster address of the place that has this shared address in block `rank`."""
    return cluster_memory.mapa(t, address, rank)


def _words(words):
    names = ", ".join(f"${k}" for k in range(words))
    return (f".v{words}.b32", f"{{{names}}}") if words > 1 else (".b32", "$0")


def _load(bits):
    words = bits // 32
    suffix, names = _words(words)
    text = f"ld.shared::cluster{suffix} {names}, [${words}];"
    result = f"u32x{words}" if words > 1 else "u32"

    @instruction(text, f"{result}(u32)", name=f"load_cluster_{bits}", cc=HOPPER)
    def meaning(t, address):
        found = cluster_memory.read(t, address, bits // 8).view(np.uint32).tolist()
        return tuple(found) if words > 1 else found[0]

    meaning.__doc__ = f"{bits // 8} bytes from a cluster address, as 32-bit words."
    return meaning


def _store(bits):
    words = bits // 32
    suffix, names = _words(words)
    for k in reversed(range(words)):  # operands come after the address
        names = names.replace(f"${k}", f"${k + 1}")
    text = f"st.shared::cluster{suffix} [$0], {names};"

    @instruction(
        text, f"void(u32, {', '.join(['u32'] * words)})", name=f"store_cluster_{bits}", cc=HOPPER
    )
    def meaning(t, address, *values):
        cluster_memory.write(t, address, np.array(values, np.uint32).view(np.uint8))

    meaning.__doc__ = f"Write {words} 32-bit words to a cluster address, in one instruction."
    return meaning


@instruction("mbarrier.arrive.shared::cluster.b64 _, [$0];", "void(u32)", cc=HOPPER)
def mbarrier_arrive_cluster(t, bar):
    """One arrival at the mbarrier of another block, whose address `mapa` gave.

    It frees a stage that tensor cores or bulk copies have read. To hand over what ordinary stores
    have written, `mbarrier_arrive_cluster_release`, which costs a fence of the whole GPU.
    """
    mbarrier.arrive(t, bar)


@instruction("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [$0];", "void(u32)", cc=HOPPER)
def mbarrier_arrive_cluster_release(t, bar):
    """One arrival at the mbarrier of another block, which sees what this thread has written."""
    mbarrier.arrive(t, bar)


# ---- one lane, registers, the next kernel, time


@instruction(
    "{ .reg .pred p; elect.sync _|p, 0xffffffff; selp.u32 $0, 1, 0, p; }",
    "pred()", scope="warp", cc=HOPPER,
)  # fmt: skip
def elect(warp, rows):
    """True in one lane of a full warp, the same each time: the lane that issues bulk copies."""
    return [lane == 0 for lane in range(32)]


def _setmaxnreg(direction, what):
    name = f"setmaxnreg_{direction}"
    text = f"setmaxnreg.{direction}.sync.aligned.u32 $0;"

    @instruction(
        text, "void(literal)", name=name, scope="warpgroup", cc=HOPPER_ONLY, switches=False
    )
    def meaning(t, count):
        if count % 8 or not 24 <= count <= 256:
            t.machine.finding(
                "invalid_use",
                f"{name}: count is {count}; it must be a multiple of 8 from 24 to 256",
                threads=[t],
            )

    meaning.__doc__ = (
        f"{what} `count` registers a thread, a multiple of 8 from 24 to 256. Every warp of a "
        "warpgroup executes it; the kernel needs launch bounds, without which it is ignored."
    )
    return meaning


setmaxnreg_inc = _setmaxnreg("inc", "Wait until the block has them to spare, then go up to")
setmaxnreg_dec = _setmaxnreg("dec", "Go down to")


@instruction("griddepcontrol.wait;", "void()", cc=HOPPER)
def grid_wait(t):
    """Wait until the grids that this one depends on have ended and their memory is visible."""


@instruction("griddepcontrol.launch_dependents;", "void()", cc=HOPPER)
def grid_launch_dependents(t):
    """The next grid may start once all blocks have called this or ended."""


@instruction("nanosleep.u32 $0;", "void(u32)", switches=True)
def nanosleep(t, nanoseconds):
    """Sleep for about so long, 0 to twice the time: in loops that wait for another block."""
    t.spin()


def _clock(name, text, kind, what):
    @instruction(text, f"{kind}()", name=name)
    def meaning(t):
        ticks = t.machine.state["ticks"] = t.machine.state.get("ticks", 0) + 1
        return ticks

    meaning.__doc__ = f"{what}. In the emulator, the number of times that it was asked for."
    return meaning


clock = _clock("clock", "mov.u64 $0, %clock64;", "u64", "Cycles of this multiprocessor")
globaltimer = _clock("globaltimer", "mov.u64 $0, %globaltimer;", "u64", "Nanoseconds of the GPU")

# load_cluster_32 … store_cluster_128
_FAMILY = {ins.name: ins for bits in (32, 64, 128) for ins in (_load(bits), _store(bits))}
globals().update(_FAMILY)
__all__ = [
    "clock",
    "cluster_arrive",
    "cluster_arrive_relaxed",
    "cluster_count",
    "cluster_id",
    "cluster_rank",
    "cluster_size",
    "cluster_sync",
    "cluster_wait",
    "elect",
    "globaltimer",
    "grid_launch_dependents",
    "grid_wait",
    "mapa",
    "mbarrier_arrive_cluster",
    "mbarrier_arrive_cluster_release",
    "nanosleep",
    "setmaxnreg_dec",
    "setmaxnreg_inc",
    *_FAMILY,
]  # noqa: PLE0604
