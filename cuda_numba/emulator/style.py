"""How the emulator's figures look: on light and dark pages alike, for any kind of colour vision.

Backgrounds are transparent, letters a grey that stands out from white as well as from black, and
the colours those of Okabe and Ito (2008). matplotlib is imported when the first figure is drawn.
"""

from collections.abc import Callable
from functools import wraps

GREY = "#7b7b7b"
BLUE, ORANGE, GREEN, PINK, YELLOW, SKY = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
)
MONO = "DejaVu Sans Mono"
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
    "text.color": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "legend.labelcolor": GREY,
    "font.family": "DejaVu Sans",
}


def styled(draw: Callable) -> Callable:
    """Decorator: what the function draws has this style, whatever the user's settings."""

    @wraps(draw)
    def in_style(*args, **kwargs):
        import matplotlib.pyplot as plt

        with plt.rc_context(STYLE):
            figure = draw(*args, **kwargs)
            for ax in figure.axes:  # ticks are made later, when the style is gone
                ax.tick_params(colors=GREY, which="both")
            return figure

    return in_style


def plain(text: str, most: int) -> str:
    """A source line as a label: cut to `most` characters, and no mathematics between dollars."""
    text = text if len(text) <= most else text[: most - 1] + "…"
    return text.replace("$", r"\$")
