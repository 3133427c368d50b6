import hashlib
import os
from pathlib import Path, PurePosixPath, PureWindowsPath

import pytest

from minilm.corpus import Corpus, is_held_out


@pytest.fixture
def folder(tmp_path):
    """A corpus of 60 files in nested folders, with things in it that are no part of a corpus."""
    for i in range(60):
        path = tmp_path / f"part{i % 3}" / f"file{i}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"number = {i}  # é\n", encoding="utf-8", newline="\n")
    (tmp_path / "notes.txt").write_text("no Python", encoding="utf-8")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "hook.py").write_text("hidden", encoding="utf-8")
    return tmp_path


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def test_the_split_is_the_rule_of_the_course():
    names = [f"package{i % 7}/module{i}.py" for i in range(4000)]
    for name in names[:200]:
        by_hand = int(hashlib.sha256(name.encode("utf-8")).hexdigest()[:8], 16) % 20 == 0
        assert is_held_out(name) == by_hand
    share = sum(map(is_held_out, names)) / len(names)
    assert 0.04 < share < 0.06
    # written down once, so that a change of the rule cannot go unseen
    names = (
        "ast.py",
        "json/decoder.py",
        "http/client.py",
        "os.py",
        "types.py",
        "xml/dom/minidom.py",
    )
    assert [n for n in names if is_held_out(n)] == ["ast.py", "http/client.py", "types.py"]


def test_the_split_does_not_depend_on_the_platform():
    names = [f"über/module{i}.py" for i in range(200)]
    held_out = [is_held_out(name) for name in names]
    assert any(held_out) and not all(held_out)
    assert [is_held_out(PurePosixPath(name)) for name in names] == held_out
    assert [is_held_out(PureWindowsPath(name.replace("/", "\\"))) for name in names] == held_out


def test_files_are_sorted_relative_and_complete(folder):
    corpus = Corpus(folder)
    assert corpus.files == sorted(f"part{i % 3}/file{i}.py" for i in range(60))
    assert len(corpus) == 60
    assert Corpus(folder, suffixes=".txt").files == ["notes.txt"]
    assert len(Corpus(folder, suffixes=(".py", ".txt")).files) == 61
    assert len(Corpus(folder, exclude=("part1",)).files) == 40


def test_train_and_heldout_are_disjoint_and_whole(folder):
    corpus = Corpus(folder)
    train, heldout = list(corpus.documents("train")), list(corpus.documents("heldout"))
    assert train and heldout
    assert sorted(train + heldout) == sorted(corpus.documents("all"))
    assert all(is_held_out(name) for name, _ in heldout)
    assert not any(is_held_out(name) for name, _ in train)
    assert [text for _, text in train] == list(corpus.texts("train"))
    for split in ("train", "heldout", "all"):
        assert corpus.n_bytes(split) == sum(len(t.encode("utf-8")) for t in corpus.texts(split))
    with pytest.raises(ValueError, match="'test'.*heldout"):
        corpus.texts("test")


def test_line_ends_and_byte_order_marks_are_normalised(tmp_path):
    write(tmp_path / "a.py", b"\xef\xbb\xbfone\r\ntwo\rthree\n\r\nfour\r\r\n")
    assert list(Corpus(tmp_path).texts("all")) == ["one\ntwo\nthree\n\nfour\n\n"]
    windows = Corpus(tmp_path).key()
    write(tmp_path / "a.py", b"one\ntwo\nthree\n\nfour\n\n")
    assert Corpus(tmp_path).key() == windows


def test_files_that_are_not_utf8_are_skipped_and_counted(tmp_path):
    write(tmp_path / "good.py", "é\n".encode())
    write(tmp_path / "latin.py", "é\n".encode("latin-1"))
    corpus = Corpus(tmp_path)
    assert corpus.skipped == ["latin.py"]
    assert list(corpus.texts("all")) == ["é\n"]
    assert corpus.n_bytes("all") == 3


def test_the_key_follows_paths_and_contents_and_not_the_place(tmp_path):
    for place in ("here", "there"):
        write(tmp_path / place / "x" / "a.py", b"1\n")
        write(tmp_path / place / "b.py", b"2\n")
    key = Corpus(tmp_path / "here").key()
    assert Corpus(tmp_path / "there").key() == key
    write(tmp_path / "here" / "b.py", b"3\n")
    assert Corpus(tmp_path / "here").key() != key
    (tmp_path / "there" / "b.py").rename(tmp_path / "there" / "c.py")
    assert Corpus(tmp_path / "there").key() != key


def test_from_paths_keeps_each_folder_a_root_of_its_own(tmp_path):
    write(tmp_path / "one" / "__init__.py", b"1")
    write(tmp_path / "two" / "__init__.py", b"2")
    single = write(tmp_path / "three.txt", b"3")
    corpus = Corpus.from_paths([tmp_path / "two", tmp_path / "one", single])
    assert corpus.files == ["__init__.py", "__init__.py", "three.txt"]
    assert list(corpus.texts("all")) == ["2", "1", "3"]
    assert list(Corpus.from_paths(str(single)).texts("all")) == ["3"]


def test_from_paths_takes_a_file_once(folder):
    # else a file could be trained on as part1/file1.py and held out as file1.py
    both = Corpus.from_paths([folder, folder / "part1", folder / "part2" / "file2.py"])
    assert both.files == Corpus(folder).files


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_a_link_that_leads_nowhere_is_no_file(tmp_path):
    write(tmp_path / "a.py", b"1")
    (tmp_path / "b.py").symlink_to(tmp_path / "gone.py")
    assert Corpus(tmp_path).files == ["a.py"]


def test_bad_roots_are_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Corpus(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Corpus.from_paths([tmp_path / "nowhere"])
    with pytest.raises(NotADirectoryError, match="from_paths"):
        Corpus(write(tmp_path / "a.py", b"1"))
    with pytest.raises(ValueError, match=r"\.rs or \.go"):
        Corpus(tmp_path, suffixes=(".rs", ".go"))
    with pytest.raises(ValueError, match="paths is empty"):
        Corpus.from_paths([])


def test_the_standard_library_without_its_tests():
    corpus = Corpus.standard_library()
    assert {"os.py", "json/decoder.py", "asyncio/tasks.py"} <= set(corpus.files)
    left_out = {"site-packages", "test", "tests", "idle_test"}
    assert not any(left_out & set(name.split("/")[:-1]) for name in corpus.files)
    assert 500 < len(corpus.files) < 1000
    assert 8e6 < corpus.n_bytes("all") < 16e6
    assert 0.03 < corpus.n_bytes("heldout") / corpus.n_bytes("all") < 0.09
    assert not any("\r" in text for text in corpus.texts("heldout"))


def test_the_standard_library_with_its_tests():
    files = Corpus.standard_library(with_tests=True).files
    without = Corpus.standard_library().files
    assert set(without) <= set(files)
    assert not any("site-packages" in name.split("/") for name in files)
    if any(name.startswith("test/test_") for name in files):  # some installations leave tests out
        assert len(files) > 1.5 * len(without)
