"""What `bench` measures: for each operation its inputs, its peers, its bytes and its goal.

Bytes are what the operation must move at least: each input read once, each output written once.
The checks compare with the reference in float64, on a part of the rows where the whole would not
fit in memory.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F

from .stopwatch import sets_for

ROWS, COLUMNS = 16384, 4096
CHECKED_ROWS = 512


@dataclass
class Case:
    """One row to be.

    ours, peers: called with the number of an input set. nbytes: what the operation must read and
    write at least. error: the largest error of `ours` against float64, relative to the largest
    expected number. goal: a share of the copy's bandwidth; beats: share of a peer's.
    """

    op: str
    pass_: str
    shape: dict[str, Any]
    dtype: str
    nbytes: int
    ours: Callable[[int], object]
    error: Callable[[], float]
    sets: int
    peers: dict[str, Callable[[int], object]] = field(default_factory=dict)
    rungs: dict[str, Callable[[int], object]] = field(default_factory=dict)
    goal: float | None = None
    beats: dict[str, float] = field(default_factory=dict)


def module(name: str) -> Any:
    return import_module(f"cuda_numba.{name}")


def randn(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(*shape, device="cuda").to(dtype)


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest error, relative to the largest expected number."""
    return ((got.double() - expected).abs().max() / expected.abs().max()).item()


def compiled(fn: Callable) -> Callable:
    return torch.compile(fn, dynamic=False, mode="max-autotune-no-cudagraphs")


def over(sets: list[tuple], fn: Callable) -> Callable[[int], object]:
    """fn on the arguments of a set, by its number."""
    return lambda i: fn(*sets[i])


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def inputs(nbytes: int, make: Callable[[], tuple]) -> list[tuple]:
    return [make() for _ in range(sets_for(nbytes))]


# ---- softmax ----------------------------------------------------------------------------------


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


# ---- norms ------------------------------------------------------------------------------------


def layer_norm_cases() -> Iterator[Case]:
    m = module("layer_norm")
    liger = liger_module("layer_norm")
    C, eps = COLUMNS, 1e-5
    nbytes = 2 * ROWS * C * 2
    sets = inputs(nbytes, lambda: (randn(ROWS, C), randn(C), randn(C)))
    x, w, b = sets[0][0][:CHECKED_ROWS], *sets[0][1:]
    peers = {
        "torch": over(sets, lambda x, w, b: F.layer_norm(x, (C,), w, b, eps)),
        "torch.compile": over(sets, compiled(lambda x, w, b: F.layer_norm(x, (C,), w, b, eps))),
    }
    if liger:
        peers["Liger"] = over(sets, lambda x, w, b: liger.layer_norm_forward(x, w, b, eps))
    yield Case(
        "layer_norm", "forward", {"rows": ROWS, "C": C}, "bfloat16", nbytes,
        over(sets, lambda x, w, b: m.layer_norm_forward(x, w, b, eps)),
        lambda: relative_error(
            m.layer_norm_forward(x, w, b, eps)[0],
            F.layer_norm(x.double(), (C,), w.double(), b.double(), eps),
        ),
        len(sets), peers, goal=0.92,
    )  # fmt: skip

    def make() -> tuple:
        x, w, b = randn(ROWS, C), randn(C), randn(C)
        _, mean, rstd = torch.ops.aten.native_layer_norm(x, (C,), w, b, eps)
        return randn(ROWS, C), x, w, b, mean, rstd

    nbytes = 3 * ROWS * C * 2
    sets = inputs(nbytes, make)

    def native(dy, x, w, b, mean, rstd):
        return torch.ops.aten.native_layer_norm_backward(
            dy, x, (C,), mean, rstd, w, b, [True, True, True]
        )

    peers = {"torch": over(sets, native), "torch.compile": over(sets, compiled(native))}
    if liger:
        peers["Liger"] = over(
            sets,
            lambda dy, x, w, b, mean, rstd: liger.layer_norm_backward(
                dy, x, w, b, mean.flatten(), rstd.flatten(), True, True
            ),
        )

    def ours(dy, x, w, b, mean, rstd):
        return m.layer_norm_backward(dy, x, w, mean.flatten(), rstd.flatten())

    def error() -> float:
        x, w, b = (t[:CHECKED_ROWS] if t.ndim == 2 else t for t in sets[0][1:4])
        y, mean, rstd = m.layer_norm_forward(x, w, b, eps)
        dy = sets[0][0][:CHECKED_ROWS]
        leaves = [t.double().requires_grad_() for t in (x, w, b)]
        F.layer_norm(leaves[0], (C,), leaves[1], leaves[2], eps).backward(dy.double())
        got = m.layer_norm_backward(dy, x, w, mean, rstd)
        return max(relative_error(g, t.grad) for g, t in zip(got, leaves, strict=True))

    yield Case(
        "layer_norm", "backward", {"rows": ROWS, "C": C}, "bfloat16", nbytes, over(sets, ours),
        error, len(sets), peers, goal=0.80,
    )  # fmt: skip


