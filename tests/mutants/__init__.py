"""Typical wrong answers to the exercises, a file or two for each topic.

    @simplest("heads.softmax")       # what a reader would try first
    def _(softmax):
        return softmax(torch.zeros(2, 2))

    @wrong("heads.softmax", "maximum first", right_on_simplest=True)
    def without_maximum(x): ...

A wrong answer must fail with a verdict in which the fragment occurs. At least one of each exercise
is right on the simplest input: a check that tries no more than that would let it pass.
"""

from . import (
    batches,
    flash,
    flash_kernel,
    heads,
    kernels,
    matmul,
    matmul_buffers,
    memory,
    merges,
    optimizers,
    start,
    tokens,
    training,
    training_fast,
)
from .mutant import MUTANTS, SIMPLEST

__all__ = [
    "MUTANTS",
    "SIMPLEST",
    "batches",
    "flash",
    "flash_kernel",
    "heads",
    "kernels",
    "matmul",
    "matmul_buffers",
    "memory",
    "merges",
    "optimizers",
    "start",
    "tokens",
    "training",
    "training_fast",
]
