"""Figures of attention in tiles: how its cost grows, which tiles are done, how exact it is."""

from collections.abc import Mapping, Sequence

import numpy as np

from .figure import DASHES, GREY, INK, PALETTE, check_axes, drawn, new_axes, pale

STATES = {"full": PALETTE[2], "partial": PALETTE[4], "empty": None}


@drawn
def attention_growth(
    lengths: Sequence[int], panels: Mapping[str, Mapping[str, Sequence[float]]], *, axes=None
):
    """Memory, bytes and time against T, a panel each. panels: label of the axis → name → values.

    A value may be NaN: what could not be run or was not measured leaves a gap.
    """
    axes = new_axes(4 * len(panels), 3.2, len(panels)) if axes is None else axes
    axes = check_axes(axes, len(panels))
    names = list(dict.fromkeys(name for curves in panels.values() for name in curves))
    for ax, (label, curves) in zip(axes, panels.items(), strict=True):
        for name, values in curves.items():
            k = names.index(name)
            look = dict(color=PALETTE[k % 7], linestyle=DASHES[k % 7], marker="os^Dv"[k % 5])
            ax.plot(lengths, values, label=name, markersize=5, **look)
        ax.set_xscale("log", base=2)
        ax.set_yscale("log")
        ticks = list(lengths)[:: max(1, len(lengths) // 4)]
        ax.set_xticks(ticks, [f"{T:,}" for T in ticks])
        ax.set(xlabel="T", ylabel=label)
        ax.grid(axis="y")
    shown = {}
    for ax in axes:
        for handle, name in zip(*ax.get_legend_handles_labels(), strict=True):
            shown.setdefault(name, handle)
    look = dict(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=len(shown))
    axes[0].legend(shown.values(), shown.keys(), **look)
    return axes


@drawn
def tile_order(states: Sequence[Sequence[str]], *, order=None, sizes=None, ax=None):
    """Which tiles of the scores are computed: "full", "partial" (needs the mask) or "empty".

    states  a row for each tile of queries, an entry for each tile of keys
    order   of the same shape: the number to write into a tile, e.g. when it is done; -1: none
    sizes   (queries, keys) of a tile, for the labels
    """
    from matplotlib.patches import Patch, Rectangle

    rows, columns = len(states), len(states[0])
    ax = ax or new_axes(0.42 * columns + 1.6, 0.42 * rows + 1.3)
    counts = dict.fromkeys(STATES, 0)
    for i, j in np.ndindex(rows, columns):
        state = states[i][j]
        if state not in STATES:
            raise ValueError(f"states: must be one of {', '.join(STATES)}, got {state!r}")
        counts[state] += 1
        colour = STATES[state]
        look = dict(facecolor=pale(colour, 0.6)) if colour else dict(facecolor="none", hatch="///")
        ax.add_patch(Rectangle((j, i), 1, 1, edgecolor=GREY, linewidth=0.8, **look))
        if order is not None and order[i][j] >= 0:
            ink = INK if colour else GREY
            ax.text(j + 0.5, i + 0.5, str(order[i][j]), ha="center", va="center", color=ink, size=8)
    q, k = sizes or (1, 1)
    for axis, count, size in ((ax.xaxis, columns, k), (ax.yaxis, rows, q)):
        every = max(1, count // 8)
        axis.set_ticks(
            range(0, count + 1, every), [f"{n * size:,}" for n in range(0, count + 1, every)]
        )
    what = "of tiles " if sizes is None else ""
    ax.set(xlabel=f"keys {what}".strip(), ylabel=f"queries {what}".strip())
    ax.set_xlim(0, columns)
    ax.set_ylim(rows, 0)
    ax.set_aspect("equal")
    patches = []
    for state, colour in STATES.items():
        look = dict(facecolor=pale(colour, 0.6)) if colour else dict(facecolor="none", hatch="///")
        name = f"{'skipped' if state == 'empty' else state}: {counts[state]}"
        patches.append(Patch(edgecolor=GREY, label=name, **look))
    ax.legend(handles=patches, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3,
              handlelength=1.2, columnspacing=1.0)  # fmt: skip
    return ax


@drawn
def errors_of_both(errors: Mapping[str, Mapping[str, float]], *, bound: float = 0, ax=None):
    """Error against float64 of each side: errors[result][side], a point each on one scale.

    bound: the rounding of the format itself, dotted. An error of 0 stands at the left edge.
    """
    ax = ax or new_axes(6.5, 0.42 * len(errors) + 1.3)
    sides = list(dict.fromkeys(side for of in errors.values() for side in of))
    found = [value for of in errors.values() for value in of.values() if value > 0]
    least = 10 ** np.floor(np.log10(min([*found, bound or 1.0])))
    for k, side in enumerate(sides):
        shift = 0.3 * (k - (len(sides) - 1) / 2) / max(1, len(sides) - 1)
        points = [
            (max(of[side], least), y + shift) for y, of in enumerate(errors.values()) if side in of
        ]
        ax.plot(*zip(*points, strict=True), "os^Dv"[k % 5], color=PALETTE[k % 7], label=side)
    if bound:
        ax.axvline(bound, color=GREY, linestyle=":", label="rounding of the format")
    ax.set_xscale("log")
    ax.set_xlim(0.8 * least, 3 * max([*found, bound]))
    ax.set_yticks(range(len(errors)), list(errors))
    ax.set_ylim(len(errors) - 0.5, -0.5)
    ax.grid(axis="y")
    ax.set(xlabel="largest error against float64, over the largest value")
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(sides) + 1)
    return ax
