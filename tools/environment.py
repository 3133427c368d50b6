"""What `.venv` must hold, when it has to be made anew, and how it is made."""

import ctypes
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys

from . import project
from .project import CourseError

TORCH = "torch==2.13.0"  # exact: a range would take the newest CUDA build on Linux
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
LEVELS = {"lab": "lab,ptx", "dev": "dev"}  # the extras for a reader, and for `test`
# GB to download, GB on the disk, minutes: measured on Linux x86-64 with two cores.
SIZE_CPU, SIZE_CUDA = (0.6, 2.1, 2), (3.1, 5.8, 4)


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

    settings = tomllib.loads((project.ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    needs = json.dumps([settings["build-system"], settings["project"]], sort_keys=True)
    return {
        "python": f"{sys.implementation.cache_tag}-{platform.machine()}",
        "folder": str(project.ROOT),
        "torch": TORCH,
        "project": hashlib.sha256(needs.encode()).hexdigest(),
        "level": level,
    }


def read_stamp():
    """What `.venv` is stamped with; None where there is no stamp, or none of today's form."""
    try:
        stamp = json.loads((project.VENV / "minilm-stamp.json").read_text(encoding="utf-8"))
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
    if not project.VENV.exists():
        return "there is none"
    if old is None:
        return "the one that is there is half-made"
    if old["folder"] != new["folder"]:
        return "the one that is there was made in another folder"
    if old["python"] != new["python"]:
        return f"the one that is there is for {old['python']}, this is {new['python']}"
    if not starts(project.python()):
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
        project.step("an empty .venv", [base, "-m", "venv", project.VENV], venv_hint())
    else:
        print("Bringing .venv up to date.")
    if reason or old["torch"] != TORCH:  # else the reader's own choice of a build stays
        install_torch(plan)
    pip_install("the course and what it needs", ["-e", f".[{LEVELS[new['level']]}]"])
    # Matplotlib lists the fonts once, and says so on stderr, where no notebook may write.
    code = "import minilm, matplotlib.font_manager"
    project.step("a first start", [project.python(), "-c", code])
    (project.VENV / "minilm-stamp.json").write_text(json.dumps(new, indent=1), encoding="utf-8")


def announce(reason, download, disk, minutes):
    """Say what set-up will cost before it costs anything; stop if it cannot end well."""
    print(
        f"Making .venv ({reason}): about {download} GB to download, {disk} GB on the disk, "
        f"{minutes} minutes on a fast line."
    )
    free = shutil.disk_usage(str(project.ROOT)).free / 1e9
    if free < disk:
        raise CourseError(
            f"only {free:.1f} GB are free where {project.ROOT} is: make room, or move it"
        )


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
    project.step(title, [project.python(), "-m", "pip", "install", "--no-input"] + arguments)


def remove_venv():
    try:
        if project.VENV.exists():
            shutil.rmtree(str(project.VENV))
    except OSError as error:
        raise CourseError(
            f".venv cannot be removed ({error}). Close what uses it (JupyterLab, a shell where it "
            "is activated), then run the same command again."
        ) from None


def venv_hint():
    """Debian and Ubuntu leave venv out of Python."""
    minor = sys.version_info[1]
    return f"Try: sudo apt install python3.{minor}-venv\n" if shutil.which("apt-get") else ""


def doctor():
    """Say what is here and what to do about it. Installs and changes nothing."""
    print(f"Python {platform.python_version()} ({sys.executable}), {platform.platform()}")
    stamp = read_stamp()
    if not project.VENV.exists():
        print(".venv: none yet. `course.py lab` or `course.py setup` makes it.")
        return 0
    reason = why_anew(stamp, wanted_stamp("lab"))
    if reason:
        print(f".venv: has to be made anew: {reason}. `course.py lab` or `setup` does that.")
        return 0
    stale = stamp["project"] != wanted_stamp("lab")["project"]
    print(f".venv: for `{stamp['level']}`" + (", older than pyproject.toml" if stale else ""))
    return project.start([project.python(), "-m", "minilm", "doctor"]).wait()
