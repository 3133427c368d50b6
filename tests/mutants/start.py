"""Wrong answers to the exercises in minilm/exercises/start.py."""

import torch

from .mutant import simplest, wrong


@simplest("start.surprisal")
def certain(surprisal):
    return surprisal(torch.ones(1))


@wrong("start.surprisal", "nats", right_on_simplest=True)
def in_nats(p):
    return -torch.log(p)


@wrong("start.surprisal", "base 10", right_on_simplest=True)
def in_bans(p):
    return -torch.log10(p)


@wrong("start.surprisal", "turn the sign", right_on_simplest=True)
def negative(p):
    return torch.log2(p)


@wrong("start.surprisal", "nothing may be added", right_on_simplest=False)
def with_a_floor(p):
    return -torch.log2(p + 1e-9)


@wrong("start.surprisal", "counts the choices")
def choices(p):
    return 1 / p


@wrong("start.surprisal", "take one of any shape")
def of_one_number(p):
    import math

    return -math.log2(p)


@wrong("start.surprisal", "changed its argument p")
def in_place(p):
    return p.log2_().neg()
