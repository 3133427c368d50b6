"""The exercise of notebook 11 that goes backward: the gradients of attention, tile by tile."""

import math

import torch
import torch.nn.functional as F

from .exercise import exercise
from .flash import NOTEBOOK
from .launching import wavy
from .trial import Wrong


@exercise(
    notebook=NOTEBOOK,
    minutes=15,
    difficulty=3,
    hints=(
        "P = exp(scores - lse), a row at a time: lse is that of the whole row, so no maximum and "
        "no sum are needed. Where `visible` is False, P is 0 (use torch.where).",
        "out = P V gives dV = Pᵀ dO and dP = dO Vᵀ. The softmax gives dS = P (dP - delta).",
        "scores = scale · Q Kᵀ gives dQ = scale · dS K and dK = scale · dSᵀ Q.",
    ),
    forbidden=("softmax", "log_softmax", "backward", "torch.autograd", "nan_to_num"),
)
def my_tile(q, k, v, do, lse, delta, visible, scale):
    """What one tile of queries and one of keys add to the gradients of attention.

    q, do: (Br, D), k, v: (Bc, D), visible: (Br, Bc) bool. lse: (Br,) is log Σ exp(scores) over
    *all* keys of the row, as the forward pass has kept it, and delta: (Br,) is Σ_d do · out. Scores
    are scale · q kᵀ; they are made again here. Return the tile's part of (dq, dk, dv). A query that
    sees no key at all has lse = -inf, and its parts are 0.
    """
    # solution:
    scores = scale * q @ k.T
    p = torch.where(visible, (scores - lse[:, None]).exp(), 0)
    ds = p * (do @ v.T - delta[:, None])
    return scale * ds @ k, scale * ds.T @ q, p.T @ do
    # end


def _slip(q, k, v, do, lse, delta, visible, scale, slip):
    """The three parts with one mistake in them."""
    s = scale * q @ k.T
    p = (s - lse[:, None]).exp()
    if slip == "renormalised":
        p = s.masked_fill(~visible, -math.inf).softmax(-1)
    p = p if slip == "mask" else torch.where(visible, p, 0)
    dp = do @ v.T
    row = (p * dp).sum(1) if slip == "tile" else delta * (slip != "delta")
    ds = dp - row[:, None]
    ds = ds if slip == "P" else p * ds
    kept = 1 if slip == "scale" else scale
    return kept * ds @ k, kept * ds.T @ q, p.T @ do


SLIPS = {
    "renormalised": "P is the row's softmax, over all its keys: exp(scores - lse).",
    "mask": "where `visible` is False, P is 0.",
    "delta": "dS = P (dP - delta): a softmax's gradient has a term of the whole row.",
    "tile": "delta is a sum over all keys of the row, not over this tile: it is given.",
    "P": "dS = P (dP - delta), with the factor P.",
    "scale": "scores = scale · q kᵀ: dq and dk have the factor scale as well.",
}
NAN = "a query that sees nothing has lse = -inf: choose 0 with torch.where, as 0 · inf is NaN."
FORMULAS = "dv = Pᵀ do, dq = scale · dS k, dk = scale · dSᵀ q, with dS = P (dP - delta)."


def _problem(T: int, D: int, blind: bool):
    """(inputs of a tile that is the whole matrix, their gradients by autograd)."""
    q, k, v, do = (wavy(T, D, seed=seed).double() for seed in range(4))
    visible = torch.ones(T, T, dtype=torch.bool).tril()
    visible[T - 1] &= not blind  # the last query sees nothing
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    scores = (D**-0.5 * leaves[0] @ leaves[1].T).masked_fill(~visible, -math.inf)
    seeing = T - blind
    out = F.pad(scores[:seeing].softmax(-1) @ leaves[2], (0, 0, 0, T - seeing))
    grads = torch.autograd.grad(out, leaves, do)
    lse, delta = scores.detach().logsumexp(-1), (do * out.detach()).sum(1)
    return (q, k, v, do, lse, delta, visible, D**-0.5), grads


def _added_up(tile, problem, Br: int, Bc: int, *more):
    """The parts of all tiles, added up."""
    q, k, v, do, lse, delta, visible, scale = problem
    sums = [torch.zeros_like(x) for x in (q, k, v)]
    for i in range(0, len(q), Br):
        for j in range(0, len(k), Bc):
            r, c = slice(i, i + Br), slice(j, j + Bc)
            rest = do[r], lse[r], delta[r], visible[r, c], scale, *more
            parts = tile(q[r], k[c], v[c], *rest)
            for total, rows, part in zip(sums, (r, c, c), parts, strict=True):
                if part.shape != total[rows].shape:
                    text = f"a part has the shape {tuple(part.shape)}"
                    raise Wrong(text, "dq is as large as q, dk as k, dv as v, in this order.")
                total[rows] += part
    return sums


@my_tile.checked_by
def _(backward, trial):
    trial.on_error = "q and do are (Br, D), k and v (Bc, D), P is (Br, Bc): which is transposed?"
    for T, D, Br, Bc, blind in ((4, 3, 4, 4, 0), (9, 5, 4, 3, 0), (7, 3, 7, 2, 0), (6, 2, 2, 6, 1)):
        problem, want = _problem(T, D, bool(blind))
        got = _added_up(backward, problem, Br, Bc)
        slips = {slip: _added_up(_slip, problem, Br, Bc, slip) for slip in SLIPS}
        for n, name in enumerate(("dq", "dk", "dv")):
            mistakes = [(parts[n], SLIPS[slip]) for slip, parts in slips.items()]
            mistakes += [(want[2 - n], "return dq, dk and dv, in this order.")]
            hint = NAN if got[n].isnan().any() else FORMULAS
            text = f"{trial.last_call}: the parts of all tiles do not add up to {name}"
            trial.close(got[n], want[n], text, hint, mistakes)
