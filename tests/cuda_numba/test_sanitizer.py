"""The cases launch every kernel, the faults are faults, and what the tools print is read."""

import ast
import itertools

import pytest
import torch
from compiled import needs_compiler

import cuda_numba
from cuda_numba import (
    instrument,
    launches,
    record,
    sanitizer,
    sanitizer_cases,
    sanitizer_faults,
    sanitizer_output,
    sanitizer_ptx,
)
from cuda_numba.emulator.errors import InvalidUse
from cuda_numba.emulator.run import Emulation
from cuda_numba.record import PACKAGE

CASES = dict(sanitizer_cases.cases("cpu"))
# On the emulator one dtype is enough: it changes the instructions of a kernel and not which run.
EMULATED = [name for name in CASES if not name.endswith("bfloat16")]
# Cases that take the emulator from 4 to 40 seconds. By default it is seen that they launch every
# kernel, and the threads run with --thorough: the tests of each family run the same kernels on the
# emulator, at shapes of that size, and look at what is computed.
LONG = {
    "layer_norm", "rms_norm", "activation", "embedding", "matmul_register_tile", "matmul_warp",
    "hopper_product", "hopper_epilogue", "attention_slow", "attention_hopper", "attention",
    "attention_warp", "attention_backward", "decode", "quantized_linear", "quantized_parts",
}  # fmt: skip


def emulated(name: str):
    return pytest.param(name, marks=pytest.mark.thorough if name.split()[0] in LONG else ())


def imported(module: str) -> set[str]:
    """The modules of the package that one imports, by name, `ptx` and `emulator` left out."""
    names = set()
    for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            found = [node.module] if node.module else [alias.name for alias in node.names]
            names |= {name for name in found if (PACKAGE / f"{name}.py").is_file()}
    return names


def is_kernel(node: ast.AST) -> bool:
    """Whether it is a function under @jit or @jit(…) without device=True."""
    if not isinstance(node, ast.FunctionDef):
        return False
    for decorator in node.decorator_list:
        call = isinstance(decorator, ast.Call)
        name = decorator.func if call else decorator
        if isinstance(name, ast.Name) and name.id == "jit":
            return not (call and any(k.arg == "device" for k in decorator.keywords))
    return False


def kernels_of_the_operations() -> dict[str, str]:
    """Every kernel in the files under the public operations: name → file."""
    todo = {cuda_numba._NAMES[name] for name in cuda_numba.__all__ if name in cuda_numba._NAMES}
    todo = {name for name in todo if (PACKAGE / f"{name}.py").is_file()}
    seen = set()
    while todo:
        seen.add(name := todo.pop())
        todo |= imported(name) - seen
    nodes = (
        (node.name, name)
        for name in sorted(seen)
        for node in ast.walk(ast.parse((PACKAGE / f"{name}.py").read_text()))
        if is_kernel(node)
    )
    return dict(nodes)


@pytest.fixture(scope="module")
def launched():
    """Which kernels each case launches; their threads do not run, and the results say nothing."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Emulation, "launch", lambda *args, **options: None)
        patch.setattr(torch, "isfinite", torch.ones_like)
        for name in EMULATED:
            with launches() as log:
                CASES[name]()
            found[name] = {launch.name for launch in log}
    return found


def test_there_are_kernels_to_miss():
    found = kernels_of_the_operations()
    assert found["add_elements"] == "vector_add"
    assert found["norm_column_sums"] == "norm_weights"
    assert found["optimizer_step"] == "optimizer_kernel"
    assert not {"load_vector", "warp_sum"} & set(found)


def test_every_kernel_is_launched(launched):
    missing = set(kernels_of_the_operations()) - set().union(*launched.values())
    assert not missing, f"sanitizer_cases launches no {', '.join(sorted(missing))}"


def test_every_case_launches(launched):
    assert all(launched.values())
    assert set(launched) == set(EMULATED) and len(CASES) > len(EMULATED)
    assert LONG <= {name.split()[0] for name in EMULATED}


@pytest.mark.parametrize("name", [emulated(name) for name in EMULATED])
def test_case_on_the_emulator(name):
    """From end to end: the threads run, and every result is finite."""
    CASES[name]()


def test_the_parts_share_the_cases_out(capsys, monkeypatch):
    ran = []
    fakes = [(f"case {i}", lambda i=i: ran.append(i)) for i in range(7)]
    monkeypatch.setattr(sanitizer_cases, "cases", lambda device: iter(fakes))
    for part in ("0/3", "1/3", "2/3"):
        sanitizer_cases.main(["--device", "cpu", "--part", part])
    assert sorted(ran) == list(range(7))
    last = sanitizer_output.read(capsys.readouterr().out)
    assert (last.kernels, last.launches) == ([], 0)


@pytest.mark.gpu
@pytest.mark.parametrize("name", CASES)
def test_case_on_the_gpu(name):
    dict(sanitizer_cases.cases("cuda"))[name]()


@needs_compiler
@pytest.mark.parametrize("name", sanitizer_ptx.CASES)
def test_small_kernels_compile(name):
    """On the GPU each of them is compiled for the first time otherwise."""
    with launches() as log:
        CASES[name]()
    assert all(launch.kernel.code((9, 0), launch.signature).cubin.code for launch in log)


# ---- the planted faults, on the emulator


def report_of(fault):
    """The report of the fault's kernel, on the arguments that it is launched with."""
    kernel = sanitizer_faults.KERNELS[fault]
    x = torch.ones(sanitizer_faults.THREADS)
    arguments = (torch.zeros(33),) if fault == "out_of_bounds" else (x, torch.zeros_like(x))
    return kernel.report(1, sanitizer_faults.THREADS, *arguments)


