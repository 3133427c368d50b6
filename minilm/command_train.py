"""`minilm train`: from text files to a trained model, in one command.

    tokenizer → token file → training → validation → checkpoint

`--preset` gives the sizes of the model and how it is trained; flags change single choices.
Everything that the command does after it starts counts towards `--minutes`.
"""

import argparse
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from .card import write_card
from .checkpoint import holds_run, load, load_training_state, save_checkpoint
from .commands import DEVICES, add_data, corpus_of
from .corpus import Corpus
from .data import TokenStream
from .evaluate import evaluate
from .history import FILE as HISTORY
from .model import PRESETS, MiniLM, ModelConfig
from .ops import BACKENDS, check_backend
from .run import pick_device
from .tokenizer import Tokenizer
from .train import fix_steps, train
from .trainconfig import BETAS, DTYPES, FREE, TrainConfig

# How each preset is trained unless flags say otherwise; book/decisions.md says why.
TRAIN_PRESETS = {
    "tiny": TrainConfig(minutes=5, batch_size=16, lr=5e-3, min_lr=2.5e-4, weight_decay=0.2),
    "small": TrainConfig(minutes=60, batch_size=16, lr=2e-3, min_lr=1e-4),
    "gpt2": TrainConfig(
        steps=10_000, batch_size=480, accumulation=40, lr=6e-4, min_lr=6e-5, dtype="bfloat16"
    ),
}
SIZES = ("vocab_size", "context_length", "d_model", "n_layers", "n_heads")  # flags of the model
CHOICES = ("batch_size", "accumulation", "optimizer", "lr", "min_lr", "warmup", "weight_decay")
CHOICES += ("clip", "dtype", "seed", "threads", "eval_every", "save_every")  # of the training
# What a run that goes on has settled long ago: everything that would make it another run.
SETTLED = ("preset", "data", "steps", "minutes", "out", "tokenizer", *SIZES)
SETTLED += tuple(name for name in CHOICES if name not in FREE)
LINES = 100  # of progress in a whole run, where standard output is not a terminal
SOURCE = "source.json"  # where the text came from: what --resume needs beside the checkpoint


def add_train(commands) -> None:
    parser = commands.add_parser("train", help="train a model on text files")
    add = parser.add_argument
    add("--preset", choices=tuple(PRESETS), help="sizes and choices to start from (default: tiny)")
    add_data(parser)
    length = parser.add_mutually_exclusive_group()
    lengths = ", ".join(
        f"{c.minutes:g} for {name}" for name, c in TRAIN_PRESETS.items() if c.minutes
    )
    length.add_argument("--steps", type=int, metavar="N", help="optimizer steps")
    length.add_argument(
        "--minutes",
        type=float,
        metavar="M",
        help=f"as many steps as fit, all work included (default: {lengths})",
    )
    add("--out", metavar="DIR", help="the run's folder (default: runs/PRESET)")
    add("--resume", metavar="DIR", help="go on with the run in this folder, as it was begun")
    add("--ship", metavar="DIR", help="also write the model as bf16, for use only, here")
    add("--tokenizer", metavar="FILE", help="a tokenizer.json (default: learn one from the data)")
    add_sizes(parser)
    add_choices(parser)
    parser.set_defaults(run=run_train)


