"""Attention forward on Hopper: TMA, mbarriers and wgmma, with warps for each (FlashAttention-3).

    warpgroup 0    thread 0  loads queries, keys and values      `attention_hopper_copies`
                   thread 32 stores outputs
    warpgroup 1    queries   0 –  63 of the block's tile         `attention_hopper_products`
    warpgroup 2    queries  64 – 127                             `attention_hopper_softmax`
    (warpgroup 3   queries 128 – 191, where D ≤ 64 and there are tiles enough)

One block stays on each multiprocessor and works through a list of tiles (`attention_schedule`),
each as wide as its warpgroups, with tiles of 128 keys. 4 · B · H · T² · D FLOPs, half of them where
causal, besides those of the tiles on the diagonal that are masked; K and V come from L2 once for
every tile of queries.

What each idea is worth, in TFLOP/s on one H100, causal, B · H · T = 262,144 or (last) 196,608:

    D 128, T 4,096                                630    cuDNN 564, FlashAttention-2 296
      softmax after both products, not between    601    (of 619, without the last section)
      o rescaled whenever the maximum rises       603    (of 619)
      tiles of 64, 96, 112, 160 keys              507, 584 (of 619), 603, 629
    D 128, T 16,384, tiles of 128, 160 keys       683, 713    cuDNN 633, FlashAttention-2 300
    D 64, T 4,096                                 493    cuDNN 413, FlashAttention-2 263
      products not in turns                       481
      one exponential in 16 by a cubic            451    (of 467): issue slots are what binds
      two warpgroups that multiply, not three     414
      tiles dealt out in turn, not from a list    408
    D 64, T 1,024                                 339    cuDNN 311, FlashAttention-2 194
      the last tile short, not the first          300

Sources: Shah et al. 2024, "FlashAttention-3"; for the slack of the maximum, "FlashAttention-4".
"""

import functools
from typing import Any, NamedTuple

import torch

from . import ptx
from .attention_hopper_copies import loader, storer
from .attention_hopper_plan import ALIGNMENT, Plan
from .attention_hopper_products import multiplier
from .attention_schedule import schedule
from .attention_tiles import GROUP, reach
from .dtypes import dtype_name
from .jit import jit
from .namespace import cuda, float32, int32, uint32, uint64

LOG2E = 1.4426950408889634
PLANS = {
    32: Plan(32, 128, 3, 4, True),
    64: Plan(64, 128, 3, 3, True),
    96: Plan(96, 128, 2, 2, True),
    128: Plan(128, 128, 2, 2, True),
}
# Two warpgroups make more tiles: where three would leave multiprocessors with one or none.
FEW = {32: Plan(32, 128, 2, 4, True), 64: Plan(64, 128, 2, 3, True)}
LONG = {128: Plan(128, 160, 2, 2, True)}  # 2 to 4 % faster from 8,192 keys on, slower below 2,048
L2 = 8 << 20  # bytes of keys and values of a section of heads; 4 to 16 MB are as good


@functools.cache
def forward_kernel(dtype: str, plan: Plan):
    FEWER, MORE = plan.registers
    consumers, stages = plan.consumers, plan.stages
    FULL, EMPTY, DONE = plan.slot_barriers()
    K_FULL, K_EMPTY, V_FULL, V_EMPTY = plan.stage_barriers()
    load_all, store_all, multiply_all = loader(plan), storer(plan), multiplier(dtype, plan)

    @jit(pointers=True, launch_bounds=(plan.threads, 1))
    def attention_forward(
        q_map: "uint64", k_map: "uint64", v_map: "uint64", o_map: "uint64", lse: "float32",
        order: "int32", heads: "uint32", group: "uint32", batch_heads: "uint32",
        queries: "uint32", length: "uint32", behind: "uint32", ahead: "uint32", scale: "float32",
    ):  # fmt: skip
        memory = ptx.shared_address(cuda.shared.array(0, uint32))
        base = uint32((memory + uint32(ALIGNMENT - 1)) & uint32(2**32 - ALIGNMENT))
        thread = uint32(cuda.threadIdx.x)
        if thread == uint32(0):
            for i in range(2):
                ptx.mbarrier_init(uint32(base + uint32(FULL + 8 * i)), 1)
                ptx.mbarrier_init(uint32(base + uint32(EMPTY + 8 * i)), 1)
                ptx.mbarrier_init(uint32(base + uint32(DONE + 8 * i)), 4 * consumers)
            for i in range(stages):
                ptx.mbarrier_init(uint32(base + uint32(K_FULL + 8 * i)), 1)
                ptx.mbarrier_init(uint32(base + uint32(K_EMPTY + 8 * i)), 4 * consumers)
                ptx.mbarrier_init(uint32(base + uint32(V_FULL + 8 * i)), 1)
                ptx.mbarrier_init(uint32(base + uint32(V_EMPTY + 8 * i)), 4 * consumers)
            ptx.fence_mbarrier_init()
        cuda.syncthreads()
        if thread < uint32(128):
            ptx.setmaxnreg_dec(FEWER)
            if thread == uint32(0):
                load_all(
                    base, q_map, k_map, v_map, order, heads, group, batch_heads, queries, length,
                    behind, ahead,
                )  # fmt: skip
            if thread == uint32(32):
                store_all(base, o_map)
        else:
            ptx.setmaxnreg_inc(MORE)
            multiply_all(base, lse, heads, queries, length, behind, ahead, scale)

    return attention_forward


