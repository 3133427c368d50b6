import errno
import multiprocessing
import os
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from minilm.corpus import Corpus
from minilm.data import PADDING, TokenStream
from minilm.tokenfile import HEADER, cache_folder, open_token_file
from minilm.tokenizer import Tokenizer


class ByteTokenizer:
    """The smallest tokenizer with the interface that a stream needs: one id per byte."""

    def __init__(self, eot_id: int | None = 256, vocab_size: int = 300, shift: int = 0):
        self.eot_id, self.vocab_size, self.shift = eot_id, vocab_size, shift
        self.calls = 0

    def encode_array(self, texts):
        self.calls += 1
        pieces = [np.frombuffer(text.encode("utf-8"), np.uint8) for text in texts]
        offsets = np.cumsum([0, *map(len, pieces)], dtype=np.int64)
        return np.concatenate(pieces).astype(np.int32) + self.shift, offsets

    def sha256(self):
        return f"{self.eot_id}-{self.vocab_size}-{self.shift}"


def numbered(n: int) -> TokenStream:
    """A stream in which each id is its own position."""
    return TokenStream(np.arange(n), vocab_size=max(n, 1))


@pytest.fixture
def corpus(tmp_path):
    for i in range(60):
        path = tmp_path / "source" / f"file{i}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"number = {i}  # é\n" * (i + 1), encoding="utf-8", newline="\n")
    return Corpus(tmp_path / "source")


# ---- streams


def test_every_document_stands_behind_its_own_eot():
    tok = ByteTokenizer()
    stream = TokenStream.from_texts(["ab", "", "é"], tok)
    assert stream.ids.tolist() == [256, 97, 98, 256, 256, 0xC3, 0xA9]
    assert stream.n_bytes == 4
    assert len(stream) == 7
    assert TokenStream.from_texts(["ab", "c"], tok, add_eot=False).ids.tolist() == [97, 98, 99]
    without = TokenStream.from_texts(["ab", "c"], ByteTokenizer(eot_id=None))
    assert without.ids.tolist() == [97, 98, 99]


def test_texts_are_encoded_a_few_at_a_time(monkeypatch):
    monkeypatch.setattr("minilm.data.CHUNK", 10)
    tok, texts = ByteTokenizer(), ["abc" * i for i in range(12)]
    stream = TokenStream.from_texts(iter(texts), tok)
    assert tok.calls > 5
    assert bytes(i for i in stream.ids.tolist() if i < 256).decode() == "".join(texts)
    assert (stream.ids == 256).sum() == 12


@pytest.mark.parametrize(
    ("vocab_size", "dtype"), [(300, "uint16"), (65536, "uint16"), (65537, "uint32")]
)
def test_ids_take_the_smallest_dtype(vocab_size, dtype):
    assert TokenStream([0, 1, 2], vocab_size=vocab_size).ids.dtype == dtype
    assert TokenStream([0, 1, vocab_size - 1]).ids.dtype == dtype
    assert TokenStream.from_texts(["ab"], ByteTokenizer(vocab_size=vocab_size)).ids.dtype == dtype


def test_bad_ids_are_said():
    with pytest.raises(ValueError, match="0 to 9, got 10"):
        TokenStream([1, 10], vocab_size=10)
    with pytest.raises(ValueError, match="got -1"):
        TokenStream(torch.tensor([1, -1]))
    with pytest.raises(ValueError, match=r"shape \(2, 2\)"):
        TokenStream(np.zeros((2, 2), int))
    with pytest.raises(ValueError, match=r"shape \(0,\)"):
        TokenStream([])
    with pytest.raises(TypeError, match="float64"):
        TokenStream([0.5])
    with pytest.raises(TypeError, match="iterable of str"):
        TokenStream.from_texts("abc", ByteTokenizer())
    with pytest.raises(ValueError, match="at least one text"):
        TokenStream.from_texts([], ByteTokenizer())


def test_the_real_tokenizer_gives_back_the_texts(corpus, tmp_path):
    tok = Tokenizer.train(corpus.texts("train"), 300, special_tokens=("<|endoftext|>",))
    stream = TokenStream.from_corpus(corpus, tok, "heldout", tmp_path / "cache")
    documents = np.split(stream.ids, np.flatnonzero(stream.ids == tok.eot_id))[1:]
    assert [tok.decode(d[1:].tolist()) for d in documents] == list(corpus.texts("heldout"))
    assert stream.n_bytes == corpus.n_bytes("heldout") > len(stream)
    # a special token spelled out in a text is text, and lone surrogates are three bytes
    odd = ["a<|endoftext|>b", "\ud800", b"\xff"]
    stream = TokenStream.from_texts(odd, tok)
    assert (stream.ids == tok.eot_id).sum() == 3
    assert stream.n_bytes == 15 + 3 + 1
    assert tok.decode_bytes(stream.ids[1:16].tolist()).startswith(b"a<|endoftext|>b")


