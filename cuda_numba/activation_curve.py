"""The curves behind GELU and SiLU, each with its derivative.

    form         y                       dy/dx
    gelu         max(x, 0) − t · Q(t)    N(t) left of 0, 1 − N(t) right of it;  t = |x|,
                 Q(t) = Φ(−t)            N(t) = Q(t) − t · exp(−t²/2) / √(2π), the slope at −t
    gelu_tanh    x · σ(v)                σ(v) · (1 + σ(−v) · x v');  v = √(8/π) · (x + 0.044715 x³)
    silu         x · σ(v)                the same with v = x

Nothing cancels, so y keeps its digits far down the left tail, and at ±∞ the limits come out.

gelu is the ramp max(x, 0) less a bump that is the same on both sides. Φ(−t) falls like exp(−t²/2),
so its logarithm is a smooth curve: a polynomial P and one `ex2` follow it. Coefficients: a weighted
minimax fit of log2 Φ(−t) on [0, 5.75], with P(0) = −1 so that Q(0) is exactly ½. With degree 10,
for float32, gelu is off by at most 4e-7 of itself for |x| < 1, by 1.5e-6 down to x = −4, and
nowhere by more than 7e-8. With degree 7, for the 16-bit formats, by 4.5e-6 down to x = −4, a
hundredth of what rounding to float16 costs. Beyond 6 P goes on falling, and the bump that is left
there is less than 1e-8.

The other two are x times a sigmoid: σ(v) = 1 / (1 + e) and σ(−v) = e / (1 + e) with e = exp(−v).
x stops where e is 2¹²⁷ and a little: still finite, while its reciprocal is subnormal, which `rcp`
makes 0. So σ is exactly 0 there and to the left, and 0 · ∞ never happens.

There is no `tanh.approx`: its error of 2⁻¹¹ is taken relative to tanh, so that 1 + tanh(u) would be
wrong in its first digit at x = −4. σ costs one function more (ex2 and rcp, 16 lanes a clock each;
bf16 at the speed of a copy leaves time for nearly five per element) and is right to 2e-6 of itself.
"""

import functools
import math

from . import ptx
from .jit import jit
from .namespace import float32

LOG2E = math.log2(math.e)
# log2 Φ(−t), from the constant term on.
P_FLOAT = (-1.0, -1.15111125, -0.459161073, -0.0526136421, 0.00718596764, -0.00018388257)
P_FLOAT += (-0.000195855406, 5.33229613e-05, -7.17594185e-06, 5.19821128e-07, -1.61072116e-08)
P_HALF = (-1.0, -1.15121102, -0.458556712, -0.0538688451, 0.008462511, -0.000918611127)
P_HALF += (6.0024835e-05, -1.75259083e-06)
NORMAL_LIMIT = 128.0  # of t: beyond, t² could overflow; the bump has long been 0
# exp(−t²/2) / √(2π) = 2^(NORMAL_2 · t² − NORMAL_0)
NORMAL_0, NORMAL_2 = 0.5 * math.log2(2 * math.pi), -0.5 * LOG2E
V_1 = 2 * math.sqrt(2 / math.pi)  # v = V_1 · x + V_3 · x³, v' = V_1 + SLOPE_3 · x²
V_3 = V_1 * 0.044715
SLOPE_3 = 3 * V_3
# exp(−v) = 2^(x · (CUBIC_3 · x² − CUBIC_1)): 2^127.3 at x = −CUBIC_LIMIT
CUBIC_1, CUBIC_3, CUBIC_LIMIT = V_1 * LOG2E, -V_3 * LOG2E, 10.04
SILU_LIMIT = 88.2  # exp(88.2) = 2^127.2


@functools.cache
def curve(form: str, dtype: str):
    """Device functions (value, derivative) of x, for "gelu", "gelu_tanh" or "silu" in `dtype`.

    Both take and return float32, NaN for NaN; value(−∞) and derivative(−∞) are 0.
    """
    return {"gelu": _gelu, "gelu_tanh": _gelu_tanh, "silu": _silu}[form](dtype)


# The limits are comparisons, not `min` and `max`, which would lose a NaN.


@jit(device=True)
def at_most(x, limit):
    return float32(limit) if x > float32(limit) else x


@jit(device=True)
def at_least(x, limit):
    return float32(limit) if x < float32(limit) else x


def _gelu(dtype: str):
    COEFFICIENTS = P_FLOAT if dtype == "float32" else P_HALF
    DEGREE = len(COEFFICIENTS) - 1

    @jit(device=True)
    def tail(t):
        p = float32(COEFFICIENTS[DEGREE])
        for k in range(DEGREE):
            p = p * t + float32(COEFFICIENTS[DEGREE - 1 - k])
        return ptx.ex2(p)

    @jit(device=True)
    def value(x):
        t = at_most(abs(x), NORMAL_LIMIT)
        return max(x, float32(0)) - t * tail(t)

    @jit(device=True)
    def derivative(x):
        t = at_most(abs(x), NORMAL_LIMIT)
        left = tail(t) - t * ptx.ex2(t * t * float32(NORMAL_2) - float32(NORMAL_0))
        return left if x < float32(0) else float32(1) - left

    return value, derivative


def _gelu_tanh(dtype: str):
    @jit(device=True)
    def exponential(x):
        return ptx.ex2(x * (x * x * float32(CUBIC_3) - float32(CUBIC_1)))

    @jit(device=True)
    def value(x):
        x = at_least(x, -CUBIC_LIMIT)
        return x * ptx.rcp(float32(1) + exponential(x))

    @jit(device=True)
    def derivative(x):
        x = at_most(at_least(x, -CUBIC_LIMIT), CUBIC_LIMIT)
        e = exponential(x)
        right = ptx.rcp(float32(1) + e)
        rise = x * (x * x * float32(SLOPE_3) + float32(V_1))  # x · v'
        return right * (float32(1) + e * right * rise)

    return value, derivative


def _silu(dtype: str):
    @jit(device=True)
    def value(x):
        x = at_least(x, -SILU_LIMIT)
        return x * ptx.rcp(float32(1) + ptx.ex2(x * float32(-LOG2E)))

    @jit(device=True)
    def derivative(x):
        x = at_least(x, -SILU_LIMIT)
        e = ptx.ex2(x * float32(-LOG2E))  # as in `value`: swiglu's backward pass makes it once
        right = ptx.rcp(float32(1) + e)
        return right * (float32(1) + e * right * at_most(x, SILU_LIMIT))

    return value, derivative