def plan_of(D: int, queries: int, keys: int, heads: int, blocks: int) -> Plan:
    """The plan for `heads` heads in all of the batch, on a GPU of `blocks` multiprocessors."""
    width = -(-D // 32) * 32
    plan = PLANS[width]
    tiles = -(-queries // plan.rows) * heads
    if width in FEW and (tiles < 2 * blocks or queries <= 256):
        return FEW[width]
    return LONG.get(width, plan) if keys >= 8192 else plan


class Maps:
    """Tensor maps of the tensors of one shape and strides, by their addresses.

    On a GPU a map is kept as a number, for ever, as `ptx.tensor_map` keeps its 128 bytes.
    """

    def __init__(self, *box: int):
        self.box, self.known = box, {}

    def __call__(self, x: torch.Tensor) -> int:
        found = self.known.get(x.data_ptr())
        if found is None:
            found = ptx.tensor_map(x, self.box, swizzle=128)
            if x.is_cuda:
                found = self.known[x.data_ptr()] = int(found)
        return found


class Prepared(NamedTuple):
    """What the launches for operands of the same shapes and strides have in common."""

    strides: tuple[int, ...]  # of o
    maps: tuple[Maps, ...]  # of q, k, v, o
    kernel: Any
    configuration: tuple
    order: torch.Tensor
    numbers: tuple[int, ...]


@functools.cache
def prepared(
    dtype: torch.dtype, device: torch.device, q_shape: tuple, q_strides: tuple, k_shape: tuple,
    k_strides: tuple, v_strides: tuple, causal: bool, window: int | None, plan: Plan | None,
    blocks: int | None,
) -> Prepared:  # fmt: skip
    (B, H, Tq, D), (_, H_kv, Tk, _) = q_shape, k_shape
    name = dtype_name(dtype)
    if name not in ("bfloat16", "float16") or D % 8 or not 32 <= D <= 128:
        raise ValueError(
            f"q: {name} with heads of {D}, the Hopper kernel takes bfloat16 and float16, and a "
            "multiple of 8 from 32 to 128"
        )
    blocks = blocks or processors(device)
    plan = plan or plan_of(D, Tq, Tk, B * H, blocks)
    group, (behind, ahead) = H // H_kv, reach(causal, window)
    blocks = min(blocks, -(-Tq // plan.rows) * B * H)
    most = max(L2 // (4 * Tk * D), 1) * group
    order = schedule(device, blocks, B * H, most, plan.consumers, plan.keys, Tq, Tk, behind, ahead)
    return Prepared(
        (Tq * H * D, D, H * D, 1),
        tuple(Maps(1, 1, n, 64) for n in (plan.rows, plan.keys, plan.keys, GROUP)),
        forward_kernel(name, plan),
        (blocks, plan.threads, 0, plan.shared),
        order,
        (H, group, B * H, Tq, Tk, behind, ahead),
    )


def forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, causal: bool, window: int | None,
    scale: float, plan: Plan | None = None, blocks: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """(o, lse): o (B, H, Tq, D), a view of (B, Tq, H, D) memory; lse (B, H, Tq) to base 2.

    bfloat16 or float16, D a multiple of 8 from 32 to 128; operands as TMA reads them: a contiguous
    last axis, a start and other strides that are multiples of 16 bytes. A new shape needs a new
    list of tiles: warm up before a capture. A tensor at a new address needs a new tensor map, and
    what is allocated in a capture has one: `torch.cuda.graph(…, capture_error_mode="relaxed")`.

    plan, blocks: others than `plan_of` chooses, and than one on each multiprocessor.
    """
    ready = prepared(
        q.dtype, q.device, q.shape, q.stride(), k.shape, k.stride(), v.stride(), causal, window,
        plan, blocks,
    )  # fmt: skip
    o = torch.empty_strided(q.shape, ready.strides, dtype=q.dtype, device=q.device)
    lse = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    maps = [of(x) for of, x in zip(ready.maps, (q, k, v, o), strict=True)]
    ready.kernel[ready.configuration](*maps, lse, ready.order, *ready.numbers, scale * LOG2E)
    return o, lse


@functools.cache
def processors(device: torch.device) -> int:
    """Multiprocessors of a GPU; 2 for the emulator, so that blocks have several tiles each."""
    if device.type == "cpu":
        return 2
    return torch.cuda.get_device_properties(device).multi_processor_count
