"""Wrong answers to the exercises in minilm/exercises/batches.py."""

import torch

from .mutant import simplest, wrong


@simplest("batches.targets")
def equal_tokens(targets):
    return targets(torch.full((2, 4), 7))


@wrong("batches.targets", "not shifted", right_on_simplest=True)
def no_shift(ids):
    return ids[:, :-1], ids[:, :-1]


@wrong("batches.targets", "shifted twice")
def twice(ids):
    return ids[:, :-1], ids[:, 2:]


@wrong("batches.targets", "shifted twice", right_on_simplest=True)
def twice_around(ids):
    return ids[:, :-1], ids.roll(-2, 1)[:, :-1]


@wrong("batches.targets", "the token before", right_on_simplest=True)
def backwards(ids):
    return ids[:, :-1], ids.roll(1, 1)[:, :-1]


@wrong("batches.targets", "leave it out of the inputs")
def whole_inputs(ids):
    return ids, ids[:, 1:]


@wrong("batches.targets", "do not wrap around")
def rolled(ids):
    return ids[:, :-1], ids.roll(-1, 1)


@wrong("batches.targets", "swapped", right_on_simplest=True)
def swapped(ids):
    return ids[:, 1:], ids[:, :-1]


@wrong("batches.targets", "two tensors")
def targets_alone(ids):
    return ids[:, 1:]


@simplest("batches.prompt_loss")
def no_prompt_no_padding(prompt_loss):
    losses = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    return prompt_loss(losses, torch.zeros(2).long(), torch.full((2,), 3))


def positions(losses):
    return torch.arange(losses.shape[1])


def mean(losses, counts):
    return (losses * counts).sum() / counts.sum().clamp(min=1)


@wrong("batches.prompt_loss", "the last position of the prompt predicts", right_on_simplest=True)
def last_of_the_prompt_masked(losses, prompt_lengths, lengths):
    t = positions(losses)
    return mean(losses, (t >= prompt_lengths[:, None]) & (t < lengths[:, None] - 1))


@wrong("batches.prompt_loss", "one too late", right_on_simplest=True)
def shifted(losses, prompt_lengths, lengths):
    t = positions(losses)
    return mean(losses, (t >= prompt_lengths[:, None]) & (t < lengths[:, None]))


@wrong("batches.prompt_loss", "predicts padding", right_on_simplest=True)
def one_of_the_padding(losses, prompt_lengths, lengths):
    t = positions(losses)
    return mean(losses, (t + 1 >= prompt_lengths[:, None]) & (t < lengths[:, None]))


@wrong("batches.prompt_loss", "given, not predicted", right_on_simplest=True)
def the_prompt_too(losses, prompt_lengths, lengths):
    return mean(losses, positions(losses) + 1 < lengths[:, None])


@wrong("batches.prompt_loss", "padding is no target", right_on_simplest=True)
def all_padding(losses, prompt_lengths, lengths):
    counts = (positions(losses) + 1 >= prompt_lengths[:, None]).expand_as(losses)
    return mean(losses, counts)


def counted(losses, prompt_lengths, lengths):
    t = positions(losses) + 1
    return (t >= prompt_lengths[:, None]) & (t < lengths[:, None])


@wrong("batches.prompt_loss", "not by B·T", right_on_simplest=True)
def mean_over_all(losses, prompt_lengths, lengths):
    return (losses * counted(losses, prompt_lengths, lengths)).mean()


@wrong("batches.prompt_loss", "not a mean of means", right_on_simplest=True)
def mean_of_means(losses, prompt_lengths, lengths):
    counts = counted(losses, prompt_lengths, lengths)
    return ((losses * counts).sum(1) / counts.sum(1).clamp(min=1)).mean()


@wrong("batches.prompt_loss", "0 / 0 is NaN", right_on_simplest=True)
def nan_without_targets(losses, prompt_lengths, lengths):
    return losses[counted(losses, prompt_lengths, lengths)].mean()


@wrong("batches.prompt_loss", "that is the sum")
def the_sum(losses, prompt_lengths, lengths):
    return (losses * counted(losses, prompt_lengths, lengths)).sum()


@simplest("batches.windows")
def one_window(windows):
    return windows(torch.arange(5), 4)


@wrong("batches.windows", "first input of the next", right_on_simplest=True)
def as_it_was(ids, T):
    return torch.stack([ids[i : i + T + 1] for i in range(0, len(ids) // (T + 1) * (T + 1), T + 1)])


@wrong("batches.windows", "how many fit", right_on_simplest=True)
def one_row_too_many(ids, T):
    return torch.stack([ids[row * T : row * T + T + 1] for row in range(len(ids) // T)])


@wrong("batches.windows", "take T + 1 tokens")
def rows_of_inputs(ids, T):
    return torch.stack([ids[row * T : row * T + T] for row in range((len(ids) - 1) // T)])


@wrong("batches.windows", "they ask again", right_on_simplest=True)
def every_start(ids, T):
    return ids.unfold(0, T + 1, 1)


@wrong("batches.windows", "first input of the next", right_on_simplest=True)
def one_row_too_few(ids, T):
    return torch.stack([ids[i : i + T + 1] for i in range(0, max(len(ids) - T - 1, 1), T)])
