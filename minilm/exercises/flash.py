"""Exercises of notebook 11: attention without its matrix, from the merge to the backward tile."""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .exercise import exercise, predict
from .launching import emulated, filled, launch, nan, wavy, within
from .memory import WIDE

if TYPE_CHECKING:  # see kernels.py
    from cuda_numba.namespace import cuda, float32

NOTEBOOK = "11_flash_attention"


@exercise(
    notebook=NOTEBOOK,
    minutes=10,
    difficulty=2,
    hints=(
        "Bring both to the larger peak: a sum that was made with peak m is worth exp(m - top) of "
        "what it would be with `top`.",
        "l and o were made with the same peak, so they shrink by the same factor.",
        "exp(-inf - (-inf)) is NaN. Where top is -inf, both are empty: torch.where(top == "
        "-math.inf, 0, top) as the peak to subtract gives factors exp(-inf) = 0.",
    ),
    forbidden=("logsumexp", "logaddexp", "softmax", "nan_to_num"),
)
def my_merge(m1, l1, o1, m2, l2, o2):
    """Merge what two tiles of keys have found for the same rows of queries.

    A state is (m, l, o): for each row the peak m = max s, the sum l = Σ exp(s - m), and o =
    Σ exp(s - m) v, not yet divided by l. m, l: (R,), o: (R, D). A row that has seen no key has
    m = -inf, l = 0, o = 0. Return the state (m, l, o) of both together. No NaN.
    """
    # solution:
    m = torch.maximum(m1, m2)
    top = torch.where(m == -math.inf, 0, m)
    a, b = (m1 - top).exp(), (m2 - top).exp()
    return m, a * l1 + b * l2, a[:, None] * o1 + b[:, None] * o2
    # end


