"""Figures of matrix products: ladders, tiles, who holds which element, and what overlaps."""

from collections.abc import Mapping, Sequence

import numpy as np

from .figure import DASHES, GREY, INK, PALETTE, drawn, new_axes, pale


def bars_and_lines(bars: Mapping[str, float], lines: Mapping[str, float], ax, texts: Sequence[str]):
    """A bar for each rung, from the top, with a text each, and a dotted line for each rival."""
    most = max([*bars.values(), *lines.values()])
    for y, (value, text) in enumerate(zip(bars.values(), texts, strict=True)):
        ax.barh(y, value, height=0.68, color=PALETTE[0])
        ax.text(1.03 * most, y, text, va="center", size=8)
    for k, (name, value) in enumerate(lines.items()):
        look = dict(color=PALETTE[1 + k % 5], linestyle=DASHES[3 - k % 3], linewidth=1.6)
        ax.axvline(value, label=name, **look)
    ax.set_yticks(range(len(bars)), list(bars))
    ax.set_ylim(len(bars) - 0.5, -0.5)
    ax.set_xlim(0, 1.02 * most)
    if lines:
        ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
    return ax


@drawn
def flop_ladder(rungs: Mapping[str, float], library: Mapping[str, float], *, ax=None):
    """TFLOP/s of every rung, slowest first; the vendor's library (name → TFLOP/s) as lines.

    Beside each bar stand its TFLOP/s and its share of the first line.
    """
    ax = ax or new_axes(7, 0.32 * len(rungs) + 1.2)
    whole = next(iter(library.values()))
    texts = [f"{value:.3g}, {100 * value / whole:.3g} %" for value in rungs.values()]
    bars_and_lines(rungs, library, ax, texts)
    ax.set(xlabel="TFLOP/s (beside: and their share of the library's)")
    return ax


