"""The report beside the kernel's source, for notebooks.

All style is inline and all colours are translucent over the page's own, so that it reads the same
in light and dark JupyterLab; nothing is loaded from elsewhere, and equal reports give equal HTML.
"""

from html import escape

from .columns import launch, totals, used_columns

RED, ORANGE, GREEN, BLUE = "213,94,0", "230,159,0", "0,158,115", "0,114,178"
MONO = "font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,DejaVu Sans Mono,monospace"
CELL = "padding:1px 8px;border:0;white-space:nowrap"
LONG = 120  # source lines from which on only those near something are shown
NEAR = 2
BUDGET = 80_000  # characters


def render(report) -> str:
    head = f"<div style='margin:0 0 6px'><b style='{MONO}'>{escape(launch(report))}</b></div>"
    parts = [head]
    parts += [_box(str(f), RED) for f in report.findings[:20]]
    if len(report.findings) > 20:
        parts.append(_box(f"and {len(report.findings) - 20} more findings", RED))
    if not report.findings:
        parts.append(_box("no findings", GREEN))
    parts += [_box(sentence, ORANGE) for sentence in report.remarks[:20]]
    parts.append(_totals(report))
    room = BUDGET - sum(map(len, parts))
    parts.append(_source(report, room))
    return f"<div style='font-size:13px;line-height:1.5'>{''.join(parts)}</div>"


def _box(sentence: str, colour: str) -> str:
    pieces = escape(sentence, quote=False).split("`")
    text = "".join(
        f"<code style='{MONO};background:none;color:inherit'>{piece}</code>" if i % 2 else piece
        for i, piece in enumerate(pieces)
    )
    return (
        f"<div style='margin:3px 0;padding:3px 10px;border-left:4px solid rgb({colour});"
        f"background:rgba({colour},.12)'>{text}</div>"
    )


def _totals(report) -> str:
    rows = "".join(
        f"<div><span style='display:inline-block;width:9em;opacity:.7'>{escape(what)}</span>"
        f"{escape(numbers)}</div>"
        for what, numbers in totals(report)
    )
    return f"<div style='margin:8px 0'>{rows}</div>"


def _source(report, room: int) -> str:
    lines = list(report.lines.values())
    columns = used_columns(lines)
    most = max((line.moved for line in lines), default=0)
    heads = "".join(
        f"<th style='{CELL};text-align:right;font-weight:600' title='{escape(what)}'>{heading}</th>"
        for heading, what, _ in columns
    )
    heads = f"<th style='{CELL}'></th>" * 2 + heads + (f"<th style='{CELL}'></th>" if most else "")
    rows, left = [], room - 200
    shown = _shown(report)
    for i, (where, text, line) in enumerate(shown):
        row = _row(where, text, line, columns, most)
        left -= len(row)
        if left < 0:
            more = f"and {len(shown) - i} more lines: print(report) has them all"
            rows.append(_row("…", more, None, columns, most))
            break
        rows.append(row)
    return (
        f"<div style='overflow-x:auto'><table style='border-collapse:collapse;font-size:12px;"
        f"margin:0;{MONO}'><tr style='background:none'>{heads}</tr>{''.join(rows)}</table></div>"
    )


def _shown(report) -> list[tuple]:
    """(line number, text, Line or None) of the source, then of lines in other files."""
    trace = report.trace
    lines = {key: line for key, line in report.lines.items() if not line.quiet}
    numbers = [trace.first_line + i for i in range(len(trace.source))]
    if len(numbers) > LONG:
        near = {k + d for k in lines if isinstance(k, int) for d in range(-NEAR, NEAR + 1)}
        numbers = [n for n in numbers if n in near]
    inside = set(numbers)
    shown = [(str(n), trace.source[n - trace.first_line], lines.get(n)) for n in numbers]
    shown += [(li.where, li.text, li) for key, li in lines.items() if key not in inside]
    return shown


def _row(where: str, text: str, line, columns: list, most: int) -> str:
    number = f"<td style='{CELL};text-align:right;opacity:.55'>{escape(where)}</td>"
    style = f"{CELL};text-align:left;white-space:pre"
    n = len(columns) + bool(most)
    if line is None:
        source = f"<td style='{style};opacity:.6'>{escape(text, quote=False)}</td>"
        return (
            f"<tr style='background:none'>{number}{source}<td colspan={n} style='{CELL}'></td></tr>"
        )
    source = f"<td style='{style}'>{escape(text, quote=False)}</td>"
    cells = "".join(
        f"<td style='{CELL};text-align:right'>{value(line)}</td>" for _, _, value in columns
    )
    back = f"rgba({RED},.16)" if line.findings else "none"
    return f"<tr style='background:{back}'>{number}{source}{cells}{_bar(line, most)}</tr>"


def _bar(line, most: int) -> str:
    """Moved bytes as a bar, the used part of it solid."""
    if not most:
        return ""
    if not line.moved:
        return f"<td style='{CELL}'></td>"
    width = max(1, round(110 * line.moved / most))
    used = round(width * line.efficiency)
    colour = BLUE if line.efficiency > 0.8 else RED
    return (
        f"<td style='{CELL};text-align:left'><span style='display:inline-block;height:9px;"
        f"width:{width}px;background:rgba({colour},.28)'><span style='display:block;height:9px;"
        f"width:{used}px;background:rgb({colour})'></span></span></td>"
    )
