"""Exercises of notebook 03: one attention head."""

import math

import torch
import torch.nn.functional as F

from .exercise import exercise, predict

NOTEBOOK = "03_attention_head"
READY_MADE = ("scaled_dot_product_attention", "multi_head_attention_forward")


@exercise(
    notebook=NOTEBOOK,
    minutes=6,
    difficulty=2,
    forbidden=("softmax", "log_softmax", "softmin", "logsumexp", *READY_MADE),
    hints=(
        "Adding the same number to a whole row does not change its softmax. Which number keeps exp "
        "from overflowing?",
        "Subtract the maximum of each row: x.amax(-1, keepdim=True).",
        "A row of -inf has the maximum -inf, and -inf - (-inf) is NaN: take 0 as its maximum, and "
        "divide by 1 where the sum is 0.",
    ),
)
def my_softmax(x):
    """exp(x) / sum of exp(x) over the last dimension, for any numbers.

    x: (..., n) float. Return a tensor of the same shape and dtype. A row may hold 10,000, a row may
    lie far below the others, and -inf means "no weight"; a row of -inf alone gives zeros.
    """
    # solution:
    top = x.amax(-1, keepdim=True)
    top = torch.where(top == -math.inf, 0.0, top)  # -inf - (-inf) would be NaN
    e = (x - top).exp()
    total = e.sum(-1, keepdim=True)
    return e / torch.where(total == 0, 1.0, total)
    # end


@my_softmax.checked_by
def _(softmax, trial):
    generator = torch.Generator().manual_seed(0)
    sums = "the weights of a row do not sum to 1"
    for shape in ((4,), (1, 1), (4, 4), (3, 5), (2, 3, 7)):
        x = torch.randn(shape, generator=generator, dtype=torch.float64)
        mistakes = [
            (F.softmax(x, 0), "a row is the last dimension: dim=-1."),
            (F.softmax(x.flatten(), 0).view(shape), "each row for itself: sum over dim=-1 only."),
            (x.exp(), "divide by the sum of the row."),
            (F.log_softmax(x, -1), "that is its logarithm."),
        ]
        hint = "divide exp(x) by its sum over the last dimension, keepdim=True."
        trial.close(softmax(x), F.softmax(x, -1), sums, hint, mistakes)
    x = torch.randn(3, 6, generator=generator)
    got = softmax(x)
    text = f"float32 went in and {str(getattr(got, 'dtype', None)).removeprefix('torch.')} came out"
    trial.require(got.dtype == x.dtype, text, "keep the dtype of x.")
    overflow = "exp(10000) is infinite: subtract the row's maximum first."
    trial.close(softmax(x + 1e4), F.softmax(x + 1e4, -1), "large numbers give NaN", overflow)
    lower = x - torch.tensor([[0.0], [1e4], [0.0]])
    text = "a row 10,000 below the others does not sum to 1"
    hint = "subtract the maximum of each row, not that of the whole tensor."
    trial.close(softmax(lower), F.softmax(lower, -1), text, hint)
    masked = x.clone()
    masked[0, 2:] = masked[2, ::2] = -math.inf
    text = "an entry of -inf does not get the weight 0"
    trial.close(softmax(masked), F.softmax(masked, -1), text, "exp(-inf) is 0: let it be.")
    masked[1] = -math.inf
    want = F.softmax(masked, -1).nan_to_num()
    text = "a row of -inf alone does not give zeros"
    hint = (
        "its maximum is -inf, and -inf - (-inf) is NaN: subtract 0 there, and do not divide by 0."
    )
    trial.close(softmax(masked), want, text, hint)


@exercise(
    notebook=NOTEBOOK,
    minutes=12,
    difficulty=2,
    forbidden=READY_MADE,
    hints=(
        "q = x @ w_q.T is (B, T, D). Scores are (B, T, T): row t is query t with each key.",
        "torch.ones(T, T, dtype=torch.bool).tril() is True where key s ≤ query t; "
        "scores.masked_fill(~seen, -math.inf) comes before the softmax.",
        "Divide by √D, D being the number of rows of w_q; softmax over the keys, dim=-1; then @ v.",
    ),
)
def my_head(x, w_q, w_k, w_v):
    """One causal attention head: softmax(Q Kᵀ / √D + mask) V.

    x: (B, T, C); w_q, w_k, w_v: (D, C), applied as in nn.Linear: x @ w.T. Return (B, T, D).
    Position t sees itself and what lies before it.
    """
    # solution:
    q, k, v = x @ w_q.T, x @ w_k.T, x @ w_v.T  # (B, T, D)
    scores = q @ k.transpose(-2, -1) / math.sqrt(w_q.shape[0])  # (B, T, T)
    seen = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    weights = scores.masked_fill(~seen, -math.inf).softmax(-1)
    return weights @ v  # (B, T, D)
    # end


