"""The course in one command: `python3 course.py lab` sets it up and opens it, `test` checks it.

Standard library only, and nothing that Python 3.6 cannot parse: an interpreter that is too old
must be able to read this file, because this file says which one to use instead.
"""

import argparse
import ctypes
import hashlib
import json
import os
import platform
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent
OLDEST, NEWEST = (3, 11), (3, 14)  # torch, numba and numba-cuda have wheels for these


# ---- the interpreter ------------------------------------------------------------------------


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


if version_problem(sys.version_info, platform.system()):
    sys.exit(
        version_problem(
            sys.version_info,
            platform.system(),
            suitable_pythons(platform.system()),
            arguments=" ".join(sys.argv[1:]) or "lab",
        )
    )


# ---- set-up ---------------------------------------------------------------------------------

VENV = ROOT / ".venv"
TORCH = "torch==2.13.0"  # exact: a range would take the newest CUDA build on Linux
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
LEVELS = {"lab": "lab,ptx", "dev": "dev"}  # the extras for a reader, and for `test`
# GB to download, GB on the disk, minutes: measured on Linux x86-64 with two cores.
SIZE_CPU, SIZE_CUDA = (0.6, 2.1, 2), (3.1, 5.8, 4)


class CourseError(Exception):
    """Something that the reader can mend; the message says how."""


def python():
    return VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def has_nvidia_driver():
    try:
        ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return False
    return True


def torch_plan(system, has_driver, env):
    """The `pip install` arguments for torch, to be tried in turn until one works.

    On Linux PyPI has the CUDA build only, so without an NVIDIA driver PyTorch's index of small CPU
    builds comes first. If it does not answer, that must cost seconds, hence no retries.
    MINILM_TORCH_INDEX names another index for the first try; empty, it leaves that try out.
    """
    index = env.get("MINILM_TORCH_INDEX")
    if index is None and system == "Linux" and not has_driver:
        index = CPU_INDEX
    first = ["--index-url", index, "--no-deps", "--retries", "0", "--timeout", "5", TORCH]
    return [first, [TORCH]] if index else [[TORCH]]


def wanted_stamp(level):
    """What a finished .venv is stamped with; any difference means that there is work to do."""
    import tomllib  # Python 3.11's

    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    needs = json.dumps([settings["build-system"], settings["project"]], sort_keys=True)
    return {
        "python": f"{sys.implementation.cache_tag}-{platform.machine()}",
        "folder": str(ROOT),
        "torch": TORCH,
        "project": hashlib.sha256(needs.encode()).hexdigest(),
        "level": level,
    }


