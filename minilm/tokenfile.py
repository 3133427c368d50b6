"""Token files: the ids of a tokenised corpus on disk, mapped into memory instead of read.

    byte 0     8 bytes   b"MINILM01"
    byte 8     JSON, padded with spaces: key, dtype, length, n_bytes, sha256 of the ids
    byte 4096  the ids, little-endian uint16 or uint32

A file is used only when its header carries the wanted key and the ids have the recorded length and
sha256. It is written under a temporary name and renamed when it is whole, so a process that stops
half-way, a full disk or two processes at once can never leave a file that is read and wrong.
"""

import contextlib
import hashlib
import io
import json
import os
import secrets
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

MAGIC = b"MINILM01"
HEADER = 4096  # bytes: one page, so that the mapped ids start on a page
DTYPES = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}


def id_dtype(vocab_size: int) -> np.dtype:
    """The smallest dtype that holds ids below `vocab_size`: uint16 up to 65,536, else uint32."""
    return DTYPES["uint16" if vocab_size <= 2**16 else "uint32"]


def cache_folder() -> Path:
    """$MINILM_CACHE if it is set, else the folder for caches that the platform gives each user."""
    if chosen := os.environ.get("MINILM_CACHE"):
        return Path(chosen)
    try:
        home = Path.home()
    except RuntimeError as error:
        raise OSError("there is no home folder for the cache: set MINILM_CACHE to one") from error
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = home / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or home / ".cache"
    return Path(base) / "minilm"


def open_token_file(path: Path, key: str) -> tuple[np.ndarray, int] | None:
    """(ids, n_bytes) of a whole file with this key; None when it is missing, foreign or damaged."""
    try:
        with open(path, "rb") as file:
            head = file.read(HEADER)
            meta = json.loads(head[len(MAGIC) :])
            dtype = DTYPES[meta["dtype"]]
            whole = head.startswith(MAGIC) and meta["key"] == key
            if not whole or hashlib.file_digest(file, "sha256").hexdigest() != meta["sha256"]:
                return None
        # mapped only now: Windows cannot replace a file while it is mapped
        ids = np.memmap(path, dtype, mode="r", offset=HEADER, shape=(meta["length"],))
        return ids, meta["n_bytes"]
    except (OSError, ValueError, KeyError, TypeError):  # ValueError: no JSON, or not UTF-8
        return None


def write_token_file(
    path: Path, key: str, dtype: np.dtype, chunks: Iterable[tuple[np.ndarray, int]]
) -> None:
    """Write `chunks` of (ids, bytes of text) as one token file, whole or not at all.

    Raises OSError, naming the folder and MINILM_CACHE, when it cannot be written there.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    digest, length, n_bytes = hashlib.sha256(), 0, 0
    try:
        with _writing(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = open(temporary, "xb", buffering=0)  # unbuffered: closing cannot fail for space
        with file:
            with _writing(path.parent):
                _write(file, bytes(HEADER))
            for ids, text_bytes in chunks:  # an error in here is the corpus's, not the folder's
                data = ids.astype(dtype).tobytes()
                digest.update(data)
                length, n_bytes = length + len(ids), n_bytes + text_bytes
                with _writing(path.parent):
                    _write(file, data)
            meta = {"key": key, "dtype": f"uint{8 * dtype.itemsize}", "length": length}
            meta |= {"n_bytes": n_bytes, "sha256": digest.hexdigest()}
            with _writing(path.parent):
                file.seek(0)
                _write(file, MAGIC + json.dumps(meta).encode("ascii").ljust(HEADER - len(MAGIC)))
                os.fsync(file.fileno())  # else a power cut could keep the name, not the contents
        with _writing(path.parent):
            _replace(temporary, path, key)
    finally:
        with contextlib.suppress(OSError):  # an unusable folder has been reported already
            temporary.unlink(missing_ok=True)


def _write(file: io.RawIOBase, data: bytes) -> None:
    view = memoryview(data)
    while view:  # one write may take only a part
        view = view[file.write(view) :]


def _replace(temporary: Path, path: Path, key: str) -> None:
    try:
        os.replace(temporary, path)
    except PermissionError:
        # Windows: another process has made the same file in the meantime and holds it mapped
        if open_token_file(path, key) is None:
            raise


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(
            f"the token file cannot be written in {folder} ({error.strerror or error}): "
            "make room there or set the environment variable MINILM_CACHE to another folder"
        ) from error
