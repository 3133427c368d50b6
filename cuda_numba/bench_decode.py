"""What `bench` measures of decode attention: one new token over caches of 67 to 268 MB.

Bytes are K and V read once; the copy that they are held against moves as many, half of them reads.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from .bench_cases import Case, inputs, module, name_of, over, randn, relative_error

PEERS = {
    "torch flash": SDPBackend.FLASH_ATTENTION,
    "torch cuDNN": SDPBackend.CUDNN_ATTENTION,
    "torch efficient": SDPBackend.EFFICIENT_ATTENTION,
}
CHECKED = 2  # sequences that are widened to float64

#          B, H, H_kv, Tq, T, D, page size
SHAPES = (
    (8, 16, 16, 1, 4096, 128, None),
    (8, 32, 8, 1, 4096, 128, None),
    (4, 32, 8, 1, 4096, 128, None),
    (1, 32, 8, 1, 32768, 128, None),
    (8, 32, 8, 4, 4096, 128, None),
    (8, 16, 16, 1, 4096, 64, None),
    (8, 32, 8, 1, 4096, 64, None),
    (8, 32, 8, 1, 4096, 128, 16),
    (8, 32, 8, 1, 4096, 128, 64),
    (16, 32, 8, 1, 4096, 64, 16),
)


def sdpa(backend: SDPBackend, grouped: bool) -> Callable:
    """PyTorch's attention over the whole cache by one backend; it has no lengths and no pages."""

    def attend(q, k, v, lengths, table):
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v, enable_gqa=grouped)

    return attend


def peers_of(sets: list[tuple], grouped: bool, plain: bool) -> dict[str, Callable[[int], Any]]:
    """Those that compute the same and run: one token, contiguous caches."""
    found: dict[str, Callable[[int], Any]] = {}
    if not plain:
        return found
    for name, backend in PEERS.items():
        call = over(sets, sdpa(backend, grouped))
        try:
            call(0)
        except RuntimeError:  # "No available kernel": not with grouped heads, or not on this GPU
            continue
        found[name] = call
    return found


def call_arguments(B, H, H_kv, Tq, T, D, page) -> tuple:
    """(q, k_cache, v_cache, lengths, block_table), all lengths T, pages in random order."""
    q, lengths = randn(B, H, Tq, D), torch.full((B,), T, dtype=torch.int32, device="cuda")
    if page is None:
        return q, randn(B, H_kv, T, D), randn(B, H_kv, T, D), lengths, None
    pages = T // page
    table = torch.randperm(B * pages, device="cuda").to(torch.int32).view(B, pages)
    caches = (randn(B * pages, H_kv, page, D) for _ in range(2))
    return q, *caches, lengths, table


def decode_case(B, H, H_kv, Tq, T, D, page) -> Case:
    m = module("decode")
    nbytes = 2 * B * H_kv * T * D * 2
    sets = inputs(nbytes, lambda: call_arguments(B, H, H_kv, Tq, T, D, page))

    def error() -> float:
        q, k, v, lengths, table = sets[0]
        some = [x if x is None else x[:CHECKED] for x in (q, lengths, table)]
        caches = (x[:CHECKED] if table is None else x for x in (k, v))
        right = m.decode_attention_reference(
            some[0].double(), *(x.double() for x in caches), *some[1:]
        )
        return relative_error(m.decode_attention(*sets[0])[:CHECKED], right)

    shape = {"B": B, "H": H, "H_kv": H_kv, "Tq": Tq, "T": T, "D": D, "page": page}
    rungs = {name: over(sets, m.RUNGS[name]) for name in ("naive", "split")}
    return Case(
        "decode_attention", "forward", shape, name_of(torch.bfloat16), nbytes,
        over(sets, m.decode_attention), error, len(sets),
        peers_of(sets, H != H_kv, plain=page is None and Tq == 1),
        rungs if (H == H_kv and D == 128) else {}, goal=0.85,
    )  # fmt: skip


def decode_cases() -> Iterator[Case]:
    for shape in SHAPES:
        yield decode_case(*shape)


CASES = {"decode_attention": decode_cases}
