"""The cases' counts by hand, their machine code, and what ncu prints."""

import re

import pytest
import torch
from compiled import needs_compiler

from cuda_numba import instrument, nsight, nsight_cases, record
from cuda_numba.inspect import INSTRUCTION, count

CASES = {case.name: case for case in nsight_cases.CASES}
LOAD, STORE = "global load", "global store"


def counts(name, wanted):
    """The emulator's counts of a case, by the names of the metrics."""
    report = CASES[name].report()
    return [m.emulator(report) for m in nsight.METRICS if m.name in wanted]


# ---- by hand


@pytest.mark.parametrize(
    ("name", "sectors"),
    [
        ("copy", 16 * 4),  # 16 warps, 128 bytes each
        ("copy, every 2nd", 16 * 8),
        ("copy, every 33rd", 16 * 32),  # a sector for each lane
        ("copy, offset by one", 16 * 5),  # bytes 4 to 131
    ],
)
def test_copies(name, sectors):
    assert counts(name, {f"{LOAD} requests", f"{LOAD} sectors"}) == [16, sectors]
    assert counts(name, {f"{STORE} requests", f"{STORE} sectors"}) == [16, 64]


def test_masked_tail():
    """1000 numbers are 31 full warps and 8 lanes: 125 sectors of each array."""
    name = "multiply-add, masked tail"
    assert counts(name, {f"{LOAD} requests", f"{LOAD} sectors"}) == [64, 250]
    assert counts(name, {f"{STORE} requests", f"{STORE} sectors"}) == [32, 125]
    assert counts(name, {"float32 operations"}) == [2000]


@pytest.mark.parametrize(
    ("name", "wavefronts", "conflicts"),
    [
        ("transpose", 32 * 32, 32 * 31),
        ("transpose, padded", 32, 0),
        ("shared load 4 bytes, 4 apart", 1, 0),
        ("shared load 4 bytes, 8 apart", 2, 1),
        ("shared load 8 bytes, 8 apart", 2, 0),
        ("shared load 8 bytes, 16 apart", 4, 2),
        ("shared load 16 bytes, 16 apart", 4, 0),
        ("shared load 16 bytes, 32 apart", 8, 4),
        ("shared load 16 bytes, 128 apart", 32, 28),
        ("shared load 16 bytes, 16 apart, 2 lanes each", 2, 0),
    ],
)
def test_shared_loads(name, wavefronts, conflicts):
    assert counts(name, {"shared load wavefronts"}) == [wavefronts]
    both = {f"shared load {of}, by hardware" for of in ("wavefronts", "conflicts")}
    assert counts(name, both) == [wavefronts, conflicts]


@pytest.mark.parametrize(
    ("name", "wavefronts", "conflicts"),
    [
        ("shared store 8 bytes, 8 apart", 2, 0),
        ("shared store 8 bytes, 16 apart", 4, 2),
        ("shared store 16 bytes, 16 apart", 4, 0),
        ("shared store 16 bytes, 32 apart", 8, 4),
    ],
)
def test_shared_stores(name, wavefronts, conflicts):
    assert counts(name, {"shared store wavefronts"}) == [wavefronts]
    both = {f"shared store {of}, by hardware" for of in ("wavefronts", "conflicts")}
    assert counts(name, both) == [wavefronts, conflicts]


@pytest.mark.parametrize(
    ("name", "wavefronts", "conflicts"), [("ldmatrix", 32, 28), ("ldmatrix, swizzled", 4, 0)]
)
def test_matrices(name, wavefronts, conflicts):
    assert counts(name, {"ldmatrix wavefronts"}) == [wavefronts]
    assert counts(name, {"shared load wavefronts", "shared load instructions"}) == [0, 0]
    both = {f"shared load {of}, by hardware" for of in ("wavefronts", "conflicts")}
    assert counts(name, both) == [wavefronts, conflicts]


def test_atomics():
    """16 warps, the last with 20 lanes, at one address: a request and a sector each."""
    assert counts("sum by atomics", {"global atomic requests", "global atomic sectors"}) == [16, 16]


def test_rows():
    """4 rows of 4 KB, 32 lanes of 16 bytes to a request."""
    name = "softmax by 16-byte accesses"
    for kind in (LOAD, STORE):
        assert counts(name, {f"{kind} requests", f"{kind} sectors"}) == [32, 512]


@pytest.mark.parametrize("name", CASES)
def test_no_findings(name):
    assert CASES[name].report().findings == []


# ---- machine code


def signature_of(case):
    from cuda_numba.arguments import signature_of as of

    return of(case.kernel.name, case.kernel.parameters, case.make("cpu"), case.kernel.pointers)