# ---- batches


def is_one_stream_shifted_by_one(inputs, targets, stream) -> bool:
    """Each target is the id that follows its input in the stream, which here counts 0, 1, 2, …"""
    return bool((targets == inputs + 1).all() and (inputs.diff(dim=1) == 1).all())


def test_rows_are_one_stream_shifted_by_one():
    stream, g = numbered(1000), torch.Generator().manual_seed(0)
    ids = stream.random_batch(5, 7, g)["ids"]
    assert ids.shape == (5, 8) and ids.dtype == torch.int64
    assert is_one_stream_shifted_by_one(ids[:, :-1], ids[:, 1:], stream)
    ids = stream.batch_at(3, 5, 7)["ids"]
    assert ids.shape == (5, 8) and ids.dtype == torch.int64
    assert is_one_stream_shifted_by_one(ids[:, :-1], ids[:, 1:], stream)


def test_random_batches_follow_the_generator_and_reach_both_ends():
    stream = numbered(12)
    first = stream.random_batch(64, 4, torch.Generator().manual_seed(1))["ids"]
    again = stream.random_batch(64, 4, torch.Generator().manual_seed(1))["ids"]
    other = stream.random_batch(64, 4, torch.Generator().manual_seed(2))["ids"]
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.min() == 0 and first.max() == 11
    assert set(first[:, 0].tolist()) == set(range(8))


def test_batch_at_depends_on_its_arguments_alone():
    batch = numbered(5000).batch_at(37, 8, 16, seed=5)["ids"]
    other = numbered(5000)
    for step in (50, 3, 36):  # neither on the calls before, nor on NumPy's and torch's seeds
        other.batch_at(step, 8, 16, seed=5)
        np.random.seed(step)
        torch.manual_seed(step)
    assert torch.equal(other.batch_at(37, 8, 16, seed=5)["ids"], batch)
    assert not torch.equal(other.batch_at(38, 8, 16, seed=5)["ids"], batch)
    assert not torch.equal(other.batch_at(37, 8, 16, seed=6)["ids"], batch)


def test_batch_at_is_the_same_batch_in_every_version():
    # written down once: a resumed run must see what the stopped one would have seen
    starts = numbered(1000).batch_at(0, 8, 10, seed=0)["ids"][:, 0].tolist()
    assert starts == [669, 9, 549, 439, 699, 389, 219, 919]


def test_an_epoch_draws_every_target_once():
    T, batch_size = 9, 4
    stream = numbered(1003)
    n = stream.windows_per_epoch(T)
    for epoch in range(3):
        drawn = []
        for row in range(epoch * n, (epoch + 1) * n):
            step, place = divmod(row, batch_size)
            drawn += stream.batch_at(step, batch_size, T)["ids"][place, 1:].tolist()
        assert len(drawn) == len(set(drawn)) > len(stream) - 1 - 2 * T
        assert drawn != sorted(drawn)
    starts = [stream.batch_at(0, n, T, seed)["ids"][:, 0].min().item() for seed in range(200)]
    assert len({start % T for start in starts}) == T  # the offset takes every value


