"""Python → PTX → machine code → listings, and the code kept on disk; no GPU needed."""

import os
import re
import subprocess
import sys
from collections import Counter

import pytest
from numba.core import types

from cuda_numba import assembler, compiler, toolchain
from cuda_numba.inspect import (
    AssemblerError,
    CompilerWarning,
    Cubin,
    MissingTool,
    Options,
    Resources,
    assemble,
    compile_kernel,
    compile_ptx,
    count,
    has_compiler,
    instructions,
    resources,
    sass,
)
from cuda_numba.namespace import cuda, float32
from cuda_numba.ptx.instruction import instruction

F32 = types.float32
POINTERS = (types.CPointer(F32), types.CPointer(F32), types.int32)
ARCHITECTURES = ("sm_75", "sm_80", "sm_89", "sm_90a")
LOOSE = """.version 8.0
.target sm_90a
.address_size 64
.visible .entry loose(.param .u64 x) { setmaxnreg.inc.sync.aligned.u32 40; ret; }
"""  # setmaxnreg without launch bounds: ptxas ignores it, and says C7508


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_NUMBA_CACHE", str(tmp_path / "kernels"))
    return tmp_path / "kernels"


@pytest.fixture
def compiler_here():
    if not has_compiler():
        pytest.skip("numba-cuda and libNVVM are not installed")


def make_scale(factor=2.0, helper=None):
    factor = float32(factor) if callable(float32) else factor

    def scale(x, y, n):
        i = cuda.grid(1)
        if i < n:
            y[i] = x[i] * factor if helper is None else helper(x[i])

    return scale


def make_shared():
    @cuda.jit(device=True)
    def twice(v):
        return v + v

    def shift(x, y, n):
        a = cuda.shared.array(64, float32)
        b = cuda.shared.array(64, float32)
        t = cuda.threadIdx.x
        a[t] = x[t]
        b[63 - t] = twice(x[t])
        cuda.syncthreads()
        y[t] = a[(t + n) & 63] + b[t]

    return shift


# ---- names and capabilities


def test_capabilities_are_normalised():
    same = ((9, 0), (9, 0, "a"), "9.0", "sm_90", "sm_90a")
    assert {compiler.normal_cc(cc) for cc in same} == {(9, 0, "a")}
    assert compiler.normal_cc("sm_75") == compiler.normal_cc((7, 5)) == (7, 5)
    assert compiler.normal_cc("sm_100") == (10, 0, "a")
    assert compiler.architecture((8, 9)) == "sm_89"
    for wrong in (90, "9", "hopper", (9,), None, (9.0, 0)):
        with pytest.raises(ValueError, match="cc: must be a compute capability"):
            compiler.normal_cc(wrong)


def test_plain_names():
    long = "_ZN8__main__4make12_3clocals_3e5scaleB2v1B99cw51E10float32_2a"
    other = "_ZN3lib5twiceB2v7Ef"
    text = (
        f".common .global .align 8 .u64 _ZN08NumbaEnv{long[3:]};\n"
        f".func {other}(.param .f32 {other}_param_0);\n"
        f".visible .entry {long}(.param .u64 {long}_param_0)\n call {other};\n"
        ".shared _cudapy_smem_7; .shared _cudapy_smem_12; use _cudapy_smem_7;\n"
    )
    assert compiler.plain_names(text, "scale") == (
        ".func twice_1(.param .f32 twice_1_param_0);\n"
        ".visible .entry scale(.param .u64 scale_param_0)\n call twice_1;\n"
        ".shared shared_2; .shared shared_3; use shared_2;\n"
    )
    assert compiler.find_entry(compiler.plain_names(text, "<lambda>")) == "lambda"
    assert compiler.find_entry(compiler.plain_names(text, "_")) == "kernel"
    used = text + "ld.global.u64 _ZN08NumbaEnv" + long[3:] + ";\n"
    assert ".common" in compiler.plain_names(used, "scale")
    with pytest.raises(ValueError, match="holds no kernel"):
        compiler.plain_names(".version 9.5", "scale")


# ---- compiling


