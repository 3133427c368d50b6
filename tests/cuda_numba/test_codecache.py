"""What a kernel's code depends on, and the code kept on disk under that key."""

import shutil
import sys
import types as python_types

import numpy as np
import pytest
from numba.core import types

from cuda_numba import build, codecache, fingerprint
from cuda_numba.inspect import Options, compile_kernel, has_compiler
from cuda_numba.namespace import cuda

POINTERS = (types.CPointer(types.float32),) * 2 + (types.int32,)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_NUMBA_CACHE", str(tmp_path / "kernels"))
    return tmp_path / "kernels"


@pytest.fixture
def compiler_here():
    if not has_compiler():
        pytest.skip("numba-cuda and libNVVM are not installed")


def make_scale(factor=2.0, helper=None):
    factor = np.float32(factor)

    def scale(x, y, n):
        i = cuda.grid(1)
        if i < n:
            y[i] = x[i] * factor if helper is None else helper(x[i])

    return scale


# ---- fingerprints and the cache


def fingerprint_of(fn, **options):
    return fingerprint.fingerprint(fn, **options)


def test_a_fingerprint_is_of_the_contents():
    assert fingerprint_of(make_scale(2.0)) == fingerprint_of(make_scale(2.0))
    assert fingerprint_of(make_scale(2.0)) != fingerprint_of(make_scale(2.5))

    def variant(body, **scope):
        exec(f"def f(x, n):\n    {body}", scope)
        return fingerprint_of(scope["f"])

    def helper(k):
        scope = {"K": k}
        exec("def h(v):\n    return v * K", scope)
        return scope["h"]

    same = variant("x[0] = h(n)", h=helper(2))
    assert same == variant("x[0] = h(n)", h=helper(2))
    assert same != variant("x[0] = h(n)", h=helper(3))  # the global of a function it calls
    assert same != variant("x[0] = h(n) + 0", h=helper(2))
    assert variant("x[0] = K", K=1) != variant("x[0] = K", K=1.0) != variant("x[0] = K", K=True)
    assert variant("x[0] = K[n]", K=(1, 2)) != variant("x[0] = K[n]", K=(1, 3))
    table = np.arange(4, dtype=np.float32)
    assert variant("x[0] = K[n]", K=table) != variant("x[0] = K[n]", K=table + 1)
    assert variant("x[0] = f32(n)", f32=types.float32) != variant("x[0] = f32(n)", f32=types.int32)
    assert variant("x[0] = K", K=1, unused=1) == variant("x[0] = K", K=1, unused=2)


def test_a_fingerprint_knows_recursion_modules_and_lines():
    from cuda_numba import ptx

    scope = {"ptx": ptx}
    exec("def a(n):\n    return b(n) + ptx.ex2(n)\ndef b(n):\n    return a(n)", scope)
    names = [name for name, _ in fingerprint.references(scope["a"])]
    assert names == ["b", "ptx.ex2"]
    first = fingerprint_of(scope["a"])
    scope["ptx"] = type(ptx)("ptx")
    scope["ptx"].ex2 = ptx.lg2
    assert fingerprint_of(scope["a"]) != first
    moved = {}
    exec("\n\ndef f(n):\n    return n", moved)
    here = {}
    exec("def f(n):\n    return n", here)
    assert fingerprint_of(moved["f"]) == fingerprint_of(here["f"])
    assert fingerprint_of(moved["f"], lines=True) != fingerprint_of(here["f"], lines=True)


def test_what_has_no_lasting_description_is_unknown():
    class Thing:
        pass

    for value in (Thing(), Thing, object()):
        scope = {"K": value}
        exec("def f(n):\n    return K", scope)
        with pytest.raises(fingerprint.Unknown):
            fingerprint_of(scope["f"])


def count_compilations(monkeypatch):
    calls = []
    real = build._compile
    monkeypatch.setattr(build, "_compile", lambda *a: calls.append(a) or real(*a))
    return calls


def test_code_is_kept_on_disk(compiler_here, own_cache, monkeypatch):
    calls = count_compilations(monkeypatch)
    first = compile_kernel(make_scale(), POINTERS, "sm_80")
    assert compile_kernel(fn := make_scale(), POINTERS, "sm_80") == first  # another function object
    assert compile_kernel(fn, POINTERS, (8, 0)) is compile_kernel(fn, POINTERS, "sm_80")
    assert len(calls) == 1
    (file,) = own_cache.iterdir()
    assert file.suffix == ".kernel"
    compile_kernel(make_scale(), POINTERS, "sm_89")
    compile_kernel(make_scale(), POINTERS, "sm_80", Options(fastmath=True))
    compile_kernel(make_scale(), (*POINTERS[:2], types.int64), "sm_80")
    compile_kernel(make_scale(4.0), POINTERS, "sm_80")
    assert len(calls) == 5 and len([*own_cache.iterdir()]) == 5
    monkeypatch.setattr(build, "identity", lambda: {"nvvm": "another"})
    compile_kernel(make_scale(), POINTERS, "sm_80")
    assert len(calls) == 6