@needs_compiler
@pytest.mark.parametrize("name", CASES)
def test_compiles(name):
    case = CASES[name]
    assert case.kernel.code((9, 0), signature_of(case)).cubin.code


@needs_compiler
@pytest.mark.parametrize(
    ("name", "instructions"),
    [
        ("copy", {"LDG.E": 1, "STG.E": 1}),
        ("multiply-add, masked tail", {"LDG.E": 2, "STG.E": 1, "FFMA": 1}),
        ("transpose", {"STS": 1, "LDS": 1}),
        ("shared load 8 bytes, 8 apart", {"LDS.64": 1, "STS": 32}),
        ("shared load 16 bytes, 16 apart", {"LDS.128": 1, "STS": 32}),
        ("shared store 16 bytes, 16 apart", {"STS.128": 1, "LDS": 1}),
        ("shared store 8 bytes, 8 apart", {"STS.64": 1, "LDS": 1}),
        ("ldmatrix", {"LDSM": 1, "STS": 32}),
    ],
)
def test_the_compiler_adds_and_leaves_out_nothing(name, instructions):
    """Else the counts could not agree."""
    case = CASES[name]
    text = case.kernel.code((9, 0), signature_of(case)).sass
    assert {i: count(text, i) for i in instructions} == instructions


@needs_compiler
def test_the_last_sum_is_left_to_thread_0():
    """Why operations of "sum by shuffles" are not compared: 9 additions by all threads, 1 by it."""
    case = CASES["sum by shuffles"]
    assert case.apart and not case.flops
    text = case.kernel.code((9, 0), signature_of(case)).sass
    assert {i: count(text, i) for i in ("SHFL", "FADD", "FFMA", "FMUL")} == {
        "SHFL": 10, "FADD": 10, "FFMA": 0, "FMUL": 0,
    }  # fmt: skip
    behind = text[text.rindex("SHFL") :]
    leaves = re.search(r"@!?P\d EXIT", behind)
    assert INSTRUCTION.findall(behind[leaves.end() :]).count("FADD") == 1


def test_what_is_left_out_is_not_compared():
    assert not any(case.apart and case.flops for case in CASES.values())


# ---- reading; the forms are those of ncu's manual (CLI, "--csv", "--page")

FIRST, SECOND = "l1tex__t_requests_pipe_lsu_mem_global_op_ld.sum", nsight.TERMS[1]
RAW = f"""\
==PROF== Connected to process 4711 (/usr/bin/python3.11)
==PROF== Profiling "copy_apart" - 0: 0%....50%....100% - 3 passes
==PROF== Disconnected from process 4711
"ID","Process ID","Process Name","Host Name","Kernel Name","Context","Stream","Block Size",\
"Grid Size","Device","CC","{FIRST}","{SECOND}"
"","","","","","","","","","","","request","sector"
"0","4711","python3.11","127.0.0.1","copy_apart","1","7","(128, 1, 1)","(4, 1, 1)","0","9.0",\
"16","1,064"
"1","4711","python3.11","127.0.0.1","void other<int>(int, float)","1","7","(1, 1, 1)",\
"(1, 1, 1)","0","9.0","n/a","2.00"
"""
LONG = f"""\
"ID","Process ID","Kernel Name","Metric Name","Metric Unit","Metric Value"
"0","4711","copy_apart(Array)","{FIRST}","request","16"
"0","4711","copy_apart(Array)","{SECOND}","sector","1,064"
"""
UNKNOWN = f"""\
==PROF== Connected to process 4711 (/usr/bin/python3.11)
==ERROR== Failed to find metric {SECOND.removesuffix(".sum")}
==ERROR== No metrics to collect found in sections.
"""


def test_raw_page_is_read():
    first, other = nsight.parse(RAW)
    assert first == {"kernel": "copy_apart", FIRST: 16, SECOND: 1064}
    assert other == {"kernel": "other<int>", FIRST: None, SECOND: 2}


def test_long_form_is_read():
    assert nsight.parse(LONG) == [{"kernel": "copy_apart", FIRST: 16, SECOND: 1064}]


def test_nothing_is_read_from_an_error():
    assert nsight.parse(UNKNOWN) == []
    assert nsight.refused(UNKNOWN, nsight.TERMS) == [SECOND]
    assert nsight.refused(RAW, nsight.TERMS) == []


def test_launches_find_their_cases():
    def launches(*names):
        return [{"kernel": name, "number": i} for i, name in enumerate(names)]

    def numbers(found):
        return [None if launch is None else launch["number"] for launch in found]

    both = launches("a", "b", "a", "fill", "a", "b", "a")  # the first three are not profiled
    assert numbers(nsight.matched(both, ["a", "b", "a"])) == [4, 5, 6]
    assert numbers(nsight.matched(both[:1], ["a", "b"])) == [0, None]
    assert numbers(nsight.matched([], ["a", "b"])) == [None, None]


