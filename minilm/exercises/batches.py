"""Exercises of notebook 02: what the model is asked, and which answers count."""

import math

import torch
import torch.nn.functional as F

from .exercise import exercise, predict

NOTEBOOK = "02_batches_and_targets"


@exercise(
    notebook=NOTEBOOK,
    minutes=3,
    difficulty=1,
    hints=(
        "A row of T + 1 tokens holds T questions: after each token but the last, what comes next?",
        "Inputs leave out the last token of each row, targets the first.",
    ),
)
def my_targets(ids):
    """Cut rows of tokens into inputs and targets.

    ids: (B, T + 1) int64. Return (inputs, targets), both (B, T): targets[b, t] is the token that
    follows inputs[b, t] in the row.
    """
    # solution:
    return ids[:, :-1], ids[:, 1:]
    # end


@my_targets.checked_by
def _(targets, trial):
    trial.on_error = "ids is (B, T + 1): cut along the second dimension and return two tensors."
    generator = torch.Generator().manual_seed(0)
    for B, L in ((1, 6), (1, 2), (3, 5), (5, 5), (4, 9)):
        ids = torch.arange(B * L).view(B, L) + torch.randint(50, (1,), generator=generator)
        got = targets(ids)
        pair = isinstance(got, tuple | list) and len(got) == 2
        trial.require(pair, "it does not return a pair", "return two tensors: inputs, targets.")
        inputs, want = ids[:, :-1], ids[:, 1:]
        twice = "that is shifted twice: the target is the very next token."
        mistakes = [
            (ids[:, :-1], "not shifted: a model that copies its input would be perfect."),
            (ids[:, 2:], twice),
            (ids, "the last token has no successor in the row: leave it out of the inputs."),
            (ids.roll(-1, 1), "the last token has no successor in the row; do not wrap around."),
            (ids.roll(-2, 1)[:, :-1], twice),
            (ids.roll(1, 1)[:, :-1], "shifted the wrong way: that asks for the token before."),
        ]
        hint = "inputs are all tokens of a row but the last."
        slips = [(want, "inputs and targets are swapped: return inputs, targets."), mistakes[2]]
        trial.close(got[0], inputs, "the inputs are wrong", hint, slips)
        hint = "targets[b, t] is ids[b, t + 1]."
        trial.close(got[1], want, "the targets are not the next tokens", hint, mistakes)


@exercise(
    notebook=NOTEBOOK,
    minutes=8,
    difficulty=2,
    hints=(
        "Position t predicts token t + 1. Is token t + 1 a target?",
        "Token t + 1 is a target when prompt_length ≤ t + 1 < length.",
        "Divide the sum by the number of targets in the whole batch, but never by 0.",
    ),
)
def my_prompt_loss(losses, prompt_lengths, lengths):
    """The loss of prompt‖target rows: only the target counts.

    Row b holds prompt_lengths[b] tokens of prompt, then the target, lengths[b] tokens in all, then
    padding. losses (B, T), for rows of T + 1 tokens: losses[b, t] is the loss of position t, which
    predicts token t + 1. prompt_lengths, lengths: (B,) int64.
    Return the mean over the target tokens of the whole batch, a scalar; 0 if there is none (a
    prompt can be longer than the row). The first token of a row is predicted by nothing.
    """
    # solution:
    predicted = torch.arange(1, losses.shape[1] + 1)  # position t predicts token t + 1
    counts = (predicted >= prompt_lengths[:, None]) & (predicted < lengths[:, None])  # (B, T)
    return (losses * counts).sum() / counts.sum().clamp(min=1)
    # end


@my_prompt_loss.checked_by
def _(prompt_loss, trial):
    trial.on_error = "compare positions (T,) with lengths (B, 1), and beware of dividing by 0."
    T = 6
    for prompt, length in ((3, 5), (3, 6), (1, 7), (0, 4)):
        want = [t for t in range(T) if prompt <= t + 1 < length]
        got = []
        for t in range(T):  # which positions can move the result?
            one = F.one_hot(torch.tensor([t]), T).double()
            if float(prompt_loss(one, torch.tensor([prompt]), torch.tensor([length]))) != 0:
                got.append(t)
        mistakes = [
            ([t for t in range(T) if prompt <= t < length - 1], "the last position of the prompt "
             "predicts the first token of the target: it counts."),
            ([t for t in range(T) if prompt <= t < length], "one too late: position t predicts "
             "token t + 1, so the last position of the prompt counts, the last of the target not."),
            ([t for t in range(T) if prompt <= t + 1 <= length], "the last token of the target "
             "predicts padding: that position does not count."),
            ([t for t in range(T) if t + 1 < length], "the prompt is given, not predicted."),
            ([t for t in range(T) if prompt <= t + 1], "padding is no target."),
        ]  # fmt: skip
        hint = next((h for value, h in mistakes if got == value), "is token t + 1 a target?")
        row = f"prompt of {prompt}, {length} tokens in all"
        trial.require(got == want, f"{row}: it counts positions {got}, expected {want}", hint)
    generator = torch.Generator().manual_seed(0)
    losses = torch.rand(4, T, generator=generator, dtype=torch.float64) * 5
    prompts, lengths = torch.tensor([1, 3, 5, 6]), torch.tensor([7, 6, 6, 6])
    position = torch.arange(1, T + 1)
    counts = (position >= prompts[:, None]) & (position < lengths[:, None])
    sums, n = (losses * counts).sum(1), counts.sum(1)
    mistakes = [
        (sums.sum() / counts.numel(), "divide by the number of targets, not by B·T."),
        ((sums / n.clamp(min=1)).mean(), "a row with two targets weighs twice as much as a row "
         "with one: one mean over the batch, not a mean of means."),
        ((sums[:3] / n[:3]).mean(), "a row with two targets weighs twice as much as a row "
         "with one: one mean over the batch, not a mean of means."),
        (sums.sum(), "that is the sum: divide by the number of targets."),
    ]  # fmt: skip
    got = prompt_loss(losses, prompts, lengths)
    text = "it is not the mean over all targets of the batch"
    trial.close(got, sums.sum() / n.sum(), text, "sum over targets / number of targets.", mistakes)
    zero = torch.zeros((), dtype=torch.float64)
    got = prompt_loss(losses, torch.full((4,), 9), torch.full((4,), 7))
    text = f"a batch without any target gives {float(got):.4g}, expected 0"
    trial.close(got, zero, text, "0 / 0 is NaN: divide by at least 1.")


