"""Inferred types against those that Numba CUDA gives, and what the emulator makes of them."""

import ast
import math

import numpy as np
import pytest
from numba.core import types
from typed import emulated, function, inferred, is_of, variables

from cuda_numba import emulate, jit, ptx
from cuda_numba.emulator import intervals
from cuda_numba.namespace import HAS_NUMBA_CUDA, cuda, float32, int32, uint8, uint32, uint64

I32, I64, U32, U64 = types.int32, types.int64, types.uint32, types.uint64
F32, F64 = types.float32, types.float64
ARRAY, MATRIX = types.float32[::1], types.float32[:, ::1]
WIDTH, SCALE, PAIR = 4, 2.0, (1, 2.5)


# ---- whole kernels ------------------------------------------------------------------------------


def arithmetic_of_all_kinds(x, y, n):
    i = cuda.grid(1)
    s = 0
    for j in range(n):
        s += x[j]
    t = float32(0)
    m = 0
    while m < n:
        t += x[m] * float32(2)
        m += 1
    if WIDTH == 4:
        v = 1
    else:
        v = 1.5
    w = v
    q = uint32(3)
    q = q + 1
    r = q << 2
    b = r > 5
    c = x[0] if b else 1
    d = max(x[0], t)
    e = min(i, 3)
    g = abs(-i)
    h = round(t)
    a1 = x[0] ** 2
    a2 = i**2
    a3 = x[0] / 3
    a4 = i / 2
    a5 = i // 2
    a6 = math.exp(x[0])
    a7 = math.floor(x[0])
    a8 = math.pow(x[0], 2)
    a9 = math.sqrt(i)
    ii, ff, bb = int(x[0]), float(i), bool(i)
    p, o = divmod(i, 3)
    mixed = (i, x[0], WIDTH)
    m0, m1, m2 = mixed
    s0, nd, size = x.shape[0], x.ndim, x.size
    k = 2.5 * SCALE
    neg, inv, no = -q, ~q, not b
    part = PAIR[1]
    for c1 in range(0, n, 2):
        for c2 in range(c1):
            y[c2] = s + t + w
    for c3 in range(int32(5)):
        y[c3] = c3
    for c4 in range(uint32(5)):
        y[c4] = c4
    z = s + t + w + c + d + e + g + h + a1 + a2 + a3 + a4 + a5 + a6 + a7 + a8 + a9 + ii + ff + bb
    y[0] = z + p + o + m0 + m1 + m2 + s0 + nd + size + k + neg + inv + no + part


def the_cuda_namespace(x, y, n):
    local = cuda.local.array(4, float32)
    tile = cuda.shared.array((4, 4), dtype=uint8)
    row = tile[0]
    one = tile[0, 0] + 1
    tx, lane, size = cuda.threadIdx.x, cuda.laneid, cuda.warpsize
    gx, gy = cuda.grid(2)
    step = cuda.gridsize(1)
    before = cuda.atomic.add(y, 0, float32(1))
    ballot = cuda.ballot_sync(0xFFFFFFFF, tx > 3)
    some = cuda.any_sync(-1, tx > 3)
    value = cuda.shfl_xor_sync(-1, x[0], 1)
    count = cuda.syncthreads_count(1)
    active, lower = cuda.activemask(), cuda.lanemask_lt()
    same = cuda.match_any_sync(-1, tx)
    q = uint32(tx)
    bits, zeros, first, turned = cuda.popc(q), cuda.clz(gx), cuda.ffs(gx), cuda.brev(q)
    fused, root = cuda.fma(x[0], x[1], x[2]), cuda.cbrt(x[0])
    chosen = cuda.selp(some, gx, gy)
    tail = x[1:]
    y[0] = local[0] + row[0] + one + lane + size + step + before + ballot + value + count + chosen
    y[1] = active + lower + same + bits + zeros + first + turned + fused + root + tail[0] + n


