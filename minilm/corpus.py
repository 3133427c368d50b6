"""Corpora: folders of text files, each file one document, split by file into train and held-out.

The default is real and always at hand: the source of the running interpreter's standard library.
The split is a hash of the file's path, so it is the same on every machine, and adding or removing
one file moves no other file from one side to the other.
"""

import hashlib
import os
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath

HELD_OUT_ONE_IN = 20  # 5 % of the files
SPLITS = ("train", "heldout", "all")
# Tests and installed packages are left out of the standard library's root: tests are full of
# data tables and repeat one another, packages differ from one machine to the next.
NOT_LIBRARY = ("site-packages", "test", "tests", "idle_test")


def is_held_out(path: str | PurePath) -> bool:
    """True when the file belongs to the held-out split.

    `path` is relative to the corpus root: a string with forward slashes, or any `PurePath`
    (a `PureWindowsPath` gives the same answer as the same path on Linux).
    """
    posix = path.as_posix() if isinstance(path, PurePath) else path
    # surrogatepass: file names that are not valid Unicode must hash too
    digest = hashlib.sha256(posix.encode("utf-8", "surrogatepass")).hexdigest()
    return int(digest[:8], 16) % HELD_OUT_ONE_IN == 0


class Corpus:
    """The text files under one folder.

    root      the folder. Folders whose name starts with a dot are never entered.
    suffixes  the endings a file name may have.
    exclude   names of folders to leave out, at any depth.

    Text is read as UTF-8 with line ends normalised to `\\n` and without a byte-order mark. Files
    that are not UTF-8 are listed in `skipped` and are in no split. Nothing is kept in memory: every
    method that needs the contents reads the files again.

    Raises FileNotFoundError or NotADirectoryError for a bad root, ValueError when no file matches.
    """

    def __init__(
        self,
        root: str | os.PathLike,
        *,
        suffixes: str | Iterable[str] = (".py",),
        exclude: Iterable[str] = (),
    ):
        root = Path(root)
        if not root.exists():
            raise FileNotFoundError(f"the corpus folder {root} does not exist")
        if not root.is_dir():
            raise NotADirectoryError(
                f"the corpus folder {root} is a file: Corpus.from_paths takes files as well"
            )
        suffixes = _as_tuple(suffixes)
        self.roots = [root]
        self._files = [(root, name) for name in _walk(root, suffixes, set(_as_tuple(exclude)))]
        if not self._files:
            raise ValueError(f"no file under {root} ends in {' or '.join(suffixes)}")

    @classmethod
    def standard_library(cls, with_tests: bool = False) -> "Corpus":
        """The running interpreter's own library: about 700 files and 11 MB of Python.

        `with_tests=True` keeps its tests: about 1,800 files and 31 MB, for tokenizer benchmarks.
        """
        root = Path(sysconfig.get_paths()["stdlib"])
        return cls(root, exclude=NOT_LIBRARY[:1] if with_tests else NOT_LIBRARY)

    @classmethod
    def from_paths(
        cls,
        paths: Iterable[str | os.PathLike],
        *,
        suffixes: str | Iterable[str] = (".py",),
        exclude: Iterable[str] = (),
    ) -> "Corpus":
        """Files and folders together.

        Each folder is a corpus root of its own; a file is taken whatever its ending, under its bare
        name. A file that two paths reach is taken once, for the first: it must not be trained on
        under one name and held out under another.
        """
        if isinstance(paths, str | os.PathLike):
            paths = [paths]
        corpus = cls.__new__(cls)
        corpus.roots, corpus._files = [], []
        seen = set()
        for path in map(Path, paths):
            if path.is_file():
                root, found = path.parent, [(path.parent, path.name)]
            else:
                root, found = path, cls(path, suffixes=suffixes, exclude=exclude)._files
            corpus.roots.append(root)
            for folder, name in found:
                real = os.path.realpath(folder / name)
                if real not in seen:
                    seen.add(real)
                    corpus._files.append((folder, name))
        if not corpus._files:
            raise ValueError("paths is empty: give at least one file or folder")
        return corpus

    @property
    def files(self) -> list[str]:
        """Paths with forward slashes, relative to their root, sorted within each root."""
        return [name for _, name in self._files]

    @property
    def skipped(self) -> list[str]:
        """The files that are left out because they are not UTF-8."""
        return [name for root, name in self._files if _read(root / name) is None]

    def documents(self, split: str = "all") -> Iterator[tuple[str, str]]:
        """(relative path, text) of each file of `split`: "train", "heldout" or "all"."""
        return ((name, data.decode("utf-8")) for name, data in self._contents(split))

    def texts(self, split: str = "all") -> Iterator[str]:
        """The text of each file of `split`, in the order of `files`."""
        return (data.decode("utf-8") for _, data in self._contents(split))

    def n_bytes(self, split: str = "all") -> int:
        """UTF-8 bytes of all texts of `split`."""
        return sum(len(data) for _, data in self._contents(split))

    def key(self) -> str:
        """A sha256 that changes when a file's path or text does, and not with the machine."""
        digest = hashlib.sha256()
        for name, data in self._contents("all"):
            digest.update(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest())
            digest.update(hashlib.sha256(data).digest())
        return digest.hexdigest()

    def _contents(self, split: str) -> Iterator[tuple[str, bytes]]:
        if split not in SPLITS:
            raise ValueError(f'split is {split!r}: it may be "train", "heldout" or "all"')
        chosen = (
            (root, name)
            for root, name in self._files
            if split == "all" or is_held_out(name) == (split == "heldout")
        )
        contents = ((name, _read(root / name)) for root, name in chosen)
        return ((name, data) for name, data in contents if data is not None)

    def __len__(self) -> int:
        return len(self._files)

    def __repr__(self) -> str:
        return f"Corpus({len(self)} files under {', '.join(map(str, self.roots))})"


def _as_tuple(names: str | Iterable[str]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


def _walk(root: Path, suffixes: tuple[str, ...], exclude: set[str]) -> list[str]:
    """Relative paths with forward slashes, sorted by code point: the same order everywhere."""
    found = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [s for s in subfolders if s not in exclude and not s.startswith(".")]
        prefix = Path(folder).relative_to(root).parts
        for name in names:
            # isfile: a link that leads nowhere is not a file
            if name.endswith(suffixes) and os.path.isfile(os.path.join(folder, name)):
                found.append("/".join((*prefix, name)))
    return sorted(found)


def _read(path: Path) -> bytes | None:
    """The file's text as UTF-8 bytes with `\\n` line ends, or None when it is not UTF-8."""
    data = path.read_bytes().removeprefix(b"\xef\xbb\xbf")  # byte-order mark
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return None
    return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
