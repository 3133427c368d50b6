"""Wrong answers to the exercises in minilm/exercises/training.py."""

import math

import torch
import torch.nn.functional as F

from minilm.exercises import training

from .mutant import simplest, wrong


@simplest("training.cross_entropy")
def one_row_of_zeros(cross_entropy):
    return cross_entropy(torch.zeros(1, 3), torch.tensor([1]))


def parts(logits, targets):
    """-ln p(target) of each row, softmax, one-hot targets."""
    losses = -logits.log_softmax(-1)[torch.arange(len(targets)), targets]
    return losses, logits.softmax(-1), F.one_hot(targets, logits.shape[1])


@wrong("training.cross_entropy", "its gradient is divided by N", right_on_simplest=True)
def gradient_of_the_sum(logits, targets):
    losses, p, hot = parts(logits, targets)
    return losses.mean(), p - hot


@wrong("training.cross_entropy", "the sum over the rows", right_on_simplest=True)
def the_sum(logits, targets):
    losses, p, hot = parts(logits, targets)
    return losses.sum(), p - hot


@wrong("training.cross_entropy", "has no logarithm", right_on_simplest=True)
def logarithm_of_softmax(logits, targets):
    _, p, hot = parts(logits, targets)
    return -p[torch.arange(len(targets)), targets].log().mean(), (p - hot) / len(targets)


@wrong("training.cross_entropy", "softmax - onehot", right_on_simplest=False)
def sign_of_the_gradient(logits, targets):
    losses, p, hot = parts(logits, targets)
    return losses.mean(), (hot - p) / len(targets)


@wrong("training.cross_entropy", "in bits")
def in_bits(logits, targets):
    losses, p, hot = parts(logits, targets)
    return losses.mean() / math.log(2), (p - hot) / len(targets)


@wrong("training.cross_entropy", "subtract 1 at the target")
def softmax_alone(logits, targets):
    losses, p, _ = parts(logits, targets)
    return losses.mean(), p / len(targets)


@wrong("training.cross_entropy", "calls torch's cross_entropy", right_on_simplest=True)
def ready_made(logits, targets):
    _, p, hot = parts(logits, targets)
    return torch.nn.CrossEntropyLoss()(logits, targets), (p - hot) / len(targets)


@wrong("training.cross_entropy", "calls torch.autograd", right_on_simplest=True)
def with_autograd(logits, targets):
    logits = logits.clone().requires_grad_()
    loss = parts(logits, targets)[0].mean()
    return loss, torch.autograd.grad(loss, logits)[0]


@wrong("training.cross_entropy", "calls torch's backward", right_on_simplest=True)
def with_backward(logits, targets):
    logits = logits.clone().requires_grad_()
    loss = parts(logits, targets)[0].mean()
    loss.backward()
    return loss, logits.grad


@wrong("training.cross_entropy", "changed its argument logits", right_on_simplest=True)
def in_place(logits, targets):
    losses, p, hot = parts(logits.sub_(logits.amax(-1, keepdim=True)), targets)
    return losses.mean(), (p - hot) / len(targets)


@simplest("training.loop_a")
def one_batch(loop):
    model = training._Bigram(5)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    losses = loop(model, optimizer, [torch.tensor([[0, 1, 2], [3, 4, 0]])])
    return losses, model.table.detach()


def mean_loss(model, ids):
    return F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())


def loop_a(model, optimizer, batches, *, loss_of=mean_loss, order="clear backward step"):
    """Loop A with its slips as options."""
    losses = []
    for ids in batches:
        loss = loss_of(model, ids)
        do = {"clear": optimizer.zero_grad, "backward": loss.backward, "step": optimizer.step}
        for action in order.split():
            do[action]()
        losses.append(loss.item())
    return losses


@wrong("training.loop_a", "flatten both")
def not_flattened(*args):
    return loop_a(*args, loss_of=lambda model, ids: F.cross_entropy(model(ids[:, :-1]), ids[:, 1:]))


