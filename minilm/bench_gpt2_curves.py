"""Does GPT-2 learn the same on our kernels? Loss curves on real text, and how far they may differ.

A training is chaotic: a difference in the last bit of one weight grows, step by step, until two
curves differ visibly, however correct both are. So our curve may be no farther from PyTorch's than
PyTorch's are from one another. There are four of them: two that start alike (its attention backward
adds in no fixed order), and two from weights that were moved by one ulp each, up or down by chance.

The distance of two curves is the largest difference of their means over 20 steps: the loss of one
batch tells more about the batch than about the model. The largest of our distances from the four is
compared with the largest of the six among them.
"""

import itertools
import sysconfig
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .bench_gpt2_steps import CLIP, make_model, make_optimizer
from .bench_gpt2_steps import LR as PEAK_LR
from .corpus import Corpus
from .data import TokenStream
from .optim import clip_grad_norm, warmup_cosine
from .precision import autocast
from .step_graph import StepGraph
from .tokenizer import Tokenizer

VOCAB = 32768
STEPS, WARM_UP, MIN_LR = 500, 50, PEAK_LR / 10
WINDOW = 20  # steps of a mean
TEXT_BYTES, LEARN_BYTES = 48 << 20, 12 << 20  # of text; of it, the tokenizer learns from so much
OURS = "minilm"
# PyTorch's trainings: name → seed of the signs by which the weights are moved; None: not moved
TORCH = {"torch": None, "torch again": None, "torch, ulp 1": 1, "torch, ulp 2": 2}


# ---- text


def python_text(limit: int = TEXT_BYTES) -> list[str]:
    """Python sources of this machine, standard library first, then installed packages."""
    paths = sysconfig.get_paths()
    libraries = [Corpus.standard_library(with_tests=True), Corpus.from_paths([paths["purelib"]])]
    texts, total = [], 0
    for corpus in libraries:
        for _, text in corpus.documents():
            texts.append(text)
            total += len(text)
            if total >= limit:
                return texts
    return texts


def python_tokens(vocab_size: int = VOCAB, limit: int = TEXT_BYTES) -> np.ndarray:
    """That text as the ids of a tokenizer that has learned from its beginning; half a minute."""
    texts = python_text(limit)
    first = np.searchsorted(np.cumsum([len(text) for text in texts]), min(limit, LEARN_BYTES))
    tok = Tokenizer.train(texts[: int(first) + 1], vocab_size)
    return np.asarray(TokenStream.from_texts(texts, tok).ids)


# ---- training


def learning_rate(step: int, steps: int) -> float:
    """Of update `step`, counted from 1."""
    return warmup_cosine(
        step, steps=steps, warmup=min(WARM_UP, steps // 2), lr=PEAK_LR, min_lr=MIN_LR
    )


def torch_curve(
    size: dict, data: TokenStream, device: str, steps: int, ulp: int | None = None
) -> list[float]:
    """The losses of a training that PyTorch computes, op by op, under autocast.

    ulp: a seed; every weight then starts one ulp up or down from where it would.
    """
    model = make_model(size, device)
    if ulp is not None:
        move_by_one_ulp(list(model.parameters()), ulp)
    optimizer, params = make_optimizer(model), list(model.parameters())
    losses = []
    for n in range(steps):
        ids = data.batch_at(n, size["B"], size["T"])["ids"].to(device)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(n + 1, steps)
        with autocast(device, "bfloat16"):
            loss = model.loss(ids)
        loss.backward()
        clip_grad_norm(params, CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.detach())
    return torch.stack(losses).tolist()


def graph_curve(
    size: dict, data: TokenStream, device: str, steps: int
) -> tuple[list[float], Tensor]:
    """The losses of the same training by StepGraph, and all weights at its end."""
    model = make_model(size, device)
    graph = StepGraph(model, make_optimizer(model), clip=CLIP, dtype="bfloat16")
    losses = []
    for n in range(steps):
        ids = data.batch_at(n, size["B"], size["T"])["ids"].to(device)
        loss, _ = graph.step(ids, learning_rate(n + 1, steps))
        losses.append(loss.clone())  # the next step writes its loss to the same place
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    return torch.stack(losses).tolist(), weights


@torch.no_grad()
def move_by_one_ulp(params: Sequence[Tensor], seed: int) -> None:
    """Every number to one of its two neighbours in its format, by chance, in place."""
    generator = torch.Generator(params[0].device).manual_seed(seed)
    for p in params:
        signs = torch.rand(p.shape, generator=generator, device=p.device) - 0.5
        p.copy_(torch.nextafter(p, torch.copysign(torch.full_like(p, torch.inf), signs)))


# ---- distance


def distance(a: Sequence[float], b: Sequence[float], window: int = WINDOW) -> float:
    """The largest difference of two curves' means over `window` steps, in nats."""
    if len(a) != len(b) or len(a) < window:
        raise ValueError(
            f"curves: must be equally long and of at least {window} steps, got {len(a)}, {len(b)}"
        )
    kernel = np.full(window, 1 / window)
    means = (np.convolve(curve, kernel, mode="valid") for curve in (a, b))
    return float(np.abs(np.subtract(*means)).max())


def distances(
    curves: dict[str, list[float]], window: int = WINDOW
) -> tuple[dict[str, float], dict[str, float]]:
    """From ours to each of PyTorch's, by its name; and among PyTorch's, "name | name"."""
    ours = {name: distance(curves[OURS], curves[name], window) for name in TORCH}
    among = {
        f"{a} | {b}": distance(curves[a], curves[b], window)
        for a, b in itertools.combinations(TORCH, 2)
    }
    return ours, among


def count_differences(a: Sequence[float] | Tensor, b: Sequence[float] | Tensor) -> int:
    """How many of two lists' numbers do not have the same bits; both in float32."""
    a, b = (torch.as_tensor(x, dtype=torch.float32).view(torch.int32) for x in (a, b))
    return int((a != b).sum())


def all_curves(
    size: dict, data: TokenStream, device: str, steps: int = STEPS
) -> tuple[dict[str, list[float]], int]:
    """name → losses, of OURS and of TORCH's; and what differed when StepGraph ran a second time.

    That is the number of losses, and of weights at the end, that have other bits than at first.
    """
    ours, weights = graph_curve(size, data, device, steps)
    again, others = graph_curve(size, data, device, steps)
    different = count_differences(ours, again) + count_differences(weights, others)
    del weights, others
    curves = {OURS: ours}
    for name, seed in TORCH.items():
        curves[name] = torch_curve(size, data, device, steps, seed)
    return curves, different
