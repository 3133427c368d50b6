"""Where a kernel stands under the roofline of a GPU (Williams, Waterman and Patterson, CACM 2009).

A kernel of I operations per byte can do at most min(peak, I · bandwidth) operations a second. The
emulator counts the bytes between L1 and the rest (whole sectors of every request); with perfect
caches only the footprint would come from memory. The figure shows both, and the truth of a real GPU
lies between them.
"""

from dataclasses import dataclass

from .columns import launch
from .style import BLUE, GREEN, GREY, ORANGE, styled


@dataclass(frozen=True)
class GPU:
    """Peak rates: bandwidth in bytes/s; float32 outside and 16-bit floats inside tensor cores, with
    float32 accumulation and without sparsity, in operations/s. `source`: where they are written."""

    name: str
    bandwidth: float
    float32: float
    tensor: float
    source: str


GPUS = {
    "T4": GPU("T4", 320e9, 8.1e12, 65e12, "NVIDIA T4 data sheet; bandwidth: product brief"),
    "A100": GPU("A100 SXM 80 GB", 2039e9, 19.5e12, 312e12, "NVIDIA A100 data sheet, 2022"),
    "RTX 4090": GPU(
        "RTX 4090", 1008e9, 82.6e12, 165.2e12, "NVIDIA Ada architecture white paper, 2023"
    ),
    "H100": GPU("H100 SXM", 3350e9, 67e12, 989e12, "NVIDIA H100 data sheet, 2023"),
}


def bound(report, gpu: str = "H100") -> dict:
    """The least time the launch can take: seconds by "memory", "float32" and "tensor", and which.

    "memory" takes the footprint to be all that comes from memory. float64 work counts as float32.
    """
    g = find(gpu)
    seconds = {
        "memory": report.footprint / g.bandwidth,
        "float32": report.flops / g.float32,
        "tensor": report.tensor_flops / g.tensor,
    }
    return seconds | {"bound": max(seconds, key=seconds.get)}


def find(gpu: str) -> GPU:
    if gpu not in GPUS:
        names = ", ".join(f'"{name}"' for name in GPUS)
        raise ValueError(f'gpu: must be one of {names}, got "{gpu}"')
    return GPUS[gpu]


@styled
def draw(report, gpu: str = "H100"):
    import matplotlib.pyplot as plt

    g = find(gpu)
    figure, ax = plt.subplots(figsize=(7, 4.2), layout="constrained")
    points = _points(report)
    low = min([1 / 16, *(at / 4 for at, _, _ in points)])
    high = max([2048, *(4 * at for at, _, _ in points)])
    floor = low * g.bandwidth / 2
    for peak, name, colour in ((g.tensor, "tensor cores", GREEN), (g.float32, "float32", BLUE)):
        ax.plot(
            [low, peak / g.bandwidth, high], [low * g.bandwidth, peak, peak], color=colour, lw=2
        )
        text = f"{name}, {peak / 1e12:,.3g} TFLOP/s"
        ax.text(high, peak * 1.12, text, color=colour, ha="right", va="bottom", size=9)
    peak = g.tensor if report.tensor_flops else g.float32
    for at, label, face in points:
        most = min(peak, at * g.bandwidth)
        label = f"{label}: {at:.3g} FLOPs per byte, at most {_rate(most)}"
        ax.plot([at, at], [floor, most], ":", color=GREY, lw=1)
        ax.plot(at, most, "o", ms=9, mfc=face, mec=ORANGE, mew=1.8, label=label, ls="none")
    ax.set(xscale="log", yscale="log", xlabel="FLOPs per byte", ylabel="FLOP/s at most")
    ax.set_xlim(low, high)
    ax.set_ylim(floor, g.tensor * 4)
    title = f"{launch(report)} under the roofline of one {g.name}"
    ax.set_title(title, loc="left", pad=10)
    if points:
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13))
    else:
        ax.text(0.5, 0.2, "no floating-point work", transform=ax.transAxes, ha="center")
    figure.supxlabel(f"peak rates: {g.source}", size=7, x=0.99, ha="right")
    _along_the_slope(ax, low, g)
    return figure


def _points(report) -> list[tuple[float, str, str]]:
    """FLOPs per byte, what the bytes are, colour of the point."""
    work = report.flops + report.tensor_flops
    if not work or not report.moved:
        return []
    every = work / report.moved, "every sector of every request from memory", ORANGE
    once = work / report.footprint, "each byte from memory once", "none"
    return [once] if report.moved == report.footprint else [every, once]


def _rate(flops: float) -> str:
    for unit in ("", "k", "M", "G", "T"):
        if flops < 1000 or unit == "T":
            return f"{flops:,.3g} {unit}FLOP/s"
        flops /= 1000


def _along_the_slope(ax, low: float, g: GPU) -> None:
    """Write the bandwidth along the slanting part of the roof."""
    import numpy as np

    ax.figure.draw_without_rendering()  # the angle on paper depends on the layout
    at = low ** (1 / 3) * (g.float32 / g.bandwidth) ** (2 / 3)
    ends = ax.transData.transform([(at, at * g.bandwidth), (2 * at, 2 * at * g.bandwidth)])
    angle = np.degrees(np.arctan2(*(ends[1] - ends[0])[::-1]))
    ax.annotate(
        f"memory, {g.bandwidth / 1e12:.3g} TB/s", (at, at * g.bandwidth), (-4, 6),
        textcoords="offset points", rotation=angle, rotation_mode="anchor", size=9, ha="center",
    )  # fmt: skip
