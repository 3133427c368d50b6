"""Figures of a model as a whole: shapes, the way of a text through it, what it predicts."""

from collections.abc import Callable, Mapping, Sequence

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
    x = 0.0
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
        gap = 0.34 if len(sign) < 2 else 0.52
        ax.text(x + room + gap / 2, 0, sign, ha="center", va="center", size=12)
        x += room + gap
    ax.set(xlim=(-0.05, x - gap + 0.05), ylim=(-0.9, 0.8), aspect="equal")
    ax.axis("off")
    return ax


def _box(ax, left: float, height: float, width: float, colour: str, share: float) -> None:
    from matplotlib.patches import Rectangle

    place = (left, -height / 2)
    ax.add_patch(Rectangle(place, width, height, facecolor=pale(colour, share), edgecolor=GREY))


STATIONS = (  # of the pipeline: name, width in the strip
    ("text", 1.4),
    ("bytes", 1.2),
    ("tokens", 1.5),
    ("vectors", 1.6),
    ("attention", 1.6),
    ("probabilities", 1.9),
    ("sampled", 1.0),
)


@drawn
def pipeline(
    text: str,
    pieces: Sequence[str | bytes],
    ids: Sequence[int],
    vectors,
    attention,
    probabilities,
    piece_of: Callable[[int], str | bytes],
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
    vectors, weights = np.asarray(vectors), np.asarray(attention, dtype=float)
    panels = _stations(ax, {"vectors": "vectors {} × {}".format(*vectors.shape)})
    _write(panels["text"], _wrap(text, width=18, lines=9), size=9)
    raw = [f"{byte:02x}" for byte in text.encode("utf-8")]
    shown = raw[:32] + ["…"] * (len(raw) > 32)
    rows = (" ".join(shown[i : i + 4]) for i in range(0, len(shown), 4))
    _write(panels["bytes"], "\n".join(rows), size=9)
    _token_list(panels["tokens"], pieces, ids)
    heat_map(vectors[:, :24], panels["vectors"], cmap="PuOr")
    hidden = np.triu(np.ones(weights.shape, bool), 1)
    heat_map(weights, panels["attention"], hidden=hidden, vmin=0, vmax=1, cmap=HEAT)
    for name in ("vectors", "attention"):
        panels[name].set(xticks=[], yticks=[])
    _few_bars(panels["probabilities"], np.asarray(probabilities, dtype=float), piece_of, sampled)
    _write(panels["sampled"], short(piece_of(sampled)), size=16, box=True)
    return ax


def _stations(ax, titles: Mapping[str, str]) -> dict:
    """An Axes for each station, with titles above and arrows between them."""
    ax.axis("off")
    gap, height, x = 0.35, 0.93, 0.0
    total = sum(width for _, width in STATIONS) + gap * (len(STATIONS) - 1)
    panels = {}
    for name, width in STATIONS:
        left, wide = x / total, width / total
        title = titles.get(name, name)
        ax.text(left + wide / 2, height, title, transform=ax.transAxes, ha="center", size=10)
        if x:
            start, end = (left - gap / total + 0.004, height), (left - 0.004, height)
            arrow = dict(arrowstyle="->", color=GREY)
            ax.annotate("", end, start, "axes fraction", arrowprops=arrow)
        margin = 0.045 if name == "probabilities" else 0  # for the names of the bars
        panels[name] = ax.inset_axes([left + margin, 0.02, wide - margin, 0.8])
        x += width + gap
    return panels


def _wrap(text: str, width: int, lines: int) -> str:
    """Readable text in lines of at most `width` characters, the last of too many an ellipsis."""
    cut = [
        readable(line[i : i + width])
        for line in text.splitlines(keepends=True)
        for i in range(0, len(line), width)
    ]
    return "\n".join(cut if len(cut) <= lines else [*cut[: lines - 1], "…"])


def _write(ax, text: str, size: float, box: bool = False) -> None:
    ax.axis("off")
    frame = dict(boxstyle="round", facecolor=pale(PALETTE[1]), edgecolor="none") if box else None
    ax.text(
        0.5,
        0.5,
        text,
        ha="center",
        va="center",
        multialignment="left",
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
    ax.barh(range(len(order)), probabilities[order], color=colours, height=0.7)
    names = [short(piece_of(int(i)), 7) for i in order]
    ax.set_yticks(range(len(order)), names, family="DejaVu Sans Mono", fontsize=8)
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