@pytest.mark.parametrize("cc", ARCHITECTURES)
@pytest.mark.parametrize("lto", [False, True])
def test_every_architecture(cc, lto, compiler_here):
    options = Options(launch_bounds=(64, 2), lto=lto)
    code = compile_kernel(make_shared(), POINTERS, cc, options)
    assert f".target {cc}" in code.ptx and ".entry shift(" in code.ptx and "64, 1, 1" in code.ptx
    assert code.cubin.code[:4] == b"\x7fELF" and code.cubin.architecture == cc
    assert code.cubin.entry == "shift" and code.cubin.assembler
    used = code.resources
    assert 8 <= used.registers <= 64 and used.shared == 512 and used.barriers == 1
    assert used.spill_stores == used.spill_loads == used.stack == 0
    assert count(code.sass, "LDG.E") == 1 and count(code.sass, "STS") == 2
    assert count(code.sass, "BAR.SYNC") == 1 and count(code.sass, "HMMA") == 0


def test_the_ptx_of_one_source_is_one_text(compiler_here):
    first, second = (compile_kernel(make_shared(), POINTERS, "sm_80") for _ in range(2))
    assert first is not second and first.ptx == second.ptx
    assert first.ptx_sha256 == second.ptx_sha256
    assert compile_ptx(make_shared(), POINTERS, "sm_80") == first.ptx
    assert "_ZN" not in first.ptx and "_cudapy" not in first.ptx
    assert compile_ptx(make_scale(2.0), POINTERS, "sm_80") != compile_ptx(
        make_scale(3.0), POINTERS, "sm_80"
    )


def test_linked_ptx_gives_the_code_that_the_linker_gives(compiler_here):
    ltoir = compiler.compile_ltoir(make_shared(), POINTERS, "sm_90", Options(lto=True))
    flags = ["-arch=sm_90a", "-lto", "-verbose", "-Xptxas=-v"]
    linked, log = compiler.nvjitlink([("ltoir", ltoir)], flags)
    code = compile_kernel(make_shared(), POINTERS, "sm_90", Options(lto=True))
    direct = Cubin(linked, log, "nvJitLink", "sm_90a", "shift")
    assert instructions(sass(direct)) == instructions(code.sass)
    assert direct.resources == code.resources


def test_options_reach_the_code(compiler_here):
    def divide(x, y, n):
        y[n] = x[0] / x[n]

    plain, fast = (compile_ptx(divide, POINTERS, "sm_80", fastmath=f) for f in (False, True))
    assert "div.rn.f32" in plain and "div.approx" in fast and "div.rn" not in fast
    assert "div.approx" in compile_ptx(divide, POINTERS, "sm_80", fastmath=True, lto=True)
    assert ".loc" in compile_ptx(divide, POINTERS, "sm_80", lineinfo=True) and ".loc" not in plain
    debug = compile_ptx(divide, POINTERS, "sm_80", debug=True)
    assert ", debug" in debug and ", debug" not in plain  # of .target
    with pytest.raises(ValueError, match="debug: must be False"):
        compile_ptx(divide, POINTERS, "sm_80", debug=True, lto=True)
    narrow = compile_kernel(make_hungry(), POINTERS, "sm_80", Options(max_registers=24))
    assert narrow.resources.registers <= 24


def make_hungry():
    def hungry(x, y, n):
        held = cuda.local.array(48, float32)
        for i in range(48):
            held[i] = x[i]
        cuda.syncthreads()
        for i in range(48):
            y[i] = held[47 - i] * held[(i * 7) % 48]

    return hungry


def test_device_functions_are_compiled_for_each_architecture(compiler_here):
    from cuda_numba.ptx.instruction import instruction

    def text(emitter):
        return emitter.asm(f"mov.u32 $0, {10 * emitter.cc[0] + emitter.cc[1]};", ["u32"], [])[0]

    which = instruction(text, "u32()", pure=True, name="which")(lambda: 0)

    @cuda.jit(device=True)
    def target(v):
        return v + which()

    def asks(x, y, n):
        y[n] = target(x[n])

    for cc, value in (("sm_75", 75), ("sm_90", 90), ("sm_75", 75), ("sm_89", 89)):
        ptx = compile_ptx(asks, POINTERS, cc)
        assert re.findall(r"mov\.u32 %r\d+, (\d+);", ptx) == [str(value)], ptx


