"""Emulated arithmetic against Numba's own: every operator, cast and function, in value and type."""

import ast
import math
import operator

import numpy as np
import pytest
from numba import njit
from numba.core import types
from typed import edges, emulated, function, held, is_of, numba_type, same

from cuda_numba.emulator import arithmetic, dynamic, operators
from cuda_numba.emulator.casts import wrap
from cuda_numba.emulator.mathematics import float_divmod, fma_float32, fma_float64
from cuda_numba.emulator.operators import BINARY, COMPARE, UNARY
from cuda_numba.namespace import HAS_NUMBA_CUDA

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

I32, U32, F32 = types.int32, types.uint32, types.float32
SYMBOLS = {
    "Add": "+", "Sub": "-", "Mult": "*", "Div": "/", "FloorDiv": "//", "Mod": "%", "LShift": "<<",
    "RShift": ">>", "BitAnd": "&", "BitOr": "|", "BitXor": "^", "Lt": "<", "LtE": "<=", "Gt": ">",
    "GtE": ">=", "Eq": "==", "NotEq": "!=",
}  # fmt: skip
DTYPES = "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64".split()
# At least one pair for every two types that Numba casts operands to before it computes.
PAIRS = [
    ("bool", "bool"), ("bool", "int32"), ("bool", "float32"), ("int8", "int8"), ("int8", "uint64"),
    ("int32", "uint32"), ("int64", "int64"), ("int64", "uint64"), ("uint8", "int16"),
    ("uint32", "uint32"), ("uint64", "int64"), ("uint64", "uint64"), ("float32", "float32"),
    ("float32", "int8"), ("int64", "float32"), ("float32", "float64"), ("uint64", "float64"),
    ("float64", "float64"),
]  # fmt: skip


def table(text, *kinds):
    """A function that returns a tuple, compiled by Numba for these types: results and types."""
    compiled = njit(error_model="numpy")(function(text))
    compiled.compile(kinds)
    found = compiled.nopython_signatures[0].return_type
    return compiled, list(found)


def undefined(op, y, kind):
    """Shifts by a count outside the width: hardware, Numba and C have a meaning each."""
    return op in ("LShift", "RShift") and not 0 <= int(y) < 64


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_operators(pair):
    a, b = map(numba_type, pair)
    ops = [op for op in SYMBOLS if operators.binary(op, a, b) is not None]
    text = "def row(x, y):\n    return (" + ", ".join(f"x {SYMBOLS[op]} y" for op in ops) + ")\n"
    compiled, kinds = table(text, a, b)
    ours, program = emulated(function(text), a, b)
    assert program.untyped == []
    assert [operators.binary(op, a, b).result for op in ops] == kinds
    for x in edges(pair[0]):
        for y in edges(pair[1]):
            for op, kind, got, want in zip(ops, kinds, ours(held(x), held(y)), compiled(x, y),
                                           strict=True):  # fmt: skip
                if undefined(op, y, kind):
                    continue
                if isinstance(kind, types.Integer) and op in ("Add", "Sub"):
                    got = wrap(got, kind)  # signed overflow is undefined, it may leave the range
                assert is_of(got, kind) and same(got, want), (x, op, y, got, want)


POWERS = [
    ("int64", "int64"), ("uint32", "uint8"), ("float32", "int64"), ("float64", "uint64"),
    ("float32", "float32"),
]  # fmt: skip


@pytest.mark.parametrize("pair", POWERS, ids="-".join)
def test_powers(pair):
    text = "def row(x, y):\n    return (x ** y, x ** 2, x ** 5, pow(x, y))\n"
    kinds = [numba_type(p) for p in pair]
    compiled = njit(error_model="numpy")(
        function("def row(x, y):\n    return (x ** y, x ** 2, x ** 5)\n")
    )
    ours, _ = emulated(function(text), *kinds)
    integers = pair[1] != "float32"
    bases = [x for x in edges(pair[0]) if not integers or 0.01 < abs(float(x)) < 2.0**62]
    for x in bases:
        for y in edges(pair[1]):
            if integers and abs(int(y)) > 8:
                continue
            got, want = ours(held(x), held(y)), compiled(x, y)
            assert same(got[3], got[0])
            for g, w in zip(got, want, strict=False):
                close = same(g, w) or (
                    not integers and abs(float(g) - w) <= 2 * float(np.spacing(np.float32(abs(w))))
                )
                assert close, (x, y, g, w)


