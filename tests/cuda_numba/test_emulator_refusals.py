"""What Numba CUDA does not compile, the emulator does not run: each case is put to both."""

import enum

import numpy as np
import pytest
from numba.core import types
from typed import function

from cuda_numba import emulate, jit
from cuda_numba.emulator.errors import UnsupportedSyntax
from cuda_numba.emulator.program import Program
from cuda_numba.emulator.refusals import ELEMENTS
from cuda_numba.namespace import HAS_NUMBA_CUDA, cuda, float32, int32

ARRAY, MATRIX = types.float32[::1], types.float32[:, ::1]
INTS, POINTER = types.int32[::1], types.CPointer(types.float32)


class Sizes(enum.IntEnum):
    FOUR = 4


class Holder:
    n = 4


NAMES = {
    "cuda": cuda, "float32": float32, "int32": int32, "np": np, "N": 8, "PAIR": (4, 8),
    "NARROW": np.int32(8), "Sizes": Sizes, "Holder": Holder, "TABLE": {"a": 1}, "LIST": [1, 2],
    "bare": lambda v: v + 1,
}  # fmt: skip


def made(body, parameters="x, v"):
    return function(f"def kernel({parameters}):\n    {body}\n", **NAMES)


def numba_accepts(fn, kinds, monkeypatch):
    """Whether numba-cuda compiles a kernel for an H100; no GPU is needed."""
    from numba.cuda import compile as compile_cuda
    from numba.cuda import dispatcher

    device = type("Device", (), {"compute_capability": (9, 0)})
    monkeypatch.setattr(dispatcher, "get_current_device", lambda: device)
    try:
        compile_cuda(fn, kinds, cc=(9, 0), device=False, abi="numba")
    except Exception:  # typing, lowering and LLVM each have their own
        return False
    return True


def agree(fn, kinds, right, monkeypatch, words=""):
    if HAS_NUMBA_CUDA:
        assert numba_accepts(fn, kinds, monkeypatch) == right
    if right:
        Program(fn, list(kinds), traced=False)
        return
    with pytest.raises(UnsupportedSyntax, match=words) as error:
        Program(fn, list(kinds), traced=False)
    assert "line 2" in str(error.value)


SHAPES = [  # what stands for the shape, and whether it is right for shared and for local arrays
    ("8", True), ("N", True), ("8 + 1", True), ("(N, 4)", True), ("PAIR", True), ("PAIR[1]", True),
    ("x.ndim", True), ("8 if N > 4 else 4", True), ("N + 1", False), ("N * 2", False),
    ("+N", False), ("(N, N + 1)", False), ("PAIR + (2,)", False), ("NARROW", False),
    ("x.shape[0]", False), ("len(PAIR)", False), ("min(N, 4)", False), ("int32(8)", False),
    ("8.0", False), ("True", False), ("[4, 4]", False), ("-1", False), ("(0, 4)", False),
    ("cuda.blockDim.x", False), ("Sizes.FOUR", False), ("Holder.n", False), ("v", False),
]  # fmt: skip


@pytest.mark.parametrize("space", ["shared", "local"])
@pytest.mark.parametrize("shape, right", SHAPES)
def test_shapes(space, shape, right, monkeypatch):
    kernel = made(f"s = cuda.{space}.array({shape}, float32); x[0] = s.size")
    agree(kernel, (ARRAY, types.int64), right, monkeypatch, "array: shape|neither a module")


def test_dynamic_memory_is_shared(monkeypatch):
    for shape in ("0", "(0,)"):
        for space, right in (("shared", True), ("local", False)):
            kernel = made(f"s = cuda.{space}.array({shape}, float32); x[0] = s.size")
            agree(kernel, (ARRAY, types.int64), right, monkeypatch, "sizes from 1")


VARIABLES = [
    ("n = 8; s = cuda.shared.array(n, float32); x[0] = s.size", True),
    ("n = N; s = cuda.shared.array((n, 4), float32); x[0] = s.size", True),
    ("n = (4, 8); s = cuda.shared.array(n[1], float32); x[0] = s.size", True),
    ("n = 8; s = cuda.shared.array(n, float32); n = n + 1; x[0] = s.size + n", True),
    ("n = 8 if v > 0 else 8; s = cuda.shared.array(n, float32); x[0] = s.size", True),
    ("n = 8 if v > 0 else 9; s = cuda.shared.array(n, float32); x[0] = s.size", False),
    ("n = N + 1; s = cuda.shared.array(n, float32); x[0] = s.size", False),
]


@pytest.mark.parametrize("body, right", VARIABLES)
def test_shapes_in_variables(body, right, monkeypatch):
    agree(made(body), (ARRAY, types.int64), right, monkeypatch, "is not known as the kernel is")


