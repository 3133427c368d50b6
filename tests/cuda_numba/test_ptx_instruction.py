import pickle
import subprocess
import sys

import numpy as np
import pytest
from ptx_cases import needs_compiler
from ptx_cases_arithmetic import CASES as ARITHMETIC
from ptx_cases_convert import CASES as CONVERT
from ptx_cases_matrix import CASES as MATRIX
from ptx_cases_memory import CASES as MEMORY

from cuda_numba import ptx
from cuda_numba.namespace import cuda, float32, uint32
from cuda_numba.ptx.instruction import Instruction, instruction, parse_signature

OWN = ("arithmetic", "atomic", "convert", "flag", "matrix", "memory", "words")
STEPS = 5


def compiled(kernel, *signature, cc=(8, 0), device=False):
    needs_compiler()
    text, _ = cuda.compile(kernel, signature, cc=cc, device=device, abi="numba")
    return text


def pointer(dtype="float32"):
    from numba import types

    return types.CPointer(getattr(types, dtype))


def test_every_instruction_has_a_case():
    covered = {
        name for case in (*ARITHMETIC, *CONVERT, *MATRIX, *MEMORY) for name in case.instructions
    }
    mine = {n for n, i in ptx.instructions().items() if i.__module__.split(".")[-1] in OWN}
    assert mine == covered


def test_every_instruction_is_described():
    for name, ins in ptx.instructions().items():
        assert ins.name == name and getattr(ptx, name) is ins
        assert ins.__doc__ and ins.__doc__.strip()[-1] in ".:", name
        assert pickle.loads(pickle.dumps(ins)) is ins
        if ins.pure:
            assert not ins.memory
        if isinstance(ins.text, str) and (".sync" in ins.text or ".aligned" in ins.text):
            assert ins.convergent


def test_signatures():
    assert parse_signature("u32x4(array, index)") == (
        ("u32", 4),
        [("array", None), ("index", None)],
    )
    assert parse_signature("void()") == (("void", None), [])
    for wrong in ("f16(f32)", "u32x(f32)", "u32 f32", "u32(f32, float)"):
        with pytest.raises(ValueError, match="signature"):
            parse_signature(wrong)


def test_arguments_are_cast_as_the_signature_says():
    ins = instruction("t", "u32(u8, s32, u64, f32, pred, f32x2, index)")(lambda t, *a: 0)
    got = ins.prepare((-1, 2**31, -1, 0.1, 2, (1, 2), np.int64(3)))
    assert got == (255, -(2**31), 2**64 - 1, np.float32(0.1), True, (1, 2), 3)
    assert type(got[3]) is np.float32 and type(got[5][0]) is np.float32 and type(got[6]) is int
    with pytest.raises(TypeError, match="takes 7 arguments.*given 1"):
        ins.prepare((1,))


def test_outside_a_kernel():
    with pytest.raises(TypeError, match="ptx.load is an instruction: it runs inside a kernel only"):
        ptx.load(np.zeros(1, np.float32), 0)
    with pytest.raises(TypeError, match="ptx.load needs a thread"):
        ptx.load.evaluate(np.zeros(1, np.float32), 0)
    assert ptx.fma.evaluate(2, 3, 4) == 10


@pytest.mark.parametrize(
    "order",
    [
        "from cuda_numba import ptx; import numba.cuda",
        "import numba.cuda; from cuda_numba import ptx",
    ],
)
def test_plain_numba_in_either_order(order):
    needs_compiler()
    code = f"""{order}
from numba import cuda, types
def kernel(x):
    x[0] = ptx.ex2(x[0])
p, _ = cuda.compile(kernel, (types.float32[::1],), cc=(8, 0), device=False, abi="numba")
assert "ex2.approx.ftz.f32" in p
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_typed_without_numba_cuda():
    """Where numba-cuda is absent, instructions still import, evaluate and have types."""
    code = """
import sys
sys.modules["numba.cuda"] = None
sys.modules["numba_cuda"] = None
from cuda_numba import ptx
from numba.core.registry import cpu_target
from numba import types
context = cpu_target.typing_context
def typed(ins, *args):
    return str(context.resolve_function_type(context.resolve_value_type(ins), args, {}).return_type)