@pytest.mark.parametrize("name", [n for n in DTYPES if n != "float16"])
def test_unary_operators_and_builtins(name):
    kind = numba_type(name)
    parts = ["-x", "+x", "not x", "abs(x)", "bool(x)", "int(x)", "round(x)"]
    parts += ["~x"] if not name.startswith("float") else []
    parts += ["float(x)"] if name != "bool" else []
    whole = "int(x)", "round(x)"
    text = f"def row(x):\n    return ({', '.join(parts)})\n"
    compiled, kinds = table(text, kind)
    ours, _ = emulated(function(text), kind)
    for x in edges(name):
        for part, t, got, want in zip(parts, kinds, ours(held(x)), compiled(x), strict=True):
            if part in whole and not abs(float(x)) < 2.0**62:
                continue  # it does not fit the integer
            assert is_of(got, t) and same(got, want), (part, x, got, want)


@pytest.mark.parametrize("name", [n for n in DTYPES if n != "float16"])
def test_casts(name):
    targets = [n for n in DTYPES if n not in ("bool", "float16")]
    text = f"def row(x):\n    return ({', '.join(f'{t}(x)' for t in targets)})\n"
    compiled, kinds = table(text, numba_type(name))
    ours, _ = emulated(function(text), numba_type(name))
    unknown, _ = emulated(function(text), None)
    for x in edges(name):
        results = zip(kinds, ours(held(x)), unknown(held(x)), compiled(x), strict=True)
        for kind, got, late, want in results:
            if isinstance(x, np.floating) and isinstance(kind, types.Integer):
                if not kind.minval <= float(x) <= kind.maxval - (kind.maxval >> 24):
                    continue  # it does not fit
            assert is_of(got, kind) and same(got, want), (x, kind, got, want)
            assert is_of(late, kind) and same(late, want), (x, kind, late, want)


def test_a_float_that_does_not_fit_an_integer_is_held_at_its_ends():
    text = "def row(x):\n    return (int32(x), uint32(x), int64(x), uint8(x))\n"
    ours, _ = emulated(function(text), types.float32)
    assert ours(np.float32(1e20)) == ((1 << 31) - 1, (1 << 32) - 1, (1 << 63) - 1, 255)
    assert ours(np.float32(-1e20)) == (-(1 << 31), 0, -(1 << 63), 0)
    assert ours(np.float32(math.nan)) == (0, 0, -(1 << 63), 0)
    wide, _ = emulated(function(text), types.float64)
    assert wide(np.float64(math.nan))[:2] == (-(1 << 31), 1 << 31)


def test_shifts_by_the_width_or_more():
    text = "def row(x, n):\n    return (x << n, x >> n)\n"
    signed, _ = emulated(function(text), types.int64, types.int64)
    unsigned, _ = emulated(function(text), types.uint32, types.uint32)
    assert signed(-5, 64) == (0, -1) and signed(5, 1000) == (0, 0)
    assert unsigned(5, 64) == (0, 0) and unsigned(5, 63) == (5 << 63 & (1 << 64) - 1, 0)


# ---- types, for all pairs -----------------------------------------------------------------------


needs_numba_cuda = pytest.mark.skipif(not HAS_NUMBA_CUDA, reason="numba-cuda is not installed")


def cuda_context():
    from numba.cuda.descriptor import cuda_target

    context = cuda_target.typing_context
    context.refresh()
    return context


def cuda_result(context, f, kinds):
    try:
        found = context.resolve_function_type(f, kinds, {})
    except Exception:  # numba-cuda raises what it likes where there is no such operation
        return None
    return None if found is None else (types.unliteral(found.return_type), tuple(found.args))


