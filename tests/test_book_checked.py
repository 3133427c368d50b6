"""What the book says of NVIDIA's tools is what their results files say."""

import pytest

from book import checked
from cuda_numba import nsight, record, sanitizer

DEVICE = "NVIDIA X_1"


def written(folder, tool, rows):
    check = {"nsight": nsight, "sanitizer": sanitizer}[tool].check_row
    results = record.envelope(tool, DEVICE, "580.1") | {"rows": rows}
    record.save(folder / f"{tool}-x.json", results, check)
    return checked.report(tool, folder)


def table_of(text):
    """Its lines by their first cell, each as a list of its cells, the header under its own name."""
    lines = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("|")]
    return {first.strip(): [cell.strip() for cell in rest] for first, *rest in lines}


def count(kernel, metric, emulator, given, relation="equal"):
    return {
        "kernel": kernel, "entry": "kernel", "metric": metric, "emulator": emulator,
        "nsight": given, "relation": relation,
        "equal": None if given is None else emulator == given,
        "met": nsight.met(emulator, given, relation),
    }  # fmt: skip


def run(tool, fault=None, **changes):
    row = {
        "tool": tool, "version": "2025.3", "check": "control" if fault else "kernels",
        "fault": fault, "complete": True, "errors": 0, "warnings": 0, "elsewhere": 0,
        "found": True if fault else None, "kernels": ["a", "b"], "launches": 1234, "seconds": 1.0,
        "message": "", "findings": [],
    }  # fmt: skip
    return row | changes


COUNTS = [
    count("copy", "global load sectors", 64, 64),
    count("copy", "global atomic sectors", 1600, 50000, "no less"),
    count("sum", "global load sectors", 64, 65),
    count("sum", "shared load conflicts", 3, None),
]


def test_counts(tmp_path):
    text = written(tmp_path, "nsight", COUNTS)
    assert "On one NVIDIA X\\_1." in text and "`python -m cuda_numba.nsight`" in text
    assert "File: `tools/nsight-x.json`" in text and "Driver 580.1." in text
    assert (
        "4 counts of 2 launches: 1 equal, 2 different, 1 for which Nsight Compute has no number."
        in text
    )
    kinds, different = text.split("Those that differ:")
    assert table_of(kinds) == {
        "count of": ["Nsight Compute's must be", "equal", "more", "not as it must be", "no number"],
        "---": ["---"] * 5,
        "global load sectors": ["equal", "1", "", "1", ""],
        "global atomic sectors": ["no less", "", "1", "", ""],
        "shared load conflicts": ["equal", "", "", "", "1"],
    }
    lines = table_of(different)
    assert lines["copy"][:3] == ["global atomic sectors", "1,600", "50,000"]
    assert "every lane's atomic" in lines["copy"][3]
    assert lines["sum"] == ["global load sectors", "64", "65", "not known"]


def test_where_all_agree_nothing_is_said_to_differ(tmp_path):
    text = written(tmp_path, "nsight", COUNTS[:1])
    assert "1 equal, 0 different" in text and "Those that differ" not in text
    assert "not as it must be" not in text


def test_what_is_left_out_is_said_unless_it_is_there(tmp_path):
    said = "Not compared: float32 operations of sum by shuffles, for ptxas moves"
    assert said in written(tmp_path, "nsight", COUNTS)
    older = count("sum by shuffles", "float32 operations", 5120, 4610)
    text = written(tmp_path, "nsight", [*COUNTS, older])
    assert said not in text
    assert "ptxas moves" in table_of(text)["sum by shuffles"][3]


def test_tools(tmp_path):
    rows = [
        run("memcheck"),
        run("memcheck", "out_of_bounds"),
        run("synccheck", complete=False, errors=2, warnings=1),
        run("synccheck", "divergent_barrier", found=False),
        run(
            "synccheck", "two_barriers", check="probe", found=False, complete=False, message="45 s"
        ),
        run("synccheck", "wrong_mask", check="probe"),
    ]
    text = written(tmp_path, "sanitizer", rows)
    assert "`python -m cuda_numba.sanitizer`" in text and "compute-sanitizer 2025.3." in text
    lines = table_of(text)
    assert lines["`memcheck`"][:5] == ["2", "1,234", "0", "0", "`out_of_bounds`: ✓ found"]
    assert lines["`synccheck`"] == [
        "2", "1,234", "2, not complete", "1", "`divergent_barrier`: ✗ not found",
        "`two_barriers`: not found (45 s)<br>`wrong_mask`: found",
    ]  # fmt: skip


@pytest.mark.parametrize("tool", checked.TOOLS)
def test_the_committed_files_can_be_shown(tool):
    assert list(checked.FOLDER.glob(f"{tool}-*.json"))
    assert checked.report(tool).count("On one ") == len(list(checked.FOLDER.glob(f"{tool}-*.json")))


@pytest.mark.parametrize("tool", checked.TOOLS)
def test_no_file_and_a_broken_one(tmp_path, tool):
    assert checked.report(tool, tmp_path).startswith("No results file")
    written(tmp_path, tool, [])
    path = tmp_path / f"{tool}-x.json"
    path.write_text(path.read_text().replace('"rows": []', '"rows": [{}]'))
    with pytest.raises(ValueError, match=rf"{tool}-x.json: rows\[0\]: keys are"):
        checked.report(tool, tmp_path)


def test_an_unknown_tool():
    with pytest.raises(ValueError, match="must be one of sanitizer, nsight, got 'ncu'"):
        checked.report("ncu")
