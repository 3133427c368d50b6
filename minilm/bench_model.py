"""Speed of the model: tokens per second of training, beside nanoGPT's model, and of generation.

nanoGPT cannot be a dependency (it is no package), so its `model.py` is given by path:
`minilm bench train --peer nanogpt=PATH`. Both models then have the same sizes and do the same whole
step: forward, loss, backward, clipping, optimizer (each its own), in turns in one process.
"""

import contextlib
import hashlib
import importlib.util
import io
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch

from .bench import cpu_cores, interleaved, row
from .generate import generate
from .model import PRESETS, MiniLM, ModelConfig
from .optim import AdamW, clip_grad_norm, parameter_groups

THREADS = 2
ROUNDS = 60  # per size; a step of the larger size takes about half a second on two cores
# The two sizes at which the course states its speed: V, C, layers, H, T, B.
TRAIN_SIZES = (
    {"V": 1024, "C": 128, "layers": 4, "H": 4, "T": 128, "B": 16},
    {"V": 2048, "C": 256, "layers": 6, "H": 8, "T": 256, "B": 8},
)
PARITY = 1.0  # the goal: at least this many times the peer's tokens per second
OPTIMIZER = {"lr": 1e-3, "betas": (0.9, 0.95), "weight_decay": 0.1}
CLIP = 1.0
MODEL = ("model.py", "attention.py", "layers.py", "ops.py")
SOURCES = {  # operation → the files that are measured
    "train": (*MODEL, "loss.py", "optim.py"),
    "generate": ("generate.py", *MODEL),
}


def train_rows(
    peers: dict[str, Path] | None = None,
    *,
    sizes: tuple[dict, ...] = TRAIN_SIZES,
    rounds: int = ROUNDS,
    threads: int = THREADS,
) -> list[dict]:
    """A row per size: tokens/s of one training step on the CPU, float32.

    peers: {"nanogpt": folder or model.py}; the goal of a row is then PARITY × the peer's tokens/s.
    """
    peers = {name: peer_file(name, path) for name, path in (peers or {}).items()}
    with cpu_threads(threads) as n:
        return [_train_row(size, peers, rounds, n) for size in sizes]


def _train_row(size: dict, peers: dict[str, Path], rounds: int, threads: int) -> dict:
    ids = torch.randint(size["V"], (size["B"], size["T"] + 1))
    steps = {"minilm": our_step(size, ids)}
    steps |= {name: nanogpt_step(path, size, ids) for name, path in peers.items()}
    seconds = interleaved(steps, rounds)
    rate = {name: size["B"] * size["T"] / s for name, s in seconds.items()}
    found = {
        name: {
            "value": rate[name],
            "seconds": seconds[name],
            "source_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for name, path in peers.items()
    }
    return row(
        "train",
        "forward, backward and update",
        rate["minilm"],
        "tokens/s",
        shape=size | {"threads": threads},
        seconds=seconds["minilm"],
        peers=found,
        goal=PARITY * max(p["value"] for p in found.values()) if found else None,
        sources=SOURCES["train"],
    )


def our_step(size: dict, ids: torch.Tensor) -> Callable[[], float]:
    """One training step of a GPT-2-style MiniLM on ids (B, T + 1), as a function of nothing."""
    config = ModelConfig(
        vocab_size=size["V"],
        context_length=size["T"],
        d_model=size["C"],
        n_layers=size["layers"],
        n_heads=size["H"],
    )
    model = MiniLM(config)
    params = list(model.parameters())
    optimizer = AdamW(
        parameter_groups(model, OPTIMIZER["weight_decay"]),
        lr=OPTIMIZER["lr"],
        betas=OPTIMIZER["betas"],
    )

    def step() -> float:
        loss = model.loss(ids)
        loss.backward()
        clip_grad_norm(params, CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


def nanogpt_step(path: Path, size: dict, ids: torch.Tensor) -> Callable[[], float]:
    """The same step of nanoGPT's model, as its train.py does it: its model, its own optimizer."""
    module = load_peer(path)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its number of parameters
        config = module.GPTConfig(
            block_size=size["T"],
            vocab_size=size["V"],
            n_layer=size["layers"],
            n_head=size["H"],
            n_embd=size["C"],
            dropout=0.0,
            bias=True,
        )
        model = module.GPT(config)
        optimizer = model.configure_optimizers(
            OPTIMIZER["weight_decay"], OPTIMIZER["lr"], OPTIMIZER["betas"], "cpu"
        )
    inputs, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()

    def step() -> float:
        _, loss = model(inputs, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


def peer_file(name: str, path: str | Path) -> Path:
    """The model.py that `--peer nanogpt=PATH` means: a file, or a folder that has it."""
    path = Path(path)
    file = path / "model.py" if path.is_dir() else path
    if name != "nanogpt":
        raise ValueError(f"--peer: 'nanogpt' is the peer of this benchmark, got {name!r}")
    if not file.is_file():
        raise FileNotFoundError(f"--peer: {file} does not exist, give nanoGPT's folder or model.py")
    return file


def load_peer(path: Path) -> ModuleType:
    """nanoGPT's model.py as a module."""
    spec = importlib.util.spec_from_file_location(f"peer_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "GPT") or not hasattr(module, "GPTConfig"):
        raise ValueError(
            f"--peer: {path} has no GPT and GPTConfig, so it is not nanoGPT's model.py"
        )
    return module


def generate_rows(
    peers: dict[str, Path] | None = None,
    *,
    config: ModelConfig = PRESETS["tiny"],
    rounds: int = 5,
    threads: int = 1,  # the matrices of a single token are too small to share
) -> list[dict]:
    """Two rows: tokens/s of sampling until the context is full, with the KV cache and without.

    Speed does not depend on what the weights have learned, so the model is a fresh one.
    """
    if peers:
        raise ValueError(f"--peer: 'generate' has no peers, got {', '.join(peers)}")
    torch.manual_seed(0)
    model = MiniLM(config).eval()
    prompt = torch.randint(config.vocab_size, (8,)).tolist()
    n = config.context_length - len(prompt)
    ways = {
        name: lambda cache=cache: generate(model, prompt, n, seed=0, cache=cache)
        for name, cache in (("cached", True), ("uncached", False))
    }
    with cpu_threads(threads) as used:
        seconds = interleaved(ways, rounds)
    shape = {"V": config.vocab_size, "C": config.d_model, "layers": config.n_layers}
    shape |= {"H": config.n_heads, "T": config.context_length, "B": 1, "threads": used}
    return [
        row(
            "generate",
            name,
            n / s,
            "tokens/s",
            shape=shape,
            seconds=s,
            sources=SOURCES["generate"],
        )
        for name, s in seconds.items()
    ]


@contextlib.contextmanager
def cpu_threads(n: int):
    """`n` torch threads inside the block, no more than there are cores; gives how many."""
    before, n = torch.get_num_threads(), min(n, cpu_cores())
    torch.set_num_threads(n)
    try:
        yield n
    finally:
        torch.set_num_threads(before)