def test_a_barrier_across_the_grid_is_linked_in(compiler_here):
    def rotate(x, y, n):
        grid = cuda.cg.this_grid()
        i = cuda.grid(1)
        y[i] = x[i]
        grid.sync()
        x[i] = y[n - i]

    code = compile_kernel(rotate, POINTERS, "sm_80")
    assert code.cubin.assembler.startswith("nvJitLink") and code.cubin.entry == "rotate"
    assert count(code.sass, "LDG") >= 2


# ---- assemblers


def test_the_assembler_is_named_and_the_preferred_one_comes_first(compiler_here):
    asked = [str(c) for c in assembler.candidates()]
    assert asked and asked[0] == compile_kernel(make_scale(), POINTERS, "sm_80").cubin.assembler
    if any("(wheel)" in name for name in asked):
        assert "(wheel)" in asked[0]
    on_path = [i for i, name in enumerate(asked) if "(path)" in name]
    linker = [i for i, name in enumerate(asked) if name.startswith("nvJitLink")]
    assert all(i > j for i in on_path for j in linker)


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in for an old ptxas is a script")
def test_an_assembler_that_is_too_old_is_passed_over(compiler_here, tmp_path, monkeypatch):
    old = tmp_path / "ptxas"
    old.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && echo "release 11.0, V11.0.1" && exit 0\n'
        "echo \"fatal: Unsupported .version 9.5; current version is '7.0'\" >&2\nexit 255\n"
    )
    old.chmod(0o755)
    monkeypatch.setenv("CUDA_NUMBA_PTXAS", str(old))
    assert str(assembler.candidates()[0]) == "ptxas 11.0.1 (environment)"
    code = compile_kernel(make_shared(), POINTERS, "sm_80")
    assert code.cubin.assembler.startswith("nvJitLink") and code.resources.shared == 512
    linked = compile_kernel(make_shared(), POINTERS, "sm_80", Options(lto=True))
    assert linked.cubin.assembler.startswith("nvJitLink") and "shift" in linked.cubin.entry
    monkeypatch.setattr(assembler, "library", lambda name: None)
    monkeypatch.setattr(assembler, "_driver", list)
    with pytest.raises(
        MissingTool, match=r"No assembler here knows PTX 9.*V?11.0.1.*minilm\[ptx\]"
    ):
        assemble(code.ptx.replace(".version", ".version 9.9 //"), "sm_80")


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in for ptxas is a script")
def test_a_chosen_tool_that_does_not_run_is_an_error(tmp_path, monkeypatch):
    broken = tmp_path / "ptxas"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    for path in (broken, tmp_path / "nothing"):
        monkeypatch.setenv("CUDA_NUMBA_PTXAS", str(path))
        with pytest.raises(MissingTool, match="CUDA_NUMBA_PTXAS: .* is not a ptxas that runs"):
            toolchain.find_tool("ptxas")


def test_without_tools_there_is_one_sentence(monkeypatch):
    monkeypatch.setattr(toolchain, "_find_tools", lambda *_: ())
    monkeypatch.setattr(assembler, "find_tools", lambda name: [])
    monkeypatch.setattr(assembler, "library", lambda name: None)
    monkeypatch.setattr(assembler, "_driver", list)
    with pytest.raises(MissingTool, match=r"There is no assembler .*minilm\[ptx\]"):
        assemble(LOOSE, "sm_90")
    with pytest.raises(MissingTool, match=r"nvdisasm is not installed: .*minilm\[ptx\]"):
        sass(Cubin(b"", "", "", "sm_90a", "loose"))
    monkeypatch.setattr(toolchain, "has_compiler", lambda: False)
    with pytest.raises(MissingTool, match=r"needs numba-cuda and libNVVM: .*minilm\[ptx\]"):
        compile_ptx(make_scale(), POINTERS, "sm_80")


@pytest.mark.parametrize("cc", ["sm_80", "sm_90"])
def test_assemblers_agree_on_what_a_kernel_takes(cc, compiler_here):
    ptx = compile_ptx(make_shared(), POINTERS, cc)
    flags = [f"-arch={compiler.architecture(cc)}"]
    found = {resources(c.run(ptx, flags, None)[1]) for c in assembler.candidates()[:2]}
    assert [r.shared for r in found] == [512] * len(found)
    assert {r.barriers for r in found} == {1}


def test_where_numba_cuda_is_missing_everything_imports():
    script = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("numba_cuda", "cuda") or name.startswith("numba.cuda"):
            raise ImportError(name)
