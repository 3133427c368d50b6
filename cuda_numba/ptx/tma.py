"""Bulk copies: one thread moves a tile (TMA, the tensor memory accelerator) or a run of bytes.

    global → shared   tma_load_2d(shared, map, x, y, bar)    waits: mbarrier_wait(bar, phase)
    shared → global   tma_store_2d(map, x, y, shared)        waits: bulk_commit(); bulk_wait(0)

`map` is the address of a tensor map (`tensor_map`), which knows the tensor, the box that one copy
moves, and how it lies in shared memory; x, y, … are the coordinates of the box's first element, the
innermost dimension first. Elements outside the tensor arrive as zeros and count towards the
barrier's bytes; on a store they are left out. So it is for a box wholly outside, too.

What a box must be, by which document, and what one H100 did where it was not:

    x · bytes of an element: a multiple of 16      PTX ISA, "Bounding box"    "illegal instruction";
                                                                              no error of a prefetch
    shared address: a multiple of 128              PTX ISA, its alignments    no error (no swizzle)
    no negative coordinate where it is written     CUDA programming guide     no error: left out
    a sum: of a format in the ISA's table          PTX ISA, "cp.reduce. …"    no error

The emulator refuses all of them: what one GPU lets pass is undefined on the next one, or under the
next driver. A load or a prefetch may begin before the tensor (x = −4 in float32).

A load announces its bytes: `mbarrier_arrive_expect_tx(bar, nbytes)`. `_multicast` puts the same box
at the same shared address of every block whose bit is set in `mask`, and brings the bytes to the
mbarrier at the same address there. Stores go in groups like cp.async's: `bulk_wait_read(n)` lets
the shared memory be used again, `bulk_wait(n)` waits until the writes are done. What ordinary
stores have written to shared memory needs `fence_proxy_async_shared` by the writer first.

`bulk_…` copies move `nbytes` bytes, a multiple of 16, between addresses that are multiples of 16,
without a map. Their sums of float32 keep subnormal numbers: an H100 was measured to, and for boxes
the emulator takes it to be the same.

Sources: PTX ISA, sections "Tensors", "cp.async.bulk", "cp.async.bulk.tensor",
"cp.async.bulk.prefetch.tensor", "cp.reduce.async.bulk", "cp.reduce.async.bulk.tensor",
"cp.async.bulk.commit_group", "cp.async.bulk.wait_group"; CUDA programming guide, section "Tensor
Memory Accelerator" (negative indices and out of bounds).
"""

from ..emulator import bulk_copy, bulk_write
from .instruction import instruction
from .tensor_map import TensorMap, tensor_map

HOPPER = (9, 0)
RANKS = (1, 2, 3, 4, 5)
TO_SHARED = "shared::cluster.global.mbarrier::complete_tx::bytes"


def _coordinates(rank, first):
    return "{" + ", ".join(f"${first + k}" for k in range(rank)) + "}"


def _load(rank, multicast=False):
    name = f"tma_load_{rank}d{'_multicast' if multicast else ''}"
    kind, mask = (".multicast::cluster", f", ${rank + 3}") if multicast else ("", "")
    text = (
        f"cp.async.bulk.tensor.{rank}d.{TO_SHARED}{kind} "
        f"[$0], [$1, {_coordinates(rank, 2)}], [${rank + 2}]{mask};"
    )
    coordinates = ", ".join(["s32"] * rank)
    last = ", u16" if multicast else ""

    @instruction(text, f"void(u32, u64, {coordinates}, u32{last})", name=name, cc=HOPPER)
    def meaning(t, shared, map, *rest):
        mask = rest[rank + 1] if multicast else None
        bulk_copy.load_box(t, name, shared, map, rest[:rank], rest[rank], mask)

    meaning.__doc__ = (
        f"Load a box of a {rank}-dimensional tensor: arguments (shared address, tensor map, "
        f"{rank} coordinates, mbarrier{', mask of blocks of the cluster' if multicast else ''})."
    )
    return meaning


def _store(rank, add=False):
    name = f"tma_{'reduce_add' if add else 'store'}_{rank}d"
    verb, kind = ("cp.reduce", ".add.tile") if add else ("cp", "")
    text = (
        f"{verb}.async.bulk.tensor.{rank}d.global.shared::cta{kind}.bulk_group "
        f"[$0, {_coordinates(rank, 1)}], [${rank + 1}];"
    )

    @instruction(text, f"void(u64, {', '.join(['s32'] * rank)}, u32)", name=name, cc=HOPPER)
    def meaning(t, map, *rest):
        bulk_write.store_box(t, name, map, rest[:rank], rest[rank], add)

    meaning.__doc__ = (
        f"{'Add a box in shared memory to' if add else 'Store a box from shared memory into'} a "
        f"{rank}-dimensional tensor{', atomically for each element' if add else ''}: arguments "
        f"(tensor map, {rank} coordinates, none negative, shared address)."
        f"{' Formats: ' + ', '.join(bulk_write.ADDABLE) + '.' if add else ''}"
    )
    return meaning