def test_race_is_found():
    assert report_of("race").races


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("out_of_bounds", "out_of_bounds"),
        ("divergent_barrier", "barrier_not_reached"),
        ("early_exit", "barrier_not_reached"),
        ("two_barriers", "divergent_barrier"),
    ],
)
def test_fault_is_found(fault, kind):
    assert {f.kind for f in report_of(fault).findings} == {kind}


def test_wrong_mask_is_found():
    with pytest.raises(InvalidUse, match="lane 16 calls it with mask 0x0000ffff") as raised:
        sanitizer_faults.wrong_mask("cpu")
    assert raised.value.thread == (16, 0, 0)


@needs_compiler
@pytest.mark.parametrize("fault", sanitizer_faults.FAULTS)
def test_faults_compile(fault):
    kernel = sanitizer_faults.KERNELS[fault]
    assert kernel.code((9, 0), ("float32[:]",) * len(kernel.parameters)).cubin.code


def test_every_fault_is_shown_to_one_tool():
    shown = [fault for tool in sanitizer.CONTROLS for fault in sanitizer.faults_of(tool)]
    assert sorted(shown) == sorted(sanitizer_faults.FAULTS) == sorted(sanitizer_faults.KERNELS)


# ---- reading; the forms are those of the manual (Compute Sanitizer, "Tool examples")

MEMCHECK = """\
========= COMPUTE-SANITIZER
vector_add float32
========= Invalid __global__ write of size 4 bytes
=========     at write_behind+0xb0
=========     by thread (33,0,0) in block (0,0,0)
=========     Access to 0x7f3a4c000284 is out of bounds
=========     and is 1 bytes after the nearest allocation at 0x7f3a4c000200 of size 132 bytes
========= 
========= Program hit cudaErrorLaunchFailure (error 719) due to "unspecified launch failure" on \
CUDA API call to cudaDeviceSynchronize.
========= 
========= Invalid __global__ read of size 16 bytes
=========     at 0x160 in void at::native::vectorized_elementwise_kernel<(int)4, float>(int, float)
=========     by thread (0,0,0) in block (0,0,0)

CASES {"kernels": ["add_elements", "add_vectors"], "launches": 12}
========= ERROR SUMMARY: 3 errors
"""  # noqa: W291
RACECHECK = """\
========= COMPUTE-SANITIZER
========= Error: Race reported between Write access at read_without_barrier+0x110 in faults.py:33
=========     and Read access at read_without_barrier+0x170 in faults.py:34 [256 hazards]
========= 
========= Warning: Race reported between Read access at 0x570 in sumKernel(int*, int*)
=========     and Write access at 0x5f0 in sumKernel(int*, int*) [28 hazards]
========= 
CASES {"kernels": ["read_without_barrier"], "launches": 1}
========= RACECHECK SUMMARY: 2 hazards displayed (1 error, 1 warning)
"""  # noqa: W291
INITCHECK = """\
========= COMPUTE-SANITIZER
========= Uninitialized __global__ memory read of size 4 bytes
=========     at void at::native::unrolled_elementwise_kernel<float>(int)+0x70
=========     by thread (0,0,0) in block (0,0,0)
=========     Access at 0x7f5cc3a00000
========= 
CASES {"kernels": ["softmax_naive"], "launches": 1}
========= ERROR SUMMARY: 40 errors
=========  39 errors were not printed. Use --print-limit option to adjust the number
"""  # noqa: W291
SYNCCHECK = """\
========= COMPUTE-SANITIZER
========= Barrier error detected. Divergent thread(s) in block.
=========     at meet_in_part()+0x130 in faults.py:49
=========     by thread (0,0,0) in block (0,0,0)
========= 
========= Target application returned an error
========= ERROR SUMMARY: 1 error
"""  # noqa: W291
CLEAN = """\
========= COMPUTE-SANITIZER
CASES {"kernels": ["add_elements"], "launches": 3}
========= ERROR SUMMARY: 0 errors
"""
REFUSED = """\
========= COMPUTE-SANITIZER
========= Error: Device not supported. Please refer to the "Supported Devices" section
"""


