"""Figures of products, of attention in tiles and of a training step, read back from the artists.

What every figure must do is tested in test_plots.py, which takes CALLS from here.
"""

import math

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgb, to_rgba

from cuda_numba.emulator.wgmma_operands import accumulator_places
from cuda_numba.ptx import mma_layout
from minilm import plots
from minilm.figure import PALETTE, pale
from minilm.plots_step import squarify

MMA = mma_layout("m16n8k16_bf16")
INTERVALS = [
    ("producer", "load 0", 0, 1),
    ("producer", "load 1", 1, 2),
    ("consumer", "multiply 0", 1, 2.5),
]
STATES = [["partial", "empty"], ["full", "partial"]]
STEP = {"GEMM": {"qkv": 6.0, "head": 6.0}, "norm": {"layer norm": 4.0}, "copy": {"x": 2.0}}

CALLS = dict(
    accumulator_map=lambda **k: plots.accumulator_map(*accumulator_places(16), **k),
    attention_growth=lambda **k: plots.attention_growth(
        [64, 128], {"MiB": {"a": [1, 4], "b": [1, 2]}, "ms": {"b": [1.0, math.nan]}}, **k
    ),
    errors_of_both=lambda **k: plots.errors_of_both(
        {"out": {"ours": 1e-3, "theirs": 2e-3}, "dq": {"ours": 0.0}}, bound=2**-8, **k
    ),
    flop_ladder=lambda **k: plots.flop_ladder({"naive": 2.0, "mma": 300.0}, {"cuBLAS": 600.0}, **k),
    fragment_map=lambda **k: plots.fragment_map(MMA, lane=14, **k),
    memory_parts=lambda **k: plots.memory_parts({"eager": {"weights": 2**30}}, limit=2**31, **k),
    pipeline_timeline=lambda **k: plots.pipeline_timeline(INTERVALS, **k),
    step_treemap=lambda **k: plots.step_treemap(STEP, unit="B", **k),
    tile_order=lambda **k: plots.tile_order(STATES, order=[[0, -1], [1, 2]], **k),
    tile_roofline=lambda **k: plots.tile_roofline([8, 64], 3e12, 60e12, chosen=64, **k),
    tile_walk=lambda **k: plots.tile_walk((64, 48, 40), (16, 24, 16), block=(1, 1), step=2, **k),
    token_ladder=lambda **k: plots.token_ladder(
        {"eager": 1e5, "graph": 2e5}, {"nanoGPT": 1.8e5}, **k
    ),
)


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def texts(ax):
    return [text.get_text() for text in ax.texts]


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def bounds(box):
    return (box.get_x(), box.get_y(), box.get_width(), box.get_height())


def test_a_ladder_stands_beside_the_library():
    ax = CALLS["flop_ladder"]()
    assert [bar.get_width() for bar in ax.patches] == [2, 300]
    assert texts(ax) == ["2, 0.333 %", "300, 50 %"]
    assert ax.lines[0].get_xdata()[0] == 600 and legend(ax) == ["cuBLAS"]
    ax = CALLS["token_ladder"]()
    assert texts(ax) == ["100,000, × 1.00", "200,000, × 2.00"]
    assert ax.lines[0].get_xdata()[0] == 1.8e5


def test_a_tile_walk_shows_what_a_block_holds():
    ax = CALLS["tile_walk"]()
    boxes = {tuple(box.get_facecolor()): bounds(box) for box in ax.patches}
    gap = 0.08 * 64
    a, b = (boxes[to_rgba(pale(PALETTE[k], 1))] for k in range(2))
    c = boxes[to_rgba(PALETTE[2])]
    assert a == pytest.approx((-40 - gap + 32, 16, 8, 16))  # the last tile of K = 40 is half a tile
    assert b == pytest.approx((24, -40 - gap + 32, 24, 8))
    assert c == (24, 16, 24, 16)
    done = boxes[to_rgba(pale(PALETTE[0], 0.5))]
    assert done[2] == 32
    assert ax.get_title() == f"step 3 of 3: {2 * 40 * (16 + 24):,} bytes read so far"
    with pytest.raises(ValueError, match="^block, step: "):
        plots.tile_walk((64, 64, 64), (16, 16, 16), block=(4, 0))
    with pytest.raises(ValueError, match="^block, step: "):
        plots.tile_walk((64, 64, 64), (16, 16, 16), step=4)


