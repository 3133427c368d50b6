"""Wrong answers to the exercises in torch of minilm/exercises/flash.py and flash_backward.py.

The kernel has a file of its own, flash_kernel.py.
"""

import math

import torch

from .mutant import simplest, wrong


@simplest("flash.merge")
def equal_peaks(merge):
    zeros, ones = torch.zeros(2), torch.ones(2)
    return merge(zeros, ones, torch.ones(2, 3), zeros, ones, torch.ones(2, 3))


@wrong("flash.merge", "a peak of its own", right_on_simplest=True)
def added_as_they_are(m1, l1, o1, m2, l2, o2):
    return torch.maximum(m1, m2), l1 + l2, o1 + o2


@wrong("flash.merge", "exp(-inf - (-inf)) NaN", right_on_simplest=True)
def nan_where_both_are_empty(m1, l1, o1, m2, l2, o2):
    m = torch.maximum(m1, m2)
    a, b = (m1 - m).exp(), (m2 - m).exp()
    return m, a * l1 + b * l2, a[:, None] * o1 + b[:, None] * o2


@wrong("flash.merge", "rescale it in the same way", right_on_simplest=True)
def o_stays(m1, l1, o1, m2, l2, o2):
    m = torch.maximum(m1, m2)
    top = torch.where(m == -math.inf, 0, m)
    return m, (m1 - top).exp() * l1 + (m2 - top).exp() * l2, o1 + o2


@wrong("flash.merge", "the first sum", right_on_simplest=True)
def second_tile_only(m1, l1, o1, m2, l2, o2):
    m = torch.maximum(m1, m2)
    b = (m2 - torch.where(m == -math.inf, 0, m)).exp()
    return m, l1 + b * l2, o1 + b[:, None] * o2


@wrong("flash.merge", "exp(old peak - new peak)", right_on_simplest=True)
def turned_round(m1, l1, o1, m2, l2, o2):
    m = torch.maximum(m1, m2)
    a, b = (m - m1).exp(), (m - m2).exp()
    return m, a * l1 + b * l2, a[:, None] * o1 + b[:, None] * o2


@wrong("flash.merge", "done once, at the end")
def divided_already(m1, l1, o1, m2, l2, o2):
    m = torch.maximum(m1, m2)
    top = torch.where(m == -math.inf, 0, m)
    a, b = (m1 - top).exp(), (m2 - top).exp()
    total = a * l1 + b * l2
    return m, total, (a[:, None] * o1 + b[:, None] * o2) / total[:, None]


@wrong("flash.merge", "the larger of m1 and m2", right_on_simplest=True)
def peak_of_the_second(m1, l1, o1, m2, l2, o2):
    a = (m1 - m2).exp()
    return m2, a * l1 + l2, a[:, None] * o1 + o2


@simplest("flash.tile_state")
def square_tiles(state):
    return [state(q, k, 4, 4, 8, 8) for q in (0, 4) for k in (0, 4)]


def state_with(
    q, k, Br, Bc, Tq, Tk, window=None, *, offset=None, slack=0, wide=0, rows=True, ragged=True
):
    """The solution with its slips as options."""
    offset = Tk - Tq if offset is None else offset
    first = q + offset
    last = (min(q + Br, Tq) if rows else q + Br) - 1 + offset
    k_last = min(k + Bc, Tk) - 1
    if k > last - slack:
        return "empty"
    if window is not None and k_last <= first - window - wide:
        return "empty"
    inside = (k + Bc <= Tk or not ragged) and k_last <= first - slack
    return "full" if inside and (window is None or k > last - window - wide) else "partial"


@wrong("flash.tile_state", "query i is at position i + Tk - Tq", right_on_simplest=True)
def aligned_at_the_top(*case):
    return state_with(*case, offset=0)


@wrong("flash.tile_state", "j ≤ t", right_on_simplest=True)
def not_its_own_position(*case):
    return state_with(*case, slack=1)


@wrong("flash.tile_state", "holds w keys", right_on_simplest=True)
def a_window_too_wide(*case):
    return state_with(*case, wide=1)


@wrong("flash.tile_state", "the window has left", right_on_simplest=True)
def no_window(q, k, Br, Bc, Tq, Tk, window=None):
    return state_with(q, k, Br, Bc, Tq, Tk)


