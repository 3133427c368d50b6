"""`minilm train`: from text files to a trained model, in one command.

    tokenizer → token file → training → validation → checkpoint

`--preset` gives the sizes of the model and how it is trained; flags change single choices.
Everything that the command does after it starts counts towards `--minutes`.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import torch

from .card import write_card
from .checkpoint import holds_run, load, load_training_state, save_checkpoint
from .commands import DEVICES, add_data, corpus_of
from .data import TokenStream
from .evaluate import evaluate
from .model import PRESETS, MiniLM
from .ops import check_backend
from .run import pick_device
from .tokenizer import Tokenizer
from .train import fix_steps, train
from .trainconfig import DTYPES, TrainConfig

# How each preset is trained unless flags say otherwise. book/decisions.md says where tiny's came from.
TRAIN_PRESETS = {
    "tiny": TrainConfig(minutes=5, batch_size=16, lr=5e-3, min_lr=2.5e-4, weight_decay=0.2),
    "small": TrainConfig(minutes=60, batch_size=16, lr=2e-3, min_lr=1e-4),
    "gpt2": TrainConfig(
        steps=10_000, batch_size=480, accumulation=40, lr=6e-4, min_lr=6e-5, dtype="bfloat16"
    ),
}
OVERRIDES = ("batch_size", "accumulation", "optimizer", "lr", "min_lr", "warmup", "weight_decay")
OVERRIDES += ("clip", "dtype", "seed", "threads", "eval_every", "save_every")


def add_train(commands) -> None:
    parser = commands.add_parser("train", help="train a model on text files")
    add = parser.add_argument
    add("--preset", choices=tuple(PRESETS), default="tiny", help="sizes (default: tiny)")
    add_data(parser)
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, metavar="N", help="optimizer steps")
    length.add_argument(
        "--minutes", type=float, metavar="M", help="as many steps as fit, all work included"
    )
    add("--out", metavar="DIR", help="the run's folder (default: runs/PRESET)")
    add("--resume", metavar="DIR", help="go on with the run in this folder, as it was begun")
    add("--ship", metavar="DIR", help="also write the model as bf16, for use only, here")
    add("--tokenizer", metavar="FILE", help="a tokenizer.json (default: learn one from the data)")
    add("--vocab-size", type=int, metavar="V", help="tokens (default: the preset's)")
    add("--context-length", type=int, metavar="T", help="tokens per row (default: the preset's)")
    add(
        "--backend", choices=("torch", "numba"), default="torch", help="who computes the operations"
    )
    add("--emulate", action="store_true", help="let --backend numba run on the emulator, on a CPU")
    add("--device", choices=DEVICES, default="auto", help="where (default: a GPU if there is one)")
    add("--dtype", choices=DTYPES, help="of the matrix products (default: the preset's)")
    add("--batch-size", type=int, metavar="B", help="rows per step")
    add("--accumulation", type=int, metavar="N", help="parts a batch is computed in, one by one")
    add("--optimizer", choices=("adamw", "lion", "sgd"), help="(default: adamw)")
    add("--lr", type=float, metavar="X", help="the highest learning rate")
    add("--min-lr", type=float, metavar="X", help="the last learning rate")
    add("--warmup", type=int, metavar="N", help="steps until the highest (default: a tenth)")
    add("--weight-decay", type=float, metavar="X", help="decay of matrices")
    add("--clip", type=float, metavar="X", help="largest gradient norm")
    add(
        "--eval-every",
        type=int,
        metavar="N",
        help="steps between validations (default: at the end)",
    )
    add("--save-every", type=int, metavar="N", help="steps between checkpoints (default: 500)")
    add("--threads", type=int, metavar="N", help="CPU threads (default: as many as cores)")
    add(
        "--seed", type=int, metavar="N", help="of weights and of the order of the data (default: 0)"
    )
    parser.set_defaults(run=run_train)


def run_train(args: argparse.Namespace) -> int:
    started = time.perf_counter()
    _check_backend(args)
    if args.resume:
        return _resume(args)
    config = train_config(args)
    out = Path(args.out or f"runs/{args.preset}")
    corpus = corpus_of(args.data)
    shape = PRESETS[args.preset]
    changes = {"vocab_size": args.vocab_size, "context_length": args.context_length}
    shape = replace(shape, **{n: v for n, v in changes.items() if v is not None})
    if args.tokenizer:
        tok = Tokenizer.load(args.tokenizer)
    else:
        tok = Tokenizer.train(corpus.texts("train"), shape.vocab_size)
        print(f"tokenizer: {tok.vocab_size} tokens, {time.perf_counter() - started:.1f} s")
    if tok.vocab_size > shape.vocab_size or args.tokenizer:
        shape = replace(shape, vocab_size=tok.vocab_size)
    data = {split: TokenStream.from_corpus(corpus, tok, split) for split in ("train", "heldout")}
    print(f"data: {data['train']!r}; held out: {data['heldout']!r}")
    torch.manual_seed(config.seed)
    model = MiniLM(shape)
    config = replace(config, context_length=config.context_length or shape.context_length)
    if not holds_run(out):  # else `train` refuses, and need not be kept waiting
        config = fix_steps(
            model, data["train"], config, tok=tok, valid=data["heldout"], started=started
        )
    print_config(model, config, out, args, data["train"])
    source = {"data": args.data, "preset": args.preset}
    return _run(model, tok, data, config, out, args, source)


def _resume(args: argparse.Namespace) -> int:
    """The run in --resume, with its own configs; only where it runs may be chosen anew."""
    out = Path(args.resume)
    model, values, _ = load_training_state(out)
    source = _read_source(out)
    config = replace(TrainConfig.from_dict(values["train"]), device=args.device)
    for name in ("threads", "eval_every", "save_every"):
        if getattr(args, name) is not None:
            config = replace(config, **{name: getattr(args, name)})
    given = [n for n in ("steps", "minutes", "data", "tokenizer", "lr", "seed") if getattr(args, n)]
    if given:
        raise ValueError(f"--{given[0]}: a run that goes on keeps its own; leave this out")
    tok = Tokenizer.load(out / "tokenizer.json")
    corpus = corpus_of(source["data"])
    data = {split: TokenStream.from_corpus(corpus, tok, split) for split in ("train", "heldout")}
    print_config(model, config, out, args, data["train"])
    print(f"going on after step {values['step']}")
    return _run(model, tok, data, config, out, args, source, resume=True)


def _run(model, tok, data, config, out, args, source, *, resume=False) -> int:
    if not resume and not holds_run(out):
        out.mkdir(parents=True, exist_ok=True)
        _write_source(out, source)
    try:
        history = train(
            model,
            data["train"],
            config,
            tok=tok,
            valid=data["heldout"],
            out=out,
            resume=resume,
        )
    except KeyboardInterrupt:
        print(f"\nstopped and saved; go on with: minilm train --resume {out}")
        raise
    print(f"checkpoint: {out}")
    if args.ship:
        ship(args.ship, model, tok, config, data["heldout"], history[-1]["tokens"], source)
    print(f"validation: {history[-1]['valid_bits_per_byte']:.2f} bits per byte")
    return 0


def ship(folder, model, tok, config, heldout, tokens: int, source: dict) -> None:
    """Write a model for use: bf16 weights, tokenizer, and a card that measures just these weights."""
    save_checkpoint(folder, model, tok, dtype=torch.bfloat16)
    stored, _ = load(folder)
    data = None if source["data"] is None else "Files under: " + ", ".join(source["data"])
    result = evaluate(stored, heldout)
    name = Path(folder).name
    write_card(folder, name, stored, tok, config, result, tokens=tokens, data=data)
    print(f"shipped: {folder}, {result.bits_per_byte:.3f} bits per byte as bfloat16")


def train_config(args: argparse.Namespace) -> TrainConfig:
    """The preset's TrainConfig with the flags that were given."""
    base = TRAIN_PRESETS[args.preset]
    changes = {n: getattr(args, n) for n in OVERRIDES if getattr(args, n) is not None}
    if args.steps is not None or args.minutes is not None:
        changes |= {"steps": args.steps, "minutes": args.minutes}
    if "lr" in changes and "min_lr" not in changes:  # keep their ratio
        changes["min_lr"] = base.min_lr * args.lr / base.lr
    return replace(base, device=args.device, backend=args.backend, **changes)


def print_config(model, config: TrainConfig, out: Path, args, stream: TokenStream) -> None:
    """Everything that was decided, one `name: value` a line."""
    device = pick_device(config.device)
    sizes = {"parameters": f"{model.num_parameters():,}", "world_size": 1, "out": str(out)}
    values = model.config.to_dict() | config.to_dict() | sizes | {"device": device}
    if config.threads is None:
        values["threads"] = torch.get_num_threads()
    for name, value in values.items():
        print(f"  {name}: {value}")


def _check_backend(args: argparse.Namespace) -> None:
    if args.emulate and args.backend != "numba":
        raise ValueError("--emulate: goes with --backend numba only")
    check_backend(args.backend)


def _write_source(out: Path, source: dict) -> None:
    """Where the text came from: what --resume needs beside the checkpoint."""
    text = json.dumps(source, indent=1) + "\n"
    (out / "source.json").write_text(text, encoding="utf-8", newline="\n")


def _read_source(out: Path) -> dict:
    path = out / "source.json"
    if not path.is_file():
        raise FileNotFoundError(f"--resume: {out} has no source.json, which names the run's data")
    return json.loads(path.read_text(encoding="utf-8"))