@pytest.mark.parametrize("step", [0, 5, 11, 12, 100])
def test_ranks_share_out_the_batch_of_one_process(step):
    stream = numbered(1000)  # an epoch is 98 windows of 10, so batches straddle epochs
    whole = stream.batch_at(step, 12, 10, seed=3)["ids"]
    for world_size in (1, 2, 3, 12):
        parts = [stream.batch_at(step, 12, 10, 3, r, world_size)["ids"] for r in range(world_size)]
        assert {len(part) for part in parts} == {12 // world_size}
        assert torch.equal(torch.cat(parts), whole)


def test_bad_batch_arguments_are_said():
    stream = numbered(20)
    with pytest.raises(ValueError, match="T: must be below the stream's length, 20 ids, got 20"):
        stream.random_batch(1, 20)
    with pytest.raises(ValueError, match="20 ids, got 25"):
        stream.batch_at(0, 1, 25)
    with pytest.raises(ValueError, match="batch_size: must be at least 1, got 0"):
        stream.random_batch(0, 5)
    with pytest.raises(ValueError, match="multiple of world_size=3, got 4"):
        stream.batch_at(0, 4, 5, world_size=3)
    with pytest.raises(ValueError, match="rank.*= 1, got 2"):
        stream.batch_at(0, 4, 5, rank=2, world_size=2)
    with pytest.raises(ValueError, match="step.*got -1"):
        stream.batch_at(-1, 4, 5)
    with pytest.raises(ValueError, match="seed.*got -1"):
        stream.batch_at(0, 4, 5, seed=-1)
    with pytest.raises(ValueError, match="T: must be at least 1, got 0"):
        next(stream.sequential_batches(4, 0))
    with pytest.raises(ValueError, match="at least two"):
        next(numbered(1).sequential_batches(4, 5))
    assert stream.random_batch(1, 19)["ids"].tolist() == [list(range(20))]
    assert stream.batch_at(0, 2, 19)["ids"].tolist() == [list(range(20))] * 2


@pytest.mark.parametrize("n", [2, 3, 8, 9, 10, 17, 24, 25, 26, 40])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_sequential_batches_make_every_id_but_the_first_a_target_once(n, batch_size):
    T = 8
    targets = []
    for batch in numbered(n).sequential_batches(batch_size, T):
        ids = batch["ids"]
        assert ids.shape[1] == T + 1 and 1 <= len(ids) <= batch_size
        mask = batch.get("mask", torch.ones_like(ids, dtype=torch.bool))
        targets += ids[:, 1:][mask[:, 1:]].tolist()
        real = batch.get("segments", torch.zeros_like(ids)) != PADDING
        steps = ids.diff(dim=1)[real[:, 1:]]
        assert (steps == 1).all()
        assert torch.equal(mask[:, 1:], real[:, 1:])
    assert targets == list(range(1, n))


def test_only_the_last_sequential_batch_is_padded():
    batches = list(numbered(30).sequential_batches(2, 8))
    assert [len(batch["ids"]) for batch in batches] == [2, 2]
    assert set(batches[0]) == {"ids"} and set(batches[1]) == {"ids", "mask", "segments"}
    assert batches[1]["ids"][0].tolist() == list(range(16, 25))
    assert batches[1]["ids"][1, :6].tolist() == list(range(24, 30))
    assert batches[1]["mask"].long().tolist() == [[0] + 8 * [1], [0] + 5 * [1] + 3 * [0]]
    assert batches[1]["segments"].tolist() == [9 * [0], 6 * [0] + 3 * [-1]]


# ---- token files


def test_a_corpus_is_tokenised_once_and_mapped(corpus, tmp_path):
    tok, cache = ByteTokenizer(), tmp_path / "cache"
    made = TokenStream.from_corpus(corpus, tok, "train", cache)
    calls = tok.calls
    assert calls > 0
    found = TokenStream.from_corpus(corpus, tok, "train", cache)
    assert tok.calls == calls
    expected = TokenStream.from_texts(corpus.texts("train"), tok)
    for stream in (made, found):
        assert isinstance(stream.ids.base, np.memmap) and not stream.ids.flags.writeable
        assert np.array_equal(stream.ids, expected.ids) and stream.ids.dtype == np.uint16
        assert stream.n_bytes == expected.n_bytes == corpus.n_bytes("train")
        assert stream.vocab_size == 300
    heldout = TokenStream.from_corpus(corpus, tok, "heldout", cache)
    assert heldout.n_bytes == corpus.n_bytes("heldout")
    assert len(list(cache.iterdir())) == 2  # and no temporary file


def test_large_vocabularies_are_stored_in_four_bytes(corpus, tmp_path):
    stream = TokenStream.from_corpus(corpus, ByteTokenizer(None, 70000, 69000), "all", tmp_path)
    assert stream.ids.dtype == np.uint32 and stream.ids.min() >= 69000


def test_two_tokenizers_and_two_corpora_do_not_collide(corpus, tmp_path):
    tok, cache = ByteTokenizer(), tmp_path / "cache"
    first = TokenStream.from_corpus(corpus, tok, "all", cache)
    shifted = TokenStream.from_corpus(corpus, ByteTokenizer(shift=1), "all", cache)
    ordinary = first.ids != 256
    assert np.array_equal(shifted.ids[ordinary], first.ids[ordinary] + 1)
    (corpus.roots[0] / "file3.py").write_text("changed", encoding="utf-8")
    changed = TokenStream.from_corpus(corpus, tok, "all", cache)
    assert len(changed) != len(first)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-2],
        lambda data: data[:HEADER],
        lambda data: data[: HEADER // 2],
        lambda data: b"",
        lambda data: data + b"\0\0",
        lambda data: data[:-1] + bytes([data[-1] ^ 1]),
        lambda data: bytes(HEADER) + data[HEADER:],
        lambda data: b"x" + data[1:],
        lambda data: data.replace(b'"n_bytes"', b'"n_bites"'),
        lambda data: data.replace(b'"uint16"', b'"uint64"'),
        lambda data: b"MINILM01[]" + data[10:],
    ],
    ids="cut empty half nothing longer bit zeros magic field dtype list".split(),
)
def test_a_damaged_token_file_is_made_again(corpus, tmp_path, damage):
    tok, cache = ByteTokenizer(), tmp_path / "cache"
    expected = TokenStream.from_corpus(corpus, tok, "train", cache).ids.tolist()
    (path,) = cache.iterdir()
    whole, calls = path.read_bytes(), tok.calls
    assert damage(whole) != whole
    path.write_bytes(damage(whole))
    assert TokenStream.from_corpus(corpus, tok, "train", cache).ids.tolist() == expected
    assert tok.calls > calls and path.read_bytes() == whole