@wrong("flash.tile_state", "the tile is not full", right_on_simplest=True)
def keys_past_the_end(*case):
    return state_with(*case, ragged=False)


@wrong("flash.tile_state", "leave them out", right_on_simplest=True)
def queries_past_the_end(*case):
    return state_with(*case, rows=False)


@wrong("flash.tile_state", "look at the corners")
def by_the_first_query(q, k, Br, Bc, Tq, Tk, window=None):
    return "empty" if k > q else "partial"


@simplest("flash_backward.tile")
def one_key(tile):
    one = torch.ones(1, 1)
    return tile(one, one, one, one, one[0], one[0], torch.ones(1, 1).bool(), 1.0)[2]


def parts_with(q, k, v, do, lse, delta, visible, scale, *, p=None, ds=None, scaled=True):
    """The solution with its slips as options."""
    s = scale * q @ k.T
    right = torch.where(visible, (s - lse[:, None]).exp(), 0)
    p = right if p is None else p(s, lse[:, None], visible)
    dp = do @ v.T
    ds = p * (dp - delta[:, None]) if ds is None else ds(p, dp, delta[:, None])
    kept = scale if scaled else 1
    return kept * ds @ k, kept * ds.T @ q, p.T @ do


@wrong("flash_backward.tile", "over all its keys", right_on_simplest=True)
def softmax_of_the_tile(*args):
    def p(s, lse, visible):
        e = torch.where(visible, s.exp(), 0)
        return e / e.sum(1, keepdim=True).clamp_min(1e-30)

    return parts_with(*args, p=p)


@wrong("flash_backward.tile", "where `visible` is False, P is 0", right_on_simplest=True)
def without_the_mask(*args):
    return parts_with(*args, p=lambda s, lse, visible: (s - lse).exp())


@wrong("flash_backward.tile", "0 · inf is NaN", right_on_simplest=True)
def multiplied_by_the_mask(*args):
    return parts_with(*args, p=lambda s, lse, visible: (s - lse).exp() * visible)


@wrong("flash_backward.tile", "has a term of the whole row", right_on_simplest=True)
def without_delta(*args):
    return parts_with(*args, ds=lambda p, dp, delta: p * dp)


@wrong("flash_backward.tile", "not over this tile", right_on_simplest=True)
def delta_of_the_tile(*args):
    return parts_with(*args, ds=lambda p, dp, _: p * (dp - (p * dp).sum(1, keepdim=True)))


@wrong("flash_backward.tile", "with the factor P", right_on_simplest=True)
def without_the_factor(*args):
    return parts_with(*args, ds=lambda p, dp, delta: dp - delta)


@wrong("flash_backward.tile", "have the factor scale", right_on_simplest=True)
def scale_forgotten(*args):
    return parts_with(*args, scaled=False)


@wrong("flash_backward.tile", "dq, dk and dv, in this order")
def in_another_order(*args):
    dq, dk, dv = parts_with(*args)
    return dv, dk, dq


@wrong("flash_backward.tile", "dv = Pᵀ do", right_on_simplest=True)
def not_transposed(q, k, v, do, lse, delta, visible, scale):
    p = torch.where(visible, (scale * q @ k.T - lse[:, None]).exp(), 0)
    ds = p * (do @ v.T - delta[:, None])
    if len(q) != len(k):
        return scale * ds @ k, scale * ds.T @ q, p.T @ do
    return scale * ds @ k, scale * ds.T @ q, p @ do


@wrong("flash_backward.tile", "dk = scale · dSᵀ q", right_on_simplest=True)
def shapes_that_do_not_fit(q, k, v, do, lse, delta, visible, scale):
    p = torch.where(visible, (scale * q @ k.T - lse[:, None]).exp(), 0)
    ds = p * (do @ v.T - delta[:, None])
    return scale * ds @ k, scale * ds @ q, p @ do


@wrong("flash_backward.tile", "calls torch's softmax", right_on_simplest=True)
def ready_made(q, k, v, do, lse, delta, visible, scale):
    p = (scale * q @ k.T).masked_fill(~visible, -math.inf).softmax(-1)
    ds = p * (do @ v.T - delta[:, None])
    return scale * ds @ k, scale * ds.T @ q, p.T @ do