def _prefetch(rank):
    name = f"tma_prefetch_{rank}d"
    text = f"cp.async.bulk.prefetch.tensor.{rank}d.L2.global [$0, {_coordinates(rank, 1)}];"

    @instruction(text, f"void(u64, {', '.join(['s32'] * rank)})", name=name, cc=HOPPER)
    def meaning(t, map, *coordinates):
        bulk_copy.prefetch_box(t, name, map, coordinates)

    meaning.__doc__ = (
        f"Bring a box of a {rank}-dimensional tensor into L2: arguments (tensor map, coordinates)."
    )
    return meaning


@instruction("prefetch.tensormap [$0];", "void(u64)", cc=HOPPER)
def prefetch_tensormap(t, map):
    """Bring a tensor map into the cache of descriptors, before the first copy needs it."""
    bulk_copy.find_map(t, "prefetch_tensormap", map)


# ---- runs of bytes


@instruction(
    f"cp.async.bulk.{TO_SHARED} [$0], [$1], $2, [$3];", "void(u32, u64, u32, u32)", cc=HOPPER
)
def bulk_load(t, shared, source, nbytes, bar):
    """Copy `nbytes` from global address `source` to shared memory, and their number to `bar`."""
    bulk_copy.load_run(t, "bulk_load", shared, source, nbytes, bar)


@instruction(
    "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [$0], [$1], $2, [$3];",
    "void(u32, u32, u32, u32)",
    cc=HOPPER,
)
def bulk_send(t, target, shared, nbytes, bar):
    """Copy `nbytes` of this block's shared memory to another block of the cluster.

    `target` and `bar`, the mbarrier that gets their number, are cluster addresses of that block.
    """
    bulk_copy.send_run(t, "bulk_send", target, shared, nbytes, bar)


@instruction(
    "cp.async.bulk.global.shared::cta.bulk_group [$0], [$1], $2;", "void(u64, u32, u32)", cc=HOPPER
)
def bulk_store(t, target, shared, nbytes):
    """Copy `nbytes` from shared memory to global address `target`."""
    bulk_write.store_run(t, "bulk_store", target, shared, nbytes)


def _bulk_add(kind, dtype):
    name = f"bulk_reduce_add_{kind}"
    noftz = "" if kind == "f32" else ".noftz"
    text = f"cp.reduce.async.bulk.global.shared::cta.bulk_group.add{noftz}.{kind} [$0], [$1], $2;"

    @instruction(text, "void(u64, u32, u32)", name=name, cc=HOPPER)
    def meaning(t, target, shared, nbytes):
        bulk_write.store_run(t, name, target, shared, nbytes, add=dtype)

    meaning.__doc__ = (
        f"Add `nbytes` of {dtype} in shared memory to those at global address `target`, "
        "atomically for each element."
    )
    return meaning


@instruction("cp.async.bulk.prefetch.L2.global [$0], $1;", "void(u64, u32)", cc=HOPPER)
def bulk_prefetch(t, source, nbytes):
    """Bring `nbytes` at a global address into L2; both are multiples of 16."""
    bulk_copy.prefetch_run(t, "bulk_prefetch", source, nbytes)


# ---- groups of stores


@instruction("cp.async.bulk.commit_group;", "void()", cc=HOPPER)
def bulk_commit(t):
    """Close the bulk stores that this thread has started since its last commit into a group."""
    bulk_write.commit(t)


@instruction("cp.async.bulk.wait_group $0;", "void(literal)", cc=HOPPER)
def bulk_wait(t, n):
    """Wait until at most the newest `n` groups of this thread have writes to do; n a constant."""
    bulk_write.wait(t, n)


@instruction("cp.async.bulk.wait_group.read $0;", "void(literal)", cc=HOPPER)
def bulk_wait_read(t, n):
    """Wait until at most the newest `n` groups of this thread have shared memory still to read."""
    bulk_write.wait(t, n, read=True)


def _family():
    for rank in RANKS:
        yield from (
            _load(rank),
            _load(rank, True),
            _store(rank),
            _store(rank, True),
            _prefetch(rank),
        )
    for kind, dtype in (("f32", "float32"), ("f16", "float16"), ("bf16", "bfloat16")):
        yield _bulk_add(kind, dtype)


# tma_load_1d … tma_reduce_add_5d, bulk_reduce_add_f32, …
_FAMILY = {ins.name: ins for ins in _family()}
globals().update(_FAMILY)
__all__ = [
    "TensorMap",
    "bulk_commit",
    "bulk_load",
    "bulk_prefetch",
    "bulk_send",
    "bulk_store",
    "bulk_wait",
    "bulk_wait_read",
    "prefetch_tensormap",
    "tensor_map",
    *_FAMILY,
]  # noqa: PLE0604
