"""Exercises of notebook 06: the loss with its gradient, and two broken loops."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from .exercise import exercise

NOTEBOOK = "06_training_loop"


@exercise(
    notebook=NOTEBOOK,
    minutes=10,
    difficulty=2,
    forbidden=(
        "cross_entropy", "cross_entropy_loss", "nll_loss", "nll_loss_nd", "linear_cross_entropy",
        "backward", "torch.autograd.grad", "torch.autograd.backward",
        "torch.autograd.functional", "torch._functorch",
    ),
    hints=(
        "-ln p(target) = logsumexp(logits) - logits[target]: nothing overflows, no log of 0.",
        "The gradient of one row is softmax(logits) - onehot(target).",
        "The loss is a mean over N rows, so the gradient is divided by N too.",
    ),
)  # fmt: skip
def my_cross_entropy(logits, targets):
    """Cross-entropy and its gradient, without autograd.

    logits: (N, V) float; targets: (N,) int64. Return (loss, dlogits): the mean of -ln p(target)
    over the rows, a scalar, and its gradient, (N, V). Logits may be 10,000 apart.
    """
    # solution:
    rows = torch.arange(len(targets))
    loss = (logits.logsumexp(-1) - logits[rows, targets]).mean()
    dlogits = logits.softmax(-1)
    dlogits[rows, targets] -= 1
    return loss, dlogits / len(targets)
    # end


@my_cross_entropy.checked_by
def _(cross_entropy, trial):
    trial.on_error = "logits[torch.arange(N), targets] picks the target's logit of each row."
    generator = torch.Generator().manual_seed(0)
    for N, V in ((1, 3), (5, 7), (4, 4), (33, 2)):
        logits = 3 * torch.randn(N, V, generator=generator, dtype=torch.float64)
        targets = torch.randint(V, (N,), generator=generator)
        got = cross_entropy(logits, targets)
        pair = isinstance(got, tuple | list) and len(got) == 2
        trial.require(pair, "it does not return a pair", "return loss, dlogits.")
        loss, gradient = _cross_entropy(logits, targets)
        mistakes = [
            (loss * N, "that is the sum over the rows: divide by N."),
            (loss / math.log(2), "that is in bits: use the natural logarithm."),
            (-loss, "turn the sign: the loss is -ln p."),
            (loss * N / (N * V), "divide by the number of rows, not of logits."),
        ]
        trial.close(got[0], loss, "the loss is wrong", "-ln p(target), mean over rows.", mistakes)
        mistakes = [
            (gradient * N, "the loss is a mean, so its gradient is divided by N too."),
            (-gradient, "turn the sign: softmax - onehot."),
            (logits.softmax(-1) / N, "subtract 1 at the target."),
            (logits.softmax(-1), "subtract 1 at the target."),
            (gradient / V, "divide by the number of rows, not of logits."),
        ]
        hint = "(softmax - onehot) / N; its rows sum to 0."
        trial.close(got[1], gradient, "the gradient is wrong", hint, mistakes)
    logits = torch.tensor([[0.0, 1e4, -1e4], [-1e4, 0.0, 1e-3]])
    targets = torch.tensor([0, 2])
    loss, gradient = _cross_entropy(logits, targets)
    got = cross_entropy(logits, targets)
    text = "logits 10,000 apart give an infinite loss or NaN"
    hint = "a probability of 0 has no logarithm: use logsumexp(logits) - logits[target]."
    trial.close(got[0], loss, text, hint)
    trial.close(got[1], gradient, "logits 10,000 apart give a wrong gradient", hint)


def _cross_entropy(logits, targets):
    """The loss and its gradient by autograd."""
    logits = logits.clone().requires_grad_()
    loss = F.cross_entropy(logits, targets)
    return loss.detach(), torch.autograd.grad(loss, logits)[0]


class _Bigram(nn.Module):
    """The smallest language model, a table of logits, which keeps a diary of its calls."""

    def __init__(self, V):
        super().__init__()
        self.table = nn.Parameter(_noise((V, V), seed=3))
        self.diary = []  # (rows, training mode, gradients on) of each forward pass

    def forward(self, ids):
        self.diary.append((len(ids), self.training, torch.is_grad_enabled()))
        return self.table[ids]  # (B, T, V)


@exercise(
    notebook=NOTEBOOK,
    minutes=6,
    difficulty=1,
    kind="repair",
    in_place=("model", "optimizer"),
    hints=(
        "F.cross_entropy takes logits (N, V) and targets (N,): what is N here?",
        "`backward` adds to the gradients that are there.",
        "logits.flatten(0, 1), ids[:, 1:].flatten(); optimizer.zero_grad() before loss.backward().",
    ),
)
def my_loop_a(model, optimizer, batches):
    """Train on batches of ids (B, T + 1), one optimizer step each. Return the losses, numbers.

    model(ids) gives the logits (B, T, V). Two things are wrong. Mend them.
    """
    losses = []
    for ids in batches:
        logits = model(ids[:, :-1])
        # given:
        # loss = F.cross_entropy(logits, ids[:, 1:])
        # solution:
        loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        # end
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def _train(batches, V, *, zero_grad="each", lr=2.0):
    """The losses of the right loop, or of one that clears gradients at another time."""
    model = _Bigram(V)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    losses = []
    for ids in batches:
        loss = F.cross_entropy(model(ids[:, :-1]).transpose(1, 2), ids[:, 1:])
        if zero_grad == "each":
            optimizer.zero_grad()
        loss.backward()
        if zero_grad != "late":
            optimizer.step()
        losses.append(loss.item())
    return torch.tensor(losses, dtype=torch.float64)


@my_loop_a.checked_by
def _(loop, trial):
    trial.on_error = "F.cross_entropy takes logits (N, V) and targets (N,): flatten both."
    for B, T, V, n in ((2, 3, 5, 1), (3, 4, 4, 5), (4, 6, 9, 6)):
        generator = torch.Generator().manual_seed(V)
        batches = [torch.randint(V, (B, T + 1), generator=generator)] * n
        model = _Bigram(V)
        optimizer = torch.optim.SGD(model.parameters(), lr=2.0)
        got = loop(model, optimizer, batches)
        numbers = isinstance(got, list | tuple) and len(got) == n
        trial.require(numbers, "it does not give one loss per batch", "one number per step.")
        got = torch.tensor([float(loss) for loss in got], dtype=torch.float64)
        want = _train(batches, V)
        hint = "flatten logits to (B·T, V) and targets to (B·T,) in the same order."
        trial.close(got[0], want[0], "the first loss is wrong", hint)
        mistakes = [
            (_train(batches, V, zero_grad="never"), "gradients pile up: backward adds to what is "
             "there, so clear it before each backward."),
            (_train(batches, V, zero_grad="late"), "nothing is learned: the gradient is cleared "
             "between backward and step."),
        ]  # fmt: skip
        hint = "in this order: zero_grad, backward, step."
        trial.close(got, want, "the later losses are wrong", hint, mistakes)


class _Rates:
    """A learning-rate schedule that reads from a list."""

    def __init__(self, optimizer, rates):
        self.optimizer, self.rates = optimizer, iter(rates)
        self.step()  # the rate of the first update

    def step(self):
        for group in self.optimizer.param_groups:
            group["lr"] = next(self.rates)


@exercise(
    notebook=NOTEBOOK,
    minutes=10,
    difficulty=3,
    kind="repair",
    in_place=("model", "optimizer", "scheduler"),
    hints=(
        "Which positions does .mean() count? Only targets may count, and their number differs.",
        "The scheduler sets the rate of the next update, so when is its turn?",
        "Validation measures: evaluation mode, no gradients, and back to training mode afterwards.",
    ),
)
def my_loop_b(model, optimizer, scheduler, batches, valid):
    """Train on batches {"ids": (B, T + 1), "mask": (B, T + 1)}; after each step measure on `valid`.

    mask[b, t] = 1 says that ids[b, t] is a target; the loss is the mean over the targets of the
    batch, 0 if there is none. scheduler.step() sets the learning rate of the next update.
    Return a list of (training loss, validation loss). Three things are wrong. Mend them.
    """

    def loss_of(batch):
        ids, mask = batch["ids"], batch["mask"][:, 1:]
        logits = model(ids[:, :-1])
        losses = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")  # (B, T)
        # given:
        # return (losses * mask).mean()
        # solution:
        return (losses * mask).sum() / mask.sum().clamp(min=1)
        # end

    history = []
    for batch in batches:
        model.train()
        loss = loss_of(batch)
        optimizer.zero_grad()
        loss.backward()
        # given:
        # scheduler.step()
        # optimizer.step()
        # valid_loss = loss_of(valid)
        # solution:
        optimizer.step()
        scheduler.step()
        model.eval()
        with torch.no_grad():
            valid_loss = loss_of(valid)
        # end
        history.append((loss.item(), valid_loss.item()))
    return history


def _masked_batch(B, T, V, seed, share):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(V, (B, T + 1), generator=generator)
    return {"ids": ids, "mask": (torch.rand(B, T + 1, generator=generator) < share).long()}


def _train_b(batches, valid, rates, V, *, over="targets", early=False):
    """The history of the right loop, or of one with a slip."""
    table = _Bigram(V).table
    rates = rates[1:] if early else rates

    def loss_of(batch):
        ids, mask = batch["ids"], batch["mask"][:, 1:].bool()
        losses = F.cross_entropy(table[ids[:, :-1]].transpose(1, 2), ids[:, 1:], reduction="none")
        n = {"targets": max(int(mask.sum()), 1), "all": mask.numel()}[over]
        return losses[mask].sum() / n

    history = []
    for batch, lr in zip(batches, rates, strict=False):
        loss = loss_of(batch)
        (gradient,) = torch.autograd.grad(loss, table)
        table = (table - lr * gradient).detach().requires_grad_()
        history.append((loss.item(), loss_of(valid).item()))
    return torch.tensor(history, dtype=torch.float64)


@my_loop_b.checked_by
def _(loop, trial):
    trial.on_error = "the masked mean divides by the number of targets, and a batch may have none."
    for B, T, V, share in ((2, 3, 5, 1.0), (3, 7, 4, 0.4)):
        batches = [_masked_batch(B, T, V, seed, share) for seed in range(4)]
        if share < 1:
            batches[1]["mask"][:] = 0  # no target at all
        valid = _masked_batch(B + 2, T, V, 9, share)
        rates = [1.0, 0.5, 0.25, 0.125, 0.0625]
        model = _Bigram(V)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        got = loop(model, optimizer, _Rates(optimizer, rates), batches, valid)
        pairs = isinstance(got, list | tuple) and [len(pair) for pair in got] == [2] * 4
        text = "it does not return one pair of losses per batch"
        trial.require(pairs, text, "append (training loss, validation loss) after each step.")
        got = torch.tensor([[float(loss) for loss in pair] for pair in got], dtype=torch.float64)
        text = "a batch without targets gives NaN"
        trial.require(not got.isnan().any(), text, "0 / 0 is NaN: divide by at least 1.")
        mistakes = [
            (_train_b(batches, valid, rates, V, over="all"), "divide by the number of targets, "
             "mask.sum(), not by B·T."),
            (_train_b(batches, valid, rates, V, early=True), "the scheduler sets the rate of the "
             "next update: optimizer.step() comes first."),
            (_train_b(batches, valid, [1.0] * 5, V), "the scheduler must step once per update."),
        ]  # fmt: skip
        want = _train_b(batches, valid, rates, V)
        hint = "losses over targets only; then backward, optimizer.step, scheduler.step."
        trial.close(got, want, "the losses are wrong", hint, mistakes)
        seen = [(training, grad) for rows, training, grad in model.diary if rows == B + 2]
        text = "validation runs in training mode"
        trial.require(not any(training for training, _ in seen), text, "model.eval() before it.")
        text = "validation builds a graph for gradients that nobody asks for"
        trial.require(not any(grad for _, grad in seen), text, "with torch.no_grad(): around it.")
        text = "after the first validation, training runs in evaluation mode"
        back = all(training for rows, training, _ in model.diary if rows == B)
        trial.require(back, text, "model.train() at the start of each step.")


def _noise(shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
