"""The curves behind GELU and SiLU: max(x, 0) less a bump t · Q(t), with t = |x|.

    form         Q(t)                                     slope N(t) = Q(t) + t · Q'(t)
    gelu         Φ(−t) = 2^P(t), P a polynomial           Q − t · exp(−t²/2) / √(2π)
    gelu_tanh    σ(−v) = e / (1 + e), e = exp(−v),        Q · (1 − t · v' / (1 + e))
                 v = 2 √(2/π) · (t + 0.044715 t³)
    silu         the same with v = t                      Q · (1 − t / (1 + e))

Φ(−t) falls like exp(−t²/2), so its logarithm is a smooth curve: a polynomial and one `ex2` follow
it. Coefficients: a weighted minimax fit of log2 Φ(−t) on [0, 5.75], with P(0) = −1 so that Q(0) is
exactly ½. With degree 10, for float32, gelu is off by at most 4e-7 of itself for |x| < 1, by 1.5e-6
down to x = −4, and nowhere by more than 7e-8. With degree 7, for the 16-bit formats, by 4.5e-6 down
to x = −4, a hundredth of what rounding to float16 costs. Beyond 6 P goes on falling, and the bump
that is left there is less than 1e-8.

There is no `tanh.approx`: its error of 2⁻¹¹ is taken relative to tanh, so that 1 + tanh(u) would be
wrong in its first digit at x = −4. σ costs one function more (ex2 and rcp, 16 lanes a clock each;
bf16 at the speed of a copy leaves time for nearly five per element) and is right to 2e-6 of itself.
"""

import functools
import math

from . import ptx
from .jit import jit
from .namespace import float32

LIMIT = 128.0  # beyond, t² and t³ could overflow; every Q has long been 0 (silu's since 88)
LOG2E = math.log2(math.e)
# log2 Φ(−t), from the constant term on.
P_FLOAT = (-1.0, -1.15111125, -0.459161073, -0.0526136421, 0.00718596764, -0.00018388257)
P_FLOAT += (-0.000195855406, 5.33229613e-05, -7.17594185e-06, 5.19821128e-07, -1.61072116e-08)
P_HALF = (-1.0, -1.15121102, -0.458556712, -0.0538688451, 0.008462511, -0.000918611127)
P_HALF += (6.0024835e-05, -1.75259083e-06)
V_1 = 2 * math.sqrt(2 / math.pi)  # v = V_1 · t + V_3 · t³, v' = V_1 + SLOPE_3 · t²
V_3 = V_1 * 0.044715
SLOPE_3 = 3 * V_3
# exp(−t²/2) / √(2π) = 2^(NORMAL_2 · t² − NORMAL_0), exp(−v) = 2^(t · (CUBIC_3 · t² − CUBIC_1))
NORMAL_0, NORMAL_2 = 0.5 * math.log2(2 * math.pi), -0.5 * LOG2E
CUBIC_1, CUBIC_3 = V_1 * LOG2E, -V_3 * LOG2E


@functools.cache
def curve(form: str, dtype: str):
    """Device functions (value, derivative) of x, for "gelu", "gelu_tanh" or "silu" in `dtype`.

    Both take and return float32, NaN for NaN; value(−∞) and derivative(−∞) are 0.
    """
    bump, slope = {"gelu": _normal, "gelu_tanh": _sigmoid_cubic, "silu": _sigmoid}[form](dtype)

    @jit(device=True)
    def value(x):
        t = distance(x)
        return max(x, float32(0)) - t * bump(t)

    @jit(device=True)
    def derivative(x):
        left = slope(distance(x))
        return left if x < float32(0) else float32(1) - left

    return value, derivative


@jit(device=True)
def distance(x):
    """|x|, at most LIMIT: 0 · ∞ never happens. A comparison, not `min`, which would lose a NaN."""
    t = abs(x)
    return float32(LIMIT) if t > float32(LIMIT) else t


def _normal(dtype: str):
    COEFFICIENTS = P_FLOAT if dtype == "float32" else P_HALF
    DEGREE = len(COEFFICIENTS) - 1

    @jit(device=True)
    def bump(t):
        p = float32(COEFFICIENTS[DEGREE])
        for k in range(DEGREE):
            p = p * t + float32(COEFFICIENTS[DEGREE - 1 - k])
        return ptx.ex2(p)

    @jit(device=True)
    def slope(t):
        density = ptx.ex2(t * t * float32(NORMAL_2) - float32(NORMAL_0))
        return bump(t) - t * density

    return bump, slope


def _sigmoid_cubic(dtype: str):
    @jit(device=True)
    def bump(t):
        e = ptx.ex2(t * (t * t * float32(CUBIC_3) - float32(CUBIC_1)))
        return e * ptx.rcp(float32(1) + e)

    @jit(device=True)
    def slope(t):
        square = t * t
        e = ptx.ex2(t * (square * float32(CUBIC_3) - float32(CUBIC_1)))
        right = ptx.rcp(float32(1) + e)
        return e * right * (float32(1) - t * right * (square * float32(SLOPE_3) + float32(V_1)))

    return bump, slope


def _sigmoid(dtype: str):
    @jit(device=True)
    def bump(t):
        e = ptx.ex2(t * float32(-LOG2E))
        return e * ptx.rcp(float32(1) + e)

    @jit(device=True)
    def slope(t):
        e = ptx.ex2(t * float32(-LOG2E))
        right = ptx.rcp(float32(1) + e)
        return e * right * (float32(1) - t * right)

    return bump, slope
