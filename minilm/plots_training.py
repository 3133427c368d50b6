"""Figures of training: losses, gradients, weights, learning rates, all against the step."""

from collections.abc import Mapping, Sequence

import numpy as np

from .figure import DASHES, GREY, PALETTE, drawn, new_axes


@drawn
def loss_curves(
    runs: Mapping[str, Sequence[Mapping]],
    *,
    y: str = "bits_per_byte",
    x: str = "step",
    smooth: int = 1,
    ax=None,
):
    """Loss while training. runs: name → the rows of a history, as `train` returns them.

    x, y    fields of the rows: "step", "tokens", … and "bits_per_byte", "loss", …. Rows that have
            no number there are left out. Where rows hold "valid_" + y as well, that is a second
            curve of the run, dashed, with a marker at each validation.
    smooth  moving average over so many rows, over the unsmoothed curve drawn faintly.
    """
    ax = ax or new_axes(6.5, 3.4)
    for i, (name, rows) in enumerate(runs.items()):
        colour = PALETTE[i % 7]
        xs, ys = _columns(rows, x, y)
        if smooth > 1 and len(ys) > smooth:
            ax.plot(xs, ys, "-", color=colour, alpha=0.25, linewidth=0.8)
            ys = np.convolve(ys, np.ones(smooth) / smooth, "valid")
            xs = xs[smooth - 1 :]
        ax.plot(xs, ys, "-", color=colour, label=name)
        xs, ys = _columns(rows, x, f"valid_{y}")
        if len(ys):
            label = f"{name}, validation"
            ax.plot(xs, ys, "o--", color=colour, markersize=4, linewidth=1.2, label=label)
    ax.set(xlabel=x, ylabel=y.replace("_", " "))
    ax.legend()
    return ax


def _columns(rows: Sequence[Mapping], x: str, y: str) -> np.ndarray:
    """(2, N): the two fields of the rows that have both."""
    points = [(row[x], row[y]) for row in rows if row.get(y) is not None]
    return np.array(points, dtype=float).reshape(-1, 2).T


def _layer_colours(n: int) -> list:
    """One colour per layer, from the first to the last, readable on white and on black."""
    import matplotlib

    return list(matplotlib.colormaps["viridis"](np.linspace(0.35, 0.8, n)))


@drawn
def gradient_norms(steps: Sequence[int], norms: Mapping[str, Sequence[float]], *, ax=None):
    """Norm of the gradient, layer by layer. norms: layer → (number of steps)."""
    ax = ax or new_axes(6.5, 3.2)
    for i, (colour, (name, values)) in enumerate(
        zip(_layer_colours(len(norms)), norms.items(), strict=True)
    ):
        ax.plot(steps, values, color=colour, linestyle=DASHES[i % 7], linewidth=1.2, label=name)
    ax.set(xlabel="step", ylabel="gradient norm", yscale="log")
    ax.legend()
    return ax


@drawn
def update_ratios(steps: Sequence[int], ratios: Mapping[str, Sequence[float]], *, ax=None):
    """Size of an update beside the size of the weights, std(Δw) / std(w); 10⁻³ is a landmark."""
    ax = ax or new_axes(6.5, 3.2)
    for i, (name, values) in enumerate(ratios.items()):
        look = dict(color=PALETTE[i % 7], linestyle=DASHES[i % 7], linewidth=1.2)
        ax.plot(steps, values, label=name, **look)
    ax.axhline(1e-3, color=GREY, linewidth=0.8, linestyle=":")
    ax.set(xlabel="step", ylabel="update / weight", yscale="log")
    ax.legend()
    return ax


@drawn
def weight_histograms(snapshots: Mapping[int, Sequence[float]], *, bins: int = 80, ax=None):
    """How a weight matrix spreads: one histogram for each step. snapshots: step → its numbers."""
    ax = ax or new_axes(6, 0.6 * len(snapshots) + 1.2)
    arrays = {step: np.ravel(values) for step, values in snapshots.items()}
    reach = max(float(np.quantile(np.abs(values), 0.999)) for values in arrays.values())
    edges = np.linspace(-reach, reach, bins + 1)
    for row, values in enumerate(arrays.values()):
        counts, _ = np.histogram(values, edges)
        base, colour = -row, PALETTE[row % 6]
        height = 1.5 * counts / counts.max()
        ax.stairs(base + height, edges, baseline=base, fill=True, color=colour, alpha=0.6)
        ax.stairs(base + height, edges, baseline=base, color=colour)
        ax.text(reach, base + 0.22, f"σ = {values.std():.3f}", ha="right", size=8)
    ax.set_yticks(-np.arange(len(arrays)), [f"step {step:,}" for step in arrays])
    ax.set(xlabel="weight", xlim=(-reach, reach))
    ax.spines["left"].set_visible(False)
    ax.tick_params(axis="y", length=0)
    return ax


@drawn
def learning_rate_sweep(
    sweeps: Mapping[str, tuple[Sequence[float], Sequence[float]]], *, ylabel="final loss", ax=None
):
    """Final loss against learning rate. sweeps: optimizer → (rates, losses); NaN: it diverged (×).

    The best rate of each optimizer has a ring.
    """
    ax = ax or new_axes(6, 3.2)
    top = max(np.nanmax(losses) for _, losses in sweeps.values())
    for i, (name, (rates, losses)) in enumerate(sweeps.items()):
        rates, losses = np.asarray(rates, float), np.asarray(losses, float)
        look = dict(color=PALETTE[i % 7], linestyle=DASHES[i % 7])
        ax.plot(rates, losses, marker="o", markersize=4, label=name, **look)
        best = np.nanargmin(losses)
        ax.plot(
            rates[best], losses[best], "o", markersize=11, fillstyle="none", color=PALETTE[i % 7]
        )
        lost = rates[np.isnan(losses)]
        ax.plot(lost, np.full(len(lost), top), "x", color=PALETTE[i % 7], markersize=8)
    ax.set(xlabel="learning rate", ylabel=ylabel, xscale="log")
    ax.legend()
    return ax


@drawn
def schedule(rates: Sequence[float] | Mapping[str, Sequence[float]], *, ax=None):
    """Learning rate at each step, from step 0: one schedule, or several by name."""
    ax = ax or new_axes(6, 2.4)
    curves = rates if isinstance(rates, Mapping) else {"": rates}
    for i, (name, values) in enumerate(curves.items()):
        ax.plot(values, color=PALETTE[i % 7], linestyle=DASHES[i % 7], label=name)
    ax.set(xlabel="step", ylabel="learning rate", ylim=(0, None))
    if len(curves) > 1:
        ax.legend()
    return ax


@drawn
def lines(curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], *, ax=None, **axis):
    """Plain curves: name → (x, y). Further keywords go to Axes.set (xlabel, ylabel, yscale, …)."""
    ax = ax or new_axes(6, 3.2)
    for i, (name, (x, y)) in enumerate(curves.items()):
        ax.plot(x, y, color=PALETTE[i % 7], linestyle=DASHES[i % 7], label=name)
    ax.set(**axis)
    if len(curves) > 1:
        ax.legend()
    return ax
