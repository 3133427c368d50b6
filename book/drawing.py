"""The module graph as SVG, written by hand: no layout engine, no fonts, no fixed colours.

Top to bottom is the order of reading, so every arrow points up, from a module to what it imports.
Ink is `currentColor` and paper `--pst-color-background` (the theme's), so the picture is legible on
light and dark pages. With the pointer on a box all its own arrows show, those that follow from
others too, and the rest fade.
"""

from collections.abc import Callable
from html import escape

WIDTH, LEFT = 860, 132  # px; LEFT is the column of the stages' titles
BOX_HEIGHT, ROW, BAND_GAP, GAP = 26, 58, 26, 14
LETTER = 7.3  # px, of the 12 px monospace letters in the boxes


def rows_of(stage: list[str], imports: dict[str, frozenset[str]]) -> list[list[str]]:
    """A stage's modules in rows: each below everything of the same stage that it imports."""
    depth: dict[str, int] = {}
    for name in stage:  # in reading order, so what it imports has its depth already
        depth[name] = 1 + max((depth[b] for b in imports[name] if b in depth), default=-1)
    rows: list[list[str]] = []
    for level in range(max(depth.values()) + 1):
        row, used = [], 0.0
        for name in (n for n in stage if depth[n] == level):
            if row and used + box_width(name) > WIDTH - LEFT:
                rows.append(row)
                row, used = [], 0.0
            row.append(name)
            used += box_width(name) + GAP
        rows.append(row)
    return rows


def box_width(name: str) -> float:
    return LETTER * len(name) + 18


def place(
    order: dict[str, list[str]], imports: dict[str, frozenset[str]]
) -> tuple[dict[str, tuple[float, float]], list[tuple[str, float, float]], float]:
    """(name → centre of its box, (title, top, bottom) of each stage, height of the picture)."""
    centres: dict[str, tuple[float, float]] = {}
    bands, y = [], 8.0
    for title, stage in order.items():
        top = y
        for row in rows_of(stage, imports):

            def pull(name: str) -> float:  # towards the middle of what it imports
                xs = [centres[b][0] for b in imports[name] if b in centres]
                return sum(xs) / len(xs) if xs else (LEFT + WIDTH) / 2

            row = sorted(row, key=pull)
            total = sum(map(box_width, row))
            gap = min(60.0, (WIDTH - LEFT - total) / (len(row) + 1))
            x = LEFT + (WIDTH - LEFT - total - gap * (len(row) - 1)) / 2
            for name in row:
                centres[name] = (x + box_width(name) / 2, y + ROW / 2)
                x += box_width(name) + gap
            y += ROW
        bands.append((title, top, y))
        y += BAND_GAP
    return centres, bands, y - BAND_GAP + 8


def draw(
    title: str,
    order: dict[str, list[str]],
    arrows: dict[tuple[str, str], bool],
    summary: Callable[[str], str] = lambda name: "",
    key: str = "map",
) -> str:
    """SVG of modules in stages (title → names, in reading order) and their arrows.

    arrows: (importer, imported) → whether it is drawn; the others show under the pointer only.
    summary: the text that a box shows under the pointer. key: unique on the page, letters only.
    """
    names = [name for stage in order.values() for name in stage]
    imports = {n: frozenset(b for a, b in arrows if a == n) for n in names}
    centres, bands, height = place(order, imports)
    parts = [
        f'<svg id="{key}" class="module-map" viewBox="0 0 {WIDTH} {height:.0f}" role="img" '
        f'aria-label="{escape(title)}" xmlns="http://www.w3.org/2000/svg" '
        'font-family="monospace" font-size="12" fill="currentColor">',
        f"<style>{style(key, names)}</style>",
    ]
    for label, top, bottom in bands:
        parts.append(
            f'<rect class="band" x="0" y="{top:.0f}" width="{WIDTH}" height="{bottom - top:.0f}" '
            'rx="6" opacity="0.06"/>'
        )
        for i, line in enumerate(wrap(label, 16)):
            parts.append(
                f'<text x="10" y="{top + 22 + 15 * i:.0f}" font-family="sans-serif" '
                f'font-weight="bold">{escape(line)}</text>'
            )
    for (above, below), drawn in sorted(arrows.items()):
        ends = f"{key}-{above}", f"{key}-{below}"
        parts.append(arrow(centres[above], centres[below], *ends, drawn))
    for name in names:
        parts.append(box(name, centres[name], f"{key}-{name}", summary(name)))
    return "\n".join([*parts, "</svg>"])


def style(key: str, names: list[str]) -> str:
    """Rules that bring out the arrows of the box under the pointer."""
    shown = [f"#{key} .arrow {{opacity: .55}} #{key} .implied {{opacity: 0}}"]
    shown.append(f"#{key}:has(.box:hover) .arrow {{opacity: .08}}")
    for name in names:
        here = f"#{key}:has(#{key}-{name}:hover)"
        for end, colour in (("from", "--map-imports, #0072B2"), ("to", "--map-users, #D55E00")):
            shown.append(f"{here} .{end}-{key}-{name} {{opacity: 1; color: var({colour})}}")
    return "\n".join(shown)


def arrow(start: tuple, end: tuple, from_id: str, to_id: str, drawn: bool) -> str:
    """A curve with a head, from the importer's box up to that of the imported module."""
    (x1, y1), (x2, y2) = start, end
    y1, y2 = y1 - BOX_HEIGHT / 2, y2 + BOX_HEIGHT / 2 + 6
    bend = max(14.0, 0.4 * (y1 - y2))
    implied = "" if drawn else " implied"
    return (
        f'<g class="arrow{implied} from-{from_id} to-{to_id}">'
        f'<path d="M{x1:.1f} {y1:.1f} C{x1:.1f} {y1 - bend:.1f} {x2:.1f} {y2 + bend:.1f} '
        f'{x2:.1f} {y2:.1f}" fill="none" stroke="currentColor" stroke-width="1.2"/>'
        f'<path d="M{x2:.1f} {y2 - 6:.1f} l-3.5 7 h7 z" fill="currentColor"/></g>'
    )


def box(name: str, centre: tuple[float, float], box_id: str, summary: str) -> str:
    """A named box; `summary` is what browsers show under the pointer."""
    (x, y), width = centre, box_width(name)
    return (
        f'<g class="box" id="{box_id}"><title>{escape(summary or name)}</title>'
        f'<rect x="{x - width / 2:.1f}" y="{y - BOX_HEIGHT / 2:.1f}" width="{width:.1f}" '
        f'height="{BOX_HEIGHT}" rx="4" style="fill: var(--pst-color-background, white)" '
        'stroke="currentColor"/>'
        f'<text x="{x:.1f}" y="{y + 4:.1f}" text-anchor="middle">{escape(name)}</text></g>'
    )


def wrap(text: str, most: int) -> list[str]:
    """`text` in lines of at most `most` letters, longer words whole."""
    lines: list[str] = []
    for word in text.split():
        if lines and len(lines[-1]) + 1 + len(word) <= most:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines
