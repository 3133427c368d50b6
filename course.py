"""The course in one command: `python3 course.py lab` sets it up and opens it, `test` checks it.

Here is the command line; what the commands do is in tools/. In both, standard library only, and
nothing that Python 3.6 cannot parse: an interpreter that is too old must be able to read these
files, because they say which one to use instead.
"""

import argparse
import sys
from pathlib import Path

from tools import checks, environment, interpreter, lab, notebooks, project


def parser():
    top = argparse.ArgumentParser(
        prog="course.py", description="Set up, open, check and build the course."
    )
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def add(name, text):
        return commands.add_parser(name, help=text, description=text)

    one = add("lab", "set up what is missing and open JupyterLab on the first notebook")
    one.add_argument("--no-browser", action="store_true", help="print the address only")
    one.add_argument("--port", type=int, help="the port to serve on (default: a free one)")
    one.add_argument("--check", action="store_true", help="stop as soon as the page answers")
    add("test", "everything that CI checks: lint, format, tests, notebooks, book")
    one = add("setup", "make .venv and install the course in it; the other commands call this")
    one.add_argument("--dev", action="store_true", help="with what `test` and `book` need")
    one = add("run", "execute notebooks in place and write them in the form that is committed")
    one.add_argument("notebooks", nargs="*", metavar="NOTEBOOK", help="a file or `03`; all if none")
    one = add("validate", "run notebooks and compare what comes out with what is committed")
    one.add_argument("--lax", action="store_true", help="only that they run, not what they print")
    one.add_argument("notebooks", nargs="*", metavar="NOTEBOOK", help="a file or `03`; all if none")
    add("book", "build the web book into book/_build/html")
    add("doctor", "say what this machine has and what to do about it; installs nothing")
    return top


def main(arguments=None):
    interpreter.require(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="replace")  # Windows, and LANG=C
    options = parser().parse_args(arguments)
    try:
        return run(options)
    except project.CourseError as error:
        print(f"course.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130


def run(options):
    if options.command == "lab":
        return lab.lab(not options.no_browser, options.port, options.check)
    if options.command == "setup":
        environment.setup("dev" if options.dev else "lab")
        print(f"Ready: {project.VENV}")
        return 0
    if options.command == "run":
        if Path(sys.prefix).resolve() != project.VENV.resolve():
            environment.setup("lab")
            again = [project.python(), Path(__file__), "run"] + options.notebooks
            return project.start(again).wait()
        return notebooks.run_notebooks(options.notebooks)
    if options.command == "validate":
        return checks.validate(options.notebooks, options.lax)
    commands = {"test": checks.test, "book": checks.book, "doctor": environment.doctor}
    return commands[options.command]()


if __name__ == "__main__":
    sys.exit(main())