@needs_numba_cuda
def test_types_of_operators_are_those_of_numba_cuda():
    context, kinds = cuda_context(), [numba_type(n) for n in DTYPES]
    for op, f in {**BINARY, **COMPARE}.items():
        for a in kinds:
            for b in kinds:
                found = operators.binary(op, a, b)
                assert cuda_result(context, f, (a, b)) == (found and tuple(found)), (op, a, b)
    for op, f in UNARY.items():
        for a in kinds:
            found, want = operators.unary(op, a), cuda_result(context, f, (a,))
            assert (found and found.result) == (want and want[0]), (op, a)


@needs_numba_cuda
def test_types_of_math_are_those_of_numba_cuda():
    context, kinds = cuda_context(), [numba_type(n) for n in DTYPES]
    names = (*operators.UNARY_MATH, *operators.BINARY_MATH, *operators.PREDICATES, "frexp", "ldexp")
    for name in (n for n in names if hasattr(math, n)):
        for arguments in [(a,) for a in kinds] + [(a, b) for a in kinds for b in kinds]:
            found = operators.math_rule(name, arguments)
            want = cuda_result(context, getattr(math, name), arguments)
            assert (found and found.result) == (want and want[0]), (name, arguments)


# ---- values whose types are not known before ----------------------------------------------------


@pytest.mark.parametrize("op", [*SYMBOLS, *UNARY])
def test_operators_by_the_values_they_meet(op):
    """What is not typed gives the same as what is: a Python int counts as int64."""
    names = [n for n in ("bool", "int64", "float16", "float32", "float64")]
    for a in names:
        for b in names if op in SYMBOLS else [None]:
            kinds = [numba_type(n) for n in (a, b) if n]
            rule = operators.binary(op, *kinds) if b else operators.unary(op, *kinds)
            if rule is None or op == "Not":
                continue
            typed = dynamic.typed(op, *kinds)
            late = arithmetic.namespace()[f"_e_any_{op}"]
            for x in edges(a):
                for y in edges(b) if b else [None]:
                    if b and undefined(op, y, rule.result):
                        continue
                    args = [held(v) for v in (x, y) if v is not None]
                    got = late(*args)
                    assert same(got, typed(*args)), (x, y)
                    assert type(got) is type(typed(*args))


def test_untyped_operands_that_are_no_numbers():
    late = arithmetic.namespace()
    assert late["_e_any_Add"]((1, 2), (3,)) == (1, 2, 3)
    assert late["_e_any_Eq"]((1, 2), (1, 2)) is True


# ---- float16, which Numba's CPU target cannot compute with --------------------------------------


@pytest.mark.parametrize("op", ["Add", "Sub", "Mult", "Div", "Lt", "GtE", "Eq"])
def test_float16_rounds_after_each_operation(op):
    f = {**BINARY, **COMPARE}[op]
    for a, b in (("float16", "float16"), ("float16", "int8"), ("float32", "float16")):
        rule = operators.binary(op, numba_type(a), numba_type(b))
        ours = dynamic.typed(op, numba_type(a), numba_type(b))
        kind = np.dtype(str(rule.operands[0])).type
        for x in edges(a):
            for y in edges(b):
                got, want = ours(held(x), held(y)), f(kind(x), kind(y))
                assert is_of(got, rule.result) and same(got, want), (x, y)


# ---- minima and maxima --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pair",
    [("int8", "int8"), ("int32", "uint32"), ("int64", "uint64"), ("float32", "int32"),
     ("float32", "float32"), ("uint8", "float64")],
    ids="-".join,
)  # fmt: skip
def test_min_and_max(pair):
    text = "def row(x, y):\n    return (min(x, y), max(x, y), max(x + x, y), min(y, x, y))\n"
    kinds = [numba_type(p) for p in pair]
    compiled, results = table(text, *kinds)
    ours, _ = emulated(function(text), *kinds)
    for x in edges(pair[0]):
        for y in edges(pair[1]):
            if float(x) != float(x) or float(y) != float(y):
                continue  # CUDA has a rule of its own, below
            got = ours(held(x), held(y))
            for kind, g, w in zip(results, got, compiled(x, y), strict=True):
                if not isinstance(kind, types.Integer):
                    assert is_of(g, kind)
                assert g == w or abs(int(x)) >= 1 << 62, (x, y, g, w)


