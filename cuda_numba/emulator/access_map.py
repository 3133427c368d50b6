"""Which thread touched which element: a picture of one array after a launch."""

import math

import numpy as np

from .requests import pack
from .style import GREY, styled
from .trace import ADDRESS, BLOCK, GLOBAL_BITS, PATH, SITE, THREAD, ArrayInfo, Trace
from .words import sites_where

CELLS = 1 << 14  # elements that a figure can show


def touches(trace: Trace, array: str) -> tuple[ArrayInfo, np.ndarray, np.ndarray]:
    """Where the array is, and for each of its elements:

    first int64 (elements,): the row of `trace.accesses` that touched it first, −1 for none;
    count int64 (elements,): how many accesses did. Shared and local arrays: those of one block.
    """
    info = trace.arrays.get(array)
    rows = _rows(trace, array, info)
    if not len(rows):
        names = {s.array for s in trace.sites if s.array} | set(trace.arrays)
        names = ", ".join(f'"{name}"' for name in sorted(names)) or "none"
        raise ValueError(
            f'array: must be one of those that the kernel touched ({names}), got "{array}"'
        )
    site = trace.accesses[rows, SITE]
    nbytes = np.array([s.nbytes for s in trace.sites], np.int64)[site]
    address = trace.accesses[rows, ADDRESS]
    info = info or _guess(trace.sites[site[0]].space, address, nbytes)
    n = math.prod(info.shape)
    low = (address - info.address) // info.itemsize
    each = -(-nbytes // info.itemsize)
    of = np.repeat(np.arange(len(rows)), each)
    element = low[of] + np.arange(len(of)) - np.repeat(np.cumsum(each) - each, each)
    inside = (element >= 0) & (element < n)
    of, element = of[inside], element[inside]
    first = np.full(n, -1, np.int64)
    first[element[::-1]] = rows[of[::-1]]  # the last assignment is the earliest access
    return info, first, np.bincount(element, minlength=n)


def _rows(trace: Trace, array: str, info: ArrayInfo | None) -> np.ndarray:
    """The accesses to the array: by its place if that is known, because wide and asynchronous
    instructions do not know its name; of one block for shared and local arrays."""
    if info is None:
        rows = np.flatnonzero(sites_where(trace, lambda s: s.array == array))
        local = len(rows) and trace.sites[trace.accesses[rows[0], SITE]].space != "global"
    else:
        rows = np.flatnonzero(sites_where(trace, lambda s: s.space == info.space))
        offset = trace.accesses[rows, ADDRESS] - info.address
        rows = rows[(offset >= 0) & (offset < math.prod(info.shape) * info.itemsize)]
        local = info.space != "global"
    if local and len(rows):
        rows = rows[trace.accesses[rows, BLOCK] == trace.accesses[rows, BLOCK].min()]
    return rows


def _guess(space: str, address: np.ndarray, nbytes: np.ndarray) -> ArrayInfo:
    """The array as far as it was touched, one-dimensional."""
    item = int(nbytes.min())
    low = int(address.min())
    if space == "global" and (low & ((1 << GLOBAL_BITS) - 1)) < 4096:
        low = low >> GLOBAL_BITS << GLOBAL_BITS
    n = -(-int((address + nbytes).max() - low) // item)
    return ArrayInfo(space, low, (n,), item, f"{8 * item}-bit")


def _grid(info: ArrayInfo) -> tuple[int, int]:
    """Rows and columns of the picture: as the array is, or lines of 128 bytes: a row of banks."""
    n = math.prod(info.shape)
    if len(info.shape) > 1 and info.shape[-1] > 1:
        return n // info.shape[-1], info.shape[-1]
    columns = min(n, max(1, 128 // info.itemsize))
    return -(-n // columns), columns


@styled
def draw(trace: Trace, array: str):
    import matplotlib.pyplot as plt

    info, first, _ = touches(trace, array)
    if len(first) > CELLS:
        raise ValueError(
            f'array: "{array}" has {len(first):,} elements and a map shows at most {CELLS:,}: '
            f"launch the kernel on a smaller problem"
        )
    rows, columns = _grid(info)
    touched = first >= 0
    accesses = trace.accesses[first]
    who, name = accesses[:, THREAD], "thread of the block"
    if len(np.unique(accesses[touched, BLOCK])) > 1:
        who, name = accesses[:, BLOCK] * trace.threads_per_block + who, "thread of the grid"
    # Not the emulator's order of threads, but the order that every thread follows.
    step = pack(accesses[:, PATH], accesses[:, SITE])
    steps = np.unique(step[touched])
    step = np.searchsorted(steps, step)
    panels = [(who, "viridis", f"who: {name}")]
    if len(steps) > 1:  # where every thread touches one element, "when" says nothing
        panels.append((step, "cividis", "when: step of that thread"))
    height = 1.3 + 3.9 * min(1.5, max(0.3, rows / columns))
    n = len(panels)
    figure, axes = plt.subplots(
        1, n, figsize=(0.6 + 4.45 * n, height), layout="constrained", sharey=True, squeeze=False
    )
    axes = axes[0]
    for ax, (values, colours, title) in zip(axes, panels, strict=True):
        _panel(ax, values, touched, rows, columns, colours, title)
    axes[0].set_ylabel("row" if len(info.shape) > 1 else f"elements, {columns} to a row")
    banks = info.space == "shared" and info.itemsize * columns == 128 and info.itemsize == 4
    for ax in axes:
        ax.set_xlabel("column = bank" if banks else "column")
    shape = "×".join(map(str, info.shape))
    title = f"First touch of {array} ({shape} {info.dtype}, {info.space})"
    title += (" " if n > 1 else "\n") + f"in {trace.kernel}"
    figure.suptitle(title, x=0.01, ha="left", size=11)
    return figure


def _panel(ax, values, touched, rows: int, columns: int, cmap: str, title: str) -> None:
    from matplotlib.ticker import MaxNLocator

    cells = np.full(rows * columns, np.nan)
    cells[: len(values)] = np.where(touched, values, np.nan)
    cells = cells.reshape(rows, columns)
    ax.set_facecolor("#7b7b7b40")  # what nobody touched
    high = max(1.0, float(np.nanmax(cells)))  # a single step still has a scale
    image = ax.imshow(cells, cmap=cmap, aspect="auto", interpolation="nearest", vmin=0, vmax=high)
    if columns <= 16 and rows <= 16:
        for i, j in np.argwhere(~np.isnan(cells)):
            red, green, blue, _ = image.to_rgba(cells[i, j])
            ink = "#1a1a1a" if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.45 else "white"
            ax.text(j, i, f"{cells[i, j]:.0f}", ha="center", va="center", color=ink, size=7)
    ax.set_title(title, loc="left")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(8, integer=True))
    ax.spines[:].set_visible(False)
    bar = ax.figure.colorbar(image, ax=ax, fraction=0.05, pad=0.02)
    bar.locator = MaxNLocator(5, integer=True)
    bar.update_ticks()
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=GREY, labelsize=8, length=2)