def flow(x, n, z):
    total = 0
    for i in range(n):
        if i % 2 == 0:
            total = total + x[i]
        else:
            continue
        if total > 10:
            break
    kept = total
    i = 3
    i = 1.5
    last = i
    phase = 0
    for _ in range(8):
        phase ^= 1
    stage = uint32(0)
    while True:
        stage = stage + uint32(1)
        if stage > 5:
            break
    w = z
    w = w * 2
    h = uint64(5) * uint64(0x9E3779B97F4A7C15)
    h = h ^ (h >> 33)
    more = h + 1
    x[0] = kept + last + phase + stage + w + h + more


def halves(x, y, n):
    a, b = x[0], x[1]
    c, d, e, f = a + b, a * 2, a * 2.0, a * float32(1)
    g, h, i, j, k = a / b, -a, abs(a), a < b, max(a, b)
    y[0] = c + d + e + f + g + h + i + j + k + n


def a_counter_that_turns_signed(x, n):
    s = uint32(0)
    for _ in range(n):
        for _ in range(n):
            t = s >> 2
            k = s * uint32(3)
        s = s + 1
    p = uint32(1) if n > 3 else s
    q = p + k
    z = -s
    y = max(s, p)
    w = uint32(0)
    while w < n:
        v = w >> 2
        w = w + 1
    u = w | w
    x[0] = t + q + z + y + u + v


HALF = types.float16[::1]
KERNELS = [
    (arithmetic_of_all_kinds, (ARRAY, ARRAY, I64)),
    (arithmetic_of_all_kinds, (ARRAY, ARRAY, I32)),
    (the_cuda_namespace, (ARRAY, ARRAY, I32)),
    (flow, (ARRAY, I32, F32)),
    (flow, (types.float64[::1], I64, types.uint8)),
    (halves, (HALF, HALF, I32)),
    (a_counter_that_turns_signed, (ARRAY, I64)),
    (a_counter_that_turns_signed, (ARRAY, I32)),
]


def numba_cuda_types(fn, kinds, monkeypatch):
    """Name → types of its versions, as Numba CUDA compiles the kernel (no GPU is needed)."""
    from numba.cuda import dispatcher
    from numba.cuda.compiler import compile_cuda

    device = type("Device", (), {"compute_capability": (9, 0)})
    monkeypatch.setattr(dispatcher, "get_current_device", lambda: device)
    found = compile_cuda(fn, types.void, kinds, debug=False, lineinfo=False, cc=(9, 0))
    out = {}
    for name, kind in found.type_annotation.typemap.items():
        if not name.startswith(("$", "arg.")):
            out.setdefault(name.partition(".")[0], set()).add(types.unliteral(kind))
    return out


@pytest.mark.skipif(not HAS_NUMBA_CUDA, reason="numba-cuda is not installed")
@pytest.mark.parametrize("fn, kinds", KERNELS)
def test_variables_have_the_types_of_numba_cuda(fn, kinds, monkeypatch):
    want = numba_cuda_types(fn, kinds, monkeypatch)
    tree, found = inferred(fn, *kinds)
    got = variables(tree, found)
    assert found.untyped == []
    assert len(got) > 5 and {n for n in got if n in want} == set(got)
    for name, seen in got.items():
        assert seen <= want[name], name


@pytest.mark.parametrize("fn, kinds", KERNELS)
def test_a_kernel_is_typed_without_numba_cuda(fn, kinds):
    _, found = inferred(fn, *kinds)
    assert found.untyped == [] and found.result == types.none


# ---- variables ----------------------------------------------------------------------------------


def run(text, kinds, *args, **names):
    fn, program = emulated(function(text, **names), *kinds)
    assert program.untyped == []
    return fn(*args)


def test_a_variable_that_becomes_a_float_in_a_loop():
    text = """
def f(x, n):
    s = 0
    for i in range(n):
        s += x
    return s
"""
    assert type(run(text, (F32, I64), np.float32(0.1), 0)) is np.float64
    assert run(text, (F32, I64), np.float32(0.1), 3) == 3 * np.float64(np.float32(0.1))