def rms_norm_cases() -> Iterator[Case]:
    m = module("rms_norm")
    liger = liger_module("rms_norm")
    C, eps = COLUMNS, 1e-5
    nbytes = 2 * ROWS * C * 2
    sets = inputs(nbytes, lambda: (randn(ROWS, C), randn(C)))
    x, w = sets[0][0][:CHECKED_ROWS], sets[0][1]
    peers = {
        "torch": over(sets, lambda x, w: F.rms_norm(x, (C,), w, eps)),
        "torch.compile": over(sets, compiled(lambda x, w: F.rms_norm(x, (C,), w, eps))),
    }
    if liger:
        peers["Liger"] = over(
            sets, lambda x, w: liger.rms_norm_forward(x, w, eps, 0.0, "llama", None)
        )
    yield Case(
        "rms_norm", "forward", {"rows": ROWS, "C": C}, "bfloat16", nbytes,
        over(sets, lambda x, w: m.rms_norm_forward(x, w, eps)),
        lambda: relative_error(
            m.rms_norm_forward(x, w, eps)[0], F.rms_norm(x.double(), (C,), w.double(), eps)
        ),
        len(sets), peers, goal=0.92,
    )  # fmt: skip

    def make() -> tuple:
        x, w = randn(ROWS, C), randn(C)
        return randn(ROWS, C), x, w, (x.float().square().mean(-1) + eps).rsqrt()

    nbytes = 3 * ROWS * C * 2
    sets = inputs(nbytes, make)

    def formula(dy, x, w, rstd):
        x32, g = x.float() * rstd[:, None], dy.float() * w.float()
        dx = rstd[:, None] * (g - x32 * (g * x32).mean(-1, keepdim=True))
        return dx.to(x.dtype), (dy.float() * x32).sum(0).to(w.dtype)

    peers = {"torch.compile": over(sets, compiled(formula))}
    if liger:
        _, _, _, block, warps, mode = liger.rms_norm_forward(
            sets[0][1], sets[0][2], eps, 0.0, "llama", None
        )
        peers["Liger"] = over(
            sets,
            lambda dy, x, w, rstd: liger.rms_norm_backward(
                dy, x, w, rstd, 0.0, mode, block, warps, False, None, True
            ),
        )

    def error() -> float:
        dy, x, w = sets[0][0][:CHECKED_ROWS], sets[0][1][:CHECKED_ROWS], sets[0][2]
        leaves = [t.double().requires_grad_() for t in (x, w)]
        F.rms_norm(leaves[0], (C,), leaves[1], eps).backward(dy.double())
        got = m.rms_norm_backward(dy, x, w, m.rms_norm_forward(x, w, eps)[1])
        return max(relative_error(g, t.grad) for g, t in zip(got, leaves, strict=True))

    yield Case(
        "rms_norm", "backward", {"rows": ROWS, "C": C}, "bfloat16", nbytes,
        over(sets, m.rms_norm_backward), error, len(sets), peers,
        goal=0.80,
    )  # fmt: skip