def test_a_foreign_file_under_the_same_name_is_not_read(corpus, tmp_path):
    tok, cache = ByteTokenizer(), tmp_path / "cache"
    train = TokenStream.from_corpus(corpus, tok, "train", cache).ids.tolist()
    (path,) = cache.iterdir()
    TokenStream.from_corpus(corpus, tok, "heldout", cache)
    (other,) = set(cache.iterdir()) - {path}
    path.write_bytes(other.read_bytes())
    assert TokenStream.from_corpus(corpus, tok, "train", cache).ids.tolist() == train


def test_the_cache_folder_is_found(monkeypatch, tmp_path):
    monkeypatch.setenv("MINILM_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"
    monkeypatch.delenv("MINILM_CACHE")
    for platform, variables in [
        ("linux", {"XDG_CACHE_HOME": "x"}),
        ("darwin", {}),
        ("win32", {"LOCALAPPDATA": "x"}),
    ]:
        monkeypatch.setattr(sys, "platform", platform)
        for name, value in variables.items():
            monkeypatch.setenv(name, str(tmp_path / value))
        folder = cache_folder()
        assert folder.name == "minilm" and folder.is_absolute()
        assert not variables or folder.parent == tmp_path / "x"
        for name in variables:
            monkeypatch.delenv(name)
        assert str(Path.home()) in str(cache_folder())


def test_the_environment_variable_is_used(corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("MINILM_CACHE", str(tmp_path / "deep" / "mine"))
    TokenStream.from_corpus(corpus, ByteTokenizer(), "all")
    assert len(list((tmp_path / "deep" / "mine").iterdir())) == 1


def test_a_cache_folder_that_cannot_be_written_is_named(corpus, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder", encoding="utf-8")
    for folder in (blocked, blocked / "below"):
        with pytest.raises(OSError, match="MINILM_CACHE") as error:
            TokenStream.from_corpus(corpus, ByteTokenizer(), "all", folder)
        assert str(folder) in str(error.value) and "\n" not in str(error.value)


def no_space(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["os.fsync", "os.replace"])
def test_a_full_disk_leaves_the_old_file_and_no_temporary_one(corpus, tmp_path, monkeypatch, call):
    cache = tmp_path / "cache"
    TokenStream.from_corpus(corpus, ByteTokenizer(), "train", cache)
    (path,) = cache.iterdir()
    path.write_bytes(path.read_bytes()[:-1])  # so that it is made again
    old = path.read_bytes()
    monkeypatch.setattr(call, no_space)
    with pytest.raises(OSError, match="MINILM_CACHE.*") as error:
        TokenStream.from_corpus(corpus, ByteTokenizer(), "train", cache)
    assert os.strerror(errno.ENOSPC) in str(error.value) and str(cache) in str(error.value)
    assert list(cache.iterdir()) == [path] and path.read_bytes() == old


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on file sizes to set")
def test_a_disk_that_fills_while_ids_are_written(corpus, tmp_path):
    import resource
    import signal

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (HEADER + 1001, before[1]))
        with pytest.raises(OSError, match="MINILM_CACHE"):
            TokenStream.from_corpus(corpus, ByteTokenizer(), "train", tmp_path / "cache")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert list((tmp_path / "cache").iterdir()) == []


class BrokenTokenizer(ByteTokenizer):
    def __init__(self, then):
        super().__init__()
        self.then = then

    def encode_array(self, texts):
        self.then()
        return super().encode_array(texts)


def test_an_error_while_tokenising_is_passed_on_and_leaves_nothing(corpus, tmp_path, monkeypatch):
    def interrupt():
        raise KeyboardInterrupt

    def remove():
        (corpus.roots[0] / "file9.py").unlink(missing_ok=True)

    with pytest.raises(KeyboardInterrupt):
        TokenStream.from_corpus(corpus, BrokenTokenizer(interrupt), "all", tmp_path / "cache")
    monkeypatch.setattr("minilm.data.CHUNK", 1)
    # a source that is gone when its turn comes is not the cache folder's fault
    with pytest.raises(FileNotFoundError, match="file9.py"):
        TokenStream.from_corpus(corpus, BrokenTokenizer(remove), "all", tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_corpus_that_changes_while_it_is_read_leaves_no_file(corpus, tmp_path):
    def edit():
        (corpus.roots[0] / "file1.py").write_text("edited", encoding="utf-8")

    with pytest.raises(OSError, match="changed while it was read"):
        TokenStream.from_corpus(corpus, BrokenTokenizer(edit), "all", tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_split_without_text_is_an_error(tmp_path):
    (tmp_path / "os.py").write_text("import sys\n", encoding="utf-8")
    single, cache = Corpus(tmp_path), tmp_path / "cache"
    with pytest.raises(ValueError, match="'heldout' of Corpus.*no text"):
        TokenStream.from_corpus(single, ByteTokenizer(), "heldout", cache)
    with pytest.raises(ValueError, match="split is 'valid'"):
        TokenStream.from_corpus(single, ByteTokenizer(), "valid", cache)
    assert len(TokenStream.from_corpus(single, ByteTokenizer(), "train", cache)) == 12
    assert len(list(cache.iterdir())) == 1


def make_token_file(root, cache, barrier, results):
    barrier.wait()
    stream = TokenStream.from_corpus(Corpus(root), ByteTokenizer(), "all", cache)
    results.append((len(stream), int(stream.ids.sum())))


def test_threads_that_race_for_one_file_all_get_it(corpus, tmp_path):
    results, barrier = [], threading.Barrier(8)
    arguments = (corpus.roots[0], tmp_path / "cache", barrier, results)
    threads = [threading.Thread(target=make_token_file, args=arguments) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8 and len(set(results)) == 1
    assert len(list((tmp_path / "cache").iterdir())) == 1


@pytest.mark.slow
def test_processes_that_race_for_one_file_all_get_it(corpus, tmp_path):
    spawn = multiprocessing.get_context("spawn")
    with spawn.Manager() as manager:
        results, barrier = manager.list(), manager.Barrier(2)
        arguments = (corpus.roots[0], tmp_path / "cache", barrier, results)
        processes = [spawn.Process(target=make_token_file, args=arguments) for _ in range(2)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        assert [process.exitcode for process in processes] == [0, 0]
        assert len(results) == 2 and len(set(results)) == 1
    (path,) = (tmp_path / "cache").iterdir()
    assert path.suffix == ".tokens"


def test_a_file_that_another_process_holds_is_used(corpus, tmp_path, monkeypatch):
    # On Windows a mapped file cannot be replaced: the one who comes second takes what is there.
    cache, replace = tmp_path / "cache", os.replace

    def held(temporary, path):
        replace(temporary, path)
        raise PermissionError(errno.EACCES, "held by another process", str(path))

    monkeypatch.setattr("os.replace", held)
    stream = TokenStream.from_corpus(corpus, ByteTokenizer(), "all", cache)
    assert np.array_equal(
        stream.ids, TokenStream.from_texts(corpus.texts("all"), ByteTokenizer()).ids
    )

    def refused(temporary, path):
        raise PermissionError(errno.EACCES, "refused", str(path))

    monkeypatch.setattr("os.replace", refused)
    with pytest.raises(OSError, match="refused.*MINILM_CACHE"):
        TokenStream.from_corpus(corpus, ByteTokenizer(), "train", cache)
    assert len(list(cache.iterdir())) == 1


def test_a_token_file_is_opened_only_under_its_key(corpus, tmp_path):
    TokenStream.from_corpus(corpus, ByteTokenizer(), "all", tmp_path / "cache")
    (path,) = (tmp_path / "cache").iterdir()
    assert open_token_file(path, "another key") is None
    assert open_token_file(tmp_path / "missing.tokens", "any") is None
