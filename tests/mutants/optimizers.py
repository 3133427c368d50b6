"""Wrong answers to the exercises in minilm/exercises/optimizers.py."""

import math

import torch

from .mutant import simplest, wrong


@simplest("optimizers.adamw_step")
def one_weight_no_decay(adamw_step):
    p, m, v = torch.ones(1).double(), torch.zeros(1).double(), torch.zeros(1).double()
    options = dict(lr=0.1, betas=(0.9, 0.999), eps=0.0, weight_decay=0.0)
    adamw_step(p, torch.ones(1).double(), m, v, step=1, **options)
    return p, m, v


def adamw(p, grad, m, v, *, step, lr, betas, eps, weight_decay):
    beta1, beta2 = betas
    m.mul_(beta1).add_(grad, alpha=1 - beta1)
    v.mul_(beta2).add_(grad**2, alpha=1 - beta2)
    p.mul_(1 - lr * weight_decay)
    p.sub_(lr * m / (1 - beta1**step) / ((v / (1 - beta2**step)).sqrt() + eps))


@wrong("optimizers.adamw_step", "decoupled", right_on_simplest=True)
def decay_in_the_gradient(p, grad, m, v, *, weight_decay, **options):
    adamw(p, grad + weight_decay * p, m, v, weight_decay=0.0, **options)


@wrong("optimizers.adamw_step", "step counts from 1")
def step_from_0(p, grad, m, v, *, step, **options):
    adamw(p, grad, m, v, step=step - 1, **options)


@wrong("optimizers.adamw_step", "step counts from 1")
def step_from_2(p, grad, m, v, *, step, **options):
    adamw(p, grad, m, v, step=step + 1, **options)


@wrong("optimizers.adamw_step", "m and v start at 0")
def no_correction(p, grad, m, v, *, step, **options):
    adamw(p, grad, m, v, step=10**6, **options)


@wrong("optimizers.adamw_step", "not under it", right_on_simplest=True)
def eps_in_the_root(p, grad, m, v, *, step, lr, betas, eps, weight_decay):
    adamw(p, grad, m, v, step=step, lr=0.0, betas=betas, eps=eps, weight_decay=0.0)
    m_hat, v_hat = m / (1 - betas[0] ** step), v / (1 - betas[1] ** step)
    p.mul_(1 - lr * weight_decay).sub_(lr * m_hat / (v_hat + eps).sqrt())


@wrong("optimizers.adamw_step", "lr · weight_decay", right_on_simplest=True)
def decay_without_lr(p, grad, m, v, *, lr, weight_decay, **options):
    adamw(p, grad, m, v, lr=lr, weight_decay=weight_decay / lr, **options)


@wrong("optimizers.adamw_step", "makes a new one")
def not_in_place(p, grad, m, v, *, step, lr, betas, eps, weight_decay):
    m = betas[0] * m + (1 - betas[0]) * grad
    v = betas[1] * v + (1 - betas[1]) * grad**2
    m_hat, v_hat = m / (1 - betas[0] ** step), v / (1 - betas[1] ** step)
    p = p - lr * weight_decay * p - lr * m_hat / (v_hat.sqrt() + eps)


@wrong("optimizers.adamw_step", "calls torch.optim", right_on_simplest=True)
def ready_made(p, grad, m, v, *, step, lr, betas, eps, weight_decay):
    q = torch.nn.Parameter(p.clone())
    q.grad = grad
    torch.optim.AdamW([q], lr=lr, betas=betas, eps=eps, weight_decay=weight_decay).step()
    adamw(p, grad, m, v, step=step, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)


@wrong("optimizers.adamw_step", "calls minilm.optim", right_on_simplest=True)
def the_package(p, grad, m, v, **options):
    from minilm.optim import adamw_step

    adamw_step([p], [grad], [m], [v], **options)


@wrong("optimizers.adamw_step", "memory beside", right_on_simplest=True)
def past_the_end(p, grad, m, v, **options):
    adamw(p, grad, m, v, **options)
    if p.untyped_storage().size() > p.numel() * 8:  # the tensor is a part of a larger one
        p.as_strided((p.numel() + 1,), (1,))[-1] = 0


@simplest("optimizers.warmup_cosine")
def no_warmup_no_floor(warmup_cosine):
    return [warmup_cosine(s, steps=8, warmup=0, lr=1.0, min_lr=0.0) for s in range(1, 9)]


def cosine(progress, lr, min_lr):
    return min_lr + (lr - min_lr) * (1 + math.cos(math.pi * progress)) / 2


def line(step, warmup, lr):
    return lr * step / warmup if warmup else lr


