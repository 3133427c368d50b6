"""Each gate catches the fault that is planted for it, and lets the sound twin pass."""

import pytest
from numba.core import types

from cuda_numba import ptx
from cuda_numba.gates import check_gates
from cuda_numba.inspect import Options, compile_kernel, has_compiler
from cuda_numba.namespace import cuda, float32, uint32
from cuda_numba.ptx.instruction import instruction

F32 = types.CPointer(types.float32)
SIGNATURE = (F32, F32, types.int32)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    if not has_compiler():
        pytest.skip("numba-cuda and libNVVM are not installed")
    monkeypatch.setenv("CUDA_NUMBA_CACHE", str(tmp_path))


def problems(fn, cc="sm_80", options=None, signature=SIGNATURE, **gates):
    options = options or Options()
    return check_gates(lambda: compile_kernel(fn, signature, cc, options), **gates)


def copy(x, y, n):
    i = cuda.grid(1)
    if i < n:
        y[i] = x[i]


def held(x, y, n):
    values = cuda.local.array(48, float32)
    for i in range(48):
        values[i] = x[i]
    cuda.syncthreads()
    for i in range(48):
        y[i] = values[47 - i] * values[(i * 7) % 48]


def looked_up(x, y, n):
    values = cuda.local.array(16, float32)
    for i in range(16):
        values[i] = x[i]
    for i in range(n):
        values[(i + n) & 15] = values[i & 15]
    y[0] = values[n & 15]


@pytest.mark.parametrize("cc", ["sm_75", "sm_80", "sm_89", "sm_90"])
def test_a_sound_kernel_has_no_problem(cc):
    assert problems(copy, cc, expect=("LDG.E", "STG.E")) == []
    assert problems(held, cc) == []
    assert check_gates(compile_kernel(copy, SIGNATURE, cc)) == []


def test_spills():
    narrow = Options(max_registers=24)
    (problem,) = problems(held, options=narrow)
    assert problem.startswith("held on sm_80: spills ") and "bytes of stores" in problem
    assert problems(held, options=narrow, max_spills=4096) == []


def test_local_memory():
    (problem,) = problems(looked_up)
    assert problem == "looked_up on sm_80: 64 bytes of local memory a thread"
    assert problems(looked_up, max_stack=64) == []


def test_registers():
    (problem,) = problems(held, max_registers=32)
    assert "registers a thread, at most 32 are allowed" in problem


def test_float64():
    def doubled(x, y, n):
        y[n] = x[n] * 0.1

    def halved(x, y, n):
        y[n] = x[n] * float32(0.1)

    (problem,) = problems(doubled)
    assert "float64 arithmetic: " in problem and "cvt.f64.f32" in problem
    assert problems(doubled, allow_float64=True) == [] == problems(halved)


def test_64_bit_division():
    def signed(x, y, n):
        y[cuda.grid(1) // n] = x[0]

    def unsigned(x, y, n):
        y[uint32(cuda.threadIdx.x) // uint32(n)] = x[0]

    def remainder(x, y, n):
        y[cuda.grid(1) % n] = x[0]

    for fn, kind in ((signed, "div.s64"), (remainder, "rem.s64")):
        (problem,) = problems(fn)
        assert "64-bit division: " in problem and kind in problem
        assert problems(fn, allow_division64=True) == []
    assert [p for p in problems(unsigned) if "division" in p and "div.u32" not in p] == []


def test_64_bit_division_that_only_the_machine_code_shows():
    divide = instruction("{ .reg .u64 q; div.u64 q, $1, $2; mov.u64 $0, q; }", "u64(u64, u64)",
                         pure=True, name="divide")(lambda a, b: a // b)  # fmt: skip

    def hidden(x, y, n):
        y[divide(cuda.threadIdx.x, n)] = x[0]

    (problem,) = problems(hidden)
    assert problem == "hidden on sm_80: 64-bit division: the code calls __cuda_sm20_div_u64"


def test_code_that_the_assembler_made_slow():
    grow = instruction("setmaxnreg.inc.sync.aligned.u32 40;", "void()", scope="thread",
                       cc=(9, 0, "a"), name="grow")(lambda thread: None)  # fmt: skip

    def loose(x, y, n):
        grow()
        y[n] = x[n]

    (problem,) = problems(loose, "sm_90")
    assert "C7508" in problem and "loose" in problem
    kept = compile_kernel(loose, SIGNATURE, "sm_90", strict=False)
    assert [p for p in check_gates(kept) if "C7508" in p]
    assert problems(loose, "sm_90", Options(launch_bounds=(128, 1))) == []


def test_missing_instructions():
    def copy_16_bytes(x, y, n):
        ptx.store_128(y, n, *ptx.load_128(x, n))

    def copy_4(x, y, n):
        for k in range(4):
            y[n + k] = x[n + k]

    wide = ("LDG.E.128", "STG.E.128")
    assert problems(copy_16_bytes, expect=wide) == []
    assert problems(copy_4, expect=wide) == [
        "copy_4 on sm_80: no LDG.E.128 in the machine code",
        "copy_4 on sm_80: no STG.E.128 in the machine code",
    ]
    assert problems(copy, expect=("HMMA",)) == ["copy on sm_80: no HMMA in the machine code"]


def test_several_problems_are_all_listed():
    def bad(x, y, n):
        values = cuda.local.array(16, float32)
        for i in range(16):
            values[i] = x[i] * 0.1
        for i in range(n):
            values[(i + n) & 15] = values[i & 15]
        y[cuda.grid(1) // n] = values[n & 15]

    found = problems(bad, expect=("LDG.E.128",))
    assert len(found) == 4 and all(p.startswith("bad on sm_80: ") for p in found)


@pytest.mark.parametrize("lto", [False, True])
def test_gates_look_at_the_code_that_runs(lto):
    """With lto=True the linked code is looked at: the same fault, the same answer."""

    def doubled(x, y, n):
        y[n] = x[n] * 0.1

    (problem,) = problems(doubled, "sm_90", Options(lto=lto))
    assert "float64" in problem
    assert problems(copy, "sm_90", Options(lto=lto), expect=("LDG.E",)) == []
