"""What `bench` measures of softmax: rows that fit a block's registers, and long ones."""

from collections.abc import Iterator

import torch

from .bench_cases import (
    CHECKED_ROWS,
    COLUMNS,
    ROWS,
    Case,
    compiled,
    inputs,
    module,
    name_of,
    over,
    randn,
    relative_error,
)


def softmax_backward_formula(dy: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    dy32, y32 = dy.float(), y.float()
    return (y32 * (dy32 - (dy32 * y32).sum(-1, keepdim=True))).to(dy.dtype)


def softmax_cases() -> Iterator[Case]:
    m = module("softmax")
    shapes = (
        (ROWS, COLUMNS, torch.bfloat16), (65536, 4096, torch.float32), (8192, 50304, torch.float32)
    )  # fmt: skip
    for rows, columns, dtype in shapes:
        nbytes = 2 * rows * columns * dtype.itemsize
        sets = inputs(nbytes, lambda r=rows, c=columns, d=dtype: (randn(r, c, dtype=d),))
        x = sets[0][0][:CHECKED_ROWS]
        yield Case(
            "softmax", "forward", {"rows": rows, "columns": columns}, name_of(dtype), nbytes,
            over(sets, m.softmax_forward),
            lambda x=x: relative_error(m.softmax_forward(x), x.double().softmax(-1)),
            len(sets), 
            {
                "torch": over(sets, lambda x: x.softmax(-1)),
                "torch.compile": over(sets, compiled(lambda x: x.softmax(-1))),
            },
            {r: over(sets, m.RUNGS[r]) for r in ("naive", "online")} if rows == ROWS else {},
            goal=0.92, beats={"torch.compile": 0.98},
        )  # fmt: skip
        if dtype is torch.float32:
            continue
        nbytes = nbytes // 2 * 3
        sets = inputs(nbytes, lambda: (randn(ROWS, COLUMNS), randn(ROWS, COLUMNS).softmax(-1)))
        dy, y = (t[:CHECKED_ROWS] for t in sets[0])
        yield Case(
            "softmax", "backward", {"rows": rows, "columns": columns}, name_of(dtype), nbytes,
            over(sets, m.softmax_backward),
            lambda dy=dy, y=y: relative_error(
                m.softmax_backward(dy, y), m.softmax_backward_reference(dy.double(), y.double())
            ),
            len(sets), 
            {
                "torch": over(
                    sets, lambda dy, y: torch.ops.aten._softmax_backward_data(dy, y, -1, y.dtype)
                ),
                "torch.compile": over(sets, compiled(softmax_backward_formula)),
            },
            goal=0.92, beats={"torch.compile": 0.98},
        )  # fmt: skip


CASES = {"softmax": softmax_cases}
