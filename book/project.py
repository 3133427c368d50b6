"""Facts of the project that the book shows, each read from the one file that states it."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def pyproject(root: Path = ROOT) -> dict:
    """pyproject.toml as a dict."""
    return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))


def repository(root: Path = ROOT) -> str:
    """The repository's URL, without a slash at the end. ValueError where the setting is missing."""
    urls = pyproject(root).get("project", {}).get("urls", {})
    if "Repository" not in urls:
        raise ValueError("pyproject.toml: [project.urls] must name the Repository, it does not")
    return urls["Repository"].rstrip("/")


def source_link(path: str, root: Path = ROOT) -> str:
    """Where `path` (with forward slashes, relative to the root) is read on the web."""
    return f"{repository(root)}/blob/main/{path}"


def raw_link(path: str, root: Path = ROOT) -> str:
    """Where the file itself is, without a page around it."""
    return f"{repository(root)}/raw/main/{path}"


def dependencies(root: Path = ROOT) -> set[str]:
    """The import names of what the package needs at run time (numba-cuda → numba_cuda)."""
    names = (
        re.match(r"[A-Za-z0-9_.-]+", need)[0] for need in pyproject(root)["project"]["dependencies"]
    )
    return {name.replace("-", "_").lower() for name in names}
