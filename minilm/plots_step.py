"""Figures of a training step: what its bytes are for, what it keeps in memory, how fast it is."""

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np

from .figure import GREY, INK, PALETTE, drawn, new_axes, pale
from .plots_matmul import bars_and_lines

UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


@drawn
def token_ladder(rungs: Mapping[str, float], peers: Mapping[str, float], *, ax=None):
    """Tokens/s of a training step as kernels are switched on; rivals as lines.

    Beside each bar: its tokens/s, and how many times those of the first rung.
    """
    ax = ax or new_axes(7, 0.32 * len(rungs) + 1.2)
    first = next(iter(rungs.values()))
    texts = [f"{value:,.0f}, × {value / first:.2f}" for value in rungs.values()]
    bars_and_lines(rungs, peers, ax, texts)
    ax.xaxis.set_major_formatter("{x:,.0f}")
    ax.set(xlabel="tokens/s")
    return ax


@drawn
def step_treemap(
    classes: Mapping[str, Mapping[str, float]], *, whole: float = 0, unit="GiB", ax=None
):
    """The bytes of one step as areas: classes[class][kernel], coloured by class.

    whole: bytes of the full figure, if more than these; two steps, each drawn with the larger total
    as `whole`, can be compared by area.
    """
    from matplotlib.patches import Patch, Rectangle

    ax = ax or new_axes(8, 3.8)
    totals = {name: sum(kernels.values()) for name, kernels in classes.items()}
    total = sum(totals.values())
    if not total or whole and whole < total:
        raise ValueError(f"whole: must be at least {total:,.0f} bytes, more than 0, got {whole:,}")
    colours = [pale(PALETTE[k % 7], 0.55 if k < 7 else 0.25) for k in range(len(classes))]
    names = [f"{name}: {100 * size / total:.2g} %" for name, size in totals.items()]
    patches = [Patch(color=colour, label=name) for colour, name in zip(colours, names, strict=True)]
    ax.legend(handles=patches, loc="center left", bbox_to_anchor=(1.0, 0.5))
    ax.set_title(f"{total / UNITS[unit]:.3g} {unit} moved")
    ax.set_axis_off()
    ax.figure.draw_without_rendering()  # how large is the Axes beside the legend?
    across, down = ax.get_window_extent().size / ax.figure.dpi
    scale = (total / (whole or total)) ** 0.5
    outer = squarify(list(totals.values()), (0, 0, across * scale, down * scale))
    for colour, kernels, box in zip(colours, classes.values(), outer, strict=True):
        inner = squarify(list(kernels.values()), box)
        for (kernel, size), (x, y, w, h) in zip(kernels.items(), inner, strict=True):
            look = dict(facecolor=colour, edgecolor="white", linewidth=0.8)
            ax.add_patch(Rectangle((x, y), w, h, **look))
            text = _fitting(f"{kernel} {size / UNITS[unit]:.3g}", w, h, 7.5)
            ax.text(x + w / 2, y + h / 2, text, ha="center", va="center", color=INK, size=7.5)
    ax.set_xlim(0, across)
    ax.set_ylim(down, 0)
    return ax


def _fitting(text: str, width: float, height: float, size: float) -> str:
    """Text in lines that fit into a box of inches, or nothing."""
    letters, most = int(width / (0.62 * size / 72)), int(height / (1.3 * size / 72))
    lines = textwrap.wrap(text, max(letters, 1), break_long_words=False)
    fits = len(lines) <= most and all(len(line) <= letters for line in lines)
    return "\n".join(lines) if fits else ""


def squarify(sizes: Sequence[float], box: Sequence[float]) -> list[tuple]:
    """Rectangles (x, y, width, height) in `box` with areas in proportion to sizes, as square as can
    be: rows along the shorter side, each filled while that makes its worst box better (Bruls,
    Huizing and van Wijk 2000, "Squarified Treemaps"). In the order of sizes.
    """
    x, y, width, height = map(float, box)
    scale = width * height / (sum(sizes) or 1)
    waiting = sorted(range(len(sizes)), key=lambda i: -sizes[i])
    found: list[tuple] = [(x, y, 0.0, 0.0)] * len(sizes)
    while waiting:
        side = min(width, height)
        row = waiting[:1]
        while len(row) < len(waiting):
            more = waiting[: len(row) + 1]
            if _worst([scale * sizes[i] for i in more], side) > _worst(
                [scale * sizes[i] for i in row], side
            ):
                break
            row = more
        area = scale * sum(sizes[i] for i in row)
        deep = area / side if side else 0.0
        at = 0.0
        for i in row:
            long = scale * sizes[i] / deep if deep else 0.0
            upright = width >= height
            found[i] = (x, y + at, deep, long) if upright else (x + at, y, long, deep)
            at += long
        if width >= height:
            x, width = x + deep, width - deep
        else:
            y, height = y + deep, height - deep
        waiting = waiting[len(row) :]
    return found


def _worst(areas: Sequence[float], side: float) -> float:
    """The largest ratio of length to width in a row of these areas along a side."""
    total = sum(areas)
    if not side or not min(areas):
        return float("inf")
    return max(side**2 * max(areas) / total**2, total**2 / (side**2 * min(areas)))


@drawn
def memory_parts(runs: Mapping[str, Mapping[str, float]], *, limit: float = 0, unit="GiB", ax=None):
    """Memory by part, a bar for each run: weights, gradients, optimizer, activations, … in bytes.

    limit: bytes of the device, dotted.
    """
    ax = ax or new_axes(7, 0.5 * len(runs) + 1.4)
    parts = list(dict.fromkeys(part for of in runs.values() for part in of))
    ends = np.zeros(len(runs))
    for k, part in enumerate(parts):
        values = np.array([of.get(part, 0) / UNITS[unit] for of in runs.values()])
        ax.barh(range(len(runs)), values, left=ends, height=0.6, color=PALETTE[k % 7], label=part)
        ends += values
    for y, end in enumerate(ends):
        ax.text(end + 0.01 * ends.max(), y, f"{end:.3g}", va="center", size=8)
    if limit:
        ax.axvline(limit / UNITS[unit], color=GREY, linestyle=":", label="the device has")
    ax.set_yticks(range(len(runs)), list(runs))
    ax.set_ylim(len(runs) - 0.5, -0.5)
    ax.set_xlim(0, 1.1 * max(ends.max(), limit / UNITS[unit]))
    ax.set(xlabel=f"{unit} at the largest")
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4)
    return ax
