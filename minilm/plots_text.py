"""Figures of text as tokens: coloured source and coloured batches."""

from collections.abc import Callable, Sequence

import numpy as np

from .figure import (
    GREY,
    INK,
    PALETTE,
    colour_bar,
    drawn,
    new_axes,
    pale,
    readable,
    short,
)


@drawn
def token_strip(
    pieces: Sequence[str | bytes],
    values: Sequence[float] | None = None,
    *,
    width: int = 72,
    label: str = "surprisal (bits)",
    vmax: float | None = None,
    ax=None,
):
    """Source text, one box for each character, coloured by the token that it belongs to.

    pieces  the text of each token (N), as str or as bytes; bytes that are no whole characters
            are shown as hexadecimal numbers.
    values  (N) numbers: the colours show them, with a bar named `label` that ends at `vmax`; NaN,
            as for a first token, is grey. None: neighbouring tokens get different colours.
    width   characters in a line; longer lines are wrapped.
    """
    cells, n_rows, n_columns = _lay_out(pieces, width)
    if ax is None:
        inches = 0.105 * n_columns
        height = max(0.2 * n_rows + 0.25, 0.3 if values is None else 1.1)
        ax = new_axes(inches + (0.2 if values is None else 1.0), height)
    else:
        inches = ax.get_window_extent().width / ax.figure.dpi
    colours, mappable = _strip_colours(len(pieces), values, vmax)
    ax.set(xlim=(0, n_columns), ylim=(n_rows, 0), xticks=[], yticks=[])
    for spine in ax.spines.values():
        spine.set_visible(False)
    size = float(np.clip(1.4 * 72 * inches / n_columns, 4, 12))  # a letter is 0.6 of it wide
    ax.add_collection(_boxes(cells, colours))
    for row, column, text, _ in cells:
        small = size if len(text) == 1 or text == r"\$" else 0.6 * size
        ax.text(
            column + 0.5,
            row + 0.5,
            text,
            ha="center",
            va="center_baseline",
            family="DejaVu Sans Mono",
            size=small,
            color=INK,
            clip_on=True,
        )
    if mappable is not None:
        colour_bar(mappable, ax, label)
    return ax


def _lay_out(pieces, width: int) -> tuple[list[tuple[int, int, str, int]], int, int]:
    """Each character's (row, column, text, token), the number of rows, of columns."""
    cells, row, column, n_columns = [], 0, 0, 1
    for i, piece in enumerate(pieces):
        for text in _characters(piece):
            if column >= width:
                row, column = row + 1, 0
            cells.append((row, column, readable(text), i))
            column += 1
            n_columns = max(n_columns, column)
            if text == "\n":
                row, column = row + 1, 0
    n_rows = cells[-1][0] + 1 if cells else 1
    return cells, n_rows, n_columns


def _characters(piece: str | bytes) -> list[str]:
    if isinstance(piece, str):
        return list(piece)
    try:
        return list(piece.decode("utf-8"))
    except UnicodeDecodeError:
        return [f"{byte:02x}" for byte in piece]


def _strip_colours(n: int, values, vmax):
    """A colour for each token, and what a colour bar needs."""
    if values is None:
        return [pale(PALETTE[i % 6]) for i in range(n)], None
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    values = np.asarray(values, dtype=float)
    if len(values) != n:
        raise ValueError(f"values: must be one number per piece, {n}, got {len(values)}")
    cmap = LinearSegmentedColormap.from_list("surprise", ["#f4f4f4", "#f2c49b", "#d9691a"])
    cmap = cmap.with_extremes(bad="#bdbdbd")
    top = vmax or max(float(np.nanmax(values)), 1e-9)
    mappable = ScalarMappable(Normalize(0, top), cmap)
    return list(mappable.to_rgba(np.ma.masked_invalid(values))), mappable


def _boxes(cells, colours):
    """A box for each character; those of one token touch, between tokens there is a gap."""
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    token_at = {(row, column): i for row, column, _, i in cells}
    patches = []
    for row, column, _, i in cells:
        left = 0.0 if token_at.get((row, column - 1)) == i else 0.08
        right = 0.0 if token_at.get((row, column + 1)) == i else 0.08
        patches.append(Rectangle((column + left, row + 0.06), 1 - left - right, 0.88))
    colours = [colours[i] for _, _, _, i in cells]
    return PatchCollection(patches, facecolors=colours, linewidths=0)


@drawn
def batch_grid(
    ids,
    *,
    targets=None,
    mask=None,
    segments=None,
    label: Callable[[int], str] | None = None,
    ax=None,
):
    """A batch as a grid of coloured cells; the same id has the same colour everywhere.

    ids       (B, L) whole numbers.
    targets   (B, L): under each row of ids, what each position must predict; negative: nothing.
    mask      (B, L): cells where it is 0 are faded, cells where it is 1 are framed.
    segments  (B, L): a thick line between neighbours of different numbers; −1, padding, is hatched.
    label     id → text in its cell, for instance `lambda i: tok.decode([i])`; None: the number.
    """
    ids = np.asarray(ids)
    rows = [("", row) for row in ids]
    in_order = dict.fromkeys(ids.ravel().tolist())  # neighbours seldom share one of six colours
    colours = {i: PALETTE[n % 6] for n, i in enumerate(in_order)}
    if targets is not None:
        both = zip(ids, np.asarray(targets), strict=True)
        rows = [item for a, b in both for item in (("sees", a), ("predicts", b))]
    n_columns, per_row = ids.shape[1], len(rows) // len(ids)
    ax = ax or new_axes(min(12, 0.62 * n_columns + 0.8), 0.36 * len(rows) + 0.5)
    for y, (_, row) in enumerate(rows):
        b = y // per_row
        for x, value in enumerate(row):
            if value < 0 or (segments is not None and segments[b][x] == -1):
                _batch_cell(ax, x, y, None, GREY, None)
                continue
            kept = None if mask is None else bool(mask[b][x])
            colour = colours.setdefault(int(value), PALETTE[len(colours) % 6])
            text = str(value) if label is None else short(label(int(value)))
            _batch_cell(ax, x, y, text, colour, kept)
        if segments is not None:
            _borders(ax, y, np.asarray(segments[b]))
    ax.set(xlim=(-0.05, n_columns + 0.05), ylim=(len(rows) + 0.05, -0.05))
    names = [f"row {y // per_row} {name}".strip() for y, (name, _) in enumerate(rows)]
    ax.set_yticks(np.arange(len(rows)) + 0.5, names)
    ax.set_xticks(np.arange(n_columns) + 0.5, range(n_columns))
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)
    return ax


def _batch_cell(ax, x: int, y: int, text: str | None, colour: str, kept: bool | None) -> None:
    """One cell; without text it is padding, hatched."""
    from matplotlib.patches import Rectangle

    look = dict(facecolor=pale(colour, 0.12 if kept is False else 0.55), edgecolor=GREY)
    look |= dict(linewidth=2.2 if kept else 0)
    if text is None:
        look = dict(facecolor="none", edgecolor=GREY, linewidth=0, hatch="////")
    ax.add_patch(Rectangle((x + 0.04, y + 0.08), 0.92, 0.84, **look))
    if text is None:
        return
    size = min(9, 40 / max(len(text), 1))
    ink = GREY if kept is False else INK
    ax.text(x + 0.5, y + 0.5, text, ha="center", va="center", size=size, color=ink)


def _borders(ax, y: int, segments: np.ndarray) -> None:
    for x in np.flatnonzero(np.diff(segments)) + 1:
        ax.plot([x, x], [y, y + 1], color=GREY, linewidth=4, solid_capstyle="butt")
