"""The tokenizer's benchmark at a size that takes milliseconds."""

import os

import pytest

from minilm import bench_tokenizer
from minilm.bench import write_results
from minilm.bench_tokenizer import corpus_prefix, one_thread, rows
from minilm.tokenizer import Tokenizer


def test_rows_name_peer_goal_and_size(tmp_path):
    found = rows(megabytes=0.05, vocab_size=300, rounds=1)
    train, encode = write_results(tmp_path / "tokenizer.json", "tokenizer", found)["rows"]
    assert (train["pass"], encode["pass"]) == ("train", "encode")
    assert train["shape"] == {"MB": 0.05, "V": 300, "threads": 1}
    assert train["value"] == pytest.approx(0.05 / train["seconds"])
    peer = train["peers"]["tokenizers"]
    assert train["goal"] == pytest.approx(1.5 * peer["value"])
    assert train["met"] == (train["value"] >= train["goal"])
    assert (encode["goal"], encode["met"]) == (None, None)


@pytest.mark.parametrize("wrong", ["train", "encode"])
def test_no_row_without_the_same_result(wrong, monkeypatch):
    """A trainer that reads texts backwards, an encoder that loses the last id."""
    right = Tokenizer.train

    def backwards(texts, vocab_size):
        return right([text[::-1] for text in texts], vocab_size)

    encode = Tokenizer.encode
    if wrong == "train":
        monkeypatch.setattr(bench_tokenizer.Tokenizer, "train", backwards)
    else:
        monkeypatch.setattr(Tokenizer, "encode", lambda self, text: encode(self, text)[:-1])
    with pytest.raises(ValueError, match="must give the (merges|ids) of tokenizers, and did not"):
        rows(megabytes=0.02, vocab_size=300, rounds=1)


def test_corpus_prefix_has_the_size_asked_for():
    texts = corpus_prefix(30_000)
    assert sum(len(text.encode()) for text in texts) in range(29_997, 30_001)
    assert len(texts) > 1


def test_settings_are_put_back(monkeypatch):
    monkeypatch.delenv("RAYON_NUM_THREADS", raising=False)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    with one_thread():
        assert os.environ["RAYON_NUM_THREADS"] == "1"
        assert cores is None or len(os.sched_getaffinity(0)) == 1
    assert "RAYON_NUM_THREADS" not in os.environ
    assert os.environ["TOKENIZERS_PARALLELISM"] == "true"
    assert cores is None or os.sched_getaffinity(0) == cores


def test_other_peers_are_refused():
    with pytest.raises(ValueError, match="'tokenizer' has tokenizers alone, got nanogpt"):
        rows({"nanogpt": "model.py"})