@wrong("training.loop_a", "clear it before each backward", right_on_simplest=True)
def never_cleared(*args):
    return loop_a(*args, order="backward step")


@wrong("training.loop_a", "clear it before each backward", right_on_simplest=True)
def cleared_once(model, optimizer, batches):
    optimizer.zero_grad()
    return never_cleared(model, optimizer, batches)


@wrong("training.loop_a", "between backward and step", right_on_simplest=False)
def cleared_too_late(*args):
    return loop_a(*args, order="backward clear step")


@wrong("training.loop_a", "in the same order", right_on_simplest=False)
def flattened_in_another_order(*args):
    def loss_of(model, ids):
        logits = model(ids[:, :-1])
        return F.cross_entropy(logits.transpose(0, 1).flatten(0, 1), ids[:, 1:].flatten())

    return loop_a(*args, loss_of=loss_of)


@wrong("training.loop_a", "one number per step")
def the_last_loss_only(*args):
    return loop_a(*args)[-1]


@simplest("training.loop_b")
def one_batch_of_targets(loop):
    model = training._Bigram(5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    scheduler = training._Rates(optimizer, [1.0, 1.0])
    batch = {"ids": torch.tensor([[0, 1, 2], [3, 4, 0]]), "mask": torch.ones(2, 3).long()}
    return loop(model, optimizer, scheduler, [batch], batch)


def masked_mean(losses, mask):
    return (losses * mask).sum() / mask.sum().clamp(min=1)


def loop_b(
    model,
    optimizer,
    scheduler,
    batches,
    valid,
    *,
    mean=masked_mean,
    scheduler_first=False,
    evaluation=True,
    gradients=False,
    back=True,
    shift=1,
):
    """Loop B with its slips as options."""

    def loss_of(batch):
        logits = model(batch["ids"][:, :-1])
        targets, mask = batch["ids"][:, shift:], batch["mask"][:, shift:]
        logits = logits[:, : targets.shape[1]]
        return mean(F.cross_entropy(logits.transpose(1, 2), targets, reduction="none"), mask)

    history = []
    model.train()
    for batch in batches:
        if back:
            model.train()
        loss = loss_of(batch)
        optimizer.zero_grad()
        loss.backward()
        for step in (scheduler.step, optimizer.step)[:: 1 if scheduler_first else -1]:
            step()
        if evaluation:
            model.eval()
        with torch.set_grad_enabled(gradients):
            history.append((loss.item(), loss_of(valid).item()))
    return history


@wrong("training.loop_b", "not by B·T", right_on_simplest=True)
def mean_over_all(*args):
    return loop_b(*args, mean=lambda losses, mask: (losses * mask).mean())


@wrong("training.loop_b", "optimizer.step() comes first", right_on_simplest=True)
def scheduler_before_optimizer(*args):
    return loop_b(*args, scheduler_first=True)


@wrong("training.loop_b", "model.eval() before it", right_on_simplest=True)
def validation_in_training_mode(*args):
    return loop_b(*args, evaluation=False)


@wrong("training.loop_b", "torch.no_grad()", right_on_simplest=True)
def validation_with_gradients(*args):
    return loop_b(*args, gradients=True)


@wrong("training.loop_b", "model.train() at the start", right_on_simplest=True)
def never_back_to_training(*args):
    return loop_b(*args, back=False)


@wrong("training.loop_b", "divide by at least 1", right_on_simplest=True)
def nan_without_targets(*args):
    return loop_b(*args, mean=lambda losses, mask: (losses * mask).sum() / mask.sum())


@wrong("training.loop_b", "losses over targets only")
def shifted_twice(*args):
    return loop_b(*args, shift=2)


@wrong("training.loop_b", "once per update", right_on_simplest=True)
def scheduler_forgotten(model, optimizer, scheduler, batches, valid):
    class Still:
        def step(self):
            pass

    return loop_b(model, optimizer, Still(), batches, valid)