def test_tiles_stand_under_the_roof():
    ax = plots.tile_roofline([8, 64], 3e12, 60e12, chosen=64)
    roof, small, chosen = ax.lines
    assert roof.get_ydata()[1:].tolist() == [60, 60] and roof.get_xdata()[1] == 20
    assert small.get_xydata().tolist() == [[4, 12]]
    assert chosen.get_xydata().tolist() == [[32, 60]]  # 64 elements of 2 bytes: at the roof
    assert small.get_markerfacecolor() == "none" != chosen.get_markerfacecolor()


@pytest.mark.parametrize("name", ["m16n8k16_bf16", "m16n8k8_tf32", "m16n8k32_s8"])
def test_a_fragment_map_covers_each_element_once(name):
    layout = mma_layout(name)
    ax = plots.fragment_map(layout, lane=14)
    numbers = [text for text in texts(ax)[:] if text.isdigit()]
    registers = sum(32 * where.shape[1] for where in layout.values())
    assert len(ax.patches) == registers and len(numbers) >= registers
    area = sum(box.get_width() * box.get_height() for box in ax.patches)
    assert area == sum(where.size // 2 for where in layout.values())
    framed = [box for box in ax.patches if box.get_linewidth() > 1]
    assert len(framed) == sum(where.shape[1] for where in layout.values())
    assert legend(ax)[0] == "register 0"


def test_a_fragment_lies_where_the_layout_says():
    ax = plots.fragment_map(MMA, lane=14)
    framed = [bounds(box) for box in ax.patches if box.get_linewidth() > 1]
    assert framed[:4] == [(4, 3, 2, 1), (4, 11, 2, 1), (12, 3, 2, 1), (12, 11, 2, 1)]
    colours = {to_rgb(box.get_facecolor()) for box in ax.patches}
    assert colours == {tuple(pale(PALETTE[k], 0.5)) for k in range(4)}


def test_accumulators_of_a_thread():
    rows, columns = accumulator_places(16)
    ax = plots.accumulator_map(rows, columns, thread=37)
    registers = {t.get_text(): t.get_position() for t in ax.texts if t.get_text().isdigit()}
    assert len(registers) == 8
    for register, at in registers.items():
        assert at == (columns[37, int(register)], rows[37, int(register)])
    image = ax.get_images()[0].get_array()
    assert image.shape == (64, 16, 3)
    assert len(np.unique(image.reshape(-1, 3), axis=0)) == 4  # a band for each warp
    assert texts(ax)[-4:] == ["warp 0", "warp 1", "warp 2", "warp 3"]


def test_intervals_stand_in_their_rows():
    ax = CALLS["pipeline_timeline"]()
    bars = [(bar.get_x(), bar.get_width(), round(bar.get_y() + 0.33)) for bar in ax.patches]
    assert bars == [(0, 1, 0), (1, 1, 0), (1, 1.5, 1)]
    assert texts(ax) == ["0", "1", "0"] and legend(ax) == ["load", "multiply"]
    colours = [bar.get_facecolor() for bar in ax.patches]
    assert colours[0] == colours[1] != colours[2]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["producer", "consumer"]


def test_growth_has_a_panel_each_and_one_legend():
    axes = CALLS["attention_growth"]()
    assert axes[0].lines[1].get_xydata().tolist() == [[64, 1], [128, 2]]
    assert math.isnan(axes[1].lines[0].get_ydata()[1])
    assert axes[1].lines[0].get_color() == axes[0].lines[1].get_color()  # the same name
    assert legend(axes[0]) == ["a", "b"] and axes[1].get_legend() is None


def test_tiles_are_coloured_by_their_state():
    ax = CALLS["tile_order"]()
    assert texts(ax) == ["0", "1", "2"]
    faces = [box.get_facecolor() for box in ax.patches]
    assert faces[0] == faces[3] != faces[2] and faces[1][3] == 0
    assert legend(ax) == ["full: 1", "partial: 2", "skipped: 1"]
    labels = plots.tile_order(STATES, sizes=(64, 128)).get_xticklabels()
    assert [label.get_text() for label in labels] == ["0", "128", "256"]
    with pytest.raises(
        ValueError, match="^states: must be one of full, partial, empty, got 'half'$"
    ):
        plots.tile_order([["half"]])


def test_errors_of_both_sides_stand_in_a_row():
    ax = CALLS["errors_of_both"]()
    ours, theirs, bound = ax.lines
    assert ours.get_xdata().tolist() == [1e-3, 1e-3]  # 0 has no logarithm: at the left edge
    assert theirs.get_xdata().tolist() == [2e-3]
    assert np.round(ours.get_ydata()).tolist() == [0, 1] and bound.get_xdata()[0] == 2**-8


def test_squares_fill_their_box_in_proportion():
    sizes = [6, 6, 4, 3, 2, 2, 1]  # the example of the paper, in a box of 6 by 4
    boxes = squarify(sizes, (0, 0, 6, 4))
    assert [w * h for _, _, w, h in boxes] == pytest.approx(sizes)
    assert boxes[0] == pytest.approx((0, 0, 3, 2)) and boxes[1] == pytest.approx((0, 2, 3, 2))
    ratios = [max(w / h, h / w) for _, _, w, h in boxes]
    assert max(ratios) < 3
    for i, (x, y, w, h) in enumerate(boxes):
        assert -1e-9 <= x and x + w <= 6 + 1e-9 and -1e-9 <= y and y + h <= 4 + 1e-9
        for u, v, s, t in boxes[:i]:  # no two overlap
            assert min(x + w, u + s) - max(x, u) < 1e-9 or min(y + h, v + t) - max(y, v) < 1e-9
    shuffled = squarify([1, 6, 2], (0, 0, 3, 3))
    assert [w * h for _, _, w, h in shuffled] == pytest.approx([1, 6, 2])
    assert squarify([], (0, 0, 1, 1)) == [] and squarify([0, 1], (0, 0, 1, 1))[0][2:] == (0, 0)


def test_areas_of_a_step_are_its_bytes():
    ax = CALLS["step_treemap"]()
    areas = [box.get_width() * box.get_height() for box in ax.patches]
    whole = ax.get_xlim()[1] * ax.get_ylim()[0]
    assert areas == pytest.approx([whole * share / 18 for share in (6, 6, 4, 2)])
    colours = [box.get_facecolor() for box in ax.patches]
    assert colours[0] == colours[1] and len(set(colours)) == 3
    assert legend(ax) == ["GEMM: 67 %", "norm: 22 %", "copy: 11 %"]
    assert ax.get_title() == "18 B moved" and "qkv 6" in texts(ax)
    half = plots.step_treemap(STEP, unit="B", whole=36)
    areas = [box.get_width() * box.get_height() for box in half.patches]
    assert sum(areas) == pytest.approx(half.get_xlim()[1] * half.get_ylim()[0] / 2)
    with pytest.raises(ValueError, match="^whole: must be at least 18 bytes"):
        plots.step_treemap(STEP, whole=17)


def test_memory_is_stacked_and_summed():
    runs = {"eager": {"weights": 2**30, "logits": 2**31}, "fused": {"weights": 2**30}}
    ax = plots.memory_parts(runs, limit=2**33)
    assert [(bar.get_x(), bar.get_width()) for bar in ax.patches] == [
        (0, 1),
        (0, 1),
        (1, 2),
        (1, 0),
    ]
    assert texts(ax) == ["3", "1"] and ax.lines[0].get_xdata()[0] == 8