def read_stamp():
    """What `.venv` is stamped with; None where there is no stamp, or none of today's form."""
    try:
        stamp = json.loads((VENV / "minilm-stamp.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return stamp if isinstance(stamp, dict) and set(stamp) == set(wanted_stamp("lab")) else None


def starts(interpreter):
    """Does it still start? Where Python was upgraded or removed, .venv holds a dead link."""
    try:
        return subprocess.call([str(interpreter), "-c", ""], stderr=subprocess.DEVNULL) == 0
    except OSError:
        return False


def why_anew(old, new):
    """Why `.venv` has to be made from nothing; None if the one that is there can be kept."""
    if not VENV.exists():
        return "there is none"
    if old is None:
        return "the one that is there is half-made"
    if old["folder"] != new["folder"]:
        return "the one that is there was made in another folder"
    if old["python"] != new["python"]:
        return f"the one that is there is for {old['python']}, this is {new['python']}"
    if not starts(python()):
        return "the Python of the one that is there is gone"
    return None


def setup(level):
    """Make `.venv` fit for `level`, "lab" or "dev"; a finished one is left as it is.

    Half-made (without its stamp), of another Python or in a moved folder, it is made anew; with
    other needs in pyproject.toml, or for the higher level, it is added to.
    """
    old, new = read_stamp(), wanted_stamp(level)
    reason = why_anew(old, new)
    if not reason and old["level"] == "dev":
        new["level"] = "dev"
    if not reason and old == new:
        return
    plan = torch_plan(platform.system(), has_nvidia_driver(), os.environ)
    if reason:
        remove_venv()
        cuda = platform.system() == "Linux" and len(plan) == 1
        announce(reason, *(SIZE_CUDA if cuda else SIZE_CPU))
        base = getattr(sys, "_base_executable", None) or sys.executable
        step("an empty .venv", [base, "-m", "venv", VENV], venv_hint())
    else:
        print("Bringing .venv up to date.")
    if reason or old["torch"] != TORCH:  # else the reader's own choice of a build stays
        install_torch(plan)
    pip_install("the course and what it needs", ["-e", f".[{LEVELS[new['level']]}]"])
    # Matplotlib lists the fonts once, and says so on stderr, where no notebook may write.
    step("a first start", [python(), "-c", "import minilm, matplotlib.font_manager"])
    (VENV / "minilm-stamp.json").write_text(json.dumps(new, indent=1), encoding="utf-8")


def announce(reason, download, disk, minutes):
    """Say what set-up will cost before it costs anything; stop if it cannot end well."""
    print(
        f"Making .venv ({reason}): about {download} GB to download, {disk} GB on the disk, "
        f"{minutes} minutes on a fast line."
    )
    free = shutil.disk_usage(str(ROOT)).free / 1e9
    if free < disk:
        raise CourseError(f"only {free:.1f} GB are free where {ROOT} is: make room, or move it")


def install_torch(plan):
    for arguments in plan:
        source = arguments[1] if arguments[1:] else "PyPI"
        try:
            return pip_install(f"PyTorch from {source}", arguments)
        except CourseError:
            if arguments is plan[-1]:
                raise
            print(f"  (no answer, or not there: PyPI has it too, {SIZE_CUDA[0]} GB in all)")


def pip_install(title, arguments):
    step(title, [python(), "-m", "pip", "install", "--no-input"] + arguments)


def remove_venv():
    try:
        if VENV.exists():
            shutil.rmtree(str(VENV))
    except OSError as error:
        raise CourseError(
            f".venv cannot be removed ({error}). Close what uses it (JupyterLab, a shell where it "
            "is activated), then run the same command again."
        ) from None


def venv_hint():
    """Debian and Ubuntu leave venv out of Python."""
    minor = sys.version_info[1]
    return f"Try: sudo apt install python3.{minor}-venv\n" if shutil.which("apt-get") else ""


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


# ---- JupyterLab -----------------------------------------------------------------------------


def has_screen(system, env):
    """Can a browser open here? Not over ssh, and on Linux only under a display server."""
    if env.get("SSH_CONNECTION"):
        return False
    return system != "Linux" or bool(env.get("DISPLAY") or env.get("WAYLAND_DISPLAY"))


def free_port(first=8888, tries=50):
    for port in range(first, first + tries):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port
    raise CourseError(f"no free port from {first} to {first + tries - 1}; name one with --port")


def lab(browser=True, port=None, check=False):
    """Open JupyterLab on the first notebook; with `check` only prove that it would open."""
    setup("lab")
    first, token = "notebooks/00_start.ipynb", secrets.token_hex(16)
    port = port or free_port()
    address = f"http://127.0.0.1:{port}"
    command = [python(), "-m", "jupyterlab", "-y", f"--ServerApp.port={port}"]
    command += ["--ServerApp.port_retries=0", "--ServerApp.ip=127.0.0.1", "--LabApp.news_url=None"]
    command += [f"--ServerApp.root_dir={ROOT}", f"--LabApp.default_url=/lab/tree/{first}"]
    command += ["--log-level=WARN", "--LabApp.extension_manager=readonly"]
    if check or not browser or not has_screen(platform.system(), os.environ):
        command.append("--no-browser")
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        command.append("--allow-root")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that the server goes too
    server = start(command, env={"JUPYTER_TOKEN": token})
    try:
        wait_for(f"{address}/api/status?token={token}", server)
        print(f"\nThe course is open at\n    {address}/lab/tree/{first}?token={token}", flush=True)
        if check:
            wait_for(f"{address}/lab/tree/{first}?token={token}", server)
            wait_for(f"{address}/api/contents/{first}?token={token}", server)
            print("It answers; stopping, as --check asks.")
            return 0
        print("Ctrl-C here stops it.", flush=True)
        return server.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        server.terminate()
        server.wait()


def wait_for(url, server, seconds=120):
    """Return when the page answers; say so if the server ends or the time is over."""
    deadline = time.monotonic() + seconds
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # it is this machine
    while time.monotonic() < deadline and server.poll() is None:
        try:
            opener.open(url, timeout=10).read()
            return
        except urllib.error.HTTPError as error:
            raise CourseError(f"JupyterLab answers {error} at {url.split('?')[0]}") from None
        except OSError:
            time.sleep(0.2)
    raise CourseError(f"JupyterLab did not answer at {url.split('?')[0]}; its messages are above.")


# ---- notebooks ------------------------------------------------------------------------------

# What a notebook is run and checked under, here and in CI: sums in one order, hashes in one order.
STEADY = {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
WIDGET = "application/vnd.jupyter.widget-view+json"


def notebook_paths(names):
    """The notebooks meant: files, or starts of names such as `03`; all where none is named."""
    if not names:
        return sorted((ROOT / "notebooks").glob("*.ipynb"))
    paths = []
    for name in names:
        found = [Path(name).resolve()] if Path(name).is_file() else []
        found = found or sorted((ROOT / "notebooks").glob(f"{name}*.ipynb"))
        if not found:
            raise CourseError(
                f"no notebook {name}: give a file, or the start of a name, such as 03"
            )
        paths += found
    return paths


def normalise(notebook, name):
    """Bring a notebook (nested dicts, changed in place) into the one form that is committed.

    Sources, outputs, counts, tags and our own cell metadata stay; time stamps, widget ids, the
    interpreter's version and all else that differs from run to run goes. `name` seeds cell ids.
    """
    notebook["nbformat"], notebook["nbformat_minor"] = 4, 5
    kept = {key: value for key, value in notebook["metadata"].items() if key == "minilm"}
    notebook["metadata"] = dict(kept, kernelspec=dict(KERNEL))
    ids = set()
    for number, cell in enumerate(notebook["cells"]):
        while cell.get("id", "") in ids | {""}:
            seed = f"{name} {number} {len(ids)} {cell.get('id', '')}"
            cell["id"] = hashlib.sha256(seed.encode()).hexdigest()[:8]
        ids.add(cell["id"])
        metadata = cell["metadata"]
        for key in [k for k in metadata if k not in ("tags", "minilm") or not metadata[k]]:
            del metadata[key]
        if cell["cell_type"] == "code":
            cell["outputs"] = normalise_outputs(cell["outputs"])
            if "nbval-skip" in metadata.get("tags", []):
                cell["execution_count"] = None
    return notebook


def normalise_outputs(outputs):
    """One stream where several of the same name follow each other; no widget's random id."""
    kept = []
    for output in outputs:
        if output["output_type"] == "stream":
            output["text"] = "".join(output["text"])
            if kept and kept[-1].get("name") == output["name"]:
                kept[-1]["text"] += output["text"]
                continue
        elif output["output_type"] == "error":  # where the course is installed is nobody's business
            output["traceback"] = [line.replace(str(ROOT), ".") for line in output["traceback"]]
        elif "data" in output:
            output["data"].pop(WIDGET, None)
            output["metadata"].pop(WIDGET, None)
        kept.append(output)
    return kept


def run_notebooks(names):
    """Execute notebooks in place, from top to bottom, and write them in their committed form.

    A notebook that fails, or writes on stderr, stays as it was.
    """
    import nbclient
    import nbformat

    os.environ.update(STEADY, PYTHONUTF8="1")
    failed = []
    for path in notebook_paths(names):
        print(f"{path.name}: ", end="", flush=True)
        began = time.monotonic()
        notebook = nbformat.read(str(path), as_version=4)
        client = nbclient.NotebookClient(
            notebook,
            timeout=600,
            kernel_name="python3",
            resources={"metadata": {"path": str(path.parent)}},
            skip_cells_with_tag="nbval-skip",
            extra_arguments=["--log-level=40"],  # the kernel's own warnings are not the notebook's
        )
        try:
            client.execute()
            problem = stderr_problem(notebook)
        except (nbclient.exceptions.CellExecutionError, nbclient.exceptions.CellTimeoutError) as e:
            problem = str(e)
        if problem:
            failed.append(path.name)
            print(f"failed, and left as it was\n{problem}")
            continue
        normalise(notebook, path.stem)
        with open(str(path), "w", encoding="utf-8", newline="\n") as file:
            file.write(nbformat.writes(notebook).rstrip("\n") + "\n")
        print(f"{time.monotonic() - began:.0f} s, {path.stat().st_size / 1000:.0f} kB")
    return 1 if failed else 0


def stderr_problem(notebook):
    for number, cell in enumerate(notebook["cells"]):
        for output in cell.get("outputs", []):
            if output.get("name") == "stderr":
                return f"cell {number} writes on stderr: {''.join(output['text'])[:500]}"
    return None


def nbval_command(lax, paths):
    command = [python(), "-m", "pytest", "-p", "no:cacheprovider", "-n", "2", "--dist", "loadfile"]
    command += ["--nbval-lax" if lax else "--nbval", "--nbval-current-env"]
    command += ["--nbval-cell-timeout=120", f"--nbval-sanitize-with={ROOT / 'nbval.cfg'}"]
    return command + list(paths)


# ---- checks ---------------------------------------------------------------------------------


def strict_here():
    """Committed digits are promised on Linux x86-64 only; elsewhere floats differ in the last."""
    return (platform.system(), platform.machine()) == ("Linux", "x86_64")


def validate(names, lax):
    setup("dev")
    if not lax and not strict_here():
        print("The committed digits are Linux x86-64's; here --lax is the check that should pass.")
    return start(nbval_command(lax, notebook_paths(names)), env=STEADY).wait()


def book():
    setup("dev")
    page = ROOT / "book" / "_build" / "html"
    command = [python(), "-m", "sphinx", "-q", "-W", "--keep-going", "-c", "book", ".", page]
    code = start(command).wait()
    print("The book could not be built." if code else f"The book: {page / 'book' / 'index.html'}")
    return code


def test():
    """Everything that CI checks. All stages run, also after one has failed."""
    setup("dev")
    tests = ["-m", "pytest", "-n", "2", "--dist", "loadfile", "tests"]
    stages = {
        "lint": [python(), "-m", "ruff", "check", "."],
        "format": [python(), "-m", "ruff", "format", "--check", "."],
        "tests": [python()] + tests,
        "notebooks": nbval_command(not strict_here(), [ROOT / "notebooks"]),
        "book": [python(), "course.py", "book"],
    }
    rows = []
    for name, command in stages.items():
        print(f"\n== {name}", flush=True)
        began, last = time.monotonic(), ""
        pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        with start(command, env=STEADY, **pipe) as process:
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


def doctor():
    """Say what is here and what to do about it. Installs and changes nothing."""
    print(f"Python {platform.python_version()} ({sys.executable}), {platform.platform()}")
    stamp = read_stamp()
    if not VENV.exists():
        print(".venv: none yet. `course.py lab` or `course.py setup` makes it.")
        return 0
    reason = why_anew(stamp, wanted_stamp("lab"))
    if reason:
        print(f".venv: has to be made anew: {reason}. `course.py lab` or `setup` does that.")
        return 0
    stale = stamp["project"] != wanted_stamp("lab")["project"]
    print(f".venv: for `{stamp['level']}`" + (", older than pyproject.toml" if stale else ""))
    return start([python(), "-m", "minilm", "doctor"]).wait()


# ---- the command line -----------------------------------------------------------------------


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
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="replace")  # Windows, and LANG=C
    options = parser().parse_args(arguments)
    try:
        if options.command == "lab":
            return lab(not options.no_browser, options.port, options.check)
        if options.command == "setup":
            setup("dev" if options.dev else "lab")
            print(f"Ready: {VENV}")
            return 0
        if options.command == "run":
            if Path(sys.prefix).resolve() != VENV.resolve():
                setup("lab")
                return start([python(), Path(__file__), "run"] + options.notebooks).wait()
            return run_notebooks(options.notebooks)
        if options.command == "validate":
            return validate(options.notebooks, options.lax)
        return {"test": test, "book": book, "doctor": doctor}[options.command]()
    except CourseError as error:
        print(f"course.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
