"""Why the tiny preset is as it is: one choice changed at a time, the same number of tokens for all.

`minilm bench choices` trains the preset and each of its neighbours from several seeds, and writes
the bits per byte on the held-out files of the standard library. A difference below the spread of
the seeds says nothing. The runs are independent processes that share one device; on a GPU all of
them take a few minutes, on two CPU cores some hours.
"""

import multiprocessing
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch

from .bench import row
from .corpus import Corpus
from .data import TokenStream
from .evaluate import evaluate
from .model import PRESETS, MiniLM
from .run import pick_device
from .tokenizer import Tokenizer
from .train import train
from .trainconfig import TrainConfig

STEPS = 1900  # times 16 rows of 128 tokens: about what two CPU cores do in five minutes
SEEDS = (0, 1, 2)
SOURCES = {"tiny_choice": ("attention.py", "layers.py", "model.py", "optim.py", "run.py")}
TRAINING = {"lr": 5e-3, "min_lr": 2.5e-4, "weight_decay": 0.2, "batch_size": 16}
# label → (changes of the model, changes of the training); batch_size · context_length stays 2,048
CHOICES: dict[str, tuple[dict, dict]] = {
    "the preset": ({}, {}),
    "learned positions": ({"position": "learned"}, {}),
    "RMSNorm": ({"norm": "rmsnorm"}, {}),
    "SwiGLU": ({"mlp": "swiglu", "d_ff": None}, {}),
    "query-key norm": ({"qk_norm": True}, {}),
    "vocabulary 1,024": ({"vocab_size": 1024}, {}),
    "vocabulary 4,096": ({"vocab_size": 4096}, {}),
    "2 heads": ({"n_heads": 2, "n_kv_heads": 2, "head_dim": 64}, {}),
    "8 heads": ({"n_heads": 8, "n_kv_heads": 8, "head_dim": 16}, {}),
    "1 key/value head": ({"n_kv_heads": 1}, {}),
    "3 layers": ({"n_layers": 3}, {}),
    "6 layers": ({"n_layers": 6}, {}),
    "context 64": ({"context_length": 64}, {"batch_size": 32}),
    "context 256": ({"context_length": 256}, {"batch_size": 8}),
    "warm-up 20 steps": ({}, {"warmup": 20}),
    "no weight decay": ({}, {"weight_decay": 0.0}),
    "bfloat16 products": ({}, {"dtype": "bfloat16"}),
}
# learning rates; weight decay is scaled so that lr · weight_decay is the same for all
RATES = {
    "adamw": (1.25e-3, 2.5e-3, 5e-3, 1e-2, 2e-2),
    "lion": (2.5e-4, 5e-4, 1e-3, 2e-3),
    "sgd": (0.1, 0.3, 1.0),
}
CHOICES |= {
    f"rate {optimizer} {lr:g}": (
        {},
        {
            "optimizer": optimizer,
            "lr": lr,
            "min_lr": lr / 20,
            "weight_decay": 0.001 / lr if optimizer != "sgd" else 0.0,
        },
    )
    for optimizer, rates in RATES.items()
    for lr in rates
}


def choice_rows(
    peers: dict[str, Path] | None = None,
    *,
    rounds: int = len(SEEDS),
    steps: int = STEPS,
    workers: int | None = None,
    choices: dict[str, tuple[dict, dict]] = CHOICES,
) -> list[dict]:
    """One row for each choice: the median bits per byte over `rounds` seeds."""
    if peers:
        raise ValueError(f"--peer: 'choices' has no peers, got {', '.join(peers)}")
    device = str(pick_device("auto"))
    workers = workers or (12 if device == "cuda" else 1)
    corpus = Corpus.standard_library()
    for V in {trial_model(changes).vocab_size for changes, _ in choices.values()}:
        tokens(corpus, V)  # made once, before the workers look for them
    trials = [(label, seed, steps, device) for label in choices for seed in range(rounds)]
    found: dict[str, list[dict]] = {label: [] for label in choices}
    spawn = multiprocessing.get_context("spawn")  # a forked process cannot use CUDA
    with ProcessPoolExecutor(workers, mp_context=spawn) as pool:
        jobs = [pool.submit(trial, choices[label], *rest) for label, *rest in trials]
        for (label, *_), job in zip(trials, jobs, strict=True):
            found[label].append(job.result())
    return [choice_row(label, choices[label], found[label], steps) for label in choices]


def choice_row(label: str, choice: tuple[dict, dict], results: list[dict], steps: int) -> dict:
    bits = [result["bits_per_byte"] for result in results]
    return row(
        "tiny_choice",
        label,
        statistics.median(bits),
        "bits/byte",
        shape={"steps": steps, "parameters": results[0]["parameters"], "optimizer": "adamw"}
        | TRAINING
        | choice[1]
        | {f"seed {seed}": round(value, 4) for seed, value in enumerate(bits)},
        seconds=statistics.median(result["seconds"] for result in results),
        sources=SOURCES["tiny_choice"],
    )


def trial_model(changes: dict):
    return replace(PRESETS["tiny"], **changes)


def tokens(corpus: Corpus, vocab_size: int) -> dict[str, TokenStream]:
    tok = Tokenizer.train(corpus.texts("train"), vocab_size)
    return {s: TokenStream.from_corpus(corpus, tok, s) for s in ("train", "heldout")}


def trial(choice: tuple[dict, dict], seed: int, steps: int, device: str) -> dict:
    """Train one model in this process."""
    torch.set_num_threads(1 if device != "cpu" else torch.get_num_threads())
    shape, training = choice
    config = TrainConfig(
        **(TRAINING | training), steps=steps, seed=seed, device=device, log_every=steps
    )
    data = tokens(Corpus.standard_library(), trial_model(shape).vocab_size)
    torch.manual_seed(seed)
    model = MiniLM(trial_model(shape))
    begin = time.perf_counter()
    train(model, data["train"], config, progress=False)
    seconds = time.perf_counter() - begin
    bits = evaluate(model, data["heldout"]).bits_per_byte
    return {"bits_per_byte": bits, "seconds": seconds, "parameters": model.num_parameters()}