@exercise(
    notebook=NOTEBOOK,
    minutes=6,
    difficulty=2,
    kind="repair",
    hints=(
        "Write down the rows for ids = 0, 1, …, 8 and T = 4. Which token is never a target?",
        "The last token of a row must be the first input of the next: how far apart do rows start?",
        "With rows T apart, n rows need n·T + 1 tokens.",
    ),
)
def my_windows(ids, T):
    """Cut a stream into rows so that every token but the first is a target exactly once.

    ids: (N,) int64. Return (rows, T + 1): a row holds T inputs and their T targets. Tokens at the
    end that do not fill a row are dropped. As it stands, one token in T + 1 is never asked for.
    Mend it.
    """
    # given:
    # n_rows = len(ids) // (T + 1)
    # starts = [row * (T + 1) for row in range(n_rows)]
    # solution:
    n_rows = (len(ids) - 1) // T
    starts = [row * T for row in range(n_rows)]
    # end
    return torch.stack([ids[start : start + T + 1] for start in starts])


@my_windows.checked_by
def _(windows, trial):
    trial.on_error = "n rows that start T apart need n·T + 1 tokens: how many fit?"
    for N, T in ((5, 4), (9, 4), (12, 4), (13, 4), (8, 1), (7, 5), (100, 7)):
        ids = torch.arange(N) * 3 + 1
        rows = windows(ids, T)
        shaped = isinstance(rows, torch.Tensor) and rows.ndim == 2 and rows.shape[1] == T + 1
        hint = "T inputs and T targets of the same row take T + 1 tokens."
        trial.require(shaped, f"rows of {T} inputs and targets do not have {T + 1} tokens", hint)
        asked = ((rows[:, 1:].flatten() - 1) // 3).tolist()
        whole = (N - 1) // T * T
        missing = sorted(set(range(1, whole + 1)) - set(asked))
        text = f"N = {N}, T = {T}: of tokens 1 to {whole}, {missing[:3]} are never a target"
        hint = "the last token of a row must come again as the first input of the next."
        trial.require(not missing, text, hint)
        twice = sorted({i for i in asked if asked.count(i) > 1})
        text = f"N = {N}, T = {T}: tokens {twice[:3]} are a target more than once"
        trial.require(not twice, text, "rows must start T apart: nearer, and they ask again.")
        text = f"N = {N}, T = {T}: the rows are not {whole // T} runs of the stream in order"
        want = ids[: whole + 1].unfold(0, T + 1, T)
        trial.close(rows, want, text, "start the rows at 0, T, 2T, and so on.")


@predict(
    notebook=NOTEBOOK,
    minutes=2,
    difficulty=1,
    hints=(
        "Each of the 2,048 tokens gets the probability 1/2048.",
        "The loss is -ln of the probability of the right token.",
    ),
    mistakes={
        11.0: "that is in bits; the loss is in nats: the natural logarithm.",
        1 / 2048: "that is the probability; the loss is minus its logarithm.",
        2048.0: "that is the number of choices; the loss is its logarithm.",
        0.0: "0 would be a model that is certain, and right, each time.",
        -math.log(
            2048
        ): "a probability below 1 has a negative logarithm, and the loss turns the sign.",
    },
    otherwise="what is -ln p when p is 1/2048?",
    because="Nothing but ln V: a new model should start there, and a loss above it means certain "
    "and wrong.",
)
def my_uniform_loss():
    """A model knows nothing: each token of its vocabulary, V = 2,048, is as likely as any other.
    What is its cross-entropy loss, in nats? (1 % is near enough.)
    """
    logits, targets = torch.zeros(4, 2048), torch.tensor([0, 7, 512, 2047])
    return F.cross_entropy(logits, targets).item()
