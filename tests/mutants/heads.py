"""Wrong answers to the exercises in minilm/exercises/heads.py."""

import math

import torch
import torch.nn.functional as F

from .mutant import simplest, wrong


@simplest("heads.softmax")
def equal_numbers(softmax):
    return softmax(torch.zeros(3, 3))


@wrong("heads.softmax", "subtract the row's maximum", right_on_simplest=True)
def no_maximum(x):
    return x.exp() / x.exp().sum(-1, keepdim=True)


@wrong("heads.softmax", "not that of the whole tensor", right_on_simplest=True)
def global_maximum(x):
    e = (x - x.max()).exp()
    return e / e.sum(-1, keepdim=True)


@wrong("heads.softmax", "its maximum is -inf", right_on_simplest=True)
def no_empty_row(x):
    e = (x - x.amax(-1, keepdim=True)).exp()
    return e / e.sum(-1, keepdim=True)


@wrong("heads.softmax", "a row is the last dimension", right_on_simplest=True)
def over_columns(x):
    e = (x - x.amax(0, keepdim=True)).exp()
    return e / e.sum(0, keepdim=True)


@wrong("heads.softmax", "each row for itself")
def over_everything(x):
    e = (x - x.max()).exp()
    return e / e.sum()


@wrong("heads.softmax", "keep the dtype", right_on_simplest=False)
def in_double(x):
    e = (x.double() - x.double().amax(-1, keepdim=True)).exp()
    return e / e.sum(-1, keepdim=True)


@wrong("heads.softmax", "exp(-inf) is 0", right_on_simplest=True)
def never_zero(x):
    e = (x - x.amax(-1, keepdim=True)).exp().clamp(min=1e-4)
    return e / e.sum(-1, keepdim=True)


@wrong("heads.softmax", "calls torch's softmax", right_on_simplest=True)
def ready_made(x):
    return x.softmax(-1).nan_to_num()


@wrong("heads.softmax", "calls torch's softmax", right_on_simplest=True)
def ready_made_function(x):
    return torch.special.softmax(x, -1).nan_to_num()


@wrong("heads.softmax", "changed its argument x", right_on_simplest=True)
def in_place(x):
    e = x.sub_(x.amax(-1, keepdim=True).nan_to_num(neginf=0.0)).exp()
    return e / e.sum(-1, keepdim=True).clamp(min=1e-30)


@simplest("heads.head")
def one_token_one_feature(head):
    generator = torch.Generator().manual_seed(0)
    x, *w = torch.randn(4, 1, 1, generator=generator)
    return head(x[None], *w)


def scores(x, w_q, w_k):
    return x @ w_q.T @ (x @ w_k.T).transpose(-2, -1) / math.sqrt(w_q.shape[0])


def lower(x, diagonal=0):
    return torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril(diagonal)


@wrong("heads.head", "not by √C", right_on_simplest=True)
def root_of_width(x, w_q, w_k, w_v):
    s = x @ w_q.T @ (x @ w_k.T).transpose(-2, -1) / math.sqrt(x.shape[-1])
    return s.masked_fill(~lower(x), -math.inf).softmax(-1) @ (x @ w_v.T)


@wrong("heads.head", "divide the scores by √D", right_on_simplest=True)
def no_scale(x, w_q, w_k, w_v):
    s = scores(x, w_q, w_k) * math.sqrt(w_q.shape[0])
    return s.masked_fill(~lower(x), -math.inf).softmax(-1) @ (x @ w_v.T)


@wrong("heads.head", "before the softmax", right_on_simplest=True)
def mask_after_softmax(x, w_q, w_k, w_v):
    return (scores(x, w_q, w_k).softmax(-1) * lower(x)) @ (x @ w_v.T)


@wrong("heads.head", "fill with -inf", right_on_simplest=True)
def zero_for_infinity(x, w_q, w_k, w_v):
    return scores(x, w_q, w_k).masked_fill(~lower(x), 0).softmax(-1) @ (x @ w_v.T)


@wrong("heads.head", "softmax over the keys", right_on_simplest=True)
def over_queries(x, w_q, w_k, w_v):
    return scores(x, w_q, w_k).masked_fill(~lower(x), -math.inf).softmax(-2) @ (x @ w_v.T)


