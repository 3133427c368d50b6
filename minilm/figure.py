"""How the figures of the course look: one style for light and dark pages, and colours for all eyes.

Backgrounds are transparent, lines and letters a grey that stands out from white as well as from
black (contrast above 4 : 1 to both), colours those of Okabe & Ito (2008), which people with any
kind of colour vision can tell apart. matplotlib is imported when the first figure is drawn.
"""

from collections.abc import Callable, Iterable
from functools import lru_cache, wraps

import numpy as np

GREY = "#7b7b7b"
INK = "#1a1a1a"  # letters on a filled box, which brings its own light background
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", GREY)
DASHES = ("-", "--", "-.", (0, (1, 1)), (0, (5, 1, 1, 1, 1, 1)), (0, (3, 1)), (0, (1, 2)))
HEAT = "viridis"  # sequential, even steps of lightness, safe for all eyes
STYLE = {
    "figure.facecolor": "none",
    "figure.dpi": 90,
    "savefig.facecolor": "none",
    "axes.facecolor": "none",
    "axes.edgecolor": GREY,
    "axes.labelcolor": GREY,
    "axes.titlecolor": GREY,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "text.color": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "legend.labelcolor": GREY,
    "hatch.color": GREY,
    "hatch.linewidth": 0.6,
    "lines.linewidth": 1.8,
    "grid.color": GREY,
    "grid.alpha": 0.3,
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same on every machine
}


def style() -> dict:
    """Make the course's style the default for every figure drawn from now on; returns the settings.

    The functions of `minilm.plots` do not need it: they use it for their own figures anyway.
    """
    import matplotlib
    from cycler import cycler

    settings = STYLE | {"axes.prop_cycle": cycler(color=PALETTE, linestyle=DASHES)}
    matplotlib.rcParams.update(settings)
    return settings


def drawn(draw: Callable) -> Callable:
    """Decorator: draw in the course's style, also on an Axes that came from outside."""

    @wraps(draw)
    def in_style(*args, **kwargs):
        import matplotlib.pyplot as plt

        with plt.rc_context(STYLE):
            axes = draw(*args, **kwargs)
        for ax in np.ravel(axes):
            ax.tick_params(colors=GREY)  # ticks are made later, when the style is gone
            for spine in ax.spines.values():
                spine.set_edgecolor(GREY)
            for text in (ax.title, ax.xaxis.label, ax.yaxis.label):
                text.set_color(GREY)
        return axes

    return in_style


def new_axes(width: float, height: float, n: int | None = None):
    """An Axes of its own figure (inches), or with n an array of n of them side by side."""
    import matplotlib.pyplot as plt

    _, axes = plt.subplots(1, n or 1, figsize=(width, height), layout="constrained", squeeze=False)
    return axes[0, 0] if n is None else axes[0]


def check_axes(axes, n: int):
    """The n Axes that a figure of n panels was given, ValueError if they are fewer or more."""
    if np.size(axes) != n:
        raise ValueError(f"axes: must be {n} Axes, one for each panel, got {np.size(axes)}")
    return np.ravel(axes)


def pale(colour: str, share: float = 0.45) -> tuple[float, float, float]:
    """`colour` mixed with white, for a box that dark letters stand on. share=1 is the colour."""
    from matplotlib.colors import to_rgb

    return tuple(1 - share * (1 - channel) for channel in to_rgb(colour))


def readable(text: str | bytes) -> str:
    """Text for a label: spaces and line ends made visible, no mathematics, no missing letters."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    text = text.replace(" ", "·").replace("\n", "↵").replace("\t", "→").replace("\r", "␍")
    text = "".join(c if _has_glyph(c) else "□" for c in text)
    return text.replace("$", r"\$")  # matplotlib sets what stands between two dollars as a formula


def short(text: str | bytes, most: int = 10) -> str:
    """`readable`, with a run of one character counted (·×8) and the rest of a long text cut off."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    if len(text) > 3 and len(set(text)) == 1:
        return f"{readable(text[0])}×{len(text)}"
    return readable(text if len(text) <= most else text[: most - 1]) + "…" * (len(text) > most)


@lru_cache(maxsize=4096)
def _has_glyph(character: str) -> bool:
    from matplotlib.font_manager import findfont, get_font

    font = get_font(findfont("DejaVu Sans Mono"))
    return character.isprintable() and font.get_char_index(ord(character)) != 0


def dark_or_light(rgba: Iterable[float]) -> str:
    """The colour of letters that can be read on `rgba`."""
    r, g, b = list(rgba)[:3]
    return INK if 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.45 else "white"


def heat_map(values, ax, *, hidden=None, labels=None, cmap=HEAT, vmin=None, vmax=None, text=None):
    """Draw a matrix (rows, columns) as coloured squares; where `hidden` is True, grey hatching.

    labels: names of columns, and of rows too if the matrix is square. text: a format such as ".2f"
    writes the numbers in. Returns the image.
    """
    values = np.asarray(values, dtype=float)
    hidden = np.zeros(values.shape, bool) if hidden is None else np.asarray(hidden, bool)
    shown = np.ma.array(values, mask=hidden)
    image = ax.imshow(shown, cmap=cmap, vmin=vmin, vmax=vmax, aspect="auto", zorder=1)
    if hidden.any():
        hatch_cells(hidden, ax)
    if text is not None:
        for i, j in np.argwhere(~hidden):
            ink = dark_or_light(image.to_rgba(values[i, j]))
            size = min(9, 60 / max(values.shape))
            ax.text(j, i, f"{values[i, j]:{text}}", ha="center", va="center", color=ink, size=size)
    if labels is not None:
        label_cells(ax, labels, rows=values.shape[0] == values.shape[1])
    for side in ("left", "bottom"):
        ax.spines[side].set_visible(False)
    ax.tick_params(length=0)
    return image


def hatch_cells(cells: np.ndarray, ax) -> None:
    """Hatch the cells of a heat map that are True."""
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    boxes = []
    for i, row in enumerate(cells):  # one box for each run of cells in a row
        edges = np.flatnonzero(np.diff(np.concatenate(([0], row.astype(int), [0]))))
        boxes += [Rectangle((a - 0.5, i - 0.5), b - a, 1) for a, b in edges.reshape(-1, 2)]
    ax.add_collection(
        PatchCollection(boxes, facecolor="none", edgecolor=GREY, linewidth=0, hatch="////")
    )


def label_cells(ax, labels: Iterable[str], rows: bool = True) -> None:
    """Write the pieces of text `labels` at the columns of a heat map, and at its rows."""
    labels = [short(label) for label in labels]
    inches = ax.get_window_extent().width / ax.figure.dpi
    points = 72 * inches / max(len(labels), 1)  # the width of a cell
    every = int(np.ceil(8 / points))  # where cells are too small for letters, name fewer
    look = dict(family="DejaVu Sans Mono", fontsize=float(np.clip(0.8 * points * every, 7, 9)))
    rotation = 90 if max(map(len, labels), default=0) > 1 else 0
    ax.set_xticks(range(0, len(labels), every), labels[::every], rotation=rotation, **look)
    if rows:
        ax.set_yticks(range(0, len(labels), every), labels[::every], **look)


def colour_bar(image, ax, label: str):
    """A slim colour bar beside `ax`, or None where the Axes cannot make room for one."""
    bar = ax.figure.colorbar(image, ax=ax, fraction=0.04, pad=0.02)
    bar.set_label(label, color=GREY, size=9)
    bar.ax.tick_params(colors=GREY, labelsize=8, length=2)
    bar.outline.set_visible(False)
    return bar
