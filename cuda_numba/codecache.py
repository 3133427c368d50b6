"""Compiled code on disk: one file for each kernel, architecture and set of tool versions.

    SHA-256 of the rest (32 bytes) ‖ one line of JSON ‖ the machine code

The folder is $CUDA_NUMBA_CACHE, else the place for caches that the platform gives each user. A file
is written under another name and then renamed, so that no process reads half of one; a damaged file
counts as missing.
"""

import hashlib
import json
import os
import sys
import tempfile
import warnings
from pathlib import Path

SUFFIX = ".kernel"
_warned = False


def cache_folder() -> Path:
    """Where compiled code is kept. Raises OSError where no folder can be told."""
    if chosen := os.environ.get("CUDA_NUMBA_CACHE"):
        return Path(chosen)
    try:
        home = Path.home()
    except RuntimeError as error:
        raise OSError("there is no home folder: set CUDA_NUMBA_CACHE to a folder") from error
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = home / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or home / ".cache"
    return Path(base) / "cuda_numba"


def key_of(**parts) -> str:
    """A file name for all that decides a piece of code."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def read(key: str) -> tuple[dict, bytes] | None:
    """(description, machine code) kept under `key`; None when there is none, or it is damaged."""
    try:
        data = (cache_folder() / (key + SUFFIX)).read_bytes()
        body = data[32:]
        if hashlib.sha256(body).digest() != data[:32]:
            return None
        head, _, code = body.partition(b"\n")
        return json.loads(head), code
    except (OSError, ValueError):
        return None


def write(key: str, description: dict, code: bytes) -> None:
    """Keep code under `key`. A folder that cannot be written is warned of, once."""
    global _warned
    body = json.dumps(description).encode() + b"\n" + code
    try:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=folder, prefix=key[:8], suffix=".new")
        try:
            with open(handle, "wb") as file:
                file.write(hashlib.sha256(body).digest() + body)
            os.replace(name, folder / (key + SUFFIX))
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        if not _warned:
            _warned = True
            text = f"compiled kernels are not kept ({error}): set CUDA_NUMBA_CACHE to a folder"
            warnings.warn(text, RuntimeWarning, stacklevel=2)
