"""Figures of kernels: who touched what and when, what moved, and how far the roof is.

All take plain numbers: counts from a report of the emulator, seconds from a results file. What a
report can draw of itself (`figure`, `access_map`, `roofline`) is not here.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from .figure import GREY, INK, PALETTE, dark_or_light, drawn, heat_map, new_axes, pale, readable

MARKS = {"store": "s", "load": "o", "atomic": "D"}


@drawn
def access_timeline(events: Sequence[tuple], *, pair: Sequence[int] = (), ax=None):
    """Accesses to memory as they happened, a row for each thread.

    events  (thread, kind, element), kind being "load", "store" or "atomic", in order of time.
    pair    positions in `events` of two accesses that nothing orders, ringed and joined by a line.
    """
    ax = ax or new_axes(8, 3.2)
    for i, (kind, mark) in enumerate(MARKS.items()):
        shown = [(t, who) for t, (who, k, _) in enumerate(events) if k == kind]
        if shown:
            ax.plot(*zip(*shown, strict=True), mark, color=PALETTE[i], markersize=9, label=kind)
    for t, (who, _, element) in enumerate(events):
        ax.annotate(
            str(element), (t, who), (0, 11), textcoords="offset points", ha="center", size=7
        )
    if len(pair):
        ends = [(t, events[t][0]) for t in pair]
        look = dict(color=PALETTE[3], linewidth=2.5, zorder=0)
        ax.plot(*zip(*ends, strict=True), "-", label="nothing orders these two", **look)
        ax.plot(*zip(*ends, strict=True), "o", ms=17, mfc="none", mec=PALETTE[3], mew=2.5)
    threads = sorted({who for who, _, _ in events})
    ax.set_yticks(threads)
    ax.set_ylim(threads[-1] + 0.6, threads[0] - 0.9)
    ax.set(xlabel="time: accesses, in the order in which they happened", ylabel="thread")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=4)
    return ax


@drawn
def languages(columns: Mapping[str, Sequence[tuple[str, int | None]]], *, ax=None):
    """The same program in several languages side by side; lines with one part have one colour.

    columns: title → (text of a line, number of the part that it belongs to or None) from the top.
    """
    most = max(len(lines) for lines in columns.values())
    widths = [max([len(title), *(len(text) for text, _ in lines)]) + 2
              for title, lines in columns.items()]  # fmt: skip
    ax = ax or new_axes(min(12, 0.083 * sum(widths) + 0.4), 0.19 * most + 0.6)
    look = dict(family="DejaVu Sans Mono", size=7.5, va="center")
    left = 0.0
    for width, (title, lines) in zip(widths, columns.items(), strict=True):
        ax.text(left, -1.3, title, size=10, va="center")
        for y, (text, part) in enumerate(lines):
            if part is None:
                ax.text(left, y, readable(text).replace("·", " "), **look)
                continue
            box = pale(PALETTE[part % 6], 0.4)
            ax.barh(y, width - 1, left=left - 0.4, height=0.92, color=box)
            ax.text(left, y, readable(text).replace("·", " "), color=INK, **look)
        left += width
    ax.set_xlim(-0.5, left)
    ax.set_ylim(most - 0.4, -2)
    ax.set_axis_off()
    return ax


@drawn
def registers(counts: Mapping[str, Mapping[str, int]], *, ax=None):
    """Registers of a thread: counts[kernel][architecture], bars in groups."""
    ax = ax or new_axes(7, 3)
    names = list(next(iter(counts.values())))
    width = 0.8 / len(names)
    for k, name in enumerate(names):
        values = [of[name] for of in counts.values()]
        x = np.arange(len(counts)) + (k - (len(names) - 1) / 2) * width
        bars = ax.bar(x, values, 0.9 * width, color=PALETTE[k % 7], label=name)
        ax.bar_label(bars, color=GREY, size=8)
    ax.set_xticks(range(len(counts)), list(counts))
    ax.set(ylabel="registers of a thread")
    ax.legend(ncols=len(names), loc="upper left")
    ax.set_ylim(0, 1.25 * max(max(of.values()) for of in counts.values()))
    return ax


@drawn
def stride_sectors(strides: Sequence[int], sectors: Sequence[float], *, itemsize=4, ax=None):
    """Sectors that one request of a warp moves, against the distance of neighbouring lanes."""
    ax = ax or new_axes(6.5, 3.2)
    ax.plot(strides, sectors, "o-", color=PALETTE[0])
    for stride, n in zip(strides, sectors, strict=True):
        used = min(1.0, 32 * itemsize / (32 * n))
        ax.annotate(
            f"{100 * used:.3g} %", (stride, n), (4, -12), textcoords="offset points", size=8
        )
    ax.set_xscale("log", base=2)
    ax.set_xticks(strides, [str(s) for s in strides])
    ax.set_yticks([4, 8, 16, 32])
    ax.set_ylim(0, 36)
    ax.grid(axis="y")
    ax.set(xlabel="stride: elements between neighbouring lanes", ylabel="sectors per request")
    ax.set_title("32 lanes load 4 bytes each; labels: share of the moved bytes that is used")
    return ax


@drawn
def bank_map(patterns: Mapping[str, Sequence[int]], *, ax=None):
    """How many lanes of a warp want each of the 32 banks. patterns: name → bank of each lane."""
    ax = ax or new_axes(9, 0.5 * len(patterns) + 1.1)
    lanes = np.array([np.bincount(banks, minlength=32) for banks in patterns.values()])
    image = heat_map(lanes, ax, hidden=lanes == 0, vmin=0, vmax=32)
    for y, bank in np.argwhere(lanes > 0):
        ink = dark_or_light(image.to_rgba(float(lanes[y, bank])))
        ax.text(bank, y, str(lanes[y, bank]), ha="center", va="center", color=ink, size=8)
    ax.set_yticks(range(len(patterns)), list(patterns))
    ax.set_xticks(range(0, 32, 4))
    ax.set(xlabel="bank", title="lanes that want a bank in one request (hatched: none)")
    return ax


@drawn
def traffic(rungs: Mapping[str, Mapping[str, float]], *, par: float = 0, unit="KiB", ax=None):
    """Bytes that move, a bar for each rung, stacked by kind; dotted: the least that is possible."""
    ax = ax or new_axes(7, 0.42 * len(rungs) + 1.0)
    kinds = list(dict.fromkeys(kind for parts in rungs.values() for kind in parts))
    scale = {"B": 1, "KiB": 1024, "MiB": 1024**2}[unit]
    ends = np.zeros(len(rungs))
    for k, kind in enumerate(kinds):
        values = np.array([parts.get(kind, 0) / scale for parts in rungs.values()])
        ax.barh(range(len(rungs)), values, left=ends, height=0.66, color=PALETTE[k], label=kind)
        ends += values
    for y, end in enumerate(ends):
        ax.text(end + 0.01 * ends.max(), y, f"{end:,.4g}", va="center", size=8)
    if par:
        ax.axvline(par / scale, color=GREY, linestyle=":", linewidth=1.5, label="least possible")
    ax.set_yticks(range(len(rungs)), list(rungs))
    ax.set_ylim(len(rungs) - 0.5, -0.5)
    ax.set_xlim(0, 1.12 * ends.max())
    ax.set(xlabel=f"{unit} moved")
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return ax


@drawn
def rungs_under_roof(
    points: Mapping[str, tuple[float, float | None]], bandwidth: float, peak: float, *, ax=None
):
    """A roofline with every rung of a ladder.

    points     rung → (FLOPs per byte, FLOP/s as measured or None: drawn hollow, at the roof)
    bandwidth  bytes/s, and peak FLOP/s, of the roof
    """
    ax = ax or new_axes(7, 4)
    x = np.array([2.0**-6, peak / bandwidth, 2.0**7])
    ax.loglog(x, np.minimum(peak, x * bandwidth), "-", color=GREY)
    for k, (name, (intensity, speed)) in enumerate(points.items()):
        roof = min(peak, intensity * bandwidth)
        face = PALETTE[k % 7] if speed is not None else "none"
        y = speed if speed is not None else roof
        look = dict(color=PALETTE[k % 7], markerfacecolor=face, markersize=8)
        label = f"{name}: {intensity:.3g} FLOPs per byte"
        ax.plot(intensity, y, "os^DvPX"[k % 7], label=label, **look)
    at = (2.0**-3, 2.0**-3 * bandwidth)
    text = f"{bandwidth / 1e12:.3g} TB/s"
    ax.annotate(text, at, (-12, 10), textcoords="offset points", size=9, ha="right")
    ax.annotate(f"{peak / 1e12:.3g} TFLOP/s", (2.0**6, peak), (0, 5), textcoords="offset points",
                size=9, ha="center")  # fmt: skip
    ax.set_ylim(x[0] * bandwidth / 2, 4 * peak)
    ax.set(xlabel="FLOPs per byte that moves", ylabel="FLOP/s")
    ax.legend(loc="lower right")
    return ax


@drawn
def rung_speeds(ladders: Mapping[str, Mapping[str, float]], copy: float, *, ax=None):
    """TB/s of useful bytes, a group of bars for each ladder; dotted: a copy on the same device."""
    n = sum(map(len, ladders.values())) + len(ladders) - 1
    ax = ax or new_axes(7, 0.3 * n + 1.1)
    y, ticks = 0, []
    for k, (ladder, rungs) in enumerate(ladders.items()):
        for name, value in rungs.items():
            ax.barh(y, value, height=0.7, color=PALETTE[k % 7])
            ax.text(1.15 * copy, y, f"{value:.2f}", va="center", ha="right", size=8)
            ticks.append((y, f"{ladder}: {name}"))
            y += 1
        y += 1
    ax.axvline(copy, color=GREY, linestyle=":", linewidth=1.5)
    ax.set_yticks(*zip(*ticks, strict=True))
    ax.set_ylim(y - 1.5, -0.5)
    ax.set_xlim(0, 1.17 * copy)  # the numbers stand right of the dotted line
    ax.set(xlabel="TB/s, counting each byte in and out once (dotted: a copy)")
    return ax


@drawn
def launch_floor(launches: Mapping[str, float], bandwidth: float, *, ax=None):
    """Time per kernel in a queue of equal ones, against the bytes that each moves.

    launches: way to launch → seconds each; bandwidth in bytes/s. The host launches the next kernel
    while the GPU runs the last, so the longer of the two counts; a cross marks where they are even.
    """
    ax = ax or new_axes(7, 3.4)
    size = np.logspace(4, 9, 200)
    ax.loglog(size, size / bandwidth * 1e6, ":", color=GREY, label="bytes at full bandwidth")
    for k, (name, seconds) in enumerate(launches.items()):
        label = f"{name}, {1e6 * seconds:.2f} µs"
        ax.loglog(size, np.maximum(seconds, size / bandwidth) * 1e6, color=PALETTE[k], label=label)
        even = seconds * bandwidth
        ax.plot(even, 1e6 * seconds, "x", color=PALETTE[k], markersize=8)
    ax.set(xlabel="bytes moved", ylabel="µs per kernel")
    ax.legend(loc="lower right")
    return ax