def test_the_first_value_is_cast_where_it_is_assigned():
    """A sum that starts as an integer costs nothing in the loop."""
    text = "def f(x, n):\n    s = 0\n    for i in range(n):\n        s += x\n    return s\n"
    _, program = emulated(function(text), F32, I64)
    first, loop, *_ = program.trees[-1][0].body
    assert ast.unparse(first).startswith("s = _e_k")
    assert ast.unparse(loop.body[0]) == "s = s + x"


def test_assignments_of_two_types_meet_behind_a_branch():
    text = """
def f(x, c):
    if c > 0:
        y = 1
    else:
        y = x
    return (y, y / 3)
"""
    for c in (1, -1):
        y, third = run(text, (F32, I64), np.float32(1), c)
        assert type(y) is np.float64 and y == 1
        assert type(third) is np.float64 and third == np.float64(1) / 3


def test_each_assignment_has_a_type_of_its_own():
    """As in Numba's single-assignment form: 7 // 2 is done on integers, before x is a float."""
    text = """
def f(a):
    x = 7
    y = x // 2
    while y < 5:
        x = x + 0.5
        y = y + 1
    return (y, x)
"""
    y, x = run(text, (I64,), 0)
    assert (y, type(y)) == (5, int) and (x, type(x)) == (8.0, np.float64)


def test_a_type_that_was_given_is_not_taken_back():
    """uint32 + 1 is an int64. So s is first a uint32, then an int64, and what is computed from it
    in between has a type for both, float64: Numba does so too, and the report says it."""
    text = """
def f(n):
    s = uint32(0)
    for i in range(n):
        s = s + 1
    return s >> 2
"""
    got = run(text, (I64,), 9)
    assert (got, type(got)) == (2.0, np.float64)
    assert noted(text, I64)[0] == ["s >> 2"]
    got = run(text.replace("s + 1", "uint32(s + 1)"), (I64,), 9)
    assert (got, type(got)) == (2, int)


def test_a_use_before_and_after_casts_where_it_must():
    text = """
def f(x):
    a = 3
    b = a // 2
    for i in range(2):
        c = a / 2
        a = a * x
    return (b, c, a)
"""
    b, c, a = run(text, (F32,), np.float32(1.5))
    assert (b, type(b)) == (1, int)
    assert (c, type(c)) == (2.25, np.float64) and (a, type(a)) == (6.75, np.float64)


def test_a_function_returns_one_type():
    text = """
def f(x):
    if x > 0:
        return 1
    return x
"""
    assert type(run(text, (F32,), np.float32(2))) is np.float64


def test_tuples_and_unpacking():
    text = """
def f(n, x):
    t = (n, x, (n, 1.5))
    a, b, (c, d) = t
    e = t[2][1] + t[0]
    return (a, b, c, d, e)
"""
    a, b, c, d, e = run(text, (I32, F32), 3, np.float32(2))
    assert (a, b, c, d, e) == (3, 2, 3, 1.5, 4.5)
    assert [type(v) for v in (b, d, e)] == [np.float32, np.float64, np.float64]


def test_and_or_and_choices():
    text = """
def f(n, x):
    return (n and x, n or x, x if n else 0, 1 < n < 5, not x)
"""
    first, second, third, fourth, fifth = run(text, (I64, F32), 0, np.float32(2))
    assert [type(v) for v in (first, second, third)] == [np.float64] * 3
    assert (first, second, third, bool(fourth), fifth) == (0, 2, 0, False, False)