assert typed(ptx.ex2, types.int64) == "float32"
assert typed(ptx.load_128, types.uint16[::1], types.int32) == "UniTuple(uint32 x 4)"
assert typed(ptx.atomic_add, types.uint64[::1], types.int32, types.int64) == "uint64"
assert ptx.ex2.evaluate(3) == 8
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_importing_does_not_import_numba_cuda():
    code = """
import sys
from cuda_numba.ptx import instruction
assert "numba.cuda" not in sys.modules and "numba_cuda" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


load = ptx.load


def test_as_attribute_global_and_closure():
    store = ptx.store

    def kernel(x):
        store(x, 0, ptx.ex2(load(x, 1)))

    text = compiled(kernel, pointer())
    assert "ex2.approx.ftz.f32" in text and "ld.global.f32" in text and "st.global.f32" in text


WRONG = [
    (lambda x: ptx.load(x), "float32", "takes 2 positional arguments.*it was given 1"),
    (lambda x: ptx.load(x, 1.5), "float32", "argument 2 of ptx.load is float64; it must be an in"),
    (lambda x: ptx.load(1, 1), "float32", "argument 1 of ptx.load is.*an array or a pointer"),
    (lambda x: ptx.load(x, 0), "float64", "takes arrays of float32, float16, uint16, this one"),
    (lambda x: ptx.ex2("a"), "float32", "it must be a number, cast to float32"),
    (lambda x: ptx.load_vector(x, 0, x, 0), "float32", "a 1-D local array of float32"),
    (lambda x: ptx.lop3(1, 2, 3, "a"), "float32", "must be a constant integer"),
    (lambda x: ptx.stmatrix_x1(1, 2), "float32", "9.0 or newer; the kernel is compiled for 8.0"),
    (lambda x: ptx.reduce_add(x, 0, 1), "uint16", "on bfloat16 needs compute capability 9.0"),
    (lambda x: ptx.atomic_min(x, 0, 1), "float32", "takes arrays of int32, uint32, int64, uint64"),
]


@pytest.mark.parametrize(("call", "dtype", "message"), WRONG)
def test_wrong_calls_are_told(call, dtype, message):
    with pytest.raises(Exception, match=message):
        compiled(call, pointer(dtype), device=True)


def test_arrays_must_be_contiguous():
    from numba import types

    def kernel(x):
        x[0] = ptx.load(x, 0)

    with pytest.raises(Exception, match="must be a contiguous array"):
        compiled(kernel, types.float32[:])


def test_literals_may_be_computed():
    @instruction("cp.async.wait_group $0;", "void(literal)")
    def wait(t, n):
        """Wait."""

    def kernel(x):
        wait(STEPS - 2)
        for k in range(2):
            wait(k)

    text = compiled(kernel, pointer())
    waits = [line.strip() for line in text.splitlines() if "wait_group" in line]
    assert waits == [f"cp.async.wait_group {n};" for n in (3, 0, 1)]


def test_literals_that_are_no_constants_are_errors():
    """LLVM would drop the instruction and only warn."""
    needs_compiler()
    code = """
from cuda_numba.ptx.instruction import instruction
from numba import cuda, types
wait = instruction("cp.async.wait_group $0;", "void(literal)", name="wait")(lambda t, n: None)
def kernel(n):
    wait(n)
try:
    cuda.compile(kernel, (types.int32,), cc=(8, 0), device=False, abi="numba")
except Warning as error:
    assert "invalid operand for inline asm constraint" in str(error)
else:
    raise AssertionError("compiled")
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_tied_operands_share_registers():
    @instruction("{add $0, $0, $4; add $1, $1, $4;}", "f32x2(f32x2, f32)", tied=2, pure=True)
    def shift(pair, by):
        """Add."""

    def kernel(x):
        a, b = shift((x[0], x[1]), x[2])
        x[0] = a + b

    text = compiled(kernel, pointer())
    line = next(line for line in text.splitlines() if "add %f" in line and "{" in line)
    first, second = (part.split() for part in line.strip(" \t{}").rstrip(";}").split(";")[:2])
    assert first[1] == first[2] and second[1] == second[2] and first[3] == second[3]


def branch_position(kernel):
    """Where the mma stands in the PTX, and where the first branch."""
    text = compiled(kernel, pointer("uint32"), pointer())
    return text.index("mma.sync"), text.index(" bra ")


def mma_before_a_branch(mma):
    def kernel(x, y):
        i = cuda.threadIdx.x
        a, zero = x[i], float32(0)
        d = mma(a, a, a, a, a, a, zero, zero, zero, zero)
        if i == 0:
            y[0] = d[0]
            y[1] = d[3]

    return kernel


def test_warp_instructions_stay_before_branches():
    mma = ptx.mma_m16n8k16_bf16
    at, branch = branch_position(mma_before_a_branch(mma))
    assert at < branch
    # The control: without the attribute, LLVM sinks the product into the branch of lane 0.
    loose = Instruction(
        mma.name, mma.text, mma.signature, mma.meaning, scope="warp", pure=True, convergent=False
    )
    at, branch = branch_position(mma_before_a_branch(loose))
    assert branch < at


def test_pure_calls_are_merged_and_dropped_and_loads_are_not():
    def kernel(x, y):
        a = ptx.load_relaxed(x, 0)
        b = ptx.load_relaxed(x, 0)
        ptx.rcp(y[0])
        y[0] = ptx.ex2(y[1]) + ptx.ex2(y[1])
        ptx.load_128_nc(x, 4)
        x[1] = a + b

    text = compiled(kernel, pointer("uint32"), pointer())
    assert text.count("ex2.approx") == 1 and "rcp.approx" not in text
    assert text.count("ld.relaxed") == 2 and "ld.global.nc" in text


def test_loads_see_stores_before_them():
    """A hinted load is inline assembly: the compiler must not keep a stored value from it."""

    def kernel(x):
        x[0] = float32(1)
        a = ptx.load_32_cg(x, 0)
        x[0] = float32(2)
        x[1] = ptx.from_bits(a + uint32(0))

    text = compiled(kernel, pointer())
    one, load_at, two = (text.index(t) for t in ("1065353216", "ld.global.cg", "1073741824"))
    assert one < load_at < two