@drawn
def tile_walk(shape, tile, *, block=(0, 0), step=0, itemsize=2, ax=None):
    """What one block holds at one step of C = A B: tiles of A and of B, and its part of C.

    shape  (M, N, K), tile (rows of C, columns of C, elements along K), all in elements
    block  (row, column) of the block in the grid of tiles, step from 0
    """
    ax = ax or new_axes(5.2, 5)
    (M, N, K), (m, n, k) = shape, tile
    row, column = block[0] * m, block[1] * n
    if not (0 <= row < M and 0 <= column < N and 0 <= step < -(-K // k)):
        raise ValueError(f"block, step: {block}, {step} is outside of {shape} in tiles of {tile}")
    gap = 0.08 * max(shape)
    left, top = -K - gap, -K - gap
    begin = step * k
    m, n, k = min(m, M - row), min(n, N - column), min(k, K - begin)
    _box(ax, left, 0, K, M, None, f"A  {M} × {K}")
    _box(ax, 0, top, N, K, None, f"B  {K} × {N}")
    _box(ax, 0, 0, N, M, None, f"C  {M} × {N}", below=True)
    for share, (a, b) in ((0.25, (0, K)), (0.5, (0, begin)), (1, (begin, begin + k))):
        _box(ax, left + a, row, b - a, m, pale(PALETTE[0], share))
        _box(ax, column, top + a, n, b - a, pale(PALETTE[1], share))
    _box(ax, column, row, n, m, PALETTE[2])
    read = (begin + k) * (m + n) * itemsize
    ax.set_title(f"step {step + 1} of {-(-K // tile[2])}: {read:,} bytes read so far", pad=12)
    ax.set_xlim(left - 0.3 * gap, N + 0.3 * gap)
    ax.set_ylim(M + gap, top - gap)
    ax.set_aspect("equal")
    ax.set_axis_off()
    return ax


def _box(ax, x, y, width, height, colour, name="", below=False):
    from matplotlib.patches import Rectangle

    if width and height:
        look = dict(facecolor="none", edgecolor=GREY) if colour is None else dict(facecolor=colour)
        ax.add_patch(Rectangle((x, y), width, height, linewidth=1, **look))
    at = (x + width / 2, y + height) if below else (x + width / 2, y)
    if name:
        ax.annotate(name, at, (0, -5 if below else 5), textcoords="offset points", size=9,
                    ha="center", va="top" if below else "bottom")  # fmt: skip


@drawn
def tile_roofline(
    tiles: Sequence[int], bandwidth: float, peak: float, *, chosen=None, itemsize=2, ax=None
):
    """Where square tiles put a product under the roof: T × T tiles make T / itemsize FLOPs a byte.

    bandwidth in bytes/s, peak in FLOP/s. chosen: the tile to mark.
    """
    ax = ax or new_axes(5.5, 3.8)
    ridge = peak / bandwidth
    x = np.array([min(tiles[0] / itemsize, ridge) / 2, ridge, 2 * max(tiles[-1] / itemsize, ridge)])
    ax.loglog(x, np.minimum(peak, x * bandwidth) / 1e12, "-", color=GREY)
    for size in tiles:
        intensity = size / itemsize
        at = (intensity, min(peak, intensity * bandwidth) / 1e12)
        face = PALETTE[1] if size == chosen else "none"
        ax.plot(*at, "o", color=PALETTE[1], markerfacecolor=face, markersize=8)
        ax.annotate(str(size), at, (0, -14), textcoords="offset points", size=8, ha="left")
    ax.set(xlabel="FLOPs per byte read (labels: edge of the tile)", ylabel="TFLOP/s at most")
    ax.set_title(f"{bandwidth / 1e12:.3g} TB/s, {peak / 1e12:,.4g} TFLOP/s")
    return ax


@drawn
def fragment_map(layout: Mapping[str, np.ndarray], *, lane: int | None = None, ax=None):
    """Which lane holds each element of A, B and C of an `mma` (number), in which register (colour).

    A box is a register: with 16-bit numbers it covers two elements. layout: `ptx.mma_layout(name)`.
    lane: whose registers get a frame.
    """
    from matplotlib.patches import Patch, Rectangle

    places = {name: np.asarray(where) for name, where in layout.items()}
    sizes = {name: where.reshape(-1, 2).max(0) + 1 for name, where in places.items()}
    width = sum(size[1] for size in sizes.values()) + 2.4 * len(sizes)
    height = max(size[0] for size in sizes.values())
    ax = ax or new_axes(min(12, 0.26 * width), 0.22 * height + 1.2)
    left = 0.0
    for name, where in places.items():
        rows, columns = sizes[name]
        for who, register in np.ndindex(*where.shape[:2]):
            (r, c), (down, across) = (
                where[who, register].min(0),
                np.ptp(where[who, register], 0) + 1,
            )
            mine = who == lane
            look = dict(edgecolor=INK if mine else "white", linewidth=1.6 if mine else 0.5)
            colour = pale(PALETTE[register], 0.5)
            box = Rectangle((left + c, r), across, down, facecolor=colour, **look)
            ax.add_patch(box).set_zorder(3 if mine else 2)
            ax.text(left + c + across / 2, r + down / 2, str(who), ha="center", va="center",
                    size=7, color=INK, weight="bold" if mine else "normal", zorder=4)  # fmt: skip
        for r in range(0, rows, 4):
            ax.text(left - 0.3, r + 0.5, str(r), ha="right", va="center", size=7)
        for c in range(0, columns, 4):
            ax.text(left + c + 0.5, -0.4, str(c), ha="center", va="center", size=7)
        ax.text(
            left + columns / 2, -1.5, f"{name.upper()}  {rows} × {columns}", ha="center", size=9
        )
        left += columns + 2.4
    count = max(where.shape[1] for where in places.values())
    patches = [Patch(color=pale(PALETTE[k], 0.5), label=f"register {k}") for k in range(count)]
    ax.legend(handles=patches, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=count)
    ax.set_xlim(-1.4, left - 2)
    ax.set_ylim(height + 0.1, -2.6)
    ax.set_aspect("equal")
    ax.set_axis_off()
    return ax


@drawn
def accumulator_map(rows, columns, *, thread: int = 37, ax=None):
    """The accumulators of a `wgmma`: warps as bands of colour, the registers of one thread inside.

    rows, columns: (128, registers) each, where the registers of each thread lie in D (64 × n).
    """
    rows, columns = np.asarray(rows), np.asarray(columns)
    height, width = int(rows.max()) + 1, int(columns.max()) + 1
    ax = ax or new_axes(0.2 * width + 1.2, 0.085 * height + 1)
    owner = np.empty((height, width), int)
    owner[rows, columns] = np.arange(len(rows))[:, None] // 32
    colours = np.array([pale(PALETTE[k], 0.4) for k in range(owner.max() + 1)])
    ax.imshow(colours[owner], aspect="auto", zorder=1)
    for register, at in enumerate(zip(columns[thread], rows[thread], strict=True)):
        ax.text(*at, str(register), ha="center", va="center", size=6.5, color="white", zorder=3,
                bbox=dict(boxstyle="square,pad=0.15", facecolor=INK, linewidth=0))  # fmt: skip
    for edge in range(8, max(height, width), 8):  # blocks of 8 × 8
        look = dict(color="white", linestyle="-", linewidth=0.8, zorder=2)
        ax.plot([-0.5, width - 0.5], [edge - 0.5] * 2, **look)
        ax.plot([edge - 0.5] * 2, [-0.5, height - 0.5], **look)
    ax.set_xlim(-0.5, width - 0.5)
    ax.set_ylim(height - 0.5, -0.5)
    for warp in range(owner.max() + 1):
        middle = np.argwhere(owner == warp)[:, 0].mean()
        ax.text(width, middle, f"warp {warp}", va="center", size=9)
    ax.set_xticks(range(0, width, 8))
    ax.set_yticks(range(0, height, 8))
    ax.set(xlabel="column of D", ylabel="row of D")
    ax.set_title(f"registers of thread {thread}: lane {thread % 32} of warp {thread // 32}")
    return ax


@drawn
def pipeline_timeline(intervals: Sequence[tuple], *, xlabel="time", ax=None):
    """Who does what when: (who, what, start, end), a row for each `who`, a colour for each kind.

    A kind is `what` up to the first space, so that "load 3" and "load 4" have one colour; the rest
    is written into the bar.
    """
    rows = list(dict.fromkeys(who for who, *_ in intervals))
    kinds = list(dict.fromkeys(what.split()[0] for _, what, *_ in intervals))
    ax = ax or new_axes(8, 0.5 * len(rows) + 1.2)
    for who, what, start, end in intervals:
        kind, _, name = what.partition(" ")
        k = kinds.index(kind)
        first = kind not in ax.get_legend_handles_labels()[1]
        box = ax.barh(rows.index(who), end - start, left=start, height=0.66, linewidth=0.8,
                      color=pale(PALETTE[k % 6], 0.6), edgecolor="white",
                      label=kind if first else None)  # fmt: skip
        if name:
            ax.bar_label(box, [name], label_type="center", color=INK, size=8)
    ax.set_yticks(range(len(rows)), rows)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set_xlim(min(i[2] for i in intervals), max(i[3] for i in intervals))
    ax.set(xlabel=xlabel)
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(kinds))
    return ax
