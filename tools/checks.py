"""What can be checked: notebooks, the book, and everything at once as CI does."""

import platform
import subprocess
import time

from . import environment, notebooks, project
from .notebooks import STEADY, nbval_command


def strict_here():
    """Committed digits are promised on Linux x86-64 only; elsewhere floats differ in the last."""
    return (platform.system(), platform.machine()) == ("Linux", "x86_64")


def validate(names, lax):
    environment.setup("dev")
    if not lax and not strict_here():
        print("The committed digits are Linux x86-64's; here --lax is the check that should pass.")
    return project.start(nbval_command(lax, notebooks.notebook_paths(names)), env=STEADY).wait()


def book():
    environment.setup("dev")
    page = project.ROOT / "book" / "_build" / "html"
    command = [project.python(), "-m", "sphinx", "-q", "-W", "--keep-going"]
    command += ["-c", "book", ".", page]
    code = project.start(command).wait()
    print("The book could not be built." if code else f"The book: {page / 'book' / 'index.html'}")
    return code


def test():
    """Everything that CI checks. All stages run, also after one has failed."""
    environment.setup("dev")
    tests = ["-m", "pytest", "-n", "2", "--dist", "loadfile"]
    tests += ["--no-loadscope-reorder", "tests"]  # in the order of tests/conftest.py
    stages = {
        "lint": [project.python(), "-m", "ruff", "check", "."],
        "format": [project.python(), "-m", "ruff", "format", "--check", "."],
        "tests": [project.python()] + tests,
        "notebooks": nbval_command(not strict_here(), [project.ROOT / "notebooks"]),
        "book": [project.python(), "course.py", "book"],
    }
    rows = []
    for name, command in stages.items():
        print(f"\n== {name}", flush=True)
        began, last = time.monotonic(), ""
        pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        with project.start(command, env=STEADY, **pipe) as process:
            for line in process.stdout:
                print(line, end="", flush=True)
                last = line.strip(" =\n") or last
        rows.append((name, process.returncode, time.monotonic() - began, last))
    print("\nstage      result  seconds  last line")
    for name, code, seconds, last in rows:
        print(f"{name:<10} {'FAILED' if code else 'passed'} {seconds:>8.0f}  {last[:90]}")
    failed = [name for name, code, _, _ in rows if code]
    print(f"failed: {', '.join(failed)}" if failed else "all passed")
    return 1 if failed else 0