sys.meta_path.insert(0, Blocked())
from cuda_numba import build, gates, inspect, launch
from numba.core import types
assert not inspect.has_compiler()
try:
    inspect.compile_kernel(lambda x: None, (types.int32,), "sm_80")
except inspect.MissingTool as error:
    print(error)
"""
    env = {n: v for n, v in os.environ.items() if not n.startswith("COV")}
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env)
    assert ran.stdout.startswith("Compiling a kernel needs numba-cuda"), ran.stderr


def test_advice_of_the_kind_c75xx_is_an_error(compiler_here):
    with pytest.raises(AssemblerError, match=r"has made loose slow: .*C7508"):
        assemble(LOOSE, "sm_90")
    loose = assemble(LOOSE, "sm_90", strict=False)
    assert len(loose.advice) == 1
    bound = assemble(LOOSE.replace("{ setm", ".maxntid 128, 1, 1 .minnctapersm 1 { setm"), "sm_90")
    assert bound.advice == []


def test_a_warning_of_the_compiler_is_an_error(compiler_here, own_cache):
    """Of an operand that is no constant LLVM only warns, and drops the instruction."""
    wait = instruction("cp.async.wait_group $0;", "void(literal)", name="wait")(lambda t, n: None)

    def loose(x, y, n):
        wait(n)
        y[n] = x[n]

    for _ in range(2):  # nothing of it is kept
        with pytest.raises(
            CompilerWarning, match="loose: libNVVM warns: .*invalid operand for inl"
        ):
            compile_kernel(loose, POINTERS, "sm_80")
    assert not own_cache.exists()


def test_what_the_assembler_refuses_is_told_in_its_words(compiler_here):
    with pytest.raises(AssemblerError, match="ptxas.*line 4.*nonsense"):
        assemble(LOOSE.replace("setmaxnreg", "nonsense"), "sm_90")


def test_16_bit_arithmetic_says_what_to_do(compiler_here):
    def add(x, n):
        i = cuda.grid(1)
        if i < n:
            x[i] = x[i] + x[i]

    with pytest.raises(AssemblerError, match=r"half.*: convert with ptx.load and ptx.store, and "):
        compile_kernel(add, (types.CPointer(types.float16), types.int32), "sm_90")


def test_resources_are_read_from_logs():
    log = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'k' for 'sm_90a'
ptxas info    : Function properties for k
    64 bytes stack frame, 24 bytes spill stores, 36 bytes spill loads
ptxas info    : Used 168 registers, used 5 barriers, 72 bytes cumulative stack size, 1024 bytes smem
ptxas info    : Function properties for helper
    8 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads
info    : used 170 registers, used 16 barriers, 0 stack, 2048 bytes smem, 756 bytes cmem[0]
"""
    assert resources(log) == Resources(168, 28, 40, 72, 1024, 5)
    assert resources("Used 8 registers, used 0 barriers") == Resources(8, 0, 0, 0, 0, 0)
    with pytest.raises(ValueError, match="does not say how many registers"):
        resources("ptxas fatal")


def test_instructions_are_counted():
    text = """
        .section .text.k
.text.k:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/              @!P0 LDG.E.EF.128.CONSTANT R4, desc[UR4][R2.64] ;
        /*0020*/               @P1 LDG.E.128 R8, desc[UR4][R2.64+0x10] ;
        /*0030*/             @!UPT UIADD3 UR4, UR4, URZ, URZ ;
        /*0040*/                   HMMA.16816.F32.BF16 R8, R4, R8, RZ ;
        /*12340*/                  HGMMA.64x256x16.F32.BF16 R24, gdesc[UR4], R24 ;
.L_x_1:
        /*12350*/                  BRA `(.L_x_1);
"""
    assert instructions(text) == Counter(
        ["LDC", "LDG.E.EF.128.CONSTANT", "LDG.E.128", "UIADD3", "HMMA.16816.F32.BF16",
         "HGMMA.64x256x16.F32.BF16", "BRA"]
    )  # fmt: skip
    wanted = {"LDG.E.128": 2, "LDG": 2, "LDG.128.E": 0, "HMMA": 1, "HGMMA.F32": 1, "MMA": 0}
    assert {name: count(text, name) for name in wanted} == wanted