def liger_module(name: str) -> Any:
    """Liger's module, or None where the package is not installed."""
    try:
        return import_module(f"liger_kernel.ops.{name}")
    except ImportError:
        return None


# ---- element-wise -----------------------------------------------------------------------------


def gelu_cases() -> Iterator[Case]:
    m = module("activation")
    for form in ("none", "tanh"):
        shape = {"rows": ROWS, "columns": COLUMNS, "approximate": form}
        nbytes = 2 * ROWS * COLUMNS * 2
        sets = inputs(nbytes, lambda: (randn(ROWS, COLUMNS),))
        torch_gelu = functools.partial(F.gelu, approximate=form)
        ours = functools.partial(m.gelu_forward, approximate=form)
        x = sets[0][0][:CHECKED_ROWS]
        yield Case(
            "gelu", "forward", shape, "bfloat16", nbytes, over(sets, ours),
            lambda x=x, f=ours, g=torch_gelu: relative_error(f(x), g(x.double())),
            len(sets), 
            {"torch": over(sets, torch_gelu), "torch.compile": over(sets, compiled(torch_gelu))},
            goal=0.95,
        )  # fmt: skip
        nbytes = 3 * ROWS * COLUMNS * 2
        sets = inputs(nbytes, lambda: (randn(ROWS, COLUMNS), randn(ROWS, COLUMNS)))
        native = functools.partial(torch.ops.aten.gelu_backward, approximate=form)
        back = functools.partial(m.gelu_backward, approximate=form)
        dy, x = (t[:CHECKED_ROWS] for t in sets[0])
        yield Case(
            "gelu", "backward", shape, "bfloat16", nbytes, over(sets, back),
            lambda dy=dy, x=x, f=back, g=native: relative_error(
                f(dy, x), g(dy.double(), x.double())
            ),
            len(sets), 
            {"torch": over(sets, native), "torch.compile": over(sets, compiled(native))}, goal=0.95,
        )  # fmt: skip


def swiglu_cases() -> Iterator[Case]:
    m = module("activation")
    liger = liger_module("swiglu")
    shape = {"rows": ROWS, "columns": COLUMNS}

    def formula(gate, up):
        return F.silu(gate) * up

    nbytes = 3 * ROWS * COLUMNS * 2
    sets = inputs(nbytes, lambda: (randn(ROWS, COLUMNS), randn(ROWS, COLUMNS)))
    gate, up = (t[:CHECKED_ROWS] for t in sets[0])
    peers = {"torch": over(sets, formula), "torch.compile": over(sets, compiled(formula))}
    if liger:
        peers["Liger"] = over(sets, liger.swiglu_forward)
    yield Case(
        "swiglu", "forward", shape, "bfloat16", nbytes, over(sets, m.swiglu_forward),
        lambda: relative_error(m.swiglu_forward(gate, up), formula(gate.double(), up.double())),
        len(sets), peers, goal=0.95,
    )  # fmt: skip

    def backward(dy, gate, up):
        g, d = gate.float(), dy.float()
        s = torch.sigmoid(g)
        dgate = d * up.float() * s * (1 + g * (1 - s))
        return dgate.to(gate.dtype), (d * g * s).to(up.dtype)

    nbytes = 5 * ROWS * COLUMNS * 2
    sets = inputs(nbytes, lambda: tuple(randn(ROWS, COLUMNS) for _ in range(3)))

    def error() -> float:
        dy, gate, up = (t[:CHECKED_ROWS] for t in sets[0])
        leaves = [t.double().requires_grad_() for t in (gate, up)]
        formula(*leaves).backward(dy.double())
        got = m.swiglu_backward(dy, gate, up)
        return max(relative_error(g, t.grad) for g, t in zip(got, leaves, strict=True))

    yield Case(
        "swiglu", "backward", shape, "bfloat16", nbytes, over(sets, m.swiglu_backward), error,
        len(sets), {"torch.compile": over(sets, compiled(backward))}, goal=0.95,
    )  # fmt: skip