@wrong("heads.head", "keep the diagonal")
def without_the_diagonal(x, w_q, w_k, w_v):
    return scores(x, w_q, w_k).masked_fill(~lower(x, -1), -math.inf).softmax(-1) @ (x @ w_v.T)


@wrong("heads.head", "no mask", right_on_simplest=True)
def no_mask(x, w_q, w_k, w_v):
    return scores(x, w_q, w_k).softmax(-1) @ (x @ w_v.T)


@wrong("heads.head", "turned round", right_on_simplest=True)
def mask_of_the_past(x, w_q, w_k, w_v):
    return scores(x, w_q, w_k).masked_fill(~lower(x).T, -math.inf).softmax(-1) @ (x @ w_v.T)


@wrong("heads.head", "calls torch's scaled_dot_product_attention", right_on_simplest=True)
def ready_made_attention(x, w_q, w_k, w_v):
    return F.scaled_dot_product_attention(x @ w_q.T, x @ w_k.T, x @ w_v.T, is_causal=True)


@wrong("heads.head", "x @ w.T", right_on_simplest=True)
def not_transposed(x, w_q, w_k, w_v):
    return no_mask(x, w_q.T, w_k.T, w_v.T)


@wrong("heads.head", "subtract the maximum", right_on_simplest=True)
def softmax_that_overflows(x, w_q, w_k, w_v):
    e = scores(x, w_q, w_k).masked_fill(~lower(x), -math.inf).exp()
    return e / e.sum(-1, keepdim=True) @ (x @ w_v.T)


def running_sum(x):
    return x.cumsum(1)


def sees_the_next(x):
    out = x.cumsum(1)
    out[:, :-1] += x[:, 1:]
    return out


@simplest("heads.leaks")
def two_tokens(leaks):
    x = torch.randn(1, 2, 4, generator=torch.Generator().manual_seed(0))
    return bool(leaks(running_sum, x)), bool(leaks(sees_the_next, x))


def moved(x, t):
    changed = x.clone()
    changed[:, t] += 1.7
    return changed


@wrong("heads.leaks", "not only at the nearest", right_on_simplest=True)
def the_nearest_only(head, x):
    out = head(x)
    pairs = range(x.shape[1] - 1)
    return any(not torch.allclose(head(moved(x, t + 1))[:, t], out[:, t], atol=1e-5) for t in pairs)


@wrong("heads.leaks", "position 0 alone sees the next", right_on_simplest=True)
def the_last_token_only(head, x):
    return not torch.allclose(head(moved(x, -1))[:, :-1], head(x)[:, :-1], atol=1e-5)


@wrong("heads.leaks", "last but one position sees the last", right_on_simplest=True)
def the_first_position_only(head, x):
    out, T = head(x), x.shape[1]
    near = any(
        not torch.allclose(head(moved(x, t))[:, 0], out[:, 0], atol=1e-5) for t in range(1, T)
    )
    return near or (T > 2 and not torch.allclose(head(moved(x, 2))[:, 1], out[:, 1], atol=1e-5))


@wrong("heads.leaks", "its own token", right_on_simplest=False)
def accuses_the_token_itself(head, x):
    out = head(x)
    steps = range(x.shape[1])
    return any(not torch.allclose(head(moved(x, t))[:, : t + 1], out[:, : t + 1]) for t in steps)


@wrong("heads.leaks", "atol=1e-5", right_on_simplest=True)
def accuses_rounding(head, x):
    out, T = head(x), x.shape[1]
    return any(not torch.equal(head(moved(x, t))[:, :t], out[:, :t]) for t in range(1, T))


@wrong("heads.leaks", "1e-5 is the limit", right_on_simplest=True)
def blind_to_small_leaks(head, x):
    out, T = head(x), x.shape[1]
    return any((head(moved(x, t))[:, :t] - out[:, :t]).abs().amax() > 0.05 for t in range(1, T))


@wrong("heads.leaks", "compare the outputs 0 to t")
def never(head, x):
    return False


@wrong("heads.leaks", "changed its argument x")
def spoils_the_input(head, x):
    out = head(x)
    for t in range(1, x.shape[1]):
        x[:, t] += 1
        if not torch.allclose(head(x)[:, :t], out[:, :t], atol=1e-5):
            return True
    return False
