"""Docstrings, which are plain text, as reStructuredText that shows them as they are.

The package's docstrings follow no markup: a star is a star. What has a layout of its own (indented
examples) stays as it is typed, columns of names and what they are become a list of definitions, and
the rest becomes paragraphs; names in `backticks` are set as code.
"""

import re

COLUMNS = re.compile(r"^(\S+(?: \S+)*) {2,}(\S.*)")
ITEM = re.compile(r"^- ")
CODE = re.compile(r"(``.+?``|`[^`]+`)")


def to_rst(docstring: str) -> str:
    """The whole docstring; a warning in the book would mean that this function is wrong."""
    return "\n\n".join(block_to_rst(block) for block in blocks(docstring)) + "\n"


def blocks(docstring: str) -> list[list[str]]:
    """Lines between blank lines; neighbouring blocks that are all indented are one."""
    found: list[list[str]] = []
    for text in re.split(r"\n[ \t]*\n", docstring.strip("\n")):
        lines = text.rstrip().splitlines()
        if found and _indented(found[-1]) and _indented(lines):
            found[-1] += ["", *lines]
        elif lines:
            found.append(lines)
    return found


def block_to_rst(lines: list[str]) -> str:
    if COLUMNS.match(lines[0]):
        return "\n".join(definitions(lines))
    if _indented(lines) or any(COLUMNS.match(line) for line in lines):
        return "::\n\n" + "\n".join(f"    {line}" if line else "" for line in lines)
    out: list[str] = []
    for line in lines:
        if out and ITEM.match(line) and not ITEM.match(lines[0]):
            out.append("")  # a list that follows a sentence directly
        out.append(inline(line.strip() if not ITEM.match(lines[0]) else line))
    return "\n".join(out)


def definitions(lines: list[str]) -> list[str]:
    """Lines of "name  what it is", each with its continuation lines, as a list of definitions."""
    out = []
    for line in lines:
        if found := COLUMNS.match(line):
            out += [f"``{found[1]}``", f"    {inline(found[2])}"]
        else:
            out.append(f"    {inline(line.strip())}")
    return out


def inline(line: str) -> str:
    """One line: `code` as code, everything that reStructuredText could act on as itself."""
    parts = CODE.split(line)
    parts[::2] = [re.sub(r"([\\*_|`])", r"\\\1", text) for text in parts[::2]]
    parts[1::2] = ["``" + code.strip("`") + "``" for code in parts[1::2]]
    for i in range(1, len(parts), 2):  # inline markup must not touch a letter
        if parts[i - 1] and not parts[i - 1][-1].isspace():
            parts[i - 1] += "\\ "
        if parts[i + 1] and not parts[i + 1][0].isspace():
            parts[i + 1] = "\\ " + parts[i + 1]
    return "".join(parts)


def _indented(lines: list[str]) -> bool:
    return all(line.startswith((" ", "\t")) for line in lines if line)
