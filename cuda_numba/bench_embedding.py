"""What `bench` measures of the embedding: the lookup, and its gradient for few and many tokens."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from .bench_cases import Case, compiled, inputs, module, over, randn, relative_error

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


def embedding_cases() -> Iterator[Case]:
    yield forward_case()
    for n in GRADIENT_TOKENS:
        yield backward_case(n)


CASES = {"embedding": embedding_cases}