def test_a_choice_between_constants_is_made_once():
    text = """
def f(x):
    if FLAG:
        y = x
    else:
        y = 1.5
    z = y if WIDTH == 4 else "none"
    return z
"""
    assert type(run(text, (F32,), np.float32(1), FLAG=True, WIDTH=4)) is np.float32
    text = text.replace("if FLAG:", "if FLAG and not WIDTH > 4:")
    assert type(run(text, (F32,), np.float32(1), FLAG=True, WIDTH=4)) is np.float32
    tree, found = inferred(function(text, FLAG=True, WIDTH=4), F32)
    branch = next(n for n in ast.walk(tree) if isinstance(n, ast.If))
    assert found.reached(branch.body[0]) and not found.reached(branch.orelse[0])


def test_none_is_known_before_the_kernel_runs():
    text = """
def f(x, w):
    if w is None:
        return x
    return x * w
"""
    assert run(text, (F32, types.none), np.float32(3), None) == 3
    assert run(text, (F32, F32), np.float32(3), np.float32(2)) == 6


# ---- constants from outside ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "value, kind",
    [(3, I64), (1 << 63, U64), (2.5, F64), (True, types.boolean), (np.float32(2), F32),
     (np.uint8(7), types.uint8), ((1, 2.5), types.Tuple((I64, F64))), (math.pi, F64)],
)  # fmt: skip
def test_constants_have_their_numba_types(value, kind):
    _, found = inferred(function("def f():\n    return VALUE\n", VALUE=value))
    assert found.result == kind


def test_numpy_constants_compute_in_their_type():
    got = run("def f(x):\n    return x * HALF + float32(LOG)\n", (F32,), np.float32(3),
              HALF=np.float32(0.5), LOG=math.log(2))  # fmt: skip
    assert type(got) is np.float32 and got == np.float32(1.5) + np.float32(math.log(2))


# ---- device functions and instructions ----------------------------------------------------------


@jit(device=True)
def twice(v):
    return v + v


@jit(device=True)
def mixed_result(v, n):
    if n > 2:
        return v
    return n


def test_device_functions():
    text = "def f(x, n):\n    return (twice(x), twice(n), mixed_result(x, n))\n"
    names = {"twice": twice, "mixed_result": mixed_result}
    got = run(text, (F32, I32), np.float32(1.5), 2, **names)
    assert got == (3, 4, 2)
    assert [type(v) for v in got] == [np.float32, int, np.float64]


def test_instructions():
    text = """
def f(x, n):
    a = ptx.ex2(x)
    b = ptx.pack_bf16(a, x)
    lo, hi = ptx.unpack_bf16(b)
    return (a, b, lo, hi, b >> uint32(16))
"""
    tree, found = inferred(function(text, ptx=ptx), F32, I32)
    seen = variables(tree, found)
    assert seen["a"] == {F32} and seen["b"] == {U32} and seen["lo"] == {F32}
    a, b, lo, hi, top = run(text, (F32, I32), np.float32(1), 1, ptx=ptx)
    assert (a, lo, hi, top) == (2, 2, 1, b >> 16)


def loads(x, y, p):
    y[0] = ptx.load(x, 0) + p[1]


def test_elements_of_arrays_and_pointers():
    kinds = (types.uint16[::1], ARRAY, types.CPointer(types.float32))
    tree, found = inferred(loads, *kinds)
    total = next(n for n in ast.walk(tree) if isinstance(n, ast.BinOp))
    assert found.of(total) == F32
    store = next(n for n in ast.walk(tree) if isinstance(n, ast.Assign)).targets[0]
    assert found.access(store) == "element" and found.element_type(store) == F32


def views(x, out):
    row = x[1]
    part = x[:, 0]
    inner = row[1:3]
    out[0] = row[0] + part[1] + inner[0] + x[1, 1]


def test_views():
    tree, found = inferred(views, MATRIX, ARRAY)
    kinds = variables(tree, found)
    assert {k.ndim for n in ("row", "part", "inner") for k in kinds[n]} == {1}
    x, out = np.arange(12, dtype=np.float32).reshape(3, 4), np.zeros(1, np.float32)
    emulate(views)[1, 1](x, out)
    assert out[0] == x[1, 0] + x[1, 0] + x[1, 1] + x[1, 1]


