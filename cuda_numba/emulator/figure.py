"""Where the bytes go: per source line what it moved, what of that a lane asked for, conflicts."""

from .columns import launch, percent, size
from .style import BLUE, GREY, MONO, ORANGE, plain, styled
from .tally import Line
from .trace import Finding

MOST = 14  # lines in the figure
SENTENCES = 6
TEXT = 36  # characters of a source line


@styled
def draw(report):
    import matplotlib.pyplot as plt

    lines = _chosen(report)
    on_global = any(line.moved for line in lines)
    on_shared = any(line.of("shared").wavefronts for line in lines)
    told = _sentences(report)
    ratios = [3] * on_global + [2] * on_shared or [1]
    text, bars = 0.44 + 0.19 * len(told), 0.85 + 0.32 * max(len(lines), 2)
    figure = plt.figure(figsize=(9.5, text + bars), layout="constrained")
    grid = figure.add_gridspec(
        2, len(ratios), height_ratios=(text, bars), width_ratios=ratios, hspace=0.02
    )
    _head(figure.add_subplot(grid[0, :]), report, told)
    left = figure.add_subplot(grid[1, 0])
    right = figure.add_subplot(grid[1, 1], sharey=left) if len(ratios) > 1 else left
    if on_global:
        _bytes(left, lines)
    if on_shared:
        _wavefronts(right, lines)
    if on_global or on_shared:
        _labels(left, lines)
        if right is not left:
            right.tick_params(axis="y", length=0, labelleft=False)
    else:
        left.text(0.5, 0.5, "no memory traffic", transform=left.transAxes, ha="center")
        left.set_axis_off()
    return figure


def _chosen(report) -> list[Line]:
    """The lines with traffic or findings; of many, those with most of it, in source order."""
    lines = [
        line
        for line in report.lines.values()
        if line.moved or line.of("shared").wavefronts or line.findings
    ]

    def weight(line: Line) -> tuple:
        return bool(line.findings), line.moved + 128 * line.of("shared").wavefronts

    heavy = sorted(lines, key=weight, reverse=True)[:MOST]
    return [line for line in lines if any(line is chosen for chosen in heavy)]


def _bytes(ax, lines: list[Line]) -> None:
    most = max(line.moved for line in lines)
    for y, line in enumerate(lines):
        if not line.moved:
            continue
        colour = _efficiency_colour(line.efficiency)
        ax.barh(y, line.moved, color=colour, alpha=0.3, height=0.66)
        ax.barh(y, line.of("global").unique, color=colour, height=0.66)
        asked = line.of("global").requested
        text = f"{size(line.moved)}, {percent(line.efficiency)} used"
        if asked > line.of("global").unique:
            text += f", asked {asked / line.of('global').unique:.3g}×"
        ax.text(line.moved + 0.015 * most, y, text, va="center", size=8)
    ax.set_xlim(0, 1.5 * most)
    ax.set_title("global memory, bytes", loc="left", pad=16)
    _key(ax, [(GREY, 1, "used by a lane"), (GREY, 0.3, "moved with it, not used")])
    _byte_ticks(ax, most)


def _wavefronts(ax, lines: list[Line]) -> None:
    most = max(line.of("shared").wavefronts for line in lines)
    for y, line in enumerate(lines):
        shared = line.of("shared")
        if not shared.wavefronts:
            continue
        least = shared.wavefronts - shared.conflicts
        ax.barh(y, least, color=BLUE, height=0.66)
        ax.barh(y, shared.conflicts, left=least, color=ORANGE, alpha=0.75, height=0.66)
        text = f"{shared.wavefronts:,}"
        if shared.conflicts:
            text += f", {shared.degree}-way conflict"
        ax.text(shared.wavefronts + 0.02 * most, y, text, va="center", size=8)
    ax.set_xlim(0, 1.75 * most)
    ax.set_title("shared memory, wavefronts", loc="left", pad=16)
    _key(ax, [(BLUE, 1, "needed"), (ORANGE, 0.75, "because of bank conflicts")])
    ax.xaxis.set_major_locator(_few_ticks())


def _few_ticks():
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(4, integer=True)


def _byte_ticks(ax, most: int) -> None:
    """Ticks at round numbers of the unit that the largest bar has."""
    unit, name = 1, "bytes"
    for name_ in ("KiB", "MiB", "GiB"):
        if most >= 1024 * unit:
            unit, name = unit * 1024, name_
    from matplotlib.ticker import FuncFormatter, MultipleLocator

    rough = most / unit / 4
    step = next(s for s in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024) if s >= rough)
    ax.xaxis.set_major_locator(MultipleLocator(step * unit))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x / unit:g}"))
    ax.set_xlabel(name)


def _key(ax, entries: list[tuple]) -> None:
    from matplotlib.patches import Patch

    patches = [Patch(color=c, alpha=alpha, label=text) for c, alpha, text in entries]
    ax.legend(
        handles=patches, loc="lower left", bbox_to_anchor=(-0.02, 0.97), ncols=len(patches),
        fontsize=8, handlelength=1, handleheight=0.8, columnspacing=1.2, borderpad=0.2,
    )  # fmt: skip


def _labels(ax, lines: list[Line]) -> None:
    ax.set_ylim(len(lines) - 0.45, -0.55)
    ax.set_yticks(range(len(lines)), [f"{plain(li.text, TEXT)}  {li.where:>3}" for li in lines])
    ax.tick_params(axis="y", length=0)
    for label, line in zip(ax.get_yticklabels(), lines, strict=True):
        label.set(family=MONO, fontsize=8, fontweight="bold" if line.findings else "normal")


def _sentences(report) -> list[str]:
    """The findings, short: the lines are named beside the bars, the report has the sentences."""
    rows = [_short(finding) for finding in report.findings[:SENTENCES]]
    if len(report.findings) > SENTENCES:
        rows.append(f"and {len(report.findings) - SENTENCES} more")
    return rows


def _short(finding: Finding) -> str:
    lines = " and ".join(map(str, finding.lines[:2]))
    where = f", line{'s' * (len(finding.lines) > 1)} {lines}" if lines else ""
    who = " and ".join(map(str, finding.threads[:2]))
    who = f", thread{'s' * (len(finding.threads) > 1)} {who}" if who else ""
    times = f", {finding.count:,} times" if finding.count > 1 else ""
    return f"{finding.kind.replace('_', ' ')}{where}{who}{times}"


def _head(ax, report, told: list[str]) -> None:
    ax.set_axis_off()
    title = f"Where the bytes of {plain(launch(report), 90)} go"
    ax.text(0, 1, title, transform=ax.transAxes, va="top", size=11)
    for i, sentence in enumerate(told):
        ax.annotate(
            f"▸ {sentence}", (0, 1), (0, -20 - 13.5 * i), xycoords="axes fraction",
            textcoords="offset points", va="top", size=8.5, color=ORANGE,
        )  # fmt: skip


def _efficiency_colour(share: float):
    """Blue where everything moved was used, orange where next to nothing was."""
    from matplotlib.colors import to_rgb

    return tuple(
        share * good + (1 - share) * bad
        for good, bad in zip(to_rgb(BLUE), to_rgb(ORANGE), strict=True)
    )
