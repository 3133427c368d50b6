"""Figures of attention: who looks at whom, and the steps from scores to weights."""

from collections.abc import Mapping, Sequence

import numpy as np

from .figure import (
    GREY,
    PALETTE,
    check_axes,
    colour_bar,
    drawn,
    heat_map,
    new_axes,
)


@drawn
def attention_map(
    weights, labels: Sequence[str] | None = None, *, hidden=None, title: str = "", ax=None
):
    """Who looks at whom: row t is the query, column s the key.

    weights  (T, T). labels (T): the tokens' text.
    hidden   (T, T) bool: cells that a mask forbids, hatched in grey. None: what lies above the
             diagonal if all of it is exactly 0, as in causal attention.
    """
    weights = np.asarray(weights, dtype=float)
    if hidden is None:
        above = np.triu(np.ones(weights.shape, bool), 1)
        hidden = above if not weights[above].any() else np.zeros_like(above)
    side = float(np.clip(0.2 * len(weights) + 1.2, 3, 7))
    ax = ax or new_axes(side + 0.6, side)
    image = heat_map(weights, ax, hidden=hidden, labels=labels, vmin=0, vmax=1)
    ax.set(xlabel="looks at (key)", ylabel="token (query)", title=title)
    colour_bar(image, ax, "weight")
    return ax


@drawn
def attention_steps(maps: Mapping[object, object], labels=None, *, name="step", axes=None):
    """The same head at several steps of training. maps: step → (T, T) weights; one panel each."""
    if axes is None:
        axes = new_axes(2.6 * len(maps) + 0.4, 2.9, len(maps))
    axes = check_axes(axes, len(maps))
    for i, (ax, (step, weights)) in enumerate(zip(axes, maps.items(), strict=True)):
        weights = np.asarray(weights, dtype=float)
        hidden = np.triu(np.ones(weights.shape, bool), 1)
        heat_map(weights, ax, hidden=hidden, labels=labels, vmin=0, vmax=1)
        if i or labels is None:
            ax.set_yticks([])
        if labels is None:
            ax.set_xticks([])
        ax.set_title(f"{name} {step:,}" if isinstance(step, int) else str(step))
    return axes


@drawn
def score_steps(panels: Mapping[str, object], labels=None, *, text: str = ".2f", axes=None):
    """Scores on their way to weights, one panel for each step, −∞ hatched.

    panels: title → (T, T) matrix, for instance "Q Kᵀ", "/ √D", "mask", "softmax".
    """
    if axes is None:
        axes = new_axes(2.5 * len(panels), 2.7, len(panels))
    axes = check_axes(axes, len(panels))
    for ax, (title, matrix) in zip(axes, panels.items(), strict=True):
        matrix = np.asarray(matrix, dtype=float)
        hidden = np.isneginf(matrix)
        written = text if len(matrix) <= 8 else None
        heat_map(np.where(hidden, 0, matrix), ax, hidden=hidden, labels=labels, text=written)
        if ax is not axes[0]:
            ax.set_yticks([])
        ax.set_title(title)
    return axes


@drawn
def score_variance(
    head_dims: Sequence[int], raw: Sequence[float], scaled: Sequence[float], *, ax=None
):
    """Variance of q · k against head size D, without and with 1/√D; dotted: its law, D and 1."""
    ax = ax or new_axes(5, 3.2)
    d = np.asarray(head_dims)
    ax.loglog(d, d, color=GREY, linewidth=1, linestyle=":", label="D and 1")
    ax.loglog(d, np.ones(len(d)), color=GREY, linewidth=1, linestyle=":")
    ax.loglog(d, raw, "o", color=PALETTE[1], label="q · k")
    ax.loglog(d, scaled, "s", color=PALETTE[0], label="q · k / √D")
    ax.set_xscale("log", base=2)
    ax.set(xlabel="head size D", ylabel="variance of a score")
    ax.legend()
    return ax
