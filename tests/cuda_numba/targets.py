"""Which architectures and formats a kernel's machine code is looked at for."""

import pytest

HOPPER, BETWEEN = (9, 0), ((8, 0), (8, 9))


def thorough(*values):
    """A parameter set for `pytest --thorough` alone."""
    return pytest.param(*values, marks=pytest.mark.thorough)


def targets(everywhere=False, formats=("float32", "float16", "bfloat16")):
    """(cc, dtype): all formats on the H100, bfloat16 on the T4, the A100 (sm_80) and Ada (sm_89).

    The last two come with --thorough, or always with `everywhere`. They lie between: the kernels
    that do without tensor cores take no instruction there that is not seen on sm_75 or sm_90, and
    have as many registers. One kernel of each family is looked at everywhere in every run.
    """
    between = [(cc, "bfloat16") for cc in BETWEEN]
    between = between if everywhere else [thorough(*pair) for pair in between]
    return [((7, 5), "bfloat16"), *between, *((HOPPER, dtype) for dtype in formats)]
