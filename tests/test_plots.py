"""Figures show their data: what is drawn is read back from the artists."""

import inspect
import math

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from test_plots_matmul import CALLS as CALLS_OF_TILES

from minilm import plots
from minilm.figure import GREY, INK, PALETTE, pale, readable, short

FIGURES = [
    name for name in plots.__all__ if inspect.isfunction(getattr(plots, name)) and name != "style"
]
CAUSAL = torch.rand(6, 6).tril().softmax(-1).tril()
ROWS = [
    {"step": i, "tokens": 16 * i, "loss": 6 - i / 9, "bits_per_byte": 3 - i / 30} for i in range(30)
]
ROWS[20] |= {"valid_bits_per_byte": 2.9, "valid_loss": 5.0}
ROWS[10] |= {"valid_bits_per_byte": 3.1, "valid_loss": 6.0}
WORDS = ["def", " add", "(", "a", "):", "\n   "]

EVENTS = [(0, "store", 0), (1, "load", 0), (1, "store", 1)]
CALLS = dict(
    access_timeline=lambda **k: plots.access_timeline(EVENTS, pair=(0, 1), **k),
    attention_map=lambda **k: plots.attention_map(CAUSAL, WORDS, **k),
    attention_steps=lambda **k: plots.attention_steps({0: CAUSAL, 100: CAUSAL}, WORDS, **k),
    bank_map=lambda **k: plots.bank_map({"row": range(32), "column": [0] * 32}, **k),
    batch_grid=lambda **k: plots.batch_grid([[5, 6, 7], [7, 8, 5]], **k),
    compression=lambda **k: plots.compression({"code": ([256, 512], [1.0, 1.8])}, **k),
    gradient_norms=lambda **k: plots.gradient_norms([0, 1], {"block 0": [1.0, 0.5]}, **k),
    head_shapes=lambda **k: plots.head_shapes(T=6, C=64, H=4, D=16, **k),
    heat_map=lambda ax=None: plots.heat_map(CAUSAL, ax or plt.subplots()[1]).axes,
    ladder=lambda **k: plots.ladder({"ln V": 8.0, "unigram": 5.0, "model": 1.9}, **k),
    languages=lambda **k: plots.languages({"Python": [("a$ = b", 0), ("", None)]}, **k),
    launch_floor=lambda **k: plots.launch_floor({"ours": 2e-6}, 3e12, **k),
    learning_rate_sweep=lambda **k: plots.learning_rate_sweep(
        {"AdamW": ([1e-3, 1e-2, 1e-1], [3.0, 2.0, math.nan])}, **k
    ),
    lines=lambda **k: plots.lines({"a": ([0, 1], [1, 2])}, xlabel="x", **k),
    loss_curves=lambda **k: plots.loss_curves({"tiny": ROWS}, **k),
    merges=lambda **k: plots.merges([1.0, 1.2, 1.3], ["  ", b"\xc3\xa9"], **k),
    next_token_bars=lambda **k: plots.next_token_bars([0.1, 0.6, 0.3], ["a", "b", "$"], **k),
    pipeline=lambda **k: plots.pipeline(
        "def add(a):\n", WORDS, range(6), torch.randn(6, 30), CAUSAL, [0.2, 0.5, 0.3], str, 2, **k
    ),
    registers=lambda **k: plots.registers({"add": {"sm_75": 14, "sm_90": 16}}, **k),
    rung_speeds=lambda **k: plots.rung_speeds({"sum": {"a": 1.0, "b": 2.5}}, 3.0, **k),
    rungs_under_roof=lambda **k: plots.rungs_under_roof(
        {"a": (0.1, 1e11), "b": (0.5, None)}, 3e12, 60e12, **k
    ),
    schedule=lambda **k: plots.schedule([0.0, 1.0, 0.5], **k),
    score_steps=lambda **k: plots.score_steps({"Q Kᵀ": CAUSAL, "mask": CAUSAL.log()}, WORDS, **k),
    score_variance=lambda **k: plots.score_variance([2, 4], [2.1, 3.9], [1.0, 0.9], **k),
    stage_times=lambda **k: plots.stage_times({"minilm": {"split": 1.0, "merge": 2.0}}, **k),
    stride_sectors=lambda **k: plots.stride_sectors([1, 2, 8], [4, 8, 32], **k),
    token_lengths=lambda **k: plots.token_lengths([1, 1, 2, 5], **k),
    token_strip=lambda **k: plots.token_strip(WORDS, **k),
    traffic=lambda **k: plots.traffic({"naive": {"read": 2048, "write": 1024}}, par=1024, **k),
    update_ratios=lambda **k: plots.update_ratios([0, 1], {"w": [1e-2, 1e-3]}, **k),
    weight_histograms=lambda **k: plots.weight_histograms({0: torch.randn(200)}, **k),
)
CALLS |= CALLS_OF_TILES  # figures of notebooks 10, 11 and 14
PANELS = dict(attention_growth=2, attention_steps=2, score_steps=2)


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def texts(ax):
    return [text.get_text() for text in ax.texts]


