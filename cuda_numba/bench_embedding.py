"""What `bench` measures of the embedding: the lookup, its gradient for few and many tokens, and how
long of it the tokens are being sorted.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F

from . import record, stopwatch
from .bench_cases import Case, compiled, inputs, module, over, randn, relative_error
from .sources import SOURCES

V, C = 50304, 768
TOKENS = 65536
GRADIENT_TOKENS = (16384, TOKENS, 1048576)  # fewer than rows of w, about as many, many more
SHIFT = 2.7  # Mandelbrot's: keeps the commonest id at 3 % of all
CHECKED_TOKENS = 65536  # that are widened to float64 at a time


def zipf(n: int) -> torch.Tensor:
    """n ids, distributed like words of a text: id k in proportion to 1 / (k + 1 + SHIFT)."""
    ranks = torch.arange(1, V + 1, device="cuda", dtype=torch.float64)
    return torch.multinomial((1 / (ranks + SHIFT)).float(), n, replacement=True)


def forward_case() -> Case:
    """Rows of w that several tokens name count once: L2 has them after the first time."""
    m = module("embedding")
    n = TOKENS
    nbytes = n * C * 2 + zipf(n).unique().numel() * C * 2 + n * 8
    sets = inputs(nbytes, lambda: (zipf(n), randn(V, C)))
    return Case(
        "embedding", "forward", {"N": n, "V": V, "C": C}, "bfloat16", nbytes,
        over(sets, m.embedding_forward),
        lambda: relative_error(m.embedding_forward(*sets[0]), sets[0][1].double()[sets[0][0]]),
        len(sets),
        {
            "torch": over(sets, lambda ids, w: F.embedding(ids, w)),
            "torch.compile": over(sets, compiled(lambda ids, w: F.embedding(ids, w))),
        },
        goal=0.90, beats={"torch": 1.0},
    )  # fmt: skip


def backward_case(n: int) -> Case:
    """dy and ids read once, all of dw written once, its many rows of zeros too."""
    backward = module("embedding_gradient").embedding_backward
    nbytes = n * C * 2 + V * C * 2 + n * 8
    sets = inputs(nbytes, lambda: (randn(n, C), zipf(n)))

    def error() -> float:
        dy, ids = sets[0]
        expected = torch.zeros(V, C, dtype=torch.float64, device="cuda")
        for some, of in zip(dy.split(CHECKED_TOKENS), ids.split(CHECKED_TOKENS), strict=True):
            expected.index_add_(0, of, some.double())
        return relative_error(backward(dy, ids, V), expected)

    def native(dy: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return torch.ops.aten.embedding_dense_backward(dy, ids, V, -1, False)

    return Case(
        "embedding", "backward", {"N": n, "V": V, "C": C}, "bfloat16", nbytes,
        over(sets, lambda dy, ids: backward(dy, ids, V)), error, len(sets),
        {"torch": over(sets, native)}, goal=0.90, beats={"torch": 1.0},
    )  # fmt: skip


def sort_row(n: int) -> dict[str, Any]:
    """The gradient's sort of n tokens, and the zeros that it writes to dw meanwhile: microseconds.

    Nothing of dy can be added before it has ended, so it is the part of the gradient's time that a
    copy does not have. error: the share of tokens at another place than in a stable sort.
    """
    plan = module("embedding_plan").plan
    sets = inputs(V * C * 2, lambda: (zipf(n), torch.empty(V, C, dtype=torch.bfloat16).cuda()))

    def ours(ids: torch.Tensor, dw: torch.Tensor) -> Any:
        return plan(ids, dw, 8, 1)

    ids, dw = sets[0]
    found = ours(ids, dw)
    expected = (ids % found.groups * V + ids // found.groups).sort(stable=True).indices
    error = (found.order[:, 0] != expected).float().mean().item()
    seconds = stopwatch.measure(
        {"ours": over(sets, ours), "torch.sort": over(sets, lambda ids, dw: ids.sort(stable=True))},
        len(sets),
    )
    microseconds = {name: s * 1e6 for name, s in seconds.items()}
    return record.row(
        "embedding", "sort", microseconds["ours"], "us", sources=SOURCES["embedding"],
        shape={"N": n, "V": V, "C": C}, dtype="int64", seconds=seconds["ours"], error=error,
        peers={
            name: {"value": microseconds[name], "seconds": seconds[name]} for name in ["torch.sort"]
        },
    )  # fmt: skip


def embedding_cases() -> Iterator[Case | dict[str, Any]]:
    yield forward_case()
    for n in GRADIENT_TOKENS:
        yield backward_case(n)
        yield sort_row(n)


CASES = {"embedding": embedding_cases}