def _head(x, w_q, w_k, w_v, *, scale=None, fill=-math.inf, after=False, dim=-1, diagonal=0, flip=0):
    """A head with its usual mistakes as options; without any it is torch's own."""
    q, k, v = x @ w_q.T, x @ w_k.T, x @ w_v.T
    scores = q @ k.transpose(-2, -1) * (w_q.shape[0] ** -0.5 if scale is None else scale)
    seen = torch.ones(scores.shape[-2:], dtype=torch.bool).tril(diagonal)
    seen = seen.T if flip else seen
    if after:
        return scores.softmax(dim).masked_fill(~seen, 0) @ v
    return scores.masked_fill(~seen, fill).softmax(dim) @ v


@my_head.checked_by
def _(head, trial):
    trial.on_error = "x @ w.T is (B, T, D); Kᵀ swaps the last two dimensions: k.transpose(-2, -1)."
    generator = torch.Generator().manual_seed(0)
    for B, T, C, D in ((1, 1, 4, 4), (2, 5, 7, 3), (3, 7, 4, 6), (1, 6, 5, 5)):
        w = torch.randn(3, D, C, generator=generator, dtype=torch.float64)
        x = torch.randn(B, T, C, generator=generator, dtype=torch.float64)
        q, k, v = (x @ part.T for part in w)
        want = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        mask = "mask the scores with -inf before the softmax: then the rest of a row sums to 1."
        keys = "softmax over the keys, dim=-1: each query shares out one unit of attention."
        zero = "a score of 0 is not no weight, exp(0) is 1: fill with -inf."
        mistakes = [
            (_head(x, *w, scale=C**-0.5), "divide by √D, the size of a head, not by √C."),
            (_head(x, *w, scale=1), "divide the scores by √D."),
            (_head(x, *w, scale=1 / D), "divide by √D, not by D."),
            (_head(x, *w, after=True), mask),
            (_head(x, *w, fill=0), zero),
            (_head(x, *w, fill=1e-9), "fill with -inf: a tiny number is a score like any other."),
            (_head(x, *w, dim=-2), keys),
            (_head(x, *w, after=True, dim=-2), keys),
            (_head(x, *w, diagonal=T), "no mask: position t must not see what comes after it."),
            (_head(x, *w, flip=1), "the mask is turned round: it hides the past."),
            (_head(x, *(part.T for part in w)) if C == D else want, "x @ w.T, as nn.Linear does."),
        ]
        got = head(x, *w)
        hint = "build it in steps: Q, K, V; scores; mask; softmax; weights @ V."
        shape = f"the result is {tuple(getattr(got, 'shape', ()))}, expected {(B, T, D)}"
        trial.require(getattr(got, "shape", None) == want.shape, shape, hint)
        hint = next((h for value, h in mistakes if _equal(got, value)), "") or hint
        itself = "the mask hides a position from itself: keep the diagonal, key s ≤ query t."
        text = "position 0, which sees nothing but itself,"
        trial.require(not got.isnan().any(), f"{text} is NaN", itself)
        trial.close(got[:, 0], v[:, 0], f"{text} is not its own value", hint)
        changed = x.clone()
        changed[:, -1] += 1
        same = _equal(head(changed, *w)[:, :-1], got[:, :-1])
        trial.require(same, "a change of the last token reaches earlier positions", hint)
        even = torch.ones_like(x)  # every value is the same, so its average is too
        mean, value = head(even, *w), even @ w[2].T
        trial.close(mean, value, "the weights of a position do not sum to 1", hint)
        trial.close(got, want, "the values differ from softmax(Q Kᵀ / √D + mask) V", hint)
        want = F.scaled_dot_product_attention(50 * q, 50 * k, 50 * v, is_causal=True)
        hint = "a softmax written out must subtract the maximum of each row first."
        trial.close(head(50 * x, *w), want, "scores in the thousands go wrong", hint)


