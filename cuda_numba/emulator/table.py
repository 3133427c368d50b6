"""The report as a table for a terminal: findings, remarks, totals, and the lines that do work."""

from .columns import launch, totals, used_columns

WIDTH = 100  # of a sentence, and of the table where the source can be cut


def render(report) -> str:
    rows = [launch(report)]
    rows += _sentences([str(f) for f in report.findings], "! ")
    if not report.findings:
        rows.append("  no findings")
    rows += _sentences(report.remarks, "· ")
    rows.append("")
    rows += [f"  {what + ':':15}{numbers}" for what, numbers in totals(report)]
    lines = [line for line in report.lines.values() if not line.quiet]
    if lines:
        rows += ["", *_lines(lines)]
    return "\n".join(rows)


def _sentences(sentences: list[str], mark: str) -> list[str]:
    from textwrap import wrap

    rows = []
    for sentence in sentences:
        rows += wrap(
            sentence.replace(" %", "\u00a0%"),  # not to be parted from its number
            WIDTH,
            initial_indent="  " + mark,
            subsequent_indent="    ",
            break_long_words=False,
            break_on_hyphens=False,
        )
    return [row.replace("\u00a0%", " %") for row in rows]


def _lines(lines: list) -> list[str]:
    columns = used_columns(lines)
    cells = [["line", *(heading for heading, _, _ in columns)]]
    cells += [[line.where, *(value(line) for _, _, value in columns)] for line in lines]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    source = ["source", *(line.text for line in lines)]
    marks = [" ", *("!" if line.findings else " " for line in lines)]
    room = max(36, WIDTH + 20 - sum(widths) - 2 * len(widths))
    rows = []
    for mark, row, text in zip(marks, cells, source, strict=True):
        numbers = "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        text = text if len(text) <= room else text[: room - 1] + "…"
        rows.append(f"{mark} {numbers}  {text}".rstrip())
    return rows
