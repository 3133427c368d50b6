"""The subcommands of `minilm`, one pair of functions each: its flags, and what it does.

A command checks what it is given before it starts to work, prints to standard output, and raises
ValueError, OSError or ImportError with one sentence for the user; `__main__` turns that into one
line. `train` is in `command_train`, `bench` in `command_bench`.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import torch

from .checkpoint import load
from .corpus import Corpus
from .data import TokenStream
from .doctor import doctor
from .evaluate import evaluate
from .generate import stream
from .run import pick_device
from .text import stream_text
from .tokenizer import Tokenizer

EOT = "<|endoftext|>"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DEVICES = ("auto", "cpu", "cuda", "mps")


def corpus_of(paths: list[str] | None) -> Corpus:
    """The corpus of `--data`; without it, the standard library of the running Python."""
    return Corpus.from_paths(paths) if paths else Corpus.standard_library()


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device",
        choices=DEVICES,
        default="auto",
        help="where to compute; auto is a GPU if there is one (default: auto)",
    )


def add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data",
        nargs="+",
        metavar="PATH",
        help="text files, or folders of .py files (default: Python's own standard library)",
    )


# ------------------------------------------------------------------ tokenizer


def add_tokenizer(commands) -> None:
    parser = commands.add_parser("tokenizer", help="train a tokenizer on text files")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    train = actions.add_parser("train", help="learn a vocabulary and write tokenizer.json")
    train.add_argument("files", nargs="+", metavar="FILE", help="text files, or folders of .py")
    train.add_argument(
        "--vocab-size",
        type=int,
        required=True,
        metavar="N",
        help="tokens in all: at least 256 bytes and the special tokens",
    )
    train.add_argument("--out", required=True, metavar="FILE", help="the tokenizer.json to write")
    train.add_argument(
        "--pattern",
        choices=("gpt2", "gpt4"),
        default="gpt4",
        help="how text is split into words before merging (default: gpt4)",
    )
    train.add_argument(
        "--special",
        nargs="*",
        default=[EOT],
        metavar="TOKEN",
        help=f"special tokens, which get the first ids (default: {EOT})",
    )
    train.set_defaults(run=run_tokenizer_train)


def run_tokenizer_train(args: argparse.Namespace) -> int:
    out = Path(args.out)
    if not out.parent.is_dir():  # known before the work, not after it
        raise FileNotFoundError(f"--out: the folder {out.parent} does not exist")
    corpus = Corpus.from_paths(args.files)
    n_bytes = corpus.n_bytes()
    start = time.perf_counter()
    tok = Tokenizer.train(
        corpus.texts(), args.vocab_size, special_tokens=tuple(args.special), pattern=args.pattern
    )
    seconds = time.perf_counter() - start
    tok.save(out)
    print(f"{out}: {tok.vocab_size} tokens, learned from {n_bytes:,} bytes in {seconds:.1f} s")
    return 0


# ------------------------------------------------------------------ eval


def add_eval(commands) -> None:
    parser = commands.add_parser("eval", help="measure the loss of a model on text")
    parser.add_argument(
        "--model",
        default="tiny",
        metavar="NAME|DIR",
        help="a shipped model or a checkpoint folder (default: tiny)",
    )
    add_data(parser)
    parser.add_argument(
        "--split",
        choices=("heldout", "train", "all"),
        default="heldout",
        help="which files: one in twenty is held out, by a hash of its path (default: heldout)",
    )
    parser.add_argument(
        "--batch-size", type=int, default=32, metavar="B", help="rows per pass (default: 32)"
    )
    add_device(parser)
    parser.add_argument(
        "--dtype",
        choices=tuple(DTYPES),
        default="float32",
        help="type of the weights (default: float32)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run_eval)


def run_eval(args: argparse.Namespace) -> int:
    device = pick_device(args.device)
    model, tok = load_with_tokenizer(args.model, device, DTYPES[args.dtype])
    data = TokenStream.from_corpus(corpus_of(args.data), tok, args.split)
    if not data.n_bytes:
        raise ValueError(f"--split: the files of {args.split!r} hold no text")
    result = evaluate(model, data, batch_size=args.batch_size)
    if args.json:
        print(json.dumps({"model": args.model, "split": args.split, **result._asdict()}))
    else:
        print(f"{result.tokens:,} tokens, {result.bytes:,} bytes, {result.loss:.4f} nats per token")
        print(f"{args.split}: {result.bits_per_byte:.2f} bits per byte")
    return 0


def load_with_tokenizer(model: str, device: str = "cpu", dtype: torch.dtype = torch.float32):
    """(model, tok) of a name or folder; ValueError for a folder without a tokenizer."""
    model_, tok = load(model, device=device, dtype=dtype)
    if tok is None:
        raise ValueError(f"--model: {model} has no tokenizer.json, which text needs")
    return model_, tok


# ------------------------------------------------------------------ generate


def add_generate(commands) -> None:
    parser = commands.add_parser("generate", help="continue a text")
    parser.add_argument(
        "--model",
        default="tiny",
        metavar="NAME|DIR",
        help="a shipped model or a checkpoint folder (default: tiny)",
    )
    parser.add_argument(
        "--prompt",
        default="",
        metavar="TEXT",
        help="the beginning of a file (default: an empty file)",
    )
    parser.add_argument(
        "--max-new-tokens",
        type=int,
        default=100,
        metavar="N",
        help="stop after so many tokens at the latest (default: 100)",
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=0.8,
        metavar="X",
        help="below 1 plays safe, 0 always takes the likeliest token (default: 0.8)",
    )
    parser.add_argument(
        "--top-k",
        type=int,
        metavar="K",
        help="draw from the K likeliest tokens only (default: all)",
    )
    parser.add_argument(
        "--top-p",
        type=float,
        metavar="P",
        help="draw from the likeliest tokens that together have probability P (default: all)",
    )
    parser.add_argument(
        "--seed", type=int, metavar="N", help="the same seed gives the same text (default: random)"
    )
    parser.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="end before this text; may be given more than once",
    )
    parser.add_argument(
        "--new-only", action="store_true", help="print what is new, without the prompt"
    )
    add_device(parser)
    parser.set_defaults(run=run_generate)


def run_generate(args: argparse.Namespace) -> int:
    model, tok = load_with_tokenizer(args.model, pick_device(args.device))
    prompt = tok.encode(args.prompt, allowed_special="none")
    ends = ()
    if tok.eot_id is not None:  # in training every file stood behind this token
        prompt, ends = [tok.eot_id, *prompt], (tok.eot_id,)
    new_ids = stream(
        model,
        prompt,
        args.max_new_tokens,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        stop=ends,
        seed=args.seed,
    )
    pieces = stream_text(new_ids, tok, args.stop)  # every argument is checked before this prints
    if not args.new_only:
        print(args.prompt, end="", flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
    print()
    return 0


# ------------------------------------------------------------------ doctor


def add_doctor(commands) -> None:
    parser = commands.add_parser("doctor", help="what this machine has, and what to do about it")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run_doctor)


def run_doctor(args: argparse.Namespace) -> int:
    """Exit code 1 when something is to mend."""
    report = doctor(sys.stderr if args.json else None)
    if args.json:
        print(json.dumps(report))
    return 0 if report["ok"] else 1