@wrong("optimizers.warmup_cosine", "must not have the rate 0", right_on_simplest=False)
def first_update_at_0(step, *, steps, warmup, lr, min_lr):
    if step <= warmup:
        return lr * (step - 1) / warmup
    return cosine(min((step - warmup) / (steps - warmup), 1), lr, min_lr)


@wrong("optimizers.warmup_cosine", "starts where the warm-up ends", right_on_simplest=True)
def cosine_over_all_steps(step, *, steps, warmup, lr, min_lr):
    if step <= warmup:
        return line(step, warmup, lr)
    return cosine(min(step / steps, 1), lr, min_lr)


@wrong("optimizers.warmup_cosine", "ends at min_lr, not at 0", right_on_simplest=True)
def down_to_0(step, *, steps, warmup, lr, min_lr):
    if step <= warmup:
        return line(step, warmup, lr)
    return cosine(min((step - warmup) / (steps - warmup), 1), lr, 0)


@wrong("optimizers.warmup_cosine", "do not cut it off", right_on_simplest=True)
def cut_off(step, **options):
    return max(down_to_0(step, **options), options["min_lr"] if step > options["warmup"] else 0)


@wrong("optimizers.warmup_cosine", "half a cosine is asked")
def straight(step, *, steps, warmup, lr, min_lr):
    if step <= warmup:
        return line(step, warmup, lr)
    return lr + (min_lr - lr) * min((step - warmup) / (steps - warmup), 1)


@wrong("optimizers.warmup_cosine", "stays at min_lr", right_on_simplest=True)
def rises_again(step, *, steps, warmup, lr, min_lr):
    if step <= warmup:
        return line(step, warmup, lr)
    return cosine((step - warmup) / (steps - warmup), lr, min_lr)


@wrong("optimizers.warmup_cosine", "nothing is left to decay", right_on_simplest=True)
def floor_first(step, *, steps, warmup, lr, min_lr):
    if step >= steps:
        return min_lr
    if step <= warmup:
        return line(step, warmup, lr)
    return cosine((step - warmup) / (steps - warmup), lr, min_lr)


@wrong("optimizers.warmup_cosine", "do not divide by 0", right_on_simplest=False)
def divides_by_warmup(step, *, steps, warmup, lr, min_lr):
    return min(lr * step / warmup, cosine(min((step - warmup) / (steps - warmup), 1), lr, min_lr))


@simplest("optimizers.lion_step")
def first_step(lion_step):
    p, m = torch.ones(2).double(), torch.zeros(2).double()
    grad = torch.tensor([0.5, -2.0]).double()
    lion_step(p, grad, m, lr=0.1, betas=(0.9, 0.99), weight_decay=0.0)
    return p, m


@wrong("optimizers.lion_step", "change m last", right_on_simplest=True)
def momentum_first(p, grad, m, *, lr, betas, weight_decay):
    m.mul_(betas[1]).add_(grad, alpha=1 - betas[1])
    u = (betas[0] * m + (1 - betas[0]) * grad).sign()
    p.sub_(lr * (u + weight_decay * p))


@wrong("optimizers.lion_step", "two mixes", right_on_simplest=True)
def sign_of_the_momentum(p, grad, m, *, lr, betas, weight_decay):
    m.mul_(betas[1]).add_(grad, alpha=1 - betas[1])
    p.sub_(lr * (m.sign() + weight_decay * p))


@wrong("optimizers.lion_step", "beta1 mixes the direction")
def swapped_betas(p, grad, m, *, lr, betas, weight_decay):
    u = (betas[1] * m + (1 - betas[1]) * grad).sign()
    p.sub_(lr * (u + weight_decay * p))
    m.mul_(betas[0]).add_(grad, alpha=1 - betas[0])


@wrong("optimizers.lion_step", "the direction is the sign")
def without_the_sign(p, grad, m, *, lr, betas, weight_decay):
    p.sub_(lr * (betas[0] * m + (1 - betas[0]) * grad + weight_decay * p))
    m.mul_(betas[1]).add_(grad, alpha=1 - betas[1])


@wrong("optimizers.lion_step", "does not go into the sign", right_on_simplest=True)
def decay_in_the_sign(p, grad, m, *, lr, betas, weight_decay):
    p.sub_(lr * (betas[0] * m + (1 - betas[0]) * grad + weight_decay * p).sign())
    m.mul_(betas[1]).add_(grad, alpha=1 - betas[1])


@wrong("optimizers.lion_step", "changed its argument grad", right_on_simplest=True)
def decay_added_to_the_gradient(p, grad, m, *, lr, betas, weight_decay):
    u = (betas[0] * m + (1 - betas[0]) * grad).sign()
    p.sub_(lr * (u + weight_decay * p))
    m.mul_(betas[1]).add_(grad.mul_(1 - betas[1]))