# ---- what cannot be typed -----------------------------------------------------------------------


def test_what_is_not_typed_is_named_and_still_runs():
    text = """
def f(x, n):
    a = x
    b = a + n
    return b * 2
"""
    _, found = inferred(function(text), None, I64)
    assert found.result is None and found.untyped == []  # the cause is the argument
    fn, _ = emulated(function(text), None, I64)
    assert fn(np.float32(1), 2) == 6 and type(fn(np.float32(1), 2)) is np.float64
    assert fn(3, 4) == 14

    text = "def f(x, n):\n    if n > 1:\n        y = x\n    else:\n        y = n\n    return y\n"
    _, found = inferred(function(text), ARRAY, I64)
    assert found.untyped == [(6, "y")]


# ---- bounds -------------------------------------------------------------------------------------


def bounds_of(text, name, *kinds, **options):
    tree, found = inferred(function(text), *kinds, **options)
    reads = [n for n in ast.walk(tree) if isinstance(n, ast.Name) and n.id == name
             and isinstance(n.ctx, ast.Load)]  # fmt: skip
    return found.value(reads[-1]).bounds


def test_bounds_of_loops_and_branches():
    text = "def f(n):\n    for i in range(2, 10, 3):\n        j = i * 4\n        k = j\n"
    assert bounds_of(text, "j", I64) == (8, 36)
    text = "def f(i, n):\n    if 0 <= i < n:\n        j = i\n        k = j\n"
    assert bounds_of(text, "j", I32, types.uint8) == (0, 254)
    text = "def f(i, n):\n    if i <= n and n <= i:\n        j = i\n        k = j\n"
    assert bounds_of(text, "j", I32, types.uint8) == (0, 255)
    text = "def f(n):\n    i = 0\n    while i < 100:\n        j = i\n        i = i + 1\n    k = j\n"
    assert bounds_of(text, "j", I64) == (0, 99)
    text = "def f(n):\n    i = 0\n    while n > i:\n        i = i * 3 + 1\n    k = i\n    m = k\n"
    assert bounds_of(text, "k", I64) == (0, (1 << 63) - 1)
    text = "def f(n):\n    i = n\n    k = i\n"
    assert bounds_of(text, "i", I64, bounds={"n": (0, 50)}) == (0, 50)


RNG = np.random.default_rng(1)


@pytest.mark.parametrize("op", sorted(intervals.OPERATIONS))
def test_bounds_hold_every_result(op):
    from cuda_numba.emulator.operators import BINARY

    for _ in range(300):
        a, b = (sorted(map(int, RNG.integers(-40, 40, 2))) for _ in range(2))
        if "Shift" in op:
            b = [abs(v) % 20 for v in b]
            b.sort()
        found = intervals.binary(op, tuple(a), tuple(b))
        for x in range(a[0], a[1] + 1, 3):
            for y in range(b[0], b[1] + 1, 3):
                zero = op in ("FloorDiv", "Mod") and y == 0
                value = 0 if zero else BINARY[op](x, y)
                assert found[0] <= value <= found[1], (x, y, found)


# ---- notes for the report -----------------------------------------------------------------------


def noted(text, *kinds, **names):
    _, found = inferred(function(text, **names), *kinds)
    sort = lambda nodes: sorted(ast.unparse(n) for n in nodes)  # noqa: E731
    return sort(found.promoted), sort(found.long)


def test_promotions_are_those_nobody_wrote():
    text = """
def f(x, d, n, s):
    a = x * 2.0
    b = x * float64(2)
    c = d * 2.0
    e = n / 2
    g = x * n
    h = x > 0.5
    i = x > 0.1
    j = a + x
    k = float32(2) * x
    l = math.sqrt(n)
    m = s * x
    o = 2.0 * 3
"""
    promoted, _ = noted(text, F32, types.float64, I64, F64, np=np)
    # d is an argument: a float64 that was handed over mixes with nothing narrower there.
    assert promoted == ["a + x", "math.sqrt(n)", "n / 2", "s * x", "x * 2.0", "x * n", "x > 0.1"]