def test_a_device_function_is_part_of_the_key(compiler_here, monkeypatch):
    calls = count_compilations(monkeypatch)

    def helper(k):
        @cuda.jit(device=True)
        def times(v):
            return v * k

        return times

    for k, expected in ((2, 1), (2, 1), (3, 2)):
        compile_kernel(make_scale(helper=helper(k)), POINTERS, "sm_80")
        assert len(calls) == expected


KERNEL = """
from cuda_numba import cuda, jit
import own_helpers
from own_helpers import shift

def make(k):
    @jit(pointers=True)
    def scale(x: "float32", y: "float32", n: "int32"):
        i = cuda.grid(1)
        if i < n:
            y[i] = shift(x[i]) * own_helpers.FACTOR * k
    return scale

kernel = make(3)
"""
ARRAYS = ("sm_80", ("float32[:]", "float32[:]", None))
HELPERS = """
from cuda_numba import jit
FACTOR = 5
@jit(device=True)
def plus(v):
    return v + 7
@jit(device=True)
def shift(v):
    return plus(v) - 1
"""


def modules_made(kernel, helpers, monkeypatch):
    """The kernel of two modules' sources, as a process finds them."""
    for name, text in (("own_helpers", helpers), ("own_kernel", kernel)):
        module = python_types.ModuleType(name)
        monkeypatch.setitem(sys.modules, name, module)
        exec(compile(text, f"{name}.py", "exec"), vars(module))
    return module.kernel


@pytest.mark.parametrize(
    ("change", "by"),
    [
        ("make(3)", "make(4)"),  # a constant in a closure
        ("FACTOR = 5", "FACTOR = 6"),  # of another module
        ("v + 7", "v + 8"),  # a function that a device function of another module calls
        ("plus(v) - 1", "plus(v) * 1"),  # the device function
        ('n: "int32"', 'n: "int64"'),  # an annotation
        ("i < n", "i <= n"),
        ("pointers=True", "pointers=True, fastmath=True"),
        ("import own_helpers\n", "# a comment\nimport own_helpers\n"),  # changes nothing
    ],
)
def test_the_cache_is_not_fooled(change, by, compiler_here, own_cache, monkeypatch):
    calls = count_compilations(monkeypatch)
    modules_made(KERNEL, HELPERS, monkeypatch).ptx(*ARRAYS)
    modules_made(KERNEL, HELPERS, monkeypatch).ptx(*ARRAYS)
    assert len(calls) == 1  # unchanged sources find the code
    changed = [text.replace(change, by) for text in (KERNEL, HELPERS)]
    assert changed != [KERNEL, HELPERS]
    found = modules_made(*changed, monkeypatch).code(*ARRAYS)
    assert len(calls) == (1 if by.startswith("#") else 2)
    shutil.rmtree(own_cache)
    assert modules_made(*changed, monkeypatch).code(*ARRAYS).cubin.code == found.cubin.code


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "foreign"])
def test_damaged_files_are_made_anew(damage, compiler_here, own_cache, monkeypatch):
    calls = count_compilations(monkeypatch)
    good = compile_kernel(make_scale(), POINTERS, "sm_80")
    (file,) = own_cache.iterdir()
    data = file.read_bytes()
    key = file.name.removesuffix(codecache.SUFFIX)
    if damage == "foreign":
        codecache.write(key, {"something": "else"}, b"code")
    else:
        bad = {"cut": data[:-9], "flipped": data[:-9] + b"\1" + data[-8:], "empty": b""}[damage]
        file.write_bytes(bad)
        assert codecache.read(key) is None
    again = compile_kernel(make_scale(), POINTERS, "sm_80")
    assert len(calls) == 2 and again.cubin.code == good.cubin.code
    assert file.read_bytes() == data and len([*own_cache.iterdir()]) == 1


def test_a_folder_that_cannot_be_written_is_warned_of_once(
    compiler_here, own_cache, monkeypatch, recwarn
):
    monkeypatch.setattr(codecache, "_warned", False)
    own_cache.write_text("a file where the folder should be")
    with pytest.warns(RuntimeWarning, match="compiled kernels are not kept .*CUDA_NUMBA_CACHE"):
        compile_kernel(make_scale(), POINTERS, "sm_80")
    assert compile_kernel(make_scale(), POINTERS, "sm_80").cubin.code  # no second warning


def test_unknown_objects_keep_code_off_the_disk(compiler_here, own_cache, monkeypatch):
    calls = count_compilations(monkeypatch)

    def unknown(*_, **__):
        raise fingerprint.Unknown("an object")

    monkeypatch.setattr(build, "fingerprint", unknown)
    for _ in range(2):
        compile_kernel(make_scale(), POINTERS, "sm_80")
    assert len(calls) == 2 and not own_cache.exists()


def test_the_cache_folder(monkeypatch, tmp_path):
    assert codecache.cache_folder() == tmp_path / "kernels"
    monkeypatch.delenv("CUDA_NUMBA_CACHE")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert codecache.cache_folder() == tmp_path / "xdg" / "cuda_numba"