def done(name, output, code=0):
    return instrument.Done(name, ("compute-sanitizer",), code, 2.5, output)


def test_memcheck_is_read():
    found = sanitizer_output.read(MEMCHECK)
    assert (found.errors, found.launches) == (3, 12)
    assert found.kernels == ["add_elements", "add_vectors"]
    ours, call, theirs = found.findings
    assert ours.kernel == "write_behind" and ours.text == "Invalid __global__ write of size 4 bytes"
    assert call.kernel == "" and call.text.startswith("Program hit cudaErrorLaunchFailure")
    assert theirs.kernel == "at::native::vectorized_elementwise_kernel"
    assert [sanitizer_output.is_ours(f) for f in found.findings] == [True, False, False]


def test_racecheck_is_read():
    found = sanitizer_output.read(RACECHECK)
    assert (found.errors, found.warnings) == (1, 1)
    assert [(f.level, f.kernel) for f in found.findings] == [
        ("error", "read_without_barrier"),
        ("warning", "sumKernel"),
    ]


def test_synccheck_is_read():
    found = sanitizer_output.read(SYNCCHECK)
    assert [f.kernel for f in found.findings] == ["meet_in_part"]
    assert found.errors == 1 and found.launches is None
    assert "Target application returned an error" in found.trouble


def test_rows():
    parts = [done("memcheck 0/2", CLEAN), done("memcheck 1/2", MEMCHECK)]
    row = sanitizer.row("memcheck", "2025.3", parts)
    assert (row["errors"], row["elsewhere"], row["complete"]) == (1, 2, True)
    assert row["kernels"] == ["add_elements", "add_vectors"] and row["launches"] == 15
    assert not sanitizer.is_good(row) and "NOT GOOD" in sanitizer.show(row)
    clean = sanitizer.row("memcheck", "2025.3", parts[:1])
    assert sanitizer.is_good(clean) and clean["message"] == ""


def test_reads_of_what_was_not_written_count_wherever_they_are():
    row = sanitizer.row("initcheck", "", [done("initcheck 0/1", INITCHECK)])
    assert (row["errors"], row["elsewhere"]) == (40, 0)
    assert "39 errors of the summaries" in row["message"]


def test_a_process_that_broke_off_is_not_clean():
    broken = [done("racecheck 0/2", CLEAN), done("racecheck 1/2", "ended after 150 s", None)]
    row = sanitizer.row("racecheck", "", broken)
    assert not row["complete"] and not sanitizer.is_good(row)
    assert "racecheck 1/2: exit code None; ended after 150 s" in row["message"]
    failed = sanitizer.row("racecheck", "", [done("racecheck 0/1", CLEAN, 1)])
    assert failed["errors"] == 0 and not sanitizer.is_good(failed)


def test_a_tool_that_cannot_run_is_recorded():
    for fault in (None, "out_of_bounds"):
        row = sanitizer.row("memcheck", "", [done("memcheck 0/1", REFUSED, 1)], fault)
        assert row["errors"] is None and not row["complete"] and not sanitizer.is_good(row)
        assert "Device not supported" in row["message"]


@pytest.mark.parametrize(
    ("tool", "output"),
    [("memcheck", MEMCHECK), ("racecheck", RACECHECK), ("synccheck", SYNCCHECK)],
)
def test_controls(tool, output):
    fault = sanitizer.CONTROLS[tool]
    (row,) = sanitizer.rows_of([done(f"{tool} {fault}", output, 1)], "")
    assert (row["check"], row["fault"], row["found"]) == ("control", fault, True)
    assert sanitizer.is_good(row)
    (missed,) = sanitizer.rows_of([done(f"{tool} {fault}", CLEAN)], "")
    assert not missed["found"] and not sanitizer.is_good(missed)


