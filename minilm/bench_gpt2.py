"""GPT-2 124M on a GPU: the training step beside nanoGPT's, kernel by kernel, and what it learns.

`minilm bench train --peer nanogpt=PATH` on a machine with an NVIDIA GPU. Four parts, of which some
can be chosen (`--parts`); rows of the others stay in the file as they are, each with its date:

    step       tokens/s at B 16 and B 64, beside nanoGPT compiled and eager and PyTorch's ops
    kernels    the same with our operations switched on one by one, and off one by one
    gradients  the error of every parameter's gradient against float32
    curves     500 steps on Python sources: loss curves, and their distance beside PyTorch's own

Results: cuda_numba/results/gpt2_training-<device>.json, written after each part.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

from . import bench_gpt2_curves as curves
from . import bench_gpt2_kernels as kernels
from . import bench_gpt2_steps as steps
from .bench import device_name, read_results, slug, write_results
from .bench_gpt2_rows import (
    OP,
    SIZES,
    TORCH,
    curve_rows,
    gradient_rows,
    kernel_rows,
    step_rows,
)
from .bench_model import peer_file
from .data import TokenStream

PARTS = ("step", "kernels", "gradients", "curves")  # the longest last


def run(
    peers: dict[str, Path],
    path: Path,
    parts: Iterable[str] = PARTS,
    rounds: int | None = None,
    show: Callable[[dict], None] = lambda row: None,
) -> None:
    """Measure `parts` and write the file at `path` after each. show: sees each row at once."""
    parts = check_parts(parts)
    for name, file in peers.items():
        peer_file(name, file)  # known before the work, not after it
    device = device_name("cuda")
    old = read_results(path) if path.exists() else {"rows": [], "device": device, "command": OP}
    if (old["command"], slug(old["device"])) != (OP, slug(device)):
        raise ValueError(f"--json: {path} holds {old['command']} of {old['device']}")
    rows, torch.backends.cuda.matmul.allow_tf32 = old["rows"], True  # as nanoGPT's train.py has it
    with text_beside("curves" in parts) as text:
        for error in steps.compile_ahead(jobs(parts)):
            print(f"not compiled ahead: {error}")
        for part in parts:
            new = []
            for found in measure(part, peers, rounds, text):
                new.append(found)
                show(found)
            rows = merge(rows, new, [part])
            write_results(path, OP, rows, "cuda")
            steps.free()


def measure(
    part: str, peers: dict[str, Path], rounds: int | None, text: Future | None
) -> Iterator[dict]:
    """The rows of a part, as they are found. text: the tokens that curves are learned from."""
    small = SIZES[0]
    if part == "step":
        return step_rows(peers, rounds)
    if part == "kernels":
        return kernel_rows(small, **({} if rounds is None else {"rounds": rounds}))
    if part == "curves":
        return curve_rows(small, TokenStream(text.result(), vocab_size=curves.VOCAB))
    return gradient_rows(small)


def jobs(parts: Iterable[str]) -> list[steps.Job]:
    """What is compiled before anything is measured."""
    B = SIZES[0]["B"]
    of = {
        "step": [steps.Job(size["B"]) for size in SIZES],
        "kernels": kernels.jobs(B),
        "curves": [steps.Job(B, vocab=curves.VOCAB)],
        "gradients": [steps.Job(B), steps.Job(B, dtype="float32")],
    }
    return [job for part in parts for job in of[part]]


def check_parts(parts: Iterable[str]) -> list[str]:
    """The parts in their order, each once; ValueError for one that there is not."""
    chosen = set(parts)
    if not chosen or chosen - set(PARTS):
        raise ValueError(f"--parts: must be some of {', '.join(PARTS)}, got {sorted(chosen)}")
    return [part for part in PARTS if part in chosen]


@contextlib.contextmanager
def text_beside(wanted: bool) -> Iterator[Future | None]:
    """The tokens of the text, made in a process beside, on the CPU; None where not wanted."""
    if not wanted:
        yield None
        return
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        yield pool.submit(curves.python_tokens)


# ---- the file


def part_of(found: dict) -> str:
    """The part that a row belongs to, by its pass."""
    name = found["pass"]
    if name.startswith(("with ", "without ")) or name == TORCH:
        return "kernels"
    return {"loss curve": "curves", "same bits": "curves"}.get(name, name)


def merge(old: Iterable[dict], new: Iterable[dict], parts: Iterable[str]) -> list[dict]:
    """Rows of the parts that were measured now, and the old ones of all others, in their order.

    A step's error is that of the gradients, where they are known of the same sources.
    """
    rows = [r for r in old if part_of(r) not in set(parts)] + list(new)
    rows.sort(key=lambda r: PARTS.index(part_of(r)))  # stable
    errors = {
        r["source_sha256"]: r["error"]
        for r in rows
        if r["pass"] == "gradients" and r["dtype"] == "bfloat16"
    }
    return [
        r | {"error": errors.get(r["source_sha256"])} if r["pass"] == "step" else r for r in rows
    ]
