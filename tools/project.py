"""The project's folder, the Python of its `.venv`, and commands that run there."""

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"


class CourseError(Exception):
    """Something that the reader can mend; the message says how."""


def python():
    return VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def start(command, **options):
    """Popen in the project's folder, text in UTF-8 on every system, nothing held back."""
    env = dict(os.environ, PYTHONUTF8="1", PYTHONUNBUFFERED="1")
    env.update(PIP_DISABLE_PIP_VERSION_CHECK="1", PIP_USER="0")  # a reader's own may say --user
    env.update(options.pop("env", {}))
    command = [str(part) for part in command]
    text = {"encoding": "utf-8", "errors": "replace"}
    return subprocess.Popen(command, cwd=str(ROOT), env=env, **text, **options)


def step(title, command, hint=""):
    """Run a command; its output goes to .venv/setup.log, and its end is shown if it fails."""
    terminal, began, lines = sys.stdout.isatty(), time.monotonic(), []
    print(f"- {title}: ", end="", flush=True)
    with start(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        for line in process.stdout:
            lines.append(line)
            if terminal:
                print(f"\r\033[K- {title}: {line.strip()[:60]}", end="", flush=True)
    code = process.returncode
    print(f"\r\033[K- {title}: " if terminal else "", end="")
    print("failed" if code else f"{time.monotonic() - began:.0f} s")
    if VENV.exists():
        with open(str(VENV / "setup.log"), "a", encoding="utf-8") as log:
            log.writelines([f"$ {' '.join(process.args)}\n"] + lines)
    if code:
        end = "".join("    " + line for line in lines[-12:])
        raise CourseError(
            f"{title}: this failed:\n    {' '.join(process.args)}\n{end}{hint}"
            "When the cause is gone, run the same command again."
        )
