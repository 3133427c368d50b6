"""The rows of machine code: what a case's kernels are, counted from the code itself."""

import pytest
import torch
from compiled import needs_compiler

from cuda_numba import machine_code, record
from cuda_numba.bench_cases import Case
from cuda_numba.softmax import softmax_forward

SASS = """
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0020*/              @!P0 LDG.E R5, desc[UR4][R2.64] ;
        /*0030*/                   HGMMA.64x256x16.F32.BF16 R24, gdesc[UR8], R24 ;
        /*0040*/                   FFMA R0, R1, R2, R3 ;
        /*0050*/                   STL [R1], R0 ;
        /*0060*/                   UTMALDG.2D [UR8], [UR4] ;
"""


def test_counts():
    found = machine_code.counts(SASS)
    assert found["global load"] == 2 and found["tensor"] == 1 and found["float32"] == 1
    assert found["local memory"] == 1 and found["bulk copy"] == 1 and found["all"] == 7
    assert found["special function"] == 0


def softmax_case():
    x = torch.randn(4, 256)
    return Case(
        "softmax", "forward", {"rows": 4, "columns": 256}, "float32", 8192,
        lambda i: (softmax_forward(x), softmax_forward(x)), lambda: 0.0, 1,
    )  # fmt: skip


@needs_compiler
def test_a_row_for_each_kernel(tmp_path):
    rows = list(machine_code.rows_of(softmax_case(), (9, 0)))
    assert len(rows) == 1  # two launches of one kernel
    row = rows[0]
    assert row["kernel"] == "softmax_forward" and row["architecture"] == "sm_90a"
    assert 16 <= row["registers"] <= 255 and row["spill_bytes"] == 0
    assert row["instructions"]["global load"] and row["instructions"]["special function"]
    results = record.envelope(machine_code.COMMAND, "X", None) | {"rows": rows}
    path = tmp_path / "machine-code-x.json"
    record.save(path, results, machine_code.check_row)
    assert record.read(path, machine_code.check_row) == results


@needs_compiler
@pytest.mark.parametrize(
    "spoil", [{"registers": -1}, {"instructions": {"all": 3}}, {"extra": 1}, {"spill_bytes": 0.5}]
)
def test_an_untrue_row_is_refused(spoil):
    row = next(machine_code.rows_of(softmax_case(), (9, 0))) | spoil
    with pytest.raises(ValueError):
        machine_code.check_row(row)
