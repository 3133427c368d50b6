"""The Python that runs the course: which ones can, and what to type where this one cannot."""

import platform
import shutil
import subprocess
import sys

OLDEST, NEWEST = (3, 11), (3, 14)  # torch, numba and numba-cuda have wheels for these


def suitable_pythons(system, runs=None):
    """The commands on this machine that start a Python the course can use, best first."""

    def starts_at_all(command):  # a launcher may be there without the Python that it launches
        try:
            return subprocess.call(command + ["-c", ""], stderr=subprocess.DEVNULL) == 0
        except OSError:
            return False

    name = ["py", "-3."] if system == "Windows" else ["python3."]
    commands = [name[:-1] + [name[-1] + minor] for minor in ("13", "12", "11", "14")]
    return [" ".join(command) for command in commands if (runs or starts_at_all)(command)]


def version_problem(version, system, suitable=(), which=shutil.which, arguments="lab"):
    """None if Python `version` can run the course, else what to type instead."""
    if OLDEST <= tuple(version[:2]) <= NEWEST:
        return None
    here = ".".join(str(part) for part in version[:3])
    problem = f"The course needs Python 3.11 to 3.14. This is Python {here} ({sys.executable}).\n"
    if suitable:
        command = f"{suitable[0]} course.py {arguments}"
        return problem + f"A suitable one is installed. Run:\n    {command}"
    python, other = "python3.13", "uv, https://docs.astral.sh/uv: uv python install 3.13"
    if system == "Darwin":
        install, other = "brew install python@3.13", "https://www.python.org/downloads/macos"
    elif system == "Windows":
        install, python = "winget install Python.Python.3.13", "py -3.13"
        other = "https://www.python.org/downloads/windows"
    elif which("apt-get"):
        install, python = "sudo apt install python3.11 python3.11-venv", "python3.11"
    elif which("dnf"):
        install = "sudo dnf install python3.13"
    else:
        install, other = "uv python install 3.13", "https://www.python.org/downloads"
    command = f"{python} course.py {arguments}"
    return problem + f"Install one:\n    {install}\n(or: {other})\nthen run:\n    {command}"


def require(arguments):
    """Stop, and say what to type instead, where this Python cannot run the course."""
    system = platform.system()
    if version_problem(sys.version_info, system):
        suitable, given = suitable_pythons(system), " ".join(arguments) or "lab"
        sys.exit(version_problem(sys.version_info, system, suitable, arguments=given))