def test_relations():
    case = nsight_cases.CASES[0]
    exact, bounded = nsight.METRICS[0], next(m for m in nsight.METRICS if m.relation == "no less")
    for metric, given, equal, met in (
        (exact, 16, True, True),
        (exact, 17, False, False),
        (exact, None, None, None),
        (bounded, 17, False, True),
        (bounded, 15, False, False),
    ):
        row = nsight.row(case, metric, 16, given)
        assert (row["equal"], row["met"]) == (equal, met)
        nsight.check_row(row)
        for spoil in ({"met": not met}, {"extra": 1}):
            with pytest.raises(ValueError, match="met is|keys are"):
                nsight.check_row(row | spoil)


def test_an_atomic_of_every_lane_is_a_sector_to_the_hardware():
    case = CASES["sum by atomics"]
    sectors = next(m for m in nsight.METRICS if m.name == "global atomic sectors")
    for given, met in ((500, True), (16, True), (15, False)):
        row = nsight.row(case, sectors, 16, given)
        assert (row["met"], row["relation"]) == (met, "no less")
        assert "every lane's atomic" in nsight.reason(row)


def test_reasons():
    """What may be more has one, what must be equal has none, but for operations left out."""
    case = CASES["sum by shuffles"]
    for metric in nsight.METRICS:
        reason = nsight.reason(nsight.row(case, metric, 1, 2))
        assert bool(reason) == (metric.relation == "no less" or metric.flops)
    operations = nsight.METRICS[-1]
    assert nsight.reason(nsight.row(case, operations, 1, 2)) == case.apart
    assert nsight.reason(nsight.row(CASES["copy"], operations, 1, 2)) == ""
    assert nsight.reason({"kernel": "copy", "metric": "of another version"}) == ""


def test_the_committed_results_can_be_read():
    """They may be of an earlier comparison: their relations are their own."""
    for path in (record.RESULTS / "tools").glob("nsight-*.json"):
        assert record.read(path, nsight.check_row)["rows"]


def test_command():
    words = nsight.command("/bin/ncu", nsight.TERMS)
    assert words[words.index("--clock-control") + 1] == "none"
    assert words[words.index("--metrics") + 1].split(",") == nsight.TERMS
    assert len(nsight.TERMS) == len(set(nsight.TERMS))


# ---- the command


def as_ncu_prints(change=0):
    """A raw page on which every case has the emulator's own counts, the first sectors changed."""
    lines = [",".join(f'"{name}"' for name in ("ID", "Kernel Name", *nsight.TERMS))]
    lines.append(",".join(['""'] * (2 + len(nsight.TERMS))))
    for number, case in enumerate(nsight_cases.CASES):
        report, values = case.report(), dict.fromkeys(nsight.TERMS, 0)
        for metric in nsight.METRICS:
            values[next(iter(metric.terms))] = metric.emulator(report)
        values[SECOND] += change * (number == 0)
        cells = (number, case.kernel.name, *values.values())
        lines.append(",".join(f'"{cell}"' for cell in cells))
    return "\n".join(lines)


@pytest.mark.parametrize(("change", "code"), [(0, 0), (1, 1)])
def test_what_was_kept_is_read_again(tmp_path, capsys, change, code):
    keys = ("driver", "versions", "date", "commit", "dirty")
    results = {"command": "nsight", "device": "X"} | dict.fromkeys(keys) | {"rows": []}
    done = [instrument.Done("ncu 0", ("ncu",), 0, 1.0, as_ncu_prints(change))]
    path = instrument.keep(str(tmp_path), results, done)
    to = tmp_path / "nsight-x.json"
    assert nsight.main(["--from", str(path), "--json", str(to)]) == code
    rows = record.read(to, nsight.check_row)["rows"]
    assert {r["kernel"] for r in rows} == set(CASES)
    wrong = [(r["kernel"], r["metric"]) for r in rows if not r["equal"]]
    assert wrong == [("copy", f"{LOAD} sectors")] * change
    assert ("NOT MET" in capsys.readouterr().out) == bool(change)


def test_what_profiled_nothing_is_said(tmp_path, capsys):
    done = [instrument.Done("ncu 0", ("ncu",), 1, 1.0, "==ERROR== LibraryNotLoaded")]
    path = instrument.keep(str(tmp_path), {"command": "nsight", "device": "X"}, done)
    assert nsight.main(["--from", str(path)]) == 2
    assert "LibraryNotLoaded" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu(capsys):
    assert nsight.main([]) == 2
    assert "needs an NVIDIA GPU" in capsys.readouterr().err


@pytest.mark.gpu
def test_launches_on_the_gpu():
    nsight_cases.main(["--part", "0/1"])