def test_probes_decide_nothing():
    missed = sanitizer.rows_of([done("synccheck early_exit", CLEAN)], "")[0]
    blamed = SYNCCHECK.replace("meet_in_part", "leave_early")
    found = sanitizer.rows_of([done("synccheck early_exit", blamed, 1)], "")[0]
    for row, verdict in ((missed, "not found"), (found, "found")):
        assert row["check"] == "probe" and sanitizer.is_good(row)
        assert sanitizer.show(row).endswith(f"0 elsewhere, 2 s  {verdict}")
    assert (missed["found"], found["found"]) == (False, True)


def test_jobs():
    jobs = sanitizer.jobs_of(list(sanitizer.CONTROLS), "/bin/compute-sanitizer")
    names = [job.name for job in jobs]
    assert len(names) == len(set(names)) == 4 * sanitizer.PARTS + len(sanitizer_faults.FAULTS)
    for job, tool in itertools.product(jobs, sanitizer.CONTROLS):
        if job.name.startswith(tool):
            assert job.command[:3] == ("/bin/compute-sanitizer", "--tool", tool)
            assert dict(job.environment) == {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}


# ---- the command


def test_what_was_kept_is_read_again(tmp_path, capsys):
    outputs = [done("version", "Version 2025.3.1.0 (build 1)"), done("memcheck 0/1", CLEAN)]
    outputs.append(done("memcheck out_of_bounds", MEMCHECK, 1))
    keys = ("driver", "versions", "date", "commit", "dirty")
    results = {"command": "sanitizer", "device": "X"} | dict.fromkeys(keys) | {"rows": []}
    path = instrument.keep(str(tmp_path), results, outputs)
    to = tmp_path / "out" / "sanitizer-x.json"
    assert sanitizer.main(["--from", str(path), "--json", str(to)]) == 0
    written = record.read(to, sanitizer.check_row)
    assert {k: v for k, v in written.items() if k != "rows"} | {"rows": []} == results
    assert [r["check"] for r in written["rows"]] == ["kernels", "control"]
    assert {r["version"] for r in written["rows"]} == {"2025.3.1.0"}
    assert "memcheck   1 kernels" in capsys.readouterr().out


def test_where_the_rows_are_written(tmp_path, monkeypatch, capsys):
    """All tools' into the package; some tools' nowhere, so that they do not replace all."""
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    keys = ("driver", "versions", "date", "commit", "dirty")
    results = {"command": "sanitizer", "device": "An X1"} | dict.fromkeys(keys) | {"rows": []}
    outputs = [done("version", "Version 2025.3"), done("memcheck 0/1", CLEAN)]
    kept = str(instrument.keep(str(tmp_path / "raw"), results, outputs))
    assert sanitizer.main(["memcheck", "--from", kept]) == 0
    assert not (tmp_path / "tools").exists() and "written" not in capsys.readouterr().out
    assert sanitizer.main(["--from", kept]) == 0
    assert [p.name for p in (tmp_path / "tools").iterdir()] == ["sanitizer-an-x1.json"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ({"extra": 1}, "keys are"),
        ({"check": "probe"}, "check is 'probe'"),
        ({"found": None}, "found must be given"),
        ({"errors": None}, "errors must be given"),
    ],
)
def test_an_untrue_row_is_refused(spoil, message):
    (row,) = sanitizer.rows_of([done("racecheck race", RACECHECK)], "")
    sanitizer.check_row(row)
    with pytest.raises(ValueError, match=message):
        sanitizer.check_row(row | spoil)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu(capsys):
    assert sanitizer.main([]) == 2
    assert "needs an NVIDIA GPU" in capsys.readouterr().err


def test_unknown_tool(capsys):
    with pytest.raises(SystemExit):
        sanitizer.main(["leakcheck"])
    assert "got 'leakcheck', allowed are memcheck" in capsys.readouterr().err


def test_jobs_end_in_time():
    endless = instrument.Job("endless", instrument.python("sanitizer_cases")[:1] + ("-c", SLEEP), 1)
    found = instrument.run(endless)
    assert found.code is None and found.seconds < 30 and "ended after 1 s" in found.output
    absent = instrument.run(instrument.Job("absent", ("/no/such/program",), 1))
    assert absent.code is None and "/no/such/program" in absent.output


SLEEP = "import time; time.sleep(60)"


def test_environment_is_added_to():
    show = "import os; print(os.environ['PATH'] > '', os.environ['GIVEN'])"
    command = instrument.python("sanitizer_cases")[:1] + ("-c", show)
    found = instrument.run(instrument.Job("show", command, 60, (("GIVEN", "7"),)))
    assert (found.code, found.output) == (0, "True 7\n")
