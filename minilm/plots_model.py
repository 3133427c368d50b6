"""Figures of a model as a whole: shapes, the way of a text through it, what it predicts."""

from collections.abc import Mapping, Sequence

import numpy as np

from .figure import GREY, HEAT, INK, PALETTE, drawn, heat_map, new_axes, pale, readable, short


@drawn
def head_shapes(T: int, C: int, H: int, D: int, *, ax=None):
    """The matrices of attention with their shapes, from x (T, C) to y (T, C), to one scale."""
    ax = ax or new_axes(12, 2.9)
    steps = (  # name, rows, columns, their letters, colour, what comes next
        ("x", T, C, "T × C", PALETTE[6], "×"),
        ("$W_Q, W_K, W_V$", C, D, "C × D", PALETTE[4], "="),
        ("Q, K, V", T, D, "T × D", PALETTE[0], "→"),
        ("softmax\n$Q K^T / \\sqrt{D}$", T, T, "T × T", PALETTE[1], "× V ="),
        ("one head", T, D, "T × D", PALETTE[0], "→"),
        (f"{H} heads\nside by side", T, H * D, "T × H·D", PALETTE[0], "×"),
        ("$W_O$", H * D, C, "H·D × C", PALETTE[4], "="),
        ("y", T, C, "T × C", PALETTE[6], ""),
    )
    unit = 1.0 / max(T, C, H * D)
    gap, x = 0.34, 0.0
    for name, rows, columns, letters, colour, sign in steps:
        height, width = max(rows * unit, 0.1), max(columns * unit, 0.1)
        room = max(width, 0.66)
        left, middle = x + (room - width) / 2, x + room / 2
        parts = H if name.startswith(f"{H} heads") else 1
        for h in range(parts):
            share = 0.5 if parts == 1 else 0.35 + 0.3 * (h % 2)
            _box(ax, left + h * width / parts, height, width / parts, colour, share)
        ax.text(middle, height / 2 + 0.07, name, ha="center", va="bottom", size=10)
        shape = f"{letters}\n{rows} × {columns}"
        ax.text(middle, -height / 2 - 0.07, shape, ha="center", va="top", size=9)
        ax.text(x + room + gap / 2, 0, sign, ha="center", va="center", size=12)
        x += room + gap
    ax.set(xlim=(-0.05, x - gap + 0.05), ylim=(-0.9, 0.8), aspect="equal")
    ax.axis("off")
    return ax


def _box(ax, left: float, height: float, width: float, colour: str, share: float) -> None:
    from matplotlib.patches import Rectangle

    place = (left, -height / 2)
    ax.add_patch(Rectangle(place, width, height, facecolor=pale(colour, share), edgecolor=GREY))


@drawn
def pipeline(
    text: str,
    pieces: Sequence[str],
    ids: Sequence[int],
    vectors,
    attention,
    probabilities,
    piece_of,
    sampled: int,
    *,
    ax=None,
):
    """One strip through a whole model: text → bytes → tokens → vectors → attention → next token.

    text; pieces and ids (T) of its tokens; vectors (T, C), the first 24 columns are shown;
    attention (T, T) of a head; probabilities (V) of the next token; piece_of: id → text;
    sampled: the id that was drawn.
    """
    ax = ax or new_axes(12.5, 2.9)
    ax.axis("off")
    widths = (1.3, 1.2, 1.5, 1.6, 1.6, 1.9, 1.0)
    titles = (
        "text",
        "bytes",
        "tokens",
        f"vectors {np.shape(vectors)[0]} × {np.shape(vectors)[1]}",
        "attention",
        "probabilities",
        "sampled",
    )
    gap = 0.35
    total = sum(widths) + gap * (len(widths) - 1)
    places, x = [], 0.0
    for width in widths:
        places.append([x / total, 0.02, width / total, 0.8])
        x += width + gap
    for i, (place, title) in enumerate(zip(places, titles, strict=True)):
        ax.text(place[0] + place[2] / 2, 0.93, title, transform=ax.transAxes, ha="center", size=10)
        if i:
            arrow = dict(arrowstyle="->", color=GREY)
            a = places[i - 1][0] + places[i - 1][2]
            ax.annotate(
                "", (place[0] - 0.004, 0.93), (a + 0.004, 0.93), "axes fraction", arrowprops=arrow
            )
    places[5][0] += 0.045  # room for the names of the bars
    places[5][2] -= 0.045
    panels = [ax.inset_axes(place) for place in places]
    _write(panels[0], readable(text).replace("↵", "↵\n"), size=9)
    raw = text.encode("utf-8")
    shown = [f"{byte:02x}" for byte in raw[:32]] + (["…"] if len(raw) > 32 else [])
    _write(panels[1], "\n".join(" ".join(shown[i : i + 4]) for i in range(0, len(shown), 4)), 9)
    _token_list(panels[2], pieces, ids)
    heat_map(np.asarray(vectors)[:, :24], panels[3], cmap="PuOr")
    weights = np.asarray(attention, dtype=float)
    hidden = np.triu(np.ones(weights.shape, bool), 1)
    heat_map(weights, panels[4], hidden=hidden, vmin=0, vmax=1, cmap=HEAT)
    _few_bars(panels[5], np.asarray(probabilities, dtype=float), piece_of, sampled)
    _write(panels[6], short(piece_of(sampled)), size=16, box=True)
    for panel in panels[3:5]:
        panel.set(xticks=[], yticks=[])
    return ax


