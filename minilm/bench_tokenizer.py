"""Speed of the tokenizer beside Hugging Face `tokenizers`: one thread each, in turns, same result.

The corpus is the beginning of the standard library with its tests, each file one document. A row is
only written when merges (training) or ids (encoding) are equal.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from .bench import interleaved, row
from .corpus import Corpus
from .patterns import GPT2, pattern_named
from .tokenizer import END_OF_TEXT, Tokenizer

MEGABYTES = 10
VOCAB_SIZE = 8192
GOAL = 1.5  # times the speed of Hugging Face `tokenizers`, in training
PEER = "tokenizers"
STEPS = ("compiled.py", "splitter.py", "words.py", "patterns.py", "unicode_classes.py")
SOURCES = {  # pass → the files that are measured
    "train": ("tokenizer.py", "coder.py", "counter.py", "merger.py", *STEPS),
    "encode": ("tokenizer.py", "coder.py", "encoder.py", *STEPS),
}


def rows(
    peers: dict[str, Path] | None = None,
    *,
    megabytes: float = MEGABYTES,
    vocab_size: int = VOCAB_SIZE,
    rounds: int = 5,
) -> list[dict]:
    """Two rows, in MB/s: training, and encoding the same files to lists of ids.

    Raises ValueError when merges or ids differ, ImportError without `tokenizers`.
    """
    if peers:
        raise ValueError(f"--peer: 'tokenizer' has {PEER} alone, got {', '.join(peers)}")
    texts = corpus_prefix(int(megabytes * 1e6))
    size = sum(len(text.encode("utf-8")) for text in texts) / 1e6
    with one_thread():
        return [_train_row(texts, size, vocab_size, rounds), _encode_row(texts, size, vocab_size)]


def _train_row(texts: list[str], size: float, vocab_size: int, rounds: int) -> dict:
    found = {}

    def ours() -> None:
        found["minilm"] = Tokenizer.train(texts, vocab_size)

    def theirs() -> None:
        found[PEER] = train_hugging_face(texts, vocab_size)

    seconds = interleaved({"minilm": ours, PEER: theirs}, rounds)
    if found["minilm"].to_json() != found[PEER].to_str(pretty=True).encode("utf-8"):
        raise ValueError(f"training: must give the merges of {PEER}, and did not")
    return _row("train", size, vocab_size, seconds, goal=GOAL)


def _encode_row(texts: list[str], size: float, vocab_size: int) -> dict:
    tok = Tokenizer.train(texts, vocab_size)
    peer = train_hugging_face(texts, vocab_size)
    found = {}

    def ours() -> None:
        found["minilm"] = [tok.encode(text) for text in texts]

    def theirs() -> None:
        found[PEER] = peer.encode_batch_fast(texts)

    seconds = interleaved({"minilm": ours, PEER: theirs}, rounds=3)
    if found["minilm"] != [encoding.ids for encoding in found[PEER]]:
        raise ValueError(f"encoding: must give the ids of {PEER}, and did not")
    return _row("encode", size, vocab_size, seconds, goal=None)


def _row(pass_: str, size: float, vocab_size: int, seconds: dict, goal: float | None) -> dict:
    speed = {name: size / s for name, s in seconds.items()}
    return row(
        "tokenizer",
        pass_,
        speed["minilm"],
        "MB/s",
        shape={"MB": round(size, 3), "V": vocab_size, "threads": 1},
        dtype="uint8",
        seconds=seconds["minilm"],
        peers={PEER: {"value": speed[PEER], "seconds": seconds[PEER]}},
        goal=None if goal is None else goal * speed[PEER],
        sources=SOURCES[pass_],
    )


def corpus_prefix(size: int) -> list[str]:
    """The first files of the standard library, with its tests, up to `size` bytes of UTF-8."""
    texts, left = [], size
    for text in Corpus.standard_library(with_tests=True).texts("all"):
        data = text.encode("utf-8")[:left]
        texts.append(data.decode("utf-8", errors="ignore"))
        left -= len(data)
        if left == 0:
            break
    return texts


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """One thread for `tokenizers`, on one core where the system can say so.

    Its thread pool reads the setting when it starts: a process that has used it before keeps it.
    """
    settings = {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    before = {name: os.environ.get(name) for name in settings}
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_setaffinity") else None
    os.environ.update(settings)
    try:
        if cores is not None:
            os.sched_setaffinity(0, {max(cores)})
        yield
    finally:
        if cores is not None:
            os.sched_setaffinity(0, cores)
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def train_hugging_face(
    texts: Iterable[str],
    vocab_size: int,
    special_tokens: Iterable[str] = (END_OF_TEXT,),
    pattern: str = "gpt4",
    min_frequency: int = 0,
):
    """A `tokenizers.Tokenizer` with the arguments of `Tokenizer.train`."""
    try:
        from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
        from tokenizers import Tokenizer as HuggingFace
    except ImportError:
        raise ImportError("tokenizers is not installed: pip install tokenizers") from None

    chosen = pattern_named(pattern)
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=chosen is GPT2)
    if chosen is not GPT2:
        split = pre_tokenizers.Split(Regex(chosen.regex), "isolated")
        level = pre_tokenizers.Sequence([split, level])
    tok = HuggingFace(models.BPE())
    tok.pre_tokenizer = level
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(special_tokens),
        min_frequency=min_frequency,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tok.train_from_iterator(texts, trainer)
    return tok
