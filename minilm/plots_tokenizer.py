"""Figures of a tokenizer: how it compresses, how long its tokens are, where its time goes."""

from collections.abc import Mapping, Sequence

import numpy as np

from .figure import DASHES, PALETTE, drawn, new_axes, short


@drawn
def merges(bytes_per_token: Sequence[float], pieces: Sequence[str | bytes] = (), *, ax=None):
    """How text shrinks while byte pairs are merged.

    bytes_per_token  (N + 1): after 0, 1, …, N merges. pieces (N): the token that each merge makes;
    about ten of them are written on the curve.
    """
    ax = ax or new_axes(7, 3)
    ax.plot(bytes_per_token, color=PALETTE[0])
    ax.set_xscale("symlog", linthresh=1)
    ax.set(xlabel="merges", ylabel="bytes per token", xlim=(0, None))
    last = min(len(pieces), len(bytes_per_token) - 1)
    chosen = np.unique(np.geomspace(1, last, 11).round().astype(int)) if last > 0 else []
    for i in chosen:
        ax.plot(i, bytes_per_token[i], "o", color=PALETTE[1], markersize=4)
        ax.annotate(
            short(pieces[i - 1]),
            (i, bytes_per_token[i]),
            xytext=(2, 7),
            textcoords="offset points",
            ha="right",
            size=8,
            family="DejaVu Sans Mono",
        )
    return ax


@drawn
def compression(curves: Mapping[str, tuple[Sequence[int], Sequence[float]]], *, ax=None):
    """Bytes per token against vocabulary size. curves: kind of text → (V, bytes per token)."""
    ax = ax or new_axes(6, 3.2)
    for i, (name, (sizes, ratios)) in enumerate(curves.items()):
        style = dict(color=PALETTE[i % 7], linestyle=DASHES[i % 7], marker="o", markersize=4)
        ax.plot(sizes, ratios, label=name, **style)
    ticks = sorted({size for sizes, _ in curves.values() for size in sizes})
    ax.set_xscale("log", base=2)
    ax.set_xticks(ticks, [f"{size:,}" for size in ticks])
    ax.set(xlabel="vocabulary size V", ylabel="bytes per token")
    ax.legend()
    return ax


@drawn
def token_lengths(lengths: Sequence[int] | Mapping[str, Sequence[int]], *, ax=None):
    """Histogram of the lengths of tokens in bytes: one list, or several by name (as shares)."""
    ax = ax or new_axes(6, 3)
    groups = lengths if isinstance(lengths, Mapping) else {"": lengths}
    longest = max(max(values) for values in groups.values())
    for i, (name, values) in enumerate(groups.items()):
        shares = np.bincount(np.asarray(values), minlength=longest + 1)[1:] / len(values)
        width = 0.8 / len(groups)
        x = np.arange(1, longest + 1) + (i - (len(groups) - 1) / 2) * width
        ax.bar(x, 100 * shares, width, color=PALETTE[i % 7], label=name)
    ax.set(xlabel="length of a token (bytes)", ylabel="tokens (%)")
    if len(groups) > 1:
        ax.legend()
    return ax


@drawn
def stage_times(seconds: Mapping[str, Mapping[str, float]], *, ax=None):
    """Where the time goes. seconds: who → stage → seconds; one bar each, its stages in a row."""
    ax = ax or new_axes(7, 0.5 * len(seconds) + 1.1)
    stages = list(dict.fromkeys(stage for parts in seconds.values() for stage in parts))
    names = list(seconds)
    left = np.zeros(len(names))
    for i, stage in enumerate(stages):
        parts = np.array([seconds[name].get(stage, 0.0) for name in names])
        ax.barh(names, parts, left=left, height=0.6, color=PALETTE[i % 7], label=stage)
        left += parts
    for y, total in enumerate(left):
        ax.text(total, y, f" {total:.2g} s", va="center", size=9)
    ax.set(xlabel="seconds", xlim=(0, 1.12 * left.max()))
    ax.invert_yaxis()
    ax.legend(ncols=len(stages), loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize=8)
    return ax