def add_sizes(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("sizes of the model (default: the preset's)").add_argument
    add("--vocab-size", type=int, metavar="V", help="tokens, at most; fewer if the text is short")
    add("--context-length", type=int, metavar="T", help="tokens that the model can see")
    add("--d-model", type=int, metavar="C", help="width of the residual stream")
    add("--n-layers", type=int, metavar="N", help="blocks")
    add("--n-heads", type=int, metavar="H", help="attention heads per block")


def add_choices(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("training (default: the preset's)").add_argument
    add("--device", choices=DEVICES, default="auto", help="where (default: a GPU if there is one)")
    add("--dtype", choices=DTYPES, help="of the matrix products; weights stay float32")
    add(
        "--backend",
        choices=BACKENDS,
        help="who computes the operations (default: torch)",
    )
    add("--emulate", action="store_true", help="let --backend numba run on the emulator, on a CPU")
    add("--batch-size", type=int, metavar="B", help="rows per step")
    add("--accumulation", type=int, metavar="N", help="parts a batch is computed in, one by one")
    add("--optimizer", choices=tuple(BETAS), help="the rule of the update (default: adamw)")
    add("--lr", type=float, metavar="X", help="the highest learning rate")
    add("--min-lr", type=float, metavar="X", help="the last one (default: as far below --lr)")
    add("--warmup", type=int, metavar="N", help="steps to the highest (default: a tenth, or 100)")
    add("--weight-decay", type=float, metavar="X", help="decay of matrices")
    add("--clip", type=float, metavar="X", help="the largest gradient norm")
    add("--eval-every", type=int, metavar="N", help="steps between validations (default: just one)")
    add("--save-every", type=int, metavar="N", help="steps between checkpoints (default: 500)")
    add("--threads", type=int, metavar="N", help="CPU threads (default: as torch chooses)")
    add("--seed", type=int, metavar="N", help="of weights and of the order of data (default: 0)")


def run_train(args: argparse.Namespace) -> int:
    started = time.perf_counter()
    return resume_run(args) if args.resume else begin_run(args, started)


def begin_run(args: argparse.Namespace, started: float) -> int:
    """A new run. Everything that can be wrong with the flags is said before the work starts."""
    preset = args.preset or "tiny"
    args.backend = args.backend or "torch"
    args.device = device_of(args, args.backend)
    config = train_config(args, TRAIN_PRESETS[preset])
    shape = model_config(args, PRESETS[preset])
    out = Path(args.out or f"runs/{preset}")
    if holds_run(out):
        raise ValueError(f"--out: {out} holds a run; --resume {out}, or take another folder")
    corpus = corpus_of(args.data)
    if args.tokenizer:
        if args.vocab_size is not None:
            raise ValueError("--vocab-size: is that of --tokenizer's file, leave it out")
        tok = Tokenizer.load(args.tokenizer)
    else:
        tok = Tokenizer.train(corpus.texts("train"), shape.vocab_size)
        seconds = time.perf_counter() - started
        print(f"tokenizer: {tok.vocab_size} tokens, {seconds:.1f} s", flush=True)
    data, heldout = streams(corpus, tok)
    torch.manual_seed(config.seed)
    # A short text has fewer tokens than asked for: the model is not to have more than its tokenizer
    model = MiniLM(replace(shape, vocab_size=tok.vocab_size))
    config = replace(config, context_length=shape.context_length)
    config = fix_steps(model, data, config, tok=tok, valid=heldout, started=started)
    print_config(model, config, out)
    folders = None if args.data is None else [os.path.abspath(path) for path in args.data]
    return train_and_tell(model, tok, data, heldout, config, out, {"data": folders}, args.ship)


def resume_run(args: argparse.Namespace) -> int:
    """The run in --resume, as it was begun; only what is in FREE may be chosen anew."""
    if given := [name for name in SETTLED if getattr(args, name) is not None]:
        flag = given[0].replace("_", "-")
        raise ValueError(f"--{flag}: a run that goes on keeps its own, leave it out")
    out = Path(args.resume)
    model, values, _ = load_training_state(out)
    if not (out / SOURCE).is_file():
        raise FileNotFoundError(f"--resume: {out} has no {SOURCE}, which names the run's data")
    source = json.loads((out / SOURCE).read_text(encoding="utf-8"))
    changes = {name: v for name in CHOICES if (v := getattr(args, name)) is not None}
    stored = TrainConfig.from_dict(values["train"])
    backend = args.backend or stored.backend
    device = device_of(args, backend)
    config = replace(stored, device=device, backend=backend, **changes)
    tok = Tokenizer.load(out / "tokenizer.json")
    data, heldout = streams(corpus_of(source["data"]), tok)
    print_config(model, config, out)
    print(f"going on after step {values['step']}", flush=True)
    return train_and_tell(model, tok, data, heldout, config, out, source, args.ship, resume=True)


def device_of(args: argparse.Namespace, backend: str) -> str:
    """The device that --device, --emulate and the backend agree on, or a ValueError."""
    if args.emulate and backend != "numba":
        raise ValueError("--emulate: goes with --backend numba only")
    if args.emulate and args.device not in ("auto", "cpu"):
        raise ValueError(f"--emulate: runs on a CPU, got --device {args.device}; leave one out")
    if args.emulate:
        return "cpu"
    kind = pick_device(args.device).type
    if backend == "numba" and kind == "cpu":
        raise ValueError(
            "--backend: numba on a CPU means the emulator, thousands of times slower than a GPU; "
            "add --emulate if that is wanted, or use --backend torch"
        )
    check_backend(backend, kind)
    return args.device


def train_and_tell(model, tok, data, heldout, config, out, source, ship_to, *, resume=False) -> int:
    """Train, save, ship, and end with the line that says how good it is."""
    if ship_to and heldout is None:
        raise ValueError("--ship: the model's card needs held-out files, and there are none")

    lines = not sys.stdout.isatty()  # a terminal shows a bar

    def look(model: MiniLM, row: dict) -> None:
        if not (out / SOURCE).is_file():  # at the first row: a run that is refused leaves nothing
            text = json.dumps(source, indent=1) + "\n"
            (out / SOURCE).write_text(text, encoding="utf-8", newline="\n")
        if lines and is_told(row, config.steps):
            print(progress_line(row, config.steps), flush=True)

    history = train(
        model, data, config, tok=tok, valid=heldout, out=out, resume=resume, callback=look
    )
    print(f"checkpoint: {out}", flush=True)
    if ship_to:
        ship(ship_to, model, tok, config, heldout, history, source)
    if heldout is None:
        print("validation: none of the files is held out")
    else:
        print(f"validation: {history[-1]['valid_bits_per_byte']:.2f} bits per byte")
    return 0


def is_told(row: dict, steps: int) -> bool:
    """Does this row of the history get a line? LINES of a run do, and all with a validation."""
    step = row["step"]
    return step in (1, steps) or step % max(1, steps // LINES) == 0 or "valid_loss" in row


def progress_line(row: dict, steps: int) -> str:
    """A row of the history as a line to read: `step 20/300 | loss 5.122 | …`."""
    parts = [f"step {row['step']:>{len(str(steps))}}/{steps}", f"loss {row['loss']:.3f}"]
    if row["bits_per_byte"] is not None:
        parts.append(f"{row['bits_per_byte']:.2f} bits per byte")
    parts += [f"lr {row['lr']:.1e}", f"{row['tokens_per_second']:,.0f} tokens/s"]
    if row.get("valid_bits_per_byte") is not None:
        parts.append(f"validation {row['valid_bits_per_byte']:.2f}")
    return " | ".join(parts)


def streams(corpus: Corpus, tok: Tokenizer) -> tuple[TokenStream, TokenStream | None]:
    """The training tokens, and the held-out ones; None where no file with text is held out."""
    heldout = None
    if corpus.n_bytes("heldout"):
        heldout = TokenStream.from_corpus(corpus, tok, "heldout")
    data = TokenStream.from_corpus(corpus, tok, "train")
    print(f"data: {data!r}; held out: {heldout!r}", flush=True)
    return data, heldout


def ship(folder, model, tok, config, heldout, history: list[dict], source: dict) -> None:
    """Write a model for use: bf16 weights, tokenizer, card, and about 300 rows of the history.

    The card measures the weights as they are stored.
    """
    save_checkpoint(folder, model, tok, dtype=torch.bfloat16)
    stored, _ = load(folder)
    data = None
    if source["data"] is not None:  # names, not paths: those say nothing on another machine
        data = "Own files: " + ", ".join(Path(path).name for path in source["data"])
    result = evaluate(stored, heldout)
    name = Path(folder).name
    tokens = history[-1]["tokens"]
    write_card(folder, name, stored, tok, config, result, tokens=tokens, data=data)
    every = max(1, len(history) // 300)
    rows = [row for row in history if row["step"] % every == 0 or row is history[-1]]
    with open(Path(folder) / HISTORY, "w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    print(f"shipped: {folder}, {result.bits_per_byte:.3f} bits per byte as bfloat16")


def train_config(args: argparse.Namespace, base: TrainConfig) -> TrainConfig:
    """`base` with the flags that were given."""
    changes = {name: v for name in CHOICES if (v := getattr(args, name)) is not None}
    if args.steps is not None or args.minutes is not None:
        changes |= {"steps": args.steps, "minutes": args.minutes}
    if "lr" in changes and "min_lr" not in changes:  # keep their ratio
        changes["min_lr"] = base.min_lr * args.lr / base.lr
    return replace(base, device=args.device, backend=args.backend, **changes)


def model_config(args: argparse.Namespace, base: ModelConfig) -> ModelConfig:
    """`base` with the flags that were given; what follows from a changed size is computed anew."""
    changes = {name: v for name in SIZES if (v := getattr(args, name)) is not None}
    derived = {}
    if "d_model" in changes:
        derived |= {"d_ff": None, "head_dim": None}
    if "n_heads" in changes:
        derived |= {"n_kv_heads": None, "head_dim": None}
    return replace(base, **derived, **changes)


def print_config(model: MiniLM, config: TrainConfig, out: Path) -> None:
    """Everything that was decided, one `name: value` a line."""
    values = model.config.to_dict() | config.to_dict()
    values |= {"parameters": f"{model.num_parameters():,}", "world_size": 1, "out": str(out)}
    values["device"] = pick_device(config.device)
    values["threads"] = config.threads or torch.get_num_threads()
    for name, value in values.items():
        print(f"  {name}: {value}", flush=True)