def test_max_of_floats_lets_a_nan_give_way():
    text = "def row(x, y):\n    return (max(x, y), min(x, y), max(x * x, y))\n"
    ours, _ = emulated(function(text), types.float32, types.float32)
    one, nan = np.float32(1), np.float32(math.nan)
    assert ours(one, nan) == (1, 1, 1) and ours(nan, one) == (1, 1, 1)
    mixed, _ = emulated(function(text), types.float32, types.int32)
    assert mixed(nan, 1)[0] != mixed(nan, 1)[0]  # Numba compares and keeps the first


def test_divmod_and_rounding_to_digits():
    text = "def row(x, y):\n    return (divmod(x, y), round(x, 2), round(x, -1))\n"
    for pair in (("float32", "float32"), ("float64", "int32")):
        kinds = [numba_type(p) for p in pair]
        compiled = njit(error_model="numpy")(function(text))
        ours, _ = emulated(function(text), *kinds)
        for x in edges(pair[0]):
            for y in edges(pair[1]):
                got, want = ours(held(x), held(y)), compiled(x, y)
                rounded = slice(None) if abs(x) < 1e15 else slice(0)  # CUDA's goes over int64
                for g, w in zip(got[0], want[0], strict=True):
                    assert same(g, w), (x, y, g, w)
                assert got[1:][rounded] == want[1:][rounded], x  # and loses the sign of zero
    whole, _ = emulated(function("def row(x, y):\n    return divmod(x, y)\n"), *[types.int64] * 2)
    assert whole(-7, 2) == (-4, 1) and whole(7, 0) == (0, 0)
    assert float_divmod(np.float32(7), np.float32(-2)) == (-4, -1)


# ---- functions of math --------------------------------------------------------------------------

PLACES = {  # where each function is tried, beside the edges
    "acosh": np.linspace(1, 50, 9),
    "gamma": np.linspace(0.1, 9, 9),
    "lgamma": np.linspace(0.1, 90, 9),
}


@pytest.mark.parametrize("name", ["float32", "float64"])
def test_math(name):
    """Against NumPy and Python in float64, rounded: within one unit in the last place."""
    kind, dtype = numba_type(name), np.dtype(name).type
    for function_name in sorted(operators.UNARY_MATH):
        if not hasattr(math, function_name):
            continue
        ours, _ = emulated(function(f"def f(x):\n    return math.{function_name}(x)\n"), kind)
        for x in map(dtype, PLACES.get(function_name, np.linspace(-0.95, 0.95, 9))):
            got = ours(x)
            try:
                want = dtype(getattr(math, function_name)(float(x)))
            except ValueError:
                assert got != got or x == 0, (function_name, x)  # log(0) is −∞
                continue
            assert is_of(got, kind)
            assert abs(got - want) <= np.spacing(abs(want)), (function_name, x, got, want)


def test_math_at_its_limits():
    ours, _ = emulated(
        function("def f(x):\n    return (math.exp(x), math.log(x), math.sqrt(x), math.gamma(x))\n"),
        types.float32,
    )
    assert ours(np.float32(1000))[0] == math.inf and ours(np.float32(0))[1] == -math.inf
    assert all(v != v for v in ours(np.float32(-1))[1:])
    integers, _ = emulated(function("def f(n):\n    return math.sqrt(n)\n"), types.int32)
    assert type(integers(2)) is np.float64 and integers(2) == math.sqrt(2)


