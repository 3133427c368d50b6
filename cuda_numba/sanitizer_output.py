"""What the tools of compute-sanitizer print, read: reports, summaries, the child's last line.

Each report is a block of lines behind "=========": an unindented line, then indented ones. The
forms are those of the manual (Compute Sanitizer, "Tool examples") and of an H100's runs.
"""

import json
import re
from dataclasses import dataclass

LINE = re.compile(r"^=========(?: (.*))?$")
WHERE = (
    re.compile(r"\bat (?:0x[0-9a-f]+ in )?(?P<kernel>.+?)\+0x[0-9a-f]+"),
    re.compile(r"\bat 0x[0-9a-f]+ in (?P<kernel>.+?)(?: in \S+:\d+)?$"),
    re.compile(r"\bin kernel (?P<kernel>\S+)"),
)
SUMMARY = re.compile(r"ERROR SUMMARY: (\d+) error")
RACE_SUMMARY = re.compile(r"RACECHECK SUMMARY: .*?\((\d+) errors?, (\d+) warnings?\)")
# Unindented lines that report nothing about a kernel.
OTHER = re.compile(
    r"COMPUTE-SANITIZER|(ERROR|RACECHECK|LEAK) SUMMARY|Target application|"
    r"(Error|Warning|WARNING|Info): (?!Race|Potential)|\d+ .*(not|were) (printed|displayed|shown)"
)
TROUBLE = re.compile(
    r"internal .*error|Target application|^(Error|Warning|WARNING): (?!Race|Potential)|"
    r"unrecogni[sz]ed|not supported|failed to|unable to|^ended after",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Finding:
    """One report of a tool. kernel: the name in the report, "" where it names none."""

    level: str  # "error" or "warning"
    kernel: str
    text: str  # its first line
    detail: str  # its second


@dataclass(frozen=True)
class Reading:
    """What one process's output says; errors is None where there is no summary."""

    errors: int | None
    warnings: int
    findings: list[Finding]
    trouble: list[str]
    kernels: list[str]
    launches: int | None  # None where the cases did not come to their end


def read(output: str) -> Reading:
    """The reports, the summary and the child's last line in the output of one process."""
    blocks: list[list[str]] = []
    trouble = []
    for line in output.splitlines():
        found = LINE.match(line)
        text = (found[1] or "") if found else line
        if TROUBLE.search(text):
            trouble.append(text.strip())
        if not found or not text.strip():
            continue
        if not text.startswith(" "):
            blocks.append([text])
        elif blocks:
            blocks[-1].append(text.strip())
    findings = [_finding(block) for block in blocks if not OTHER.match(block[0])]
    errors, warnings = None, 0
    if races := RACE_SUMMARY.findall(output):
        errors, warnings = (sum(map(int, column)) for column in zip(*races, strict=True))
    elif totals := SUMMARY.findall(output):
        errors = sum(map(int, totals))
    kernels, launches = [], None
    for found in re.finditer(r"^CASES (\{.*\})", output, re.MULTILINE):
        cases = json.loads(found[1])
        kernels, launches = cases["kernels"], cases["launches"]
    return Reading(errors, warnings, findings, trouble, kernels, launches)


def _finding(block: list[str]) -> Finding:
    level = "warning" if block[0].startswith("Warning") else "error"
    kernel = next((name for line in block if (name := _kernel(line))), "")
    return Finding(level, kernel, block[0].strip(), block[1] if len(block) > 1 else "")


def _kernel(line: str) -> str:
    """The kernel that a line of a report names: without its return type, arguments, template."""
    for pattern in WHERE:
        if found := pattern.search(line):
            return re.split(r"[(<]", found["kernel"].removeprefix("void "))[0].strip()
    return ""


def is_ours(finding: Finding) -> bool:
    """Whether a report counts as one about this package: all but C++ kernels and API calls.

    Kernels of PyTorch and of the libraries under it have C++ names with a namespace; ours are
    plain, and a name that is neither counts as ours.
    """
    return bool(finding.kernel) and "::" not in finding.kernel


def last_words(output: str, reading: Reading) -> str:
    """What says best why a process did not come to its end: its troubles, else its last lines."""
    lines = reading.trouble or [line for line in output.splitlines() if line.strip()]
    return " / ".join(lines[-3:])[:600]