def test_float64_arrays_are_written():
    assert noted("def f(x, y):\n    return x[0] * y[0]\n", ARRAY, types.float64[::1])[0] == []


def test_long_products_in_loops():
    text = """
def f(n, m, q):
    a = n * m
    for i in range(n):
        b = i * m
        c = i * 4
        d = i // m
        e = i % 8
        g = q * q
"""
    assert noted(text, I64, I64, I32)[1] == ["i * m", "i // m"]


@pytest.mark.parametrize(
    "text, want",
    [("x * y + x", {"float32": 2}), ("-x", {"float32": 1}), ("n * 2 + n", {"int": 2}),
     ("math.exp(x)", {"float32": 1}), ("max(x, y, x)", {"float32": 2}), ("x < y", {}),
     ("cuda.fma(x, y, x)", {"float32": 2}), ("float32(n)", {}), ("2.0 * 3.0", {}),
     ("x * 2.0", {"float64": 1}), ("x if n else y", {}), ("abs(x) / y", {"float32": 2})],
)  # fmt: skip
def test_operations_are_counted(text, want):
    fn = function(f"def f(x, y, n):\n    return {text}\n", cuda=cuda)
    tree, found = inferred(fn, F32, F32, I64)
    total = {}
    for node in ast.walk(tree):
        for kind, n in found.flops(node).items():
            total[kind] = total.get(kind, 0) + n
    assert total == want


# ---- programs, against njit ---------------------------------------------------------------------

PROGRAMS = {
    "hash": """
def f(n, x):
    h = uint32(2166136261)
    for i in range(n):
        h = uint32((h ^ uint32(i)) * uint32(16777619))
        h ^= h >> uint32(13)
    return h
""",
    "generator": """
def f(n, x):
    s = uint64(12345)
    t = 0
    for i in range(n):
        s = s * uint64(6364136223846793005) + uint64(1442695040888963407)
        t += int64(s >> uint64(40)) - int32(s)
    return t
""",
    "mixed": """
def f(n, x):
    a = 0
    b = uint64(7)
    for i in range(n):
        if i % 3 == 1:
            a += x
        elif i % 3 == 2:
            a -= i // 2
        else:
            b = b * uint64(3) - uint64(i)
    return a + b % uint64(1000)
""",
    "floats": """
def f(n, x):
    y = float32(0)
    z = x
    for i in range(n):
        y = y * x + float32(i)
        z = z / float32(3) - y % float32(2)
    return y + z
""",
    "digits": """
def f(n, x):
    c = 0
    m = n * 12345
    while m > 0:
        d = m % 10
        c = c * 3 + (d if d > 4 else -d)
        m //= 10
    return c
""",
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_give_what_njit_gives(name):
    from numba import njit

    compiled = njit(error_model="numpy")(function(PROGRAMS[name]))
    compiled.compile((I64, F32))
    kind = compiled.nopython_signatures[0].return_type
    ours, program = emulated(function(PROGRAMS[name]), I64, F32)
    assert program.untyped == []
    for n in (0, 1, 7, 40):
        got, want = ours(n, np.float32(0.75)), compiled(n, np.float32(0.75))
        assert is_of(got, kind) and got == want, (n, got, want)


def sums(x, out, n):
    i = cuda.grid(1)
    total = 0
    for j in range(n):
        total += x[j] * i
    out[i] = total


def test_integer_and_float_arrays_are_stored_as_numba_casts():
    for name in ("int8", "uint8", "int32", "int64", "float32", "float64"):
        x, out = np.arange(6).astype(name), np.zeros(4, name)
        emulate(sums)[2, 2](x, out, 6)
        want = np.array([x.astype(np.float64).sum() * i for i in range(4)])
        assert np.array_equal(out, want.astype(np.int64).astype(name)), name