def _write(ax, text: str, size: float, box: bool = False) -> None:
    ax.axis("off")
    frame = dict(boxstyle="round", facecolor=pale(PALETTE[1]), edgecolor="none") if box else None
    ax.text(
        0.5,
        0.5,
        text,
        ha="center",
        va="center",
        size=size,
        family="DejaVu Sans Mono",
        bbox=frame,
        color=INK if box else GREY,
        transform=ax.transAxes,
    )


def _token_list(ax, pieces, ids, most: int = 9) -> None:
    ax.axis("off")
    n = min(len(pieces), most)
    for row in range(n):
        y = 1 - (row + 0.5) / n
        frame = dict(boxstyle="round,pad=0.15", facecolor=pale(PALETTE[row % 6]), edgecolor="none")
        last = row == most - 1 and len(pieces) > most
        ax.text(
            0.45,
            y,
            "…" if last else short(pieces[row]),
            ha="right",
            va="center",
            size=8,
            family="DejaVu Sans Mono",
            color=INK,
            bbox=frame,
        )
        ax.text(0.6, y, "" if last else str(ids[row]), va="center", size=8)


def _few_bars(ax, probabilities: np.ndarray, piece_of, sampled: int, n: int = 6) -> None:
    order = list(np.argsort(-probabilities, kind="stable")[:n])
    if sampled not in order:
        order[-1] = sampled
    colours = [PALETTE[1] if i == sampled else PALETTE[0] for i in order]
    ax.barh(range(n), probabilities[order], color=colours, height=0.7)
    names = [short(piece_of(int(i)), 7) for i in order]
    ax.set_yticks(range(n), names, family="DejaVu Sans Mono", fontsize=8)
    ax.set_xticks([])
    ax.invert_yaxis()
    ax.tick_params(colors=GREY, length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)


@drawn
def ladder(bits_per_byte: Mapping[str, float], *, ours: str | None = None, ax=None):
    """The ladder of ignorance: bits per byte of ever better guessers, and of the model `ours`."""
    ax = ax or new_axes(6.5, 0.36 * len(bits_per_byte) + 0.7)
    names, values = list(bits_per_byte), list(bits_per_byte.values())
    colours = [PALETTE[1] if name == ours else PALETTE[0] for name in names]
    ax.barh(names, values, height=0.65, color=colours)
    for y, value in enumerate(values):
        ax.text(value, y, f" {value:.2f}", va="center", size=9)
    ax.set(xlabel="bits per byte", xlim=(0, 1.1 * max(values)))
    ax.invert_yaxis()
    ax.tick_params(axis="y", length=0)
    return ax


@drawn
def next_token_bars(
    probabilities, pieces, *, top: int = 10, chosen: int | None = None, title: str = "", ax=None
):
    """The most probable next tokens. probabilities (V); pieces: id → text (a list or a function).

    `chosen`: the id that was drawn, in another colour; it has a bar even below the `top`.
    """
    p = np.asarray(probabilities, dtype=float)
    ids = list(np.argsort(-p, kind="stable")[:top])
    if chosen is not None and chosen not in ids:
        ids[-1] = chosen
    ax = ax or new_axes(5, 0.27 * len(ids) + 0.6)
    piece = pieces if callable(pieces) else pieces.__getitem__
    names = [readable(piece(int(i))) for i in ids]
    colours = [PALETTE[1] if i == chosen else PALETTE[0] for i in ids]
    ax.barh(range(len(ids)), 100 * p[ids], color=colours, height=0.7)
    ax.set_yticks(range(len(ids)), names, family="DejaVu Sans Mono")
    for y, i in enumerate(ids):
        ax.text(100 * p[i], y, f" {100 * p[i]:.1f}", va="center", size=8)
    ax.set(xlabel="probability (%)", xlim=(0, max(112 * p[ids].max(), 1e-6)), title=title)
    ax.invert_yaxis()
    ax.tick_params(axis="y", length=0)
    return ax
