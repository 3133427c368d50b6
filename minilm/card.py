"""The card that goes with a shipped model: what it is, what it learned from, how good it is.

Every number in it comes from the run that made the model; nothing is typed.
"""

import platform
from datetime import UTC, datetime
from pathlib import Path

import torch

from .evaluate import Evaluation
from .model import MiniLM
from .tokenizer import Tokenizer
from .trainconfig import TrainConfig

CARD = "card.md"

STANDARD_LIBRARY = (
    "The source files of Python {python}'s standard library (PSF-2.0 licence), without tests and\n"
    "installed packages. One file in twenty is held out, by a hash of its path."
)


def write_card(
    folder: str | Path,
    name: str,
    model: MiniLM,
    tok: Tokenizer,
    config: TrainConfig,
    result: Evaluation,
    *,
    tokens: int,
    data: str | None = None,
) -> None:
    """Write card.md beside the weights.

    tokens: seen in training, repeats included. data: a sentence on the text learned from; None: the
    standard library. result: of `evaluate` on the held-out files.
    """
    c = model.config
    data = STANDARD_LIBRARY.format(python=platform.python_version()) if data is None else data
    text = f"""# {name}

A language model of {model.num_parameters():,} parameters for Python source code, small enough to
train in a few minutes on a laptop. It is for learning how such models work, not for writing code.

| | |
|---|---|
| held-out files | {result.bits_per_byte:.3f} bits per byte ({result.bytes:,} bytes) |
| per token | {result.loss:.3f} nats ({result.tokens:,} tokens) |
| trained on | {tokens:,} tokens in {config.steps:,} steps of {config.batch_size} rows |
| context | {c.context_length} tokens |
| vocabulary | {tok.vocab_size:,} tokens, byte-pair encoding, pattern {tok.pattern} |
| shape | {c.n_layers} layers, {c.n_heads} heads, C {c.d_model}, positions: {c.position} |
| optimizer | {config.optimizer}, learning rate {config.lr:g} to {config.min_lr:g} |
| stored as | bfloat16 |
| made | {datetime.now(UTC):%Y-%m-%d}, torch {torch.__version__}, on {platform.machine()} |

## Data

{data}

## Limits

It has seen {c.context_length} tokens at a time, so it knows nothing of what stands further back,
and it has seen little text: names and indentation are often right, meaning seldom. What it writes
may repeat its training data.
"""
    (Path(folder) / CARD).write_text(text, encoding="utf-8", newline="\n")