@exercise(
    notebook=NOTEBOOK,
    minutes=10,
    difficulty=3,
    hints=(
        "Change something late and look at the outputs before it.",
        "Try every border: for each t, change all tokens after t and compare the outputs 0 to t.",
        "torch.allclose(a, b, atol=1e-5) forgives rounding, `==` does not.",
    ),
)
def my_leaks(head, x):
    """Does a head look into the future? True if an output depends on a later input.

    head: a function (B, T, C) → (B, T, D) that gives the same for the same input; x: (B, T, C), an
    input to try it on. Differences below 1e-5 are rounding, not a leak; make changes of about the
    size of x. Return a bool.
    """
    # solution:
    out = head(x)
    for t in range(x.shape[1] - 1):
        changed = x.clone()
        changed[:, t + 1 :] += torch.randn(x[:, t + 1 :].shape)  # the future of t
        if not torch.allclose(head(changed)[:, : t + 1], out[:, : t + 1], atol=1e-5):
            return True
    return False
    # end


@my_leaks.checked_by
def _(leaks, trial):
    trial.on_error = "x may have a single position: then there is no future to see."
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(3, 4, 4, generator=generator)

    def causal(x):
        return _head(x, *w)

    def adds(source, target, size=1.0, feature=slice(None)):
        def head(x):  # position `target` sees position `source` on top of what it may see
            out = causal(x)
            if x.shape[1] > 1:
                out[:, target, feature] += size * x[:, source, feature]
            return out

        return head

    def next_one(x):
        out = causal(x)
        out[:, :-1] += x[:, 1:] * 0.1
        return out

    def rounding(x):  # the sum so far, as the whole sum without the rest: causal but for rounding
        return x.sum(1, keepdim=True) - (x.flip(1).cumsum(1).flip(1) - x)

    every = "for each t, change the tokens after t and compare the outputs 0 to t."
    far = "look at all outputs before the change, not only at the nearest one."
    own = "an output may depend on its own token: compare only the positions before the change."
    cases = [
        (next_one, True, "whose positions all see the next token", every),
        (causal, False, "that is causal", own),
        (lambda x: x, False, "that copies its input", own),
        (rounding, False, "that is causal up to rounding", "compare with atol=1e-5."),
        (adds(-1, 0), True, "whose position 0 sees the last token", far),
        (adds(1, 0), True, "whose position 0 alone sees the next", every),
        (adds(-1, -2), True, "whose last but one position sees the last", every),
        (adds(4, 2, feature=3), True, "where one feature of position 2 sees position 4", every),
        (adds(-1, 1, 0.01), True, "whose leak has 1 % of the size of x", "1e-5 is the limit."),
        (lambda x: _head(x, *w, fill=0), True, "whose mask is 0 where -inf belongs", every),
        (lambda x: x / x.norm(dim=1, keepdim=True), True, "that divides by a norm over time", far),
    ]  # fmt: skip
    for head, want, what, hint in cases:
        head.__name__ = "head"
        x = torch.randn(2, 7, 4, generator=generator)
        got = bool(leaks(head, x))
        text = f"it finds {'a' if got else 'no'} leak in a head {what}"
        trial.require(got == want, text, hint)
    text = "it finds a leak where there is one position"
    x = torch.randn(1, 1, 4, generator=generator)
    trial.require(not leaks(causal, x), text, "one position has no future.")


@predict(
    notebook=NOTEBOOK,
    minutes=2,
    difficulty=2,
    hints=(
        "What does the last query do with each earlier token? Does it know where the token stands?",
        "A weighted sum does not depend on the order in which one adds.",
    ),
    choices={
        "same": "it stays the same",
        "shuffled": "it is shuffled in the same way",
        "different": "it becomes something else",
        "average": "it becomes the average of all values",
    },
    mistakes={
        "shuffled": "the last output is one vector; the keys move, and their weights with them.",
        "different": "a key's score does not say where the key stands: no position goes into it.",
        "average": "the weights come from the scores, and those are as uneven as before.",
    },
    because="A head sees a set of tokens, not a sequence: notebook 04 gives it positions.",
)
def my_shuffle():
    """One causal head, no positions. All tokens but the last are shuffled.
    What happens to the output at the last position?
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 8, 4, generator=generator, dtype=torch.float64)
    q, k, v = torch.randn(3, 4, 4, generator=generator, dtype=torch.float64)
    shuffled = x[:, [3, 0, 6, 2, 5, 1, 4, 7]]
    before, after = (
        F.scaled_dot_product_attention(z @ q, z @ k, z @ v, is_causal=True)[:, -1]
        for z in (x, shuffled)
    )
    return "same" if torch.allclose(before, after) else "different"


def _equal(a, b):
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-9, atol=1e-12)