def test_math_of_two_and_of_tuples():
    text = """def f(x, y):
    m, e = math.frexp(x)
    part, whole = math.modf(x)
    return (math.atan2(x, y), math.hypot(x, y), math.copysign(x, y), math.fmod(x, y),
            math.pow(x, y), math.ldexp(x, 3), m, e, part, whole, math.pow(x, int32(3)),
            math.isnan(x), math.isinf(x), math.isfinite(x))
"""
    ours, program = emulated(function(text), types.float32, types.float32)
    assert program.untyped == []
    x, y = np.float32(2.75), np.float32(-1.5)
    got = ours(x, y)
    want = (
        *(math.atan2(x, y), math.hypot(x, y), -2.75, math.fmod(x, y), 2.75**-1.5, 22.0),
        *(0.6875, 2, 0.75, 2.0, 2.75**3, False, False, True),
    )
    assert got == tuple(np.float32(w) if isinstance(w, float) else w for w in want)
    assert [type(g) for g in got[:7]] == [np.float32] * 7 and type(got[7]) is int


@pytest.mark.parametrize("name", ["float32", "float64"])
def test_numpy_functions_and_floors(name):
    text = "def f(x):\n    return (np.exp(x), np.sqrt(x), np.abs(x), math.floor(x), math.ceil(x))\n"
    ours, program = emulated(function(text), numba_type(name))
    dtype = np.dtype(name).type
    got = ours(dtype(2.5))
    assert program.untyped == []
    assert got == (np.exp(dtype(2.5)), np.sqrt(dtype(2.5)), dtype(2.5), dtype(2), dtype(3))
    assert {type(g) for g in got} == {dtype}  # on the GPU floor and ceil stay floats


def test_fused_multiply_add_rounds_once():
    from fractions import Fraction

    rng = np.random.default_rng(0)
    for scale in (1.0, 1e-20, 1e15):
        for _ in range(200):
            a, b = (np.float32(v) for v in rng.normal(size=2))
            c = np.float32(rng.normal() * scale)
            exact = Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c))
            got = Fraction(float(fma_float32(a, b, c)))
            around = [
                Fraction(float(np.nextafter(np.float32(got), np.float32(s)))) for s in (-9, 9)
            ]
            assert all(abs(exact - got) <= abs(exact - other) for other in around)
    # A tie that two roundings break the wrong way.
    a, b, c = np.float32(1 + 2**-12), np.float32(1 + 2**-12), np.float32(2**-60)
    assert fma_float32(a, b, c) == np.float32(1 + 2**-11 + 2**-23)
    assert np.float32(np.float64(a) * np.float64(b) + np.float64(c)) != fma_float32(a, b, c)
    assert fma_float64(np.float64(0.1), np.float64(10), np.float64(-1)) == 2.0**-54


# ---- what emitted code looks like ---------------------------------------------------------------


def emitted(text, *kinds):
    _, program = emulated(function(text), *kinds)
    return ast.unparse(program.trees[-1][0].body[-1])


def test_typed_expressions_cost_nothing():
    """Index arithmetic and float arithmetic stay plain operators: no call, no mask."""
    assert emitted("def f(i, j):\n    return i * 128 + j\n", I32, I32) == "return i * 128 + j"
    assert emitted("def f(x, y):\n    return x * y - x\n", F32, F32) == "return x * y - x"
    assert emitted("def f(i):\n    return uint32(i & 31)\n", types.int64) == "return i & 31"
    assert "&" in emitted("def f(i, j):\n    return uint32(i + j)\n", U32, U32)
    assert "&" in emitted("def f(i, j):\n    return i - j\n", U32, U32)
    text = emitted("def f(x):\n    return x * float32(0.5)\n", F32)
    assert text.startswith("return x * _e_k") and "(" not in text
    assert emitted("def f(x):\n    return float32(x)\n", F32) == "return x"


def test_chained_comparisons_compute_the_middle_once():
    text = "def f(x):\n    return 1 < abs(x) < 3\n"
    assert emitted(text, F32).count("abs") == 1
    ours, _ = emulated(function(text), F32)
    assert [bool(ours(np.float32(v))) for v in (-2, 0.5, 3)] == [True, False, False]


def test_operator_table_is_complete():
    assert set(SYMBOLS) | {"Pow", "MatMult"} == {*BINARY, *COMPARE}
    assert all(getattr(operator, f.__name__) is f for f in BINARY.values())