def _state(s: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(m, l, o) of scores (R, n) and values (n, D); -inf is a key that a row does not see."""
    m = s.amax(1) if s.shape[1] else s.new_full((len(s),), -math.inf)
    p = torch.where(s == -math.inf, 0, (s - m[:, None]).exp())
    return m, p.sum(1), p @ v


@my_merge.checked_by
def _(merge, trial):
    trial.on_error = "m and l have a number for each row, o has D: a[:, None] * o1."
    s, v = 3 * wavy(4, 9).double(), wavy(9, 3, seed=1).double()
    s[range(4), [0, 6, 3, 8]] += 9  # the peak is in either tile
    far = s + torch.tensor([0.0, 900, -900, 0]).double()[:, None]
    half_empty = s.clone()
    half_empty[1, :4] = half_empty[2, 4:] = -math.inf
    empty = half_empty.clone()
    empty[3] = -math.inf
    empties = "a state that has seen no key is empty: its factor is 0, and exp(-inf - (-inf)) NaN."
    plain = ((s, ""), (s.flip(1), ""), (far, ""))
    for scores, hint in (*plain, (half_empty, empties), (empty, empties)):
        one, two = _state(scores[:, :4], v[:4]), _state(scores[:, 4:], v[4:])
        m, total, o = merge(*one, *two)
        want_m, want_l, want_o = _state(scores, v)
        text = f"{trial.last_call}: m is not the peak of both"
        trial.close(m, want_m, text, hint or "m is the larger of m1 and m2.")
        swapped = (one[0] - want_m).exp(), (two[0] - want_m).exp()
        turned = (want_m - one[0]).exp(), (want_m - two[0]).exp()
        mistakes = [
            (one[1] + two[1], "each sum was made with a peak of its own: rescale before adding."),
            (one[1] + swapped[1] * two[1], "the first sum has to be brought to the new peak, too."),
            (swapped[0] * one[1] + two[1], "the second sum has to be brought to the peak, too."),
            (turned[0] * one[1] + turned[1] * two[1], "the factor is exp(old peak - new peak)."),
        ]
        text = f"{trial.last_call}: l is not the sum of both"
        trial.close(total, want_l, text, hint or "l = exp(m1 - m) l1 + exp(m2 - m) l2.", mistakes)
        mistakes = [
            (one[2] + two[2], "o was made with the same peak as l: rescale it in the same way."),
            (want_o / want_l[:, None], "do not divide by l yet: that is done once, at the end."),
        ]
        text = f"{trial.last_call}: o is not the weighted sum of both"
        same = "o is rescaled by the same factors as l."
        trial.close(o, want_o, text, hint or same, mistakes)


@exercise(
    notebook=NOTEBOOK,
    minutes=12,
    difficulty=3,
    hints=(
        "A tile is a rectangle, and what is visible is a band along a diagonal. Full or empty is "
        "decided at its corners.",
        "First the positions of its first and last query: the last query of all is at Tk - 1.",
        "Empty: its first key is after the last query's position, or its last key is too old for "
        "the first query. Full: its last key is at or before the first query, and its first key is "
        "not too old for the last query.",
    ),
)
def my_tile_state(q_start, k_start, Br, Bc, Tq, Tk, window=None):
    """Must a kernel compute the tile of queries q_start, … (Br) and keys k_start, … (Bc)?

    The Tq queries are the last of the Tk positions: query i is at position t = i + Tk - Tq. It sees
    key j if j ≤ t and, with a window, j > t - window. Return "full" if no mask is needed, "empty"
    if nothing is visible (skip the tile), otherwise "partial". Queries from Tq on do not exist and
    do not count; a tile with keys from Tk on needs a mask: it is not full. q_start < Tq ≤ Tk.
    """
    # solution:
    first = q_start + Tk - Tq
    last = min(q_start + Br, Tq) - 1 + Tk - Tq
    k_last = min(k_start + Bc, Tk) - 1
    if k_start > last or k_start > k_last:
        return "empty"
    if window is not None and k_last <= first - window:
        return "empty"
    inside = k_start + Bc <= Tk and k_last <= first
    recent = window is None or k_start > last - window
    return "full" if inside and recent else "partial"
    # end


def _seen(q_start, k_start, Br, Bc, Tq, Tk, window, *, shift=0, aligned=True, rows=True) -> str:
    """The state of a tile, by looking at each pair; the options are slips."""
    queries = range(q_start, min(q_start + Br, Tq) if rows else q_start + Br)
    seen = []
    for i in queries:
        t = i + (Tk - Tq if aligned else 0)
        new = range(k_start, k_start + Bc)
        seen += [j <= t + shift and j < Tk and (window is None or j > t - window) for j in new]
    return "full" if all(seen) else "partial" if any(seen) else "empty"


@my_tile_state.checked_by
def _(state, trial):
    for Tq, Tk, window in ((8, 8, None), (7, 7, None), (3, 9, None), (8, 8, 3), (5, 11, 4)):
        for Br, Bc in ((4, 4), (2, 3), (4, 2)):
            for q in range(0, Tq, Br):
                for k in range(0, Tk, Bc):
                    case = q, k, Br, Bc, Tq, Tk, window
                    corners = "look at the corners: first and last query, first and last key."
                    hung = "keys from Tk on need a mask: the tile is not full."
                    hint = hung if k + Bc > Tk else corners
                    trial.equal(state(*case), _seen(*case), hint, _slips(case))


def _slips(case) -> list[tuple[str, str]]:
    """What well-known slips would say of a tile."""
    *tile, window = case
    wider = _seen(*tile, window and window + 1)
    return [
        (_seen(*case, aligned=False), "query i is at position i + Tk - Tq."),
        (_seen(*case, shift=-1), "a query sees its own position: j ≤ t."),
        (wider, "a window of w holds w keys, t itself and w - 1 before it."),
        (_seen(*tile, None), "keys that the window has left behind are not visible."),
        (_seen(*case, rows=False), "queries from Tq on do not exist: leave them out."),
    ]


@exercise(
    notebook=NOTEBOOK,
    minutes=20,
    difficulty=3,
    hints=(
        "Each thread has a query. All together load 16 keys and values, then each thread goes "
        "through the keys that it may see, and keeps peak, total and acc.",
        "When a score is above the peak, multiply total and all of acc by exp(peak - score).",
        "for start in range(0, min(T, first + 32), 16), first = cuda.blockIdx.x * 32: barrier, "
        "load, barrier, then j from start to min(start + 16, i + 1). Threads with i ≥ T load and "
        "wait like the others.",
    ),
)
def my_forward(q, k, v, out, lse):
    """Causal attention of one head, a block for 32 queries, and not one score in global memory.

    q, k, v, out: (T, 8), lse: (T,), all float32. out[i] = Σ_j p_ij v[j], p_i = softmax of the
    scores q[i] · k[j] / √8 over j ≤ i; lse[i] = log Σ_j exp(score), for the backward pass. Thread t
    of the 32 has query i = 32 blockIdx.x + t. A block reads each key and value up to its last
    query once. A thread keeps peak, total and acc, not the scores of a row.
    """
    keys = cuda.shared.array((16, 8), float32)
    values = cuda.shared.array((16, 8), float32)
    query = cuda.local.array(8, float32)
    acc = cuda.local.array(8, float32)
    t = cuda.threadIdx.x
    i, T = cuda.blockIdx.x * 32 + t, q.shape[0]
    peak, total = float32(-math.inf), float32(0)
    for d in range(8):
        query[d] = q[i, d] * float32(0.35355339) if i < T else float32(0)  # 1 / √8
        acc[d] = float32(0)
    # solution:
    end = min(T, cuda.blockIdx.x * 32 + 32)
    for start in range(0, end, 16):
        cuda.syncthreads()
        for e in range(t, 128, 32):
            j, d = e // 8, e % 8
            if start + j < end:
                keys[j, d] = k[start + j, d]
                values[j, d] = v[start + j, d]
        cuda.syncthreads()
        for j in range(min(16, i + 1 - start, T - start)):
            score = float32(0)
            for d in range(8):
                score += query[d] * keys[j, d]
            top = max(peak, score)
            shrink, p = math.exp(peak - top), math.exp(score - top)
            peak, total = top, total * shrink + p
            for d in range(8):
                acc[d] = acc[d] * shrink + p * values[j, d]
    # end
    if i < T:
        lse[i] = peak + math.log(total)
        for d in range(8):
            out[i, d] = acc[d] / total


def _attention(q, k, v, *, causal=True, scale=8**-0.5) -> tuple[Tensor, Tensor]:
    """(out, lse) with the whole matrix."""
    s = q @ k.T * scale
    if causal:
        s = s.masked_fill(torch.ones_like(s).triu(1).bool(), -math.inf)
    return s.softmax(-1) @ v, s.logsumexp(-1)


@my_forward.checked_by
def _(_, trial):
    meet = "a barrier belongs after the tile is loaded, and one before it is loaded anew."
    idle = "threads without a query load and wait like the others: only their keys are none."
    late = "a tile may have fewer than 16 keys: use those that were loaded, j ≤ i and j < T."
    hints = {"race": meet, "uninitialised": late, "divergent_barrier": idle}
    hints |= {"barrier_not_reached": idle, "out_of_bounds": "keys and queries end at T."}
    for T, kind in ((16, ""), (5, ""), (37, ""), (18, "large")):
        q, k, v = (wavy(T, 8, seed=seed) for seed in range(3))
        q = 60 * q if kind else q
        ran = launch(trial, -(-T // 32), 32, q=q, k=k, v=v, out=nan(T, 8), lse=nan(T), hints=hints)
        none = "query i sees key i, too; and exp(peak - score) must not overflow: keep the peak."
        filled(trial, ran["out"], none)
        want, lse = _attention(q, k, v)
        mistakes = [
            (_attention(q, k, v, causal=False)[0], "query i sees keys j ≤ i only."),
            (_attention(q, k, v, scale=1 / 8)[0], "the scores are divided by √8 once."),
        ]
        grown = "when the peak grows, total and acc are both multiplied by exp(old - new peak)."
        if not torch.allclose(ran["out"], want, 1e-3, 1e-5):
            text = f"{trial.last_call} is not the attention"
            trial.close(ran["out"], want, text, grown, mistakes)
        text = f"{trial.last_call}: lse is not log Σ exp(score)"
        trial.require(torch.allclose(ran["lse"], lse, 1e-4, 1e-4), text, "lse = peak + log(total).")
        ends = [min(T, first + 32) for first in range(0, T, 32)]
        once = "load each key and value once, up to the block's last query, and no tile after it."
        within(trial, "bytes read", ran.report.reads, 32 * T + 64 * sum(ends), once)
        written = ran.report.writes
        within(trial, "bytes written", written, 36 * T, "store each result once, at the end.")
        whole = "16 keys and values at a time: the memory must not grow with T."
        within(trial, "bytes of shared memory", ran.report.shared_bytes, 1024, whole)
        scores = "use a score when it is made: peak, total and acc are all that is kept of it."
        within(trial, "bytes of local arrays", ran.report.local_bytes, 160, scores)
        within(trial, "float64 operations", ran.report.promotions, 0, WIDE)


@predict(
    notebook=NOTEBOOK,
    minutes=3,
    difficulty=2,
    hints=(
        "Every block reads keys and values for itself. Which does the second block need?",
        "Block b has queries up to 32 b + 31, so it reads keys 0 to 32 b + 31: 32 (b + 1) of them.",
        "32 + 64 + 96 + 128 keys; each key and each value is 8 numbers of 4 bytes.",
    ),
    mistakes={
        8192: "that is each key and value once: the bytes of a memory, not of what is read.",
        32768: "that is every block reading all keys: those after its last query are skipped.",
        10240: "that is the keys alone: values are read as well.",
        16384: "half of all pairs are visible, but a tile on the diagonal is read whole.",
        528384: "that is every query reading its own keys: a block's 32 queries share a tile.",
        24576: "that is with the queries: only K and V are asked for.",
    },
    otherwise="add up the keys up to the last query of each block, then 2 · 8 · 4 bytes for each.",
    because="Σ visible keys · 2 D s: quadratic in T still, but 32 queries share each read.",
)
def my_bytes_read():
    """Causal attention as in my_forward: T = 128, D = 8, float32, a block for each 32 queries; keys
    after a block's last query are skipped. How many bytes of K and V are read from global memory,
    all blocks together?
    """
    q, k, v = (wavy(128, 8, seed=seed) for seed in range(3))
    report = emulated(my_forward.function, 4, 32, q, k, v, nan(128, 8), nan(128))
    return report.reads - 4 * q.numel()
