"""The listing of the first kernel: recorded and live, both of today's source."""

import pytest

from cuda_numba import listing
from cuda_numba.toolchain import find_tool, has_compiler


def kinds(lines, part):
    return [text.split()[0] for text, of in lines if of == part]


def has_everything():
    try:
        return has_compiler() and find_tool("ptxas") and find_tool("nvdisasm")
    except RuntimeError:
        return False


def check(found):
    assert [part for _, part in found["python"]] == [None, 0, 1, 2]
    assert [k for k in kinds(found["ptx"], 2) if "global.f32" in k] == ["ld.global.f32"] * 2 + [
        "st.global.f32"
    ]
    assert any(k.startswith("add.f32") for k in kinds(found["ptx"], 2))
    assert any("%tid.x" in text for text, part in found["ptx"] if part == 0)
    assert any(k.startswith("setp") for k in kinds(found["ptx"], 1))
    work = kinds(found["sass"], 2)
    assert (work.count("LDG.E"), work.count("FADD"), work.count("STG.E")) == (2, 1, 1)
    assert work.index("LDG.E") < work.index("FADD") < work.index("STG.E")
    for of in found["registers"].values():
        assert list(of) == list(listing.ARCHITECTURES)
        assert all(1 <= n <= 255 for n in of.values())


def test_the_recorded_listing_is_complete_and_of_this_source():
    found = listing.recorded()
    check(found)
    assert found["python"] == listing.python_lines(listing.add)
    assert found["architecture"].startswith("sm_90") and all(found["versions"].values())


def test_a_live_listing_has_the_same_form():
    if not has_everything():
        pytest.skip("no compiler here")
    found = listing.listing()
    check(found)
    assert set(found) == set(listing.recorded())


def test_parts_change_at_the_guard():
    lines = ["mov.u32 %r1, %tid.x;", "setp.ge.s32 %p1, %r1, %r2;", "@%p1 bra $L;", "add.f32 a;"]
    assert [part for _, part in listing.parted(lines)] == [0, 1, 1, 2]
    assert [part for _, part in listing.parted(["ld.param.u64 %r;", "$L__BB0_2:"])] == [None, None]