def rope_cases() -> Iterator[Case]:
    m = module("rope")
    B, H, T, D = 16, 32, 2048, 64
    angles = torch.arange(T, device="cuda")[:, None] * 1e4 ** -(
        torch.arange(D // 2, device="cuda") / (D // 2)
    )
    cos, sin = angles.cos(), angles.sin()
    nbytes = 2 * B * H * T * D * 2 + 2 * T * D // 2 * 4
    sets = inputs(nbytes, lambda: (randn(B, H, T, D), cos, sin))

    def eager(x, cos, sin):
        return m.rope_reference(x.float(), cos, sin).to(x.dtype)

    for pass_, ours in (("forward", m.rope_forward), ("backward", m.rope_backward)):
        sign = 1 if pass_ == "forward" else -1
        x = sets[0][0][:1]
        yield Case(
            "rope", pass_, {"B": B, "H": H, "T": T, "D": D}, "bfloat16", nbytes, over(sets, ours),
            lambda f=ours, s=sign, x=x: relative_error(
                f(x, cos, sin), m.rope_reference(x.double(), cos.double(), s * sin.double())
            ),
            len(sets), 
            {
                "torch": over(sets, lambda x, c, s, sign=sign: eager(x, c, sign * s)),
                "torch.compile": over(
                    sets, compiled(lambda x, c, s, sign=sign: eager(x, c, sign * s))
                ),
            },
            goal=0.95,
        )  # fmt: skip


# ---- embedding --------------------------------------------------------------------------------


def embedding_cases() -> Iterator[Case]:
    m = module("embedding")
    gradient = module("embedding_gradient")
    V, C, N = 50304, 768, 65536
    ranks = torch.arange(1, V + 1, device="cuda", dtype=torch.float64)

    def zipf() -> torch.Tensor:  # ids as text has them: the commonest 5 % of all
        return torch.multinomial((1 / (ranks + 2.7)).float(), N, replacement=True)

    ids = zipf()
    rows = ids.unique().numel()
    nbytes = N * C * 2 + rows * C * 2 + N * 8
    sets = inputs(nbytes, lambda: (zipf(), randn(V, C)))
    shape = {"N": N, "V": V, "C": C}
    yield Case(
        "embedding", "forward", shape, "bfloat16", nbytes, over(sets, m.embedding_forward),
        lambda: relative_error(m.embedding_forward(*sets[0]), sets[0][1].double()[sets[0][0]]),
        len(sets), 
        {
            "torch": over(sets, lambda ids, w: F.embedding(ids, w)),
            "torch.compile": over(sets, compiled(lambda ids, w: F.embedding(ids, w))),
        },
        goal=0.90, beats={"torch": 1.0},
    )  # fmt: skip
    nbytes = N * C * 2 + V * C * 2 + N * 8
    sets = inputs(nbytes, lambda: (randn(N, C), zipf()))

    def error() -> float:
        dy, ids = sets[0]
        expected = torch.zeros(V, C, dtype=torch.float64, device="cuda")
        expected.index_add_(0, ids, dy.double())
        return relative_error(gradient.embedding_backward(dy, ids, V), expected)

    yield Case(
        "embedding", "backward", shape, "bfloat16", nbytes,
        over(sets, lambda dy, ids: gradient.embedding_backward(dy, ids, V)), error, len(sets),
        
        {
            "torch": over(
                sets, lambda dy, ids: torch.ops.aten.embedding_dense_backward(dy, ids, V, -1, False)
            )
        },
        goal=0.90, beats={"torch": 1.0},
    )  # fmt: skip


CASES: dict[str, Callable[[], Iterator[Any]]] = {
    "softmax": softmax_cases,
    "layer_norm": layer_norm_cases,
    "rms_norm": rms_norm_cases,
    "gelu": gelu_cases,
    "swiglu": swiglu_cases,
    "rope": rope_cases,
    "embedding": embedding_cases,
}
