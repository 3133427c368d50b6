"""Attention on mma.sync as machine code, on each architecture it is for."""

import functools
import itertools

import pytest
from compiled import ARCHITECTURES, assert_gates, needs_compiler
from targets import thorough

from cuda_numba.attention_warp import DIMS, backward_plans, forward_plan
from cuda_numba.attention_warp_forward import forward_kernel
from cuda_numba.attention_warp_keys import keys_kernel
from cuda_numba.attention_warp_queries import queries_kernel
from cuda_numba.attention_warp_scores import Sight

SHARED = {(7, 5): 65536, (8, 0): 166912, (8, 9): 101376, (9, 0): 232448}  # bytes of a block at most
PER_SM = {(7, 5): 65536, (8, 0): 167936, (8, 9): 102400, (9, 0): 233472}
RESERVED = {(7, 5): 0, (8, 0): 1024, (8, 9): 1024, (9, 0): 1024}  # of every block
STRIDES = ("uint64", "uint64", "uint32")


def built(cc, dtype, D):
    """Of every kernel: name, plan, maker, signature."""
    x = (f"{dtype}[:]",)
    f, sizes = ("float32[:]",), ("uint32",) * 6 + ("float32",)
    queries, keys = backward_plans(dtype, D, cc)
    return [
        (forward_plan(dtype, D, cc), forward_kernel, x * 4 + f + STRIDES * 4 + sizes),
        (queries, queries_kernel, x * 5 + f * 2 + x + STRIDES * 6 + sizes + ("float32",)),
        (keys, keys_kernel, x * 4 + f * 2 + x * 2 + STRIDES * 6 + sizes + ("float32",)),
    ]


FORWARD, QUERIES, KEYS = range(3)
CAUSAL = Sight(True, False)


def variants():
    """(cc, width, D, sight, part).

    By default: the widest heads, which leave the fewest registers, on every architecture, all parts
    on the two that plans are made for and on the others the one with the most sums, `keys`; then
    the narrow heads, paddings and a mask on one. With --thorough: the other parts; 64 on the other
    architectures, whose sizes are those of sm_90 or smaller; 32, which is 64 with fewer registers;
    96 without a padding, for 80 of 96 is the same tile and its guards.
    """
    measured = ((8, 0), (9, 0))
    for cc, part in itertools.product(ARCHITECTURES, range(3)):
        wide, narrow = (cc, 128, 128, CAUSAL, part), (cc, 64, 64, CAUSAL, part)
        yield wide if cc in measured or part == KEYS else thorough(*wide)
        yield narrow if cc == (9, 0) else thorough(*narrow)
    for part in range(3):
        yield (8, 0), 80, 96, Sight(False, True), part
        yield (9, 0), 120, 128, Sight(True, True), part
        yield from (thorough((9, 0), D, D, CAUSAL, part) for D in DIMS if D not in (64, 128))


@needs_compiler
@pytest.mark.parametrize(("cc", "width", "D", "sight", "part"), list(variants()), ids=str)
def test_gates(cc, width, D, sight, part):
    dtype = "float16" if cc < (8, 0) else "bfloat16"
    plan, make, signature = built(cc, dtype, width)[part]
    assert plan.form.D == D and plan.form.full == (width == D)
    kernel = make(plan, sight)
    wide = ("LDG.E.128", "STS.128") if cc < (8, 0) else ("LDGSTS",)
    assert_gates(kernel, cc, signature, ("HMMA", "LDSM", "MUFU.EX2", "STG.E.128", *wide))
    registers = kernel.resources(cc, signature).registers
    blocks = plan.blocks
    assert -(-registers // 8) * 8 * plan.threads * blocks <= 65536
    assert plan.shared <= SHARED[cc] and blocks * (plan.shared + RESERVED[cc]) <= PER_SM[cc]


@needs_compiler
@pytest.mark.parametrize(
    "part",
    [
        FORWARD,  # float16 is another word in the products and conversions, here as in the others
        thorough(QUERIES),
        thorough(KEYS),
    ],
)
def test_float16_on_hopper(part):
    plan, make, signature = built((9, 0), "float16", 64)[part]
    assert_gates(make(plan, Sight(True, False)), (9, 0), signature, ("HMMA.16816.F32",))


@needs_compiler
def test_a_spill_is_noticed():
    """The control: the forward kernel for three blocks where registers are for two."""
    plan, make, signature = built((9, 0), "bfloat16", 128)[0]
    with pytest.raises(AssertionError, match="spills"):
        assert_gates(make(plan._replace(blocks=3), Sight(True, False)), (9, 0), signature)


@functools.cache
def sass_of(part):
    plan, make, signature = built((9, 0), "bfloat16", 64)[part]
    return plan, make(plan, Sight(True, False)).sass((9, 0), signature)


@needs_compiler
def test_products_of_a_tile():
    """Forward, D 64: 32 queries by 64 keys are 2 · 8 · 4 products each of S and of O."""
    plan, sass = sass_of(0)
    assert sass.count("HMMA") == 2 * plan.strips * (plan.N // 8) * (plan.form.D // 16)
    # Each fetch from shared memory serves both strips: four 8 × 8 matrices, four products.
    assert sass.count("LDSM") - plan.strips * plan.form.D // 16 == sass.count("HMMA") // 4