OPTIONS = [
    ("8, np.float32", True), ("8, 'float32'", True), ("8, x.dtype", True),
    ("8, float32, 16", True), ("8, float32, alignment=None", True),
    ("dtype=float32, shape=(2, 2)", True), ("8, float", False), ("8, int", False), ("8", False),
    ("8, float32, alignment=N + 8", False), ("8, float32, alignment=12", False),
    ("8, float32, alignment=4", False),
]  # fmt: skip


@pytest.mark.parametrize("given, right", OPTIONS)
def test_types_and_alignments(given, right, monkeypatch):
    kernel = made(f"s = cuda.shared.array({given}); x[0] = s.size")
    agree(kernel, (ARRAY, types.int64), right, monkeypatch, "dtype|alignment")


CALLS = {"cas": "(x, 0, v, v)", "compare_and_swap": "(x, v, v)"}
KINDS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
KINDS += ("float16", "float32", "float64")


@pytest.mark.parametrize("operation", ELEMENTS)
def test_types_of_atomics(operation, monkeypatch):
    kernel = made(f"cuda.atomic.{operation}{CALLS.get(operation, '(x, 0, v)')}")
    for name in KINDS:
        kind = getattr(types, name)
        right = name in ELEMENTS[operation]
        agree(kernel, (kind[::1], kind), right, monkeypatch, f"`x` holds {name}, allowed are")


ATOMICS = [
    ("add(x, 0, v)", ARRAY, True), ("add(x, (0, 1), v)", MATRIX, True),
    ("add(x[0], 0, v)", MATRIX, True), ("add(x, 0.0, v)", ARRAY, True),
    ("cas(x, 0, 1, 2)", INTS, True), ("add(x, 0, v)", POINTER, False),
    ("add(x, 0, v)", MATRIX, False), ("add(x, (0,), v)", ARRAY, False),
    ("add(x, 0)", ARRAY, False), ("add(x, 0, v, v)", ARRAY, False),
    ("add(ary=x, idx=0, val=v)", ARRAY, False),
    ("compare_and_swap(x, 0, 1)", types.int32[:, ::1], False),
]  # fmt: skip


@pytest.mark.parametrize("call, kind, right", ATOMICS)
def test_arguments_of_atomics(call, kind, right, monkeypatch):
    words = "is a pointer|is no index of one|takes 3 arguments|expected 1"
    agree(made(f"cuda.atomic.{call}"), (kind, types.float32), right, monkeypatch, words)


@pytest.mark.parametrize(
    "body, right, words",
    [
        ("x[0] = cuda.grid(1)", True, ""),
        ("x[0] = cuda.grid(N + 0)", False, "allowed are 1, 2 and 3"),
        ("x[0] = cuda.gridsize(4)", False, "allowed are 1, 2 and 3"),
        ("x[0] = bare(x[0])", False, "`bare` cannot be called"),
        ("x[0] = Holder.n", False, "neither a module nor a named tuple"),
        ("x[0] = TABLE['a']", False, "is a dict"),
        ("x[0] = LIST[0]", False, "is a list"),
    ],
)
def test_names_from_outside(body, right, words, monkeypatch):
    agree(made(body), (ARRAY, types.int64), right, monkeypatch, words)


# ---- lambdas and literals that go into device functions -----------------------------------------

one_more = jit(device=True)(lambda v: v + float32(1))
in_the_middle = [jit(device=True)(lambda v: v), jit(device=True)(lambda v: -v)]
negated = in_the_middle[1]


@jit(device=True)
def filled(n):
    s = cuda.shared.array(n, float32)
    s[n - 1] = float32(n)
    return s[n - 1] + s.size


def calls_a_lambda(x, n):
    x[0] = one_more(x[0])


def calls_one_of_two_lambdas(x, n):
    x[0] = negated(x[0])


def a_literal_goes_in(x, n):
    x[0] = filled(4) + filled(8)


def a_number_goes_in(x, n):
    x[0] = filled(n)


def test_a_lambda_can_be_a_device_function():
    x = np.float32([2])
    emulate(calls_a_lambda)[1, 1](x, 0)
    assert x[0] == 3
    with pytest.raises(UnsupportedSyntax, match="<lambda>.*write the function with `def`"):
        emulate(calls_one_of_two_lambdas)[1, 1](x, 0)


def test_a_literal_stays_one_in_a_device_function(monkeypatch):
    x = np.zeros(1, np.float32)
    emulate(a_literal_goes_in)[1, 1](x, 4)
    assert x[0] == 4 + 4 + 8 + 8
    with pytest.raises(UnsupportedSyntax, match="filled, line .*shape `n` is not known"):
        emulate(a_number_goes_in)[1, 1](x, 4)