def images(ax):
    return [np.ma.getdata(image.get_array()) for image in ax.get_images()]


def test_every_figure_is_called_here():
    assert set(CALLS) == set(FIGURES)


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_of_its_own_or_the_axes_that_were_given(name):
    own = CALLS[name]()
    np.ravel(own)[0].figure.canvas.draw()  # a missing letter would warn, and warnings are errors
    n = PANELS.get(name)
    _, given = plt.subplots(1, n or 1, squeeze=False)
    before = len(plt.get_fignums())
    result = CALLS[name](axes=given[0]) if n else CALLS[name](ax=given[0, 0])
    assert list(np.ravel(result)) == list(given[0])
    assert len(plt.get_fignums()) == before


@pytest.mark.parametrize("name", sorted(PANELS))
def test_the_number_of_panels_is_checked(name):
    with pytest.raises(ValueError, match="^axes: must be 2 Axes, one for each panel, got 3$"):
        CALLS[name](axes=plt.subplots(1, 3)[1])


def luminance(colour):
    channels = [c / 12.92 if c <= 0.04 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return float(np.dot((0.2126, 0.7152, 0.0722), channels))


def contrast(a, b):
    """WCAG 2, section 1.4.3: 4.5 is asked of small letters, 3 of large ones and of graphics."""
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("page", ["white", "#111111"])
def test_grey_is_readable_on_light_and_dark_pages(page):
    assert contrast(GREY, page) > 4
    assert contrast(PALETTE[0], page) > 3  # the first two colours, of most curves and bars
    assert contrast(PALETTE[1], page) > 3


def test_letters_in_boxes_are_readable():
    assert all(contrast(INK, pale(colour, 0.55)) > 4.5 for colour in PALETTE)


@pytest.mark.parametrize("name", FIGURES)
def test_nothing_is_drawn_for_one_kind_of_page(name):
    for ax in np.ravel(CALLS[name]()):
        if name != "heat_map":  # which leaves the rest of the Axes to its caller
            assert ax.get_facecolor()[3] == 0 and ax.figure.get_facecolor()[3] == 0
        outside = [ax.title, ax.xaxis.label, ax.yaxis.label]
        if name != "heat_map":
            outside += [*ax.get_xticklabels(), *ax.get_yticklabels()]
        allowed = {to_rgb(GREY)} if name != "heat_map" else {to_rgb(GREY), to_rgb("black")}
        assert {to_rgb(text.get_color()) for text in outside} <= allowed


def test_style_is_for_every_figure_after_it():
    with plt.rc_context():
        settings = plots.style()
        fig, ax = plt.subplots()
        assert fig.get_facecolor()[3] == 0 and ax.title.get_color() == GREY
        (line,) = ax.plot([0, 1])
        assert line.get_color() == PALETTE[0] == settings["axes.prop_cycle"].by_key()["color"][0]


def test_readable():
    assert readable("a b\n\t") == "a·b↵→"
    assert readable("$x$") == r"\$x\$"
    assert readable("中🙂é") == "□□é"  # what the font has no letter for
    assert short(" " * 8) == "·×8" and short("   ") == "···"
    assert short("abcdefghijkl") == "abcdefghi…" and short("abcdefghij") == "abcdefghij"


def test_token_strip_has_a_box_for_each_character():
    ax = plots.token_strip(["de", "f\n", " x", "é".encode(), b"\xf0\x9f"], width=4)
    # Lines of at most four: "def↵", "·xé" and the two bytes, of which one is wrapped.
    assert texts(ax) == ["d", "e", "f", "↵", "·", "x", "é", "f0", "9f"]
    assert [text.get_position() for text in ax.texts[4:]] == [
        (0.5, 1.5), (1.5, 1.5), (2.5, 1.5), (3.5, 1.5), (0.5, 2.5),
    ]  # fmt: skip
    colours = ax.collections[0].get_facecolors()
    assert len(colours) == 9
    same = [bool((colours[i] == colours[i + 1]).all()) for i in range(8)]
    assert same == [True, False, True, False, True, False, False, True]  # one per token


def test_token_strip_by_value():
    ax = plots.token_strip(["a", "b", "c"], [0.0, 8.0, math.nan], vmax=8)
    low, high, unknown = ax.collections[0].get_facecolors()
    assert low[2] > 0.9 and high[2] < 0.2 and len(set(unknown[:3])) == 1  # the last is a grey
    bar = ax.figure.axes[1]
    assert bar.get_ylabel() == "surprisal (bits)" and bar.get_ylim() == (0, 8)
    with pytest.raises(ValueError, match="^values: must be one number per piece, 3, got 2$"):
        plots.token_strip(["a", "b", "c"], [1, 2])


def test_batch_grid_cells():
    ax = plots.batch_grid(
        [[5, 6, 0], [6, 5, 7]],
        mask=[[0, 1, 0], [0, 0, 1]],
        segments=[[0, 0, -1], [0, 1, 1]],
        label=lambda i: {5: "t5", 6: b"t6", 7: ""}[i],  # padding is not asked for
    )
    assert texts(ax) == ["t5", "t6", "t6", "t5", ""]
    cells = ax.patches
    assert [cell.get_linewidth() > 0 for cell in cells] == [False, True, False, False, False, True]
    assert [cell.get_hatch() is not None for cell in cells] == [False, False, True] + [False] * 3
    borders = {tuple(line.get_xdata()) + tuple(line.get_ydata()) for line in ax.lines}
    assert borders == {(2, 2, 0, 1), (1, 1, 1, 2)}
    assert [t.get_text() for t in ax.get_yticklabels()] == ["row 0", "row 1"]


def test_batch_grid_with_targets():
    ax = plots.batch_grid([[5, 6, 7]], targets=[[6, 7, -100]])
    assert texts(ax) == ["5", "6", "7", "6", "7"]
    colours = [cell.get_facecolor() for cell in ax.patches]
    assert colours[1] == colours[3] and colours[2] == colours[4]  # the same id, the same colour
    assert colours[0] != colours[1]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["row 0 sees", "row 0 predicts"]


def test_merges_curve_and_names():
    ax = plots.merges([1.0, 1.2, 1.3, 1.4], ["  ", b"ab", "$"])
    assert ax.lines[0].get_ydata().tolist() == [1.0, 1.2, 1.3, 1.4]
    assert texts(ax) == ["··", "ab", r"\$"]
    assert plots.merges([1.0]).lines  # no merge yet


def test_compression_curves():
    ax = plots.compression({"code": ([256, 512], [1, 2]), "prose": ([256, 1024], [1, 3])})
    assert [line.get_label() for line in ax.lines] == ["code", "prose"]
    assert ax.lines[1].get_xydata().tolist() == [[256, 1], [1024, 3]]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["256", "512", "1,024"]


def test_token_lengths_are_shares():
    ax = plots.token_lengths([1, 1, 2, 5])
    assert [bar.get_height() for bar in ax.patches] == [50, 25, 0, 0, 25]
    two = plots.token_lengths({"a": [1, 2], "b": [3]})
    assert [bar.get_height() for bar in two.patches] == [50, 50, 0, 0, 0, 100]


def test_stage_times_stand_in_a_row():
    ax = plots.stage_times({"us": {"split": 1.0, "merge": 2.0}, "them": {"merge": 5.0}})
    bars = [(bar.get_x(), bar.get_width()) for bar in ax.patches]
    assert bars == [(0, 1), (0, 0), (1, 2), (0, 5)]
    assert texts(ax) == [" 3 s", " 5 s"]


def test_ladder_bars():
    ax = plots.ladder({"ln V": 8.0, "unigram": 5.0, "model": 1.9}, ours="model")
    assert [bar.get_width() for bar in ax.patches] == [8.0, 5.0, 1.9]
    ours = [to_rgb(bar.get_facecolor()) == to_rgb(PALETTE[1]) for bar in ax.patches]
    assert ours == [False, False, True]
    assert texts(ax) == [" 8.00", " 5.00", " 1.90"]


def test_next_token_bars_are_sorted_and_show_what_was_drawn():
    p = torch.tensor([0.05, 0.6, 0.3, 0.05])
    ax = plots.next_token_bars(p, ["a", "b", " c", "d"], top=2, chosen=3)
    assert [bar.get_width() for bar in ax.patches] == pytest.approx([60, 5])
    assert [t.get_text() for t in ax.get_yticklabels()] == ["b", "d"]
    assert to_rgb(ax.patches[1].get_facecolor()) == to_rgb(PALETTE[1])
    assert len(plots.next_token_bars(p, str).patches) == 4


def test_heat_map_shows_the_matrix():
    _, ax = plt.subplots()
    hidden = np.zeros((6, 6), bool)
    hidden[0, 3:] = True
    plots.heat_map(CAUSAL, ax, hidden=hidden, text=".1f")
    np.testing.assert_allclose(images(ax)[0], CAUSAL)
    assert (np.ma.getmaskarray(ax.get_images()[0].get_array()) == hidden).all()
    assert len(texts(ax)) == 33 and texts(ax)[0] == f"{CAUSAL[0, 0]:.1f}"
    (hatched,) = ax.collections[0].get_paths()  # the run of three is one box
    assert hatched.get_extents().bounds == (2.5, -0.5, 3, 1)


def test_attention_map_hides_the_future_only_if_it_is_exactly_zero():
    ax = plots.attention_map(CAUSAL, WORDS)
    np.testing.assert_allclose(images(ax)[0], CAUSAL)
    mask = np.ma.getmaskarray(ax.get_images()[0].get_array())
    assert (mask == np.triu(np.ones((6, 6), bool), 1)).all()
    assert [t.get_text() for t in ax.get_yticklabels()] == [short(word) for word in WORDS]
    both_ways = torch.full((6, 6), 1 / 6)
    shown = plots.attention_map(both_ways).get_images()[0]
    assert not np.ma.getmaskarray(shown.get_array()).any() and shown.get_clim() == (0, 1)


def test_many_labels_are_thinned_out():
    ax = plots.attention_map(torch.eye(100), [f"w{i}" for i in range(100)])
    labels = ax.get_yticklabels()
    assert 10 < len(labels) < 100 and all(label.get_fontsize() >= 7 for label in labels)
    assert [label.get_text() for label in labels[:2]] == ["w0", f"w{int(ax.get_yticks()[1])}"]


def test_steps_of_attention_and_of_scores():
    maps = {0: CAUSAL, 1000: CAUSAL / 2}
    axes = plots.attention_steps(maps)
    assert [ax.get_title() for ax in axes] == ["step 0", "step 1,000"]
    np.testing.assert_allclose(images(axes[1])[0], CAUSAL / 2)
    axes = plots.score_steps({"raw": CAUSAL, "mask": CAUSAL.log()})
    assert np.ma.getmaskarray(axes[1].get_images()[0].get_array()).sum() == 15  # −∞ is hidden
    assert len(texts(axes[0])) == 36 and len(texts(axes[1])) == 21


def test_score_variance_points_and_law():
    ax = plots.score_variance([2, 8], [2.1, 7.9], [1.0, 0.9])
    lines = {line.get_label(): line.get_ydata().tolist() for line in ax.lines}
    assert lines["q · k"] == [2.1, 7.9] and lines["q · k / √D"] == [1.0, 0.9]
    assert lines["D and 1"] == [2, 8]


def test_head_shapes_to_scale():
    ax = plots.head_shapes(T=40, C=80, H=4, D=20)
    boxes = [(box.get_height(), box.get_width()) for box in ax.patches]
    expected = [(40, 80), (80, 20), (40, 20), (40, 40), (40, 20)] + [(40, 20)] * 4
    expected += [(80, 80), (40, 80)]
    np.testing.assert_allclose(np.array(boxes) * 80, expected)
    assert "T × H·D\n40 × 80" in texts(ax)


def test_pipeline_holds_every_station():
    ax = CALLS["pipeline"]()
    panels = ax.child_axes
    assert len(panels) == 7
    assert texts(panels[0]) == ["def·add(a):↵"]
    assert texts(panels[1])[0].split()[:3] == ["64", "65", "66"]
    assert texts(panels[2])[:4] == ["def", "0", "·add", "1"]
    assert images(panels[3])[0].shape == (6, 24)
    np.testing.assert_allclose(images(panels[4])[0], CAUSAL)
    assert [bar.get_width() for bar in panels[5].patches] == [0.5, 0.3, 0.2]
    assert texts(panels[6]) == ["2"]


def test_loss_curves_read_the_history():
    ax = plots.loss_curves({"tiny": ROWS})
    training, validation = ax.lines
    assert training.get_xydata().tolist() == [[r["step"], r["bits_per_byte"]] for r in ROWS]
    assert validation.get_xydata().tolist() == [[10, 3.1], [20, 2.9]]
    assert validation.get_label() == "tiny, validation"
    smooth = plots.loss_curves({"tiny": ROWS}, y="loss", x="tokens", smooth=5)
    raw, mean = smooth.lines[:2]
    assert len(raw.get_ydata()) == 30 and mean.get_xdata()[0] == 16 * 4
    assert mean.get_ydata()[0] == pytest.approx(np.mean([r["loss"] for r in ROWS[:5]]))
    other = plots.loss_curves({"a": [{"step": 1}, {"step": 2, "loss": None}, *ROWS[:2]]}, y="loss")
    assert other.lines[0].get_xdata().tolist() == [0, 1]


def test_lines_of_training():
    ax = plots.gradient_norms([0, 5], {"block 0": [1.0, 0.5], "block 1": [2.0, 0.1]})
    assert ax.lines[1].get_xydata().tolist() == [[0, 2.0], [5, 0.1]]
    ax = plots.update_ratios([0, 5], {"w": [1e-2, 1e-3]})
    assert ax.lines[0].get_ydata().tolist() == [1e-2, 1e-3] and ax.lines[1].get_ydata()[0] == 1e-3
    ax = plots.schedule({"cosine": [0.0, 1.0, 0.5], "flat": [1, 1, 1]})
    assert ax.lines[0].get_ydata().tolist() == [0.0, 1.0, 0.5] and len(ax.lines) == 2
    ax = plots.lines({"a": ([0, 1], [5, 6]), "b": ([2], [3])}, ylabel="nats")
    assert ax.lines[0].get_ydata().tolist() == [5, 6] and ax.get_ylabel() == "nats"


def test_learning_rate_sweep_marks_the_best_and_the_lost():
    ax = plots.learning_rate_sweep({"AdamW": ([1e-3, 1e-2, 1e-1], [3.0, 2.0, math.nan])})
    curve, best, lost = ax.lines
    assert best.get_xydata().tolist() == [[1e-2, 2.0]]
    assert lost.get_xydata().tolist() == [[1e-1, 3.0]] and lost.get_marker() == "x"


def test_weight_histograms_count_the_weights():
    ax = plots.weight_histograms({0: torch.zeros(500), 10: torch.randn(10_000)}, bins=11)
    wide = ax.patches[-1].get_data()
    counts, edges = np.array(wide.values) - wide.baseline, wide.edges
    assert len(counts) == 11 and np.argmax(counts) == 5  # a bell around 0
    assert edges[0] == -edges[-1]
    assert texts(ax) == ["σ = 0.000", "σ = 1.00" + texts(ax)[1][-1]]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["step 0", "step 10"]


# Kernels


def test_accesses_stand_at_their_time_and_thread():
    ax = plots.access_timeline(EVENTS, pair=(0, 1))
    points = {line.get_label(): line.get_xydata().tolist() for line in ax.lines}
    assert points["store"] == [[0, 0], [2, 1]] and points["load"] == [[1, 1]]
    assert points["nothing orders these two"] == [[0, 0], [1, 1]]
    assert texts(ax) == ["0", "0", "1"]


def test_languages_are_coloured_by_part():
    ax = plots.languages({"a": [("x", 0), ("y", None)], "b": [("z", 0), ("w", 1)]})
    colours = [to_rgb(patch.get_facecolor()[:3]) for patch in ax.patches]
    assert colours[0] == colours[1] != colours[2] and len(colours) == 3
    assert texts(ax) == ["a", "x", "y", "b", "z", "w"]


def test_bars_of_registers_and_rungs_carry_their_numbers():
    ax = plots.registers({"add": {"sm_75": 14, "sm_90": 16}})
    assert [bar.get_height() for bar in ax.patches] == [14, 16] and "14" in texts(ax)
    ax = plots.rung_speeds({"sum": {"a": 1.0, "b": 2.5}, "max": {"a": 2.0}}, 3.0)
    assert texts(ax) == ["1.00", "2.50", "2.00"]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["sum: a", "sum: b", "max: a"]


def test_bytes_are_stacked_and_summed():
    ax = plots.traffic({"a": {"read": 3, "write": 1}, "b": {"read": 1}}, par=2, unit="B")
    assert texts(ax) == ["4", "1"]
    assert [bar.get_x() for bar in ax.patches] == [0, 0, 3, 1]
    assert ax.lines[0].get_xdata()[0] == 2


def test_strides_tell_the_share_that_is_used():
    ax = plots.stride_sectors([1, 2, 8], [4, 8, 32])
    assert texts(ax) == ["100 %", "50 %", "12.5 %"]


def test_banks_count_lanes():
    ax = plots.bank_map({"row": range(32), "column": [3] * 32})
    (lanes,) = images(ax)
    assert (lanes[0] == 1).all() and lanes[1].tolist() == [0, 0, 0, 32] + [0] * 28


def test_rungs_stand_where_they_were_measured_or_at_the_roof():
    ax = plots.rungs_under_roof({"a": (0.1, 1e11), "b": (0.5, None), "c": (99, None)}, 3e12, 6e13)
    heights = [float(line.get_ydata()[0]) for line in ax.lines[1:]]
    assert heights == [1e11, 1.5e12, 6e13]
    assert ax.lines[2].get_markerfacecolor() == "none" != ax.lines[1].get_markerfacecolor()


def test_a_launch_is_a_floor():
    ax = plots.launch_floor({"ours": 2e-6}, 3e12)
    curve = ax.lines[1].get_ydata()
    assert curve[0] == pytest.approx(2) and curve[-1] == pytest.approx(1e9 / 3e12 * 1e6)
    assert ax.lines[2].get_xdata()[0] == pytest.approx(6e6)  # the bytes that take as long
